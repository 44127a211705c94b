/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The settings: who wins, what the file may look like, what a mistake is answered with, the names of the Python OmniDaemon, reload, and
 * that the files made from the table are up to date.
 */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../daemon/settings.h"
#include "../lib/suite.h"

static char folder[64], old_folder[4096];
static struct om_settings *settings;
static struct om_error error;
static struct om_flags flags;

static void set_up(void) {
        strcpy(folder, "/tmp/omni-test-settings-XXXXXX");
        ck_assert_ptr_nonnull(getcwd(old_folder, sizeof old_folder));
        ck_assert_ptr_nonnull(mkdtemp(folder));
        ck_assert_int_eq(chdir(folder), 0);
}

static void tear_down(void) {
        char command[100];

        om_settings_free(settings);
        settings = NULL;
        ck_assert_int_eq(chdir(old_folder), 0);
        snprintf(command, sizeof command, "rm -rf %s", folder);
        ck_assert_int_eq(system(command), 0);
}

static void write_file(const char *name, const char *text) {
        FILE *f = fopen(name, "w");

        ck_assert_ptr_nonnull(f);
        fputs(text, f);
        fclose(f);
}

/* argv and env live as long as the settings. */
static char *argv_of[32], *env_of[32];
static int read_with(char **arguments, char **environment) {
        int argc = 1;

        om_settings_free(settings);
        settings = NULL;
        error = (struct om_error) OM_ERROR_INIT;
        argv_of[0] = (char *) "omnidaemond";
        while (arguments && arguments[argc - 1]) {
                argv_of[argc] = arguments[argc - 1];
                argc++;
        }
        argv_of[argc] = NULL;
        env_of[0] = (char *) "XDG_RUNTIME_DIR=/run/user/7";
        for (int i = 0; !i || env_of[i]; i++)
                env_of[i + 1] = environment ? environment[i] : NULL;
        return om_settings_read(argc, argv_of, env_of, &flags, &settings, &error);
}
#define ARGS(...) ((char **) (const char *[]){ __VA_ARGS__ __VA_OPT__(, ) NULL })
#define ENV(...) ((char **) (const char *[]){ __VA_ARGS__ __VA_OPT__(, ) NULL })

#define assert_read(...) ck_assert_msg(read_with(__VA_ARGS__) == 0, "%s", error.message)
#define assert_refused(call, ...) assert_refused_(call, (const char *[]){ __VA_ARGS__, NULL })
static void assert_refused_(int r, const char **words) {
        ck_assert_int_lt(r, 0);
        ck_assert_ptr_null(settings);
        for (; *words; words++)
                ck_assert_msg(strstr(error.message, *words), "\"%s\" is not in \"%s\"", *words, error.message);
}
#define assert_source(name, text) ck_assert_str_eq(om_settings_source(settings, name), text)

static bool noted(const char *word) {
        for (const char *n = NULL; (n = om_settings_next_note(settings, n));)
                if (strstr(n, word))
                        return true;
        return false;
}

/* -- who wins ------------------------------------------------------------------------------------------------------ */

START_TEST(test_without_anything_the_defaults_are_in_force) {
        assert_read(ARGS(), ENV());
        ck_assert_str_eq(settings->event_bus_url, "local:");
        ck_assert_str_eq(settings->storage_url, "json:.omnidaemon_data");
        ck_assert_str_eq(settings->state_dir, ".omnidaemon_data");
        ck_assert_str_eq(settings->socket_path, "/run/user/7/omnidaemon/omnidaemon.sock");
        ck_assert_int_eq(settings->socket_mode, 0660);
        ck_assert_ptr_null(settings->socket_group);
        ck_assert_int_eq(settings->prefetch, 10);
        ck_assert_int_eq(settings->dlq_retry_limit, 3);
        ck_assert_int_eq(settings->retry_backoff_ms, 1000);
        ck_assert_int_eq(settings->retry_backoff_max_ms, 60000);
        ck_assert_int_eq(settings->reclaim_idle_ms, 180000);
        ck_assert_int_eq(settings->result_ttl_ms, 86400000);
        ck_assert_int_eq(settings->idempotency_window_ms, 86400000);
        ck_assert_int_eq(settings->max_connections, 16384);
        ck_assert_int_eq(settings->max_frame_bytes, 16 << 20);
        ck_assert_int_eq(settings->session_output_bytes, 4 << 20);
        ck_assert_int_eq(settings->session_total_bytes, 256 << 20);
        ck_assert_int_eq(settings->stalled_client_ms, 30000);
        ck_assert_int_eq(settings->slow_client_ms, 30000);
        ck_assert_int_eq(settings->stop_grace_ms, 10000);
        ck_assert_int_eq(settings->metrics_interval_ms, 60000);
        ck_assert_str_eq(settings->log_level, "info");
        ck_assert_str_eq(settings->log_target, "auto");
        assert_source("PREFETCH", "default");
        ck_assert_ptr_null(om_settings_next_note(settings, NULL));
}
END_TEST

