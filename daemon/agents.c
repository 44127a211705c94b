/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registrations on their way, and what the storage keeps of them. What a client may ask for is registration.c.
 *
 * A registration goes through these steps, each one operation of the storage, none for a request that is refused:
 *
 *   read the record (its created_at stays) ─▶ read the setting (paused?) ─▶ write the record, when it differs ─▶ write the setting, when
 *   there is none ─▶ om_dispatch_register()
 *
 * What is always true:
 *   - serving does not depend on the storage: at a step that fails the registration is handed to the dispatcher at once, the agent is
 * marked unsaved, and when the storage is back the same steps are gone through again, ending with telling the dispatcher whether it is
 * paused;
 *   - what is remembered for that is one entry an agent that was registered here, and goes with its last worker once it is saved;
 *   - with a storage that several daemons share, a pause written by another daemon takes effect here within POLL_MS. No timer runs while no
 *     agent is known.
 *
 * Called by methods_agent.c, core.c. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>
#include "../proto/hash.h"

#include "agents.h"
#include "log.h"
#include "methods.h"
#include "registration.h"
#include "watch.h"

enum { POLL_MS = 3000 };

/* An agent that was registered here. */
struct entry {
        UT_hash_handle hh;
        bool paused;
        bool unsaved;       /* `head` is to be written when the storage is back */
        bool saving;        /* that is under way */
        bool idle;          /* nobody served it here at the last poll: at the next it goes */
        struct om_buf head; /* its record but for created_at, while unsaved */
        size_t topic_len, len;
        char key[]; /* topic, zero byte, agent */
};

struct om_agents {
        struct om_core *core;
        struct entry *entries;
        struct om_agent_deletion *deletions;
        struct event poll;
        bool polling;     /* a poll is under way */
        bool stopped;     /* none begins any more */
        bool unsaved;     /* some entry may be */
        uint64_t changes; /* of paused states here: a poll that began before one is void */
};

/* One registration on its way through the steps; in the arena of its call. */
struct registering {
        struct om_registration r;
        struct om_span head;    /* the record without its end */
        struct om_span record;  /* whole */
        struct om_span setting; /* key */
        bool has_setting;       /* the group has one: it is not written */
        bool again;             /* not a request's: the storage is back */
};

/* -- entries ------------------------------------------------------------------------------------------------------- */

static struct om_span topic_of(const struct entry *e) { return (struct om_span){ e->key, e->topic_len }; }
static struct om_span agent_of(const struct entry *e) { return (struct om_span){ e->key + e->topic_len + 1, e->len - e->topic_len - 1 }; }

static size_t make_key(char *key, struct om_span topic, struct om_span agent) {
        memcpy(key, topic.p, topic.len);
        key[topic.len] = '\0';
        memcpy(key + topic.len + 1, agent.p, agent.len);
        return topic.len + 1 + agent.len;
}

static struct entry *find(const struct om_agents *a, struct om_span topic, struct om_span agent) {
        char key[OM_TOPIC_MAX + 1 + OM_NAME_MAX];
        struct entry *e;
        size_t len;

        if (topic.len > OM_TOPIC_MAX || agent.len > OM_NAME_MAX)
                return NULL;
        len = make_key(key, topic, agent);
        HASH_FIND(hh, a->entries, key, len, e);
        return e;
}

static void start_polling(struct om_agents *a) {
        static const struct timeval tv = { .tv_sec = POLL_MS / 1000, .tv_usec = POLL_MS % 1000 * 1000 };

        bool needed = a->unsaved || (a->core->store_ops->capabilities & OM_STORE_SHARED && a->entries);

        if (needed && !a->stopped && a->core->store_state == OM_STORE_READY && !event_pending(&a->poll, EV_TIMEOUT, NULL))
                event_add(&a->poll, &tv);
}

static struct entry *find_or_make(struct om_agents *a, struct om_span topic, struct om_span agent) {
        struct entry *e = find(a, topic, agent);

        if (e)
                return e;
        e = calloc(1, sizeof *e + topic.len + 1 + agent.len);
        if (!e)
                return NULL;
        e->topic_len = topic.len;
        e->len = make_key(e->key, topic, agent);
        HASH_ADD_KEYPTR(hh, a->entries, e->key, e->len, e);
        if (!e->hh.tbl) {
                free(e);
                return NULL;
        }
        start_polling(a);
        return e;
}

static void drop(struct om_agents *a, struct entry *e) {
        HASH_DEL(a->entries, e);
        om_buf_deinit(&e->head);
        free(e);
}

