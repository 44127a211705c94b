/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a URL asks for, and the three different answers where there is none. */
#include <check.h>
#include <errno.h>
#include <stdio.h>

#include "../../backends/registry.h"
#include "../lib/suite.h"
#include "../lib/test_store.h"

static int choose(bool bus, const char *text, const char **ret_name, struct om_error *e) {
        struct om_url *u;
        const struct om_bus_ops *bus_ops = NULL;
        const struct om_store_ops *store_ops = NULL;
        ck_assert_int_eq(om_url_parse(text, &u, e), 0);
        int r = bus ? om_registry_bus(u, "EVENT_BUS_URL", &bus_ops, e) : om_registry_store(u, "STORAGE_URL", &store_ops, e);
        om_url_free(u);
        *ret_name = r < 0 ? NULL : bus ? bus_ops->name : store_ops->name;
        return r;
}

START_TEST(test_embedded_ones_are_there) {
        struct om_error e = OM_ERROR_INIT;
        const char *name;
        ck_assert_int_eq(choose(true, "local:", &name, &e), 0);
        ck_assert_str_eq(name, "local");
        ck_assert_int_eq(choose(false, "JSON:x", &name, &e), 0);
        ck_assert_str_eq(name, "json");
}
END_TEST

static const struct {
        bool bus;
        const char *url, *message;
} refused[] = {
        { true, "kafk://h",
                "unsupported event bus \"kafk\" in EVENT_BUS_URL; known: local, redis, kafka, rabbitmq, nats; did you mean kafka?" },
        { true, "zzzzzzzzzz:", "unsupported event bus \"zzzzzzzzzz\" in EVENT_BUS_URL; known: local, redis, kafka, rabbitmq, nats" },
        { true, "rabbitmq://h",
                "unsupported event bus \"rabbitmq\" in EVENT_BUS_URL; known: local, redis, kafka, rabbitmq, nats; did you mean amqp?" },
        { true, "mongodb://h",
                "unsupported event bus \"mongodb\" in EVENT_BUS_URL; known: local, redis, kafka, rabbitmq, nats; it is the URL of a "
                "storage" },
        { false, "kafka://h",
                "unsupported storage \"kafka\" in STORAGE_URL; known: json, redis, postgresql, mongodb, s3, nats; it is the URL of an "
                "event bus" },
        { false, "postgre://h",
                "unsupported storage \"postgre\" in STORAGE_URL; known: json, redis, postgresql, mongodb, s3, nats; did you mean "
                "postgres?" },
        { true, "kafka://h",
                "event bus \"kafka\" in EVENT_BUS_URL: the module bus_kafka.so is not in /nowhere; install the package omnidaemon-kafka, "
                "or "
                "build with WITH_KAFKA=yes" },
        { true, "amqps://h",
                "event bus \"rabbitmq\" in EVENT_BUS_URL: the module bus_rabbitmq.so is not in /nowhere; install the package "
                "omnidaemon-rabbitmq, or build with WITH_RABBITMQ=yes" },
        { false, "nats+kv://h/b",
                "storage \"nats\" in STORAGE_URL: the module store_nats.so is not in /nowhere; install the package omnidaemon-nats, or "
                "build "
                "with WITH_NATS=yes" },
};
START_TEST(test_typo_and_missing_module_get_different_answers) {
        struct om_error e = OM_ERROR_INIT;
        const char *name;
        om_module_set_folder("/nowhere");
        ck_assert_int_eq(choose(refused[_i].bus, refused[_i].url, &name, &e), -EOPNOTSUPP);
        ck_assert_str_eq(e.message, refused[_i].message);
        ck_assert_int_eq(e.kind, OM_UNSUPPORTED);
}
END_TEST

START_TEST(test_every_scheme_is_somebodys_only) {
        struct om_backend_entry *tables[] = { om_buses, om_stores };
        for (int t = 0; t < 2; t++)
                for (struct om_backend_entry *a = tables[t]; a->name; a++) {
                        ck_assert_ptr_nonnull(a->doc);
                        ck_assert((a->bus || a->store) == !a->module);
                        for (const char *const *s = a->schemes; *s; s++)
                                for (struct om_backend_entry *b = tables[t]; b->name; b++)
                                        for (const char *const *q = b->schemes; *q; q++)
                                                ck_assert(q == s || strcmp(*q, *s) != 0);
                }
}
END_TEST

START_TEST(test_one_more_is_added_once) {
        const struct om_store_ops mine = { .abi = OM_BACKEND_ABI, .name = "mine", .schemes = (const char *const[]){ "mine", NULL } };
        const struct om_store_ops thief = { .abi = OM_BACKEND_ABI, .name = "thief", .schemes = (const char *const[]){ "x", "json", NULL } };
        const struct om_store_ops redis = { .abi = OM_BACKEND_ABI, .name = "redis", .schemes = (const char *const[]){ "redis", NULL } };
        const struct om_store_ops old = { .abi = OM_BACKEND_ABI + 1, .name = "old", .schemes = (const char *const[]){ "old", NULL } };
        struct om_error e = OM_ERROR_INIT;
        const char *name;
        ck_assert_int_eq(om_registry_add_store(&mine), 0);
        ck_assert_int_eq(om_registry_add_store(&mine), -EEXIST);
        ck_assert_int_eq(om_registry_add_store(&thief), -EEXIST);
        ck_assert_int_eq(om_registry_add_store(&old), -EINVAL);
        ck_assert_int_eq(choose(false, "mine:", &name, &e), 0);
        ck_assert_str_eq(name, "mine");
        ck_assert_int_eq(om_registry_add_store(&redis), 0); /* a module that was loaded */
        ck_assert_int_eq(choose(false, "redis://h", &name, &e), 0);
        ck_assert_int_eq(choose(false, "min:", &name, &e), -EOPNOTSUPP);
        ck_assert_msg(strstr(e.message, "did you mean mine?"), "%s", e.message);
        static struct om_store_ops many[64];
        static char names[64][8];
        static const char *schemes[64][2];
        int r = 0, n = 0;
        for (; n < 64 && r == 0; n++) {
                snprintf(names[n], sizeof(names[n]), "q%d", n);
                schemes[n][0] = names[n];
                many[n] = (struct om_store_ops){ .abi = OM_BACKEND_ABI, .name = names[n], .schemes = schemes[n] };
                r = om_registry_add_store(&many[n]);
        }
        ck_assert_int_eq(r, -ENOSPC);
        ck_assert_int_eq(choose(false, "q0:", &name, &e), 0);
}
END_TEST

int main(void) {
        Suite *s = suite_create("registry");
        TCase *t = tcase_create("registry");
        tcase_add_test(t, test_embedded_ones_are_there);
        tcase_add_loop_test(t, test_typo_and_missing_module_get_different_answers, 0, sizeof(refused) / sizeof(refused[0]));
        tcase_add_test(t, test_every_scheme_is_somebodys_only);
        tcase_add_test(t, test_one_more_is_added_once);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
