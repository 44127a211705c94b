/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text in the metadata of a commit on Kafka, which anybody may have written: what is taken is sound (runs ascend and do not touch), and
 * written again it reads back the same.
 */
#include "../../backends/kafka/offsets.h"
#include "fuzz.h"

static void sound(const struct kafka_track *t) {
        int64_t at = t->low;

        MUST(t->low >= 0);
        for (size_t i = 0; i < t->n; i++) {
                MUST(t->runs[i].from > at && t->runs[i].to > t->runs[i].from);
                MUST(kafka_track_is_done(t, t->runs[i].from) && !kafka_track_is_done(t, t->runs[i].to));
                at = t->runs[i].to;
        }
}

static void same(const struct kafka_position *a, const struct kafka_position *b) {
        MUST(a->track.low == b->track.low && a->next == b->next && a->track.n == b->track.n && a->n_marks == b->n_marks);
        for (size_t i = 0; i < a->track.n; i++)
                MUST(a->track.runs[i].from == b->track.runs[i].from && a->track.runs[i].to == b->track.runs[i].to);
        for (size_t i = 0; i < a->n_marks; i++)
                MUST(a->marks[i].offset == b->marks[i].offset && a->marks[i].attempts == b->marks[i].attempts &&
                        a->marks[i].due_ms == b->marks[i].due_ms);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct kafka_state s, again;
        struct om_buf text = OM_BUF_INIT;

        if (kafka_state_unpack((struct om_span){ (const char *) data, size }, &s) < 0)
                return 0;
        for (int i = 0; i < 2; i++)
                sound(&s.at[i].track);
        kafka_state_pack(&text, &s, (size_t) 1 << 24);
        if (om_buf_ok(&text) && kafka_state_unpack(om_buf_span(&text), &again) == 0) {
                MUST(s.owner == again.owner && s.finished == again.finished && s.clean == again.clean);
                for (int i = 0; i < 2; i++)
                        same(&s.at[i], &again.at[i]);
                kafka_state_deinit(&again);
        } else
                MUST(!om_buf_ok(&text));
        kafka_state_deinit(&s);
        om_buf_deinit(&text);
        return 0;
}
