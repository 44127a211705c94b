/* SPDX-License-Identifier: Apache-2.0 */
/* Many objects at once: see bucket.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bucket.h"
#include "xml.h"

/* -- names -------------------------------------------------------------------------------------------------------------------- */

static void names_free(struct s3_page *p) {
        for (size_t i = 0; i < p->n; i++)
                free(p->names[i].name);
        free(p->next.name);
        free(p->names);
        p->names = NULL;
        p->next = (struct s3_listed){ NULL };
        p->n = p->cap = 0;
        p->more = p->failed = false;
}

void s3_page_clear(struct s3_page *p) {
        names_free(p);
        s3_call_clear(&p->call);
        om_buf_deinit(&p->query);
}

void s3_page_abort(struct s3_page *p) {
        s3_call_abort(&p->call);
        s3_page_clear(p);
}

static void keep_next(struct s3_page *p) {
        if (!p->next.name)
                return;
        if (p->n == p->cap) {
                size_t cap = p->cap ? p->cap * 2 : 64;
                struct s3_listed *names = reallocarray(p->names, cap, sizeof names[0]);

                if (!names) {
                        p->failed = true;
                        return;
                }
                p->names = names;
                p->cap = cap;
        }
        p->names[p->n++] = p->next;
        p->next = (struct s3_listed){ NULL };
}

static void element(void *ctx, const char *path, struct om_span text) {
        struct s3_page *p = ctx;
        const char *prefix = p->client->place.prefix;
        size_t n = strlen(prefix);

        if (strcmp(path, "Contents/Key") == 0) {
                free(p->next.name);
                p->next.name = NULL;
                if (text.len <= n || memcmp(text.p, prefix, n) != 0)
                        return;
                p->next.name = strndup(text.p + n, text.len - n);
                p->failed |= !p->next.name;
        } else if (strcmp(path, "Contents/Size") == 0)
                p->next.size = (size_t) strtoull(text.p, NULL, 10);
        else if (strcmp(path, "Contents/LastModified") == 0)
                p->next.modified_ms = s3_parse_time(text);
        else if (strcmp(path, "Contents") == 0)
                keep_next(p);
        else if (strcmp(path, "IsTruncated") == 0)
                p->more = om_span_is(text, "true");
}

int s3_page_read(struct s3_page *p, struct om_span xml) {
        char root[40];
        int r = s3_xml_read(xml, element, p, root, sizeof root);

        if (r == 0 && strcmp(root, "ListBucketResult") != 0)
                r = -EINVAL;
        return r == 0 && p->failed ? -ENOMEM : r;
}

static void listed(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_page *p = c->ctx;
        struct om_error mine;

        if (status == 0) {
                int r = s3_page_read(p, om_buf_span(&c->req.answer));

                if (r == -ENOMEM)
                        status = om_error_set_errno(&mine, ENOMEM, "S3"), e = &mine;
                else if (r < 0)
                        status = om_error_set(&mine, OM_INVALID,
                                "S3: %s answers with something else than a list: mend endpoint (S3_ENDPOINT)", p->client->place.where),
                        e = &mine;
        }
        p->done(p, status, e);
}

void s3_page_start(struct s3_page *p) {
        struct om_buf *b = &p->query;
        unsigned limit = p->limit && p->limit < S3_PAGE_MAX ? p->limit : S3_PAGE_MAX;

        names_free(p);
        s3_call_clear(&p->call);
        om_buf_clear(b);
        om_buf_printf(b, "list-type=2&max-keys=%u&prefix=", limit);
        s3_url_encode(b, om_span_of(p->client->place.prefix), false);
        s3_url_encode(b, om_span_of(p->prefix), false);
        if (p->after[0]) {
                om_buf_lit(b, "&start-after=");
                s3_url_encode(b, om_span_of(p->client->place.prefix), false);
                s3_url_encode(b, om_span_of(p->after), false);
        }
        om_buf_putc(b, 0);
        p->call = (struct s3_call){ .client = p->client,
                .method = "GET",
                .query = om_buf_ok(b) ? b->data : "list-type=2",
                .quick = p->quick,
                .max_bytes = 8 << 20,
                .done = listed,
                .ctx = p };
        s3_call_start(&p->call);
}

/* -- deleting ----------------------------------------------------------------------------------------------------------------- */

void s3_drop_clear(struct s3_drop *d) {
        s3_call_clear(&d->call);
        om_buf_deinit(&d->body);
        d->n = 0;
}

void s3_drop_add(struct s3_drop *d, const char *name) {
        if (!d->n++)
                om_buf_lit(&d->body, "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>");
        om_buf_printf(&d->body, "<Object><Key>%s%s</Key></Object>", d->client->place.prefix, name);
}

static void drop_element(void *ctx, const char *path, struct om_span text) {
        struct s3_drop *d = ctx;

        if (strcmp(path, "Error/Code") == 0 && !om_span_is(text, "NoSuchKey"))
                snprintf(d->code, sizeof d->code, "%.*s", OM_PRI(text));
}

static void dropped(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_drop *d = c->ctx;
        struct om_error mine;

        d->code[0] = 0;
        if (status == 0)
                s3_xml_read(om_buf_span(&c->req.answer), drop_element, d, NULL, 0);
        if (status == 0 && strcmp(d->code, "AccessDenied") == 0)
                status = om_error_set(&mine, OM_DENIED, "S3: %s: access denied: the policy must allow s3:DeleteObject on %s/%s",
                        d->client->place.where, d->client->place.bucket, d->client->place.prefix),
                e = &mine;
        else if (status == 0 && d->code[0])
                status = om_error_set(&mine, OM_UNAVAILABLE, "S3: %s: not all could be deleted: %s", d->client->place.where, d->code),
                e = &mine;
        om_buf_clear(&d->body);
        d->n = 0;
        d->done(d, status, e);
}

void s3_drop_start(struct s3_drop *d) {
        struct om_error e;

        if (!d->n) {
                d->done(d, 0, NULL);
                return;
        }
        om_buf_lit(&d->body, "</Delete>");
        if (!om_buf_ok(&d->body)) {
                om_buf_clear(&d->body);
                d->n = 0;
                d->done(d, om_error_set_errno(&e, ENOMEM, "S3"), &e);
                return;
        }
        s3_call_clear(&d->call);
        d->call = (struct s3_call){ .client = d->client,
                .method = "POST",
                .query = "delete=",
                .body = om_buf_span(&d->body),
                .action = "s3:DeleteObject",
                .done = dropped,
                .ctx = d };
        s3_md5_base64(d->md5, d->call.body);
        s3_call_header(&d->call, "content-md5", d->md5);
        s3_call_start(&d->call);
}
