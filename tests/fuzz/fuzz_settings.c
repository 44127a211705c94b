/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings from flags, environment and file, however they are written: what is read is whole and within range, where each value comes from
 * is known, what is refused is told; printing and reloading follow. Nothing is opened but the files that the input makes.
 *
 * The input is pieces (pieces.h): `-` a flag, `e` a variable of the environment, `f` the file of --config, `.` the file .env of the folder,
 * `u` a file "url" for EVENT_BUS_URL_FILE and the like, `n` the file as it is at a reload, `z` has an allocation of the reading fail.
 * Without pieces all of it is the file.
 */

#include "../../daemon/settings.h"
#include "folder.h"
#include "memory.h"
#include "pieces.h"

enum { MAX = 40 };

static FILE *nowhere;
static int home;

/* In the folder from here on: .env is looked for in the working one. */
static void arrive(void) {
        if (!nowhere) {
                nowhere = fopen("/dev/null", "we");
                home = open(".", O_PATH | O_CLOEXEC);
                MUST(nowhere && home >= 0);
        }
        MUST(chdir(fuzz_folder_make()) == 0);
        fuzz_folder_empty();
}

static void in_range(const struct om_settings *s) {
        MUST(s->event_bus_url && s->storage_url && s->socket_path && s->state_dir && s->log_target && s->log_level);
        MUST(s->socket_mode >= 0 && s->socket_mode <= 0777);
        MUST(s->max_connections >= 1 && s->max_frame_bytes >= 65536 && s->prefetch >= 1 && s->prefetch <= 1000);
        MUST(s->dlq_retry_limit >= 0 && s->retry_backoff_ms >= 0 && s->result_ttl_ms >= 1000 && s->call_timeout_ms >= 100);
        MUST(om_settings_source(s, "EVENT_BUS_URL") && om_settings_source(s, "PREFETCH") && om_settings_source(s, "LOG_LEVEL"));
        for (const char *note = NULL; (note = om_settings_next_note(s, note));)
                MUST(*note && !strchr(note, '\n'));
}

static void reload(struct om_settings *s) {
        const char **changed, **restart;
        struct om_error e = OM_ERROR_INIT;
        struct om_settings *next;
        int64_t connections = s->max_connections, frame = s->max_frame_bytes;

        if (om_settings_reload(s, &next, &changed, &restart, &e) < 0) {
                MUST(e.message[0] && s->max_connections == connections);
                return;
        }
        in_range(next);
        MUST(next->max_frame_bytes == frame); /* cannot be reloaded */
        om_settings_swap(s, next);
        om_settings_free(next);
        free(changed);
        free(restart);
}

static void read_all(int argc, char **argv, char **env, struct om_span later, unsigned fail_at) {
        struct om_settings *s = NULL;
        struct om_error e = OM_ERROR_INIT;
        struct om_flags flags = { 0 };
        int r;

        fuzz_fail_allocation(fail_at);
        r = om_settings_read(argc, argv, env, &flags, &s, &e);
        fuzz_fail_allocation(0);

        if (r < 0) {
                MUST(!s && e.message[0] && !strchr(e.message, '\n'));
                return;
        }
        if (!s) {
                MUST(flags.help || flags.version || flags.print_conf || flags.print_man);
                return;
        }
        in_range(s);
        om_settings_print_check(s, nowhere);
        if (om_settings_check_urls(s, &e) < 0)
                MUST(e.message[0]);
        if (later.p)
                fuzz_write_file("conf", later.p, later.len);
        reload(s);
        in_range(s);
        om_settings_free(s);
}

static char *text_of(struct om_arena *a, struct om_span s) {
        struct om_span copy = om_arena_copy(a, s); /* up to a zero byte, as the kernel gives them */
        MUST(copy.p);
        return (char *) copy.p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static char name[] = "omnidaemond", config[] = "--config=conf";
        char *argv[MAX + 3] = { name, config }, *env[MAX + 1] = { NULL };
        int argc = 2, n_env = 0;
        struct pieces pieces = pieces_of(data, size);
        struct om_arena arena = { 0 };
        struct om_span text, later = OM_SPAN_NONE;
        bool file = false;
        uint8_t letter;
        unsigned fail_at = 0;

        arrive();
        if (pieces.p == pieces.end) {
                fuzz_write_file("conf", data, size);
                file = true;
        }
        while ((letter = pieces_next(&pieces, &text))) {
                if (letter == '-' && argc < MAX)
                        argv[argc++] = text_of(&arena, text);
                else if (letter == 'e' && n_env < MAX)
                        env[n_env++] = text_of(&arena, text);
                else if (letter == 'f')
                        fuzz_write_file("conf", text.p, text.len), file = true;
                else if (letter == '.')
                        fuzz_write_file(".env", text.p, text.len);
                else if (letter == 'u')
                        fuzz_write_file("url", text.p, text.len);
                else if (letter == 'n')
                        later = text;
                else if (letter == 'z' && text.len)
                        fail_at = (unsigned) (text.p[0] & 63) + 1;
        }
        argv[argc] = env[n_env] = NULL;
        if (!file) { /* then there is no --config */
                memmove(argv + 1, argv + 2, (size_t) (argc - 1) * sizeof *argv);
                argc--;
        }
        read_all(argc, argv, env, later, fail_at);
        om_arena_deinit(&arena);
        MUST(fchdir(home) == 0);
        return 0;
}
