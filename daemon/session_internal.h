/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SESSION_INTERNAL_H
#define OM_SESSION_INTERNAL_H
/*
 * What session.c (life), session_read.c (reading), session_turn.c (whose turn it is), session_memory.c (what they hold) and reply.c
 * (writing and requests) share; nobody else includes it. Loop thread.
 *
 * Memory: an idle session is this struct and nothing else. Its buffers are the pool's spare ones, taken with the first byte and given back
 * with the last.
 */
#include <event2/event_struct.h>

#include "session.h"
#include "metrics.h"

enum {
        OM_FRAMES_AT_ONCE = 1024,        /* of one session: then the others are served */
        OM_LEAST_FRAMES_AT_ONCE = 64,    /* the same when many wait */
        OM_SLICE_NS = 200000,            /* of all sessions in one turn: then bus, storage, timers and what goes out have theirs */
        OM_LEAST_READ_BYTES = 4 << 10,   /* one read(2), when many wait or little memory is left */
        OM_SCRATCH_BYTES = 256 << 10,    /* one read(2) at most: more than a Unix socket holds by default */
        OM_REQUEST_BYTES = 1 << 10,      /* what a request that is not answered yet takes besides its body, about: it and its call */
        OM_LEAST_OUTPUT_BYTES = 4 << 10, /* what may be unsent, however little is left for all */
        OM_LEAST_REQUESTS = 16,          /* what may be unanswered, the same */
        OM_SPARE_BYTES = 256 << 10,      /* larger buffers are freed, not kept */
        OM_SPARES = 8,                   /* spare buffers kept */
        OM_SPARE_REQUESTS = 4096,        /* free requests kept */
        OM_SMALL_REPLY_BYTES = 4 << 10,  /* goes out however much is unsent */
        OM_LINGER_MS = 1000,             /* for a session that is ending: to take its output and to close its side */
        OM_NOTIFICATION_SLACK = 4 << 10, /* above the frame limit: a task that fitted a publish fits a delivery */
};

enum om_session_state {
        OM_SESSION_OPEN,   /* reads and writes. Leaves by end of input, a frame that cannot be framed, a drain, an error */
        OM_SESSION_ENDING, /* reads no more; answers under way still go out; then it is closed */
        OM_SESSION_CLOSED, /* no descriptor, on the pool's list of the dead; the memory goes a turn later */
};

/* Who waits to be served. A session that has been quiet comes before those that had more than could be read at once. */
enum om_session_line { OM_LINE_NONE, OM_LINE_FRESH, OM_LINE_BUSY, OM_LINES };

/* What a session's timer is for; the later ones win. */
enum om_session_timer {
        OM_TIMER_NONE,
        OM_TIMER_FRAME,  /* it has begun a frame */
        OM_TIMER_STALL,  /* its output is above its limit and its socket takes nothing */
        OM_TIMER_LINGER, /* it is ending in a hurry */
};

enum { OM_SIZE_CLASSES = 40 }; /* by powers of two; the first has those that hold less than OM_CLASSED_BYTES, in no list */

struct om_session {
        struct om_core *core;
        struct om_session_pool *pool;
        struct om_session *next, *prev;             /* core->sessions; once closed: the pool's dead */
        struct om_session *dirty_next, *dirty_prev; /* has output that no turn end has tried to send */
        struct om_session *line_next, *line_prev;   /* waits to be served: input, room in its socket, an end */
        struct om_session *size_next, *size_prev;   /* those that hold about as much */
        struct om_request *requests;
        void *dispatch, *watch;
        char *name;
        uint64_t serial;
        struct om_peer peer;
        int fd;
        enum om_session_state state;
        unsigned in_flight;
        unsigned size_class;
        enum om_session_line line;
        enum om_session_timer timer; /* while ev_timer is pending */
        bool reading;                /* ev_read is added */
        bool dirty;
        bool writable;      /* its socket had room, and there was no time to use it */
        bool unread;        /* the last read took all that it might: there may be more */
        bool halted;        /* it was not read because it is held back */
        bool above;         /* output went above the limit and has not come down far enough yet */
        bool overdue;       /* the time of the frame that it has begun is over */
        bool hurried;       /* ends at the latest when its linger time is over */
        bool broken;        /* the client sent what cannot be framed: its side is closed after the error */
        bool shut;          /* that was done */
        const char *doomed; /* why it is closed in the next turn: nothing is read, written or sent any more */
        bool detached;      /* dispatch and watch have been told that it is over */
        struct om_buf in;   /* the beginning of a frame; or frames that wait for a turn, for requests or for output to be answered */
        struct om_buf out;  /* frames; those before out_sent are sent */
        size_t out_sent;
        size_t request_bytes; /* what its unanswered requests take */
        size_t held_bytes;    /* that and the buffers, as the pool has counted it */
        uint64_t n_frames;    /* taken so far */
        uint64_t timed_frame; /* the one that its timer is for */
        struct event ev_read, ev_write, ev_timer;
};

