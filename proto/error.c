/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors: filling them, cutting them to size, and the tables between kinds, their words and errnos.
 *
 * Always true: a message is zero-terminated UTF-8 without control characters, whatever was put into it. A message is
 * formatted beside the struct before it is stored, so a message may be made from the one it replaces.
 *
 * Called by everything, on every thread. Nothing here blocks or allocates.
 */
#include "error.h"
#include "text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef om_error_set /* error.h's, for the analyzer */
#undef om_error_set_code
#undef om_error_set_errno

static const struct {
        const char *name;
        int error;
} kinds[] = {
        [OM_OK] = { "ok", 0 },
        [OM_INVALID] = { "invalid", EINVAL },
        [OM_NOT_FOUND] = { "not_found", ENOENT },
        [OM_EXISTS] = { "exists", EEXIST },
        [OM_DENIED] = { "denied", EACCES },
        [OM_UNSUPPORTED] = { "unsupported", EOPNOTSUPP },
        [OM_UNAVAILABLE] = { "unavailable", EAGAIN },
        [OM_TIMEOUT] = { "timeout", ETIMEDOUT },
        [OM_LIMIT] = { "limit", ENOBUFS },
        [OM_CONFLICT] = { "conflict", ESTALE },
        [OM_INTERNAL] = { "internal", EIO },
};
enum { N_KINDS = sizeof(kinds) / sizeof(kinds[0]) };

/* What other errnos mean to somebody who asked for something. Those of the kinds themselves are found first. */
static const struct {
        int error;
        enum om_kind kind;
} errnos[] = {
        { ERANGE, OM_INVALID },
        { EDOM, OM_INVALID },
        { EILSEQ, OM_INVALID },
        { EBADMSG, OM_INVALID },
        { ENAMETOOLONG, OM_INVALID },
        { ENOTDIR, OM_NOT_FOUND },
        { ENXIO, OM_NOT_FOUND },
        { EPERM, OM_DENIED },
        { EROFS, OM_DENIED },
        { ENOSYS, OM_UNSUPPORTED },
        { EPROTONOSUPPORT, OM_UNSUPPORTED },
        { EAFNOSUPPORT, OM_UNSUPPORTED },
        { ECONNREFUSED, OM_UNAVAILABLE },
        { ECONNRESET, OM_UNAVAILABLE },
        { ECONNABORTED, OM_UNAVAILABLE },
        { ENOTCONN, OM_UNAVAILABLE },
        { EPIPE, OM_UNAVAILABLE },
        { ESHUTDOWN, OM_UNAVAILABLE },
        { EHOSTUNREACH, OM_UNAVAILABLE },
        { EHOSTDOWN, OM_UNAVAILABLE },
        { ENETUNREACH, OM_UNAVAILABLE },
        { ENETDOWN, OM_UNAVAILABLE },
        { ENETRESET, OM_UNAVAILABLE },
        { EBUSY, OM_UNAVAILABLE },
        { EINTR, OM_UNAVAILABLE },
        { EINPROGRESS, OM_UNAVAILABLE },
        { ETIME, OM_TIMEOUT },
        { ENOSPC, OM_LIMIT },
        { EDQUOT, OM_LIMIT },
        { EFBIG, OM_LIMIT },
        { E2BIG, OM_LIMIT },
        { EMSGSIZE, OM_LIMIT },
        { EMFILE, OM_LIMIT },
        { ENFILE, OM_LIMIT },
};

/* Stores `text`, cut at a character's edge. What no person can read (control characters, bytes that are not UTF-8) becomes '?'. */
static void store(struct om_error *e, const char *text) {
        const char *end = text + strlen(text);
        size_t n = 0;
        while (text < end) {
                size_t len = om_text_utf8(text, end);
                bool readable = len > 0 && !om_text_is_control(text, len);
                size_t take = len > 0 ? len : 1;
                if (n + take >= sizeof e->message)
                        break;
                if (readable) {
                        memcpy(e->message + n, text, take);
                        n += take;
                } else
                        e->message[n++] = '?';
                text += take;
        }
        e->message[n] = '\0';
}

static void __attribute__((format(printf, 4, 0))) fill(struct om_error *e, int code, enum om_kind kind, const char *format, va_list ap) {
        char text[sizeof e->message + 8]; /* longer than what is stored, so that the cut is ours */
        vsnprintf(text, sizeof text, format, ap);
        e->kind = kind;
        e->code = code;
        store(e, text);
}

int om_error_set(struct om_error *e, enum om_kind kind, const char *format, ...) {
        if (e) {
                va_list ap;
                va_start(ap, format);
                fill(e, OM_CODE_KIND, kind, format, ap);
                va_end(ap);
        }
        return om_kind_errno(kind);
}

int om_error_set_code(struct om_error *e, int code, enum om_kind kind, const char *format, ...) {
        if (e) {
                va_list ap;
                va_start(ap, format);
                fill(e, code, kind, format, ap);
                va_end(ap);
        }
        return om_kind_errno(kind);
}