START_TEST(test_a_flag_beats_the_environment_which_beats_the_file) {
        write_file("c.conf", "PREFETCH=2\nRESULT_TTL=2h\nSTOP_GRACE=2s\n");
        assert_read(ARGS("--config", "c.conf", "--prefetch", "4"), ENV("PREFETCH=3", "RESULT_TTL=3h"));
        ck_assert_int_eq(settings->prefetch, 4);
        ck_assert_int_eq(settings->result_ttl_ms, 3 * 3600000);
        ck_assert_int_eq(settings->stop_grace_ms, 2000);
        assert_source("PREFETCH", "flag");
        assert_source("RESULT_TTL", "environment");
        assert_source("STOP_GRACE", "file c.conf line 3");
}
END_TEST

START_TEST(test_flags_may_be_written_with_an_equals_sign) {
        assert_read(ARGS("--prefetch=4", "--event-bus-url=local:?a=b"), ENV());
        ck_assert_int_eq(settings->prefetch, 4);
        ck_assert_str_eq(settings->event_bus_url, "local:?a=b");
}
END_TEST

START_TEST(test_an_empty_variable_is_an_unset_one) {
        assert_read(ARGS(), ENV("EVENT_BUS_URL=", "PREFETCH="));
        ck_assert_str_eq(settings->event_bus_url, "local:");
        ck_assert_int_eq(settings->prefetch, 10);
}
END_TEST

START_TEST(test_the_file_is_that_of_config_then_of_the_environment_then_dot_env) {
        write_file("a", "PREFETCH=2\n");
        write_file("b", "PREFETCH=3\n");
        write_file(".env", "PREFETCH=4\n");
        assert_read(ARGS("--config", "a"), ENV("OMNIDAEMON_CONFIG=b"));
        ck_assert_int_eq(settings->prefetch, 2);
        assert_read(ARGS(), ENV("OMNIDAEMON_CONFIG=b"));
        ck_assert_int_eq(settings->prefetch, 3);
        assert_read(ARGS(), ENV());
        ck_assert_int_eq(settings->prefetch, 4);
        ck_assert_str_eq(om_settings_file(settings), ".env");
        assert_refused(read_with(ARGS("--config", "none"), ENV()), "none", "No such file");
}
END_TEST

START_TEST(test_a_folder_called_dot_env_is_not_read) {
        ck_assert_int_eq(mkdir(".env", 0755), 0);
        assert_read(ARGS(), ENV());
        ck_assert_ptr_null(om_settings_file(settings));
}
END_TEST

START_TEST(test_the_socket_has_two_names_and_that_of_the_clients_wins) {
        assert_read(ARGS(), ENV("OMNIDAEMON_SOCKET=/a"));
        ck_assert_str_eq(settings->socket_path, "/a");
        assert_source("SOCKET_PATH", "environment, OMNIDAEMON_SOCKET");
        assert_read(ARGS(), ENV("SOCKET_PATH=/b", "OMNIDAEMON_SOCKET=/a"));
        ck_assert_str_eq(settings->socket_path, "/a");
        assert_read(ARGS(), ENV("OMNIDAEMON_SOCKET=/a", "SOCKET_PATH=/b"));
        ck_assert_str_eq(settings->socket_path, "/a");
        assert_read(ARGS("--socket-path", "/c"), ENV("OMNIDAEMON_SOCKET=/a"));
        ck_assert_str_eq(settings->socket_path, "/c");
}
END_TEST

