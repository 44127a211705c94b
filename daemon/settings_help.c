/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --help and the man page: what the daemon is, how it is used, and every setting, from the same table and the same texts.
 */
#include "settings_print.h"

static const struct {
        const char *command, *what;
} examples[] = {
        { "omnidaemond", "embedded bus and storage, files in .omnidaemon_data; stop with Ctrl-C" },
        { "omnidaemond --event-bus-url local:/srv/bus --storage-url json:/srv/data", "the same, elsewhere" },
        { "omnidaemond --event-bus-url 'local:?durability=memory'", "nothing survives the end, and nothing waits for a disk" },
        { "omnidaemond --config staging.env --log-level debug", "settings from a file, one of them changed" },
        { "omnidaemond --config staging.env --check", "what would be in force, and where it comes from" },
        { "systemctl enable --now omnidaemond.socket", "as a service, started by its first client" },
};
static const struct {
        const char *flag, *what;
} switches[] = {
        { "--config FILE",
                "The file of settings, lines of NAME=value. Default: $OMNIDAEMON_CONFIG; else as a service "
                "/etc/omnidaemon/omnidaemond.conf; "
                "else .env in the working folder." },
        { "--check", "Prints the settings in force, each with its source, and exits. Connects nothing." },
        { "--print-backends",
                "Prints which buses and storages there are, what each can do and the parameters of its URL, as JSON, and exits." },
        { "--print-conf", "Prints a file with every setting, commented, and exits." },
        { "--print-man", "Prints the manual page and exits." },
        { "--help, -h", "This text." },
        { "--version, -V", "The version." },
};
static const struct {
        const char *status, *what;
} statuses[] = {
        { "0", "a clean stop; --check found no fault" },
        { "1", "something failed: the socket or the state folder is in use, a disk is full" },
        { "2", "a wrong flag or setting" },
};
static const struct {
        const char *signal, *what;
} signals[] = {
        { "SIGTERM, SIGINT", "graceful stop: tells the clients, waits STOP_GRACE for what they hold; a second one stops at once" },
        { "SIGHUP", "reads the settings again; a wrong file leaves the old ones in force" },
};

#define N(array) (sizeof(array) / sizeof *(array))

static void put_doc(const struct om_setting *row, struct om_buf *b) {
        om_buf_clear(b);
        om_buf_puts(b, row->doc);
        if (row->option.type != OM_OPTION_STRING) {
                om_buf_lit(b, " (");
                om_settings_range(row, b);
                om_buf_lit(b, ")");
        }
        if (row->default_doc || row->option.default_text)
                om_buf_printf(b, " Default: %s.", row->default_doc ? row->default_doc : row->option.default_text);
        om_buf_putc(b, 0);
}

void om_settings_print_help(FILE *out, unsigned width) {
        struct om_buf doc = OM_BUF_INIT;
        int group = -1;

        fputs("omnidaemond: an event-driven runtime for agents. Give it the URL of a bus and of a storage, or nothing at "
              "all.\n\nExamples\n",
                out);
        for (size_t i = 0; i < N(examples); i++)
                fprintf(out, "  %s\n      %s\n", examples[i].command, examples[i].what);
        fputs("  omnictl health\n      look at it, from another terminal\n\nFlags\n", out);
        for (size_t i = 0; i < N(switches); i++) {
                fprintf(out, "  %s\n", switches[i].flag);
                om_settings_put_wrapped(out, "      ", "      ", width, switches[i].what);
        }
        fputs("\nSettings\n", out);
        om_settings_put_wrapped(out, "  ", "  ", width,
                "Each is a flag (--event-bus-url), an environment variable (EVENT_BUS_URL) and a line of the file (EVENT_BUS_URL=local:), "
                "in this order of "
                "precedence. Durations are 500ms, 10s, 5m, 2h, 1d; sizes 64K, 16M, 1G. What is marked * takes effect on SIGHUP.");
        for (int i = 0; i < OM_SETTINGS; i++) {
                const struct om_setting *row = &om_settings_table[i];
                char flag[48];

                if ((int) row->group != group) {
                        group = (int) row->group;
                        fprintf(out, "\n%s\n", om_setting_group_titles[group]);
                }
                put_doc(row, &doc);
                fprintf(out, "  %s %s%s\n", om_settings_flag((enum om_setting_id) i, flag), row->value_name, row->reloadable ? " *" : "");
                om_settings_put_wrapped(out, "      ", "      ", width, om_buf_ok(&doc) ? doc.data : row->doc);
        }
        fputs("\nSignals\n", out);
        for (size_t i = 0; i < N(signals); i++)
                fprintf(out, "  %-16s %s\n", signals[i].signal, signals[i].what);
        fputs("\nExit status\n", out);
        for (size_t i = 0; i < N(statuses); i++)
                fprintf(out, "  %s  %s\n", statuses[i].status, statuses[i].what);
        om_buf_deinit(&doc);
}