struct om_session_pool {
        struct om_core *core;
        struct om_daemon_metrics *counters, own_counters; /* own: of a core without metrics */
        char *scratch;
        struct om_session *dirty, *dead;
        struct om_session *lines[OM_LINES];
        struct om_turn_end flush, turn_over;
        uint64_t slice_end_ns; /* of this turn; 0: no session has been served in it */
        bool crowded;          /* some still waited when it was over */
        size_t held_bytes;     /* by all sessions */
        size_t orphan_bytes;   /* by requests whose sessions are gone */
        struct om_session *sizes[OM_SIZE_CLASSES];
        unsigned top_class; /* no session is in a higher one */
        bool shedding;      /* too much is held: some are ended until it is clearly less */
        bool second_pass;
        struct om_post work;
        bool posted, freed;
        struct om_post *drained; /* set while draining */
        bool quiet;              /* nothing is read any more */
        uint64_t next_serial;
        struct om_request *spare_requests;
        unsigned n_spare_requests, n_spares;
        struct om_buf spares[OM_SPARES];
        /* a reply or notification being written */
        struct om_session *writing;
        size_t mark;
};

/* session.c */
void om_session_finish(struct om_session *s); /* an ending one: closes it when nothing is left to do */
/* The same in the next turn: for those who are called from anywhere. */
void om_session_finish_later(struct om_session *s);
void om_session_doom(struct om_session *s, const char *reason);
void om_session_spare_put(struct om_session_pool *p, struct om_buf *b);
void om_session_spare_take(struct om_session_pool *p, struct om_buf *b);                  /* into an empty one; may stay without memory */
void om_session_want_work(struct om_session_pool *p);                                     /* on_work in the next turn */
void om_session_set_timer(struct om_session *s, enum om_session_timer timer, int64_t ms); /* NONE: stops it */
bool om_session_peer_gone(const struct om_session *s); /* the client has closed both directions: nobody will read an answer */
void om_session_on_end_of_input(struct om_session *s);
void om_session_on_unframable(struct om_session *s, const struct om_error *e); /* says so to the client; the connection is over */

/* session_turn.c */
bool om_session_turn_has_time(struct om_session_pool *p); /* for one more session */
void om_session_turn_over(struct om_turn_end *t);
size_t om_session_turn_read_bytes(const struct om_session_pool *p);          /* what one session may read now */
unsigned om_session_turn_frames(const struct om_session_pool *p);            /* how many frames of one session may be handled now */
void om_session_enter_line(struct om_session *s, enum om_session_line line); /* unless it stands in one */
void om_session_leave_line(struct om_session *s);
void om_session_serve_lines(struct om_session_pool *p); /* as long as there is time, at least one of each line */

/* session_memory.c */
void om_session_count(struct om_session *s);   /* after its buffers or requests have changed */
void om_session_uncount(struct om_session *s); /* it is closed; its requests live on as orphans */
void om_session_uncount_orphan(struct om_session_pool *p, const struct om_request *req);
size_t om_session_memory_share(const struct om_session_pool *p); /* what one session may hold now; 0: all should hold less */
size_t om_session_output_limit(const struct om_session *s);
size_t om_session_request_limit(const struct om_session_pool *p);
void om_session_limit_socket(const struct om_session *s); /* a new one: what the system may hold for it */
void om_session_shed(struct om_session_pool *p);          /* ends those that hold most while too much is held, as far as there is time */

/* session_read.c */
void om_session_on_readable(evutil_socket_t fd, short what, void *ctx);
/* It is its turn: handles what waits in `in`, then reads. */
void om_session_serve(struct om_session *s);
void om_session_resume(struct om_session *s);     /* something that held back its input has gone */
bool om_session_held(const struct om_session *s); /* its input is held back */
void om_session_time_frame(struct om_session *s); /* starts or stops the timer of a frame that has begun */

/* reply.c */
void om_session_flush(struct om_session *s);
void om_session_flush_turn(struct om_turn_end *t);
void om_session_on_writable(evutil_socket_t fd, short what, void *ctx);
size_t om_session_unsent(const struct om_session *s);
/* A request for a body of so many bytes that parsed; NULL when out of memory. */
struct om_request *om_request_new(struct om_session *s, struct om_span id, bool notification, size_t body_bytes);
void om_session_put_error(struct om_session *s, struct om_span id, const struct om_error *e); /* without a request */

#endif
