/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the server does in one step, in Lua.
 *
 *   save     KEYS  p:result:ID, the hash of the earlier records [, p:results:index, p:results:earlier]
 *            ARGV  the record, agent, when it was saved (seconds), when it expires (ms; 0: never), ID
 *   delete   KEYS  the same
 *            ARGV  ID, now (seconds) [, agent]
 *   both answer [n, newest, added, removed]: how many were deleted; the new place of ID in the index, "-" out of it, "" as it was; agents
 *   that the index of earlier records gets, each followed by its time; agents that it loses. Where the indexes are on the same server, they
 *   are KEYS 3 and 4 and changed in the same step; in a cluster they are changed after it (om_redis_follow()).
 *   page     KEYS  an index;  ARGV  score, member, how many: those after it, newest first, each followed by its score. Among equal scores
 *            members are in the order of their bytes; Lua's own order is the locale's.
 *
 * p:result:ID is what counts: without it there are no earlier records, whoever deleted it. While a task has earlier ones, its keys live as
 * long as the longest of them, and each record says when it itself expires. Loop thread.
 */
#include "store_state.h"

#define COMMON                                                                                                  \
        "local added, removed, newest = {}, {}, ''\n"                                                           \
        "local function of(text)\n"                                                                             \
        "  local ok, t = pcall(cjson.decode, text)\n"                                                           \
        "  if not ok or type(t) ~= 'table' then return '', 0, nil end\n"                                        \
        "  local agent = t.agent\n"                                                                             \
        "  if type(agent) ~= 'string' and type(t.result) == 'table' then agent = t.result.agent end\n"          \
        "  return type(agent) == 'string' and agent or '', tonumber(t.saved_at) or 0, tonumber(t.expires_at)\n" \
        "end\n"                                                                                                 \
        "local function member(id, agent)\n"                                                                    \
        "  return id:gsub('[%z\\1]', {['\\0'] = '\\1\\1', ['\\1'] = '\\1\\2'}) .. '\\0' .. agent\n"             \
        "end\n"                                                                                                 \
        "local function finish(n, id)\n"                                                                        \
        "  if KEYS[3] then\n"                                                                                   \
        "    if newest == '-' then redis.call('ZREM', KEYS[3], id)\n"                                           \
        "    elseif newest ~= '' then redis.call('ZADD', KEYS[3], newest, id) end\n"                            \
        "    for i = 1, #added, 2 do redis.call('ZADD', KEYS[4], added[i + 1], member(id, added[i])) end\n"     \
        "    for i = 1, #removed do redis.call('ZREM', KEYS[4], member(id, removed[i])) end\n"                  \
        "  end\n"                                                                                               \
        "  return {n, newest, added, removed}\n"                                                                \
        "end\n"

/* Nearly every result is the first of its task: that comes before all else, and answers 0 where there is nothing to follow. */
struct om_redis_script om_redis_script_save = {
        .text = "local record, saved, expires = ARGV[1], ARGV[3], tonumber(ARGV[4])\n"
                "local done\n"
                "if expires > 0 then done = redis.call('SET', KEYS[1], record, 'NX', 'PXAT', math.max(expires - 1, 1))\n"
                "else done = redis.call('SET', KEYS[1], record, 'NX') end\n"
                "if done then\n"
                "  redis.call('DEL', KEYS[2])\n"
                "  if not KEYS[3] then return {0, saved, {}, {}} end\n"
                "  redis.call('ZADD', KEYS[3], saved, ARGV[5])\n"
                "  return 0\n"
                "end\n" COMMON "local agent, id = ARGV[2], ARGV[5]\n"
                "local function set()\n"
                "  if expires > 0 then redis.call('SET', KEYS[1], record, 'PXAT', math.max(expires - 1, 1))\n"
                "  else redis.call('SET', KEYS[1], record) end\n"
                "  newest = saved\n"
                "end\n"
                "local there = redis.call('GET', KEYS[1])\n"
                "local other, at = of(there)\n"
                "local ttl = redis.call('PTTL', KEYS[1])\n"
                "if other == agent or tonumber(saved) >= at then\n"
                "  if other ~= agent then\n"
                "    redis.call('HSET', KEYS[2], other, there)\n"
                "    added = {other, string.format('%.6f', at)}\n"
                "  end\n"
                "  if redis.call('HDEL', KEYS[2], agent) == 1 then removed = {agent} end\n"
                "  set()\n"
                "else\n"
                "  redis.call('HSET', KEYS[2], agent, record)\n"
                "  added = {agent, saved}\n"
                "end\n"
                "if redis.call('HLEN', KEYS[2]) > 0 then\n"
                "  local now = redis.call('TIME')\n"
                "  local mine = expires > 0 and expires - 1 - now[1] * 1000 - math.floor(now[2] / 1000) or -1\n"
                "  for i = 1, 2 do\n"
                "    if ttl == -1 or expires == 0 then redis.call('PERSIST', KEYS[i])\n"
                "    else redis.call('PEXPIRE', KEYS[i], math.max(ttl, mine)) end\n"
                "  end\n"
                "end\n"
                "return finish(0, id)\n"
};

