/* SPDX-License-Identifier: Apache-2.0 */
/* XML: see xml.h. */
#include <errno.h>
#include <expat.h>
#include <stdio.h>

#include "xml.h"

struct reading {
        XML_Parser parser;
        s3_xml_fn *fn;
        void *ctx;
        char path[S3_XML_PATH_MAX];
        size_t lens[S3_XML_DEPTH]; /* of the path when the element began */
        unsigned depth;
        struct om_buf text; /* of the innermost element, and what stood in those around it before */
        size_t texts[S3_XML_DEPTH];
        char *root;
        size_t root_size;
        int status;
        /* of s3_xml_find() */
        const char *wanted;
        size_t nth, starts[S3_XML_DEPTH], start, end;
        bool found;
};

static void stop(struct reading *r, int status) {
        r->status = status;
        XML_StopParser(r->parser, XML_FALSE);
}

static void began(void *ctx, const XML_Char *name, const XML_Char **attributes) {
        struct reading *r = ctx;
        size_t len = strlen(r->path), room = sizeof r->path - len;
        int n = 0;

        if (r->depth == S3_XML_DEPTH) {
                stop(r, -EINVAL);
                return;
        }
        r->lens[r->depth] = len;
        r->texts[r->depth] = r->text.len;
        r->starts[r->depth] = (size_t) XML_GetCurrentByteIndex(r->parser);
        if (r->depth++ == 0) {
                if (r->root)
                        snprintf(r->root, r->root_size, "%s", name);
                return;
        }
        n = snprintf(r->path + len, room, "%s%s", len ? "/" : "", name);
        if (n < 0 || (size_t) n >= room)
                stop(r, -EINVAL);
}

static void look(struct reading *r) {
        if (r->found || strcmp(r->path, r->wanted) != 0)
                return;
        if (r->nth) {
                r->nth--;
                return;
        }
        r->found = true;
        r->start = *r->wanted ? r->starts[r->depth] : (size_t) XML_GetCurrentByteIndex(r->parser);
        r->end = (size_t) XML_GetCurrentByteIndex(r->parser) + (size_t) XML_GetCurrentByteCount(r->parser);
}

static void ended(void *ctx, const XML_Char *name) {
        struct reading *r = ctx;
        size_t start;

        if (r->status < 0)
                return;
        start = r->texts[--r->depth];
        om_buf_putc(&r->text, 0);
        if (!om_buf_ok(&r->text)) {
                stop(r, -ENOMEM);
                return;
        }
        if (r->fn)
                r->fn(r->ctx, r->path, (struct om_span){ r->text.data + start, r->text.len - 1 - start });
        if (r->wanted)
                look(r);
        r->text.len = start;
        r->path[r->lens[r->depth]] = 0;
}

static void said(void *ctx, const XML_Char *text, int len) {
        struct reading *r = ctx;

        if (r->status < 0)
                return;
        if (!r->depth || r->text.len - r->texts[r->depth - 1] + (size_t) len > S3_XML_TEXT_MAX) {
                stop(r, -EINVAL);
                return;
        }
        om_buf_put(&r->text, text, (size_t) len);
        if (!om_buf_ok(&r->text))
                stop(r, -ENOMEM);
}

static void has_doctype(void *ctx, const XML_Char *name, const XML_Char *system, const XML_Char *public, int internal) {
        stop(ctx, -EINVAL);
}

static int parse(struct reading *r, struct om_span xml) {
        r->parser = XML_ParserCreate(NULL);
        if (!r->parser)
                return -ENOMEM;
        XML_SetUserData(r->parser, r);
        XML_SetElementHandler(r->parser, began, ended);
        XML_SetCharacterDataHandler(r->parser, said);
        XML_SetStartDoctypeDeclHandler(r->parser, has_doctype);
        if (xml.len > INT32_MAX)
                r->status = -EINVAL;
        else if (XML_Parse(r->parser, xml.len ? xml.p : "", (int) xml.len, XML_TRUE) != XML_STATUS_OK && r->status == 0)
                r->status = XML_GetErrorCode(r->parser) == XML_ERROR_NO_MEMORY ? -ENOMEM : -EINVAL;
        XML_ParserFree(r->parser);
        om_buf_deinit(&r->text);
        return r->status;
}

int s3_xml_read(struct om_span xml, s3_xml_fn *fn, void *ctx, char *ret_root, size_t root_size) {
        struct reading r = { .fn = fn, .ctx = ctx, .root = ret_root, .root_size = root_size };

        if (ret_root)
                *ret_root = 0;
        return parse(&r, xml);
}

int s3_xml_find(struct om_span xml, const char *path, size_t nth, size_t *ret_start, size_t *ret_end) {
        struct reading r = { .wanted = path, .nth = nth };
        int status = parse(&r, xml);

        if (status < 0)
                return status;
        if (!r.found)
                return -ENOENT;
        *ret_start = r.start;
        *ret_end = r.end;
        return 0;
}
