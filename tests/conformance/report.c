/* SPDX-License-Identifier: Apache-2.0 */
/* See report.h. In TAP everything but the `ok` lines is a comment. */
#include "report.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS_MAX = 64 };

static const char *const names[] = { "not run", "ok", "FAILED", "n/a" };

static void indented(const char *text, const char *before) {
        for (const char *p = text; p && *p;) {
                size_t n = strcspn(p, "\n");
                printf("%s%.*s\n", before, (int) n, p);
                p += n + (p[n] == '\n');
        }
}

void report_one(const struct outcome *o, unsigned *printed, bool tap) {
        if (o->verdict == VERDICT_NA) {
                if (tap)
                        printf("# n/a %s %s %s (%s)\n", o->c->id, o->backend, o->c->sentence, o->text);
                return;
        }
        if (tap && o->verdict == VERDICT_OK)
                printf("ok %u - %s %s %s\n", ++*printed, o->c->id, o->backend, o->c->sentence);
        else if (tap) { /* the reason on the same line: whatever sums up keeps that */
                printf("not ok %u - %s %s %s: %s\n", ++*printed, o->c->id, o->backend, o->c->sentence, o->why ? o->why : o->text);
                indented(o->text, "#     ");
        } else {
                printf("%-7s %s %s (%.1f s)\n", names[o->verdict], o->c->id, o->backend, o->seconds);
                if (o->verdict != VERDICT_OK)
                        indented(o->text, "        ");
        }
        fflush(stdout);
}

/* The columns of a family: what its cases are about, in the order in which they come. */
static size_t columns_of(const struct report *r, char letter, const char **columns, size_t room) {
        size_t n = 0;
        for (size_t i = 0; i < r->n; i++) {
                size_t k = 0;
                if (r->all[i].c->id[0] != letter)
                        continue;
                while (k < n && strcmp(columns[k], r->all[i].backend) != 0)
                        k++;
                if (k == n && n < room)
                        columns[n++] = r->all[i].backend;
        }
        return n;
}

/* One line a case, one column a backend of its family. */
static void family(const struct report *r, char letter, const char *before) {
        const char *columns[COLUMNS_MAX];
        size_t width = 0, n = columns_of(r, letter, columns, COLUMNS_MAX);
        for (size_t i = 0; i < r->n; i++)
                if (r->all[i].c->id[0] == letter && strlen(r->all[i].c->sentence) > width)
                        width = strlen(r->all[i].c->sentence);
        if (n == 0)
                return;
        printf("%s\n%s%-4s %-*s", before, before, "", (int) width, "");
        for (size_t k = 0; k < n; k++)
                printf(" %-14.*s", (int) strcspn(columns[k], "/"), columns[k]);
        printf("\n");
        for (size_t i = 0; i < r->n;) {
                const struct conf_case *c = r->all[i].c;
                char cells[COLUMNS_MAX][32] = { { 0 } };
                const char *reason = NULL;
                if (c->id[0] != letter) {
                        i++;
                        continue;
                }
                for (; i < r->n && r->all[i].c == c; i++) {
                        const struct outcome *o = &r->all[i];
                        size_t k = 0;
                        while (k + 1 < n && strcmp(columns[k], o->backend) != 0)
                                k++;
                        snprintf(cells[k], sizeof(cells[k]), o->verdict == VERDICT_NA ? "n/a" : "%s %.1f s", names[o->verdict], o->seconds);
                        if (o->verdict == VERDICT_NA)
                                reason = o->text;
                }
                printf("%s%-4s %-*s", before, c->id, (int) width, c->sentence);
                for (size_t k = 0; k < n; k++)
                        printf(" %-14s", cells[k]);
                printf("\n");
                if (reason)
                        printf("%s         n/a: %s\n", before, reason);
        }
}

static unsigned count(const struct report *r, enum verdict v) {
        unsigned n = 0;
        for (size_t i = 0; i < r->n; i++)
                n += r->all[i].verdict == v;
        return n;
}

int report_all(const struct report *r) {
        const char *before = r->tap ? "# " : "";
        printf("%s\n%sscale: %s\n", before, before,
                r->full ? "full, every number as the sentence says"
                        : "short, some counts and times are smaller than the sentence says (--scale full has them as it says)");
        family(r, CONF_BUS, before);
        family(r, CONF_STORAGE, before);
        family(r, CONF_WHOLE, before);
        printf("%s\n%s%u ok, %u failed, %u n/a, %u not run; %.0f s\n", before, before, count(r, VERDICT_OK), count(r, VERDICT_FAILED),
                count(r, VERDICT_NA), count(r, VERDICT_WAITING), r->seconds);
        if (r->tap)
                printf("1..%u\n", count(r, VERDICT_OK) + count(r, VERDICT_FAILED));
        fflush(stdout);
        return (int) (count(r, VERDICT_FAILED) + count(r, VERDICT_WAITING));
}

int report_json(const struct report *r, const char *path) {
        static const char *const words[] = { "not run", "ok", "failed", "n/a" };
        json_t *cases = json_array();
        for (size_t i = 0; i < r->n; i++) {
                const struct outcome *o = &r->all[i];
                json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:s, s:f}", "id", o->c->id, "sentence", o->c->sentence, "bus", o->bus->name,
                        "storage", o->storage->name, "outcome", words[o->verdict], "seconds", o->seconds);
                if (o->verdict == VERDICT_NA || o->verdict == VERDICT_FAILED)
                        json_object_set_new(
                                j, o->verdict == VERDICT_NA ? "reason" : "output", json_stringn_nocheck(o->text, strlen(o->text)));
                json_array_append_new(cases, j);
        }
        json_t *all = json_pack("{s:s, s:s, s:i, s:i, s:i, s:f, s:o}", "version", OM_VERSION, "scale", r->full ? "full" : "short", "ok",
                (int) count(r, VERDICT_OK), "failed", (int) count(r, VERDICT_FAILED), "not_applicable", (int) count(r, VERDICT_NA),
                "seconds", r->seconds, "cases", cases);
        int status = json_dump_file(all, path, JSON_INDENT(2));
        if (status < 0)
                fprintf(stderr, "conformance: %s: %s\n", path, strerror(errno));
        json_decref(all);
        return status;
}
