/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All Lua. A script is here where several commands must hold together, or where what one finds decides about the next; every key it touches
 * is declared, and all keys of one are in one slot of a cluster. Times are the server's, so that clocks of daemons need not agree.
 *
 * Ids of entries are compared as two numbers; Lua's are doubles, exact up to 2^53, far above what a server makes of milliseconds and a
 * counter. No state; any thread.
 */
#include "bus_state.h"

/* An array of names and values as a table. */
#define MAP                                                                              \
        "local function map(a) local m = {} for i = 1, #a, 2 do m[a[i]] = a[i + 1] end " \
        "return m end\n"
#define GROUPS                                                                                      \
        "local function groups(key) local out = {} "                                                \
        "if redis.call('EXISTS', key) == 1 then "                                                   \
        "for _, g in ipairs(redis.call('XINFO', 'GROUPS', key)) do out[#out + 1] = map(g) end end " \
        "return out end\n"                                                                          \
        "local function group(key, name) for _, g in ipairs(groups(key)) do if g.name == name then return g end end end\n"
#define LESS                                                                                                                     \
        "local function less(a, b) local am, as = string.match(a, '(%d+)-(%d+)') local bm, bs = string.match(b, '(%d+)-(%d+)') " \
        "am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs) "                                               \
        "return am < bm or (am == bm and as < bs) end\n"
#define NOW "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
/*
 * How many entries come after the last that a group was given. The server keeps that number, but loses it in a restart and in a failover
 * (an append-only file and a replica are told of deliveries, not of their number). So its word counts only where it was put right in this
 * life of the server; else they are counted, once, from both ends, because what is finished goes and one of the two is mostly short, and
 * the number is given to the server. Above 20,000 on both sides it is an estimate. `runs`: group → life of the server.
 */
#define COUNT                                                                                                      \
        "local function lag(key, g, runs) local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') " \
        "if g.lag and redis.call('HGET', runs, g.name) == run then return g.lag end "                              \
        "local last, before, after, from, to, n = g['last-delivered-id'], 0, 0, '-', '+', nil "                    \
        "for i = 1, 40 do local page = redis.call('XRANGE', key, from, last, 'COUNT', 500) "                       \
        "before = before + #page if #page < 500 then n = redis.call('XLEN', key) - before break end "              \
        "from = '(' .. page[#page][1] "                                                                            \
        "page = redis.call('XREVRANGE', key, to, '(' .. last, 'COUNT', 500) "                                      \
        "after = after + #page if #page < 500 then n = after break end to = '(' .. page[#page][1] end "            \
        "if not n then return g.lag or redis.call('XLEN', key) - before end "                                      \
        "local added = map(redis.call('XINFO', 'STREAM', key))['entries-added'] "                                  \
        "redis.call('XGROUP', 'SETID', key, g.name, last, 'ENTRIESREAD', added - n) "                              \
        "redis.call('HSET', runs, g.name, run) return n end\n"
/* Forgets what every group has finished; `floor`: nothing from there on. */
#define TRIM                                                                                     \
        "local function trim(key, floor) local low local all = groups(key) "                     \
        "if #all == 0 then return 0 end "                                                        \
        "for _, g in ipairs(all) do local last = g['last-delivered-id'] "                        \
        "local m, s = string.match(last, '(%d+)-(%d+)') "                                        \
        "local first = tonumber(s) < 9e15 and m .. '-' .. string.format('%.0f', s + 1) or last " \
        "if g.pending > 0 then local p = redis.call('XPENDING', key, g.name)[2] "                \
        "if p and less(p, first) then first = p end end "                                        \
        "if not low or less(first, low) then low = first end end "                               \
        "if floor ~= '' and less(floor, low) then low = floor end "                              \
        "return redis.call('XTRIM', key, 'MINID', '=', low) end\n"
/* Wakes somebody of the group who wants tasks: an entry of its own stream, unless one waits there already. */
#define NUDGE                                                                                                 \
        "local function nudge(key, name) local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1] " \
        "if last and last[2][1] == 'due' then local g = group(key, name) "                                    \
        "if g and less(g['last-delivered-id'], last[1]) then return end end "                                 \
        "if group(key, name) then redis.call('XADD', key, '*', 'due', '1') end end\n"
/* The start of a group: default, first, new, or time with Unix ms. */
#define START                                                                  \
        "local function start(key, mode, ms) "                                 \
        "if mode == 'first' then return '0-0' end "                            \
        "if mode == 'time' then if tonumber(ms) < 1 then return '0-0' end "    \
        "return string.format('%.0f', ms - 1) .. '-18446744073709551615' end " \
        "if mode == 'default' and #groups(key) == 0 then return '0-0' end "    \
        "return '$' end\n"

