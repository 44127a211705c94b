/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a lease ends: ack, fail, or the daemon's own verdict, and the stages of carrying it out.
 *
 *     save the result ─▶ publish outputs ─▶ settle on the bus ─▶ answer
 *      (results.c)        (dispatch_publish.c) (dispatch_settle.c)
 *
 * Always true:
 *   - a stage begins when the one before is durable, so a death between two repeats and never loses;
 *   - every stage gathers what one turn brings: a thousand acks in a turn are one write of results and one settlement;
 *   - a verdict that cannot be carried out ends in one of three ways. A client that waits for the answer gets the error, and the lease goes
 *     on. A notification is repeated by the daemon for call_timeout_ms, then the lease goes on, with a line in the log. The daemon's own
 *     verdicts are repeated for as long as the daemon lives: a lease whose worker is gone is never forgotten.
 *
 * Called by methods_task.c and by the dispatcher's other files. Loop thread.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "dispatch_internal.h"

enum { PARK_BASE_MS = 100, PARK_MAX_MS = 5000 };

static void refused(struct om_lease *lease, const struct om_error *e);
static void stage_publish(struct om_lease *lease);

/* -- the request behind it ----------------------------------------------------------------------------------------- */

struct om_ack *om_ack_new(struct om_dispatch *d, struct om_request *req, bool several) {
        struct om_ack *ack = d->free_acks;
        struct om_error e;

        if (ack) {
                d->free_acks = ack->next;
        } else {
                ack = calloc(1, sizeof *ack);
                if (!ack) {
                        om_error_set_errno(&e, ENOMEM, "%s", req->method->name);
                        om_request_error(req, &e);
                        return NULL;
                }
        }
        ack->req = req;
        ack->d = d;
        ack->open = 1;
        ack->several = several;
        ack->error.kind = OM_OK;
        om_buf_clear(&ack->failed);
        return ack;
}

void om_ack_fail(struct om_ack *ack, int64_t number, const struct om_error *e) {
        if (ack->error.kind == OM_OK)
                ack->error = *e;
        if (ack->several) {
                if (ack->failed.len)
                        om_buf_putc(&ack->failed, ',');
                om_buf_i64(&ack->failed, number);
        }
        if (ack->req->notification)
                om_log(OM_LOG_DEBUG, "%s of delivery %lld: %s", ack->req->method->name, (long long) number, e->message);
}

static void answer(struct om_ack *ack) {
        struct om_request *req = ack->req;
        struct om_buf data = OM_BUF_INIT;

        if (ack->error.kind == OM_OK) {
                om_request_ok(req);
        } else if (!ack->several) {
                om_request_error(req, &ack->error);
        } else {
                om_buf_lit(&data, ",\"deliveries\":[");
                om_buf_put_span(&data, om_buf_span(&ack->failed));
                om_buf_putc(&data, ']');
                om_request_error_data(req, &ack->error, om_buf_ok(&data) ? om_buf_span(&data) : OM_SPAN_NONE);
                om_buf_deinit(&data);
        }
        om_buf_shrink(&ack->failed, 0);
        ack->next = ack->d->free_acks;
        ack->d->free_acks = ack;
}

void om_ack_release(struct om_ack *ack) {
        if (--ack->open == 0)
                answer(ack);
}

/* The lease's part of the request is through. */
static void tell(struct om_lease *lease, const struct om_error *e) {
        struct om_ack *ack = lease->ack;

        if (!ack)
                return;
        lease->ack = NULL;
        if (e)
                om_ack_fail(ack, (int64_t) lease->number, e);
        om_ack_release(ack);
}

/* -- notes --------------------------------------------------------------------------------------------------------- */

static struct om_span note_put(char **p, struct om_span s) {
        struct om_span copy = { *p, s.len };

        if (!s.p)
                return OM_SPAN_NONE;
        memcpy(*p, s.p, s.len);
        *p += s.len;
        return copy;
}