int om_error_set_errno(struct om_error *e, int error, const char *format, ...) {
        error = abs(error);
        if (error == 0)
                error = EIO;
        if (e) {
                char text[sizeof e->message + 8];
                va_list ap;
                va_start(ap, format);
                vsnprintf(text, sizeof text, format, ap);
                va_end(ap);
                const char *why = strerrordesc_np(error); /* never translated, unlike strerror() */
                size_t n = strlen(text);
                if (why)
                        snprintf(text + n, sizeof text - n, ": %s", why);
                else
                        snprintf(text + n, sizeof text - n, ": errno %d", error);
                e->kind = om_kind_of_errno(error);
                e->code = OM_CODE_KIND;
                store(e, text);
        }
        return -error;
}

void om_error_prefix(struct om_error *e, const char *format, ...) {
        if (!e)
                return;
        char text[2 * sizeof e->message];
        va_list ap;
        va_start(ap, format);
        vsnprintf(text, sizeof e->message, format, ap);
        va_end(ap);
        size_t n = strlen(text);
        snprintf(text + n, sizeof text - n, ": %s", e->message);
        store(e, text);
}

const char *om_kind_name(enum om_kind kind) { return (unsigned) kind < N_KINDS ? kinds[kind].name : "internal"; }

int om_kind_parse(const char *name, size_t len, enum om_kind *ret_kind) {
        for (unsigned k = OM_OK; k < N_KINDS; k++)
                if (strlen(kinds[k].name) == len && memcmp(kinds[k].name, name, len) == 0) {
                        *ret_kind = (enum om_kind) k;
                        return 0;
                }
        return -EINVAL;
}

int om_kind_errno(enum om_kind kind) { return (unsigned) kind < N_KINDS ? -kinds[kind].error : -EIO; }

enum om_kind om_kind_of_errno(int error) {
        error = abs(error);
        for (unsigned k = OM_OK; k < N_KINDS; k++)
                if (kinds[k].error == error)
                        return (enum om_kind) k;
        for (size_t i = 0; i < sizeof errnos / sizeof errnos[0]; i++)
                if (errnos[i].error == error)
                        return errnos[i].kind;
        return OM_INTERNAL;
}

/* -- the nearest name ---------------------------------------------------------------------------------------------- */

enum { NEAREST_MAX = 64 }; /* bytes of a word worth comparing; nobody mistypes longer names of ours */

static bool same_letter(char a, char b) {
        if (a >= 'A' && a <= 'Z')
                a = (char) (a + 32);
        if (b >= 'A' && b <= 'Z')
                b = (char) (b + 32);
        return a == b;
}

/* Insertions, deletions, replacements and swaps of neighbours that make `a` into `b` (optimal string alignment); case is free. */
static unsigned edit_distance(const char *a, size_t na, const char *b, size_t nb) {
        unsigned rows[3][NEAREST_MAX + 1];
        unsigned *before = rows[0], *previous = rows[1], *current = rows[2];
        for (size_t j = 0; j <= nb; j++)
                previous[j] = (unsigned) j;
        for (size_t i = 1; i <= na; i++) {
                current[0] = (unsigned) i;
                for (size_t j = 1; j <= nb; j++) {
                        unsigned best = previous[j - 1] + !same_letter(a[i - 1], b[j - 1]);
                        if (previous[j] + 1 < best)
                                best = previous[j] + 1;
                        if (current[j - 1] + 1 < best)
                                best = current[j - 1] + 1;
                        if (i > 1 && j > 1 && same_letter(a[i - 1], b[j - 2]) && same_letter(a[i - 2], b[j - 1]) &&
                                before[j - 2] + 1 < best)
                                best = before[j - 2] + 1;
                        current[j] = best;
                }
                unsigned *oldest = before;
                before = previous;
                previous = current;
                current = oldest;
        }
        return previous[nb];
}

const char *om_nearest(const char *word, const char *const *names) {
        size_t n = strnlen(word, NEAREST_MAX + 1);
        if (n == 0 || n > NEAREST_MAX)
                return NULL;
        const char *const *start = names;
        const char *nearest = NULL;
        unsigned best = 1 + (unsigned) n / 4 + 1; /* a slip in a short word, a few in a long one */
        for (; *names; names++) {
                size_t len = strlen(*names);
                if (len == 0 || len > NEAREST_MAX || len > n + best || n > len + best)
                        continue;
                unsigned distance = edit_distance(word, n, *names, len);
                if (distance < best && distance < (n < len ? n : len)) {
                        best = distance;
                        nearest = *names;
                }
        }
        /* No slip of any: perhaps its beginning, as in "wait" for "wait_ms". */
        for (const char *const *name = start; !nearest && n >= 3 && *name; name++)
                if (strncmp(word, *name, n) == 0)
                        nearest = *name;
        return nearest;
}
