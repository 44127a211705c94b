/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Health: what the bucket holds, how what expires is deleted, and how far the replica is.
 *
 *   agents ──▶ results ──▶ metrics (names, COUNT_MAX of each at most) ──▶ the bucket's replication ──▶ the replica's newest result
 *
 * What may not be asked is told as such and fails nothing. Loop thread.
 */
#include "store_state.h"
#include "xml.h"

enum { PAGES_MAX = 10 };
enum { AGENTS, RESULTS, METRICS, COUNTS };

struct health {
        struct om_job job; /* first */
        struct om_store *store;
        struct om_store_health *op;
        struct s3_page page;
        struct s3_call call;
        int at, pages;
        uint64_t n[COUNTS];
        bool partly;
        char version[60], replication[60];
        unsigned n_rules;
        int64_t newest_ms; /* result, in the primary; 0: none */
        int64_t replica_ms;
        bool replica_answers;
        struct om_error replica_error;
};

static void health_free(struct om_job *j) {
        struct health *h = (struct health *) j;
        struct om_store *s = h->store;

        s3_page_clear(&h->page);
        s3_call_clear(&h->call);
        free(h);
        s3_store_is_closed(s);
}

static void put_text(struct om_buf *b, const char *name, const char *text) {
        om_buf_printf(b, ",\"%s\":", name);
        om_buf_json_span(b, om_span_of(text));
}

static void put_replica(struct om_buf *b, const struct health *h) {
        const struct om_store *s = h->store;

        if (!s->has_replica)
                return;
        om_buf_printf(b, ",\"replica\":{\"answers\":%s", h->replica_answers ? "true" : "false");
        put_text(b, "where", s->replica.place.where);
        if (!h->replica_answers)
                put_text(b, "error", h->replica_error.message);
        else if (h->newest_ms) {
                om_buf_printf(b, ",\"is_behind\":%s", h->replica_ms < h->newest_ms ? "true" : "false");
                if (h->replica_ms && h->replica_ms < h->newest_ms)
                        om_buf_printf(b, ",\"behind_ms\":%lld", (long long) (h->newest_ms - h->replica_ms));
        }
        om_buf_printf(b, ",\"reads\":%llu}", (unsigned long long) s->replica_reads);
}

static void say(struct health *h) {
        static const char *const rules[] = { [RULES_UNKNOWN] = "unknown",
                [RULES_SET] = "rules",
                [RULES_NONE] = "sweep",
                [RULES_DENIED] = "sweep; lifecycle rules may not be read (s3:GetLifecycleConfiguration)" };
        const struct om_store *s = h->store;
        struct om_buf b = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        int status = 0;

        om_buf_lit(&b, "{\"durability\":\"strong\"");
        put_text(&b, "version", h->version);
        put_text(&b, "servers", s->primary.place.host);
        put_text(&b, "bucket", s->primary.place.bucket);
        put_text(&b, "prefix", s->primary.place.prefix);
        put_text(&b, "region", s->primary.place.region);
        put_text(&b, "credentials", s3_chain_source(s->primary.chain));
        put_text(&b, "expiry", rules[s->rules]);
        om_buf_printf(&b, ",\"agents\":%llu,\"results\":%llu,\"metrics\":%llu", (unsigned long long) h->n[AGENTS],
                (unsigned long long) h->n[RESULTS], (unsigned long long) h->n[METRICS]);
        if (h->partly)
                om_buf_printf(&b, ",\"counted_up_to\":%d", PAGES_MAX * S3_PAGE_MAX);
        put_text(&b, "replication", h->replication);
        put_replica(&b, h);
        om_buf_putc(&b, '}');
        if (!om_job_is_cancelled(&h->job)) {
                h->op->info = om_buf_ok(&b) ? om_arena_copy(&h->op->arena, om_buf_span(&b)) : OM_SPAN_NONE;
                if (!h->op->info.p)
                        status = om_error_set_errno(&e, ENOMEM, "S3");
        }
        om_buf_deinit(&b);
        om_job_over(&h->job, status, &e);
}

/* -- the replica ----------------------------------------------------------------------------------------------------------------------- */

