/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A migration's steps, and what the state folder keeps of them.
 *
 *   (none) ─ migrate ─▶ copy ─▶ ready ─ switch ─▶ read ─ switch ─▶ primary ─ switch ─▶ done
 *
 * A backup begins as `follow` and goes the same way when it is migrated to. The file says which step holds, and both URLs, since the new
 * one came over the socket: it is mode 0600 and replaced as a whole. It is written before a step takes effect, at a moment at which both
 * steps are right: so the daemon may die before, between and after.
 *
 *   copy      marks for all kinds are in the file of marks before the state is
 *   primary   is written when both storages hold the same and nothing is under way; writes wait meanwhile, SWITCH_HOLD_MS at most
 *
 * At the start the file and the settings are held against each other: where STORAGE_URL names neither side of a migration, or the new one
 * too early, the daemon refuses to start rather than write where nobody follows.
 *
 * Loop thread; the file is written on it, since that is a matter of milliseconds once in a migration.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "../proto/json_scan.h"
#include "storage_internal.h"

enum { SWITCH_WAIT_MS = 10000, SWITCH_HOLD_MS = 2000, HOLD_BELOW = 64, STATE_MAX = 64 << 10 };

const char *const phase_names[] = { "follow", "copy", "ready", "read", "primary", "done", NULL };

static struct routes *routes_of(struct om_store *s) { return (struct routes *) s; }

/* -- the file ------------------------------------------------------------------------------------------------------ */

struct state {
        bool is_there, is_backup;
        enum phase phase;
        struct om_span from, to; /* in the arena */
        int64_t started_ms;
        struct om_arena arena;
};

static int bad_state(const struct routes *r, const char *why, struct om_error *e) {
        return om_error_set(e, OM_INVALID,
                "%s: %s; if the migration is of no interest any more, remove this file and storage-marks.journal beside it", r->state_path,
                why);
}

static int parse_state(const struct routes *r, struct om_span text, struct state *s, struct om_error *e) {
        struct om_json_member m[] = { { "format", OM_JSON_NUMBER, true }, { "role", OM_JSON_STRING, true },
                { "phase", OM_JSON_STRING, true }, { "from", OM_JSON_STRING, true }, { "to", OM_JSON_STRING, true },
                { "started_ms", OM_JSON_NUMBER }, { NULL } };
        struct om_error why = OM_ERROR_INIT;
        int64_t format = 0;
        int phase;

        if (om_json_check(text, 8, &why) < 0 || om_json_members(text, "the state", m, &why) < 0)
                return bad_state(r, why.message, e);
        if (om_json_int64(m[0].value, &format) < 0 || format != 1)
                return bad_state(r, "a format that this version does not read", e);
        for (phase = 0; phase_names[phase] && !om_json_string_is(m[2].value, phase_names[phase]);)
                phase++;
        if (!phase_names[phase])
                return bad_state(r, "a phase that there is not", e);
        s->is_there = true;
        s->phase = (enum phase) phase;
        s->is_backup = om_json_string_is(m[1].value, "backup");
        /* Copies: a string without escapes stands in the text itself. */
        s->from = om_arena_copy(&s->arena, om_json_string(m[3].value, &s->arena));
        s->to = om_arena_copy(&s->arena, om_json_string(m[4].value, &s->arena));
        if (m[5].value.type)
                om_json_int64(m[5].value, &s->started_ms);
        return s->from.p && s->to.p ? 0 : om_error_set_errno(e, ENOMEM, "%s", r->state_path);
}

static int read_state(const struct routes *r, struct state *s, struct om_error *e) {
        FILE *f = fopen(r->state_path, "re");
        char *text;
        size_t n;
        int status;

        if (!f)
                return errno == ENOENT ? 0 : om_error_set_errno(e, errno, "cannot read %s", r->state_path);
        text = calloc(1, STATE_MAX);
        n = text ? fread(text, 1, STATE_MAX, f) : 0;
        if (!text)
                status = om_error_set_errno(e, ENOMEM, "%s", r->state_path);
        else if (ferror(f))
                status = om_error_set_errno(e, EIO, "cannot read %s", r->state_path);
        else
                status = parse_state(r, (struct om_span){ text, n }, s, e);
        fclose(f);
        if (text)
                explicit_bzero(text, STATE_MAX);
        free(text);
        return status;
}

