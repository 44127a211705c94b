/* SPDX-License-Identifier: Apache-2.0 */
/* See report.h. In TAP everything but the `ok` lines is a comment. */
#include "report.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
        if (tap) {
                printf("%s %u - %s %s %s\n", o->verdict == VERDICT_OK ? "ok" : "not ok", ++*printed, o->c->id, o->backend, o->c->sentence);
                if (o->verdict != VERDICT_OK)
                        indented(o->text, "#     ");
        } else {
                printf("%-7s %s %s (%.1f s)\n", names[o->verdict], o->c->id, o->backend, o->seconds);
                if (o->verdict != VERDICT_OK)
                        indented(o->text, "        ");
        }
        fflush(stdout);
}

/* One line a case, one column a backend of its family. */
static void family(const struct report *r, char letter, const char *const *backends, const char *before) {
        size_t width = 0, first = r->n;
        for (size_t i = 0; i < r->n; i++) {
                if (r->all[i].c->id[0] != letter)
                        continue;
                first = i < first ? i : first;
                width = strlen(r->all[i].c->sentence) > width ? strlen(r->all[i].c->sentence) : width;
        }
        if (first == r->n)
                return;
        const char *const whole[] = { r->all[first].backend, NULL }, *const *columns = letter == CONF_WHOLE ? whole : backends;
        printf("%s\n%s%-4s %-*s", before, before, "", (int) width, "");
        for (size_t k = 0; columns[k]; k++)
                printf(" %-12.*s", (int) strcspn(columns[k], "/"), columns[k]);
        printf("\n");
        for (size_t i = 0; i < r->n;) {
                const struct conf_case *c = r->all[i].c;
                if (c->id[0] != letter) {
                        i++;
                        continue;
                }
                const char *reason = NULL;
                printf("%s%-4s %-*s", before, c->id, (int) width, c->sentence);
                for (; i < r->n && r->all[i].c == c; i++) {
                        char cell[32];
                        const struct outcome *o = &r->all[i];
                        snprintf(cell, sizeof(cell), o->verdict == VERDICT_NA ? "n/a" : "%s %.1f s", names[o->verdict], o->seconds);
                        printf(" %-12s", cell);
                        if (o->verdict == VERDICT_NA)
                                reason = o->text;
                }
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
        family(r, CONF_BUS, r->buses, before);
        family(r, CONF_STORAGE, r->storages, before);
        family(r, CONF_WHOLE, NULL, before);
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
                json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:s, s:f}", "id", o->c->id, "sentence", o->c->sentence, "bus", o->bus,
                        "storage", o->storage, "outcome", words[o->verdict], "seconds", o->seconds);
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
