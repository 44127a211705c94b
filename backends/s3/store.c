/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The storage on S3 as the core sees it (store_state.h has the layout). How it keeps the promises of store.h:
 *
 *   S1  a write completes with S3's answer, which it gives when the object is safe.  S2  what expires says when in its object and is not
 * read after it; lifecycle rules or the sweep delete it some time later.  S3  put_if_absent is a conditional write.  S4  store_list.c.  S5
 * an object that is not there is 404 NoSuchKey, and nothing else is taken for it.
 *
 *   CONNECTING ──▶ READY   when a list of our prefix has been answered, and the server was seen to know conditional writes
 *   READY ──▶ CONNECTING   when a request finds no server; then the list is asked for again and again, with backoff
 *   FAILED                 the list is refused: credentials, bucket, region. It is asked for again all the same: these can be mended there
 *
 * Loop thread.
 */
#include "store_state.h"

enum { OPS_MAX = 2048, BYTES_MAX = 128 << 20, PROBE_MS = 100, PROBE_MAX_MS = 2000, REFUSED_MS = 1000, REFUSED_MAX_MS = 15000 };

int s3_store_admit(struct om_store *s, size_t bytes, bool reads, struct om_error *e) {
        if (!s->closing && (s->state == OM_STORE_READY || (reads && s3_store_reads_replica(s))))
                return om_job_admit(&s->jobs, OPS_MAX, BYTES_MAX, bytes, "S3", e);
        *e = s->why;
        return om_error_set(e, OM_UNAVAILABLE, "%s", s->why.message);
}

bool s3_store_falls_back(struct om_store *s, struct s3_client **c, int status) {
        if (!s->has_replica || *c != &s->primary || s->closing || (status != -EAGAIN && status != -ETIMEDOUT && status != -EIO))
                return false;
        *c = &s->replica;
        s->replica_reads++;
        return true;
}

uint64_t s3_store_version(struct om_store *s) {
        uint64_t now = (uint64_t) s3_now_ms(&s->primary) * 1000;

        s->version = now > s->version ? now : s->version + 1;
        return s->version;
}

/* -- states ------------------------------------------------------------------------------------------------------------------------- */

static void tell(struct om_store *s, enum om_store_state state, const struct om_error *e) {
        bool same = s->state == state && (!e || strcmp(s->why.message, e->message) == 0) && s->probes_failed;

        s->state = state;
        if (e)
                s->why = *e;
        if (!same && !s->closing)
                s->events->state(s->core, state, e);
}

static void probe_later(struct om_store *s) {
        bool refused = s->state == OM_STORE_FAILED;
        int64_t ms = om_backoff_ms(refused ? REFUSED_MS : PROBE_MS, refused ? REFUSED_MAX_MS : PROBE_MAX_MS, s->probes_failed++);
        struct timeval tv = { ms / 1000, (ms % 1000) * 1000 };

        if (!s->closing && !event_pending(s->probe_timer, EV_TIMEOUT, NULL))
                event_add(s->probe_timer, &tv);
}

static void is_ready(struct om_store *s) {
        s->probes_failed = 0;
        s->probing = false;
        if (s->rules == RULES_UNKNOWN)
                s3_rules_start(s);
        tell(s, OM_STORE_READY, NULL);
}

static void is_not_ready(struct om_store *s, const struct om_error *e) {
        s->probing = false;
        tell(s, e->kind == OM_UNAVAILABLE ? OM_STORE_CONNECTING : OM_STORE_FAILED, e);
        probe_later(s);
}

/* Whoever ignores the condition would let many win what one may, and daemons overwrite each other: with such a server nothing is begun. */
static void mark(struct om_store *s);

static void marked(struct s3_call *c, int status, const struct om_error *e) {
        struct om_store *s = c->ctx;
        struct om_error mine;

        if (status == 0 && s->marked < 2) {
                mark(s);
                return;
        }
        if (status == 0 || status == -EOPNOTSUPP) {
                om_error_set(&mine, OM_UNSUPPORTED,
                        "S3: %s: the server does not mind If-None-Match: it lacks conditional writes, without which this storage is not "
                        "safe",
                        s->primary.place.where);
                is_not_ready(s, &mine);
        } else if (e->kind == OM_UNAVAILABLE)
                is_not_ready(s, e);
        else { /* it was there; or we may not write, which those who want to will be told */
                s->is_checked = true;
                is_ready(s);
        }
}

static void mark(struct om_store *s) {
        s->marked++;
        s3_call_clear(&s->marker);
        s->marker = (struct s3_call){ .client = &s->primary,
                .method = "PUT",
                .name = "x/conditional",
                .body = OM_SPAN("{}"),
                .quick = true,
                .done = marked,
                .ctx = s };
        s3_call_header(&s->marker, "if-none-match", "*");
        s3_call_start(&s->marker);
}