/* `from` is the storage of before, whichever is the primary now. */
static int write_state(const struct mirror *m, enum phase phase, struct om_error *e) {
        const struct routes *r = m->r;
        bool turned = m->phase == PHASE_PRIMARY;
        struct om_buf b = OM_BUF_INIT;
        int status;

        om_buf_printf(&b,
                "{\"format\":1,\"role\":\"%s\",\"phase\":\"%s\",\"started_ms\":%lld,\"from\":", m->is_backup ? "backup" : "migration",
                phase_names[phase], (long long) m->started_ms);
        om_buf_json_span(&b, om_span_of(turned ? m->target->text : r->main->text));
        om_buf_lit(&b, ",\"to\":");
        om_buf_json_span(&b, om_span_of(turned ? r->main->text : m->target->text));
        om_buf_lit(&b, "}\n");
        status = om_buf_ok(&b) ? om_file_replace(r->state_path, om_buf_span(&b), e) : om_error_set_errno(e, ENOMEM, "%s", r->state_path);
        if (b.data)
                explicit_bzero(b.data, b.len);
        om_buf_deinit(&b);
        return status;
}

static int set_phase(struct mirror *m, enum phase phase, struct om_error *e) {
        int status = write_state(m, phase, e);

        if (status < 0)
                return status;
        m->phase = phase;
        om_log(OM_LOG_NOTICE, "storage migration to %s: %s", phase == PHASE_PRIMARY ? m->r->main->url->redacted : m->target->url->redacted,
                phase_names[phase]);
        routes_changed(m->r);
        return 0;
}

static void forget_state(const struct routes *r) {
        unlink(r->state_path);
        unlink(r->queue_path);
}

/* -- at the start -------------------------------------------------------------------------------------------------- */

/* Whether two URLs name the same storage: passwords aside, which change. */
static bool same_url(const char *a, const char *b) {
        struct om_url *x = NULL, *y = NULL;
        bool same = strcmp(a, b) == 0;

        if (!same && om_url_parse(a, &x, NULL) == 0 && om_url_parse(b, &y, NULL) == 0)
                same = strcmp(x->redacted, y->redacted) == 0;
        om_url_free(x);
        om_url_free(y);
        return same;
}

static int make_main(struct routes *r, const char *text, const char *setting, struct om_error *e) {
        const char *results = r->settings->result_storage_url;
        int status = part_new(r, "storage", setting, text, &r->main, e);

        if (status == 0 && results && !same_url(results, text))
                status = part_new(r, "result storage", "RESULT_STORAGE_URL", results, &r->results, e);
        return status;
}

static unsigned mask_of(const struct routes *r, bool is_backup) {
        return is_backup || !r->results ? ALL_KINDS : ALL_KINDS & ~(1u << OM_STORE_RESULTS);
}

static int make_mirror(
        struct routes *r, const char *what, const char *setting, const char *text, const struct state *s, struct om_error *e) {
        struct part *target = NULL;
        unsigned mask = mask_of(r, s->is_backup);
        int status;

        if (s->phase == PHASE_PRIMARY && r->results)
                mask &= ~(1u << OM_STORE_RESULTS);
        status = part_new(r, what, setting, text, &target, e);
        if (status < 0)
                return status;
        status = mirror_new(r, target, s->phase, mask, &r->mirror, e);
        if (status < 0) {
                part_free(target);
                return status;
        }
        r->mirror->is_backup = s->is_backup;
        if (s->started_ms)
                r->mirror->started_ms = s->started_ms;
        status = mirror_load(r->mirror, e);
        if (status < 0) {
                mirror_free_unopened(r->mirror);
                part_free(target);
        }
        return status;
}

static int open_new(struct routes *r, struct om_error *e) {
        const char *backup = r->settings->storage_backup_url;
        struct state fresh = { .is_backup = true, .phase = PHASE_FOLLOW };
        int status = make_main(r, r->settings->storage_url, "STORAGE_URL", e);

        if (status < 0 || !backup)
                return status;
        if (same_url(backup, r->settings->storage_url) || (r->results && same_url(backup, r->results->text)))
                return om_error_set(e, OM_INVALID, "STORAGE_BACKUP_URL: this storage is in use already; a backup needs one of its own");
        unlink(r->queue_path);
        status = make_mirror(r, "backup", "STORAGE_BACKUP_URL", backup, &fresh, e);
        return status < 0 ? status : write_state(r->mirror, PHASE_FOLLOW, e);
}