/* stream [idempotency key] · data, task's id, window ms, most tasks or 0, MAXLEN or 0 → {"ok", entry}, {"dup", id}, {"full"} */
struct om_redis_script om_redis_script_publish = { .text = MAP GROUPS LESS TRIM
        "if KEYS[2] then local first = redis.call('GET', KEYS[2]) if first then return {'dup', first} end end\n"
        "local most = tonumber(ARGV[4])\n"
        "if most > 0 and redis.call('XLEN', KEYS[1]) >= most then trim(KEYS[1], ARGV[6]) "
        "if redis.call('XLEN', KEYS[1]) >= most then return {'full'} end end\n"
        "if KEYS[2] then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end\n"
        "if ARGV[5] ~= '0' then return {'ok', redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], '*', 'data', ARGV[1])} end\n"
        "return {'ok', redis.call('XADD', KEYS[1], '*', 'data', ARGV[1])}" };

/* stream, again · group, mode, ms → {created, last, last of again} */
struct om_redis_script om_redis_script_subscribe = { .text = MAP GROUPS START
        "local g, created = group(KEYS[1], ARGV[1]), 0\n"
        "if not g then local id = start(KEYS[1], ARGV[2], ARGV[3]) created = 1\n"
        "redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], id, 'MKSTREAM') end\n"
        "if not group(KEYS[2], ARGV[1]) then redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM') end\n"
        "return {created, group(KEYS[1], ARGV[1])['last-delivered-id'], group(KEYS[2], ARGV[1])['last-delivered-id']}" };

/* stream, again · group, consumer: takes the consumer out where it holds nothing */
struct om_redis_script om_redis_script_leave = { .text = MAP GROUPS
        "for _, key in ipairs(KEYS) do if group(key, ARGV[1]) then "
        "if #redis.call('XPENDING', key, ARGV[1], '-', '+', 1, ARGV[2]) == 0 then "
        "redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], ARGV[2]) end end end\n"
        "return 1" };

/* stream or again, stats · group, whether again, ids … → how many were pending */
struct om_redis_script om_redis_script_ack = { .text = "local n = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))\n"
                                                       "if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, 3)) end\n"
                                                       "if n > 0 then redis.call('HINCRBY', KEYS[2], 'finished', n) end\n"
                                                       "return n" };

/* stream or again, due, again · group, me, retry consumer, entry's name, id, delay ms or -1: given back → 1; 0: not ours; 2: parked before
 */
struct om_redis_script om_redis_script_park = { .text = MAP GROUPS LESS NUDGE NOW
        "local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[5], ARGV[5], 1)[1]\n"
        "if not p then return 0 end\n"
        "if p[2] ~= ARGV[2] then return p[2] == ARGV[3] and 2 or 0 end\n"
        "redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[5], 'JUSTID')\n"
        "local delay = tonumber(ARGV[6])\n"
        "redis.call('ZADD', KEYS[2], delay < 0 and 0 or string.format('%.0f', now + delay), ARGV[4])\n"
        "if delay < 0 then nudge(KEYS[3], ARGV[1]) end\n"
        "return 1" };

/* stream, again, due · group, me, retry consumer, how many → {ms until the next or -1, {entry's name, entry} …} */
struct om_redis_script om_redis_script_due = { .text = LESS NOW
        "local ids = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[4])\n"
        "table.sort(ids, function(a, b) return less(a, b) end)\n"
        "local out = {-1}\n"
        "for _, name in ipairs(ids) do local key, id = KEYS[1], name "
        "if string.sub(name, 1, 2) == 'r:' then key, id = KEYS[2], string.sub(name, 3) end "
        "local p = redis.call('XPENDING', key, ARGV[1], id, id, 1)[1] "
        "if p and p[2] == ARGV[3] then local e = redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, id)[1] "
        "if e then out[#out + 1] = {name, e} end end "
        "redis.call('ZREM', KEYS[3], name) end\n"
        "local next = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')\n"
        "if next[2] then out[1] = math.max(0, tonumber(next[2]) - now) end\n"
        "return out" };

/*
 * stream, again, due · group, me, retry consumer, idle ms, how many, our name → {{entries of the stream}, {entries of again}, how much was
 * ours before} What others have held for so long without a sign of life becomes ours, and what an earlier life of this daemon held at once.
 * What waits for a retry is not touched, unless its due time was lost: then it is due now. Consumers of ours that have held nothing for a
 * day are forgotten.
 */
