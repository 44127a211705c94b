/* SPDX-License-Identifier: Apache-2.0 */
/* Finished offsets and their text: see offsets.h. What is true: runs ascend, none touches another or `low`; unpacking takes any bytes. */
#include <errno.h>
#include <stdlib.h>

#include "offsets.h"

/* -- runs ----------------------------------------------------------------------------------------------------------- */

void kafka_track_deinit(struct kafka_track *t) {
        free(t->runs);
        *t = (struct kafka_track){ .low = 0 };
}

/* The first run that ends at or behind the offset. */
static size_t run_at(const struct kafka_track *t, int64_t offset) {
        size_t low = 0, high = t->n;

        while (low < high) {
                size_t mid = (low + high) / 2;

                if (t->runs[mid].to < offset)
                        low = mid + 1;
                else
                        high = mid;
        }
        return low;
}

bool kafka_track_is_done(const struct kafka_track *t, int64_t offset) {
        size_t i;

        if (offset < t->low)
                return true;
        i = run_at(t, offset + 1);
        return i < t->n && t->runs[i].from <= offset;
}

static bool room(struct kafka_track *t) {
        if (t->n == t->cap) {
                size_t cap = t->cap ? t->cap * 2 : 8;
                struct kafka_run *runs = reallocarray(t->runs, cap, sizeof *runs);

                if (!runs)
                        return false;
                t->runs = runs;
                t->cap = cap;
        }
        return true;
}

static void drop(struct kafka_track *t, size_t from, size_t n) {
        memmove(t->runs + from, t->runs + from + n, (t->n - from - n) * sizeof *t->runs);
        t->n -= n;
}

static bool insert(struct kafka_track *t, size_t at, struct kafka_run run) {
        if (!room(t))
                return false;
        memmove(t->runs + at + 1, t->runs + at, (t->n - at) * sizeof *t->runs);
        t->runs[at] = run;
        t->n++;
        return true;
}

bool kafka_track_done(struct kafka_track *t, int64_t from, int64_t to) {
        size_t first, last;

        if (from < t->low)
                from = t->low;
        if (to <= from)
                return true;
        first = run_at(t, from);
        for (last = first; last < t->n && t->runs[last].from <= to; last++) {
                from = t->runs[last].from < from ? t->runs[last].from : from;
                to = t->runs[last].to > to ? t->runs[last].to : to;
        }
        if (from <= t->low) {
                t->low = to;
                if (last > first)
                        drop(t, first, last - first);
                return true;
        }
        if (last == first)
                return insert(t, first, (struct kafka_run){ from, to });
        t->runs[first] = (struct kafka_run){ from, to };
        drop(t, first + 1, last - first - 1);
        return true;
}

bool kafka_track_undo(struct kafka_track *t, int64_t offset) {
        size_t i;
        struct kafka_run run;

        if (!kafka_track_is_done(t, offset))
                return true;
        if (offset < t->low) {
                if (offset + 1 < t->low && !insert(t, 0, (struct kafka_run){ offset + 1, t->low }))
                        return false;
                t->low = offset;
                return true;
        }
        i = run_at(t, offset + 1);
        run = t->runs[i];
        if (run.from < offset && offset + 1 < run.to) {
                if (!insert(t, i + 1, (struct kafka_run){ offset + 1, run.to }))
                        return false;
                t->runs[i].to = offset;
        } else if (run.from < offset)
                t->runs[i].to = offset;
        else if (offset + 1 < run.to)
                t->runs[i].from = offset + 1;
        else
                drop(t, i, 1);
        return true;
}

uint64_t kafka_track_above(const struct kafka_track *t) {
        uint64_t n = 0;

        for (size_t i = 0; i < t->n; i++)
                n += (uint64_t) (t->runs[i].to - t->runs[i].from);
        return n;
}