/* Those that nobody serves here any more and that hold nothing unsaved. */
static void drop_idle(struct om_agents *a) {
        struct entry *e, *next;

        HASH_ITER (hh, a->entries, e, next) {
                unsigned workers = 0, leased = 0;

                if (e->unsaved)
                        continue;
                om_dispatch_count(a->core->dispatch, topic_of(e), agent_of(e), &workers, &leased);
                if (workers == 0 && e->idle)
                        drop(a, e);
                else
                        e->idle = workers == 0;
        }
}

void om_agents_forget(struct om_agents *a, struct om_span topic, struct om_span agent) {
        struct entry *e, *next;

        HASH_ITER (hh, a->entries, e, next)
                if (om_span_eq(topic_of(e), topic) && (!agent.p || om_span_eq(agent_of(e), agent)))
                        drop(a, e);
}

void om_agents_set_paused(struct om_agents *a, struct om_span topic, struct om_span agent, bool paused) {
        struct entry *e = find(a, topic, agent);

        a->changes++;
        if (e)
                e->paused = paused;
        om_dispatch_pause(a->core->dispatch, topic, agent, paused);
}

bool om_agents_is_paused(const struct om_agents *a, struct om_span topic, struct om_span agent) {
        const struct entry *e = find(a, topic, agent);

        return e && e->paused;
}

/* -- deletions ----------------------------------------------------------------------------------------------------- */

void om_agents_begin_deletion(struct om_agents *a, struct om_agent_deletion *d) { DL_APPEND(a->deletions, d); }
void om_agents_end_deletion(struct om_agents *a, struct om_agent_deletion *d) { DL_DELETE(a->deletions, d); }

static bool is_being_deleted(const struct om_agents *a, struct om_span topic, struct om_span agent) {
        const struct om_agent_deletion *d;

        DL_FOREACH (a->deletions, d)
                if (om_span_eq(d->topic, topic) && (!d->agent.p || om_span_eq(d->agent, agent)))
                        return true;
        return false;
}

/* -- pauses that were changed in the storage ------------------------------------------------------------------------------- */

struct poll {
        uint64_t changes; /* at its beginning */
};

static void on_polled(struct om_call *c, int status, const struct om_error *error) {
        struct om_agents *a = c->core->agents;
        const struct poll *poll = c->data;
        struct om_paused paused;
        struct entry *e, *next;

        a->polling = false;
        if (status == 0 && poll->changes == a->changes) {
                paused = om_paused_of(c);
                HASH_ITER (hh, a->entries, e, next) {
                        bool now = om_paused_has(&paused, topic_of(e), agent_of(e));

                        if (e->unsaved || now == e->paused)
                                continue;
                        e->paused = now;
                        om_dispatch_pause(a->core->dispatch, topic_of(e), agent_of(e), now);
                }
        }
        om_call_free(c);
}

/* -- the steps of a registration ----------------------------------------------------------------------------------- */

/* Hands it to the dispatcher: the end of every way through. */
static void serve(struct om_call *c) {
        struct registering *reg = c->data;
        struct om_agents *a = c->core->agents;
        struct om_request *req = c->req;
        struct om_error gone;
        struct entry *e;

        if (reg->again) {
                e = find(a, reg->r.topic, reg->r.name);
                if (e)
                        om_agents_set_paused(a, reg->r.topic, reg->r.name, reg->r.paused);
        } else if (!req || !req->session || !om_session_is_open(req->session)) {
                /* Gone meanwhile: nobody is left to serve the group. The record stays. */
                om_error_set(&gone, OM_CONFLICT, "the connection ended its input before the agent was registered");
                om_call_fail(c, &gone);
                return;
        } else if (is_being_deleted(a, reg->r.topic, reg->r.name)) {
                om_error_set(&gone, OM_UNAVAILABLE, "agent \"%.*s\" on topic \"%.*s\" is just being deleted; register again",
                        OM_PRI(reg->r.name), OM_PRI(reg->r.topic));
                om_call_fail(c, &gone);
                return;
        } else {
                c->req = NULL;
                om_dispatch_register(c->core->dispatch, &reg->r, req);
        }
        om_call_free(c);
}

/* Its entry; what is saved again is not made anew, since it may have been deleted meanwhile. */
static struct entry *entry_of(struct om_call *c) {
        const struct registering *reg = c->data;

