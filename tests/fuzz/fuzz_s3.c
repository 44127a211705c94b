/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What S3, STS or a metadata service, or whoever sits in their place, may answer; and the shared files.
 *
 * The first byte says what the rest is: a list of names, an error under a status that the second byte chooses, lifecycle rules, credentials
 * as JSON and as XML, a file of profiles, a record, a name of a place. What is accepted holds together: names lie below the prefix, merged
 * rules are found again and those of others are still there, credentials could stand in a header, records and names read back the same.
 */
#include <errno.h>
#include <string.h>

#include "../../backends/s3/store_rules.h"
#include "../../backends/s3/store_state.h"
#include "../../backends/s3/xml.h"
#include "fuzz.h"

static struct s3_settings settings;
static struct s3_client client = { .settings = &settings,
        .place = { .bucket = "b", .region = "eu-1", .prefix = "p/", .base = "http://h", .host = "h", .where = "bucket b at h" } };

static void names(struct om_span text) {
        struct s3_page p = { .client = &client };
        int r = s3_page_read(&p, text);

        MUST(r == 0 || r == -EINVAL || r == -ENOMEM);
        for (size_t i = 0; i < p.n; i++) {
                struct s3_index index;

                MUST(p.names[i].name && *p.names[i].name);
                s3_index_read(p.names[i].name, &index);
        }
        s3_page_clear(&p);
}

static void an_error(struct om_span text, uint8_t choice) {
        static const int statuses[] = { 200, 204, 301, 304, 307, 400, 401, 403, 404, 409, 411, 412, 416, 429, 500, 501, 503, 507 };
        struct s3_call c = { .client = &client, .method = choice & 0x80 ? "POST" : "GET", .name = choice & 0x40 ? "r/x" : NULL };
        struct om_error e = OM_ERROR_INIT;
        enum s3_next next;
        int r;

        c.req.http = statuses[(choice & 0x3f) % (sizeof statuses / sizeof statuses[0])];
        om_buf_put_span(&c.req.answer, text);
        r = s3_answer(&c, &e, &next);
        MUST(r <= 0 && next <= S3_EXPIRED && (r == 0 || e.message[0]));
        MUST(r < 0 || (c.req.http >= 200 && c.req.http < 300));
        for (const char *m = e.message; *m; m++)
                MUST((unsigned char) *m >= 0x20 && (unsigned char) *m < 0x7f);
        s3_http_clear(&c.req);
}

struct counts {
        size_t rules;
};
static void count(void *ctx, const char *path, struct om_span text) { ((struct counts *) ctx)->rules += strcmp(path, "Rule") == 0; }

static void rules(struct om_span text) {
        struct om_buf b = OM_BUF_INIT;
        struct counts before = { 0 }, after = { 0 };
        int all = s3_rules_check(text, "p/");

        MUST(all == 0 || all == 1 || all == -EINVAL);
        if (s3_rules_merge(&b, text, "p/") == 0 && om_buf_ok(&b)) {
                MUST(all >= 0);
                all = s3_rules_check(om_buf_span(&b), "p/");
                if (all >= 0) { /* else memory has failed */
                        MUST(all == 1);
                        if (text.len && s3_xml_read(text, count, &before, NULL, 0) == 0 &&
                                s3_xml_read(om_buf_span(&b), count, &after, NULL, 0) == 0)
                                MUST(after.rules >= 6 && after.rules <= before.rules + 6);
                }
        }
        om_buf_deinit(&b);
}

static void a_secret(struct om_span text, bool sts) {
        struct s3_secret s;
        int r = sts ? s3_secret_from_sts(text, &s) : s3_secret_from_json(text, &s);

        MUST(r == 0 || r == -EINVAL);
        if (r < 0)
                return;
        MUST(s.key_id && s.secret);
        for (const char *p = s.key_id; *p; p++)
                MUST(*p > ' ' && *p <= '~');
        s3_secret_free(&s);
}

static void profiles(struct om_span text) {
        struct s3_profile p = { .found = false };
        struct om_arena arena = { 0 };

        s3_profile_parse(&p, text, "default", false, &arena);
        s3_profile_parse(&p, text, "x", true, &arena);
        MUST(!p.key_id.p || !memchr(p.key_id.p, '\n', p.key_id.len));
        om_arena_deinit(&arena);
}

static void record(struct om_span text) {
        struct om_arena arena = { 0 };
        struct om_buf b = OM_BUF_INIT;
        struct om_store_entry one, two;

        if (s3_record_read(text, &arena, &one) == 0) {
                s3_record_put(&b, &one);
                if (om_buf_ok(&b)) {
                        int r = s3_record_read(om_buf_span(&b), &arena, &two);

                        MUST(r == 0 || r == -ENOMEM);
                        if (r == 0)
                                MUST(om_span_eq(one.key, two.key) && om_span_eq(one.value, two.value) && one.saved_ms == two.saved_ms &&
                                        one.expires_ms == two.expires_ms);
                }
        }
        om_buf_deinit(&b);
        om_arena_deinit(&arena);
}

/* What a name says is written as a name that says the same. */
static void key_and_name(const char *rest) {
        struct om_buf key = OM_BUF_INIT, name = OM_BUF_INIT, key2 = OM_BUF_INIT, name2 = OM_BUF_INIT;
        char again[S3_NAME_MAX];

        if (s3_entry_read(rest, &key, &name)) {
                s3_entry_name(again, OM_STORE_RESULTS, om_buf_span(&key), om_buf_span(&name));
                if (s3_entry_read(again + 2, &key2, &name2)) /* else it was too long, or there was no memory */
                        MUST(om_span_eq(om_buf_span(&key), om_buf_span(&key2)) && om_span_eq(om_buf_span(&name), om_buf_span(&name2)));
        }
        om_buf_deinit(&key);
        om_buf_deinit(&name);
        om_buf_deinit(&key2);
        om_buf_deinit(&name2);
}

static void place(struct om_span text) {
        char name[S3_NAME_MAX], again[S3_NAME_MAX];
        struct s3_index i;

        if (text.len >= sizeof name)
                return;
        memcpy(name, text.p, text.len);
        name[text.len] = 0;
        if (!s3_index_read(name, &i))
                return;
        snprintf(again, sizeof again, "%c/%016llx%016llx.%012llx.%08x%08x%08x.%08zx.%s", name[0], ~(unsigned long long) i.saved_ms,
                ~(unsigned long long) i.version, (unsigned long long) i.expires_ms, i.topic, i.agent, i.status, i.size, i.rest);
        MUST(strcmp(name, again) == 0);
        key_and_name(i.rest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct om_span text;

        if (size < 2)
                return 0;
        text = (struct om_span){ (const char *) data + 2, size - 2 };
        switch (data[0] % 8) {
        case 0:
                names(text);
                break;
        case 1:
                an_error(text, data[1]);
                break;
        case 2:
                rules(text);
                break;
        case 3:
                a_secret(text, false);
                break;
        case 4:
                a_secret(text, true);
                break;
        case 5:
                profiles(text);
                break;
        case 6:
                record(text);
                break;
        default:
                place(text);
        }
        return 0;
}
