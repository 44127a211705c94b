/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: which messages this daemon has told the server to keep from others for reclaim_idle_ms, and what becomes of that when one of the
 * two dies.
 *
 * The journal. A daemon that was killed and started again is the only one who knows that nobody works on them any more: it gives them back
 * at once, and they come again as the next attempt, rather than after reclaim_idle_ms. The journal is a file in the state folder with a
 * slot for each lease, mapped: what a process wrote survives it without a system call. It need not survive the machine, after which the
 * server's time runs out as it does for anybody. A slot is written from its second byte on and begun with its first, so that none is read
 * half.
 *
 * The last verdicts. A server writes the state of a consumer some 100 ms after it has confirmed an answer (consumerFileStore.flushLoop in
 * the server's filestore.go, also with `sync_interval: always`). Killed within them it has forgotten the answer, and where it knows of the
 * lease it would deliver what is finished when that is over. So each source keeps the verdicts of its last seconds, and they are told again
 * when the server is back and its consumer is the same one. +ACK and +TERM may be said any number of times. A -NAK is said again only where
 * the task is not with a worker again; where it is with one of another daemon, it is delivered once more than it had to be. Verdicts about
 * what was kept for AckWait only are not repeated: that comes again by itself, soon.
 *
 * Loop thread.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bus_state.h"

enum {
        SLOT = 512,
        SLOTS_MIN = 128,
        FORGETS_MS = 2000, /* what a server has confirmed so long ago it has written, on a busy disk too */
        VERDICTS_MAX = 16384,
};

struct verdict {
        int64_t said_ms;
        int64_t due_ms; /* of a -NAK: when the task may come again, in the time of the day */
        uint64_t seq;
        struct verdict *prev, *next;
        char what; /* its first character */
        char subject[];
};

static int map(struct om_bus *b, size_t n) {
        void *p;

        if (ftruncate(b->leases_fd, (off_t) (n * SLOT)) < 0)
                return -errno;
        p = b->leases ? mremap(b->leases, b->n_leases * SLOT, n * SLOT, MREMAP_MAYMOVE)
                      : mmap(NULL, n * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, b->leases_fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        b->leases = p;
        b->n_leases = n;
        return 0;
}

static void inherit(struct om_bus *b) {
        b->inherited = calloc(b->n_leases, sizeof(char *));
        for (size_t i = 0; i < b->n_leases && b->inherited; i++) {
                char *slot = b->leases + i * SLOT;

                if (slot[0] && memchr(slot, 0, SLOT) && strncmp(slot, "$JS.ACK.", 8) == 0 && (b->inherited[b->n_inherited] = strdup(slot)))
                        b->n_inherited++;
        }
        memset(b->leases, 0, b->n_leases * SLOT);
}

int nats_leases_open(struct om_bus *b, const char *where, struct om_error *e) {
        char *path = NULL;
        uint64_t h = 0xcbf29ce484222325u;
        size_t n;
        off_t size;
        int r = 0;

        for (const char *p = where; *p; p++)
                h = (h ^ (unsigned char) *p) * 0x100000001b3u;
        if (asprintf(&path, "%s/nats-%s-%016llx.leases", b->host->state_dir, b->settings.c.prefix, (unsigned long long) h) < 0)
                return om_error_set_errno(e, ENOMEM, "NATS");
        b->leases_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (b->leases_fd < 0)
                r = om_error_set_errno(e, errno, "NATS: the journal of leases %s", path);
        else {
                size = lseek(b->leases_fd, 0, SEEK_END);
                n = size > SLOTS_MIN * SLOT ? (size_t) size / SLOT : SLOTS_MIN;
                r = map(b, n);
                if (r < 0)
                        r = om_error_set_errno(e, r, "NATS: the journal of leases %s", path);
                else
                        inherit(b);
        }
        free(path);
        return r;
}

void nats_leases_close(struct om_bus *b) {
        for (size_t i = 0; i < b->n_inherited; i++)
                free(b->inherited[i]);
        free(b->inherited);
        if (b->leases)
                munmap(b->leases, b->n_leases * SLOT);
        if (b->leases_fd >= 0)
                close(b->leases_fd);
}

/* Where there is no room for it, the lease runs out in the server's time. */
void nats_lease_note(struct delivery *d) {
        struct om_bus *b = d->bus;
        size_t len = strlen(d->ack), i;
        char *slot;

        if (d->slot || len >= SLOT)
                return;
        for (i = 0; i < b->n_leases && b->leases[(b->next_lease + i) % b->n_leases * SLOT]; i++)
                ;
        i = i == b->n_leases ? b->n_leases : (b->next_lease + i) % b->n_leases;
        if (i == b->n_leases && map(b, b->n_leases * 2) < 0)
                return;
        b->next_lease = i + 1;
        d->slot = (uint32_t) i + 1;
        slot = b->leases + i * SLOT;
        memcpy(slot + 1, d->ack + 1, len);
        atomic_signal_fence(memory_order_release);
        slot[0] = d->ack[0];
}

void nats_lease_forget(struct delivery *d) {
        if (!d->slot || d->bus->closing) /* what is open when the bus is closed goes back in the next life */
                return;
        memset(d->bus->leases + (size_t) (d->slot - 1) * SLOT, 0, SLOT);
        d->slot = 0;
}

void nats_leases_return(struct om_bus *b) {
        static const char text[] = "-NAK {\"delay\":1000000}";
        natsMsg *msg;

        while (b->n_inherited) {
                char *subject = b->inherited[--b->n_inherited];

                if (natsMsg_Create(&msg, subject, NULL, text, sizeof text - 1) == NATS_OK)
                        nats_send(b->link, msg);
                free(subject);
        }
}

/* -- the last verdicts ---------------------------------------------------------------------------------------------- */

static void drop(struct source *s, struct verdict *v) {
        DL_DELETE(s->verdicts, v);
        s->n_verdicts--;
        free(v);
}

void nats_verdicts_forget(struct source *s) {
        while (s->verdicts)
                drop(s, s->verdicts);
}

void nats_verdict_note(struct delivery *d, const char *text, int64_t due_ms) {
        size_t size = strlen(d->ack) + 1;
        int64_t now = om_clock_ms();
        struct source *s = d->extended ? nats_source_find(d->bus, d->stream, d->consumer) : NULL;
        struct verdict *v;

        if (!s || !s->sub)
                return;
        while ((v = s->verdicts) && (s->n_verdicts >= VERDICTS_MAX || now - v->said_ms > FORGETS_MS))
                drop(s, v);
        v = malloc(sizeof *v + size);
        if (!v)
                return; /* then it may come late */
        *v = (struct verdict){ .said_ms = now, .due_ms = due_ms, .seq = d->seq, .what = text[0] };
        memcpy(v->subject, d->ack, size);
        DL_APPEND(s->verdicts, v);
        s->n_verdicts++;
}

static bool is_here(const struct source *s, uint64_t seq) {
        for (const struct delivery *d = s->sub ? s->sub->out : NULL; d; d = d->next)
                if (d->seq == seq && nats_is_from(d, s))
                        return true;
        return false;
}

void nats_verdicts_repeat(struct source *s, int64_t away_ms) {
        int64_t now = om_clock_ms(), away_since = om_now_ms() - (now - away_ms);

        for (size_t n = s->n_verdicts; n; n--) {
                struct verdict *v = s->verdicts;
                int64_t left = v->due_ms - om_now_ms();
                char text[64] = "+ACK";
                natsMsg *msg;

                if (away_ms - v->said_ms > FORGETS_MS || (v->what == '-' && (v->due_ms < away_since - FORGETS_MS || is_here(s, v->seq)))) {
                        drop(s, v);
                        continue;
                }
                if (v->what == '-')
                        snprintf(text, sizeof text, "-NAK {\"delay\":%lld000000}", (long long) (left < 1 ? 1 : left));
                if (natsMsg_Create(&msg, v->subject, NULL, text, (int) strlen(text)) == NATS_OK)
                        nats_send(s->bus->link, msg);
                v->said_ms = now; /* it may be forgotten like the first time */
                DL_DELETE(s->verdicts, v);
                DL_APPEND(s->verdicts, v);
        }
}