static int neither(const struct routes *r, const struct state *s, struct om_error *e) {
        struct om_buf from = OM_BUF_INIT, to = OM_BUF_INIT;
        int status;

        om_url_redact(&from, s->from.p, s->from.len);
        om_url_redact(&to, s->to.p, s->to.len);
        status = om_error_set(e, OM_INVALID,
                "STORAGE_URL: a migration from %.*s to %.*s is under way (%s): set it to %.*s, or remove that file and "
                "storage-marks.journal "
                "beside it to forget the migration",
                OM_PRI(om_buf_span(&from)), OM_PRI(om_buf_span(&to)), r->state_path,
                OM_PRI(om_buf_span(s->phase >= PHASE_PRIMARY ? &to : &from)));
        om_buf_deinit(&from);
        om_buf_deinit(&to);
        return status;
}

/* The new storage is the primary; STORAGE_URL may name either. */
static int open_turned(struct routes *r, const struct state *s, bool names_new, struct om_error *e) {
        const char *now = r->settings->storage_url;
        int status = make_main(r, names_new ? now : s->to.p, names_new ? "STORAGE_URL" : "the migration's --to", e);

        if (status < 0)
                return status;
        if (!names_new)
                om_log(OM_LOG_WARNING, "STORAGE_URL names %s, but the storage was switched to %s: set STORAGE_URL to it", "the old storage",
                        r->main->url->redacted);
        if (s->phase == PHASE_DONE)
                return 0;
        return make_mirror(r, "old storage", names_new ? "the migration's origin" : "STORAGE_URL", names_new ? s->from.p : now, s, e);
}

static int open_known(struct routes *r, const struct state *s, struct om_error *e) {
        const char *now = r->settings->storage_url, *backup = r->settings->storage_backup_url;
        bool names_old = same_url(now, s->from.p), names_new = same_url(now, s->to.p), same_backup = backup && same_url(backup, s->to.p);
        int status;

        if (s->phase == PHASE_DONE && names_new) {
                forget_state(r);
                if (same_backup)
                        return make_main(r, now, "STORAGE_URL", e);
                return open_new(r, e);
        }
        if (s->is_backup && s->phase < PHASE_PRIMARY && (!same_backup || !names_old)) {
                om_log(OM_LOG_NOTICE, "the backup is another one now: what the former one lacked is forgotten");
                forget_state(r);
                return open_new(r, e);
        }
        if (!names_old && (!names_new || s->phase < PHASE_PRIMARY))
                return neither(r, s, e);
        if (backup && !same_backup)
                return om_error_set(e, OM_INVALID,
                        "STORAGE_BACKUP_URL: a migration to another storage is under way; leave it unset until that is over (%s)",
                        r->state_path);
        if (s->phase >= PHASE_PRIMARY)
                return open_turned(r, s, names_new, e);
        status = make_main(r, now, "STORAGE_URL", e);
        if (status < 0)
                return status;
        return make_mirror(r, s->is_backup ? "backup" : "new storage", s->is_backup ? "STORAGE_BACKUP_URL" : "the migration's --to",
                s->is_backup ? backup : s->to.p, s, e);
}

int migrate_open(struct routes *r, struct om_error *e) {
        struct state s = { 0 };
        int status = read_state(r, &s, e);

        if (status == 0)
                status = s.is_there ? open_known(r, &s, e) : open_new(r, e);
        om_arena_deinit(&s.arena);
        return status;
}

/* -- the end of a mirror ------------------------------------------------------------------------------------------- */

static void drop(struct mirror *m) {
        m->ended = true;
        m->phase = PHASE_FOLLOW;
        m->target_goes = true;
        m->drop_file = true;
        mirror_stop(m, NULL);
}

/* -- copying ------------------------------------------------------------------------------------------------------- */

static void failed_to_begin(struct mirror *m, const struct om_error *e) {
        om_log_error(OM_LOG_ERROR, e, "storage migration");
        m->r->last_trouble = *e;
        routes_changed(m->r);
        drop(m);
}

