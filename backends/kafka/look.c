/* SPDX-License-Identifier: Apache-2.0 */
/* Looking in: see look.h. What is true: what this daemon serves is taken from the snapshot, all else from what was committed. */
#include "admin.h"
#include "look.h"

/* -- snapshots, on the loop ---------------------------------------------------------------------------------------------------- */

struct snapshot *kafka_snapshot(struct om_bus *b, struct om_span topic) {
        struct snapshot *list = NULL;

        for (struct group *g = b->groups; g; g = g->hh.next)
                for (int i = 0; i < g->n_parts; i++) {
                        struct part *p = g->parts[i];
                        struct om_buf text = OM_BUF_INIT;
                        struct kafka_state state;
                        struct snapshot *s;

                        if ((topic.p && !om_span_is(topic, g->topic)) ||
                                (p->state != PART_RUNNING && p->state != PART_LEAVING && p->state != PART_SUSPENDED) ||
                                kafka_part_state(p, false, &state) < 0)
                                continue;
                        kafka_state_pack(&text, &state, (size_t) 1 << 30);
                        kafka_part_state_free(&state);
                        if (!om_buf_ok(&text) || !(s = calloc(1, sizeof *s))) {
                                om_buf_deinit(&text);
                                continue;
                        }
                        memcpy(s->kname, g->kname, sizeof s->kname);
                        s->p = i;
                        s->text = text.data;
                        s->len = text.len;
                        s->next = list;
                        list = s;
                }
        return list;
}

void kafka_snapshot_free(struct snapshot *s) {
        while (s) {
                struct snapshot *next = s->next;

                free(s->text);
                free(s);
                s = next;
        }
}

/* -- topics and groups ---------------------------------------------------------------------------------------------------------- */

void kafka_seen_deinit(struct seen *s) {
        for (size_t i = 0; i < s->n_groups; i++)
                for (int k = 0; k < s->groups[i].n_parts; k++)
                        kafka_state_deinit(&s->groups[i].parts[k].state);
        free(s->groups);
        free(s->topics);
        free(s->dead);
        om_arena_deinit(&s->arena);
        *s = (struct seen){ .n_topics = 0 };
}

bool kafka_is_topic(const void *ctx, const struct kafka_named *n) {
        const struct om_span *one = ctx;

        return !one->p || kafka_name_is_of(n, *one);
}

/* Every kind begins with its name. */
static int by_kname(const void *a, const void *b) { return strcmp(a, b); }

static void *find(const void *list, size_t n, size_t size, const char *kname) { return n ? bsearch(kname, list, n, size, by_kname) : NULL; }

bool kafka_seen_dead(const struct seen *s, const char *kname) { return find(s->dead, s->n_dead, sizeof s->dead[0], kname) != NULL; }

struct seen_topic *kafka_seen_topic(const struct seen *s, const char *kname) {
        return find(s->topics, s->n_topics, sizeof *s->topics, kname);
}

struct seen_group *kafka_seen_group(const struct seen *s, const char *kname) {
        return find(s->groups, s->n_groups, sizeof *s->groups, kname);
}

static void see_topic(struct seen *s, const char *kname, const char *part, int n) {
        struct seen_topic *seen = &s->topics[s->n_topics++];

        snprintf(seen->kname, sizeof seen->kname, "%s", kname);
        snprintf(seen->part, sizeof seen->part, "%s", part);
        seen->low = om_arena_alloc(&s->arena, (size_t) n * sizeof(int64_t));
        seen->high = om_arena_alloc(&s->arena, (size_t) n * sizeof(int64_t));
        seen->n_parts = seen->low && seen->high ? n : 0;
}

static void see_group(struct seen *s, const char *kname, const char *part, int n) {
        struct seen_group *seen = &s->groups[s->n_groups++];

        snprintf(seen->kname, sizeof seen->kname, "%s", kname);
        snprintf(seen->part, sizeof seen->part, "%s", part);
        seen->parts = om_arena_alloc(&s->arena, (size_t) n * sizeof *seen->parts);
        seen->n_parts = seen->parts ? n : 0;
        if (seen->parts)
                memset(seen->parts, 0, (size_t) n * sizeof *seen->parts);
}

static int by_part(const void *a, const void *b) {
        const struct seen_topic *const *x = a, *const *y = b;

        return strcmp((*x)->part, (*y)->part);
}
static int part_of(const void *key, const void *b) {
        const struct seen_topic *const *t = b;

        return strcmp(key, (*t)->part);
}

