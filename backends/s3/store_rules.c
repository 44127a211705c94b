/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lifecycle rules, by which the bucket itself deletes what has expired.
 *
 * A rule counts days since an object was written, for all objects of a kind. What we write may expire at any time, so there are classes: an
 * object is tagged with the smallest number of days within which it expires, and each class has a rule that deletes a day after that. They
 * are tags and not prefixes because a reader who knows a task's id does not know when its result expires, and because put_if_absent is safe
 * only where a key has one name.
 *
 *   looking ──▶ all there: in force
 *       └─────▶ some missing ──▶ manage_lifecycle: put ──▶ looking once more
 *                           ──▶ else, or not allowed: none; the sweep does it
 *
 * Always true: no rule deletes before the expiry; rules of others are written back byte for byte; tags are written only while all rules are
 * in force. Loop thread.
 */
#include "store_rules.h"
#include "store_state.h"
#include "xml.h"

enum { CLASSES = 6, RULES_MAX = 1000 };
static const int days[CLASSES] = { 1, 3, 10, 31, 100, 366 };
static const char *const tags[CLASSES] = { "omni-expires=1d", "omni-expires=3d", "omni-expires=10d", "omni-expires=31d",
        "omni-expires=100d", "omni-expires=366d" };

struct s3_rules {
        struct om_store *store;
        struct s3_call call;
        struct om_buf body;
        char md5[25];
        bool put;
};

/* -- configurations ------------------------------------------------------------------------------------------------------------------- */

/* "omnidaemon-HASH-": what the IDs of our rules begin with, for this prefix. */
static void id_of(char *out, size_t size, const char *prefix) { snprintf(out, size, "omnidaemon-%08x-", s3_name_hash(om_span_of(prefix))); }

struct reading {
        const char *prefix;
        char id[40];
        unsigned found; /* bits of classes */
        size_t n;
        unsigned char ours[RULES_MAX]; /* by their IDs */
        struct {
                bool ours, enabled, has_prefix, has_tag;
                int tag, days;
        } rule;
};

static void rule_over(struct reading *r) {
        int i = r->rule.tag;

        if (r->n < RULES_MAX)
                r->ours[r->n] = r->rule.ours;
        r->n++;
        if (r->rule.enabled && r->rule.has_prefix && r->rule.has_tag && i >= 0 && r->rule.days > days[i])
                r->found |= 1u << i;
        memset(&r->rule, 0, sizeof r->rule);
        r->rule.tag = -1;
}

static void rule_element(void *ctx, const char *path, struct om_span text) {
        struct reading *r = ctx;

        if (strcmp(path, "Rule") == 0)
                rule_over(r);
        else if (strcmp(path, "Rule/ID") == 0)
                r->rule.ours = text.len > strlen(r->id) && memcmp(text.p, r->id, strlen(r->id)) == 0;
        else if (strcmp(path, "Rule/Status") == 0)
                r->rule.enabled = om_span_is(text, "Enabled");
        else if (strcmp(path, "Rule/Filter/And/Prefix") == 0)
                r->rule.has_prefix = om_span_is(text, r->prefix);
        else if (strcmp(path, "Rule/Filter/And/Tag/Key") == 0)
                r->rule.has_tag = om_span_is(text, "omni-expires");
        else if (strcmp(path, "Rule/Filter/And/Tag/Value") == 0) {
                for (int i = 0; i < CLASSES; i++)
                        if (om_span_is(text, strchr(tags[i], '=') + 1))
                                r->rule.tag = i;
        } else if (strcmp(path, "Rule/Expiration/Days") == 0)
                r->rule.days = (int) strtol(text.p, NULL, 10);
}

static int read_rules(struct reading *r, struct om_span xml, const char *prefix) {
        *r = (struct reading){ .prefix = prefix, .rule.tag = -1 };
        id_of(r->id, sizeof r->id, prefix);
        if (!xml.len)
                return 0;
        return s3_xml_read(xml, rule_element, r, NULL, 0) < 0 || r->n > RULES_MAX ? -EINVAL : 0;
}

int s3_rules_check(struct om_span xml, const char *prefix) {
        struct reading r;
        int status = read_rules(&r, xml, prefix);

        return status < 0 ? status : r.found == (1u << CLASSES) - 1;
}

static void put_ours(struct om_buf *b, const char *prefix) {
        char id[40];

        id_of(id, sizeof id, prefix);
        for (int i = 0; i < CLASSES; i++)
                om_buf_printf(b,
                        "<Rule><ID>%s%dd</ID><Status>Enabled</Status><Filter><And><Prefix>%s</Prefix><Tag><Key>omni-expires</Key>"
                        "<Value>%dd</Value></Tag></And></Filter><Expiration><Days>%d</Days></Expiration></Rule>",
                        id, days[i], prefix, days[i], days[i] + 1);
}

