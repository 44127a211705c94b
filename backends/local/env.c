/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder of an embedded bus: its lock, the LMDB environment, the tables, growth, transactions.
 *
 * Always true:
 *   - one process has the folder: flock(2) on DIR/lock, which also says whose it is. The lock dies with the process, so nothing is ever
 *     left over to clean up. Since nobody else can be in, LMDB's own lock file is not used (MDB_NOLOCK);
 *   - one thread uses the environment at a time, and no reader lives across a write transaction, which MDB_NOLOCK asks for;
 *   - a map is address space, not memory: what was never touched costs nothing, and the file is as long as what was written;
 *   - without MDB_WRITEMAP a full disk is an error of pwrite(2), never a SIGBUS.
 *
 * A commit is two syncs by LMDB: the pages, then the page that makes them current. After a failed one the environment is closed and opened
 * again: what the disk holds is then the last transaction whose syncs both succeeded, and no sync is ever tried twice.
 *
 * Bus thread; before its first turn and after its last the loop's.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

enum { FORMAT = 1 };
#define MAP_START ((size_t) 64 << 20)

static const char *const table_names[N_TABLES] = {
        [T_META] = "meta",
        [T_LOGS] = "logs",
        [T_GROUPS] = "groups",
        [T_ATTACHES] = "attaches",
        [T_ROWS] = "rows",
        [T_PEND] = "pend",
        [T_DONE] = "done",
        [T_DELAYED] = "delayed",
        [T_TTL] = "ttl",
        [T_DEDUPE] = "dedupe",
        [T_DEDUPE_TIME] = "dedupe_time",
        [T_DEAD] = "dead",
};

static int commit(MDB_txn *txn) { return mdb_txn_commit(txn); }
int (*om_local_commit)(MDB_txn *txn) = commit;

int env_error(struct om_error *e, const struct om_bus *b, int code, const char *what) {
        return om_error_set(e, OM_UNAVAILABLE, "embedded bus in %s: %s: %s", b->path, what, mdb_strerror(code));
}

int env_lock(struct om_bus *b, struct om_error *e) {
        char *name = NULL, holder[32] = "";
        struct om_buf buf = OM_BUF_INIT;
        int fd, r;

        om_buf_printf(&buf, "%s/lock", b->path);
        om_buf_putc(&buf, '\0');
        if (!om_buf_ok(&buf)) {
                om_buf_deinit(&buf);
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        }
        name = buf.data;
        fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0) {
                r = om_error_set_errno(e, errno, "embedded bus: cannot open %s", name);
        } else if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
                r = errno;
                if (r == EWOULDBLOCK && pread(fd, holder, sizeof holder - 1, 0) > 0)
                        holder[strcspn(holder, "\n")] = '\0';
                if (r == EWOULDBLOCK)
                        r = om_error_set(e, OM_CONFLICT,
                                "embedded bus: the folder %s is in use by the daemon with process id %s; one daemon a folder", b->path,
                                holder[0] ? holder : "(unknown)");
                else
                        r = om_error_set_errno(e, r, "embedded bus: cannot lock %s", name);
                close(fd);
        } else {
                int n = snprintf(holder, sizeof holder, "%ld\n", (long) getpid());

                /* The text is for people; the lock is what counts. */
                if (ftruncate(fd, 0) < 0 || pwrite(fd, holder, (size_t) n, 0) < 0)
                        om_host_log(b->host, OM_LOG_WARNING, "embedded bus: cannot write %s: %s", name, strerror(errno));
                b->lock_fd = fd;
                r = 0;
        }
        om_buf_deinit(&buf);
        return r;
}

void env_unlock(struct om_bus *b) {
        if (b->lock_fd >= 0)
                close(b->lock_fd);
        b->lock_fd = -1;
}

static void sync_folder(struct om_bus *b) {
        int fd = open(b->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0 || fsync(fd) < 0)
                om_host_log(b->host, OM_LOG_WARNING, "embedded bus: cannot sync the folder %s: %s", b->path, strerror(errno));
        if (fd >= 0)
                close(fd);
}

static int open_tables(struct om_bus *b) {
        MDB_txn *txn;
        MDB_val k = val("format", 6), v;
        uint8_t format[4];
        bool fresh = false;
        int r = mdb_txn_begin(b->env, NULL, 0, &txn);

        if (r)
                return r;
        /* Without MDB_CREATE first: an environment that has its tables needs no commit, so that a start costs no sync. */
        for (int i = 0; i < N_TABLES && !r; i++) {
                r = mdb_dbi_open(txn, table_names[i], 0, &b->t[i]);
                if (r == MDB_NOTFOUND) {
                        fresh = true;
                        r = mdb_dbi_open(txn, table_names[i], MDB_CREATE, &b->t[i]);
                }
        }
        if (!r) {
                r = mdb_get(txn, b->t[T_META], &k, &v);
                if (r == MDB_NOTFOUND) {
                        be32(format, FORMAT);
                        v = val(format, sizeof format);
                        r = mdb_put(txn, b->t[T_META], &k, &v, 0);
                        fresh = true;
                } else if (!r && (v.mv_size != 4 || rd32(v.mv_data) != FORMAT)) {
                        r = MDB_VERSION_MISMATCH;
                }
        }
        if (r) {
                mdb_txn_abort(txn);
                return r;
        }
        r = mdb_txn_commit(txn); /* nothing written when nothing changed */
        if (!r && fresh)
                sync_folder(b);
        return r;
}

