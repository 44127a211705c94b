/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The settings as tables: --check prints what is in force and where each value comes from; --print-conf prints conf/omnidaemond.conf, with
 * every setting as a comment. And the check of the two URLs against the registry, which --check and the start share.
 *
 * Every value passes om_url_redact(): no password is printed. Called by main.c before there is a loop.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "../backends/registry.h"
#include "settings_print.h"
#include "settings_table.h"

/* -- numbers in words ---------------------------------------------------------------------------------------------- */

const char *om_settings_number(const struct om_setting *row, int64_t value, char out[32]) {
        static const struct {
                int64_t factor;
                const char *name;
        } times[] = { { 86400000, "d" }, { 3600000, "h" }, { 60000, "m" }, { 1000, "s" } },
          sizes[] = { { INT64_C(1) << 40, "T" }, { 1 << 30, "G" }, { 1 << 20, "M" }, { 1 << 10, "K" } };

        if (row->octal)
                snprintf(out, 32, "%04" PRIo64, (uint64_t) value);
        else
                snprintf(out, 32, "%" PRId64 "%s", value, row->option.type == OM_OPTION_MS && value ? "ms" : "");
        for (size_t i = 0; i < 4 && value != 0 && (row->option.type == OM_OPTION_MS || row->option.type == OM_OPTION_BYTES); i++) {
                int64_t factor = row->option.type == OM_OPTION_MS ? times[i].factor : sizes[i].factor;

                if (value % factor == 0) {
                        snprintf(
                                out, 32, "%" PRId64 "%s", value / factor, row->option.type == OM_OPTION_MS ? times[i].name : sizes[i].name);
                        break;
                }
        }
        return out;
}

void om_settings_range(const struct om_setting *row, struct om_buf *out) {
        char low[32], high[32];

        switch (row->option.type) {
        case OM_OPTION_ENUM:
                for (const char *const *c = row->option.choices; *c; c++)
                        om_buf_printf(out, "%s%s", c == row->option.choices ? "" : c[1] ? ", " : " or ", *c);
                break;
        case OM_OPTION_INT:
        case OM_OPTION_MS:
        case OM_OPTION_BYTES:
                om_buf_printf(
                        out, "%s to %s", om_settings_number(row, row->option.min, low), om_settings_number(row, row->option.max, high));
                break;
        default:
                break;
        }
}

/* -- --check ----------------------------------------------------------------------------------------------------------------------- */

/* Columns that a terminal gives to a text in UTF-8: its characters, as far as we care. */
static int columns(const struct om_buf *b) {
        int n = 0;

        for (size_t i = 0; i < b->len; i++)
                n += (b->data[i] & 0xc0) != 0x80;
        return n;
}

static void redacted_value(const struct om_setting_value *v, struct om_buf *out) {
        om_buf_clear(out);
        if (v->text)
                om_url_redact(out, v->text, strlen(v->text));
        else
                om_buf_lit(out, "-");
}

static bool shown(const struct om_settings_more *m, int i) {
        return om_settings_table[i].option.offset != OM_NO_FIELD || m->values[i].text;
}

void om_settings_print_check(const struct om_settings *s, FILE *out) {
        const struct om_settings_more *m = om_more(s);
        struct om_buf value = OM_BUF_INIT;
        int name_width = 0, value_width = 0;

        for (int i = 0; i < OM_SETTINGS; i++) {
                int len = (int) strlen(om_settings_table[i].option.name);

                if (!shown(m, i))
                        continue;
                redacted_value(&m->values[i], &value);
                name_width = len > name_width ? len : name_width;
                value_width = columns(&value) > value_width ? columns(&value) : value_width;
        }
        for (int i = 0; i < OM_SETTINGS; i++) {
                const struct om_setting_value *v = &m->values[i];
                bool unused = om_settings_table[i].option.offset == OM_NO_FIELD && !v->used;

                if (!shown(m, i))
                        continue;
                redacted_value(v, &value);
                fprintf(out, "%-*s  %.*s%*s  %s%s\n", name_width, om_settings_table[i].option.name, (int) value.len, value.data,
                        value_width - columns(&value), "", v->source ? v->source : "default", unused ? " (not used)" : "");
        }
        om_buf_deinit(&value);
}

/* -- --print-conf ---------------------------------------------------------------------------------------------------------------------- */

