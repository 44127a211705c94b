/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_TEXT_H
#define OM_TEXT_H
/*
 * Runs of bytes in text: how far a piece goes on without anything special, and what a UTF-8 character is.
 *
 * These are the inner loops of reading and writing JSON, so they look at 16 bytes at a time where SSE2 is (every x86-64),
 * at 8 elsewhere. None reads a byte at or after `end`. Internal to proto/. Thread: any.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <endian.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define OM_TEXT_ONES UINT64_C(0x0101010101010101)
#define OM_TEXT_HIGHS UINT64_C(0x8080808080808080)

/* Whether some byte of the word is zero ("Bit Twiddling Hacks", Anderson: exact as a yes or no, in either byte order). */
static inline bool om_text_has_zero(uint64_t w) { return ((w - OM_TEXT_ONES) & ~w & OM_TEXT_HIGHS) != 0; }
static inline bool om_text_has(uint64_t w, char c) { return om_text_has_zero(w ^ (OM_TEXT_ONES * (unsigned char) c)); }

/* A byte that stands for itself in a JSON string: ASCII, no control character, neither quote nor backslash. */
static inline bool om_text_is_plain(char c) { return (signed char) c >= 0x20 && c != '"' && c != '\\'; }

#ifdef __SSE2__
/* 16 bytes: all ones where a byte is a quote or a backslash; where it is not plain (the comparison is signed: bytes from 0x80 are below
 * 0x20 too). */
static inline __m128i om_text_quotes(const char *p) {
        __m128i v = _mm_loadu_si128((const __m128i *) (const void *) p);
        return _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')), _mm_cmpeq_epi8(v, _mm_set1_epi8('\\')));
}
static inline __m128i om_text_not_plain(const char *p) {
        __m128i v = _mm_loadu_si128((const __m128i *) (const void *) p);
        return _mm_or_si128(_mm_cmplt_epi8(v, _mm_set1_epi8(0x20)), om_text_quotes(p));
}
/* Of 64 bytes: one test for a long string's every four. */
#define om_text_any4(of, p) _mm_or_si128(_mm_or_si128(of(p), of((p) + 16)), _mm_or_si128(of((p) + 32), of((p) + 48)))
#endif

/* The first byte that is not plain, or `end`. */
static inline const char *om_text_skip_plain(const char *p, const char *end) {
#ifdef __SSE2__
        for (const char *start = p; end - p >= 16;) {
                unsigned mask = (unsigned) _mm_movemask_epi8(om_text_not_plain(p));
                if (mask)
                        return p + __builtin_ctz(mask);
                p += 16;
                if (p == start + 16) /* a short one would have ended */
                        while (end - p >= 64 && !_mm_movemask_epi8(om_text_any4(om_text_not_plain, p)))
                                p += 64;
        }
#endif
        while (end - p >= 8) {
                uint64_t w;
                memcpy(&w, p, 8);
                /* below 0x20: the top three bits are clear */
                if ((w & OM_TEXT_HIGHS) || om_text_has_zero(w & (OM_TEXT_ONES * 0xe0)) || om_text_has(w, '"') || om_text_has(w, '\\'))
                        break;
                p += 8;
        }
        while (p < end && om_text_is_plain(*p))
                p++;
        return p;
}

/* The first quote or backslash, or `end`. */
static inline const char *om_text_find_quote(const char *p, const char *end) {
#ifdef __SSE2__
        for (const char *start = p; end - p >= 16;) {
                unsigned mask = (unsigned) _mm_movemask_epi8(om_text_quotes(p));
                if (mask)
                        return p + __builtin_ctz(mask);
                p += 16;
                if (p == start + 16) /* a short one would have ended */
                        while (end - p >= 64 && !_mm_movemask_epi8(om_text_any4(om_text_quotes, p)))
                                p += 64;
        }
#endif
        while (end - p >= 8) {
                uint64_t w;
                memcpy(&w, p, 8);
                if (om_text_has(w, '"') || om_text_has(w, '\\'))
                        break;
                p += 8;
        }
        while (p < end && *p != '"' && *p != '\\')
                p++;
        return p;
}

/* For 64 bytes, a bit each (bit 0 the first): where the backslashes, quotes and brackets are. */
struct om_text_marks {
        uint64_t backslash, quote, open, close; /* `[` and `{`; `]` and `}` */
};

