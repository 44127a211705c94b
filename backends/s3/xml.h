/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_XML_H
#define OM_S3_XML_H
/*
 * A reader of the XML that S3 and STS answer with, by expat.
 *
 * What is true: a document type, and thus any entity of the server's own, is refused; depth and the length of one text are bounded; the
 * callback sees elements in the order in which they end. Thread: any.
 */
#include "../../proto/buf.h"

enum { S3_XML_DEPTH = 16, S3_XML_TEXT_MAX = 4096, S3_XML_PATH_MAX = 256 };

/* An element has ended. `path`: its name and those around it below the root, "Contents/Key"; "" for the root itself. `text`: what stands
 * directly in it; zero-terminated. */
typedef void s3_xml_fn(void *ctx, const char *path, struct om_span text);

/* 0; -EINVAL: that is no XML, or not of the kind that we take; -ENOMEM. `ret_root` (may be NULL): the root's name. */
int s3_xml_read(struct om_span xml, s3_xml_fn *fn, void *ctx, char *ret_root, size_t root_size);

/* Where an element stands in the text, for those who put another in its place: the bytes of the nth (from 0) that has this path below the
 * root. -ENOENT. With path "" the end tag of the root: *ret_start is where it begins. */
int s3_xml_find(struct om_span xml, const char *path, size_t nth, size_t *ret_start, size_t *ret_end);

#endif