START_TEST(test_a_service_uses_the_folders_that_the_service_manager_made) {
        char pid[64];

        write_file(".env", "PREFETCH=99\n");
        snprintf(pid, sizeof pid, "SYSTEMD_EXEC_PID=%d", (int) getpid());
        assert_read(ARGS(), ENV(pid, "STATE_DIRECTORY=/var/lib/x:/var/lib/y", "RUNTIME_DIRECTORY=/run/x", "OMNIDAEMON_CONFIG=/dev/null"));
        ck_assert(om_settings_service(settings));
        ck_assert_str_eq(settings->state_dir, "/var/lib/x");
        ck_assert_str_eq(settings->storage_url, "json:/var/lib/x");
        ck_assert_str_eq(settings->socket_path, "/run/x/omnidaemon.sock");
        ck_assert_int_eq(settings->prefetch, 10);
        /* A shell inside a service has these too, with another process's number. */
        assert_read(ARGS(), ENV("SYSTEMD_EXEC_PID=1", "STATE_DIRECTORY=/var/lib/x", "INVOCATION_ID=1"));
        ck_assert(!om_settings_service(settings));
        ck_assert_str_eq(settings->state_dir, ".omnidaemon_data");
        ck_assert_int_eq(settings->prefetch, 99);
}
END_TEST

/* -- the file ------------------------------------------------------------------------------------------------------ */

START_TEST(test_the_file_may_have_comments_quotes_export_and_windows_line_ends) {
        write_file("c.conf",
                "\xef\xbb\xbf# comment\r\n; another\n\n  export PREFETCH = 7 # seven\r\n"
                "EVENT_BUS_URL='local:/a \\b'\nSTORAGE_URL=\"json:/a \\\"b\\\" \\\\ \\n # c\" # comment\n"
                "STATE_DIR=/a#b\nSOCKET_GROUP=\nRESULT_TTL=1h\nRESULT_TTL=2h");
        assert_read(ARGS("--config", "c.conf"), ENV());
        ck_assert_int_eq(settings->prefetch, 7);
        ck_assert_str_eq(settings->event_bus_url, "local:/a \\b");
        ck_assert_str_eq(settings->storage_url, "json:/a \"b\" \\ \\n # c");
        ck_assert_str_eq(settings->state_dir, "/a#b");
        ck_assert_ptr_null(settings->socket_group);
        ck_assert_int_eq(settings->result_ttl_ms, 2 * 3600000);
        assert_source("RESULT_TTL", "file c.conf line 10");
}
END_TEST

START_TEST(test_a_misspelt_name_in_the_file_is_refused_with_line_and_nearest) {
        write_file("c.conf", "# comment\n\nEVENT_BUS_URL=local:\nPREFECH=5\n");
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf line 4", "PREFECH", "did you mean PREFETCH?");
        write_file("c.conf", "COMPLETELY_DIFFERENT=5\n");
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf line 1", "COMPLETELY_DIFFERENT", "--help");
}
END_TEST

START_TEST(test_lines_that_cannot_be_read_are_refused_with_their_number) {
        write_file("c.conf", "PREFETCH=5\nwhat is this\n");
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf line 2", "NAME=value");
        write_file("c.conf", "\nSTATE_DIR=\"abc\nPREFETCH=5\n");
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf line 2", "STATE_DIR", "not closed");
        write_file("c.conf", "STATE_DIR='a' b\n");
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf line 1", "STATE_DIR", "closing quote");
        write_file("c.conf", "=5\n");
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf line 1");
}
END_TEST

START_TEST(test_dot_env_is_shared_with_other_programs_but_slips_are_found) {
        write_file(".env", "DJANGO_SECRET_KEY=\"a\nb\"\nDATABASE_URL=x\nwhat is this\nOTHER='open\nPREFETCH=5\n");
        assert_read(ARGS(), ENV());
        ck_assert_int_eq(settings->prefetch, 5);
        assert_source("PREFETCH", "file .env line 6");
        write_file(".env", "\nPREFECH=5\n");
        assert_refused(read_with(ARGS(), ENV()), ".env line 2", "PREFECH", "PREFETCH");
        write_file(".env", "PREFTECH=5\n");
        assert_refused(read_with(ARGS(), ENV()), "PREFTECH", "PREFETCH");
        write_file(".env", "OMNIDAEMON_SOKET_PATH=5\n");
        assert_refused(read_with(ARGS(), ENV()), "OMNIDAEMON_SOKET_PATH");
        write_file(".env", "OMNIDAEMON_CLIENT_NAME=me\nOMNIDAEMON_CALL_TIMEOUT_MS=5\n");
        assert_read(ARGS(), ENV());
}
END_TEST