/* In order, each group with its topic. */
static int sort(struct seen *s) {
        struct seen_topic **topics = calloc(s->n_topics + 1, sizeof(struct seen_topic *));

        if (!topics)
                return -ENOMEM;
        if (s->n_topics)
                qsort(s->topics, s->n_topics, sizeof *s->topics, by_kname);
        if (s->n_groups)
                qsort(s->groups, s->n_groups, sizeof *s->groups, by_kname);
        if (s->n_dead)
                qsort(s->dead, s->n_dead, sizeof s->dead[0], by_kname);
        for (size_t i = 0; i < s->n_topics; i++)
                topics[i] = &s->topics[i];
        qsort(topics, s->n_topics, sizeof topics[0], by_part);
        for (size_t i = s->n_groups; i-- > 0;) {
                struct seen_group *g = &s->groups[i];
                struct seen_topic **t = bsearch(g->part, topics, s->n_topics, sizeof topics[0], part_of);

                if (!t)
                        continue;
                LL_PREPEND((*t)->groups, g);
                (*t)->n_groups++;
        }
        free(topics);
        return 0;
}

/* As it is written, or the whole of it where it was cut and that is known. */
static struct om_span text_of(struct seen *s, struct om_span written, const char *whole) {
        struct om_buf text = OM_BUF_INIT;
        struct om_span copy;

        if (whole && *whole)
                return om_arena_copy(&s->arena, om_span_of(whole));
        kafka_name_decode(&text, written);
        copy = om_arena_copy(&s->arena, om_buf_span(&text));
        om_buf_deinit(&text);
        return copy;
}

static const struct whole_name *whole_of(struct om_bus *b, const struct kafka_named *n, const char *kname, bool *read) {
        const struct whole_name *w;

        if (!kafka_name_is_cut(n->topic) && !kafka_name_is_cut(n->agent))
                return NULL;
        w = kafka_whole_name(b, kname, *read);
        *read = *read && w; /* once in a look */
        return w;
}

void kafka_seen_name(struct om_bus *b, struct seen *s) {
        bool read = s->names;
        const struct whole_name *w;
        struct kafka_named n;

        for (size_t i = 0; i < s->n_groups; i++) {
                struct seen_group *g = &s->groups[i];

                kafka_name_read(g->kname, b->settings.prefix, &n);
                w = whole_of(b, &n, g->kname, &read);
                g->topic = text_of(s, n.topic, w ? w->topic : NULL);
                g->agent = text_of(s, n.agent, w ? w->agent : NULL);
        }
        for (size_t i = 0; i < s->n_topics; i++) {
                struct seen_topic *t = &s->topics[i];

                kafka_name_read(t->kname, b->settings.prefix, &n);
                w = whole_of(b, &n, t->kname, &read);
                t->topic = text_of(s, n.topic, w ? w->topic : NULL);
                for (struct seen_group *g = t->groups; g && !kafka_name_is_cut(n.topic); g = g->next)
                        g->topic = t->topic; /* whether or not it is cut in theirs */
        }
}

static int see_topics(struct om_bus *b, kafka_wanted_fn *wanted, const void *ctx, const struct rd_kafka_metadata *md, struct seen *s) {
        s->topics = calloc((size_t) md->topic_cnt + 1, sizeof *s->topics);
        s->groups = calloc((size_t) md->topic_cnt + 1, sizeof *s->groups);
        s->dead = calloc((size_t) md->topic_cnt + 1, sizeof s->dead[0]);
        if (!s->topics || !s->groups || !s->dead)
                return -ENOMEM;
        for (int i = 0; i < md->topic_cnt; i++) {
                const struct rd_kafka_metadata_topic *t = &md->topics[i];
                char part[KAFKA_GROUP_PART + 1];
                struct kafka_named n;

                if (t->err || strlen(t->topic) > KAFKA_NAME_MAX || !kafka_name_read(t->topic, b->settings.prefix, &n))
                        continue;
                s->names |= n.kind == KAFKA_NAMES;
                if (!n.topic.p || !wanted(ctx, &n))
                        continue;
                if (!kafka_name_group_part(&n, part)) /* without one of its groups a topic would look finished */
                        return -ENOMEM;
                if (n.kind == KAFKA_LOG)
                        see_topic(s, t->topic, part, t->partition_cnt);
                else if (n.kind == KAFKA_RETRY)
                        see_group(s, t->topic, part, t->partition_cnt);
                else
                        snprintf(s->dead[s->n_dead++], sizeof s->dead[0], "%s", t->topic);
        }
        return sort(s);
}

static int64_t offset_in(const rd_kafka_topic_partition_list_t *list, const char *kname, int32_t p, int *at) {
        const rd_kafka_topic_partition_t *tp = kafka_in_list(list, kname, p, at);

        return tp && !tp->err && tp->offset > 0 ? tp->offset : 0;
}

