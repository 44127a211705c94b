/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See front.h. FRONT_LOOP wakes itself through a descriptor, as a library does whose answers come over a socket; FRONT_THREAD has a thread
 * with a queue of its own; FRONT_WORKER lends the host's.
 */
#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "front.h"

struct front {
        enum front_kind kind;
        struct om_host *host;
        size_t n;
        struct om_post *stopped;
        struct front_job *head, **tail; /* FRONT_LOOP, FRONT_THREAD */

        int fd; /* FRONT_LOOP: an eventfd that counts the jobs */
        struct event *readable;

        pthread_t thread; /* FRONT_THREAD */
        pthread_mutex_t lock;
        pthread_cond_t wake;
        bool stopping;
        struct om_post gone;

        struct om_worker *worker; /* FRONT_WORKER */
};

static void job_done(struct om_post *post) {
        struct front_job *job = (void *) ((char *) post - offsetof(struct front_job, post));
        job->front->n--;
        job->done(job);
}

static void run_and_post(struct front *f, struct front_job *job) {
        job->run(job);
        job->post.fn = job_done;
        om_host_post(f->host, &job->post);
}

static struct front_job *take(struct front *f) {
        struct front_job *job = f->head;
        if (job && !(f->head = (struct front_job *) job->work.next))
                f->tail = &f->head;
        return job;
}

static void append(struct front *f, struct front_job *job) {
        job->work.next = NULL;
        *f->tail = job;
        f->tail = (struct front_job **) &job->work.next;
}

/* -- on the loop --------------------------------------------------------------------------------------------------- */

static void on_readable(evutil_socket_t fd, short what, void *arg) {
        struct front *f = arg;
        eventfd_t one;
        if (eventfd_read(fd, &one) < 0)
                return;
        struct front_job *job = take(f);
        job->run(job);
        f->n--;
        job->done(job);
}

static int start_loop(struct front *f, struct om_error *e) {
        f->fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
        if (f->fd < 0)
                return om_error_set_errno(e, errno, "eventfd");
        f->readable = event_new(f->host->base, f->fd, EV_READ | EV_PERSIST, on_readable, f);
        return f->readable && event_add(f->readable, NULL) == 0 ? 0 : om_error_set_errno(e, ENOMEM, "event");
}

/* -- on a thread of its own ---------------------------------------------------------------------------------------- */

static void *thread_main(void *arg) {
        struct front *f = arg;
        pthread_mutex_lock(&f->lock);
        for (;;) {
                struct front_job *job = take(f);
                if (job) {
                        pthread_mutex_unlock(&f->lock);
                        run_and_post(f, job);
                        pthread_mutex_lock(&f->lock);
                } else if (f->stopping)
                        break;
                else
                        pthread_cond_wait(&f->wake, &f->lock);
        }
        pthread_mutex_unlock(&f->lock);
        om_host_post(f->host, &f->gone);
        return NULL;
}

static void thread_gone(struct om_post *post) {
        struct front *f = (void *) ((char *) post - offsetof(struct front, gone));
        pthread_join(f->thread, NULL);
        f->stopped->fn(f->stopped);
}

/* -- on a worker --------------------------------------------------------------------------------------------------- */

static int worker_turn(void *ctx, struct om_work *list) {
        for (struct om_work *next; list; list = next) {
                next = list->next;
                run_and_post(ctx, (struct front_job *) list);
        }
        return -1;
}

/* -- all of them --------------------------------------------------------------------------------------------------- */

int front_new(enum front_kind kind, struct om_host *host, struct front **ret, struct om_error *e) {
        struct front *f = calloc(1, sizeof(*f));
        f->kind = kind;
        f->host = host;
        f->tail = &f->head;
        f->gone.fn = thread_gone;
        *ret = f;
        if (kind == FRONT_LOOP)
                return start_loop(f, e);
        if (kind == FRONT_WORKER)
                return host->ops->worker_new(host, "test", worker_turn, f, &f->worker, e);
        pthread_mutex_init(&f->lock, NULL);
        pthread_cond_init(&f->wake, NULL);
        return -pthread_create(&f->thread, NULL, thread_main, f);
}

int front_submit(struct front *f, struct front_job *job) {
        if (f->n >= FRONT_JOBS_MAX)
                return -ENOBUFS;
        front_submit_always(f, job);
        return 0;
}

void front_submit_always(struct front *f, struct front_job *job) {
        f->n++;
        job->front = f;
        if (f->kind == FRONT_WORKER) {
                f->host->ops->worker_submit(f->worker, &job->work);
        } else if (f->kind == FRONT_LOOP) {
                append(f, job);
                eventfd_write(f->fd, 1);
        } else {
                pthread_mutex_lock(&f->lock);
                append(f, job);
                pthread_cond_signal(&f->wake);
                pthread_mutex_unlock(&f->lock);
        }
}

size_t front_count(const struct front *f) { return f->n; }

void front_stop(struct front *f, struct om_post *stopped) {
        f->stopped = stopped;
        if (f->kind == FRONT_WORKER) {
                f->host->ops->worker_stop(f->worker, stopped);
        } else if (f->kind == FRONT_LOOP) {
                event_free(f->readable);
                close(f->fd);
                om_host_post(f->host, stopped);
        } else {
                pthread_mutex_lock(&f->lock);
                f->stopping = true;
                pthread_cond_signal(&f->wake);
                pthread_mutex_unlock(&f->lock);
        }
}

void front_free(struct front *f) {
        if (f->kind == FRONT_THREAD) {
                pthread_cond_destroy(&f->wake);
                pthread_mutex_destroy(&f->lock);
        }
        free(f);
}