/* All kinds are marked, durably: from here on it happens, whatever happens. */
static void begun(struct om_queue_wait *w, int status, const struct om_error *e) {
        struct mirror *m = (void *) ((char *) w - offsetof(struct mirror, begin_wait));
        struct om_error mine = OM_ERROR_INIT;

        m->beginning = false;
        if (m->stopping) {
                mirror_pump(m);
                return;
        }
        if (status == 0)
                status = set_phase(m, PHASE_COPY, &mine);
        else
                mine = *e;
        if (status < 0 && m->checking) {
                failed_to_begin(m, &mine);
                return;
        }
        if (status < 0)
                m->r->last_trouble = mine;
        m->checking = false;
        mirror_pump(m);
}

static void begin_copy(struct mirror *m) {
        for (int kind = 0; kind < KINDS; kind++)
                if (m->mask & 1u << kind)
                        mirror_mark_kind(m, (enum om_store_kind) kind);
        m->beginning = true;
        m->begin_wait.fn = begun;
        om_queue_sync(m->queue, &m->begin_wait);
}

static void checked(struct om_op *op, int status, const struct om_error *e) {
        struct mirror *m = (void *) ((char *) op - offsetof(struct mirror, check) - offsetof(struct om_store_list, op));
        struct om_error mine = OM_ERROR_INIT;
        size_t n = m->check.n;

        m->check_out = false;
        om_arena_deinit(&m->check.arena);
        mirror_op_done(m, m->target, &m->check_deadline);
        if (m->stopping || m->ended) {
                mirror_pump(m);
        } else if (status < 0) {
                mirror_trouble(m, m->target, status, e);
        } else if (n > 0) {
                om_error_set(&mine, OM_CONFLICT,
                        "the new storage %s is not empty: it holds %s; --replace deletes there what this storage does not hold",
                        m->target->url->redacted, om_store_kind_names[m->check_kind]);
                failed_to_begin(m, &mine);
        } else {
                m->check_kind++;
                mirror_pump(m);
        }
}

/* One record of each kind is asked for: a storage that holds something is not written over by mistake. */
static void check_next(struct mirror *m) {
        struct part *p = m->target;
        struct om_error e = OM_ERROR_INIT;
        int status;

        if (m->check_out || m->beginning || m->waiting || part_check(p, NULL) < 0)
                return;
        while (m->check_kind < KINDS && !(m->mask & 1u << m->check_kind))
                m->check_kind++;
        if (m->replace || m->check_kind >= KINDS) {
                unlink(m->r->queue_path);
                if (mirror_load(m, &e) < 0)
                        failed_to_begin(m, &e);
                else
                        begin_copy(m);
                return;
        }
        m->check = (struct om_store_list){ .op = { .done = checked }, .kind = (enum om_store_kind) m->check_kind, .limit = 1 };
        status = p->ops->list(p->store, &m->check, &e);
        if (status < 0) {
                mirror_trouble(m, p, status, &e);
                return;
        }
        m->check_out = true;
        mirror_op_begun(m, p, &m->check_deadline, &m->check.op);
}

/* A kind has been copied; or all have, and that could not be written down, which is tried again with the pauses of the second storage. */
void migrate_copied(struct mirror *m) {
        struct om_error e;
        int status;

        for (int kind = 0; kind < KINDS; kind++)
                if (m->mask & 1u << kind && (m->kinds[kind].dirty || m->kinds[kind].walking))
                        return;
        if (m->phase != PHASE_COPY)
                return;
        m->finished_ms = om_now_ms();
        status = set_phase(m, PHASE_READY, &e);
        if (status < 0) {
                m->r->last_trouble = e;
                mirror_trouble(m, m->target, status, &e);
        } else {
                mirror_worked(m);
        }
}

/* -- switching ----------------------------------------------------------------------------------------------------- */

static void switch_over(struct mirror *m, const struct om_error *e) {
        m->switching = m->aborting = false;
        event_del(m->switch_timer);
        if (e) {
                m->r->last_trouble = *e;
                om_log_error(OM_LOG_ERROR, e, "storage switch");
        }
        routes_changed(m->r);
        if (!m->holding)
                return;
        m->holding = false;
        routes_release(m->r);
}

static void on_switch_timer(evutil_socket_t fd, short what, void *ctx) {
        struct mirror *m = ctx;
        struct om_error e;

        if (m->failing_since_ms)
                om_error_set(&e, OM_UNAVAILABLE, "the roles were not changed: %.400s", m->error.message);
        else
                om_error_set(
                        &e, OM_UNAVAILABLE, "the roles were not changed: %zu changes are still to be brought over; try again", m->n_dirty);
        switch_over(m, &e);
}