/* -- the man page -------------------------------------------------------------------------------------------------- */

/* Text for man(7): a hyphen that is one, no line that begins with a dot. */
static void put_roff(FILE *out, const char *text) {
        bool start = true;

        for (; *text; text++) {
                if (start && (*text == '.' || *text == '\''))
                        fputs("\\&", out);
                if (*text == '-')
                        fputs("\\-", out);
                else if (*text == '\\')
                        fputs("\\e", out);
                else
                        fputc(*text, out);
                start = *text == '\n';
        }
}

static void put_item(FILE *out, const char *head, const char *tail, const char *text) {
        fputs(".TP\n\\fB", out);
        put_roff(out, head);
        fputs("\\fR", out);
        if (tail) {
                fputs(" \\fI", out);
                put_roff(out, tail);
                fputs("\\fR", out);
        }
        fputc('\n', out);
        put_roff(out, text);
        fputc('\n', out);
}

static void put_man_settings(FILE *out) {
        struct om_buf doc = OM_BUF_INIT;
        int group = -1;

        for (int i = 0; i < OM_SETTINGS; i++) {
                const struct om_setting *row = &om_settings_table[i];
                char head[128], flag[48];

                if ((int) row->group != group) {
                        group = (int) row->group;
                        fprintf(out, ".SS %s\n", om_setting_group_titles[group]);
                }
                put_doc(row, &doc);
                snprintf(head, sizeof head, "%s, %s", row->option.name, om_settings_flag((enum om_setting_id) i, flag));
                put_item(out, head, row->value_name, om_buf_ok(&doc) ? doc.data : row->doc);
                if (row->reloadable)
                        fputs("Takes effect on SIGHUP.\n", out);
        }
        om_buf_deinit(&doc);
}

void om_settings_print_man(FILE *out) {
        fputs(".\\\" SPDX-License-Identifier: Apache-2.0\n.\\\" Made by `omnidaemond --print-man`.\n"
              ".TH OMNIDAEMOND 8 \"\" \"OmniDaemon " OM_VERSION "\" \"OmniDaemon\"\n"
              ".SH NAME\nomnidaemond \\- event\\-driven runtime for agents\n"
              ".SH SYNOPSIS\n.B omnidaemond\n[\\fB\\-\\-config\\fR \\fIFILE\\fR] [\\fB\\-\\-check\\fR] [\\fB\\-\\-\\fISETTING\\fR "
              "\\fIVALUE\\fR]...\n"
              ".SH DESCRIPTION\n"
              "Agents connect to a Unix socket, register on topics and are handed the tasks that are published there. "
              "The daemon owns a bus and a storage, both chosen by URL: it keeps leases, retries what fails, sets aside what never works, "
              "and stores results. "
              "Without any setting it uses the embedded bus and the JSON storage, which need no server.\n"
              ".PP\nIt logs to the journal when standard error is connected to it, else to standard error.\n"
              ".SH EXAMPLES\n",
                out);
        for (size_t i = 0; i < N(examples); i++)
                put_item(out, examples[i].command, NULL, examples[i].what);
        fputs(".SH OPTIONS\n", out);
        for (size_t i = 0; i < N(switches); i++)
                put_item(out, switches[i].flag, NULL, switches[i].what);
        fputs(".SH SETTINGS\n"
              "A setting EVENT_BUS_URL is the flag \\-\\-event\\-bus\\-url, the environment variable EVENT_BUS_URL, and the line "
              "EVENT_BUS_URL=\\fIvalue\\fR of the "
              "file, in this order of precedence.\n"
              "Durations are 500ms, 10s, 5m, 2h, 1d; sizes 64K, 16M, 1G.\n",
                out);
        put_man_settings(out);
        fputs(".SH SIGNALS\n", out);
        for (size_t i = 0; i < N(signals); i++)
                put_item(out, signals[i].signal, NULL, signals[i].what);
        fputs(".SH EXIT STATUS\n", out);
        for (size_t i = 0; i < N(statuses); i++)
                put_item(out, statuses[i].status, NULL, statuses[i].what);
        fputs(".SH FILES\n", out);
        put_item(out, "/etc/omnidaemon/omnidaemond.conf", NULL,
                "The settings of the service. Comments start with #; a value may stand in single or double quotes; nothing is expanded.");
        put_item(out, "/run/omnidaemon/omnidaemon.sock", NULL, "The socket of the service.");
        put_item(out, "/var/lib/omnidaemon", NULL, "The files of the embedded bus and storage of the service.");
        fputs(".SH SEE ALSO\n.BR omnictl (1),\n.BR systemd.exec (5)\n", out);
}