int env_open(struct om_bus *b, struct om_error *e) {
        unsigned flags = MDB_NOLOCK | MDB_NOTLS | MDB_NORDAHEAD | MDB_NOMEMINIT;
        struct stat st;
        char *file = NULL;
        int r = mdb_env_create(&b->env);

        if (r) {
                env_error(e, b, r, "cannot make an environment");
                return r;
        }
        /* The map holds at least what the file has, with room to grow into. */
        b->map_bytes = b->map_bytes ? b->map_bytes : MAP_START;
        if (asprintf(&file, "%s/data.mdb", b->path) < 0) {
                file = NULL;
                r = ENOMEM;
        }
        if (!r && stat(file, &st) == 0)
                while (b->map_bytes < (size_t) st.st_size + MAP_START / 2)
                        b->map_bytes *= 2;
        free(file);
        if (b->settings.durability != DURABILITY_ALWAYS)
                flags |= MDB_NOSYNC;
        if (!r)
                r = mdb_env_set_mapsize(b->env, b->map_bytes);
        if (!r)
                r = mdb_env_set_maxdbs(b->env, N_TABLES);
        if (!r)
                r = mdb_env_open(b->env, b->path, flags, 0600);
        if (!r)
                r = open_tables(b);
        if (r) {
                env_error(e, b, r, "cannot open");
                env_close(b);
        }
        return r;
}

void env_close(struct om_bus *b) {
        reader_end(b);
        if (b->reader)
                mdb_txn_abort(b->reader);
        b->reader = NULL;
        if (b->env)
                mdb_env_close(b->env);
        b->env = NULL;
}

uint64_t env_used_bytes(struct om_bus *b) {
        MDB_envinfo info;
        MDB_stat st;

        if (!b->env || mdb_env_info(b->env, &info) || mdb_env_stat(b->env, &st))
                return 0;
        return (uint64_t) (info.me_last_pgno + 1) * st.ms_psize;
}

int env_grow(struct om_bus *b, size_t need) {
        uint64_t used = env_used_bytes(b);
        size_t map = b->map_bytes;
        int r;

        while (map < used + need) {
                if (map > SIZE_MAX / 4)
                        return MDB_MAP_FULL;
                map *= 2;
        }
        if (map == b->map_bytes)
                return 0;
        if (b->reader) /* it would keep the old map */
                mdb_txn_abort(b->reader);
        b->reader = NULL;
        r = mdb_env_set_mapsize(b->env, map);
        if (!r)
                b->map_bytes = map;
        return r;
}

int txn_begin(struct om_bus *b) {
        int r = mdb_txn_begin(b->env, NULL, 0, &b->txn);

        if (r) {
                b->txn = NULL;
                return r;
        }
        b->oom = false;
        r = mdb_cursor_open(b->txn, b->t[T_ROWS], &b->rows);
        if (r)
                txn_abort(b);
        return r;
}

int txn_commit(struct om_bus *b) {
        uint64_t t0 = om_clock_ns();
        MDB_txn *txn = b->txn;
        int r;

        b->txn = NULL;
        b->rows = NULL; /* freed with its transaction */
        r = om_local_commit(txn);
        if (!r) {
                b->last_commit_ns = om_clock_ns() - t0;
                b->commits++;
        }
        return r;
}

void txn_abort(struct om_bus *b) {
        if (b->txn)
                mdb_txn_abort(b->txn);
        b->txn = NULL;
        b->rows = NULL;
}

int reader_begin(struct om_bus *b) {
        if (b->reader)
                return mdb_txn_renew(b->reader);
        return mdb_txn_begin(b->env, NULL, MDB_RDONLY, &b->reader);
}

void reader_end(struct om_bus *b) {
        if (b->reader)
                mdb_txn_reset(b->reader);
}

int t_put(struct om_bus *b, enum table t, const void *key, size_t key_len, const void *data, size_t len) {
        MDB_val k = val(key, key_len), v = val(data, len);

        return mdb_put(b->txn, b->t[t], &k, &v, 0);
}

int t_get(struct om_bus *b, MDB_txn *txn, enum table t, const void *key, size_t key_len, MDB_val *ret) {
        MDB_val k = val(key, key_len);

        return mdb_get(txn, b->t[t], &k, ret);
}

int t_del(struct om_bus *b, enum table t, const void *key, size_t key_len) {
        MDB_val k = val(key, key_len);
        int r = mdb_del(b->txn, b->t[t], &k, NULL);

        return r == MDB_NOTFOUND ? 0 : r;
}

uint64_t om_local_seed;

/* A mix of 8 bytes at a time by multiplication (the finaliser is SplitMix64's, Steele et al. 2014). Two tasks whose keys share a hash only
 * wait for each other; dedupe compares the texts. */
uint64_t hash64(const void *data, size_t n, uint64_t seed) {
        const uint8_t *p = data;
        uint64_t h = seed ^ (n * 0x9e3779b97f4a7c15u), w;

        while (n) {
                size_t step = n < 8 ? n : 8;

                w = 0;
                memcpy(&w, p, step);
                h = (h ^ w) * 0xbf58476d1ce4e5b9u;
                h ^= h >> 29;
                p += step;
                n -= step;
        }
        h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
        h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
        return h ^ (h >> 31);
}