        return reg->again ? find(c->core->agents, reg->r.topic, reg->r.name) : find_or_make(c->core->agents, reg->r.topic, reg->r.name);
}

/* A step failed: the agent is served all the same, and saved when the storage is back. */
static void serve_unsaved(struct om_call *c, const struct om_error *why) {
        struct registering *reg = c->data;
        struct entry *e = entry_of(c);

        if (why && !reg->again)
                om_log(OM_LOG_WARNING, "agent %.*s on %.*s: not saved yet: %s", OM_PRI(reg->r.name), OM_PRI(reg->r.topic), why->message);
        if (e) {
                e->unsaved = c->core->agents->unsaved = true;
                e->saving = false;
                if (!reg->again) {
                        om_buf_clear(&e->head);
                        om_buf_put_span(&e->head, reg->head);
                        reg->r.paused = e->paused; /* the best that is known */
                }
        }
        start_polling(c->core->agents);
        if (reg->again)
                om_call_free(c);
        else
                serve(c);
}

static void saved(struct om_call *c) {
        struct registering *reg = c->data;
        struct entry *e = entry_of(c);

        if (e) {
                e->paused = reg->r.paused;
                e->unsaved = e->saving = false;
                om_buf_deinit(&e->head);
        }
        serve(c);
}

static void on_setting_written(struct om_call *c, int status, const struct om_error *e) {
        if (status < 0)
                serve_unsaved(c, e);
        else
                saved(c);
}

static void write_setting(struct om_call *c) {
        const struct registering *reg = c->data;

        om_call_put_one(c, OM_STORE_CONFIG, &(struct om_store_entry){ .key = reg->setting, .value = OM_SPAN("true") }, on_setting_written);
}

static void on_record_written(struct om_call *c, int status, const struct om_error *e) {
        const struct registering *reg = c->data;

        if (status < 0)
                serve_unsaved(c, e);
        else if (reg->has_setting)
                saved(c);
        else
                write_setting(c);
}

static void write_record(struct om_call *c) {
        const struct registering *reg = c->data;

        om_call_put_one(c, OM_STORE_AGENTS,
                &(struct om_store_entry){ .key = reg->r.topic, .topic = reg->r.topic, .name = reg->r.name, .value = reg->record },
                on_record_written);
}

/* The setting says whether it is paused. */
static void on_setting_read(struct om_call *c, int status, const struct om_error *e) {
        struct registering *reg = c->data;

        if (status < 0 && status != -ENOENT) {
                serve_unsaved(c, e);
                return;
        }
        reg->has_setting = status == 0;
        reg->r.paused = status == 0 && om_span_is(c->get.entry.value, "false");
        if (reg->record.p)
                write_record(c);
        else if (!reg->has_setting)
                write_setting(c);
        else
                saved(c);
}

/* The record that is there: its created_at stays; nothing is written when nothing changed. */
static void on_record_read(struct om_call *c, int status, const struct om_error *e) {
        struct registering *reg = c->data;
        struct om_json_value created = { 0 };
        struct om_buf record = OM_BUF_INIT;

        if (status < 0 && status != -ENOENT) {
                serve_unsaved(c, e);
                return;
        }
        if (reg->again && !entry_of(c)) {
                om_call_free(c); /* deleted meanwhile: it must not come back */
                return;
        }
        om_buf_put_span(&record, reg->head);
        om_buf_lit(&record, ",\"created_at\":");
        if (status == 0 && om_object_get(c->get.entry.value, "created_at", &created) && created.type == OM_JSON_NUMBER)
                om_buf_put_span(&record, created.text);
        else
                om_buf_json_time(&record, om_now_ms());
        om_buf_putc(&record, '}');
        if (!om_buf_ok(&record)) {
                om_buf_deinit(&record);
                serve_unsaved(c, NULL);
                return;
        }
        reg->record = OM_SPAN_NONE;
        if (status < 0 || !om_span_eq(c->get.entry.value, om_buf_span(&record)))
                reg->record = om_call_copy(c, om_buf_span(&record));
        om_buf_deinit(&record);

        om_call_reset(c, OM_CALL_STORE_GET, on_setting_read);
        c->get.kind = OM_STORE_CONFIG;
        c->get.key = reg->setting;
        om_call_start(c);
}

static void begin_steps(struct om_call *c) {
        struct registering *reg = c->data;

        if (c->core->store_state != OM_STORE_READY) {
                serve_unsaved(c, NULL);
                return;
        }
        om_call_reset(c, OM_CALL_STORE_GET, on_record_read);
        c->get.kind = OM_STORE_AGENTS;
        c->get.key = reg->r.topic;
        c->get.name = reg->r.name;
        om_call_start(c);
}