void om_settings_put_wrapped(FILE *out, const char *first, const char *rest, unsigned width, const char *text) {
        size_t column = strlen(first), empty = column;

        fputs(first, out);
        while (*text) {
                size_t len = strcspn(text, " ");

                if (column > empty && column + 1 + len > width) {
                        fprintf(out, "\n%s", rest);
                        column = empty = strlen(rest);
                }
                if (column > empty) {
                        fputc(' ', out);
                        column++;
                }
                fwrite(text, 1, len, out);
                column += len;
                text += len;
                text += strspn(text, " ");
        }
        fputc('\n', out);
}

void om_settings_print_conf(FILE *out) {
        struct om_buf range = OM_BUF_INIT;
        int group = -1;

        fputs("# SPDX-License-Identifier: Apache-2.0\n"
              "# /etc/omnidaemon/omnidaemond.conf: the settings of omnidaemond(8) when it runs as a service.\n"
              "#\n"
              "# Each line is NAME=value; what is commented out is the default. A flag (--event-bus-url) and the environment beat this "
              "file.\n"
              "# `omnidaemond --check` prints what is in force and where it comes from. `systemctl reload omnidaemond` reads the file "
              "again:\n"
              "# what is marked [reload] takes effect at once, the rest after a restart. A misspelt name is an error.\n"
              "#\n"
              "# Made from the daemon's table of settings by `omnidaemond --print-conf`.\n",
                out);
        for (int i = 0; i < OM_SETTINGS; i++) {
                const struct om_setting *row = &om_settings_table[i];
                const char *value = row->option.default_text;
                char line[400];

                if ((int) row->group != group) {
                        group = (int) row->group;
                        fprintf(out, "\n# -- %s --\n", om_setting_group_titles[group]);
                }
                om_buf_clear(&range);
                om_settings_range(row, &range);
                snprintf(line, sizeof line, "%s%s%.*s%s%s%s%s%s", row->doc, range.len ? " (" : "", (int) range.len,
                        range.data ? range.data : "", range.len ? ")" : "", row->default_doc ? " Default: " : "",
                        row->default_doc ? row->default_doc : "", row->default_doc ? "." : "", row->reloadable ? " [reload]" : "");
                fputc('\n', out);
                om_settings_put_wrapped(out, "# ", "# ", 120, line);
                fprintf(out, "#%s=%s\n", row->option.name, value ? value : "");
        }
        om_buf_deinit(&range);
}

/* -- the URLs ------------------------------------------------------------------------------------------------------ */

/* Reads the URL's parameters by the backend's table, into memory that is thrown away. */
static int check_parameters(const struct om_option *options, struct om_url *url, struct om_error *e) {
        size_t size = sizeof(int64_t);
        void *scratch;
        int r;

        for (const struct om_option *o = options; o && o->name; o++)
                if (o->offset + sizeof(int64_t) > size)
                        size = o->offset + sizeof(int64_t);
        scratch = calloc(1, size);
        if (!scratch)
                return om_error_set_errno(e, ENOMEM, "settings");
        r = om_options_read(options, url, scratch, e);
        free(scratch);
        return r;
}

int om_settings_check_urls(const struct om_settings *s, struct om_error *e) {
        const struct om_bus_ops *bus = NULL;
        const struct om_store_ops *store = NULL;
        struct om_url *bus_url = NULL, *store_url = NULL;
        const char *setting = "EVENT_BUS_URL";
        int r;

        r = om_url_parse(s->event_bus_url, &bus_url, e);
        if (r == 0)
                r = om_registry_bus(bus_url, setting, &bus, e);
        if (r == 0)
                r = check_parameters(bus->options, bus_url, e);
        if (r < 0)
                goto out;
        for (size_t i = 0; r == 0 && i < 3; i++) {
                const char *urls[] = { s->storage_url, s->result_storage_url, s->storage_backup_url };
                static const char *const names[] = { "STORAGE_URL", "RESULT_STORAGE_URL", "STORAGE_BACKUP_URL" };

                if (!urls[i])
                        continue;
                setting = names[i];
                om_url_free(store_url);
                store_url = NULL;
                r = om_url_parse(urls[i], &store_url, e);
                if (r == 0)
                        r = om_registry_store(store_url, setting, &store, e);
                if (r == 0)
                        r = check_parameters(store->options, store_url, e);
        }
out:
        if (r < 0 && e && !strstr(e->message, setting))
                om_error_prefix(e, "%s", setting);
        if (r < 0)
                om_error_prefix(e, "%s", om_settings_source(s, setting));
        om_url_free(bus_url);
        om_url_free(store_url);
        return r;
}