static int see_offsets(struct om_bus *b, struct seen *s, struct om_error *e) {
        rd_kafka_topic_partition_list_t *ends = rd_kafka_topic_partition_list_new(64), *begins;
        int r, low = 0, high = 0;

        for (size_t i = 0; i < s->n_topics; i++)
                for (int k = 0; k < s->topics[i].n_parts; k++)
                        rd_kafka_topic_partition_list_add(ends, s->topics[i].kname, k);
        for (size_t i = 0; i < s->n_groups; i++)
                for (int k = 0; k < s->groups[i].n_parts; k++)
                        rd_kafka_topic_partition_list_add(ends, s->groups[i].kname, k);
        begins = rd_kafka_topic_partition_list_copy(ends);
        r = kafka_watermarks(b, ends, begins, ADMIN_MS, e);
        for (size_t i = 0; i < s->n_topics; i++)
                for (int k = 0; k < s->topics[i].n_parts; k++) {
                        s->topics[i].low[k] = offset_in(begins, s->topics[i].kname, k, &low);
                        s->topics[i].high[k] = offset_in(ends, s->topics[i].kname, k, &high);
                }
        for (size_t i = 0; i < s->n_groups; i++)
                for (int k = 0; k < s->groups[i].n_parts; k++) {
                        s->groups[i].parts[k].retry_low = offset_in(begins, s->groups[i].kname, k, &low);
                        s->groups[i].parts[k].retry_high = offset_in(ends, s->groups[i].kname, k, &high);
                }
        rd_kafka_topic_partition_list_destroy(ends);
        rd_kafka_topic_partition_list_destroy(begins);
        return r;
}

static void see_state(struct seen *s, const char *kname, int32_t p, struct om_span text) {
        struct seen_group *g = kafka_seen_group(s, kname);

        if (g && p < g->n_parts && !g->parts[p].known)
                g->parts[p].known = kafka_state_unpack(text, &g->parts[p].state) == 0;
}

/* What was committed for all groups of our consumer group. Asked by a handle that has a group: where a coordinator answers that it is none,
 * librdkafka 2.0 looks for another one for the handle's group without looking whether it has one, and crashes. */
static int see_committed(struct om_bus *b, struct seen *s, struct om_error *e) {
        const char *const properties[][2] = { { "group.id", b->group_id }, { "enable.auto.commit", "false" }, { NULL, NULL } };
        rd_kafka_t *rk = kafka_handle(b, HANDLE_CALL, properties, e);
        rd_kafka_ListConsumerGroupOffsets_t *of;
        struct admin_ask ask;
        int r;

        if (!rk)
                return om_kind_errno(e->kind);
        of = rd_kafka_ListConsumerGroupOffsets_new(b->group_id, NULL);
        kafka_ask_init(&ask, rk, RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS);
        rd_kafka_ListConsumerGroupOffsets(rk, &of, 1, ask.options, ask.queue);
        r = kafka_ask_wait(&ask, "asking for what is committed", e);
        if (r == 0) {
                size_t n = 0;
                const rd_kafka_group_result_t **groups =
                        rd_kafka_ListConsumerGroupOffsets_result_groups(rd_kafka_event_ListConsumerGroupOffsets_result(ask.answer), &n);
                const rd_kafka_topic_partition_list_t *list = n ? rd_kafka_group_result_partitions(groups[0]) : NULL;

                for (int i = 0; list && i < list->cnt; i++)
                        if (list->elems[i].metadata_size)
                                see_state(s, list->elems[i].topic, list->elems[i].partition,
                                        (struct om_span){ list->elems[i].metadata, list->elems[i].metadata_size });
        }
        kafka_ask_deinit(&ask);
        rd_kafka_ListConsumerGroupOffsets_destroy(of);
        rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        return r;
}

int kafka_look_names(struct om_bus *b, kafka_wanted_fn *wanted, const void *ctx, struct seen *ret, struct om_error *e) {
        const struct rd_kafka_metadata *md = NULL;
        rd_kafka_resp_err_t err = rd_kafka_metadata(b->asker, 1, NULL, &md, ADMIN_MS);
        int r;

        *ret = (struct seen){ .n_topics = 0 };
        if (err)
                return kafka_error(err, NULL, "asking for the topics", e);
        r = see_topics(b, wanted, ctx, md, ret);
        rd_kafka_metadata_destroy(md);
        if (r < 0) {
                om_error_set_errno(e, ENOMEM, "Kafka");
                kafka_seen_deinit(ret);
        }
        return r;
}