START_TEST(test_binary_and_endless_files_are_refused) {
        int fd = open("c.conf", O_WRONLY | O_CREAT, 0600);

        ck_assert_int_eq(write(fd, "A=1\0B=2\n", 8), 8);
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf", "zero byte");
        ck_assert_int_eq(ftruncate(fd, 3 << 20), 0);
        close(fd);
        assert_refused(read_with(ARGS("--config", "c.conf"), ENV()), "c.conf", "longer");
        assert_refused(read_with(ARGS("--config", "/dev/zero"), ENV()), "/dev/zero");
        assert_refused(read_with(ARGS("--config", "/"), ENV()), "Is a directory");
}
END_TEST

START_TEST(test_any_bytes_in_a_file_are_read_or_refused) {
        static const char alphabet[] = "AB_=\"'\\#\n\r\t $`PREFETCH=5 export ";
        unsigned seed = 1;

        for (int round = 0; round < 3000; round++) {
                char text[80];
                size_t n = (size_t) rand_r(&seed) % sizeof text;

                for (size_t i = 0; i < n; i++)
                        text[i] = alphabet[(size_t) rand_r(&seed) % (sizeof alphabet - 1)];
                text[n ? n - 1 : 0] = 0;
                write_file(round % 2 ? ".env" : "c.conf", text);
                if (read_with(round % 2 ? ARGS() : ARGS("--config", "c.conf"), ENV()) < 0)
                        ck_assert_uint_gt(strlen(error.message), 0);
        }
}
END_TEST

/* -- mistakes ------------------------------------------------------------------------------------------------------ */

START_TEST(test_a_wrong_value_names_setting_place_and_what_it_may_be) {
        assert_refused(read_with(ARGS("--prefetch", "many"), ENV()), "flag", "PREFETCH", "\"many\"", "integer");
        assert_refused(read_with(ARGS(), ENV("PREFETCH=0")), "environment", "PREFETCH", "1 to 1000");
        assert_refused(read_with(ARGS(), ENV("RESULT_TTL=soon")), "RESULT_TTL", "\"soon\"");
        assert_refused(read_with(ARGS(), ENV("LOG_LEVEL=loud")), "LOG_LEVEL", "\"loud\"", "warning");
        assert_refused(read_with(ARGS(), ENV("SOCKET_MODE=999")), "SOCKET_MODE", "octal");
        assert_refused(read_with(ARGS(), ENV("SOCKET_MODE=rw")), "SOCKET_MODE", "octal");
        write_file("c.conf", "\nMAX_FRAME_BYTES=3\n");
        assert_refused(read_with(ARGS("--config=c.conf"), ENV()), "file c.conf line 2", "MAX_FRAME_BYTES");
}
END_TEST

START_TEST(test_an_unknown_flag_gets_the_nearest) {
        assert_refused(read_with(ARGS("--prefech", "5"), ENV()), "--prefech", "--prefetch");
        assert_refused(read_with(ARGS("--chek"), ENV()), "--chek", "--check");
        assert_refused(read_with(ARGS("--prefetch"), ENV()), "--prefetch", "missing");
        assert_refused(read_with(ARGS("--prefetch="), ENV()), "--prefetch", "missing");
        assert_refused(read_with(ARGS("start"), ENV()), "argument start");
        assert_refused(read_with(ARGS("--help=x"), ENV()), "--help");
}
END_TEST

START_TEST(test_help_and_the_like_read_nothing_else) {
        assert_read(ARGS("--help"), ENV("PREFETCH=wrong"));
        ck_assert(flags.help);
        ck_assert_ptr_null(settings);
        assert_read(ARGS("--version"), ENV("PREFETCH=wrong"));
        ck_assert(flags.version);
}
END_TEST

