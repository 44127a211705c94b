/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects, in one piece or in parts: see upload.h.
 *
 *   one request ──▶ done
 *   create ──▶ parts, S3_PARTS_AT_ONCE of them at a time ──▶ complete ──▶ done
 *                         └───────────── failed ───┴──▶ abort ──▶ done
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "upload.h"
#include "xml.h"

static const char *const encryption_names[] = { NULL, "AES256", "aws:kms" };

static void over(struct s3_upload *u, int status, const struct om_error *e) { u->done(u, status, e); }

void s3_upload_clear(struct s3_upload *u) {
        s3_call_clear(&u->call);
        for (unsigned i = 0; i < u->n_slots; i++)
                s3_call_clear(&u->parts[i].call);
        free(u->parts);
        free(u->etags);
        u->parts = NULL;
        u->etags = NULL;
        u->n_slots = 0;
        om_buf_deinit(&u->completion);
}

static void fresh(
        struct s3_upload *u, const char *method, const char *action, void (*done)(struct s3_call *, int, const struct om_error *)) {
        s3_call_clear(&u->call);
        u->call = (struct s3_call){ .client = u->client, .method = method, .name = u->name, .action = action, .done = done, .ctx = u };
}

static void say_what_it_is(struct s3_upload *u, struct s3_call *c) {
        const struct s3_settings *s = u->client->settings;

        for (size_t i = 0; i < u->n_metadata; i++)
                s3_call_header(c, u->metadata[i].name, u->metadata[i].value);
        if (s->storage_class)
                s3_call_header(c, "x-amz-storage-class", s->storage_class);
        if (encryption_names[s->encryption])
                s3_call_header(c, "x-amz-server-side-encryption", encryption_names[s->encryption]);
        if (s->encryption == S3_ENCRYPTION_KMS && s->kms_id)
                s3_call_header(c, "x-amz-server-side-encryption-aws-kms-key-id", s->kms_id);
        if (u->tagging)
                s3_call_header(c, "x-amz-tagging", u->tagging);
}

static void say_condition(struct s3_upload *u, struct s3_call *c) {
        if (u->if_none_match)
                s3_call_header(c, "if-none-match", "*");
        else if (u->if_match)
                s3_call_header(c, "if-match", u->if_match);
}

static void written(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_upload *u = c->ctx;

        u->repeated = c->repeated;
        s3_call_etag(c, u->etag);
        over(u, status, e);
}

/* -- parts -------------------------------------------------------------------------------------------------------------------- */

static void aborted(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_upload *u = c->ctx;

        if (status < 0 && status != -ENOENT)
                om_host_log(u->client->host, OM_LOG_WARNING, "S3: %s: parts of an upload that failed are left: %s", u->client->place.where,
                        e->message);
        over(u, u->status, &u->error);
}

static void give_up(struct s3_upload *u) {
        fresh(u, "DELETE", "s3:AbortMultipartUpload", aborted);
        u->call.query = u->query;
        s3_call_start(&u->call);
}

static void element(void *ctx, const char *path, struct om_span text) {
        struct s3_upload *u = ctx;

        if (strcmp(path, "UploadId") == 0 && text.len < sizeof u->id)
                snprintf(u->id, sizeof u->id, "%.*s", OM_PRI(text));
        else if (strcmp(path, "ETag") == 0 && text.len < sizeof u->etag)
                snprintf(u->etag, sizeof u->etag, "%.*s", OM_PRI(text));
}

static void completed(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_upload *u = c->ctx;

        u->repeated |= c->repeated;
        if (status < 0) {
                /* An upload that is gone may be there as an object: whoever asked looks. */
                u->status = c->repeated ? -ESTALE : status;
                u->error = *e;
                give_up(u);
                return;
        }
        u->etag[0] = 0;
        s3_xml_read(om_buf_span(&c->req.answer), element, u, NULL, 0);
        over(u, 0, NULL);
}

