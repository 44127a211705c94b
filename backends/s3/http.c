/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP on the loop: see http.h. libcurl tells which sockets it watches and when it wants to be called; completions are read after each
 * call into it. It is never called from within its own timer callback, which only arms a timer.
 *
 * Redirects are not followed: a signature is of one host. Loop thread.
 */
#include <ctype.h>
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>

#include "http.h"

enum { SPARE_MAX = 64, ANSWER_MAX = 1 << 20, HEADERS_MAX = 64 << 10 };

struct s3_http {
        struct om_host *host;
        struct s3_http_settings settings;
        char *ca_file;
        CURLM *multi;
        struct event *timer; /* libcurl's */
        struct event *again; /* ours: somebody's turn may have come */
        TAILQ_HEAD(, s3_http_request) waiting, active;
        long n_active;
        bool closing;
        CURL *spare[SPARE_MAX];
        size_t n_spare;
};

static void look(struct s3_http *h);

/* -- what libcurl wants ---------------------------------------------------------------------------------------------------- */

static void on_socket(evutil_socket_t fd, short what, void *ctx) {
        struct s3_http *h = ctx;
        int running, bits = (what & EV_READ ? CURL_CSELECT_IN : 0) | (what & EV_WRITE ? CURL_CSELECT_OUT : 0);

        curl_multi_socket_action(h->multi, fd, bits, &running);
        look(h);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct s3_http *h = ctx;
        int running;

        curl_multi_socket_action(h->multi, CURL_SOCKET_TIMEOUT, 0, &running);
        look(h);
}

static int watch(CURL *easy, curl_socket_t fd, int what, void *ctx, void *watched) {
        struct s3_http *h = ctx;
        struct event *ev = watched;
        short bits = EV_PERSIST;

        if (ev) {
                event_free(ev);
                curl_multi_assign(h->multi, fd, NULL);
        }
        if (what == CURL_POLL_REMOVE)
                return 0;
        bits = (short) (bits | (what & CURL_POLL_IN ? EV_READ : 0) | (what & CURL_POLL_OUT ? EV_WRITE : 0));
        ev = event_new(h->host->base, fd, bits, on_socket, h);
        if (!ev || event_add(ev, NULL) < 0) {
                if (ev)
                        event_free(ev);
                return -1;
        }
        curl_multi_assign(h->multi, fd, ev);
        return 0;
}

static int arm(CURLM *multi, long ms, void *ctx) {
        struct s3_http *h = ctx;
        struct timeval tv = { ms / 1000, (ms % 1000) * 1000 };

        if (ms < 0)
                event_del(h->timer);
        else
                event_add(h->timer, &tv);
        return 0;
}

/* -- what comes back --------------------------------------------------------------------------------------------------------- */

static size_t on_body(char *data, size_t size, size_t n, void *ctx) {
        struct s3_http_request *r = ctx;

        if (r->answer.len + n > (r->max_bytes ? r->max_bytes : ANSWER_MAX))
                return 0;
        om_buf_put(&r->answer, data, n);
        return om_buf_ok(&r->answer) ? n : 0;
}

static size_t on_header(char *data, size_t size, size_t n, void *ctx) {
        struct s3_http_request *r = ctx;
        char *colon = memchr(data, ':', n);
        size_t len = n;

        if (n > 5 && memcmp(data, "HTTP/", 5) == 0) /* of the last answer only: a 100 may come first */
                om_buf_clear(&r->answer_headers);
        if (!colon || r->answer_headers.len + n > HEADERS_MAX)
                return n;
        while (len && (data[len - 1] == '\r' || data[len - 1] == '\n'))
                len--;
        for (char *c = data; c < colon; c++)
                om_buf_putc(&r->answer_headers, (char) tolower((unsigned char) *c));
        om_buf_put(&r->answer_headers, colon, len - (size_t) (colon - data));
        om_buf_putc(&r->answer_headers, '\n');
        return n;
}

