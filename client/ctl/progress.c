/* SPDX-License-Identifier: Apache-2.0 */
/* A progress bar: see progress.h. "publishing ━━━━━━━━━━╌╌╌╌╌  120/300  40 %  1500/s  3 s left" */
#include "progress.h"
#include "term.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>

enum { BAR = 24 };

void progress_begin(struct progress *p, struct ctl *ctl, const char *label, uint64_t total) {
        *p = (struct progress){ .ctl = ctl, .label = label, .total = total, .started = term_seconds() };
        p->drawn = p->started + 0.1; /* what is over in a moment shows no bar */
}

double progress_seconds(const struct progress *p) { return term_seconds() - p->started; }

static void put_count(const struct progress *p, struct om_buf *b, uint64_t n) {
        if (p->bytes) {
                text_put_size(b, (double) n);
        } else {
                om_buf_u64(b, n);
        }
}

void progress_draw(const struct progress *p, struct om_buf *b, double seconds, unsigned width) {
        struct om_buf line = OM_BUF_INIT;
        double rate = seconds > 0 ? (double) p->done / seconds : 0;

        om_buf_puts(&line, p->label);
        om_buf_puts(&line, "  ");
        if (p->total) {
                uint64_t full = p->done >= p->total ? BAR : p->done * BAR / p->total;

                for (uint64_t i = 0; i < BAR; i++) {
                        om_buf_puts(&line, p->ctl->ascii ? (i < full ? "#" : ".") : i < full ? "━" : "╌");
                }
                om_buf_puts(&line, "  ");
        }
        put_count(p, &line, p->done);
        if (p->total) {
                om_buf_putc(&line, '/');
                put_count(p, &line, p->total);
                om_buf_printf(&line, "  %" PRIu64 " %%", p->done >= p->total ? 100 : p->done * 100 / p->total);
        }
        om_buf_puts(&line, "  ");
        if (p->bytes) {
                text_put_size(&line, rate);
        } else {
                text_put_rate(&line, rate);
        }
        om_buf_puts(&line, "/s");
        if (p->total > p->done && rate > 0) {
                om_buf_puts(&line, "  ");
                text_put_duration(&line, (double) (p->total - p->done) / rate, p->ctl->ascii);
                om_buf_puts(&line, " left");
        }
        text_put_cut(b, om_buf_span(&line), width, p->ctl->ascii);
        om_buf_deinit(&line);
}

void progress_set(struct progress *p, uint64_t done) {
        struct om_buf b = OM_BUF_INIT;
        double now;

        p->done = done;
        if (!p->ctl->err_tty || p->ctl->quiet) {
                return;
        }
        now = term_seconds();
        if (now - p->drawn < 0.1) {
                return;
        }
        p->drawn = now;
        p->shown = true;
        om_buf_putc(&b, '\r');
        progress_draw(p, &b, now - p->started, term_columns(2) ? term_columns(2) - 1 : 79);
        om_buf_puts(&b, "\033[K");
        fwrite(b.data, 1, b.len, stderr);
        fflush(stderr);
        om_buf_deinit(&b);
}

void progress_end(struct progress *p) {
        if (p->shown) {
                fputs("\r\033[K", stderr);
                fflush(stderr);
        }
        p->shown = false;
}
