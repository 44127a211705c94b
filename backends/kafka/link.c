/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's handles and how they wake the loop; whether the brokers are there.
 *
 * Always true:
 *   - callbacks of the library run on the loop: its queues are served there and nowhere else, until the bus closes;
 *   - a queue that becomes non-empty writes its code into the pipe, and is served until it is empty. A full pipe loses nothing: it was read
 *     when it was full, and then everything is served;
 *   - READY is told after a broker has answered, CONNECTING when one that was asked did not within a second. What asks is the probe, on a
 *     thread of its own; what makes it ask is the library's word that brokers are down, or something under way that is not answered;
 *   - brokers that are far away are given longer before they count as silent, but only after several probes in a row took long: those that
 *     are busy starting do too, and a publisher shall hear within a second that they are away.
 *
 * Loop thread, but for run() of calls, and log_it().
 */
#include <fcntl.h>
#include <unistd.h>

#include "bus_state.h"

enum {
        CODE_PRODUCER,
        CODE_MEMBER,
        CODE_LANE,
        PROBE_MS = 1000,
        PROBE_MAX_MS = 2500,
        SUSPECT_MS = 300,
        SILENT_MS = 500,
        BEAT_MS = 100,
        MEASURES = 3
};

/* -- workers ---------------------------------------------------------------------------------------------------------- */

static void call_done(struct om_post *post) {
        struct call *c = CONTAINER(post, struct call, post);

        c->done(c);
}

static int turn(void *ctx, struct om_work *list) {
        struct om_bus *b = ctx;

        while (list) {
                struct call *c = CONTAINER(list, struct call, work);

                list = list->next;
                c->run(c);
                c->post.fn = call_done;
                om_host_post(b->host, &c->post);
        }
        return -1;
}

int kafka_call(struct om_bus *b, enum worker_id which, struct call *c, struct om_error *e) {
        static const char *const names[] = { "kafka", "kafka-member", "kafka-probe", "kafka-txn" };

        /* Behind what ends the handles nothing may come that uses them. */
        if (b->closing && which != WORKER_TXN && c != &b->end)
                return om_error_set_errno(e, ECANCELED, "Kafka: closing");
        if (!b->workers[which]) {
                int r = b->host->ops->worker_new(b->host, names[which], turn, b, &b->workers[which], e);

                if (r < 0)
                        return r;
        }
        c->bus = b;
        c->status = 0;
        b->host->ops->worker_submit(b->workers[which], &c->work);
        return 0;
}

/* -- handles ----------------------------------------------------------------------------------------------------------- */

static void log_it(const rd_kafka_t *rk, int level, const char *facility, const char *text) {
        struct om_bus *b = rd_kafka_opaque(rk);

        if (b)
                om_host_log(b->host, level <= 2 ? OM_LOG_WARNING : OM_LOG_DEBUG, "Kafka: %s: %s", facility, text);
}

static int make_producer(struct om_bus *b, struct om_error *e);

/* A broker that has lost what it had confirmed, with its disk's cache say, or one that others went on without, does not know how many
 * messages a producer has sent. The library says no more of that producer then. The next one is counted anew. */
static bool is_out_of_step(rd_kafka_resp_err_t err) {
        return err == RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER || err == RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID ||
                err == RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH || err == RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING;
}

static bool renew_producer(struct om_bus *b, rd_kafka_t *old) {
        rd_kafka_queue_t *queue = b->producer_queue;
        struct om_error e;
        char why[400];

        if (b->n_retired == RETIRED_MAX || !is_out_of_step(rd_kafka_fatal_error(old, why, sizeof why)) || make_producer(b, &e) < 0)
                return false;
        om_host_log(b->host, OM_LOG_WARNING,
                "Kafka: the brokers have lost messages that they had confirmed; publishing goes on with a new producer: %s", why);
        b->retired[b->n_retired].rk = old;
        b->retired[b->n_retired++].queue = queue;
        for (struct topic *t = b->topics; t; t = t->hh.next) {
                if (t->rkt)
                        rd_kafka_topic_destroy(t->rkt);
                t->rkt = NULL;
        }
        kafka_sends_fail(b);
        rd_kafka_purge(old, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT | RD_KAFKA_PURGE_F_NON_BLOCKING);
        return true;
}