struct om_span s3_http_header(const struct s3_http_request *r, const char *name) {
        size_t n = strlen(name);

        for (const char *p = r->answer_headers.data, *end = p ? p + r->answer_headers.len : p; p && p < end;) {
                const char *stop = memchr(p, '\n', (size_t) (end - p));

                if (!stop)
                        break;
                if ((size_t) (stop - p) > n && memcmp(p, name, n) == 0 && p[n] == ':') {
                        for (p += n + 1; p < stop && (*p == ' ' || *p == '\t');)
                                p++;
                        return (struct om_span){ p, (size_t) (stop - p) };
                }
                p = stop + 1;
        }
        return OM_SPAN_NONE;
}

static int on_send(void *ctx, char *their_ip, char *our_ip, int their_port, int our_port) {
        ((struct s3_http_request *) ctx)->sent++;
        return CURL_PREREQFUNC_OK;
}

/* -- requests ---------------------------------------------------------------------------------------------------------------- */

static void set_up(struct s3_http *h, struct s3_http_request *r) {
        CURL *easy = r->easy;

        curl_easy_setopt(easy, CURLOPT_PRIVATE, r);
        curl_easy_setopt(easy, CURLOPT_URL, r->url);
        curl_easy_setopt(easy, CURLOPT_HTTPHEADER, r->headers);
        curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L); /* a resolver's thread is not waited for */
        curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
        curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
        curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
        curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
        curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, h->settings.connect_ms);
        curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (h->settings.stall_ms + 999) / 1000);
        curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_send);
        curl_easy_setopt(easy, CURLOPT_PREREQDATA, r);
        curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, r->why);
        curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
        curl_easy_setopt(easy, CURLOPT_WRITEDATA, r);
        curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
        curl_easy_setopt(easy, CURLOPT_HEADERDATA, r);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, h->settings.verify ? 1L : 0L);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, h->settings.verify ? 2L : 0L);
        curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
        if (h->ca_file)
                curl_easy_setopt(easy, CURLOPT_CAINFO, h->ca_file);
        if (r->direct)
                curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
        if (r->timeout_ms)
                curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, r->timeout_ms);
        if (r->body.p) {
                curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) r->body.len);
                curl_easy_setopt(easy, CURLOPT_POSTFIELDS, r->body.p);
        }
        if (strcmp(r->method, "HEAD") == 0)
                curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
        else
                curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, r->method);
}

static CURL *easy_get(struct s3_http *h) { return h->n_spare ? h->spare[--h->n_spare] : curl_easy_init(); }

static void easy_put(struct s3_http *h, CURL *easy) {
        if (h->n_spare == SPARE_MAX) {
                curl_easy_cleanup(easy);
                return;
        }
        curl_easy_reset(easy);
        h->spare[h->n_spare++] = easy;
}

static void leave(struct s3_http_request *r) {
        struct s3_http *h = r->http_owner;

        if (r->easy) {
                curl_multi_remove_handle(h->multi, r->easy);
                easy_put(h, r->easy);
                r->easy = NULL;
                h->n_active--;
                TAILQ_REMOVE(&h->active, r, link);
        } else
                TAILQ_REMOVE(&h->waiting, r, link);
        curl_slist_free_all(r->headers);
        r->headers = NULL;
        r->active = false;
}

static void end_all(struct s3_http *h) {
        struct s3_http_request *r;

        while ((r = TAILQ_FIRST(&h->active)) || (r = TAILQ_FIRST(&h->waiting))) {
                leave(r);
                r->code = CURLE_ABORTED_BY_CALLBACK;
                r->done(r);
        }
}