struct om_redis_script om_redis_script_takeover = { .text = MAP GROUPS
        "local out, parked, own = {}, 0, 0\n"
        "for k = 1, 2 do local key, got = KEYS[k], {} "
        "if group(key, ARGV[1]) then for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', key, ARGV[1])) do c = map(c) "
        "local mine = string.sub(c.name, 1, #ARGV[6]) == ARGV[6] "
        "if c.name == ARGV[2] then own = own + c.pending "
        "elseif c.name == ARGV[3] then parked = parked + c.pending "
        "elseif c.pending > 0 then local ids, idle = {}, mine and '0' or ARGV[4] "
        "for _, p in ipairs(redis.call('XPENDING', key, ARGV[1], 'IDLE', idle, '-', '+', ARGV[5], c.name)) do ids[#ids + 1] = p[1] end "
        "if #ids > 0 then for _, e in ipairs(redis.call('XCLAIM', key, ARGV[1], ARGV[2], idle, unpack(ids))) do "
        "if e then got[#got + 1] = e end end end "
        "elseif mine or (c.idle > 86400000 and string.sub(c.name, 1, 11) == 'omnidaemon:') then "
        "redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], c.name) end end end "
        "out[k] = got end\n"
        "if parked > redis.call('ZCARD', KEYS[3]) then for k = 1, 2 do if group(KEYS[k], ARGV[1]) then "
        "for _, p in ipairs(redis.call('XPENDING', KEYS[k], ARGV[1], '-', '+', 10000, ARGV[3])) do "
        "redis.call('ZADD', KEYS[3], 'NX', 0, (k == 2 and 'r:' or '') .. p[1]) end end end end\n"
        "out[3] = own\n"
        "return out" };

/* stream or again · group, me, ids … → those that are no longer ours; the others are as if delivered now */
struct om_redis_script om_redis_script_extend = {
        .text = "local lost, mine = {}, {}\n"
                "for i = 3, #ARGV do local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1] "
                "if p and p[2] == ARGV[2] then mine[#mine + 1] = ARGV[i] else lost[#lost + 1] = ARGV[i] end end\n"
                "if #mine > 0 then mine[#mine + 1] = 'JUSTID' redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine)) end\n"
                "return lost"
};

/* stream · floor or "" */
struct om_redis_script om_redis_script_trim = { .text = MAP GROUPS LESS TRIM "return trim(KEYS[1], ARGV[1])" };

/*
 * stream, runs → nil, or {published, tasks that some group has not finished, {group, not delivered, pending} …}
 * The second is what comes after the group that is least far, and what is pending before that in any group.
 */
struct om_redis_script om_redis_script_look = { .text = MAP GROUPS LESS COUNT
        "if redis.call('EXISTS', KEYS[1]) == 0 then return nil end\n"
        "local s, all, low, behind, open, seen = map(redis.call('XINFO', 'STREAM', KEYS[1])), groups(KEYS[1]), nil, 0, 0, {}\n"
        "local out = {s['entries-added'], s.length}\n"
        "for _, g in ipairs(all) do local n = lag(KEYS[1], g, KEYS[2]) out[#out + 1] = {g.name, n, g.pending} "
        "if not low or less(g['last-delivered-id'], low) then low, behind = g['last-delivered-id'], n end end\n"
        "if not low then return out end\n"
        "for _, g in ipairs(all) do local from = '-' "
        "while g.pending > 0 do local page = redis.call('XPENDING', KEYS[1], g.name, from, low, 1000) "
        "for _, p in ipairs(page) do if not seen[p[1]] then seen[p[1]] = true open = open + 1 end end "
        "if #page < 1000 then break end from = '(' .. page[#page][1] end end\n"
        "out[2] = behind + open\n"
        "return out" };

/* again, due, stats · group → {replayed and unfinished, of those not delivered, pending, due, of those given back, finished} */
struct om_redis_script om_redis_script_look_group = { .text = MAP GROUPS LESS
        "local g, held, lag, id = group(KEYS[1], ARGV[1]), 0, 0, '-'\n"
        "while g do local page = redis.call('XRANGE', KEYS[1], id, '+', 'COUNT', 1000) "
        "for _, e in ipairs(page) do if e[2][1] == 'data' then held = held + 1 "
        "if less(g['last-delivered-id'], e[1]) then lag = lag + 1 end end end "
        "if #page < 1000 then break end id = '(' .. page[#page][1] end\n"
        "return {held, lag, g and g.pending or 0, redis.call('ZCARD', KEYS[2]), redis.call('ZCOUNT', KEYS[2], '-inf', 0), "
        "tonumber(redis.call('HGET', KEYS[3], 'finished') or '0')}" };

