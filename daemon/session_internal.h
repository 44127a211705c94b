/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SESSION_INTERNAL_H
#define OM_SESSION_INTERNAL_H
/*
 * What session.c (life), session_read.c (reading) and reply.c (writing and requests) share; nobody else includes it. Loop thread.
 *
 * Memory: an idle session is this struct and nothing else. Its buffers are the pool's spare ones, taken with the first byte and given back
 * with the last.
 */
#include <event2/event_struct.h>

#include "session.h"
#include "metrics.h"

enum {
        OM_FRAMES_PER_TURN = 1024,       /* of one session: then the others have their turn */
        OM_SCRATCH_BYTES = 256 << 10,    /* one read(2): more than a Unix socket holds by default */
        OM_IN_STEP_BYTES = 64 << 10,     /* a large frame's buffer grows by this or doubles, so that a length alone costs nothing */
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

struct om_session {
        struct om_core *core;
        struct om_session_pool *pool;
        struct om_session *next, *prev;             /* core->sessions; once closed: the pool's dead */
        struct om_session *dirty_next, *dirty_prev; /* has output that no turn end has tried to send */
        struct om_session *more_next, *more_prev;   /* has something to do in the next turn: input read already, an end */
        struct om_request *requests;
        void *dispatch, *watch;
        char *name;
        uint64_t serial;
        struct om_peer peer;
        int fd;
        enum om_session_state state;
        unsigned in_flight;
        bool reading; /* ev_read is added */
        bool dirty, more;
        bool above;         /* output went above the limit and has not come down far enough yet */
        bool hurried;       /* ends at the latest when its linger time is over */
        bool broken;        /* the client sent what cannot be framed: its side is closed after the error */
        bool shut;          /* that was done */
        const char *doomed; /* why it is closed in the next turn: nothing is read, written or sent any more */
        bool detached;      /* dispatch and watch have been told that it is over */
        struct om_buf in;   /* the beginning of a frame; or frames that wait for a turn, for requests or for output to be answered */
        struct om_buf out;  /* frames; those before out_sent are sent */
        size_t out_sent;
        struct event ev_read, ev_write, ev_timer;
};

struct om_session_pool {
        struct om_core *core;
        struct om_daemon_metrics *counters, own_counters; /* own: of a core without metrics */
        char *scratch;
        struct om_session *dirty, *more, *dead;
        unsigned n_more;
        struct om_turn_end flush;
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
void om_session_spare_take(struct om_session_pool *p, struct om_buf *b); /* into an empty one; may stay without memory */
void om_session_set_more(struct om_session *s);                          /* it has its share of the next turn */
void om_session_on_end_of_input(struct om_session *s);
void om_session_on_unframable(struct om_session *s, const struct om_error *e); /* says so to the client; the connection is over */

/* session_read.c */
void om_session_on_readable(evutil_socket_t fd, short what, void *ctx);
/* Handles the frames that wait in `in`, at most *budget. True when there is nothing left, or only the beginning of a frame. */
bool om_session_work_off(struct om_session *s, unsigned *budget);
void om_session_resume(struct om_session *s);     /* something that held back its input has gone */
bool om_session_held(const struct om_session *s); /* its input is held back */

/* reply.c */
void om_session_flush_turn(struct om_turn_end *t);
void om_session_on_writable(evutil_socket_t fd, short what, void *ctx);
size_t om_session_unsent(const struct om_session *s);
/* A request for a body that parsed; NULL when out of memory. */
struct om_request *om_request_new(struct om_session *s, struct om_span id, bool notification);
void om_session_put_error(struct om_session *s, struct om_span id, const struct om_error *e); /* without a request */

#endif