START_TEST(test_a_slip_in_the_environment_is_noted_and_not_fatal) {
        assert_read(ARGS(), ENV("PREFFETCH=5", "OMNIDAEMON_WHATEVER=1", "PATH=/bin", "STORAGE=x"));
        ck_assert(noted("PREFFETCH"));
        ck_assert(noted("did you mean PREFETCH?"));
        ck_assert(noted("OMNIDAEMON_WHATEVER"));
        ck_assert(!noted("PATH;"));
        ck_assert(!noted("STORAGE;"));
}
END_TEST

START_TEST(test_what_this_version_lacks_is_noted) {
        assert_read(ARGS(), ENV("OMNIDAEMON_API_ENABLED=true", "OMNIDAEMON_API_PORT=8765"));
        ck_assert(noted("OMNIDAEMON_API_ENABLED"));
        ck_assert(noted("HTTP is not in this version"));
}
END_TEST

START_TEST(test_levels_of_other_programs_are_understood) {
        assert_read(ARGS(), ENV("LOG_LEVEL=WARN"));
        ck_assert_str_eq(settings->log_level, "warning");
        assert_read(ARGS(), ENV("LOG_LEVEL=CRITICAL"));
        ck_assert_str_eq(settings->log_level, "error");
        assert_read(ARGS(), ENV("LOG_LEVEL=DEBUG"));
        ck_assert_str_eq(settings->log_level, "debug");
}
END_TEST

/* -- the names of the Python OmniDaemon ---------------------------------------------------------------------------- */

static const struct {
        const char *variables[4], *bus, *storage;
} python[] = {
        { { "EVENT_BUS_TYPE=local" }, "local:", NULL },
        { { "EVENT_BUS_TYPE=redis_stream" }, "redis://localhost:6379", NULL },
        { { "EVENT_BUS_TYPE=redis_stream", "REDIS_URL=rediss://u:p@h:1/2" }, "rediss://u:p@h:1/2", NULL },
        { { "EVENT_BUS_TYPE=redis_stream", "REDIS_URL=redis://h?db=2", "REDIS_STREAM_MAXLEN=10000" }, "redis://h?db=2&maxlen=10000", NULL },
        { { "EVENT_BUS_TYPE=kafka", "KAFKA_SERVERS=a:1,b:2" }, "kafka://a:1,b:2", NULL },
        { { "EVENT_BUS_TYPE=rabbitmq" }, "amqp://guest:guest@localhost:5672/", NULL },
        { { "EVENT_BUS_TYPE=nats", "NATS_URL=nats://n:4222" }, "nats://n:4222", NULL },
        { { "REDIS_URL=redis://h" }, "local:", NULL },
        { { "STORAGE_BACKEND=json" }, NULL, "json:.omnidaemon_data" },
        { { "STORAGE_BACKEND=json", "JSON_STORAGE_DIR=/srv/j" }, NULL, "json:/srv/j" },
        { { "JSON_STORAGE_DIR=/srv/j" }, NULL, "json:/srv/j" },
        { { "STORAGE_BACKEND=redis", "REDIS_URL=redis://h", "REDIS_KEY_PREFIX=my app" }, NULL, "redis://h?prefix=my%20app" },
        { { "STORAGE_BACKEND=redis", "REDIS_URL=redis://h?a=b", "REDIS_KEY_PREFIX=x" }, NULL, "redis://h?a=b&prefix=x" },
        { { "STORAGE_BACKEND=postgresql", "POSTGRES_URL=postgresql://u@h/d" }, NULL, "postgresql://u@h/d" },
        { { "STORAGE_BACKEND=mongodb", "MONGODB_URI=mongodb://h/d" }, NULL, "mongodb://h/d" },
        { { "STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_REGION=eu-1", "S3_ENDPOINT=http://m:9000" }, NULL,
                "s3://b?region=eu-1&endpoint=http://m:9000" },
        { { "STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_REPLICA_URL=s3://c?region=eu-2&profile=p", "S3_MANAGE_LIFECYCLE=yes" }, NULL,
                "s3://b?replica=s3://c%3Fregion%3Deu-2%26profile%3Dp&manage_lifecycle=yes" },
        { { "STORAGE_BACKEND=nats", "NATS_URL=nats://n:4222" }, NULL, "nats+kv://n:4222/omnidaemon" },
        { { "STORAGE_BACKEND=nats", "NATS_URL=nats://n:4222/b?x=y" }, NULL, "nats+kv://n:4222/b?x=y" },
};
START_TEST(test_python_names_become_urls) {
        char *environment[5] = { NULL };

        for (int i = 0; i < 4; i++)
                environment[i] = (char *) (uintptr_t) python[_i].variables[i];
        assert_read(ARGS(), environment);
        if (python[_i].bus)
                ck_assert_str_eq(settings->event_bus_url, python[_i].bus);
        if (python[_i].storage)
                ck_assert_str_eq(settings->storage_url, python[_i].storage);
}
END_TEST