/* Keeps what later stages need of a verdict whose worker or frame will be gone by then. */
static int note_keep(struct om_lease *lease, struct om_span result, struct om_span error, struct om_span type) {
        struct om_span worker = lease->sub ? om_span_of(lease->sub->worker) : OM_SPAN("");
        struct om_note *note = malloc(sizeof *note + result.len + error.len + type.len + worker.len);
        char *p;

        if (!note)
                return -ENOMEM;
        p = note->text;
        note->letter = (struct om_dead_letter){
                .record = lease->delivery->record,
                .attempts = lease->delivery->attempt,
                .failed_ms = om_now_ms(),
        };
        note->result = note_put(&p, result);
        note->letter.error = note_put(&p, error);
        note->letter.error_type = note_put(&p, type);
        note->letter.worker = note_put(&p, worker);
        free(lease->note);
        lease->note = note;
        return 0;
}

static void note_drop(struct om_lease *lease) {
        free(lease->note);
        om_outputs_free(lease->outputs);
        lease->note = NULL;
        lease->outputs = NULL;
}

/* -- events and counters ------------------------------------------------------------------------------------------- */

static void emit(struct om_lease *lease, enum om_event event, struct om_span detail) {
        struct om_dispatch *d = lease->group->d;

        if (om_watch_mask(d->core->watch) & event)
                om_watch_emit(d->core->watch, event,
                        &(struct om_watch_event){ .topic = lease->group->topic,
                                .agent = lease->group->agent,
                                .id = om_record_id(lease->delivery->record),
                                .detail = detail });
}

static void count_failed(struct om_lease *lease, struct om_span message, struct om_span type, bool retry) {
        struct om_group *g = lease->group;
        struct om_buf detail = OM_BUF_INIT;

        if (g->topic_metrics)
                g->topic_metrics->failed++;
        if (g->agent_metrics)
                g->agent_metrics->failed++;
        om_metrics_changed(g->d->core->metrics);
        if (!(om_watch_mask(g->d->core->watch) & OM_EVENT_FAIL))
                return;
        om_buf_lit(&detail, ",\"attempt\":");
        om_buf_u64(&detail, lease->delivery->attempt);
        om_buf_lit(&detail, ",\"error\":");
        om_buf_json_span(&detail, message);
        om_buf_lit(&detail, ",\"error_type\":");
        om_buf_json_span(&detail, type);
        om_buf_puts(&detail, retry ? ",\"retry\":true" : ",\"retry\":false");
        if (om_buf_ok(&detail))
                emit(lease, OM_EVENT_FAIL, om_buf_span(&detail));
        om_buf_deinit(&detail);
}

static void count_latency(struct om_agent_metrics *m, uint64_t delivered_ns) {
        if (!m->latency)
                m->latency = calloc(1, sizeof *m->latency);
        if (m->latency)
                om_histogram_add(m->latency, (om_clock_ns() - delivered_ns) / 1000);
}

/* A verdict holds. */
static void count_settled(struct om_lease *lease) {
        struct om_topic_metrics *t = lease->group->topic_metrics;
        struct om_agent_metrics *a = lease->group->agent_metrics;

        if (lease->verdict == OM_ACK) {
                if (t)
                        t->acked++;
                if (a) {
                        a->processed++;
                        count_latency(a, lease->delivered_ns);
                }
                emit(lease, OM_EVENT_ACK, OM_SPAN_NONE);
        } else if (lease->verdict == OM_RETRY) {
                if (t)
                        t->retried++;
        } else if (lease->verdict == OM_DEAD) {
                if (t)
                        t->dead++;
                if (a)
                        a->dead++;
                emit(lease, OM_EVENT_DEAD_LETTER, OM_SPAN_NONE);
        }
        om_metrics_changed(lease->group->d->core->metrics);
}

/* -- stages -------------------------------------------------------------------------------------------------------- */

static struct om_lease *lease_of_save(struct om_result_save *save) { return (void *) ((char *) save - offsetof(struct om_lease, save)); }