#ifdef __SSE2__
static inline struct om_text_marks om_text_mark64(const char *p) {
        const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\'), open = _mm_set1_epi8('{'), close = _mm_set1_epi8('}');
        struct om_text_marks m = { 0, 0, 0, 0 };
        for (int i = 0; i < 64; i += 16) {
                __m128i v = _mm_loadu_si128((const __m128i *) (const void *) (p + i));
                /* setting bit 5 makes `[` into `{` and `]` into `}`, and nothing else into either */
                __m128i folded = _mm_or_si128(v, _mm_set1_epi8(0x20));
                m.backslash |= (uint64_t) (unsigned) _mm_movemask_epi8(_mm_cmpeq_epi8(v, backslash)) << i;
                m.quote |= (uint64_t) (unsigned) _mm_movemask_epi8(_mm_cmpeq_epi8(v, quote)) << i;
                m.open |= (uint64_t) (unsigned) _mm_movemask_epi8(_mm_cmpeq_epi8(folded, open)) << i;
                m.close |= (uint64_t) (unsigned) _mm_movemask_epi8(_mm_cmpeq_epi8(folded, close)) << i;
        }
        return m;
}
#else
/* Eight bytes, the first in the low bits: a bit for each that is `c`. No carry crosses a byte, so every bit is right. */
static inline uint64_t om_text_mark8(uint64_t w, char c) {
        uint64_t x = w ^ (OM_TEXT_ONES * (unsigned char) c);
        uint64_t zero = ~(((x & ~OM_TEXT_HIGHS) + ~OM_TEXT_HIGHS) | x) & OM_TEXT_HIGHS;
        return (zero >> 7) * UINT64_C(0x0102040810204080) >> 56;
}
static inline struct om_text_marks om_text_mark64(const char *p) {
        struct om_text_marks m = { 0, 0, 0, 0 };
        for (int i = 0; i < 64; i += 8) {
                uint64_t w;
                memcpy(&w, p + i, 8);
                w = le64toh(w);
                uint64_t folded = w | (OM_TEXT_ONES * 0x20);
                m.backslash |= om_text_mark8(w, '\\') << i;
                m.quote |= om_text_mark8(w, '"') << i;
                m.open |= om_text_mark8(folded, '{') << i;
                m.close |= om_text_mark8(folded, '}') << i;
        }
        return m;
}
#endif

/*
 * The length of the UTF-8 character at `p` (p < end): 1 to 4, or 0 where there is none. RFC 3629, section 4: no overlong
 * forms, no surrogates, nothing above U+10FFFF.
 */
static inline size_t om_text_utf8(const char *p, const char *end) {
        const unsigned char *s = (const unsigned char *) p;
        size_t left = (size_t) (end - p);
        if (s[0] < 0x80)
                return 1;
        if (s[0] < 0xc2)
                return 0;
        if (s[0] < 0xe0)
                return left >= 2 && (s[1] & 0xc0) == 0x80 ? 2 : 0;
        if (s[0] < 0xf0) {
                if (left < 3 || (s[1] & 0xc0) != 0x80 || (s[2] & 0xc0) != 0x80)
                        return 0;
                if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f))
                        return 0;
                return 3;
        }
        if (s[0] > 0xf4 || left < 4 || (s[1] & 0xc0) != 0x80 || (s[2] & 0xc0) != 0x80 || (s[3] & 0xc0) != 0x80)
                return 0;
        if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
                return 0;
        return 4;
}

/* Whether the character of `len` bytes at `p` is a control character: U+0000 to U+001F, U+007F to U+009F. */
static inline bool om_text_is_control(const char *p, size_t len) {
        const unsigned char *s = (const unsigned char *) p;
        return len == 1 ? s[0] < 0x20 || s[0] == 0x7f : len == 2 && s[0] == 0xc2 && s[1] < 0xa0;
}

/* The longest piece of the text, at most `max` bytes, that does not end inside a character (of text that is UTF-8). */
static inline size_t om_text_cut(const char *p, size_t len, size_t max) {
        if (len <= max)
                return len;
        while (max > 0 && ((unsigned char) p[max] & 0xc0) == 0x80)
                max--;
        return max;
}

#endif