/* Those that wait get their turn. Where there is no memory for a handle, a little later. */
static void go_on(struct s3_http *h) {
        struct s3_http_request *r;

        while (h->n_active < h->settings.connections && (r = TAILQ_FIRST(&h->waiting))) {
                CURL *easy = easy_get(h);
                struct timeval soon = { 0, 100000 };

                if (!easy) {
                        event_add(h->again, &soon);
                        return;
                }
                TAILQ_REMOVE(&h->waiting, r, link);
                TAILQ_INSERT_TAIL(&h->active, r, link);
                r->easy = easy;
                h->n_active++;
                set_up(h, r);
                curl_multi_add_handle(h->multi, easy);
        }
}

static void look(struct s3_http *h) {
        CURLMsg *msg;
        int left;

        while ((msg = curl_multi_info_read(h->multi, &left))) {
                struct s3_http_request *r;
                CURLcode code = msg->data.result;
                long status = 0;

                if (msg->msg != CURLMSG_DONE)
                        continue;
                curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &r);
                curl_easy_getinfo(msg->easy_handle, CURLINFO_RESPONSE_CODE, &status);
                r->code = code;
                r->http = code == CURLE_OK ? (int) status : 0;
                leave(r);
                r->done(r);
        }
        if (!h->closing)
                go_on(h);
}

static void on_again(evutil_socket_t fd, short what, void *ctx) {
        struct s3_http *h = ctx;

        if (h->closing)
                end_all(h);
        else
                go_on(h);
}

static void turn(struct s3_http *h) {
        struct timeval now = { 0, 0 };

        event_add(h->again, &now);
}

void s3_http_close(struct s3_http *h) {
        h->closing = true;
        turn(h);
}

void s3_http_start(struct s3_http *h, struct s3_http_request *r) {
        r->http_owner = h;
        r->http = 0;
        r->code = CURLE_OK;
        r->why[0] = 0;
        r->easy = NULL;
        r->sent = 0;
        r->active = true;
        om_buf_clear(&r->answer);
        om_buf_clear(&r->answer_headers);
        TAILQ_INSERT_TAIL(&h->waiting, r, link);
        if (h->closing)
                turn(h);
        else
                go_on(h);
}

void s3_http_abort(struct s3_http_request *r) {
        if (!r->active)
                return;
        leave(r);
        turn(r->http_owner); /* another may have its turn */
}

void s3_http_clear(struct s3_http_request *r) {
        om_buf_deinit(&r->answer);
        om_buf_deinit(&r->answer_headers);
}

/* -- opening and closing ------------------------------------------------------------------------------------------------------- */

int s3_http_new(struct om_host *host, const struct s3_http_settings *s, struct s3_http **ret, struct om_error *e) {
        static bool started;
        struct s3_http *h = calloc(1, sizeof *h);

        if (!started && curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
                started = true;
        if (!h)
                return om_error_set_errno(e, ENOMEM, "S3");
        h->host = host;
        h->settings = *s;
        TAILQ_INIT(&h->waiting);
        TAILQ_INIT(&h->active);
        h->ca_file = s->ca_file ? strdup(s->ca_file) : NULL;
        h->multi = curl_multi_init();
        h->timer = evtimer_new(host->base, on_timer, h);
        h->again = evtimer_new(host->base, on_again, h);
        if (!h->multi || !h->timer || !h->again || (s->ca_file && !h->ca_file)) {
                s3_http_free(h);
                return om_error_set_errno(e, ENOMEM, "S3");
        }
        curl_multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, watch);
        curl_multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h);
        curl_multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, arm);
        curl_multi_setopt(h->multi, CURLMOPT_TIMERDATA, h);
        curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, s->connections);
        *ret = h;
        return 0;
}

void s3_http_free(struct s3_http *h) {
        if (!h)
                return;
        while (h->n_spare)
                curl_easy_cleanup(h->spare[--h->n_spare]);
        if (h->multi)
                curl_multi_cleanup(h->multi);
        if (h->timer)
                event_free(h->timer);
        if (h->again)
                event_free(h->again);
        free(h->ca_file);
        free(h);
}