void kafka_give_up(struct om_bus *b, rd_kafka_t *rk) {
        char why[400];
        rd_kafka_resp_err_t fatal = rd_kafka_fatal_error(rk, why, sizeof why);

        kafka_error(fatal, why, "given up", &b->reason);
        b->state = OM_BUS_FAILED;
        kafka_sends_fail(b);
        b->events->state(b->core, OM_BUS_FAILED, &b->reason);
}

static void on_error(rd_kafka_t *rk, int err, const char *text, void *opaque) {
        struct om_bus *b = opaque;

        if (b->closing)
                return;
        if (err == RD_KAFKA_RESP_ERR__FATAL) {
                for (unsigned i = 0; i < b->n_retired; i++)
                        if (b->retired[i].rk == rk)
                                return;
                if (rk != b->producer || !renew_producer(b, rk))
                        kafka_give_up(b, rk);
                return;
        }
        if (err != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
                kafka_error((rd_kafka_resp_err_t) err, text, b->where, &b->last_error);
        if (err == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || err == RD_KAFKA_RESP_ERR__TRANSPORT || b->state == OM_BUS_CONNECTING)
                kafka_link_suspect(b);
}

enum { JOIN_GROUP = 11 }; /* the request's key in Kafka's protocol */

/* Between a member's JoinGroup and its answer a commit would still name the old generation, and the broker's refusal makes the library take
 * all partitions for lost: so commits wait. These are called on threads of the library. */
static rd_kafka_resp_err_t on_request_sent(
        rd_kafka_t *rk, int fd, const char *broker, int32_t id, int16_t key, int16_t version, int32_t corr, size_t size, void *opaque) {
        struct om_bus *b = opaque;

        if (key == JOIN_GROUP)
                atomic_store(&b->joining, true);
        return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static rd_kafka_resp_err_t on_response(rd_kafka_t *rk, int fd, const char *broker, int32_t id, int16_t key, int16_t version, int32_t corr,
        size_t size, int64_t rtt, rd_kafka_resp_err_t err, void *opaque) {
        struct om_bus *b = opaque;

        if (key == JOIN_GROUP && err) {
                atomic_store(&b->join_unanswered, true);
                om_host_log(
                        b->host, OM_LOG_DEBUG, "Kafka: a request to join the consumer group was not answered: %s", rd_kafka_err2str(err));
        }
        return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static rd_kafka_resp_err_t on_new(rd_kafka_t *rk, const rd_kafka_conf_t *conf, void *opaque, char *why, size_t size) {
        rd_kafka_resp_err_t err = rd_kafka_interceptor_add_on_request_sent(rk, "omnidaemon", on_request_sent, opaque);

        return err ? err : rd_kafka_interceptor_add_on_response_received(rk, "omnidaemon", on_response, opaque);
}

rd_kafka_t *kafka_handle(struct om_bus *b, enum handle_use use, const char *const (*properties)[2], struct om_error *e) {
        rd_kafka_conf_t *c = rd_kafka_conf_dup(b->conf);
        bool produces = use == HANDLE_SENDS || use == HANDLE_TRANSACTS;
        char why[300] = "";
        rd_kafka_t *rk;
        int r = 0;

        for (; properties && (*properties)[0] && !r; properties++)
                r = kafka_conf_set(c, (*properties)[0], (*properties)[1], e);
        if (!r && produces)
                r = kafka_conf_set_int(c, "message.max.bytes", b->settings.max_message_bytes, e);
        if (r < 0) {
                rd_kafka_conf_destroy(c);
                return NULL;
        }
        rd_kafka_conf_set_opaque(c, b);
        rd_kafka_conf_set_log_cb(c, log_it);
        if (use != HANDLE_TRANSACTS && use != HANDLE_CALL)
                rd_kafka_conf_set_error_cb(c, on_error);
        if (use == HANDLE_MEMBER) {
                rd_kafka_conf_set_rebalance_cb(c, kafka_rebalanced);
                rd_kafka_conf_interceptor_add_on_new(c, "omnidaemon", on_new, b);
        }
        if (produces)
                rd_kafka_conf_set_dr_msg_cb(c, use == HANDLE_SENDS ? kafka_delivered : kafka_txn_delivered);
        rk = rd_kafka_new(produces ? RD_KAFKA_PRODUCER : RD_KAFKA_CONSUMER, c, why, sizeof why);
        if (!rk) {
                rd_kafka_conf_destroy(c);
                om_error_set(e, OM_INVALID, "Kafka: %s", why);
        }
        return rk;
}

void kafka_watch(struct om_bus *b, rd_kafka_queue_t *q, uint32_t code) {
        rd_kafka_queue_io_event_enable(q, b->pipe[1], &code, sizeof code);
}

static int make_producer(struct om_bus *b, struct om_error *e) {
        static const char *const properties[][2] = { { "enable.idempotence", "true" }, { "acks", "all" }, { NULL, NULL } };

        rd_kafka_t *rk = kafka_handle(b, HANDLE_SENDS, properties, e);

        if (!rk)
                return -EINVAL;
        b->producer = rk;
        if (!b->asker)
                b->asker = rk;
        b->producer_queue = rd_kafka_queue_get_main(b->producer);
        kafka_watch(b, b->producer_queue, CODE_PRODUCER);
        return 0;
}

int kafka_member(struct om_bus *b, struct om_error *e) {
        char session[24], heartbeat[24];
        const char *const properties[][2] = { { "group.id", b->group_id }, { "group.instance.id", b->instance },
                { "partition.assignment.strategy", "cooperative-sticky" }, { "enable.auto.commit", "false" },
                { "enable.auto.offset.store", "false" }, { "session.timeout.ms", session }, { "heartbeat.interval.ms", heartbeat },
                { "max.poll.interval.ms", "86400000" }, { NULL, NULL } };

        if (b->member)
                return 0;
        snprintf(session, sizeof session, "%lld", (long long) b->settings.session_timeout_ms);
        snprintf(heartbeat, sizeof heartbeat, "%lld",
                (long long) (b->settings.session_timeout_ms < 8000 ? b->settings.session_timeout_ms / 4 : 2000));
        b->member = kafka_handle(b, HANDLE_MEMBER, properties, e);
        if (!b->member)
                return -EINVAL;
        rd_kafka_poll_set_consumer(b->member);
        b->member_queue = rd_kafka_queue_get_consumer(b->member);
        kafka_watch(b, b->member_queue, CODE_MEMBER);
        return 0;
}

struct lane *kafka_lane(struct om_bus *b, unsigned i, struct om_error *e) {
        static const char *const properties[][2] = { { "enable.auto.commit", "false" }, { "enable.auto.offset.store", "false" },
                { "enable.partition.eof", "true" }, { "auto.offset.reset", "earliest" }, { "isolation.level", "read_committed" },
                { NULL, NULL } };
        struct lane *l;

        while (b->n_lanes <= i) {
                if (b->n_lanes == LANES_MAX || !(l = calloc(1, sizeof *l))) {
                        om_error_set(e, OM_LIMIT, "Kafka: at most %d groups of one topic in one daemon", LANES_MAX);
                        return NULL;
                }
                l->rk = kafka_handle(b, HANDLE_READS, properties, e);
                if (!l->rk) {
                        free(l);
                        return NULL;
                }
                l->main = rd_kafka_queue_get_main(l->rk);
                kafka_watch(b, l->main, CODE_LANE + b->n_lanes);
                l->wake = rd_kafka_topic_new(l->rk, b->wake->kname, NULL);
                l->queue = rd_kafka_queue_new(l->rk);
                kafka_watch(b, l->queue, CODE_LANE + b->n_lanes);
                l->since_ms = om_clock_ms();
                if (l->wake)
                        rd_kafka_consume_start_queue(l->wake, 0, RD_KAFKA_OFFSET_END, l->queue);
                b->lanes[b->n_lanes++] = l;
        }
        return b->lanes[i];
}

static void wake_sent(struct send *s, int status, const char *why) { s->bus->heard_ms = om_clock_ms(); }
static void wake_free(struct send *s) {
        struct om_bus *b = s->bus;

        b->waking = false;
        if (b->wake_again && !b->closing) {
                b->wake_again = false;
                kafka_wake(b);
        }
}

void kafka_wake(struct om_bus *b) {
        if (b->waking) {
                b->wake_again = true;
                return;
        }
        b->waking = true;
        b->wake_send = (struct send){ .bus = b, .topic = b->wake, .partition = 0, .done = wake_sent, .free = wake_free };
        kafka_send(&b->wake_send);
}

/* -- what came --------------------------------------------------------------------------------------------------------- */

static void lane_poll(struct om_bus *b, struct lane *l) {
        rd_kafka_message_t *m[64];
        bool was = l->ready;
        ssize_t n;

        while ((n = rd_kafka_consume_batch_queue(l->queue, 0, m, 64)) > 0)
                for (ssize_t i = 0; i < n; i++) {
                        l->ready |= !m[i]->err || m[i]->err == RD_KAFKA_RESP_ERR__PARTITION_EOF;
                        rd_kafka_message_destroy(m[i]);
                }
        rd_kafka_poll(l->rk, 0);
        if (l->ready && !was)
                kafka_lane_ready(b, l);
}

static void serve(struct om_bus *b, uint32_t code) {
        if (b->closing && code != CODE_MEMBER && code != CODE_PRODUCER)
                return;
        if (code == CODE_PRODUCER) {
                rd_kafka_poll(b->producer, 0);
                for (unsigned i = 0; i < b->n_retired; i++)
                        rd_kafka_poll(b->retired[i].rk, 0);
        } else if (code == CODE_MEMBER)
                kafka_member_poll(b);
        else if (code < CODE_PART && code - CODE_LANE < b->n_lanes)
                lane_poll(b, b->lanes[code - CODE_LANE]);
        else if (code >= CODE_PART)
                kafka_part_readable(b, code - CODE_PART);
}

static void on_readable(evutil_socket_t fd, short what, void *ctx) {
        static uint32_t codes[16384];
        struct om_bus *b = ctx;
        ssize_t n = read(fd, codes, sizeof codes);

        if (n == (ssize_t) sizeof codes) { /* as much as a pipe holds: some codes may not have found room */
                for (uint32_t code = 0; code < CODE_LANE + b->n_lanes; code++)
                        serve(b, code);
                for (struct part *p = b->parts_by_slot; p; p = p->hh.next)
                        for (uint32_t i = 0; i < 2; i++)
                                serve(b, CODE_PART + 2 * p->slot + i);
        } else
                for (ssize_t i = 0; i < n / (ssize_t) sizeof codes[0]; i++)
                        serve(b, codes[i]);
        kafka_pump_soon(b);
}

/* -- whether the brokers are there ---------------------------------------------------------------------------------------- */

/* What brokers that are far away are given: a multiple of what they take. */
static int patience_ms(int ms, int64_t slow_ms) {
        int64_t slow = slow_ms < PROBE_MAX_MS ? slow_ms : PROBE_MAX_MS;

        return slow > ms ? (int) slow : ms;
}

static void probe_run(struct call *c) {
        struct om_bus *b = c->bus;
        const struct rd_kafka_metadata *md = NULL;
        int64_t began_ms = om_clock_ms();
        rd_kafka_resp_err_t err = rd_kafka_metadata(b->asker, 0, NULL, &md, b->probe_limit_ms);

        b->probe_took_ms = om_clock_ms() - began_ms;
        if (err) {
                c->status = kafka_error(err, NULL, b->where, &c->error);
                return;
        }
        rd_kafka_metadata_destroy(md);
        if (b->wake->state != TOPIC_THERE) {
                struct making m = { .kname = b->wake->kname, .kind = KAFKA_WAKE, .partitions = 1 };

                c->status = kafka_make_topics(b, &m, 1, &c->error);
                if (!c->status && m.status) {
                        c->status = m.status;
                        c->error = m.error;
                }
        }
}

static void probe_soon(struct om_bus *b, int64_t ms) {
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

        evtimer_add(b->probe_timer, &tv);
}

static void went_down(struct om_bus *b, const struct om_error *e) {
        bool same = b->state == OM_BUS_CONNECTING && b->told && strcmp(b->reason.message, e->message) == 0;

        b->state = OM_BUS_CONNECTING;
        b->reason = *e;
        b->told = true;
        kafka_sends_fail(b);
        if (!same)
                b->events->state(b->core, OM_BUS_CONNECTING, e);
}

/* Whether it is known how slow the brokers are. A probe may have been waiting until they were there, or until they had got going: only if
 * MEASURES in a row take long they are far away. While they are served from there, they may get nearer, but not farther. */
static bool measured(struct om_bus *b) {
        int64_t took_ms = b->probe_took_ms;

        if (took_ms <= SILENT_MS) {
                b->n_measured = 0;
                b->slow_ms = 0;
                return true;
        }
        if (b->state == OM_BUS_READY) {
                b->slow_ms = b->slow_ms < took_ms ? b->slow_ms : took_ms;
                return true;
        }
        b->slow_ms = b->n_measured && b->slow_ms < took_ms ? b->slow_ms : took_ms;
        if (++b->n_measured < MEASURES)
                return false;
        b->n_measured = 0;
        return true;
}

static void probe_done(struct call *c) {
        struct om_bus *b = c->bus;

        b->probing = false;
        if (b->closing || b->state == OM_BUS_FAILED)
                return;
        if (c->status < 0) {
                b->n_measured = 0;
                b->slow_ms = 0;
                if (b->state != OM_BUS_READY && b->probe_took_ms >= b->probe_limit_ms)
                        b->probe_grown_ms = 2 * b->probe_limit_ms;
                /* What the connection said is more than that nobody answered. */
                bool known = b->last_error.message[0] && c->status == -EAGAIN;

                went_down(b, known ? &b->last_error : &c->error);
                probe_soon(b, om_backoff_ms(50, 1000, b->probe_n++ > 5 ? 5 : b->probe_n));
                return;
        }
        b->heard_ms = om_clock_ms();
        b->probe_n = 0;
        b->probe_grown_ms = 0;
        if (!measured(b)) {
                probe_soon(b, 0);
                return;
        }
        b->last_error = (struct om_error) OM_ERROR_INIT;
        if (b->wake->state != TOPIC_THERE)
                b->wake->state = TOPIC_THERE;
        if (b->state != OM_BUS_READY) {
                b->state = OM_BUS_READY;
                b->events->state(b->core, OM_BUS_READY, NULL);
                kafka_commit_soon(b);
                kafka_pump_soon(b);
                kafka_on_wake_timer(-1, 0, b);
        }
}

static void probe(struct om_bus *b, bool by_silence) {
        struct om_error e;

        if (b->probing || b->closing || b->state == OM_BUS_FAILED)
                return;
        b->probing = true;
        b->probe_limit_ms = b->state == OM_BUS_READY ? SUSPECT_MS : PROBE_MS;
        if (by_silence || b->state != OM_BUS_READY)
                b->probe_limit_ms = patience_ms(b->probe_limit_ms, 2 * b->slow_ms);
        if (b->probe_limit_ms < b->probe_grown_ms)
                b->probe_limit_ms = b->probe_grown_ms < PROBE_MAX_MS ? b->probe_grown_ms : PROBE_MAX_MS;
        b->probe.run = probe_run;
        b->probe.done = probe_done;
        if (kafka_call(b, WORKER_PROBE, &b->probe, &e) < 0) {
                b->probing = false;
                probe_soon(b, 1000);
        }
}
static void on_probe_timer(evutil_socket_t fd, short what, void *ctx) { probe(ctx, true); }

void kafka_link_suspect(struct om_bus *b) {
        if (b->state == OM_BUS_READY)
                probe(b, false);
}

/* While something is under way: whether it is answered. */
static void on_beat(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        int64_t now = om_clock_ms(), since = b->heard_ms;

        if (!b->flying || b->closing)
                return;
        if (b->flying->sent_ms > since)
                since = b->flying->sent_ms;
        if (now - since >= patience_ms(SILENT_MS, b->slow_ms * 3 / 2) && b->state == OM_BUS_READY)
                probe(b, true);
        evtimer_add(b->beat, (&(struct timeval){ 0, BEAT_MS * 1000 }));
}

/* -- opening and closing ---------------------------------------------------------------------------------------------------- */

int kafka_link_open(struct om_bus *b, struct om_error *e) {
        int r;

        if (pipe2(b->pipe, O_CLOEXEC | O_NONBLOCK) < 0)
                return om_error_set_errno(e, errno, "Kafka: pipe");
        b->readable = event_new(b->host->base, b->pipe[0], EV_READ | EV_PERSIST, on_readable, b);
        b->beat = evtimer_new(b->host->base, on_beat, b);
        b->probe_timer = evtimer_new(b->host->base, on_probe_timer, b);
        if (!b->readable || !b->beat || !b->probe_timer || event_add(b->readable, NULL) < 0)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        r = make_producer(b, e);
        if (!r)
                probe_soon(b, 0);
        return r;
}

/* The member leaves: told by itself, for a static member that merely ends is waited for. */
static void leave(struct om_bus *b) {
        int64_t by = om_clock_ms() + 1500;

        rd_kafka_unsubscribe(b->member);
        while (om_clock_ms() < by) {
                rd_kafka_message_t *m = rd_kafka_consumer_poll(b->member, 10);
                char *id = rd_kafka_memberid(b->member);
                bool left = !id || !*id;

                if (m)
                        rd_kafka_message_destroy(m);
                if (id)
                        rd_kafka_mem_free(b->member, id);
                if (left)
                        break;
        }
}

/* Each handle ends on a thread behind what may still use it there: the member, then the lanes and what calls the producer, the producer. */
static void end_member(struct call *c) {
        struct om_bus *b = c->bus;

        if (b->member) {
                leave(b);
                rd_kafka_queue_destroy(b->member_queue);
                rd_kafka_destroy_flags(b->member, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        }
}

static void end_lanes(struct call *c) {
        struct om_bus *b = c->bus;

        for (unsigned i = 0; i < b->n_lanes; i++) {
                struct lane *l = b->lanes[i];

                if (l->wake) {
                        rd_kafka_consume_stop(l->wake, 0);
                        rd_kafka_topic_destroy(l->wake);
                }
                rd_kafka_queue_destroy(l->queue);
                rd_kafka_queue_destroy(l->main);
                rd_kafka_destroy_flags(l->rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
                free(l);
        }
}

static void end_producer(struct call *c) {
        struct om_bus *b = c->bus;

        if (b->producer) {
                rd_kafka_queue_destroy(b->producer_queue);
                rd_kafka_destroy(b->producer);
        }
        for (unsigned i = 0; i < b->n_retired; i++) {
                rd_kafka_queue_destroy(b->retired[i].queue);
                rd_kafka_destroy(b->retired[i].rk);
        }
}

static void worker_stopped(struct om_post *post);
static void stop_next(struct om_bus *b) {
        for (; b->close_step < N_WORKERS; b->close_step++)
                if (b->workers[b->close_step]) {
                        b->closed.fn = worker_stopped;
                        b->host->ops->worker_stop(b->workers[b->close_step++], &b->closed);
                        return;
                }
        while (b->flying) { /* the library has forgotten them */
                struct send *s = b->flying;

                DL_DELETE(b->flying, s);
                s->flying = false;
                s->free(s);
        }
        b->close_op->done(b->close_op, 0, NULL);
}
static void worker_stopped(struct om_post *post) { stop_next(CONTAINER(post, struct om_bus, closed)); }

static void end_next(struct call *c) {
        static const struct {
                enum worker_id worker;
                void (*run)(struct call *c);
        } ends[] = { { WORKER_MEMBER, end_member }, { WORKER_CALLS, end_lanes }, { WORKER_PROBE, end_producer } };
        struct om_bus *b = CONTAINER(c, struct om_bus, end);
        struct om_error ignored;

        while (b->close_step < (int) (sizeof ends / sizeof ends[0])) {
                int step = b->close_step++;

                b->end.bus = b;
                b->end.run = ends[step].run;
                b->end.done = end_next;
                if (kafka_call(b, ends[step].worker, &b->end, &ignored) == 0)
                        return;
                b->end.run(&b->end); /* no thread to wait on: the loop waits */
        }
        b->close_step = 0;
        stop_next(b);
}

void kafka_link_close(struct om_bus *b) {
        b->member_closed = true;
        event_del(b->readable);
        event_del(b->beat);
        event_del(b->probe_timer);
        for (struct topic *t = b->topics; t; t = t->hh.next)
                if (t->rkt) {
                        rd_kafka_topic_destroy(t->rkt);
                        t->rkt = NULL;
                }
        end_next(&b->end);
}