int s3_rules_merge(struct om_buf *b, struct om_span xml, const char *prefix) {
        struct reading r;
        size_t from = 0, start, end;

        if (read_rules(&r, xml, prefix) < 0)
                return -EINVAL;
        if (!xml.len) {
                om_buf_lit(b, "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
                put_ours(b, prefix);
                om_buf_lit(b, "</LifecycleConfiguration>");
                return 0;
        }
        for (size_t i = 0; i < r.n; i++)
                if (r.ours[i] && s3_xml_find(xml, "Rule", i, &start, &end) == 0) {
                        om_buf_put(b, xml.p + from, start - from);
                        from = end;
                }
        if (s3_xml_find(xml, "", 0, &start, &end) < 0 || start < from || end <= start + 2 || xml.p[start + 1] != '/')
                return -EINVAL; /* an empty root closes itself: there is nothing of anybody's in it, and no server says so */
        om_buf_put(b, xml.p + from, start - from);
        put_ours(b, prefix);
        om_buf_put(b, xml.p + start, xml.len - start);
        return 0;
}

/* -- the bucket's --------------------------------------------------------------------------------------------------------------------- */

const char *s3_rules_tagging(const struct om_store *s, int64_t expires_ms) {
        int64_t left = expires_ms - om_now_ms();

        for (int i = 0; i < CLASSES && s->rules == RULES_SET && expires_ms; i++)
                if (left <= (int64_t) days[i] * 86400000)
                        return tags[i];
        return NULL;
}

static void end(struct s3_rules *r, enum rules rules) {
        struct om_store *s = r->store;

        s->rules = rules;
        s3_rules_free(s);
        if (rules != RULES_SET)
                s3_sweep_due(s);
}

static void not_allowed(struct s3_rules *r, int status, const struct om_error *e) {
        struct om_store *s = r->store;

        if (s->settings.manage_lifecycle)
                om_host_log(s->host, OM_LOG_WARNING, "S3: manage_lifecycle (S3_MANAGE_LIFECYCLE): %s; what has expired is swept instead",
                        e->message);
        end(r, status == -EACCES ? RULES_DENIED : status == -EAGAIN || status == -ETIMEDOUT ? RULES_UNKNOWN : RULES_NONE);
}

static void look(struct s3_rules *r);

static void put(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_rules *r = c->ctx;

        if (status < 0)
                not_allowed(r, status, e);
        else
                look(r);
}

static void merge(struct s3_rules *r, struct om_span xml) {
        const char *prefix = r->store->primary.place.prefix;
        struct om_error e;

        om_buf_clear(&r->body);
        if (s3_rules_merge(&r->body, xml, prefix) < 0 || !om_buf_ok(&r->body)) {
                om_error_set(&e, OM_INTERNAL, "the bucket's rules cannot be understood");
                not_allowed(r, -EIO, &e);
                return;
        }
        r->put = true;
        s3_md5_base64(r->md5, om_buf_span(&r->body));
        s3_call_clear(&r->call);
        r->call = (struct s3_call){ .client = &r->store->primary,
                .method = "PUT",
                .query = "lifecycle=",
                .body = om_buf_span(&r->body),
                .action = "s3:PutLifecycleConfiguration",
                .done = put,
                .ctx = r };
        s3_call_header(&r->call, "content-md5", r->md5);
        s3_call_start(&r->call);
}

static void looked(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_rules *r = c->ctx;
        struct om_span xml = status == 0 ? om_buf_span(&c->req.answer) : OM_SPAN("");
        struct om_error mine;
        int all;

        if (status < 0 && status != -ENOENT) {
                not_allowed(r, status, e);
                return;
        }
        all = s3_rules_check(xml, r->store->primary.place.prefix);
        if (all > 0)
                end(r, RULES_SET);
        else if (all == 0 && r->store->settings.manage_lifecycle && !r->put)
                merge(r, xml);
        else if (r->put) {
                om_error_set(&mine, OM_INTERNAL, "the server has not kept the rules");
                not_allowed(r, -EIO, &mine);
        } else
                end(r, RULES_NONE);
}

static void look(struct s3_rules *r) {
        s3_call_clear(&r->call);
        r->call = (struct s3_call){ .client = &r->store->primary,
                .method = "GET",
                .query = "lifecycle=",
                .action = "s3:GetLifecycleConfiguration",
                .done = looked,
                .ctx = r };
        s3_call_start(&r->call);
}

void s3_rules_start(struct om_store *s) {
        if (s->rules_work)
                return;
        s->rules_work = calloc(1, sizeof *s->rules_work);
        if (!s->rules_work)
                return;
        s->rules_work->store = s;
        look(s->rules_work);
}

void s3_rules_free(struct om_store *s) {
        if (!s->rules_work)
                return;
        s3_call_abort(&s->rules_work->call);
        om_buf_deinit(&s->rules_work->body);
        free(s->rules_work);
        s->rules_work = NULL;
}