static void wait_for_switch(struct mirror *m, int ms) {
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        event_add(m->switch_timer, &tv);
}

/* Both hold the same, and nothing is under way. */
static void flip(struct mirror *m) {
        struct routes *r = m->r;
        struct part *now = m->target;
        bool back = m->phase == PHASE_PRIMARY;
        struct om_error e = OM_ERROR_INIT;

        if (write_state(m, back ? PHASE_READY : PHASE_PRIMARY, &e) < 0) {
                switch_over(m, &e);
                return;
        }
        m->target = r->main;
        r->main = now;
        m->phase = back ? PHASE_READY : PHASE_PRIMARY;
        now->what = "storage";
        m->target->what = back ? "new storage" : "old storage";
        if (r->results)
                m->mask &= ~(1u << OM_STORE_RESULTS);
        om_log(OM_LOG_NOTICE, "the storage is %s now", now->url->redacted);
        routes_refresh(r);
        r->events->state(r->core, r->main->state, &r->main->error);
        if (back && !m->is_backup) {
                unlink(r->state_path);
                switch_over(m, NULL);
                drop(m);
                return;
        }
        switch_over(m, NULL);
}

void migrate_pump(struct mirror *m) {
        struct om_error e;

        if (m->ended)
                return;
        if (m->checking)
                check_next(m);
        if (!m->switching)
                return;
        if (m->n_refused) {
                e = m->refusal;
                om_error_prefix(&e, "the roles were not changed");
                switch_over(m, &e);
        } else if (mirror_is_clean(m)) {
                flip(m);
        } else if (!m->holding && !m->waiting && m->n_dirty <= HOLD_BELOW && m->target->state == OM_STORE_READY) {
                m->holding = true;
                wait_for_switch(m, SWITCH_HOLD_MS);
        }
}

static int begin_switch(struct mirror *m) {
        m->switching = true;
        wait_for_switch(m, SWITCH_WAIT_MS);
        mirror_pump(m);
        return 0;
}

int migrate_init(struct mirror *m) {
        m->switch_timer = event_new(m->r->host->base, -1, 0, on_switch_timer, m);
        return m->switch_timer ? 0 : -ENOMEM;
}

void migrate_deinit(struct mirror *m) { event_free(m->switch_timer); }

/* -- what the methods ask for -------------------------------------------------------------------------------------- */

static int no_migration(struct om_error *e) {
        return om_error_set(e, OM_CONFLICT, "no migration is under way; `omnictl storage migrate --to URL` begins one");
}

static int ending(struct om_error *e) { return om_error_set(e, OM_UNAVAILABLE, "the former migration is being ended; try again"); }

static int go_on(struct mirror *m, const char *url, struct om_error *e) {
        if (url && !same_url(url, m->phase == PHASE_PRIMARY ? m->r->main->text : m->target->text))
                return om_error_set(e, OM_CONFLICT, "%s is the second storage already: %s",
                        m->phase == PHASE_PRIMARY ? m->r->main->url->redacted : m->target->url->redacted,
                        m->is_backup ? "migrate to it, or take STORAGE_BACKUP_URL away and restart"
                                     : "finish that migration or `omnictl storage abort` it");
        if (m->phase == PHASE_FOLLOW && !m->checking && !m->beginning)
                begin_copy(m);
        if (!m->checking)
                mirror_retry_refused(m);
        mirror_worked(m); /* now, not after the pause */
        mirror_pump(m);
        return 0;
}

static int begin_new(struct routes *r, const char *url, bool replace, struct om_error *e) {
        struct part *target = NULL;
        struct mirror *m = NULL;
        int status;

        if (same_url(url, r->main->text) || (r->results && same_url(url, r->results->text)))
                return om_error_set(e, OM_INVALID, "to: this storage is in use already");
        status = part_new(r, "new storage", "to", url, &target, e);
        if (status == 0)
                status = mirror_new(r, target, PHASE_FOLLOW, mask_of(r, false), &m, e);
        if (status < 0) {
                part_free(target);
                return status;
        }
        m->checking = true;
        m->replace = replace;
        r->mirror = m;
        status = part_open(target, e);
        if (status < 0) {
                r->mirror = NULL;
                mirror_free_unopened(m);
                part_free(target);
                return status;
        }
        routes_changed(r);
        mirror_pump(m);
        return 0;
}