START_TEST(test_an_unknown_python_bus_or_storage_names_the_known_ones) {
        assert_refused(read_with(ARGS(), ENV("EVENT_BUS_TYPE=kafk")),
                "EVENT_BUS_TYPE: unknown event bus \"kafk\"; known: local, redis_stream, kafka, rabbitmq, nats; did you mean kafka?");
        assert_refused(read_with(ARGS(), ENV("STORAGE_BACKEND=postgres9")), "\"postgres9\"", "postgresql");
        assert_refused(read_with(ARGS(), ENV("STORAGE_BACKEND=postgresql")), "POSTGRES_URL");
        assert_refused(read_with(ARGS(), ENV("EVENT_BUS_TYPE=redis_stream", "REDIS_URL=http://h")), "REDIS_URL", "redis://");
        assert_refused(read_with(ARGS(), ENV("STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_REPLICA_URL=s3://k:hunter2@c")), "S3_REPLICA_URL",
                "profile=NAME");
        ck_assert(!strstr(error.message, "hunter2"));
}
END_TEST

START_TEST(test_a_url_beats_the_python_names_at_its_own_level_and_below) {
        assert_read(ARGS(), ENV("EVENT_BUS_URL=local:/x", "EVENT_BUS_TYPE=kafka"));
        ck_assert_str_eq(settings->event_bus_url, "local:/x");
        ck_assert(noted("EVENT_BUS_TYPE is not used"));
        write_file(".env", "EVENT_BUS_URL=local:/file\nREDIS_URL=redis://file\n");
        assert_read(ARGS(), ENV("EVENT_BUS_TYPE=redis_stream"));
        ck_assert_str_eq(settings->event_bus_url, "redis://file");
        assert_source("EVENT_BUS_URL", "environment, EVENT_BUS_TYPE");
        write_file(".env", "EVENT_BUS_TYPE=kafka\n");
        assert_read(ARGS("--event-bus-url", "local:/flag"), ENV());
        ck_assert_str_eq(settings->event_bus_url, "local:/flag");
}
END_TEST

START_TEST(test_a_url_may_stand_in_a_file_of_its_own) {
        char credentials[128];

        write_file("bus", "\n local:/from/file \n\n");
        snprintf(credentials, sizeof credentials, "CREDENTIALS_DIRECTORY=%s", folder);
        assert_read(ARGS(), ENV("EVENT_BUS_URL_FILE=./bus"));
        ck_assert_str_eq(settings->event_bus_url, "local:/from/file");
        assert_source("EVENT_BUS_URL", "environment, EVENT_BUS_URL_FILE");
        ck_assert_int_eq(chdir("/"), 0);
        assert_read(ARGS(), ENV("EVENT_BUS_URL_FILE=bus", credentials));
        ck_assert_str_eq(settings->event_bus_url, "local:/from/file");
        assert_refused(read_with(ARGS(), ENV("EVENT_BUS_URL_FILE=bus", "EVENT_BUS_URL=local:", credentials)), "both");
        assert_refused(read_with(ARGS(), ENV("STORAGE_URL_FILE=/none")), "STORAGE_URL_FILE", "/none");
        assert_refused(read_with(ARGS(), ENV("STORAGE_URL_FILE=/dev/null")), "STORAGE_URL_FILE", "one URL");
}
END_TEST

/* -- as text ------------------------------------------------------------------------------------------------------- */

static char *printed(void (*print)(FILE *)) {
        char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        print(f);
        fclose(f);
        return text;
}
static void print_check(FILE *f) { om_settings_print_check(settings, f); }
static void print_help(FILE *f) { om_settings_print_help(f, 100); }