struct om_redis_script om_redis_script_delete = { .text = COMMON
        "local id, now, agent, n = ARGV[1], tonumber(ARGV[2]), ARGV[3], 0\n"
        "local function count(text)\n"
        "  local _, _, expires = of(text)\n"
        "  if not expires or expires > now then n = n + 1 end\n"
        "end\n"
        "local there = redis.call('GET', KEYS[1])\n"
        "local earlier = redis.call('HGETALL', KEYS[2])\n"
        "if not there or not agent then\n"
        "  if there then count(there) end\n"
        "  for i = 1, #earlier, 2 do\n"
        "    if there then count(earlier[i + 1]) end\n"
        "    removed[#removed + 1] = earlier[i]\n"
        "  end\n"
        "  redis.call('DEL', KEYS[1])\n"
        "  redis.call('DEL', KEYS[2])\n"
        "  newest = '-'\n"
        "elseif of(there) == agent then\n"
        "  local best, best_at, text\n"
        "  count(there)\n"
        "  for i = 1, #earlier, 2 do\n"
        "    local _, at = of(earlier[i + 1])\n"
        "    if not best or at > best_at then best, best_at, text = earlier[i], at, earlier[i + 1] end\n"
        "  end\n"
        "  if best then\n"
        "    redis.call('SET', KEYS[1], text, 'KEEPTTL')\n"
        "    redis.call('HDEL', KEYS[2], best)\n"
        "    removed = {best}\n"
        "    newest = string.format('%.6f', best_at)\n"
        "  else\n"
        "    redis.call('DEL', KEYS[1])\n"
        "    newest = '-'\n"
        "  end\n"
        "else\n"
        "  for i = 1, #earlier, 2 do\n"
        "    if earlier[i] == agent then\n"
        "      count(earlier[i + 1])\n"
        "      redis.call('HDEL', KEYS[2], agent)\n"
        "      removed = {agent}\n"
        "    end\n"
        "  end\n"
        "end\n"
        "return finish(n, id)\n" };

struct om_redis_script om_redis_script_page = {
        .text = "local score, member, n = ARGV[1], ARGV[2], tonumber(ARGV[3])\n"
                "local function less(a, b)\n"
                "  for i = 1, math.min(#a, #b) do\n"
                "    local x, y = a:byte(i), b:byte(i)\n"
                "    if x ~= y then return x < y end\n"
                "  end\n"
                "  return #a < #b\n"
                "end\n"
                "local low = redis.call('ZCOUNT', KEYS[1], '(' .. score, '+inf')\n"
                "local high = redis.call('ZCOUNT', KEYS[1], score, '+inf')\n"
                "while low < high do\n"
                "  local middle = math.floor((low + high) / 2)\n"
                "  if less(redis.call('ZREVRANGE', KEYS[1], middle, middle)[1], member) then high = middle else low = middle + 1 end\n"
                "end\n"
                "return redis.call('ZREVRANGE', KEYS[1], low, low + n - 1, 'WITHSCORES')\n"
};

struct om_redis_cmd *om_redis_script_on(struct om_store *s, struct om_redis_script *script, struct om_span id) {
        struct om_redis_cmd *c = om_redis_script_new(script, s->apart ? 2 : 4);

        om_redis_key(c, om_redis_key_result(s, id));
        om_redis_key(c, om_redis_key_earlier(s, id));
        if (!s->apart) {
                om_redis_key(c, om_redis_key_index(s, false));
                om_redis_key(c, om_redis_key_index(s, true));
        }
        return c;
}

/* -- what a script could not reach ----------------------------------------------------------------------------------- */

static void change(struct om_redis_job *job, bool earlier, const char *score, bool only_later, struct om_span member,
        om_redis_job_answer_fn *fn, size_t i) {
        struct om_redis_cmd *c = om_redis_cmd_new(score ? "ZADD" : "ZREM");

        om_redis_key(c, om_redis_key_index(job->store, earlier));
        if (score && only_later)
                om_redis_arg_text(c, "GT"); /* what another daemon has saved since stays */
        if (score)
                om_redis_arg_text(c, score);
        om_redis_arg(c, member);
        om_redis_job_send(job, c, om_redis_key_index(job->store, earlier), fn, i);
}

static void change_earlier(
        struct om_redis_job *job, struct om_span id, struct om_span agent, const char *score, om_redis_job_answer_fn *fn, size_t i) {
        struct om_buf member = OM_BUF_INIT;

        om_redis_member_put(&member, id, agent);
        if (om_buf_ok(&member))
                change(job, true, score, false, om_buf_span(&member), fn, i);
        else
                om_redis_job_no_memory(job);
        om_buf_deinit(&member);
}

void om_redis_follow(struct om_redis_job *job, struct om_span id, const struct om_redis_reply *reply, bool saving,
        om_redis_job_answer_fn *fn, size_t i) {
        const struct om_redis_reply *newest = om_redis_at(reply, 1), *added = om_redis_at(reply, 2), *removed = om_redis_at(reply, 3);

        if (!job->store->apart)
                return;
        if (om_span_is(newest->text, "-"))
                change(job, false, NULL, false, id, fn, i);
        else if (newest->text.len)
                change(job, false, newest->text.p, saving, id, fn, i);
        for (size_t k = 0; k + 1 < added->n; k += 2)
                change_earlier(job, id, om_redis_at(added, k)->text, om_redis_at(added, k + 1)->text.p, fn, i);
        for (size_t k = 0; k < removed->n; k++)
                change_earlier(job, id, om_redis_at(removed, k)->text, NULL, fn, i);
}