static void complete(struct s3_upload *u) {
        om_buf_lit(&u->completion, "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for (unsigned i = 0; i < u->n_parts; i++)
                om_buf_printf(&u->completion, "<Part><PartNumber>%u</PartNumber><ETag>%s</ETag></Part>", i + 1, u->etags[i]);
        om_buf_lit(&u->completion, "</CompleteMultipartUpload>");
        if (!om_buf_ok(&u->completion)) {
                u->status = om_error_set_errno(&u->error, ENOMEM, "S3");
                give_up(u);
                return;
        }
        fresh(u, "POST", "s3:PutObject", completed);
        u->call.query = u->query;
        u->call.body = om_buf_span(&u->completion);
        say_condition(u, &u->call);
        s3_call_start(&u->call);
}

static void send_part(struct s3_upload_part *part, struct s3_upload *u);

static void part_sent(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_upload *u = c->ctx;
        struct s3_upload_part *part = (struct s3_upload_part *) c;

        u->open--;
        if (status == 0 && !s3_call_etag(c, u->etags[part->number]))
                status = om_error_set(&u->error, OM_INTERNAL, "S3: a part has no ETag");
        else if (status < 0)
                u->error = *e;
        if (status < 0)
                u->status = status;
        if (u->status == 0 && u->next_part < u->n_parts)
                send_part(part, u);
        else if (u->open == 0 && u->status == 0)
                complete(u);
        else if (u->open == 0)
                give_up(u);
}

static void send_part(struct s3_upload_part *part, struct s3_upload *u) {
        size_t size = (size_t) u->client->settings->part_bytes, from;

        s3_call_clear(&part->call);
        part->number = u->next_part++;
        from = part->number * size;
        snprintf(part->query, sizeof part->query, "partNumber=%u&%s", part->number + 1, u->query);
        part->call = (struct s3_call){
                .client = u->client, .method = "PUT", .name = u->name, .query = part->query, .done = part_sent, .ctx = u
        };
        part->call.body = (struct om_span){ u->body.p + from, u->body.len - from < size ? u->body.len - from : size };
        u->open++;
        s3_call_start(&part->call);
}

static void created(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_upload *u = c->ctx;
        struct om_buf query = OM_BUF_INIT;

        if (status == 0 && (s3_xml_read(om_buf_span(&c->req.answer), element, u, NULL, 0) < 0 || !*u->id))
                status = om_error_set(&u->error, OM_INTERNAL, "S3: %s: a multipart upload has no identifier", u->client->place.where),
                e = &u->error;
        if (status < 0) {
                u->repeated = c->repeated;
                over(u, status, e);
                return;
        }
        om_buf_lit(&query, "uploadId=");
        s3_url_encode(&query, om_span_of(u->id), false);
        snprintf(u->query, sizeof u->query, "%.*s", (int) query.len, om_buf_ok(&query) ? query.data : "uploadId=");
        om_buf_deinit(&query);
        u->n_slots = u->n_parts < S3_PARTS_AT_ONCE ? u->n_parts : S3_PARTS_AT_ONCE;
        u->parts = calloc(u->n_slots, sizeof u->parts[0]);
        u->etags = calloc(u->n_parts, sizeof u->etags[0]);
        if (!u->parts || !u->etags) {
                u->n_slots = 0;
                u->status = om_error_set_errno(&u->error, ENOMEM, "S3");
                give_up(u);
                return;
        }
        for (unsigned i = 0; i < u->n_slots; i++)
                send_part(&u->parts[i], u);
}

void s3_upload_start(struct s3_upload *u) {
        size_t size = (size_t) u->client->settings->part_bytes;

        u->status = 0;
        u->repeated = false;
        u->n_parts = u->next_part = u->open = 0;
        u->id[0] = u->etag[0] = 0;
        if (u->body.len <= size) {
                fresh(u, "PUT", u->tagging ? S3_TAGGED_PUT : NULL, written);
                u->call.body = u->body;
                say_what_it_is(u, &u->call);
                say_condition(u, &u->call);
        } else {
                u->n_parts = (unsigned) ((u->body.len + size - 1) / size);
                fresh(u, "POST", u->tagging ? S3_TAGGED_PUT : "s3:PutObject", created);
                u->call.query = "uploads=";
                u->call.body = OM_SPAN("");
                say_what_it_is(u, &u->call);
        }
        s3_call_start(&u->call);
}
