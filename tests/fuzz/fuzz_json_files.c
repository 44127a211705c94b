/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON storage over files that hold anything. It opens them, or says why not in a message that names the file, and leaves the files as
 * they are. What it opened can be listed, every value is the JSON that stood there, and after closing and opening again it is all there
 * still: nothing is lost without a word.
 *
 * The storage runs through its contract, on a host of this file's that has no threads: a worker's turn is taken when there is work, so that
 * the same input always does the same.
 *
 * The input is pieces (pieces.h). The first byte of a piece names the file: a r m c k for agents, results, metrics, config, keys; the
 * letter its part: `b` NAME.json, `j` a journal and `o` an old journal made of records (the piece's lines, each framed with its checksum),
 * `x` and `y` the same as raw bytes, `t` NAME.json.tmp, `p` puts the piece's bytes as a value, `d` deletes that key. A piece `z` has one
 * allocation of the first opening fail: then it must work the next time. Without pieces all of it is config.json.
 */
#include <errno.h>
#include <jansson.h>

#include "../../backends/journal.h"
#include "../../backends/registry.h"
#include "../../proto/rpc.h"
#include "folder.h"
#include "memory.h"
#include "pieces.h"

enum { KINDS = 5 };
static const char *const names[KINDS] = { "agents", "results", "metrics", "config", "keys" };

/* -- a host without threads ------------------------------------------------------------------------------------------------ */

struct om_worker {
        om_worker_turn_fn *turn;
        void *ctx;
        struct om_work *work, **end;
};

static struct om_worker worker;
static struct om_post *posts, **posts_end = &posts;
static char last_log[600];

static void host_post(struct om_host *host, struct om_post *post) {
        post->next = NULL;
        *posts_end = post;
        posts_end = &post->next;
}
static void host_log(struct om_host *host, enum om_level level, const char *text) { snprintf(last_log, sizeof last_log, "%s", text); }
static int host_worker_new(
        struct om_host *host, const char *name, om_worker_turn_fn *turn, void *ctx, struct om_worker **ret, struct om_error *e) {
        worker = (struct om_worker){ turn, ctx, NULL, &worker.work };
        *ret = &worker;
        return 0;
}
static void host_submit(struct om_worker *w, struct om_work *work) {
        work->next = NULL;
        *w->end = work;
        w->end = &work->next;
}
static void host_stop(struct om_worker *w, struct om_post *stopped) { host_post(NULL, stopped); }

static const struct om_host_ops host_ops = { OM_BACKEND_ABI, host_post, host_log, host_worker_new, host_submit, host_stop };
static struct om_host host = { &host_ops, NULL, NULL, "/nowhere" };

static void run(void) {
        while (worker.work || posts) {
                struct om_work *work = worker.work;
                struct om_post *post = posts;

                worker.work = NULL;
                worker.end = &worker.work;
                if (work)
                        worker.turn(worker.ctx, work);
                if (!post)
                        continue;
                posts = post->next;
                if (!posts)
                        posts_end = &posts;
                post->fn(post);
        }
}

/* -- a storage --------------------------------------------------------------------------------------------------------------- */

static const struct om_store_ops *ops;
static struct om_store *store;
static enum om_store_state state;
static struct om_error state_error;

static void on_state(void *core, enum om_store_state now, const struct om_error *e) {
        state = now;
        if (e)
                state_error = *e;
}
static const struct om_store_events events = { on_state };

static int done_status;
static struct om_error done_error;
static void on_done(struct om_op *op, int status, const struct om_error *e) {
        MUST(done_status == 1);
        done_status = status;
        if (status < 0)
                done_error = *e;
        MUST(status == 0 || done_error.message[0]);
}

/* Runs until the operation just started has ended; what it ended with. */
static int finish(int started) {
        MUST(started == 0);
        run();
        MUST(done_status <= 0);
        return done_status;
}
#define OP .op = { .done = (done_status = 1, on_done) }

static bool open_store(unsigned fail_at) {
        struct om_error e = OM_ERROR_INIT;
        struct om_url *url;
        char text[128];
        int r;

        snprintf(text, sizeof text, "json:%s?durability=memory", fuzz_folder);
        MUST(om_url_parse(text, &url, &e) == 0 && om_registry_store(url, "STORAGE_URL", &ops, &e) == 0);
        state = OM_STORE_CONNECTING;
        state_error = (struct om_error) OM_ERROR_INIT;
        store = NULL;
        fuzz_fail_allocation(fail_at);
        r = ops->open(&host, url, &events, NULL, &store, &e);
        if (r == 0)
                run();
        om_url_free(url);
        fuzz_fail_allocation(0);
        MUST(fail_at || (r == 0 && state != OM_STORE_CONNECTING));
        return r == 0 && state == OM_STORE_READY;
}

static void close_store(void) {
        struct om_op op = { .done = (done_status = 1, on_done) };
        struct om_error e = OM_ERROR_INIT;

        if (!store)
                return;
        MUST(finish(ops->close(store, &op, &e)) == 0);
        run();
        ops->destroy(store);
}

/* -- what is in it ------------------------------------------------------------------------------------------------------------- */

struct sum {
        uint64_t n, hash;
};

static uint64_t mix(uint64_t h, struct om_span s) {
        h = (h ^ (s.len + 1)) * 0x100000001b3;
        for (size_t i = 0; i < s.len; i++)
                h = (h ^ (uint8_t) s.p[i]) * 0x100000001b3;
        return h;
}

/* Adds an entry that stays for the time that we run. The order does not count, and of agents and settings no time is kept. */
static void add(struct sum *sum, enum om_store_kind kind, const struct om_store_entry *entry) {
        uint64_t h = mix(mix(mix(0xcbf29ce484222325 + kind, entry->key), entry->name), entry->value);

        if (kind == OM_STORE_RESULTS)
                h = mix(mix(h, entry->topic), entry->status);
        sum->n++;
        if (entry->expires_ms == 0 || entry->expires_ms > om_now_ms() + 3600000)
                sum->hash += h * 0x9e3779b97f4a7c15;
}

static uint64_t get(enum om_store_kind kind, const struct om_store_entry *entry) {
        struct om_error e = OM_ERROR_INIT;
        struct om_store_get g = { OP, .kind = kind, .key = entry->key, .name = entry->name };
        int r = finish(ops->get(store, &g, &e));

        MUST(r == 0 || (r == -ENOENT && entry->expires_ms)); /* it may expire between the two */
        /* Where there are names, none means the newest. */
        if (r == 0 && kind != OM_STORE_KEYS && (entry->name.p || kind == OM_STORE_CONFIG))
                MUST(om_span_eq(g.entry.value, entry->value));
        om_arena_deinit(&g.arena);
        return 1;
}

static void list_page(enum om_store_kind kind, struct om_span *cursor, struct om_arena *keep, struct sum *sum) {
        struct om_error e = OM_ERROR_INIT;
        struct om_store_list list = { OP, .kind = kind, .cursor = *cursor, .limit = 7 };

        MUST(finish(ops->list(store, &list, &e)) == 0 && list.n <= 7);
        for (size_t i = 0; i < list.n; i++) {
                MUST(om_json_check(list.entries[i].value, OM_JSON_DEPTH_LIMIT, &e) == 0);
                add(sum, kind, &list.entries[i]);
                if (i == 0 && kind != OM_STORE_METRICS)
                        get(kind, &list.entries[i]);
        }
        *cursor = om_arena_copy(keep, list.next_cursor);
        om_arena_deinit(&list.arena);
}

static struct sum list_all(enum om_store_kind kind) {
        struct om_arena arena = { 0 };
        struct om_span cursor = OM_SPAN_NONE;
        struct sum sum = { 0, 0 };
        unsigned pages = 0;

        do {
                list_page(kind, &cursor, &arena, &sum);
                MUST(++pages < 100000);
        } while (cursor.p);
        om_arena_deinit(&arena);
        return sum;
}

/* -- the files ------------------------------------------------------------------------------------------------------------------ */

static const char *path_of(unsigned kind, const char *suffix) {
        static char path[128];

        snprintf(path, sizeof path, "%s/%s%s", fuzz_folder, names[kind], suffix);
        return path;
}

static void write_journal(const char *path, struct om_span lines) {
        struct om_buf b = OM_BUF_INIT;
        const char *end = lines.p + lines.len;

        for (const char *p = lines.p, *next; p < end; p = next + 1) {
                next = memchr(p, '\n', (size_t) (end - p));
                if (!next)
                        next = end;
                size_t mark = om_journal_begin(&b);
                om_buf_put(&b, p, (size_t) (next - p));
                om_journal_end(&b, mark, mark);
                if (b.len > mark && om_json_check((struct om_span){ p, (size_t) (next - p) }, OM_DEPTH_MAX, NULL) < 0)
                        b.data[mark] = 'x'; /* nobody writes a good checksum over what is no JSON */
        }
        fuzz_write_file(path, b.data ? b.data : "", b.len);
        om_buf_deinit(&b);
}

static int kind_of(char c) {
        const char *kinds = "armck", *found = c ? strchr(kinds, c) : NULL;
        return found ? (int) (found - kinds) : -1;
}

static unsigned fail_at;

static void write_piece(uint8_t letter, struct om_span text) {
        int kind = text.len ? kind_of(text.p[0]) : -1;

        if (letter == 'z' && text.len)
                fail_at = (unsigned) (text.p[0] & 63) + 1;
        if (kind < 0)
                return;
        text.p++;
        text.len--;
        if (letter == 'b')
                fuzz_write_file(path_of((unsigned) kind, ".json"), text.p, text.len);
        else if (letter == 'j')
                write_journal(path_of((unsigned) kind, ".journal"), text);
        else if (letter == 'o')
                write_journal(path_of((unsigned) kind, ".journal.old"), text);
        else if (letter == 'x')
                fuzz_write_file(path_of((unsigned) kind, ".journal"), text.p, text.len);
        else if (letter == 'y')
                fuzz_write_file(path_of((unsigned) kind, ".journal.old"), text.p, text.len);
        else if (letter == 't')
                fuzz_write_file(path_of((unsigned) kind, ".json.tmp"), text.p, text.len);
}

/* The text without the white space around it, where it is JSON. */
static struct om_span value_of(struct om_span text) {
        struct om_json j;
        struct om_json_value v;

        om_json_init(&j, text, OM_DEPTH_MAX);
        return om_json_value(&j, &v) == 0 && om_json_finish(&j) == 0 ? v.text : OM_SPAN("{\"name\":\"n\",\"saved_at\":5}");
}

/* Writes to what was opened: any bytes as a key, and a value that is JSON. */
static void change_piece(uint8_t letter, struct om_span text) {
        int kind = text.len ? kind_of(text.p[0]) : -1;
        struct om_error e = OM_ERROR_INIT;

        if (kind < 0)
                return;
        text.p++;
        text.len--;
        if (letter == 'p') {
                struct om_store_entry entry = { .key = text,
                        .name = text,
                        .value = value_of(text),
                        .topic = OM_SPAN("t"),
                        .status = OM_SPAN("completed"),
                        .saved_ms = 1700000000000 };
                struct om_outcome outcome = { 0 };
                struct om_store_put put = { OP, .kind = (enum om_store_kind) kind, .entries = &entry, .n = 1, .outcomes = &outcome };

                if (kind == OM_STORE_METRICS)
                        entry.key = entry.name = OM_SPAN_NONE;
                if (kind == OM_STORE_CONFIG || kind == OM_STORE_KEYS)
                        entry.name = entry.topic = entry.status = OM_SPAN_NONE;
                if (kind == OM_STORE_AGENTS)
                        entry.topic = entry.status = OM_SPAN_NONE;
                MUST(finish(ops->put(store, &put, &e)) == 0);
                MUST(outcome.status == 0 || outcome.why);
        } else if (letter == 'd') {
                struct om_store_delete delete = { OP, .kind = (enum om_store_kind) kind, .key = text };

                MUST(finish(ops->remove(store, &delete, &e)) == 0);
        }
}

static void change(const uint8_t *data, size_t size) {
        struct pieces pieces = pieces_of(data, size);
        struct om_span text;

        for (uint8_t letter; (letter = pieces_next(&pieces, &text));)
                change_piece(letter, text);
}

/* Of a file alone, without journals, jansson must count as many. */
static void count_again(const struct sum *sums, enum om_store_kind kind) {
        json_error_t why;
        json_t *tree;

        if (access(path_of(kind, ".journal"), F_OK) == 0 || access(path_of(kind, ".journal.old"), F_OK) == 0)
                return;
        tree = json_load_file(path_of(kind, ".json"), JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
        if (tree)
                MUST(sums[kind].n == (kind == OM_STORE_METRICS ? json_array_size(tree) : json_object_size(tree)));
        json_decref(tree);
}

static void open_and_look(const uint8_t *data, size_t size) {
        struct sum before[KINDS], after;

        if (!open_store(fail_at) && fail_at) {
                close_store();
                open_store(0);
        }
        if (state != OM_STORE_READY) {
                MUST(strstr(state_error.message, fuzz_folder)); /* it names the file */
                close_store();
                return;
        }
        for (unsigned i = 0; i < KINDS; i++)
                before[i] = list_all((enum om_store_kind) i);
        count_again(before, OM_STORE_CONFIG);
        count_again(before, OM_STORE_METRICS);
        change(data, size);
        for (unsigned i = 0; i < KINDS; i++)
                before[i] = list_all((enum om_store_kind) i);
        close_store();
        if (!open_store(0)) {
                fprintf(stderr, "%s\n", state_error.message);
                MUST(!"what was closed does not open again");
        }
        for (unsigned i = 0; i < KINDS; i++) {
                after = list_all((enum om_store_kind) i);
                if (after.hash != before[i].hash)
                        fprintf(stderr, "%s: %zu before, %zu after\n", names[i], (size_t) before[i].n, (size_t) after.n);
                MUST(after.hash == before[i].hash);
        }
        close_store();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct pieces pieces = pieces_of(data, size);
        struct om_span text;

        fuzz_folder_make();
        fuzz_folder_empty();
        fail_at = 0;
        if (pieces.p == pieces.end)
                fuzz_write_file(path_of(OM_STORE_CONFIG, ".json"), data, size);
        for (uint8_t letter; (letter = pieces_next(&pieces, &text));)
                write_piece(letter, text);
        open_and_look(data, size);
        return 0;
}
