/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_ERROR_H
#define OM_ERROR_H
/*
 * Errors, for machines and for people.
 *
 * A function that can fail returns 0 (or something positive that it documents) or a negative errno. Where a person will
 * read about it, it also fills a struct om_error at the place that knows what was wrong; the struct travels up unchanged
 * and is logged or sent once, at the edge. The errno and the kind always agree: om_error_set() returns the errno of the
 * kind it was given, so `return om_error_set(e, OM_INVALID, "…")` is the usual way to fail.
 *
 * Thread: any; a struct om_error belongs to whoever declared it.
 */
#include <stdbool.h>
#include <stddef.h>

/* What sort of failure it is: the `data.kind` of PROTOCOL.md. The order is fixed: clients' tables are made from it. */
enum om_kind {
        OM_OK = 0,
        OM_INVALID,     /* the request is wrong and will be wrong again: -EINVAL */
        OM_NOT_FOUND,   /* -ENOENT */
        OM_EXISTS,      /* -EEXIST */
        OM_DENIED,      /* -EACCES */
        OM_UNSUPPORTED, /* this bus, storage or version cannot: -EOPNOTSUPP */
        OM_UNAVAILABLE, /* a server or the disk is away; the same request may work later: -EAGAIN */
        OM_TIMEOUT,     /* -ETIMEDOUT */
        OM_LIMIT,       /* something is full or too large: -ENOBUFS */
        OM_CONFLICT,    /* the thing changed hands meanwhile, say a lease: -ESTALE */
        OM_INTERNAL,    /* a fault of ours or of the machine: -EIO */
};

/* JSON-RPC 2.0's own codes, section 5.1 of its specification; every other error has OM_CODE_KIND. */
enum {
        OM_CODE_PARSE = -32700,
        OM_CODE_REQUEST = -32600,
        OM_CODE_METHOD = -32601,
        OM_CODE_PARAMS = -32602,
        OM_CODE_INTERNAL = -32603,
        OM_CODE_KIND = -32000,
};

struct om_error {
        enum om_kind kind;
        int code;          /* JSON-RPC code; om_error_set() gives OM_CODE_KIND */
        char message[500]; /* what is wrong, where, what would be right; UTF-8, no newline, no secrets */
};

#define OM_ERROR_INIT \
        { OM_OK, 0, "" }

/* Fills `e` (may be NULL) and returns the negative errno of `kind`. Too long a message is cut at a character's edge. */
int om_error_set(struct om_error *e, enum om_kind kind, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same with a JSON-RPC code of its own, for faults of the request itself (kind: OM_INVALID, OM_UNSUPPORTED …). */
int om_error_set_code(struct om_error *e, int code, enum om_kind kind, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Fills `e` from an errno (positive or negative) as "FORMAT: strerror". The kind is om_kind_of_errno()'s. Returns -errno. */
int om_error_set_errno(struct om_error *e, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

#ifdef __clang_analyzer__
/* What the analyzer cannot see: these return a negative number, whatever they are given. */
#define om_error_set(...) (om_error_set(__VA_ARGS__), -1)
#define om_error_set_code(...) (om_error_set_code(__VA_ARGS__), -1)
#define om_error_set_errno(...) (om_error_set_errno(__VA_ARGS__), -1)
#endif

/* Puts "prefix: " before the message, for a caller that knows where it happened. `e` may be NULL. */
void om_error_prefix(struct om_error *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The word on the wire ("not_found"); "ok" for OM_OK. Static. */
const char *om_kind_name(enum om_kind kind);
/* The kind with that name; -EINVAL when there is none. */
int om_kind_parse(const char *name, size_t len, enum om_kind *ret_kind);
/* Negative errno of a kind (0 for OM_OK) and the kind of an errno of either sign (OM_INTERNAL for what is not listed). */
int om_kind_errno(enum om_kind kind);
enum om_kind om_kind_of_errno(int error);

/* The name among `names` (NULL-terminated) nearest to `word`, by edit distance; NULL when none is near enough to offer. */
const char *om_nearest(const char *word, const char *const *names);

#endif