START_TEST(test_check_shows_value_and_source_and_no_password) {
        char *text;

        assert_read(ARGS("--prefetch", "7"),
                ENV("EVENT_BUS_TYPE=redis_stream", "REDIS_URL=redis://u:geheim@h:1", "STORAGE_URL=postgresql://u:geheim@h/d"));
        text = printed(print_check);
        ck_assert_ptr_null(strstr(text, "geheim"));
        ck_assert_ptr_nonnull(strstr(text, "redis://u:***@h:1"));
        ck_assert_ptr_nonnull(strstr(text, "MAX_CONNECTIONS"));
        ck_assert_ptr_nonnull(strstr(text, "environment, EVENT_BUS_TYPE"));
        free(text);
}
END_TEST

START_TEST(test_help_names_every_setting_and_fits_its_width) {
        char *text = printed(print_help);

        ck_assert_ptr_nonnull(strstr(text, "--event-bus-url URL"));
        ck_assert_ptr_nonnull(strstr(text, "--retry-backoff-max DURATION"));
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
                ck_assert_msg(strlen(line) <= 120, "%s", line);
        free(text);
}
END_TEST

START_TEST(test_the_sample_file_is_read_back_as_the_defaults) {
        char *text = printed(om_settings_print_conf), *to = text;

        /* every setting that has a default, taken out of its comment */
        for (char *p = text; *p; p++)
                if (!(*p == '#' && (p == text || p[-1] == '\n') && 'A' <= p[1] && p[1] <= 'Z'))
                        *to++ = *p;
        *to = 0;
        write_file("c.conf", text);
        free(text);
        assert_read(ARGS("--config", "c.conf"), ENV());
        ck_assert_int_eq(settings->prefetch, 10);
        ck_assert_ptr_nonnull(strstr(om_settings_source(settings, "PREFETCH"), "c.conf"));
}
END_TEST

static void assert_up_to_date(const char *path, void (*print)(FILE *), const char *flag) {
        char full[5000], *text = printed(print), *there;
        size_t len = strlen(text);
        FILE *f;

        snprintf(full, sizeof full, "%s/%s", old_folder, path);
        f = fopen(full, "r");
        ck_assert_msg(f != NULL, "%s is not there", path);
        there = calloc(1, len + 2);
        ck_assert_msg(fread(there, 1, len + 1, f) == len && memcmp(there, text, len) == 0,
                "%s is out of date: build/bin/omnidaemond %s >%s", path, flag, path);
        fclose(f);
        free(there);
        free(text);
}

START_TEST(test_the_files_made_from_the_table_are_up_to_date) {
        assert_up_to_date("conf/omnidaemond.conf", om_settings_print_conf, "--print-conf");
        assert_up_to_date("packaging/man/omnidaemond.8", om_settings_print_man, "--print-man");
}
END_TEST

static const char *const examples[] = { "dev.env", "staging.env", "production.env" };
START_TEST(test_the_examples_are_read_without_a_fault) {
        char path[5000];

        snprintf(path, sizeof path, "%s/conf/%s", old_folder, examples[_i]);
        assert_read(ARGS("--config", path), ENV());
}
END_TEST

