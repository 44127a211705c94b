/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ids that follow from others: the tasks that an ack publishes get the same ids however often the ack is carried out, so that a repeat
 * after a death can be recognised. A UUID of version 8 (RFC 9562, section 5.8) from SipHash-2-4 with 128 bits of output
 * (Aumasson and Bernstein, https://github.com/veorq/SipHash) under a fixed key: not a secret, only well mixed.
 *
 * Called by outputs.c. Any thread.
 */
#include <stdio.h>

#include "dispatch_internal.h"

static inline uint64_t rotl(uint64_t x, int b) { return (x << b) | (x >> (64 - b)); }

static void rounds(uint64_t v[4], int n) {
        while (n--) {
                v[0] += v[1], v[1] = rotl(v[1], 13) ^ v[0], v[0] = rotl(v[0], 32);
                v[2] += v[3], v[3] = rotl(v[3], 16) ^ v[2];
                v[0] += v[3], v[3] = rotl(v[3], 21) ^ v[0];
                v[2] += v[1], v[1] = rotl(v[1], 17) ^ v[2], v[2] = rotl(v[2], 32);
        }
}

static uint64_t read_le(const unsigned char *p, size_t n) {
        uint64_t word = 0;

        for (size_t i = 0; i < n; i++)
                word |= (uint64_t) p[i] << (8 * i);
        return word;
}

static void siphash128(const unsigned char *data, size_t len, uint64_t k0, uint64_t k1, uint64_t ret[2]) {
        uint64_t v[4] = { 0x736f6d6570736575u ^ k0, 0x646f72616e646f6du ^ k1 ^ 0xee, 0x6c7967656e657261u ^ k0, 0x7465646279746573u ^ k1 };
        const unsigned char *end = data + len / 8 * 8;
        uint64_t last = (uint64_t) len << 56 | read_le(end, len % 8);

        for (; data < end; data += 8) {
                uint64_t m = read_le(data, 8);

                v[3] ^= m;
                rounds(v, 2);
                v[0] ^= m;
        }
        v[3] ^= last;
        rounds(v, 2);
        v[0] ^= last;
        v[2] ^= 0xee;
        rounds(v, 4);
        ret[0] = v[0] ^ v[1] ^ v[2] ^ v[3];
        v[1] ^= 0xdd;
        rounds(v, 4);
        ret[1] = v[0] ^ v[1] ^ v[2] ^ v[3];
}

void om_task_id_derive(struct om_span task_id, struct om_span agent, uint64_t n, char ret_id[OM_ID_LEN + 1]) {
        unsigned char text[2 * OM_NAME_MAX + 2 + 20];
        uint64_t h[2];
        size_t len = 0;

        memcpy(text, task_id.p, task_id.len);
        len += task_id.len;
        text[len++] = 0x1f; /* stands in no name */
        memcpy(text + len, agent.p, agent.len);
        len += agent.len;
        text[len++] = 0x1f;
        for (size_t i = 0; i < 8; i++)
                text[len++] = (unsigned char) (n >> (8 * i));
        siphash128(text, len, 0x6f6d6e696461656du, 0x6f6e2d6f75747075u, h);
        snprintf(ret_id, OM_ID_LEN + 1, "%08x-%04x-8%03x-%04x-%012llx", (unsigned) (h[0] >> 32), (unsigned) (h[0] >> 16 & 0xffff),
                (unsigned) (h[0] & 0xfff), (unsigned) (h[1] >> 48 & 0x3fff) | 0x8000, (unsigned long long) (h[1] & 0xffffffffffff));
}