static void probed(struct s3_page *p, int status, const struct om_error *e) {
        struct om_store *s = p->ctx;

        if (status < 0) {
                is_not_ready(s, e);
                return;
        }
        s3_call_clock(&p->call);
        s3_page_clear(p);
        s->marked = 0;
        if (s->is_checked)
                is_ready(s);
        else
                mark(s);
}

static void probe(evutil_socket_t fd, short what, void *ctx) {
        struct om_store *s = ctx;

        if (s->probing || s->closing)
                return;
        s->probing = true;
        s3_page_clear(&s->probe);
        s->probe = (struct s3_page){ .client = &s->primary, .prefix = "a/", .limit = 1, .quick = true, .done = probed, .ctx = s };
        s3_page_start(&s->probe);
}

static void lost(void *ctx, const struct om_error *e) {
        struct om_store *s = ctx;

        if (s->state != OM_STORE_READY || s->probing || s->closing)
                return;
        tell(s, OM_STORE_CONNECTING, e);
        probe_later(s);
}

/* -- opening ------------------------------------------------------------------------------------------------------------------------ */

/* The URL's texts are its own. -ENOMEM. */
static int keep_texts(struct om_store *s) {
        const char **const texts[] = { &s->settings.region, &s->settings.endpoint, &s->settings.profile, &s->settings.session_token,
                &s->settings.tls_ca_file, &s->settings.storage_class, &s->settings.kms_id, &s->settings.replica };

        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
                struct om_span copy = om_arena_copy(&s->memory, om_span_of(*texts[i]));

                if (*texts[i] && !copy.p)
                        return -ENOMEM;
                *texts[i] = copy.p;
        }
        return 0;
}

static int client_open(
        struct om_store *s, struct s3_client *c, const struct om_url *url, const struct s3_settings *settings, struct om_error *e) {
        struct om_arena arena = { 0 };
        struct s3_profile profile = { .found = false };
        int r = url->user ? 0 : s3_profile_load(&profile, settings->profile, &arena, e);

        c->host = s->host;
        c->http = s->http;
        c->settings = settings;
        c->ctx = s;
        if (r == 0)
                r = s3_place_read(&c->place, url, settings, profile.region.p, profile.endpoint.p, e);
        if (r == 0)
                r = s3_chain_new(s->host, s->http, url, settings, c->place.region, &c->chain, e);
        om_arena_deinit(&arena);
        return r;
}

/* Its settings are the primary's, but where it says otherwise; its endpoint is its own. */
static int replica_open(struct om_store *s, const struct om_url *primary, struct om_error *e) {
        struct s3_settings *mine = om_arena_alloc(&s->memory, sizeof *mine), said;
        struct om_url *url = NULL, with = { 0 };
        int r;

        if (!mine)
                return om_error_set_errno(e, ENOMEM, "S3");
        r = om_url_parse(s->settings.replica, &url, e);
        if (r == 0)
                r = om_options_read(s3_options, url, &said, e);
        if (r == 0 && (strcmp(url->scheme, "s3") != 0 || url->user || url->password || said.replica))
                r = om_error_set(
                        e, OM_INVALID, "an s3:// URL without user, password and replica is expected; profile=NAME gives it credentials");
        if (r == 0) {
                *mine = s->settings;
                mine->region = om_arena_copy(&s->memory, om_span_of(said.region)).p;
                mine->endpoint = om_arena_copy(&s->memory, om_span_of(said.endpoint)).p;
                mine->addressing = said.addressing;
                mine->retries = 1;
                if (!mine->endpoint)
                        mine->endpoint = s->settings.endpoint;
                if (!mine->region)
                        mine->region = s->settings.region;
                if (said.profile)
                        mine->profile = om_arena_copy(&s->memory, om_span_of(said.profile)).p;
                with = *url;
                if (strlen(url->path) <= 1) /* a copy has the same names */
                        with.path = primary->path;
                if (!said.profile) { /* the primary's credentials */
                        with.user = primary->user;
                        with.password = primary->password;
                }
                r = client_open(s, &s->replica, &with, mine, e);
        }
        om_url_free(url);
        if (r < 0)
                om_error_prefix(e, "S3: replica (S3_REPLICA_URL)");
        s->has_replica = r == 0;
        return r;
}

static void store_free(struct om_store *s) {
        s3_sweep_free(s);
        s3_rules_free(s);
        s3_page_abort(&s->probe);
        s3_call_abort(&s->marker);
        if (s->primary.chain)
                s3_chain_free(s->primary.chain);
        if (s->replica.chain)
                s3_chain_free(s->replica.chain);
        if (s->probe_timer)
                event_free(s->probe_timer);
        s3_http_free(s->http);
        om_arena_deinit(&s->memory);
        free(s);
}

