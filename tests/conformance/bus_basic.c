/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks, groups and workers: who gets what, how often, and unchanged. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static void at_rest(const char *topic, const char *agent, int64_t finished) {
        static const char *const none[] = { "lag", "leased", "retrying", "dead" };
        for (size_t i = 0; i < 4; i++)
                MUST(group_n(topic, agent, none[i]) == 0, "%s of %s is %lld, must be 0", none[i], agent,
                        (long long) group_n(topic, agent, none[i]));
        MUST_BE(group_n(topic, agent, "finished"), finished);
}

static void one_task(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        char *id = publish(t, "{\"n\":1}");
        MUST(UNTIL(w->acked == 1, 10000), "the ack is not answered; %zu deliveries", w->n);
        MUST(strcmp(w->seen[0].id, id) == 0, "delivered %s, published %s", w->seen[0].id, id);
        MUST_BE(w->seen[0].attempt, 1);
        serve_for(200);
        MUST_BE(w->n, 1);
        at_rest(t, "a", 1);
        MUST_BE(topic_n(t, "depth"), 0);
}

static void two_groups(void) {
        enum { N = 1000 };
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *a = serve(t, "a", act_ack), *b = serve(t, "b", act_ack);
        publish_numbers(t, 0, N);
        MUST(UNTIL(a->acked == N && b->acked == N, 30000), "a has %ld, b has %ld of %d", a->acked, b->acked, N);
        serve_for(200);
        MUST_BE(a->n, N);
        MUST_BE(b->n, N);
        MUST_BE(seen_distinct(&a, 1), N);
        MUST_BE(seen_distinct(&b, 1), N);
        at_rest(t, "a", N);
        at_rest(t, "b", N);
}

static void two_workers(void) {
        enum { N = 1000 };
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w[2] = { serve(t, "a", act_ack), serve(t, "a", act_ack) };
        publish_numbers(t, 0, N);
        MUST(UNTIL(w[0]->acked + w[1]->acked == N, 30000), "%ld and %ld of %d", w[0]->acked, w[1]->acked, N);
        serve_for(200);
        MUST_BE(w[0]->n + w[1]->n, N);
        MUST_BE(seen_distinct(w, 2), N);
        MUST(w[0]->n > 0 && w[1]->n > 0, "they share as %zu and %zu", w[0]->n, w[1]->n);
        at_rest(t, "a", N);
}

static void before_the_first_agent(void) {
        rig_up(NULL);
        const char *t = topic("t");
        publish_numbers(t, 0, 100);
        MUST_BE(topic_n(t, "depth"), 100);
        struct worker *w = serve(t, "a", act_ack);
        MUST(UNTIL(w->acked == 100, 10000), "%ld of 100", w->acked);
        MUST_BE(seen_distinct(&w, 1), 100);
}

static struct worker *serve_from(const char *t, const char *agent, const char *start) {
        omni_agent_options o = agent_options(t, agent);
        o.start = start;
        return serve_with(&o, act_ack);
}

/* What a group that is not served leaves undone is what the topic still holds. */
static void where_groups_start(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *keeper = serve(t, "keeper", act_hold);
        omni_agent_unregister(keeper->agent);
        publish_numbers(t, 0, 3);
        serve_for(50);
        char *between = rig_text("%.3f", wall_s());
        serve_for(50);
        publish_numbers(t, 3, 3);
        struct worker *later = serve(t, "later", act_ack), *first = serve_from(t, "first", "first"), *new = serve_from(t, "new", "new"),
                      *timed = serve_from(t, "timed", between);
        publish_numbers(t, 6, 3);
        MUST(UNTIL(later->acked == 3 && first->acked == 9 && new->acked == 3 && timed->acked == 6, 10000),
                "later %ld of 3, first %ld of 9, new %ld of 3, timed %ld of 6", later->acked, first->acked, new->acked, timed->acked);
        serve_for(300);
        MUST(later->n == 3 && first->n == 9 && new->n == 3 && timed->n == 6, "later %zu of 3, first %zu of 9, new %zu of 3, timed %zu of 6",
                later->n, first->n, new->n, timed->n);
        MUST(seen_content(later, "6", 1) && seen_content(new, "6", 1) && seen_content(timed, "3", 1), "the wrong ones");
        struct worker *again = serve(t, "keeper", act_ack);
        MUST(UNTIL(again->acked == 9, 10000), "the first group has %ld of 9", again->acked);
}