/* stream, again, due, stats, runs · group, floor → {existed, how many tasks waited for it} */
struct om_redis_script om_redis_script_delete_group = { .text = MAP GROUPS LESS COUNT TRIM
        "local g = group(KEYS[1], ARGV[1])\n"
        "local n = g and lag(KEYS[1], g, KEYS[5]) + g.pending or 0\n"
        "if g then redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1]) end\n"
        "redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])\n"
        "redis.call('HDEL', KEYS[5], ARGV[1])\n"
        "if g then if #groups(KEYS[1]) == 0 then redis.call('XTRIM', KEYS[1], 'MAXLEN', 0) else trim(KEYS[1], ARGV[2]) end end\n"
        "return {g and 1 or 0, n}" };

/* stream, runs → whether there was one */
struct om_redis_script om_redis_script_delete_topic = { .text = "redis.call('DEL', KEYS[2]) return redis.call('DEL', KEYS[1])" };

/* dead letters, their ids · entry's name, data → its id; the same one where it is there already */
struct om_redis_script om_redis_script_dead = { .text = "local id = redis.call('HGET', KEYS[2], ARGV[1])\n"
                                                        "if id then return id end\n"
                                                        "id = redis.call('XADD', KEYS[1], '*', 'data', ARGV[2], 'original', ARGV[1])\n"
                                                        "redis.call('HSET', KEYS[2], ARGV[1], id)\n"
                                                        "return id" };

/* dead letters, their ids · ids … → how many there were */
struct om_redis_script om_redis_script_letter_drop = { .text = MAP
        "local n = 0\n"
        "for _, id in ipairs(ARGV) do local e = redis.call('XRANGE', KEYS[1], id, id)[1] "
        "if e then local original = map(e[2]).original if original then redis.call('HDEL', KEYS[2], original) end "
        "n = n + redis.call('XDEL', KEYS[1], id) end end\n"
        "if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1], KEYS[2]) end\n"
        "return n" };

/* dead letters, their ids → how many there were */
struct om_redis_script om_redis_script_letters_purge = {
        .text = "local n = 0\n"
                "if redis.call('EXISTS', KEYS[1]) == 1 then n = redis.call('XLEN', KEYS[1]) end\n"
                "redis.call('DEL', KEYS[1], KEYS[2])\n"
                "return n"
};

/* stream, due, again, runs · group, mode, ms → nil: no such group; {last, how many come} */
struct om_redis_script om_redis_script_seek = { .text = MAP GROUPS LESS COUNT START NUDGE
        "if not group(KEYS[1], ARGV[1]) then return nil end\n"
        "while true do local ids = {} "
        "for _, p in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000)) do ids[#ids + 1] = p[1] end "
        "if #ids == 0 then break end redis.call('XACK', KEYS[1], ARGV[1], unpack(ids)) end\n"
        "for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do "
        "if string.sub(name, 1, 2) ~= 'r:' then redis.call('ZREM', KEYS[2], name) end end\n"
        "local id = start(KEYS[1], ARGV[2], ARGV[3])\n"
        "redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], id)\n"
        "redis.call('HDEL', KEYS[4], ARGV[1])\n"
        "local g = group(KEYS[1], ARGV[1])\n"
        "nudge(KEYS[3], ARGV[1])\n"
        "return {g['last-delivered-id'], lag(KEYS[1], g, KEYS[4])}" };

/* stream, again · group → {last, last of again} */
struct om_redis_script om_redis_script_last = { .text = MAP GROUPS
        "local a, b = group(KEYS[1], ARGV[1]), group(KEYS[2], ARGV[1])\n"
        "if not a or not b then return redis.error_reply('NOGROUP the group is gone') end\n"
        "return {a['last-delivered-id'], b['last-delivered-id']}" };

/* again · group */
struct om_redis_script om_redis_script_nudge = { .text = MAP GROUPS LESS NUDGE "nudge(KEYS[1], ARGV[1]) return 1" };

/*
 * stream, again, due · group, last, last of again, retry consumer → {last, last of again}
 * Makes a group again that the server has lost, where we were; from the beginning where the stream is a new one too.
 */
struct om_redis_script om_redis_script_repair = { .text = MAP GROUPS LESS
        "for k = 1, 2 do local key, last = KEYS[k], ARGV[k + 1] "
        "if not group(key, ARGV[1]) then "
        "if redis.call('EXISTS', key) == 0 or less(map(redis.call('XINFO', 'STREAM', key))['last-generated-id'], last) then last = '0-0' "
        "end "
        "redis.call('XGROUP', 'CREATE', key, ARGV[1], last, 'MKSTREAM') end end\n"
        "for _, name in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do local key, id = KEYS[1], name "
        "if string.sub(name, 1, 2) == 'r:' then key, id = KEYS[2], string.sub(name, 3) end "
        "redis.call('XCLAIM', key, ARGV[1], ARGV[4], 0, id, 'FORCE', 'JUSTID') end\n"
        "return {group(KEYS[1], ARGV[1])['last-delivered-id'], group(KEYS[2], ARGV[1])['last-delivered-id']}" };