static int set_up(struct om_store *s, struct om_url *url, struct om_error *e) {
        struct s3_http_settings http;
        const char *bundle = getenv("AWS_CA_BUNDLE");
        int r = om_options_read(s3_options, url, &s->settings, e);

        if (r < 0)
                return r;
        if (keep_texts(s) < 0)
                return om_error_set_errno(e, ENOMEM, "S3");
        http = (struct s3_http_settings){ s->settings.tls_ca_file, s->settings.tls_verify, (long) s->settings.connections,
                (long) s->settings.connect_ms, (long) s->settings.stall_ms };
        if (!http.ca_file && bundle && *bundle)
                http.ca_file = bundle;
        if (http.ca_file) {
                struct om_buf file = OM_BUF_INIT;

                r = s3_read_file(http.ca_file, &file, e);
                om_buf_deinit(&file);
                if (r < 0) {
                        om_error_prefix(e, "tls_ca_file");
                        return om_error_set(e, OM_INVALID, "%s", e->message);
                }
        }
        r = s3_http_new(s->host, &http, &s->http, e);
        if (r == 0)
                r = client_open(s, &s->primary, url, &s->settings, e);
        if (r == 0 && s->settings.replica && *s->settings.replica)
                r = replica_open(s, url, e);
        s->probe_timer = r == 0 ? evtimer_new(s->host->base, probe, s) : NULL;
        return r == 0 && !s->probe_timer ? om_error_set_errno(e, ENOMEM, "S3") : r;
}

static int store_open(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        struct om_store *s = calloc(1, sizeof *s);
        struct timeval now = { 0, 0 };
        int r;

        if (!s)
                return om_error_set_errno(e, ENOMEM, "S3");
        s->host = host;
        s->events = events;
        s->core = core;
        s->jobs.host = host;
        s->state = OM_STORE_CONNECTING;
        for (size_t i = 0; i < KINDS; i++)
                s3_locks_init(&s->locks[i]);
        TAILQ_INIT(&s->primary.calls);
        TAILQ_INIT(&s->replica.calls);
        r = set_up(s, url, e);
        if (r < 0) {
                store_free(s);
                return r;
        }
        s->primary.lost = lost;
        om_error_set(&s->why, OM_UNAVAILABLE, "S3: %s: connecting", s->primary.place.where);
        event_add(s->probe_timer, &now);
        *ret = s;
        return 0;
}

/* -- closing ------------------------------------------------------------------------------------------------------------------------ */

static void is_closed(struct om_post *post) {
        struct om_store *s = CONTAINER(post, struct om_store, closed_post);

        s->close_op->done(s->close_op, 0, NULL);
}

void s3_store_is_closed(struct om_store *s) {
        if (!s->closing || !s->close_op || s->jobs.n || s->closed_post.fn)
                return;
        s->closed_post.fn = is_closed;
        om_host_post(s->host, &s->closed_post);
}

/* Of what the core has cancelled some may still be under way: it ends now. */
static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        op->cancel = NULL;
        s->close_op = op;
        s->closing = true;
        s3_client_close(&s->primary);
        s3_client_close(&s->replica);
        s3_http_close(s->http);
        s->state = OM_STORE_CONNECTING;
        om_error_set(&s->why, OM_UNAVAILABLE, "the storage is closing");
        event_del(s->probe_timer);
        s3_sweep_free(s);
        s3_rules_free(s);
        s3_page_abort(&s->probe);
        s3_call_abort(&s->marker);
        s->probing = false;
        s3_store_is_closed(s);
        return 0;
}

static void store_destroy(struct om_store *s) { store_free(s); }

/* -- the contract -------------------------------------------------------------------------------------------------------------------- */

/* What completes at once within these completes by a post. */
#define ENTRY(name, type)                                                                             \
        static int enter_##name(struct om_store *s, struct om_store_##type *op, struct om_error *e) { \
                int r;                                                                                \
                                                                                                      \
                s->jobs.in_call = true;                                                               \
                r = s3_store_##name(s, op, e);                                                        \
                s->jobs.in_call = false;                                                              \
                return r;                                                                             \
        }
ENTRY(put, put)
ENTRY(get, get)
ENTRY(list, list)
ENTRY(remove, delete)
ENTRY(put_if_absent, put_if_absent)
ENTRY(health, health)

static const char *const schemes[] = { "s3", NULL };
OM_MODULE const struct om_store_ops om_s3_store_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "s3",
        .schemes = schemes,
        .doc = "Objects in a bucket of Amazon S3 or a server that speaks its protocol; conditional writes, lifecycle rules, a replica.",
        .capabilities = OM_STORE_TTL | OM_STORE_SHARED,
        .options = s3_options,
        .open = store_open,
        .put = enter_put,
        .get = enter_get,
        .list = enter_list,
        .remove = enter_remove,
        .put_if_absent = enter_put_if_absent,
        .health = enter_health,
        .close = store_close,
        .destroy = store_destroy,
};