int om_routes_migrate(struct om_store *s, struct om_span url, bool replace, struct om_error *e) {
        struct routes *r = routes_of(s);
        struct om_arena arena = { 0 };
        struct om_span text = om_arena_copy(&arena, url);
        int status;

        r->last_trouble = (struct om_error) OM_ERROR_INIT;
        if (r->mirror && r->mirror->ended)
                status = ending(e);
        else if (url.p && !text.p)
                status = om_error_set_errno(e, ENOMEM, "storage.migrate");
        else if (r->mirror)
                status = go_on(r->mirror, text.p, e);
        else if (!text.p)
                status = om_error_set(e, OM_INVALID, "to: missing: the URL of the new storage (there is no backup to copy to)");
        else
                status = begin_new(r, text.p, replace, e);
        om_arena_deinit(&arena);
        return status;
}

static int finish(struct mirror *m, struct om_error *e) {
        int status = write_state(m, PHASE_DONE, e);

        if (status < 0)
                return status;
        om_log(OM_LOG_NOTICE, "the old storage %s is let go; set STORAGE_URL to the new one", m->target->url->redacted);
        drop(m);
        routes_changed(m->r);
        return 0;
}

int om_routes_switch(struct om_store *s, struct om_error *e) {
        struct routes *r = routes_of(s);
        struct mirror *m = r->mirror;

        if (!m)
                return no_migration(e);
        if (m->ended)
                return ending(e);
        r->last_trouble = (struct om_error) OM_ERROR_INIT;
        if (verify_is_running(m))
                return om_error_set(e, OM_CONFLICT, "a verify is running; wait for its end");
        if (m->checking || m->phase == PHASE_COPY)
                return om_error_set(e, OM_UNAVAILABLE, "the copy is not complete; `omnictl storage status` shows how far it is");
        if (m->phase == PHASE_FOLLOW)
                return om_error_set(
                        e, OM_CONFLICT, "the backup has only what was written since it was set; `omnictl storage migrate` copies the rest");
        if (m->n_refused) {
                *e = m->refusal;
                return om_kind_errno(e->kind);
        }
        if (m->switching)
                return 0;
        if (m->phase == PHASE_READY)
                return set_phase(m, PHASE_READ, e);
        return m->phase == PHASE_READ ? begin_switch(m) : finish(m, e);
}

int om_routes_abort(struct om_store *s, struct om_error *e) {
        struct routes *r = routes_of(s);
        struct mirror *m = r->mirror;

        if (!m)
                return no_migration(e);
        if (m->ended)
                return ending(e);
        r->last_trouble = (struct om_error) OM_ERROR_INIT;
        if (m->phase == PHASE_PRIMARY) {
                m->aborting = true;
                return begin_switch(m);
        }
        if (m->switching)
                switch_over(m, NULL);
        if (m->is_backup) {
                if (m->phase == PHASE_FOLLOW)
                        return om_error_set(
                                e, OM_CONFLICT, "no migration is under way; the backup ends when STORAGE_BACKUP_URL is taken away");
                return set_phase(m, m->phase == PHASE_READ ? PHASE_READY : m->phase, e);
        }
        if (unlink(r->state_path) < 0 && errno != ENOENT)
                return om_error_set_errno(e, errno, "cannot remove %s", r->state_path);
        om_log(OM_LOG_NOTICE, "storage migration to %s: aborted", m->target->url->redacted);
        drop(m);
        routes_changed(r);
        return 0;
}

int om_routes_verify(struct om_store *s, bool repair, struct om_error *e) {
        struct mirror *m = routes_of(s)->mirror;

        if (!m)
                return om_error_set(
                        e, OM_CONFLICT, "there is one storage only: nothing to compare; a backup or a migration makes a second one");
        if (m->ended)
                return ending(e);
        if (m->checking || m->phase == PHASE_COPY)
                return om_error_set(e, OM_UNAVAILABLE, "the copy is not complete; `omnictl storage status` shows how far it is");
        if (m->switching)
                return om_error_set(e, OM_UNAVAILABLE, "the storages change their roles; try again");
        return verify_start(m, repair, e);
}
