/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of every type, from a URL's parameters and one by one: what is accepted is in its range, what is refused leaves the field as it
 * was and is told with the option's name. The tables are one of all types and those of the backends that are built in.
 *
 * The input is a URL; its part behind the first ? is also tried as a bare value of each type.
 */
#include <string.h>

#include "../../backends/options.h"
#include "../../backends/registry.h"
#include "../../backends/store.h"
#include "fuzz.h"

struct all {
        const char *text;
        bool flag;
        int64_t count, ms, bytes, free_ms;
        int choice;
};
static const char *const words[] = { "always", "interval", "memory", NULL };
static const struct om_option table[] = {
        { "text", OM_OPTION_STRING, offsetof(struct all, text), NULL, NULL, 0, 0, "" },
        { "flag", OM_OPTION_BOOL, offsetof(struct all, flag), "no", NULL, 0, 0, "" },
        { "count", OM_OPTION_INT, offsetof(struct all, count), "3", NULL, -5, 100, "" },
        { "ms", OM_OPTION_MS, offsetof(struct all, ms), "1s", NULL, 1, 3600000, "" },
        { "bytes", OM_OPTION_BYTES, offsetof(struct all, bytes), "1M", NULL, 4096, INT64_MAX, "" },
        { "free", OM_OPTION_MS, offsetof(struct all, free_ms), "0", NULL, 0, 0, "" },
        { "choice", OM_OPTION_ENUM, offsetof(struct all, choice), "always", words, 0, 0, "" },
        { "family.*", OM_OPTION_STRING, 0, "", NULL, 0, 0, "" },
        { NULL },
};

static void sound(const struct all *a) {
        MUST(a->count >= -5 && a->count <= 100 && a->ms >= 1 && a->ms <= 3600000 && a->bytes >= 4096 && a->free_ms >= 0);
        MUST(a->choice >= 0 && a->choice < 3);
        MUST(*(const unsigned char *) &a->flag < 2);
}

static void one_by_one(const char *text) {
        for (const struct om_option *o = table; strcmp(o->name, "family.*") != 0; o++) { /* which has no field */
                struct all a, before;
                struct om_error e = OM_ERROR_INIT;

                memset(&a, 0x5a, sizeof a);
                before = a;
                if (om_option_parse(o, text, (char *) &a + o->offset, &e) < 0) {
                        MUST(memcmp(&a, &before, sizeof a) == 0);
                        MUST(e.kind == OM_INVALID && strncmp(e.message, o->name, strlen(o->name)) == 0);
                        continue;
                }
                MUST(e.message[0] == 0);
                if (o->type == OM_OPTION_INT)
                        MUST(a.count >= o->min && a.count <= o->max);
                /* The same text again gives the same value. */
                before = a;
                MUST(om_option_parse(o, text, (char *) &a + o->offset, &e) == 0 && memcmp(&a, &before, sizeof a) == 0);
        }
}

/* The tables of what is built in: their structs are not ours, but none is this large. */
static void of_backends(const char *text) {
        static const char *const fits[] = { "json:", "local:" };
        union {
                char bytes[4096];
                int64_t align;
        } settings;

        for (size_t i = 0; i < sizeof fits / sizeof *fits; i++) {
                const struct om_store_ops *store;
                const struct om_bus_ops *bus;
                const struct om_option *options = NULL;
                struct om_error e = OM_ERROR_INIT;
                struct om_url *url;

                if (om_url_parse(text, &url, &e) < 0)
                        return;
                if (i == 0 && om_registry_store(url, "STORAGE_URL", &store, &e) == 0)
                        options = store->options;
                if (i == 1 && om_registry_bus(url, "EVENT_BUS_URL", &bus, &e) == 0)
                        options = bus->options;
                if (options && om_options_read(options, url, &settings, &e) < 0)
                        MUST(e.kind == OM_INVALID && e.message[0]);
                om_url_free(url);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct om_error e = OM_ERROR_INIT;
        struct om_url *url;
        struct all a = { 0 };
        char *text = malloc(size + 1);

        memcpy(text, data, size);
        text[size] = 0;
        one_by_one(strchr(text, '?') ? strchr(text, '?') + 1 : text);
        of_backends(text);
        if (om_url_parse(text, &url, &e) == 0) {
                if (om_options_read(table, url, &a, &e) == 0) {
                        sound(&a);
                        for (size_t i = 0; i < url->n_params; i++)
                                MUST(url->params[i].used);
                } else
                        MUST(e.kind == OM_INVALID && e.message[0]);
                om_url_free(url);
                MUST(om_url_parse(text, &url, &e) == 0); /* what took one time takes another */
                if (om_options_read(NULL, url, &a, &e) < 0)
                        MUST(url->n_params > 0 && e.message[0]);
                else
                        MUST(url->n_params == 0);
                om_url_free(url);
        }
        free(text);
        return 0;
}