int kafka_look(
        struct om_bus *b, kafka_wanted_fn *wanted, const void *ctx, const struct snapshot *snap, struct seen *ret, struct om_error *e) {
        int r = kafka_look_names(b, wanted, ctx, ret, e);

        if (r < 0)
                return r;
        kafka_seen_name(b, ret);
        r = see_offsets(b, ret, e);
        for (; !r && snap; snap = snap->next)
                see_state(ret, snap->kname, snap->p, (struct om_span){ snap->text, snap->len });
        if (!r && ret->n_groups)
                r = see_committed(b, ret, e);
        for (size_t i = 0; !r && i < ret->n_topics; i++)
                for (struct seen_group *g = ret->topics[i].groups; g; g = g->next)
                        for (int p = 0; p < g->n_parts && p < ret->topics[i].n_parts; p++) {
                                g->parts[p].log_low = ret->topics[i].low[p];
                                g->parts[p].log_high = ret->topics[i].high[p];
                        }
        if (r < 0)
                kafka_seen_deinit(ret);
        return r;
}

static uint64_t plus(int64_t n) { return n > 0 ? (uint64_t) n : 0; }

struct om_bus_group_row kafka_group_row(const struct seen_group *g) {
        struct om_bus_group_row row = { .topic = g->topic, .agent = g->agent };

        for (int i = 0; i < g->n_parts; i++) {
                const struct seen_part *p = &g->parts[i];
                const struct kafka_position *log = &p->state.at[KAFKA_AT_LOG], *again = &p->state.at[KAFKA_AT_RETRY];
                int64_t next = p->known ? log->next : p->log_low, open, waiting = 0;

                row.finished += p->state.finished;
                row.lag += plus(p->log_high - (next > p->log_low ? next : p->log_low));
                for (int w = 0; w < 2; w++) {
                        const struct kafka_position *at = &p->state.at[w];

                        for (size_t k = 0; k < at->n_marks; k++) {
                                waiting += at->marks[k].waiting;
                                if (at->marks[k].waiting && at->marks[k].attempts)
                                        row.retrying++;
                                else if (at->marks[k].waiting)
                                        row.lag++;
                        }
                }
                open = log->next - log->track.low - (int64_t) kafka_track_above(&log->track);
                open += again->next - again->track.low - (int64_t) kafka_track_above(&again->track);
                row.leased += plus(open - waiting);
                if (p->known) /* the first of it is where the group starts */
                        row.retrying += plus(p->retry_high - (again->next > p->retry_low ? again->next : p->retry_low) -
                                (again->next == 0 && p->retry_low == 0));
        }
        return row;
}

int64_t kafka_finished_below(const struct seen_topic *t, int part) {
        int64_t low = INT64_MAX;

        if (!t->n_groups)
                return -1;
        for (const struct seen_group *g = t->groups; g; g = g->next) {
                if (part >= g->n_parts || !g->parts[part].known)
                        return -1;
                if (g->parts[part].state.at[KAFKA_AT_LOG].track.low < low)
                        low = g->parts[part].state.at[KAFKA_AT_LOG].track.low;
        }
        return low;
}

bool kafka_done_by_all(const struct seen_topic *t, int part, int64_t offset, int64_t *ret_until) {
        int64_t done_until = INT64_MAX, open_until = 0;
        bool done = t->n_groups > 0;

        for (const struct seen_group *g = t->groups; g; g = g->next) {
                const struct kafka_track *track = part < g->n_parts ? &g->parts[part].state.at[KAFKA_AT_LOG].track : NULL;
                int64_t until = track ? track->low : 0;
                bool mine = offset < until;

                if (!track)
                        continue;
                for (size_t k = 0; !mine && k <= track->n; k++) {
                        until = k < track->n ? track->runs[k].from : INT64_MAX;
                        if (offset < until)
                                break;
                        until = track->runs[k].to;
                        mine = offset < until;
                }
                done &= mine;
                if (mine && until < done_until)
                        done_until = until;
                if (!mine && until > open_until)
                        open_until = until;
        }
        *ret_until = done ? done_until : open_until ? open_until : INT64_MAX;
        return done;
}

uint64_t kafka_depth(const struct seen_topic *t) {
        uint64_t depth = 0;

        for (int p = 0; p < t->n_parts; p++)
                for (int64_t at = t->low[p], until; at < t->high[p]; at = until) {
                        bool done = kafka_done_by_all(t, p, at, &until);

                        if (until > t->high[p])
                                until = t->high[p];
                        if (!done)
                                depth += plus(until - at);
                }
        for (const struct seen_group *g = t->groups; g; g = g->next)
                for (int p = 0; p < g->n_parts; p++) {
                        const struct seen_part *part = &g->parts[p];
                        const struct kafka_track *track = &part->state.at[KAFKA_AT_RETRY].track;
                        int64_t low = track->low > part->retry_low ? track->low : part->retry_low;

                        low = low ? low : 1; /* the first is where the group starts */
                        depth += plus(part->retry_high - low - (int64_t) kafka_track_above(track));
                }
        return depth;
}
