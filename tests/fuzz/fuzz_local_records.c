/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The records of the embedded bus. What LMDB gives back is ours, but a disk may damage it, and a checksum there is none: a record that is
 * read wrong must be told, and must touch nothing outside of itself. What is accepted has lengths within bounds and names that end.
 *
 * The first byte says which record (log, group, attachment, row), the next four are its key, the rest is the value, in a block of just its
 * length.
 */
#include <string.h>

#include "../../backends/local/state.h"
#include "fuzz.h"

static void one_log(MDB_val key, MDB_val value) {
        struct log l;

        memset(&l, 0, sizeof l);
        if (log_read(&l, key, value) == 0) {
                MUST(l.name_len <= OM_TOPIC_MAX && l.name[l.name_len] == '\0');
                for (unsigned i = 0; i < LANES; i++)
                        MUST(l.lane_end[i] == 0 || l.lane_end[i] == l.next_seq);
        }
}

static void one_group(MDB_val key, MDB_val value) {
        struct group g;

        memset(&g, 0, sizeof g);
        if (group_read(&g, key, value) == 0) {
                MUST(g.topic_len <= OM_TOPIC_MAX && g.agent_len <= OM_NAME_MAX);
                MUST(g.topic[g.topic_len] == '\0' && g.agent[g.agent_len] == '\0');
                MUST(memcmp(g.name, g.topic, g.topic_len) == 0 && memcmp(g.name + g.topic_len + 1, g.agent, g.agent_len) == 0);
        }
}

static void one_attach(MDB_val key, MDB_val value) {
        struct attach at;
        uint32_t group, log;

        memset(&at, 0, sizeof at);
        if (attach_read(&at, key, value, &group, &log) == 0)
                for (unsigned i = 0; i < LANES; i++)
                        MUST(at.lanes[i].cursor == at.lanes[i].floor && at.lanes[i].handed == at.lanes[i].mark);
}

static void one_row(MDB_val value) {
        const char *from = value.mv_data, *to = from + value.mv_size;
        struct row row;

        if (row_read(&value, &row) == 0)
                MUST(row.record.p >= from && row.record.p + row.record.len == to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        size_t key_len = size < 1 ? 0 : size - 1 < 4 ? size - 1 : 4, value_len = size < 5 ? 0 : size - 5;
        uint8_t *key = malloc(key_len + (key_len == 0)), *value = malloc(value_len + (value_len == 0));
        MDB_val k = { key_len, key }, v = { value_len, value };

        if (key_len)
                memcpy(key, data + 1, key_len);
        if (value_len)
                memcpy(value, data + 5, value_len);
        switch (size ? data[0] % 4 : 0) {
        case 0:
                one_log(k, v);
                break;
        case 1:
                one_group(k, v);
                break;
        case 2:
                one_attach(k, v);
                break;
        default:
                one_row(v);
        }
        free(key);
        free(value);
        return 0;
}
