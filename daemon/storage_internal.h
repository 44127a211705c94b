/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_STORAGE_INTERNAL_H
#define OM_STORAGE_INTERNAL_H
/*
 * What the storage_*.c share.
 *
 *   storage_routes.c    the ops that the core calls: which storage an operation goes to, what comes back
 *   storage_part.c      a storage that is open: its state, who uses it, its end
 *   storage_mirror.c    the second storage: what writes leave it to be given, and when it gets that
 *   storage_keys.c      the keys that it lacks, and the file of their marks
 *   storage_sync.c      one key is brought over
 *   storage_walk.c      bringing whole kinds there: the copy
 *   storage_verify.c    comparing both sides
 *   storage_migrate.c   the steps of a migration and its state on disk
 *   storage_health.c    what storage.health and storage.status say
 *   storage_queue.c     the file of marks
 *
 * How the second storage follows. Nothing is ever copied as "the value that was written". A write marks its keys as dirty, durably, before
 * it is sent to the storage that is right (the source). When it has completed, however, each dirty key is synced: read from the source,
 * and written to the second storage (the target), or deleted there when the source has none. From that follows:
 *
 *   - it does not matter in which order writes to a key complete, nor whether the daemon dies between any two steps: the mark is in the
 *     file, and the sync is repeated. A sync done twice does no harm;
 *   - a key is synced by one at a time (`busy`). A write that comes while it is synced makes it dirty again. So the last sync of a key
 * reads after the last write;
 *   - a copy of a whole kind is the same with a page of keys at once. A key that was touched since the page was asked for, is dirty or
 * busy, is left out of the page: its own sync sees to it. So an old record never replaces a newer one, and a deleted one does not come
 * back;
 *   - metrics have no key. Their mark is the millisecond at which they were saved; the sync compares what both sides have of that time and
 *     appends what is missing. One at a time, so that none is appended twice;
 *   - when marks outgrow their limit, a kind's marks are replaced by one for the whole kind: it is walked again, on both sides.
 */
#include <event2/event.h>
#include <event2/event_struct.h>

#include "deadline.h"
#include "../proto/hash.h"
#include "log.h"
#include "storage_queue.h"
#include "storage_routes.h"

enum { KINDS = 5 };
#define ALL_KINDS ((1u << KINDS) - 1)

/* -- parts --------------------------------------------------------------------------------------------------------- */

struct routes;
struct part {
        struct routes *routes;
        const char *what;    /* "storage", "result storage", "backup", "new storage", "old storage" */
        const char *setting; /* what names it, for errors */
        char *text;          /* the URL with its password */
        struct om_url *url;
        const struct om_store_ops *ops;
        struct om_store *store; /* NULL: could not be opened; `error` says why */
        enum om_store_state state;
        struct om_error error;
        bool has_spoken; /* told a state since it was opened */
        unsigned n_out;  /* operations under way */
        char tag[8];     /* of its cursors */
        /* closing */
        struct om_post *closed;
        struct om_op close_op;
        struct om_post gone;
        bool closing;
};
/* Parses the URL and finds its backend; opens nothing. */
int part_new(struct routes *r, const char *what, const char *setting, const char *text, struct part **ret, struct om_error *e);
int part_open(struct part *p, struct om_error *e);
/* Closes it once nothing is under way, frees it, and posts `closed` (may be NULL). */
void part_close(struct part *p, struct om_post *closed);
void part_free(struct part *p); /* one that was never opened, or is closed */
/* An operation has completed. */
void part_done(struct part *p);
/* Why it cannot be used, if it cannot: fills `e` and returns < 0. */
int part_check(const struct part *p, struct om_error *e);
/* "the result storage redis://h: …" */
void part_name_error(const struct part *p, struct om_error *e);

/* -- routes -------------------------------------------------------------------------------------------------------- */

enum route_type { ROUTE_PUT, ROUTE_GET, ROUTE_LIST, ROUTE_REMOVE, ROUTE_PUT_IF_ABSENT };
struct key;
/* An operation of the core's that a part has, or that waits to be sent. */
struct route {
        union { /* first: an op is its route */
                struct om_op op;
                struct om_store_put put;
                struct om_store_get get;
                struct om_store_list list;
                struct om_store_delete remove;
                struct om_store_put_if_absent put_if_absent;
        };
        struct routes *r;
        struct part *part;
        struct om_op *parent;
        enum route_type type;
        enum om_store_kind kind;
        bool cancelled, second; /* second: it reads from the target, and may fall back */
        struct om_arena arena;  /* inputs, where they were copied */
        struct route *prev, *next;
        /* of a write that the mirror follows */
        bool tracked;
        struct key **keys;
        size_t n_keys, bytes;
        struct om_queue_wait wait;
        struct om_post post;
        struct om_error error;
        int status;
};