/* -- numbers and base64 ---------------------------------------------------------------------------------------------- */

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void put(struct om_buf *b, uint64_t n) {
        while (n >= 0x80) {
                om_buf_putc(b, (char) (n | 0x80));
                n >>= 7;
        }
        om_buf_putc(b, (char) n);
}
static void put_signed(struct om_buf *b, int64_t n) { put(b, n > 0 ? (uint64_t) n : 0); }

static void encode(struct om_buf *b, struct om_span bytes) {
        for (size_t i = 0; i < bytes.len; i += 3) {
                uint32_t v = 0;
                size_t n = bytes.len - i < 3 ? bytes.len - i : 3;

                for (size_t k = 0; k < 3; k++)
                        v = v << 8 | (k < n ? (unsigned char) bytes.p[i + k] : 0);
                for (size_t k = 0; k <= n; k++)
                        om_buf_putc(b, digits[v >> (18 - 6 * k) & 63]);
        }
}

static bool decode(struct om_buf *b, struct om_span text) {
        uint32_t v = 0;
        unsigned bits = 0;

        for (size_t i = 0; i < text.len; i++) {
                const char *at = text.p[i] ? strchr(digits, text.p[i]) : NULL;

                if (!at)
                        return false;
                v = v << 6 | (uint32_t) (at - digits);
                bits += 6;
                if (bits >= 8) {
                        bits -= 8;
                        om_buf_putc(b, (char) (v >> bits));
                        v &= (1u << bits) - 1;
                }
        }
        return bits < 6;
}

struct reader {
        const unsigned char *p, *end;
        bool bad;
};
static uint64_t get(struct reader *r) {
        uint64_t n = 0;

        for (unsigned shift = 0; shift < 64; shift += 7) {
                if (r->p == r->end)
                        break;
                n |= (uint64_t) (*r->p & 0x7f) << shift;
                if (!(*r->p++ & 0x80))
                        return n;
        }
        r->bad = true;
        return 0;
}
/* What an offset or a time may be; sums of two of them do not overflow. */
static int64_t get_signed(struct reader *r) {
        uint64_t n = get(r);

        if (n >= (uint64_t) 1 << 61) {
                r->bad = true;
                return 0;
        }
        return (int64_t) n;
}

/* -- the text --------------------------------------------------------------------------------------------------------- */

static void put_runs(struct om_buf *b, const struct kafka_position *p) {
        int64_t from = p->track.low;

        put_signed(b, p->track.low);
        put_signed(b, p->next - p->track.low);
        put(b, p->track.n);
        for (size_t i = 0; i < p->track.n; i++) {
                put_signed(b, p->track.runs[i].from - from);
                put_signed(b, p->track.runs[i].to - p->track.runs[i].from);
                from = p->track.runs[i].to;
        }
}

static void put_mark(struct om_buf *b, const struct kafka_position *p, const struct kafka_mark *m) {
        put_signed(b, m->offset - p->track.low);
        put(b, (uint64_t) m->attempts << 1 | m->waiting);
        if (m->waiting)
                put_signed(b, m->due_ms);
}

/* The marks go into `marks` as far as there is room for them; how many that are. */
static size_t fit_marks(struct om_buf *marks, const struct kafka_position *p, size_t room_bytes) {
        size_t n = 0, kept = 0;

        for (; n < p->n_marks; n++) {
                put_mark(marks, p, &p->marks[n]);
                if (marks->len > room_bytes)
                        break;
                kept = marks->len;
        }
        if (om_buf_ok(marks))
                marks->len = kept;
        return n;
}

