/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Topics, names and patterns: what they may be, and which topics a pattern means.
 *
 * Always true: the names `omni-dlq:…` and `…:dlq…` are the dead letters' on the buses, so no topic can be taken for one.
 * Matching takes time in proportion to pattern times topic at worst, both of which are short.
 *
 * Called for each task published and each agent registered, on any thread.
 */
#include "task.h"
#include "text.h"

#include <errno.h>

static int refuse(struct om_error *e, const char *what, const char *why) {
        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s %s", what, why);
}

static int check_text(struct om_span s, size_t max, const char *what, struct om_error *e) {
        if (!s.p || s.len == 0)
                return refuse(e, what, "must not be empty");
        if (s.len > max)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s has %zu bytes; at most %zu are allowed", what, s.len, max);
        if (om_text_skip_plain(s.p, s.p + s.len) == s.p + s.len && !memchr(s.p, 0x7f, s.len)) /* nearly all are ASCII */
                return 0;
        for (const char *p = s.p, *end = s.p + s.len; p < end;) {
                size_t len = om_text_utf8(p, end);
                if (len == 0)
                        return refuse(e, what, "is not UTF-8");
                if (om_text_is_control(p, len))
                        return refuse(e, what, "must not contain control characters");
                p += len;
        }
        return 0;
}

int om_name_check(struct om_span name, const char *what, struct om_error *e) { return check_text(name, OM_NAME_MAX, what, e); }

int om_topic_check(struct om_span topic, const char *what, struct om_error *e) {
        int r = check_text(topic, OM_TOPIC_MAX, what, e);
        if (r < 0)
                return r;
        const char *dlq = "omni-dlq:";
        if (topic.len >= strlen(dlq) && memcmp(topic.p, dlq, strlen(dlq)) == 0)
                return refuse(e, what, "must not start with \"omni-dlq:\", which names dead letters");
        if (memchr(topic.p, ':', topic.len) && memmem(topic.p, topic.len, ":dlq", 4))
                return refuse(e, what, "must not contain \":dlq\", which names dead letters");
        return 0;
}

/* -- patterns ------------------------------------------------------------------------------------------------------ */

/* Words between dots, one after the other. `p` is NULL after the last; "" is one empty word. */
struct words {
        const char *p, *end;
        size_t len; /* of the word at p */
};

static void words_measure(struct words *w) {
        const char *dot = memchr(w->p, '.', (size_t) (w->end - w->p));
        w->len = (size_t) ((dot ? dot : w->end) - w->p);
}

static struct words words_of(struct om_span s) {
        struct words w = { s.p ? s.p : "", (s.p ? s.p : "") + s.len, 0 };
        words_measure(&w);
        return w;
}

static void words_next(struct words *w) {
        w->p += w->len;
        if (w->p == w->end) {
                w->p = NULL;
                return;
        }
        w->p++;
        words_measure(w);
}

static bool word_is(const struct words *w, char c) { return w->p && w->len == 1 && *w->p == c; }

bool om_topic_is_pattern(struct om_span topic) {
        for (struct words w = words_of(topic); w.p; words_next(&w))
                if (word_is(&w, '*') || word_is(&w, '#'))
                        return true;
        return false;
}

bool om_topic_matches(struct om_span pattern, struct om_span topic) {
        struct words p = words_of(pattern), t = words_of(topic);
        struct words after_hash = { NULL }, hash_topic = { NULL }; /* where to go on when a later word fails: `#` takes one more */
        bool hash = false;
        while (t.p) {
                if (word_is(&p, '#')) {
                        hash = true;
                        words_next(&p);
                        after_hash = p;
                        hash_topic = t;
                } else if (p.p && (word_is(&p, '*') || (p.len == t.len && memcmp(p.p, t.p, p.len) == 0))) {
                        words_next(&p);
                        words_next(&t);
                } else if (hash) {
                        words_next(&hash_topic);
                        p = after_hash;
                        t = hash_topic;
                } else
                        return false;
        }
        while (word_is(&p, '#'))
                words_next(&p);
        return !p.p;
}

void om_group_name(struct om_buf *b, struct om_span topic, struct om_span agent) {
        om_buf_lit(b, "group:");
        om_buf_put_span(b, topic);
        om_buf_putc(b, ':');
        om_buf_put_span(b, agent);
}