static void saved(struct om_result_save *save, int status, const struct om_error *error) {
        struct om_lease *lease = lease_of_save(save);

        if (status < 0 && lease->verdict == OM_DEAD && !lease->ack) {
                /* The dead letter itself keeps the error; a storage that is away must not keep the task from it. */
                om_log_error(OM_LOG_WARNING, error, "saving the record of a dead letter");
                status = 0;
        }
        if (status < 0)
                refused(lease, error);
        else if (lease->verdict == OM_ACK)
                stage_publish(lease);
        else
                om_settle(lease);
}

static void stage_save(struct om_lease *lease, struct om_span result) {
        struct om_group *g = lease->group;
        const struct om_note *note = lease->note;

        lease->stage = OM_STAGE_SAVE;
        if (lease->verdict == OM_ACK && !g->config.save_results) {
                stage_publish(lease);
                return;
        }
        lease->save.done = saved;
        om_results_save(g->d->core->results,
                &(struct om_result){
                        .record = lease->delivery->record,
                        .agent = g->agent,
                        .worker = note ? note->letter.worker : om_span_of(lease->sub ? lease->sub->worker : ""),
                        .attempts = lease->delivery->attempt,
                        .result = lease->verdict == OM_ACK ? result : OM_SPAN_NONE,
                        .error = note ? note->letter.error : OM_SPAN_NONE,
                        .error_type = note ? note->letter.error_type : OM_SPAN_NONE,
                        .at_ms = om_now_ms(),
                },
                &lease->save);
}

static void outputs_published(struct om_publish_ticket *ticket) {
        struct om_outputs *o = (void *) ((char *) ticket - offsetof(struct om_outputs, ticket));
        struct om_error e;

        for (size_t i = 0; i < o->n; i++) {
                const struct om_outcome *outcome = &ticket->outcomes[i];

                if (outcome->status == 0)
                        continue;
                om_error_set(&e, om_kind_of_errno(outcome->status), "publishing the output on %.*s: %s", OM_PRI(o->tasks[i].topic),
                        outcome->why ? outcome->why : strerror(-outcome->status));
                refused(o->lease, &e);
                return;
        }
        om_settle(o->lease);
}

static void stage_publish(struct om_lease *lease) {
        struct om_dispatch *d = lease->group->d;
        struct om_outputs *o = lease->outputs;
        struct om_error e = OM_ERROR_INIT;

        lease->stage = OM_STAGE_PUBLISH;
        if (!o) {
                om_settle(lease);
                return;
        }
        if (d->core->bus_ops->capabilities & OM_BUS_EXACTLY_ONCE) {
                if (om_outputs_bus_tasks(o) == 0) {
                        om_settle(lease);
                } else {
                        om_error_set_errno(&e, ENOMEM, "the outputs of an ack");
                        refused(lease, &e);
                }
                return;
        }
        o->ticket.done = outputs_published;
        if (om_dispatch_publish(d, &o->ticket, o->tasks, &e) < 0)
                refused(lease, &e);
}

/* -- the end ------------------------------------------------------------------------------------------------------- */

static void park_arm(struct om_dispatch *d) {
        int64_t ms = om_backoff_ms(PARK_BASE_MS, PARK_MAX_MS, d->park_tries < 16 ? d->park_tries : 16);
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        event_add(d->park_timer, &tv);
}

static void park(struct om_lease *lease) {
        struct om_dispatch *d = lease->group->d;

        om_lease_append(&d->parked, lease);
        if (!event_pending(d->park_timer, EV_TIMEOUT, NULL))
                park_arm(d);
}

void om_starved(struct om_dispatch *d) {
        d->starved = true;
        if (!event_pending(d->park_timer, EV_TIMEOUT, NULL))
                park_arm(d);
}

static void feed(struct om_dispatch *d) {
        struct om_group *g, *tmp;

        d->starved = false;
        HASH_ITER (hh, d->groups, g, tmp)
                om_group_touch(g);
}

static void resume(struct om_lease *lease) {
        if (lease->stage == OM_STAGE_SAVE)
                stage_save(lease, lease->note ? lease->note->result : OM_SPAN_NONE);
        else if (lease->stage == OM_STAGE_PUBLISH)
                stage_publish(lease);
        else
                om_settle(lease);
}

