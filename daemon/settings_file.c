/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file: lines of NAME=value, as a `.env` and the EnvironmentFile= of systemd.exec(5) have them.
 *
 *   # comment                      a line that starts with # or ; is none of ours
 *   export NAME=value              `export ` may stand before the name; white space around = is skipped
 *   NAME=value # comment           in a value without quotes, white space and # start a comment
 *   NAME='as it is'                single quotes: everything up to the next one
 *   NAME="a \"b\""                 double quotes: \" \\ \$ \` stand for the second character, any other backslash for itself
 *
 * A quoted value may go on over lines. Nothing is expanded. The last of several lines for one name counts.
 *
 * In a file that is shared with other programs (`.env`) what cannot be read is theirs, unless it is a line for one of our names.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "settings_table.h"

enum { FILE_MAX = 1 << 20 };

struct reader {
        struct om_settings_more *m;
        const char *p, *end;
        unsigned line;
};

bool om_settings_is_file(const char *path) {
        struct stat st;

        return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

int om_settings_slurp(const char *path, struct om_buf *out, struct om_error *e) {
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY), r = 0;
        ssize_t n;

        if (fd < 0)
                return om_error_set_errno(e, errno, "%s", path);
        for (;;) {
                char *room = om_buf_reserve(out, 4096);

                if (!room) {
                        r = om_error_set_errno(e, ENOMEM, "%s", path);
                        break;
                }
                n = read(fd, room, 4096);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        r = om_error_set_errno(e, errno, "%s", path);
                if (n <= 0)
                        break;
                out->len += (size_t) n;
                if (out->len > FILE_MAX) {
                        r = om_error_set(e, OM_INVALID, "%s: longer than %d bytes; that is no file of settings", path, FILE_MAX);
                        break;
                }
        }
        close(fd);
        if (r == 0 && out->len > 0 && memchr(out->data, 0, out->len))
                r = om_error_set(e, OM_INVALID, "%s: has a zero byte; that is no text", path);
        return r;
}

/* -- one line ------------------------------------------------------------------------------------------------------ */

static bool blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

static void skip_blanks(struct reader *in) {
        while (in->p < in->end && blank(*in->p))
                in->p++;
}

static void skip_line(struct reader *in) {
        while (in->p < in->end && *in->p != '\n')
                in->p++;
}

static bool name_char(char c) { return c == '_' || ('0' <= c && c <= '9') || ('A' <= c && c <= 'Z') || ('a' <= c && c <= 'z'); }

/* The name before =, or an absent span when the line has none; in->p is then anywhere in the line. */
static struct om_span read_name(struct reader *in) {
        struct om_span name;

        if (in->end - in->p > 7 && memcmp(in->p, "export", 6) == 0 && blank(in->p[6])) {
                in->p += 6;
                skip_blanks(in);
        }
        name.p = in->p;
        while (in->p < in->end && name_char(*in->p))
                in->p++;
        name.len = (size_t) (in->p - name.p);
        skip_blanks(in);
        if (name.len == 0 || in->p == in->end || *in->p != '=')
                return OM_SPAN_NONE;
        in->p++;
        skip_blanks(in);
        return name;
}

static const char *read_plain(struct reader *in, struct om_buf *value) {
        const char *from = in->p, *to = from;

        for (; in->p < in->end && *in->p != '\n'; in->p++) {
                if (*in->p == '#' && (in->p == from || blank(in->p[-1])))
                        break;
                if (!blank(*in->p))
                        to = in->p + 1;
        }
        om_buf_put(value, from, (size_t) (to - from));
        skip_line(in);
        return NULL;
}

static const char *read_quoted(struct reader *in, struct om_buf *value) {
        char quote = *in->p++;

        for (;; in->p++) {
                if (in->p == in->end)
                        return "the quote is not closed";
                if (*in->p == quote)
                        break;
                if (quote == '"' && *in->p == '\\' && in->p + 1 < in->end && strchr("\"\\$`", in->p[1]))
                        in->p++;
                else if (*in->p == '\n')
                        in->line++;
                om_buf_putc(value, *in->p);
        }
        in->p++;
        skip_blanks(in);
        if (in->p < in->end && *in->p != '\n' && *in->p != '#')
                return "there is more after the closing quote";
        skip_line(in);
        return NULL;
}

/* -- the file ------------------------------------------------------------------------------------------------------ */

static int keep_line(struct reader *in, const char *name, const char *value, unsigned line, struct om_error *e) {
        struct om_settings_more *m = in->m;
        bool alias;
        int id = om_settings_find(name, &alias);
        char where[300];

        if (id < 0) {
                snprintf(where, sizeof where, "%s line %u", m->file, line);
                return om_settings_unknown(m, name, m->strict_file, false, where, e);
        }
        if (!*value)
                return 0;
        return om_settings_keep(
                m, (enum om_setting_id) id, OM_FROM_FILE, value, om_settings_format(m, "file %s line %u", m->file, line), e);
}

static int read_line(struct reader *in, struct om_buf *name, struct om_buf *value, struct om_error *e) {
        unsigned line = in->line;
        const char *wrong, *start;
        struct om_span word;
        bool alias;

        om_buf_clear(name);
        om_buf_clear(value);
        skip_blanks(in);
        if (in->p == in->end || *in->p == '\n' || *in->p == '#' || *in->p == ';') {
                skip_line(in);
                return 0;
        }
        word = read_name(in);
        if (!word.p) {
                skip_line(in);
                if (!in->m->strict_file)
                        return 0;
                return om_error_set(e, OM_INVALID, "%s line %u: not NAME=value, not a comment", in->m->file, line);
        }
        start = in->p;
        wrong = in->p < in->end && (*in->p == '"' || *in->p == '\'') ? read_quoted(in, value) : read_plain(in, value);
        om_buf_put_span(name, word);
        om_buf_putc(name, 0);
        om_buf_putc(value, 0);
        if (!om_buf_ok(name) || !om_buf_ok(value))
                return om_error_set_errno(e, ENOMEM, "%s", in->m->file);
        if (wrong) {
                in->p = start; /* what follows an open quote are lines of their own */
                in->line = line;
                skip_line(in);
                if (!in->m->strict_file && om_settings_find(name->data, &alias) < 0)
                        return 0;
                return om_error_set(e, OM_INVALID, "%s line %u: %.80s: %s", in->m->file, line, name->data, wrong);
        }
        return keep_line(in, name->data, value->data, line, e);
}

int om_settings_read_file(struct om_settings_more *m, struct om_error *e) {
        struct om_buf text = OM_BUF_INIT, name = OM_BUF_INIT, value = OM_BUF_INIT;
        struct reader in = { .m = m, .line = 1 };
        int r;

        if (!m->file)
                return 0;
        r = om_settings_slurp(m->file, &text, e);
        if (r < 0)
                goto out;
        in.p = om_buf_span(&text).p;
        in.end = in.p + text.len;
        if (text.len >= 3 && memcmp(in.p, "\xef\xbb\xbf", 3) == 0)
                in.p += 3;
        while (r == 0 && in.p < in.end) {
                r = read_line(&in, &name, &value, e);
                if (in.p < in.end) { /* at the newline */
                        in.p++;
                        in.line++;
                }
        }
out:
        om_buf_deinit(&text);
        om_buf_deinit(&name);
        om_buf_deinit(&value);
        return r;
}