/* -- beginning ----------------------------------------------------------------------------------------------------- */

void om_agents_register(struct om_core *core, struct om_request *req, struct om_span params) {
        struct om_call *c = om_call_new(core, req, OM_CALL_NONE, NULL);
        struct om_buf head = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        struct registering *reg;
        int r;

        if (!c)
                return;
        reg = om_arena_alloc(&c->arena, sizeof *reg);
        if (reg) {
                memset(reg, 0, sizeof *reg);
                r = om_registration_read(c, params, &reg->r, &head, &e);
        } else {
                r = om_error_set_errno(&e, ENOMEM, "the registration");
        }
        if (r == 0) {
                reg->head = om_call_copy(c, om_buf_span(&head));
                reg->setting = om_agents_setting(c, reg->r.topic, reg->r.name);
                if (!reg->head.p || !reg->setting.p)
                        r = om_error_set_errno(&e, ENOMEM, "the registration");
        }
        om_buf_deinit(&head);
        if (r < 0) {
                om_call_fail(c, &e);
                return;
        }
        c->data = reg;
        begin_steps(c);
}

/* -- when the storage is back -------------------------------------------------------------------------------------- */

static void save_again(struct om_agents *a, struct entry *e) {
        struct om_call *c = om_call_new(a->core, NULL, OM_CALL_NONE, NULL);
        struct registering *reg = c ? om_arena_alloc(&c->arena, sizeof *reg) : NULL;

        if (!reg) {
                om_call_free(c);
                return;
        }
        memset(reg, 0, sizeof *reg);
        reg->again = true;
        reg->r.topic = om_call_copy(c, topic_of(e));
        reg->r.name = om_call_copy(c, agent_of(e));
        reg->head = om_call_copy(c, om_buf_span(&e->head));
        reg->setting = om_agents_setting(c, reg->r.topic, reg->r.name);
        if (!reg->r.topic.p || !reg->r.name.p || !reg->head.p || !reg->setting.p || !om_buf_ok(&e->head)) {
                om_call_free(c);
                return;
        }
        e->saving = true;
        c->data = reg;
        begin_steps(c);
}

/* While the storage is ready, what it refused to take is offered again. */
static void save_unsaved(struct om_agents *a) {
        struct entry *e, *next;

        if (!a->unsaved || a->core->store_state != OM_STORE_READY)
                return;
        a->unsaved = false;
        HASH_ITER (hh, a->entries, e, next) {
                a->unsaved |= e->unsaved;
                if (e->unsaved && !e->saving)
                        save_again(a, e);
        }
}

void om_agents_read_paused(struct om_agents *a) {
        struct om_call *c;
        struct poll *poll;

        if (a->core->store_state != OM_STORE_READY || a->polling)
                return;
        c = a->entries ? om_call_new(a->core, NULL, OM_CALL_STORE_LIST, on_polled) : NULL;
        poll = c ? om_arena_alloc(&c->arena, sizeof *poll) : NULL;
        if (!poll) {
                om_call_free(c);
                return;
        }
        poll->changes = a->changes;
        c->data = poll;
        a->polling = true;
        om_paused_list(c);
        om_call_collect(c);
}

static void on_poll(evutil_socket_t fd, short what, void *ctx) {
        struct om_agents *a = ctx;

        save_unsaved(a);
        if (a->core->store_ops->capabilities & OM_STORE_SHARED) {
                drop_idle(a);
                om_agents_read_paused(a);
        }
        start_polling(a);
}

void om_agents_store_state(struct om_agents *a, enum om_store_state state) {
        if (state != OM_STORE_READY)
                return;
        save_unsaved(a);
        start_polling(a);
}

int om_agents_new(struct om_core *core, struct om_agents **ret) {
        struct om_agents *a = calloc(1, sizeof *a);

        if (!a)
                return -ENOMEM;
        a->core = core;
        event_assign(&a->poll, om_loop_base(core->loop), -1, 0, on_poll, a);
        *ret = a;
        return 0;
}

void om_agents_stop(struct om_agents *a) {
        a->stopped = true;
        event_del(&a->poll);
}

void om_agents_free(struct om_agents *a) {
        struct entry *e, *next;

        if (!a)
                return;
        event_del(&a->poll);
        HASH_ITER (hh, a->entries, e, next)
                drop(a, e);
        free(a);
}