struct mirror;
struct routes {
        struct om_store_ops ops; /* what the core sees */
        struct om_host *host;
        const struct om_settings *settings;
        const struct om_store_events *events;
        void *core;
        struct part *main, *results; /* results: NULL where it is the main one */
        struct mirror *mirror;       /* NULL: none */
        bool told_ready, closing;
        unsigned untracked[KINDS]; /* writes under way that no mirror follows */
        struct route *held;        /* writes that wait for a switch */
        struct route *waiting;     /* writes that a part had no room for */
        size_t held_bytes;
        char *state_path, *queue_path;
        struct om_error last_trouble; /* why the last migrate, switch or abort did not come to its end; kind OM_OK: it did */
        uint64_t revision;
        struct om_routes_wait *waits;
        struct event *wake;
        bool wake_armed;
        /* closing */
        struct om_op *close_op;
        unsigned n_closing;
        struct om_post part_gone[3];
        struct om_post mirror_gone;
};
static inline struct om_host *host_of(const struct routes *r) { return r->host; }
struct part *source_of(const struct routes *r, enum om_store_kind kind);
void routes_changed(struct routes *r);  /* the status did: wakes who waits */
void routes_refresh(struct routes *r);  /* name and capabilities of what is the main storage now; tells the core */
void routes_go_on(struct routes *r);    /* something completed, or a hold is over */
void routes_send(struct route *route);  /* to its part, at once or when there is room */
void routes_release(struct routes *r);  /* sends what was held */
void routes_part_state(struct part *p); /* its state has changed */

/* -- the mirror ---------------------------------------------------------------------------------------------------- */

enum phase {
        PHASE_FOLLOW,  /* the target gets what is written from now on; it was never given the rest. A backup before a migrate */
        PHASE_COPY,    /* it is being given the rest */
        PHASE_READY,   /* it has everything */
        PHASE_READ,    /* and is read */
        PHASE_PRIMARY, /* it is the source now, and the old storage the target */
        PHASE_DONE,    /* the old one has been let go; only in the file, until STORAGE_URL names the new one */
};
extern const char *const phase_names[];

/* A key that is dirty, busy, being written, or was touched a moment ago. */
struct key {
        UT_hash_handle hh;
        struct key *prev, *next; /* in a line, while `lined` */
        unsigned writes;         /* under way in the source */
        bool dirty, busy, lined;
        bool marked;  /* its mark is in the file, or on the way there */
        bool refused; /* the target will not have it */
        bool by_walk; /* the walk waits for it */
        bool lingers; /* on the list of those that a page keeps */
        bool has_name;
        uint8_t kind;
        uint32_t key_len, name_len, text_len;
        uint64_t epoch; /* of the page during which it was touched */
        uint64_t asked; /* hash of the last name that was met under it, of one without name */
        struct key *next_lingering;
        char text[];
};
static inline struct om_span key_key(const struct key *k) { return (struct om_span){ k->text + 2, k->key_len }; }
static inline struct om_span key_name(const struct key *k) {
        return k->has_name ? (struct om_span){ k->text + 2 + k->key_len, k->name_len } : OM_SPAN_NONE;
}

struct kind_state {
        bool dirty;                         /* all of it must be walked */
        bool walking;                       /* it is */
        bool covered;                       /* its mark is on the disk: its keys need none of their own */
        bool in_rewrite;                    /* its mark is in the file that is being written */
        bool tracking;                      /* they have some all the same, since the walk is about to begin */
        unsigned n_dirty, n_busy, n_writes; /* keys */
        int64_t done_ms;                    /* PROGRESS: 1: the target's own keys are done; more: what is older is copied */
        uint64_t n_done, n_total;           /* records copied; n_total 0: not known yet */
};

/*
 * The walk of one kind:
 *
 *   NONE ─▶ TARGET   pages of the target: each key there is dirty, so that what the source lacks goes
 *        ─▶ SETTLE   until those are synced
 *        ─▶ CLEAR    metrics only, where the target has some that the source lacks: all of the target's go
 *        ─▶ SURVEY   results and metrics, which are listed newest first: where each page begins, and how many there are
 *        ─▶ COPY     pages of the source, the oldest first, so that lists by arrival come out right
 *        ─▶ NONE     CLEAN goes to the file
 */
