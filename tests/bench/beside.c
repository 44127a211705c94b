/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What LMDB and beanstalkd do alone, with as many bytes for each task as the daemon's bus keeps.
 */
#include <errno.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

/* -- LMDB ------------------------------------------------------------------------------------------------------------------ */

/* Seconds of `total` puts in order of key, `batch` a commit; the commits' own times into commit_us, unless it is NULL. */
static double raw_lmdb(int batch, long total, double *commit_us) {
        char folder[64], value[RECORD_BYTES];
        MDB_env *env;
        MDB_dbi dbi;
        MDB_txn *txn;
        folder_new(folder);
        memset(value, 'x', sizeof(value));
        if (mdb_env_create(&env) || mdb_env_set_mapsize(env, (size_t) 4 << 30) || mdb_env_open(env, folder, MDB_NOTLS, 0600) ||
                mdb_txn_begin(env, NULL, 0, &txn) || mdb_dbi_open(txn, NULL, 0, &dbi) || mdb_txn_commit(txn))
                die("LMDB", "open");
        double start = now_s();
        for (long i = 0; i < total;) {
                double began = now_s();
                if (mdb_txn_begin(env, NULL, 0, &txn))
                        die("LMDB", "begin");
                for (int k = 0; k < batch && i < total; k++, i++) {
                        unsigned char key[13] = { 0 };
                        for (int b = 0; b < 8; b++)
                                key[12 - b] = (unsigned char) ((unsigned long) i >> (8 * b));
                        MDB_val mk = { sizeof(key), key }, mv = { sizeof(value), value };
                        if (mdb_put(txn, dbi, &mk, &mv, 0))
                                die("LMDB", "put");
                }
                if (mdb_txn_commit(txn))
                        die("LMDB", "commit");
                if (commit_us)
                        commit_us[(i - 1) / batch] = (now_s() - began) * 1e6;
        }
        double seconds = now_s() - start;
        mdb_env_close(env);
        folder_remove(folder);
        return seconds;
}

void case_raw_lmdb(void) {
        long total = scaled(300000);
        figure("raw_lmdb_puts_1600", (double) total / raw_lmdb(BATCH * IN_FLIGHT, total, NULL));
        total = scaled(100000);
        figure("raw_lmdb_puts_100", (double) total / raw_lmdb(BATCH, total, NULL));
}

void case_raw_lmdb_commit(void) {
        long total = scaled(2000);
        double *us = calloc((size_t) total, sizeof(double));
        raw_lmdb(1, total, us);
        figure_quantiles("raw_lmdb_commit", us, total);
        free(us);
}

/* -- beanstalkd ------------------------------------------------------------------------------------------------------------- */

static void write_all(int fd, const char *data, size_t len) {
        while (len) {
                ssize_t n = write(fd, data, len);
                if (n < 0 && errno != EINTR)
                        die("beanstalkd", strerror(errno));
                if (n > 0)
                        data += n, len -= (size_t) n;
        }
}

static int connect_within(const char *path, double seconds) {
        int fd;
        for (double until = now_s() + seconds; (fd = socket_connect(path)) < 0 && now_s() < until;)
                usleep(2000);
        return fd;
}

/* Reads until n more answers have come, one line each; what came beyond counts the next time. */
static void read_answers(int fd, long n) {
        static char buf[65536];
        static long ahead;
        n -= ahead;
        while (n > 0) {
                ssize_t got = read(fd, buf, sizeof(buf));
                if (got <= 0)
                        die("beanstalkd", "closed the connection");
                for (ssize_t i = 0; i < got; i++)
                        n -= buf[i] == '\n';
                if (memmem(buf, (size_t) got, "OUT_OF", 6) || memmem(buf, (size_t) got, "BAD_", 4))
                        die("beanstalkd", "refused a put");
        }
        ahead = -n;
}

/* Two lots of puts are on their way at a time: more answers than that would fill the socket while we write, and stop both sides. */
void case_beanstalkd(void) {
        char folder[64], listen_on[96], *batch;
        long total = quick() ? 10 * BATCH : 30 * BATCH, answered = 0;
        size_t len = 0, one = RECORD_BYTES + 64;
        folder_new(folder);
        snprintf(listen_on, sizeof(listen_on), "unix:%s/b.sock", folder);
        pid_t pid = child_start(folder, (const char *const[]){ "beanstalkd", "-b", folder, "-f0", "-l", listen_on, NULL });
        int fd = connect_within(listen_on + 5, 3);
        if (fd < 0) {
                figure_missing("beanstalkd_puts", "beanstalkd did not start; packaging/install-deps.sh bench installs it");
                goto out;
        }
        batch = malloc(BATCH * one);
        for (int i = 0; i < BATCH; i++)
                len += (size_t) snprintf(batch + len, one, "put 0 0 60 %d\r\n%0*d\r\n", RECORD_BYTES, RECORD_BYTES, i);
        double start = now_s();
        for (long sent = 0; answered < total; answered += BATCH) {
                for (; sent < total && sent < answered + 2 * BATCH; sent += BATCH)
                        write_all(fd, batch, len);
                read_answers(fd, BATCH);
        }
        figure("beanstalkd_puts", (double) total / (now_s() - start));
        figure("beanstalkd_ours", figure_last("publish_100x16"));
        free(batch);
        close(fd);
out:
        child_stop(pid);
        folder_remove(folder);
}