static void replica_told(struct s3_page *p, int status, const struct om_error *e) {
        struct health *h = p->ctx;
        struct s3_index index;

        h->replica_answers = status == 0;
        if (status < 0)
                h->replica_error = *e;
        else if (p->n && s3_index_read(p->names[0].name, &index))
                h->replica_ms = index.saved_ms;
        say(h);
}

static void ask_replica(struct health *h) {
        if (!h->store->has_replica) {
                say(h);
                return;
        }
        s3_page_clear(&h->page);
        h->page =
                (struct s3_page){ .client = &h->store->replica, .prefix = "t/", .limit = 1, .quick = true, .done = replica_told, .ctx = h };
        s3_page_start(&h->page);
}

/* -- the bucket's own replication --------------------------------------------------------------------------------------------------------
 */

static void replication_element(void *ctx, const char *path, struct om_span text) {
        struct health *h = ctx;

        if (strcmp(path, "Rule/Status") == 0)
                h->n_rules += om_span_is(text, "Enabled");
}

static void replication_told(struct s3_call *c, int status, const struct om_error *e) {
        struct health *h = c->ctx;

        if (status == 0 && s3_xml_read(om_buf_span(&c->req.answer), replication_element, h, NULL, 0) == 0)
                snprintf(h->replication, sizeof h->replication, "%u rule%s in force", h->n_rules, h->n_rules == 1 ? "" : "s");
        else if (status == -ENOENT || status == -EOPNOTSUPP)
                snprintf(h->replication, sizeof h->replication, "none");
        else if (status == -EACCES)
                snprintf(h->replication, sizeof h->replication, "may not be read (s3:GetReplicationConfiguration)");
        else
                snprintf(h->replication, sizeof h->replication, "unknown");
        ask_replica(h);
}

static void ask_replication(struct health *h) {
        h->call = (struct s3_call){ .client = &h->store->primary,
                .method = "GET",
                .query = "replication=",
                .action = "s3:GetReplicationConfiguration",
                .done = replication_told,
                .ctx = h };
        s3_call_start(&h->call);
}

/* -- counting
 * ------------------------------------------------------------------------------------------------------------------------------ */

static void count(struct health *h) {
        static const char *const prefixes[COUNTS] = { "a/", "t/", "m/" };

        snprintf(h->page.prefix, sizeof h->page.prefix, "%s", prefixes[h->at]);
        s3_page_start(&h->page);
}

static void counted(struct s3_page *p, int status, const struct om_error *e) {
        struct health *h = p->ctx;
        struct s3_index index;

        if (status < 0) {
                struct om_error copy = *e;

                om_job_over(&h->job, status, &copy);
                return;
        }
        snprintf(h->version, sizeof h->version, "%.*s", OM_PRI(s3_http_header(&p->call.req, "server")));
        for (size_t i = 0; i < p->n; i++) {
                bool in_time = s3_index_read(p->names[i].name, &index);

                h->n[h->at] += !in_time || !index.expires_ms || index.expires_ms > om_now_ms();
                if (in_time && h->at == RESULTS && !h->newest_ms)
                        h->newest_ms = index.saved_ms;
        }
        if (p->more && p->n && ++h->pages < PAGES_MAX)
                snprintf(p->after, sizeof p->after, "%s", p->names[p->n - 1].name);
        else {
                h->partly |= p->more;
                h->pages = 0;
                p->after[0] = 0;
                h->at++;
        }
        if (h->at < COUNTS)
                count(h);
        else
                ask_replication(h);
}

int s3_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        int r = s3_store_admit(s, sizeof(struct health), false, e);
        struct health *h;

        if (r < 0)
                return r;
        h = calloc(1, sizeof *h);
        if (!h)
                return om_error_set_errno(e, ENOMEM, "S3");
        op->arena = (struct om_arena){ 0 };
        op->info = OM_SPAN_NONE;
        h->store = s;
        h->op = op;
        h->page = (struct s3_page){ .client = &s->primary, .done = counted, .ctx = h };
        om_job_begin(&s->jobs, &h->job, &op->op, sizeof *h, health_free);
        count(h);
        return 0;
}