enum walk_step { WALK_NONE, WALK_TARGET, WALK_SETTLE, WALK_CLEAR, WALK_SURVEY, WALK_COPY };
struct walk {
        union { /* first: the operation that is under way, while `out` */
                struct om_op op;
                struct om_store_list list;
                struct om_store_put put;
                struct om_store_delete remove;
        };
        struct mirror *m;
        struct part *part;
        struct om_deadline deadline;
        enum walk_step step;
        enum om_store_kind kind;
        bool out;
        bool page_active;      /* from the request for a page of the source until it is in the target */
        bool unsorted;         /* the source's list is not in the order of saved_ms: no resuming half-way */
        bool extraneous;       /* the target has metrics that the source lacks */
        struct om_span cursor; /* in cursors; absent: the beginning, or the end was reached */
        struct om_arena cursors;
        struct survey_page {
                struct om_span cursor; /* where it begins */
                int64_t last_ms;       /* its last record: what is written meanwhile moves it on, even out of the page */
                uint32_t last;
        } * pages;
        size_t n_pages, max_pages;
        bool going_on;    /* the page being copied goes on at `cursor`: its last record has not been met */
        int64_t last_ms;  /* saved_ms of the survey's last record */
        int64_t since_ms; /* an earlier run has copied what is older */
        /* the page that is being copied */
        bool has_page;
        struct om_arena page;
        struct om_store_entry *entries;
        size_t n, at; /* of them; those that are in the target or on their way */
        struct om_span next_cursor;
        struct om_store_entry *chosen;
        struct om_outcome *outcomes;
        struct key **keys;
        size_t n_chosen;
        unsigned pending; /* keys that SETTLE waits for */
        struct om_queue_wait wait;
        bool saving;
        int64_t at_ms; /* of the newest record that was copied */
        int64_t began_ms, saved_at_ms;
        uint64_t n_run; /* records copied in this run: for the rate */
        struct event *timer;
        bool timer_armed;
};

struct verify;
struct metrics_sync;
struct mirror {
        struct routes *r;
        struct part *target;
        enum phase phase;
        bool is_backup; /* of STORAGE_BACKUP_URL */
        bool replace;   /* the target may hold something */
        bool checking;  /* whether it does */
        bool switching; /* waits for both sides to be the same, to change their roles */
        bool holding;
        bool aborting; /* and then the new one is dropped */
        bool stopping;
        bool ended;
        bool stop_posted, closing_queue;
        unsigned mask; /* kinds that it has */
        int64_t started_ms, finished_ms;

        struct om_queue *queue;
        struct key *keys, *line, *metrics_line, *lingering;
        size_t n_keys, n_dirty, n_refused, bytes;
        struct kind_state kinds[KINDS];
        uint64_t epoch;
        unsigned n_sync, n_ops; /* syncs; all operations of the mirror's own that are under way */
        bool metrics_busy;

        struct event *retry;
        struct om_deadlines deadlines;
        bool waiting; /* for the retry */
        unsigned attempts;
        struct om_error error; /* why the last one failed; kind OM_OK: it went well */
        int64_t failing_since_ms;
        uint64_t n_synced, n_failed, n_lost_marks, n_overflows;
        struct om_error refusal; /* of the last key that was refused */

        struct walk walk;
        struct verify *verify;
        struct om_queue_wait rewrite_wait;
        bool rewriting;
        struct om_post queue_closed, self_post;
        struct om_post *gone; /* posted at the end */
        bool target_goes;     /* at the end the target is closed too */
        bool drop_file;       /* and the file of marks removed */
        /* beginning a migration */
        struct om_store_list check;
        struct om_deadline check_deadline;
        unsigned check_kind;
        bool check_out, beginning;
        struct om_queue_wait begin_wait;
        struct event *switch_timer;
};

int mirror_new(struct routes *r, struct part *target, enum phase phase, unsigned mask, struct mirror **ret, struct om_error *e);
/* Ends what is under way, closes the file; then `gone` is posted and the mirror is freed. */
void mirror_stop(struct mirror *m, struct om_post *gone);
/* One that nothing was ever asked of; its target stays. */
void mirror_free_unopened(struct mirror *m);
bool mirror_follows(const struct mirror *m, enum om_store_kind kind);
/* Marks what the write touches. 0: route->wait.fn comes once it is durable; 1: nothing to wait for; -ENOMEM. */
int mirror_write_begin(struct mirror *m, struct route *route);
void mirror_write_end(struct mirror *m, struct route *route);
/* Whether the target may be read for it: it has what the source has. */
bool mirror_may_read(const struct mirror *m, enum om_store_kind kind, struct om_span key, struct om_span name);
void mirror_pump(struct mirror *m);
bool mirror_is_clean(const struct mirror *m);
bool mirror_is_clearing(struct mirror *m, enum om_store_kind kind);
/* An operation of the mirror's own failed on this part: wait, then go on. */
void mirror_trouble(struct mirror *m, const struct part *p, int status, const struct om_error *e);
void mirror_worked(struct mirror *m);
/* One of the mirror's operations was accepted, or has completed. It is cancelled after CALL_TIMEOUT, and when the mirror ends. */
void mirror_op_begun(struct mirror *m, struct part *p, struct om_deadline *dl, struct om_op *op);
void mirror_op_done(struct mirror *m, struct part *p, struct om_deadline *dl);
/* Whether a failure is the entry's own: the storage is well. */
bool is_refusal(int status);

