/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared files of Amazon's tools (https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html): sections in brackets, NAME = VALUE
 * beneath; lines that begin with white space continue a value of nested settings, which nobody asks for here; # and ; begin comments.
 *
 * What is true: the file of credentials wins over that of configuration; a file that is not there is an empty one. They are small, local
 * and read once, or anew when what they said has expired.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "credentials.h"

enum { FILE_MAX = 1 << 20 };

static struct om_span trim(struct om_span s) {
        while (s.len && (*s.p == ' ' || *s.p == '\t'))
                s.p++, s.len--;
        while (s.len && strchr(" \t\r", s.p[s.len - 1]))
                s.len--;
        return s;
}

static bool is_section(struct om_span line, const char *name, bool config) {
        const char *end = memchr(line.p, ']', line.len);
        struct om_span title;

        if (!end)
                return false;
        title = trim((struct om_span){ line.p + 1, (size_t) (end - line.p) - 1 });
        if (config && title.len > 7 && memcmp(title.p, "profile", 7) == 0 && (title.p[7] == ' ' || title.p[7] == '\t'))
                return om_span_is(trim((struct om_span){ title.p + 7, title.len - 7 }), name);
        return om_span_is(title, name) && (!config || strcmp(name, "default") == 0);
}

static void take(struct s3_profile *p, struct om_span name, struct om_span value, struct om_arena *arena) {
        const struct {
                const char *name;
                struct om_span *to;
        } known[] = { { "aws_access_key_id", &p->key_id }, { "aws_secret_access_key", &p->secret }, { "aws_session_token", &p->token },
                { "region", &p->region }, { "endpoint_url", &p->endpoint }, { "role_arn", &p->role_arn },
                { "role_session_name", &p->session_name }, { "web_identity_token_file", &p->token_file } };

        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
                if (om_span_is(name, known[i].name) && !known[i].to->p && value.len)
                        *known[i].to = om_arena_copy(arena, value);
}

void s3_profile_parse(struct s3_profile *p, struct om_span file, const char *name, bool config, struct om_arena *arena) {
        bool inside = false;

        for (size_t at = 0; at < file.len;) {
                const char *start = file.p + at, *stop = memchr(start, '\n', file.len - at);
                struct om_span line = { start, stop ? (size_t) (stop - start) : file.len - at };
                const char *equals;

                at += line.len + 1;
                if (!line.len || strchr("#; \t", line.p[0]))
                        continue;
                if (line.p[0] == '[') {
                        inside = is_section(line, name, config);
                        p->found |= inside;
                        continue;
                }
                equals = memchr(line.p, '=', line.len);
                if (inside && equals)
                        take(p, trim((struct om_span){ line.p, (size_t) (equals - line.p) }),
                                trim((struct om_span){ equals + 1, line.len - (size_t) (equals - line.p) - 1 }), arena);
        }
}

int s3_read_file(const char *path, struct om_buf *b, struct om_error *e) {
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), r = 0;
        ssize_t n = 0;

        if (fd < 0)
                return om_error_set_errno(e, errno, "S3: cannot read %s", path);
        while (r == 0 && b->len <= FILE_MAX) {
                char *to = om_buf_reserve(b, 4096);

                if (!to) {
                        r = om_error_set_errno(e, ENOMEM, "S3: %s", path);
                        break;
                }
                n = read(fd, to, 4096);
                if (n <= 0)
                        break;
                b->len += (size_t) n;
        }
        if (r == 0 && n < 0)
                r = om_error_set_errno(e, errno, "S3: cannot read %s", path);
        else if (r == 0 && b->len > FILE_MAX)
                r = om_error_set(e, OM_INVALID, "S3: %s is larger than %d bytes", path, FILE_MAX);
        close(fd);
        return r;
}

static int load_one(struct s3_profile *p, const char *variable, const char *in_home, const char *name, bool config, struct om_arena *arena,
        struct om_error *e) {
        const char *path = getenv(variable), *home = getenv("HOME");
        struct om_buf file = OM_BUF_INIT;
        char made[4096];
        int r;

        if (!path || !*path) {
                if (!home || !*home)
                        return 0;
                snprintf(made, sizeof made, "%s/.aws/%s", home, in_home);
                path = made;
        }
        r = s3_read_file(path, &file, e);
        if (r == 0)
                s3_profile_parse(p, om_buf_span(&file), name, config, arena);
        else if (r == -ENOENT || r == -ENOTDIR || (r == -EACCES && path == made)) /* nobody has named it */
                r = 0;
        else
                om_error_prefix(e, "%s", variable);
        if (file.data)
                explicit_bzero(file.data, file.cap);
        om_buf_deinit(&file);
        return r;
}

int s3_profile_load(struct s3_profile *p, const char *named, struct om_arena *arena, struct om_error *e) {
        const char *from = named ? "profile of the URL" : "AWS_PROFILE", *name = named;
        int r;

        *p = (struct s3_profile){ .found = false };
        if (!name)
                name = getenv("AWS_PROFILE");
        if (!name || !*name)
                from = NULL, name = "default";
        r = load_one(p, "AWS_SHARED_CREDENTIALS_FILE", "credentials", name, false, arena, e);
        if (r == 0)
                r = load_one(p, "AWS_CONFIG_FILE", "config", name, true, arena, e);
        if (r == 0 && from && !p->found)
                r = om_error_set(e, OM_INVALID,
                        "S3: %s: there is no profile \"%.60s\" in ~/.aws/credentials and ~/.aws/config (AWS_SHARED_CREDENTIALS_FILE, "
                        "AWS_CONFIG_FILE)",
                        from, name);
        return r;
}