size_t kafka_state_pack(struct om_buf *b, const struct kafka_state *s, size_t max) {
        struct om_buf bytes = OM_BUF_INIT, runs[2] = { OM_BUF_INIT, OM_BUF_INIT }, marks[2] = { OM_BUF_INIT, OM_BUF_INIT };
        size_t least, n[2], all = max / 4 * 3;

        put(&bytes, s->owner);
        put(&bytes, s->finished);
        put(&bytes, s->clean);
        for (int i = 0; i < 2; i++)
                put_runs(&runs[i], &s->at[i]);
        least = bytes.len + runs[0].len + runs[1].len + 16;
        for (int i = 0, used = 0; i < 2; i++) {
                size_t left = all > least + (size_t) used ? all - least - (size_t) used : 0;

                n[i] = fit_marks(&marks[i], &s->at[i], left);
                used += (int) marks[i].len;
        }
        for (int i = 0; i < 2; i++) {
                om_buf_put_span(&bytes, om_buf_span(&runs[i]));
                put(&bytes, n[i]);
                om_buf_put_span(&bytes, om_buf_span(&marks[i]));
                bytes.failed |= runs[i].failed || marks[i].failed;
                om_buf_deinit(&runs[i]);
                om_buf_deinit(&marks[i]);
        }
        om_buf_lit(b, "o1:");
        if (om_buf_ok(&bytes))
                encode(b, om_buf_span(&bytes));
        b->failed |= bytes.failed;
        om_buf_deinit(&bytes);
        return 3 + (least * 4 + 2) / 3;
}

static int get_position(struct reader *r, struct kafka_position *p) {
        int64_t at;
        uint64_t n;

        at = p->track.low = get_signed(r);
        p->next = p->track.low + get_signed(r);
        n = get(r);
        for (uint64_t i = 0; i < n && !r->bad; i++) {
                int64_t from = at + get_signed(r);

                if (from <= at || from > INT64_MAX / 4) { /* one that touches would have been written as one with it */
                        r->bad = true;
                        break;
                }
                at = from + get_signed(r);
                r->bad |= at == from;
                if (!r->bad && !kafka_track_done(&p->track, from, at))
                        return -ENOMEM;
                if (at > INT64_MAX / 4)
                        r->bad = true;
        }
        n = get(r);
        if (r->bad || n > (uint64_t) (r->end - r->p))
                return -EINVAL;
        p->marks = n ? calloc(n, sizeof *p->marks) : NULL;
        if (n && !p->marks)
                return -ENOMEM;
        for (; p->n_marks < n && !r->bad; p->n_marks++) {
                struct kafka_mark *m = &p->marks[p->n_marks];
                uint64_t attempts;

                m->offset = p->track.low + get_signed(r);
                attempts = get(r);
                m->attempts = attempts >> 1 > 1000000 ? 1000000 : (uint32_t) (attempts >> 1);
                m->waiting = attempts & 1;
                m->due_ms = m->waiting ? get_signed(r) : 0;
        }
        return r->bad ? -EINVAL : 0;
}

void kafka_state_deinit(struct kafka_state *s) {
        for (int i = 0; i < 2; i++) {
                kafka_track_deinit(&s->at[i].track);
                free(s->at[i].marks);
        }
        *s = (struct kafka_state){ .owner = 0 };
}

int kafka_state_unpack(struct om_span text, struct kafka_state *ret) {
        struct kafka_state s = { .owner = 0 };
        struct om_buf bytes = OM_BUF_INIT;
        struct reader r;
        int status = -EINVAL;

        if (text.len < 3 || memcmp(text.p, "o1:", 3) != 0 || !decode(&bytes, (struct om_span){ text.p + 3, text.len - 3 }))
                goto out;
        if (!om_buf_ok(&bytes)) {
                status = -ENOMEM;
                goto out;
        }
        r = (struct reader){ (const unsigned char *) om_buf_span(&bytes).p, NULL, false };
        r.end = r.p + bytes.len;
        s.owner = get(&r);
        s.finished = get(&r);
        s.clean = get(&r) != 0;
        status = get_position(&r, &s.at[KAFKA_AT_LOG]);
        if (!status)
                status = get_position(&r, &s.at[KAFKA_AT_RETRY]);
        if (!status && r.p != r.end)
                status = -EINVAL;
        if (!status) {
                *ret = s;
                s = (struct kafka_state){ .owner = 0 };
        }
out:
        kafka_state_deinit(&s);
        om_buf_deinit(&bytes);
        return status;
}