/* -- reload -------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_reload_takes_what_it_can_and_names_what_needs_a_restart) {
        const char **took, **restart;
        struct om_settings *next = NULL;

        write_file("c.conf", "PREFETCH=2\nMAX_FRAME_BYTES=1M\nRESULT_TTL=3600s\n");
        assert_read(ARGS("--config", "c.conf", "--stop-grace", "1s"), ENV());
        write_file("c.conf", "PREFETCH=3\nMAX_FRAME_BYTES=2M\nSTATE_DIR=/x\nRESULT_TTL=1h\nSTOP_GRACE=9s\nLOG_LEVEL=debug\n");
        ck_assert_msg(om_settings_reload(settings, &next, &took, &restart, &error) == 0, "%s", error.message);
        ck_assert_str_eq(took[0], "PREFETCH");
        ck_assert_str_eq(took[1], "LOG_LEVEL");
        ck_assert_ptr_null(took[2]);
        ck_assert_str_eq(restart[0], "STORAGE_URL");
        ck_assert_str_eq(restart[1], "STATE_DIR");
        ck_assert_str_eq(restart[2], "MAX_FRAME_BYTES");
        ck_assert_ptr_null(restart[3]);
        om_settings_swap(settings, next);
        om_settings_free(next);
        ck_assert_int_eq(settings->prefetch, 3);
        ck_assert_int_eq(settings->max_frame_bytes, 1 << 20);
        ck_assert_str_eq(settings->state_dir, ".omnidaemon_data");
        ck_assert_str_eq(settings->storage_url, "json:.omnidaemon_data");
        ck_assert_int_eq(settings->stop_grace_ms, 1000);
        ck_assert_str_eq(settings->log_level, "debug");
        assert_source("MAX_FRAME_BYTES", "file c.conf line 2");
        free(took);
        free(restart);
}
END_TEST

START_TEST(test_a_wrong_file_leaves_the_old_settings_in_force) {
        const char **took = NULL, **restart = NULL;
        struct om_settings *next = NULL;

        write_file("c.conf", "PREFETCH=2\n");
        assert_read(ARGS("--config", "c.conf"), ENV());
        write_file("c.conf", "PREFETCH=3\nRESULT_TTTL=1h\n");
        ck_assert_int_lt(om_settings_reload(settings, &next, &took, &restart, &error), 0);
        ck_assert_ptr_nonnull(strstr(error.message, "c.conf line 2"));
        ck_assert_ptr_null(next);
        ck_assert_ptr_null(took);
        ck_assert_int_eq(settings->prefetch, 2);
}
END_TEST

int main(void) {
        Suite *s = suite_create("settings");
        TCase *t = tcase_create("settings");

        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_add_test(t, test_without_anything_the_defaults_are_in_force);
        tcase_add_test(t, test_a_flag_beats_the_environment_which_beats_the_file);
        tcase_add_test(t, test_flags_may_be_written_with_an_equals_sign);
        tcase_add_test(t, test_an_empty_variable_is_an_unset_one);
        tcase_add_test(t, test_the_file_is_that_of_config_then_of_the_environment_then_dot_env);
        tcase_add_test(t, test_a_folder_called_dot_env_is_not_read);
        tcase_add_test(t, test_the_socket_has_two_names_and_that_of_the_clients_wins);
        tcase_add_test(t, test_a_service_uses_the_folders_that_the_service_manager_made);
        tcase_add_test(t, test_the_file_may_have_comments_quotes_export_and_windows_line_ends);
        tcase_add_test(t, test_a_misspelt_name_in_the_file_is_refused_with_line_and_nearest);
        tcase_add_test(t, test_lines_that_cannot_be_read_are_refused_with_their_number);
        tcase_add_test(t, test_dot_env_is_shared_with_other_programs_but_slips_are_found);
        tcase_add_test(t, test_binary_and_endless_files_are_refused);
        tcase_add_test(t, test_any_bytes_in_a_file_are_read_or_refused);
        tcase_add_test(t, test_a_wrong_value_names_setting_place_and_what_it_may_be);
        tcase_add_test(t, test_an_unknown_flag_gets_the_nearest);
        tcase_add_test(t, test_help_and_the_like_read_nothing_else);
        tcase_add_test(t, test_a_slip_in_the_environment_is_noted_and_not_fatal);
        tcase_add_test(t, test_what_this_version_lacks_is_noted);
        tcase_add_test(t, test_levels_of_other_programs_are_understood);
        tcase_add_loop_test(t, test_python_names_become_urls, 0, (int) (sizeof python / sizeof *python));
        tcase_add_test(t, test_an_unknown_python_bus_or_storage_names_the_known_ones);
        tcase_add_test(t, test_a_url_beats_the_python_names_at_its_own_level_and_below);
        tcase_add_test(t, test_a_url_may_stand_in_a_file_of_its_own);
        tcase_add_test(t, test_check_shows_value_and_source_and_no_password);
        tcase_add_test(t, test_help_names_every_setting_and_fits_its_width);
        tcase_add_test(t, test_the_sample_file_is_read_back_as_the_defaults);
        tcase_add_test(t, test_the_files_made_from_the_table_are_up_to_date);
        tcase_add_loop_test(t, test_the_examples_are_read_without_a_fault, 0, 3);
        tcase_add_test(t, test_a_reload_takes_what_it_can_and_names_what_needs_a_restart);
        tcase_add_test(t, test_a_wrong_file_leaves_the_old_settings_in_force);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