void om_parked_run(struct om_dispatch *d) {
        unsigned n = d->parked.n; /* those that are refused at once are parked behind */

        event_del(d->park_timer);
        d->park_tries++;
        while (n--) {
                struct om_lease *lease = d->parked.first;

                om_lease_unlink(&d->parked, lease);
                resume(lease);
        }
        if (d->starved)
                feed(d);
        if (d->parked.first)
                park_arm(d);
}

static void on_park_timer(evutil_socket_t fd, short what, void *ctx) { om_parked_run(ctx); }

/* At the end of a stop: what the bus does not take now it hands out again by itself when this daemon is gone. */
void om_parked_drop(struct om_dispatch *d) {
        if (d->parked.first)
                om_log(OM_LOG_WARNING, "stopping: the bus did not take %u verdicts; it will hand out these tasks again", d->parked.n);
        event_del(d->park_timer);
        while (d->parked.first) {
                struct om_lease *lease = d->parked.first;

                om_lease_unlink(&d->parked, lease);
                om_lease_take(lease);
                om_lease_free(lease);
        }
}

/* The lease is over, whoever decided it. */
static void over(struct om_lease *lease, const struct om_error *e) {
        tell(lease, e);
        om_lease_take(lease);
        om_lease_free(lease);
}

void om_lease_settled(struct om_lease *lease, int status, const struct om_error *e) {
        if (status == 0) {
                lease->group->d->park_tries = 0;
                count_settled(lease);
                over(lease, NULL);
        } else if (status == -ESTALE) {
                over(lease, e);
        } else {
                refused(lease, e);
        }
}

static void refused(struct om_lease *lease, const struct om_error *e) {
        struct om_dispatch *d = lease->group->d;

        if (!lease->ack && lease->give_up_ms > om_clock_ms()) {
                park(lease);
                return;
        }
        if (!lease->ack)
                om_log_error(OM_LOG_WARNING, e, "an ack or fail without reply could not be carried out, the task stays leased");
        tell(lease, e);
        if (!lease->sub) {
                om_lease_lost(lease, "worker_lost", "the connection closed before the ack was durable");
        } else if (d->draining) {
                om_lease_release(lease);
        } else {
                note_drop(lease);
                om_lease_hold(lease);
        }
}

/* -- a client's verdicts ------------------------------------------------------------------------------------------- */

static int held(struct om_ack *ack, int64_t number, struct om_lease **ret) {
        struct om_error e = OM_ERROR_INIT;
        int r = om_lease_find(ack->req->session, number, ret, &e);

        if (r == 0 && (*ret)->state != OM_LEASE_HELD)
                r = om_error_set(&e, OM_CONFLICT, "delivery %lld is being acknowledged already", (long long) number);
        if (r < 0)
                om_ack_fail(ack, number, &e);
        return r;
}

static void finishing(struct om_lease *lease, struct om_ack *ack, enum om_verdict verdict) {
        bool notification = ack->req->notification;

        om_subscription_suspect(lease->sub, false);
        om_lease_unhold(lease);
        lease->state = OM_LEASE_FINISHING;
        lease->verdict = verdict;
        lease->give_up_ms = notification ? om_clock_ms() + lease->group->d->core->settings->call_timeout_ms : 0;
        lease->ack = notification ? NULL : ack;
        if (!notification)
                ack->open++;
}

void om_dispatch_ack(struct om_dispatch *d, struct om_ack *ack, int64_t number, struct om_span result, struct om_span publish) {
        struct om_error e = OM_ERROR_INIT;
        struct om_lease *lease;
        int r;

        if (held(ack, number, &lease) < 0)
                return;
        if (!result.p)
                result = OM_SPAN("null");
        r = om_outputs_new(lease, publish, result, &lease->outputs, &e);
        if (r == 0 && ack->req->notification && note_keep(lease, result, OM_SPAN_NONE, OM_SPAN_NONE) < 0)
                r = om_error_set_errno(&e, ENOMEM, "an ack");
        if (r < 0) {
                note_drop(lease);
                om_ack_fail(ack, number, &e);
                return;
        }
        finishing(lease, ack, OM_ACK);
        stage_save(lease, result);
}