/* -- keys and their marks ------------------------------------------------------------------------------------------ */

/* Opens the file of marks and takes what is there. */
int mirror_load(struct mirror *m, struct om_error *e);
/* The key, made where it is missing if `make`; NULL: there is none, or no memory for it. `name` absent: of all names. */
struct key *mirror_key(struct mirror *m, enum om_store_kind kind, struct om_span key, struct om_span name, bool make);
void mirror_dirty(struct mirror *m, struct key *k);
void mirror_mark(struct mirror *m, struct key *k); /* adds its mark to the file */
/* After anything about a key has changed: into the line, out of memory, or neither. */
void mirror_settle(struct mirror *m, struct key *k);
void mirror_out_of_line(struct mirror *m, struct key *k);
/* It is being brought over, and was: dirty again where that failed. Its epoch is the caller's; mirror_settle() follows. */
void mirror_take(struct mirror *m, struct key *k);
void mirror_give(struct mirror *m, struct key *k, bool again);
void mirror_refuse(struct mirror *m, struct key *k, int status, const char *why);
void mirror_retry_refused(struct mirror *m);
void mirror_page_over(struct mirror *m); /* what was kept for the walk's page goes */
/* All of the kind must be walked; because its keys are too many; the file holds what is dirty, and nothing else, from now on. */
void mirror_mark_kind(struct mirror *m, enum om_store_kind kind);
void mirror_overflow(struct mirror *m, enum om_store_kind kind);
void mirror_rewrite(struct mirror *m);

/* -- bringing them over -------------------------------------------------------------------------------------------- */

/* 0: it is under way, and mirror_pump() is called at its end. What fails at once waits as what fails later does. */
int sync_begin(struct mirror *m, struct key *k);
void sync_begin_metrics(struct mirror *m); /* those of the first time in their line */

/* Brings the metrics of a time to the target. `done` comes once, later. */
typedef void metrics_sync_done_fn(struct mirror *m, void *ctx, int status);
int metrics_sync(struct mirror *m, const struct om_store_entry *entries, size_t n, int64_t at_ms, metrics_sync_done_fn *done, void *ctx);

/* Whether the source has all of these, which the target has: status 0, or 1 where one is not. */
int metrics_check(struct mirror *m, const struct om_store_entry *entries, size_t n, metrics_sync_done_fn *done, void *ctx);

/* Whether the other side has all of these: status 0, or 1 where one is not. */
int metrics_compare(
        struct mirror *m, const struct om_store_entry *entries, size_t n, bool of_target, metrics_sync_done_fn *done, void *ctx);

/* Whether two values are the same JSON, whatever their spelling. */
bool same_value(struct om_span a, struct om_span b);

/* -- the walk ------------------------------------------------------------------------------------------------------ */
int walk_init(struct mirror *m);
void walk_pump(struct mirror *m);
void walk_key_settled(struct mirror *m, struct key *k);
void walk_deinit(struct mirror *m);

/* -- verify -------------------------------------------------------------------------------------------------------- */
int verify_start(struct mirror *m, bool repair, struct om_error *e);
void verify_pump(struct mirror *m);
bool verify_is_running(const struct mirror *m);
bool verify_is_idle(const struct mirror *m);
void verify_free(struct mirror *m);
void verify_put(const struct mirror *m, struct om_buf *b);

/* -- migration ----------------------------------------------------------------------------------------------------- */
/* What the state folder says; makes main, results and the mirror. */
int migrate_open(struct routes *r, struct om_error *e);
void migrate_pump(struct mirror *m);
void migrate_copied(struct mirror *m);
int migrate_init(struct mirror *m);
void migrate_deinit(struct mirror *m);

void health_mirror(struct om_buf *b, const struct mirror *m);
int routes_health(struct om_store *s, struct om_store_health *op, struct om_error *e);

#endif