/* -- byte for byte ------------------------------------------------------------------------------------------------------------------ */

static char *nested(unsigned depth, const char *inner) {
        char *s = calloc(1, depth * 6 + strlen(inner) + 1), *p = s;
        for (unsigned i = 0; i < depth; i++)
                p += sprintf(p, i % 2 ? "{\"a\":" : "[");
        p += sprintf(p, "%s", inner);
        for (unsigned i = depth; i-- > 0;)
                *p++ = i % 2 ? '}' : ']';
        return s;
}

/* A string of every code point: as itself, or escaped where JSON wants it. */
static char *all_of_unicode(void) {
        char *s = malloc(0x110000 * 4 + 0x20 * 6 + 8), *p = s;
        MUST(s, "out of memory");
        *p++ = '"';
        for (unsigned c = 0; c < 0x110000; c++) {
                if (c >= 0xd800 && c < 0xe000)
                        continue;
                if (c < 0x20 || c == '"' || c == '\\')
                        p += sprintf(p, "\\u%04x", c);
                else if (c < 0x80)
                        *p++ = (char) c;
                else if (c < 0x800)
                        p += sprintf(p, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
                else if (c < 0x10000)
                        p += sprintf(p, "%c%c%c", 0xe0 | c >> 12, 0x80 | (c >> 6 & 63), 0x80 | (c & 63));
                else
                        p += sprintf(p, "%c%c%c%c", 0xf0 | c >> 18, 0x80 | (c >> 12 & 63), 0x80 | (c >> 6 & 63), 0x80 | (c & 63));
        }
        *p++ = '"';
        *p = '\0';
        return s;
}

static char *a_mebibyte(void) {
        char *s = malloc((1 << 20) + 1);
        MUST(s, "out of memory");
        memset(s, 'm', 1 << 20);
        s[0] = s[(1 << 20) - 1] = '"';
        s[1 << 20] = '\0';
        return s;
}

static int publish_raw(const char *t, const char *content) {
        char *params = rig_text("{\"task\":{\"topic\":\"%s\",\"payload\":{\"content\":%s}}}", t, content);
        int r = omni_call(rig_client, "task.publish", params, NULL, NULL);
        free(params);
        return r;
}

/* The body is an object (1), `params` (2), `task` (3), `payload` (4); the rest of the limit, 64, is the content's. */
enum { DEPTH_LEFT = 64 - 4 };

static void byte_for_byte(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        const char *const contents[] = { "{}", "\"\"", "null", "[]", "-0", "1e400", "-1E-400", "0.10", "18446744073709551616",
                "123456789012345678901234567890.000000000000000000000000000001",
                "\"\\u00e9\\/\\b\\f\\n\\r\\t\\\"\\\\\\ud83d\\ude00\\u0000\"", "{\"b\":1,\"a\":2,\"\":3,\"A\":4}",
                "{\"a\":{\"k\":1,\"k\":2,\"\\u006b\":3},\"\\u0061\":[{\"k\":null,\"k\":{}}]}", "{ \"white\" :\t[ 1 ,\n 2 ] }",
                nested(DEPTH_LEFT, "1"), nested(DEPTH_LEFT, "{}"), a_mebibyte(), all_of_unicode() };
        size_t n = sizeof(contents) / sizeof(*contents), sent = 0;
        for (size_t i = 0; i < n; i++) {
                int r = publish_raw(t, contents[i]);
                if (i == 15) { /* one deeper than the limit */
                        MUST(r == -EINVAL, "content nested %u deep is answered with %s", DEPTH_LEFT + 1, strerror(-r));
                        continue;
                }
                MUST(r == 0, "content %zu (%.60s…): %s", i, contents[i], omni_strerror(rig_client));
                MUST(UNTIL(w->acked == (long) sent + 1, 20000), "content %zu (%.60s…) does not arrive", i, contents[i]);
                const struct seen *s = &w->seen[sent++];
                size_t len = strlen(contents[i]), same = 0;
                while (same < len && same < s->content_len && s->content[same] == contents[i][same])
                        same++;
                MUST(s->content_len == len && same == len, "content %zu is %zu bytes for %zu, and differs at byte %zu: %.40s for %.40s", i,
                        s->content_len, len, same, s->content + same, contents[i] + same);
                /* It was acknowledged with itself as the result: the record holds it twice, as it was. */
                char *record, *found;
                size_t record_len;
                MUST(omni_result_get(rig_client, s->id, "a", 20000, &record, &record_len) == 0, "no result of content %zu: %s", i,
                        omni_strerror(rig_client));
                found = strstr(record, "\"result\":");
                MUST(found && strncmp(found + 9, contents[i], len) == 0, "the result of content %zu is not what was acknowledged", i);
                found = strstr(record, "\"content\":");
                MUST(found && strncmp(found + 10, contents[i], len) == 0,
                        "the content in the record of content %zu is not what was published", i);
                free(record);
        }
}

static void batch_with_two_bad(void) {
        enum { N = 1000, BAD_1 = 17, BAD_2 = 501 };
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        json_t *tasks = json_array();
        for (int i = 0; i < N; i++)
                json_array_append_new(tasks,
                        i == BAD_1           ? json_pack("{s:s,s:{s:i},s:i}", "topic", t, "payload", "content", i, "prioritie", 3)
                                : i == BAD_2 ? json_pack("{s:s,s:{s:i}}", "topic", "omni-dlq:x", "payload", "content", i)
                                             : json_pack("{s:s,s:{s:i}}", "topic", t, "payload", "content", i));
        json_t *results = at(rpc(rig_client, "task.publish", "{s:o}", "tasks", tasks), "results"), *result;
        MUST_BE(json_array_size(results), N);
        size_t i;
        json_array_foreach(results, i, result) {
                if (i == BAD_1 || i == BAD_2)
                        MUST(*str(result, "error.message") && strcmp(str(result, "error.data.kind"), "invalid") == 0 && !at(result, "id"),
                                "result %zu is %s, must be an error", i, dump(result));
                else
                        MUST(*str(result, "id") && !at(result, "error"), "result %zu is %s", i, dump(result));
        }
        MUST(strstr(str(json_array_get(results, BAD_1), "error.message"), "prioritie"), "the error does not name the member: %s",
                dump(json_array_get(results, BAD_1)));
        MUST(UNTIL(w->acked == N - 2, 20000), "%ld of %d delivered", w->acked, N - 2);
        serve_for(200);
        MUST_BE(w->n, N - 2);
        for (i = 0; i < w->n; i++)
                MUST(atoi(w->seen[i].content) != BAD_1 && atoi(w->seen[i].content) != BAD_2, "a bad one was published");
        MUST_BE(topic_n(t, "published"), N - 2);
}

const struct conf_case conf_bus_basic[] = {
        { "B01", "one task reaches one agent and is acknowledged; the group is empty after", one_task, 20 },
        { "B02", "two groups each get all of 1,000", two_groups, 40 },
        { "B03", "two workers of one group share 1,000, none twice", two_workers, 40 },
        { "B04", "tasks published before the first agent exists are delivered to it", before_the_first_agent, 20 },
        { "B05", "a second group starts with what comes after it; `start` first and a time override", where_groups_start, 20 },
        { "B06", "content arrives byte for byte", byte_for_byte, 60 },
        { "B24", "a batch of 1,000 with two bad tasks: 998 published, 2 errors in place", batch_with_two_bad, 40 },
        { NULL },
};
