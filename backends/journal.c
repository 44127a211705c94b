/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads and writes the lines of a journal; journal.h has their form and why each part is there.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "journal.h"

/* Eight bytes a step, with eight tables (Kounavis and Berry, "A Systematic Approach to Building High Performance Software-Based CRC
 * Generators", 2005): opening reads every byte of a journal through here. */
static uint32_t tables[8][256];

static void make_tables(void) {
        for (uint32_t i = 0; i < 256; i++) {
                uint32_t crc = i;
                for (int bit = 0; bit < 8; bit++)
                        crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
                tables[0][i] = crc;
        }
        for (int t = 1; t < 8; t++)
                for (int i = 0; i < 256; i++)
                        tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 255];
}

uint32_t om_crc32(const void *data, size_t len) {
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        pthread_once(&once, make_tables);
        const unsigned char *p = data;
        uint32_t crc = 0xffffffffu;
        for (; len >= 8; p += 8, len -= 8) {
                uint32_t low = crc ^ ((uint32_t) p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24);
                crc = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
                        tables[3][p[4]] ^ tables[2][p[5]] ^ tables[1][p[6]] ^ tables[0][p[7]];
        }
        for (; len > 0; p++, len--)
                crc = crc >> 8 ^ tables[0][(crc ^ *p) & 255];
        return ~crc;
}

size_t om_journal_begin(struct om_buf *b) {
        size_t mark = b->len;
        if (om_buf_reserve(b, OM_JOURNAL_HEADER))
                b->len += OM_JOURNAL_HEADER;
        return mark;
}

/* `digits` of it and a space. By hand: this is done three times for each result that is saved. */
static void put_hex(char *to, unsigned digits, uint64_t value) {
        to[digits] = ' ';
        while (digits--) {
                to[digits] = "0123456789abcdef"[value & 15];
                value >>= 4;
        }
}

void om_journal_end(struct om_buf *b, size_t mark, uint64_t synced) {
        if (!om_buf_ok(b))
                return;
        char *record = b->data + mark;
        size_t len = b->len - mark - OM_JOURNAL_HEADER;
        put_hex(record + 9, 16, synced);
        put_hex(record + 26, 8, (uint32_t) len);
        put_hex(record, 8, om_crc32(record + 9, OM_JOURNAL_HEADER - 9 + len));
        om_buf_putc(b, '\n');
}

static bool hex(const char *p, size_t n, uint64_t *ret) {
        uint64_t value = 0;
        for (size_t i = 0; i < n; i++) {
                int digit = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : p[i] >= 'a' && p[i] <= 'f' ? p[i] - 'a' + 10 : -1;
                if (digit < 0)
                        return false;
                value = value << 4 | (unsigned) digit;
        }
        *ret = value;
        return p[n] == ' ';
}

/* A good record at `pos`: its end; 0: there is none. */
static size_t record_at(struct om_span journal, size_t pos, uint64_t *ret_synced) {
        uint64_t crc, len;
        const char *p = journal.p + pos;
        size_t left = journal.len - pos;
        if (left <= OM_JOURNAL_HEADER || !hex(p, 8, &crc) || !hex(p + 9, 16, ret_synced) || !hex(p + 26, 8, &len))
                return 0;
        if (len >= left - OM_JOURNAL_HEADER || p[OM_JOURNAL_HEADER + len] != '\n')
                return 0;
        if (om_crc32(p + 9, OM_JOURNAL_HEADER - 9 + len) != crc)
                return 0;
        return pos + OM_JOURNAL_HEADER + len + 1;
}

/* Whether a good record behind `bad` says that `bad` had been on the disk. */
static bool was_synced(struct om_span journal, size_t bad) {
        uint64_t synced;
        for (size_t pos = bad; pos < journal.len; pos++) {
                const char *end = memchr(journal.p + pos, '\n', journal.len - pos);
                if (!end)
                        return false;
                pos = (size_t) (end - journal.p);
                if (pos + 1 < journal.len && record_at(journal, pos + 1, &synced) && synced > bad)
                        return true;
        }
        return false;
}

static size_t line_of(struct om_span journal, size_t pos) {
        size_t line = 1;
        for (const char *p = journal.p; (p = memchr(p, '\n', (size_t) (journal.p + pos - p))); p++)
                line++;
        return line;
}

int om_journal_check(const char *path, struct om_span journal, size_t *ret_end, size_t *ret_n, struct om_error *e) {
        size_t pos = 0, next;
        uint64_t synced;
        for (*ret_n = 0; pos < journal.len && (next = record_at(journal, pos, &synced)); ++*ret_n)
                pos = next;
        if (pos < journal.len && was_synced(journal, pos))
                return om_error_set(e, OM_INTERNAL,
                        "%s, line %zu (byte %zu): this record is damaged, and good ones follow it; bring the file back from a backup, or "
                        "take the "
                        "line out to go on without what it said",
                        path, line_of(journal, pos), pos + 1);
        *ret_end = pos;
        return 0;
}

struct om_span om_journal_next(struct om_span journal, size_t *pos) {
        uint64_t len = 0;
        const char *p = journal.p + *pos;
        hex(p + 26, 8, &len);
        *pos += OM_JOURNAL_HEADER + len + 1;
        return (struct om_span){ p + OM_JOURNAL_HEADER, len };
}
