/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a server's settings decides whether a write that it has acknowledged is still there after it died: an append-only file that is
 * synced at every write, and no eviction (Redis documentation, "Redis persistence" and "Key eviction").
 *
 * And that the user `default` may do everything, even where nobody can log in as it: Redis 7 checks its rights when it reads transactions,
 * which scripts are, out of that file, and leaves out what it may not (redis/redis issue 14541; mended late in 2025). Any thread.
 */
#include <stdio.h>

#include "durable.h"

struct om_redis_cmd *om_redis_durable_cmd(enum om_redis_durable question) {
        static const char *const words[OM_REDIS_DURABLE_N][3] = { { "INFO" }, { "CONFIG", "GET", "appendfsync" },
                { "ACL", "GETUSER", "default" } };
        struct om_redis_cmd *c = om_redis_cmd_new(words[question][0]);

        for (int i = 1; i < 3 && words[question][i]; i++)
                om_redis_arg_text(c, words[question][i]);
        return c;
}

static void take_info(struct om_span info, char *why) {
        struct om_span policy = om_redis_info(info, "maxmemory_policy"), max = om_redis_info(info, "maxmemory");

        if (!om_span_is(om_redis_info(info, "aof_enabled"), "1"))
                snprintf(why, OM_REDIS_WHY_MAX,
                        "the server writes no append-only file (appendonly no): what came after its last snapshot is lost when it dies");
        else if (om_span_is(om_redis_info(info, "aof_last_write_status"), "err"))
                snprintf(why, OM_REDIS_WHY_MAX, "the server cannot write its append-only file: see its log");
        else if (max.p && !om_span_is(max, "0") && !om_span_is(policy, "noeviction"))
                snprintf(why, OM_REDIS_WHY_MAX, "the server throws keys away when its memory is full (maxmemory-policy %.*s)",
                        (int) (policy.len < 30 ? policy.len : 30), policy.p ? policy.p : "");
}

static void take_fsync(const struct om_redis_reply *reply, char *why) {
        struct om_span fsync = om_redis_field(reply, "appendfsync")->text;

        if (!reply)
                snprintf(why, OM_REDIS_WHY_MAX,
                        "the server does not tell whether it syncs every write: our user may not ask CONFIG GET appendfsync");
        else if (!om_span_is(fsync, "always"))
                snprintf(why, OM_REDIS_WHY_MAX, "the server syncs its append-only file later than it acknowledges (appendfsync %.*s)",
                        (int) (fsync.len < 20 ? fsync.len : 20), fsync.p ? fsync.p : "");
}

/* `commands` begins with +@all where nothing is refused; who may not ask is not told, and that is taken to be well. */
static void take_rights(const struct om_redis_reply *reply, char *why) {
        struct om_span commands = om_redis_field(reply, "commands")->text;

        if (commands.len && !(commands.len >= 5 && memcmp(commands.p, "+@all", 5) == 0))
                snprintf(why, OM_REDIS_WHY_MAX,
                        "the server may lose transactions when it reads its append-only file, because its user `default` lacks rights: "
                        "make it "
                        "`user default off ~* &* +@all`, as which nobody can log in either");
}

void om_redis_durable_take(enum om_redis_durable question, const struct om_redis_reply *reply, char why[OM_REDIS_WHY_MAX]) {
        if (why[0])
                return;
        if (question == OM_REDIS_DURABLE_INFO)
                take_info(reply ? reply->text : OM_SPAN_NONE, why);
        else if (question == OM_REDIS_DURABLE_FSYNC)
                take_fsync(reply, why);
        else
                take_rights(reply, why);
}
