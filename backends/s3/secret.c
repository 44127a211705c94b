/* SPDX-License-Identifier: Apache-2.0 */
/* Answers that bring credentials, of metadata services (JSON) and of STS (XML): see credentials.h. Pure. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../../proto/json_scan.h"
#include "credentials.h"
#include "xml.h"

void s3_secret_free(struct s3_secret *s) {
        char *const texts[] = { s->key_id, s->secret, s->token };

        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
                if (texts[i])
                        explicit_bzero(texts[i], strlen(texts[i]));
                free(texts[i]);
        }
        *s = (struct s3_secret){ .expires_ms = 0 };
}

int64_t s3_parse_time(struct om_span text) {
        struct tm tm = { 0 };
        char copy[40];
        const char *end;

        if (text.len >= sizeof copy)
                return -1;
        snprintf(copy, sizeof copy, "%.*s", OM_PRI(text));
        end = strptime(copy, "%Y-%m-%dT%H:%M:%S", &tm);
        if (!end || (*end != 'Z' && *end != '.'))
                return -1;
        return (int64_t) timegm(&tm) * 1000;
}

/* What is to go into a header: printable, or it would end there. */
static bool set(char **to, struct om_span text) {
        for (size_t i = 0; i < text.len; i++)
                if (text.p[i] <= ' ' || text.p[i] > '~')
                        return false;
        if (*to || !text.len)
                return false;
        *to = strndup(text.p, text.len);
        return *to != NULL;
}

static bool take(struct s3_secret *s, const char *name, struct om_span text) {
        if (strcmp(name, "AccessKeyId") == 0)
                return set(&s->key_id, text);
        if (strcmp(name, "SecretAccessKey") == 0)
                return set(&s->secret, text);
        if (strcmp(name, "Token") == 0)
                return set(&s->token, text);
        s->expires_ms = s3_parse_time(text);
        return s->expires_ms > 0;
}

static int finish(struct s3_secret *s, bool ok) {
        if (ok && s->key_id && s->secret)
                return 0;
        s3_secret_free(s);
        return -EINVAL;
}

int s3_secret_from_json(struct om_span json, struct s3_secret *ret) {
        static const char *const names[] = { "AccessKeyId", "SecretAccessKey", "Token", "Expiration" };
        struct om_arena arena = { 0 };
        struct om_json_value key, value;
        struct om_json j;
        bool ok;

        *ret = (struct s3_secret){ .expires_ms = 0 };
        if (om_json_check(json, 8, NULL) < 0)
                return -EINVAL;
        om_json_init_valid(&j, json);
        ok = om_json_enter_object(&j) == 0;
        while (ok && om_json_next_key(&j, &key) > 0 && om_json_value(&j, &value) == 0)
                for (size_t i = 0; i < sizeof names / sizeof names[0] && ok; i++)
                        if (om_json_string_is(key, names[i]) && value.type == OM_JSON_STRING)
                                ok = take(ret, names[i], om_json_string(value, &arena));
        om_arena_deinit(&arena);
        return finish(ret, ok);
}

struct sts {
        struct s3_secret *secret;
        bool ok;
};

static void sts_element(void *ctx, const char *path, struct om_span text) {
        static const char *const paths[][2] = { { "AssumeRoleWithWebIdentityResult/Credentials/AccessKeyId", "AccessKeyId" },
                { "AssumeRoleWithWebIdentityResult/Credentials/SecretAccessKey", "SecretAccessKey" },
                { "AssumeRoleWithWebIdentityResult/Credentials/SessionToken", "Token" },
                { "AssumeRoleWithWebIdentityResult/Credentials/Expiration", "Expiration" } };
        struct sts *s = ctx;

        for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
                if (strcmp(path, paths[i][0]) == 0)
                        s->ok &= take(s->secret, paths[i][1], text);
}

int s3_secret_from_sts(struct om_span xml, struct s3_secret *ret) {
        struct sts s = { ret, true };

        *ret = (struct s3_secret){ .expires_ms = 0 };
        if (s3_xml_read(xml, sts_element, &s, NULL, 0) < 0)
                s.ok = false;
        return finish(ret, s.ok);
}