void om_dispatch_fail(struct om_dispatch *d, struct om_ack *ack, int64_t number, const struct om_fail *fail) {
        struct om_error e = OM_ERROR_INIT;
        struct om_lease *lease;
        struct om_agent_config *config;
        bool retry;

        if (held(ack, number, &lease) < 0)
                return;
        config = &lease->group->config;
        retry = fail->retry && lease->delivery->attempt <= config->dlq_retry_limit;
        if (!retry && note_keep(lease, OM_SPAN_NONE, fail->message, fail->type) < 0) {
                om_error_set_errno(&e, ENOMEM, "a failure");
                om_ack_fail(ack, number, &e);
                return;
        }
        count_failed(lease, fail->message, fail->type, retry);
        finishing(lease, ack, retry ? OM_RETRY : OM_DEAD);
        if (!retry) {
                stage_save(lease, OM_SPAN_NONE);
                return;
        }
        lease->due_ms = om_now_ms() +
                (fail->delay_ms >= 0 ? fail->delay_ms
                                     : om_backoff_ms(config->retry_backoff_ms, config->retry_backoff_max_ms, lease->delivery->attempt - 1));
        om_settle(lease);
}

void om_dispatch_extend(struct om_dispatch *d, struct om_ack *ack, int64_t number) {
        struct om_error e = OM_ERROR_INIT;
        struct om_lease *lease;

        if (om_lease_find(ack->req->session, number, &lease, &e) < 0)
                om_ack_fail(ack, number, &e);
        else if (lease->state == OM_LEASE_HELD)
                om_lease_touch(lease);
}

/* -- the daemon's own verdicts ------------------------------------------------------------------------------------- */

static void leave(struct om_lease *lease) {
        if (lease->state == OM_LEASE_WAITING)
                om_lease_unlink(&lease->group->waiting, lease);
        else if (lease->state == OM_LEASE_HELD)
                om_lease_unhold(lease);
        om_lease_take(lease);
        lease->state = OM_LEASE_SETTLING;
        lease->give_up_ms = INT64_MAX;
}

void om_lease_release(struct om_lease *lease) {
        leave(lease);
        lease->verdict = OM_RELEASE;
        om_settle(lease);
}

void om_lease_lost(struct om_lease *lease, const char *error_type, const char *message) {
        bool dead = lease->delivery->attempt > lease->group->config.dlq_retry_limit;

        /* Out of memory: a retry needs none. */
        note_drop(lease);
        if (dead && note_keep(lease, OM_SPAN_NONE, om_span_of(message), om_span_of(error_type)) < 0)
                dead = false;
        count_failed(lease, om_span_of(message), om_span_of(error_type), !dead);
        leave(lease);
        lease->verdict = dead ? OM_DEAD : OM_RETRY;
        lease->due_ms = om_now_ms();
        if (dead)
                stage_save(lease, OM_SPAN_NONE);
        else
                om_settle(lease);
}

void om_lease_unfit(struct om_lease *lease, const char *error_type, const char *message) {
        if (note_keep(lease, OM_SPAN_NONE, om_span_of(message), om_span_of(error_type)) < 0) {
                om_lease_release(lease);
                return;
        }
        count_failed(lease, om_span_of(message), om_span_of(error_type), false);
        leave(lease);
        lease->verdict = OM_DEAD;
        stage_save(lease, OM_SPAN_NONE);
}

int om_finish_init(struct om_dispatch *d) {
        d->park_timer = evtimer_new(om_loop_base(d->core->loop), on_park_timer, d);
        return d->park_timer ? 0 : -ENOMEM;
}

void om_finish_deinit(struct om_dispatch *d) {
        struct om_ack *next;

        if (d->park_timer)
                event_free(d->park_timer);
        for (struct om_ack *ack = d->free_acks; ack; ack = next) {
                next = ack->next;
                om_buf_deinit(&ack->failed);
                free(ack);
        }
        d->free_acks = NULL;
}
