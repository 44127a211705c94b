/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fresh ids: UUIDs, version 4 (RFC 9562, section 5.4), from getrandom(2).
 *
 * Random bytes are fetched 4 KiB at a time for each thread: a system call for 256 ids. A process that forks must not hand out
 * its parent's bytes again, so there is one page that the kernel wipes in a child (MADV_WIPEONFORK); a thread whose stock was
 * fetched under another mark than the page now holds throws it away. Where there is no such page (Linux before 4.14), nothing
 * is kept in stock.
 *
 * Thread: any; nothing is shared but the mark.
 */
#include "task.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

enum { UUID_BYTES = 16, STOCK_BYTES = 4096 };

static _Atomic uint32_t *mark;      /* in the page; 0 after a fork */
static _Atomic uint32_t marks_made; /* the last mark of this process and its ancestors */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static _Thread_local struct {
        uint32_t mark;
        size_t left;
        unsigned char bytes[STOCK_BYTES];
} stock;

static void make_page(void) {
        long size = sysconf(_SC_PAGESIZE);
        void *page = mmap(NULL, (size_t) size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
                return;
        if (madvise(page, (size_t) size, MADV_WIPEONFORK) < 0) {
                munmap(page, (size_t) size);
                return;
        }
        mark = page;
}

/* Ids that are not random would collide, and that would lose tasks: with no source of randomness at all the process ends. */
static void fetch(unsigned char *out, size_t n) {
        while (n > 0) {
                ssize_t got = getrandom(out, n, 0);
                if (got < 0 && errno == EINTR)
                        continue;
                if (got < 0) { /* a sandbox without the call */
                        int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
                        got = fd < 0 ? -1 : read(fd, out, n);
                        if (fd >= 0)
                                close(fd);
                }
                if (got <= 0) {
                        fputs("omnidaemon: neither getrandom(2) nor /dev/urandom works; cannot make ids\n", stderr);
                        abort();
                }
                out += got;
                n -= (size_t) got;
        }
}

static uint32_t current_mark(void) {
        uint32_t now = atomic_load_explicit(mark, memory_order_acquire);
        if (now == 0) {
                uint32_t fresh = atomic_fetch_add(&marks_made, 1) + 1;
                if (fresh == 0)
                        fresh = atomic_fetch_add(&marks_made, 1) + 1;
                if (atomic_compare_exchange_strong(mark, &now, fresh))
                        now = fresh;
        }
        return now;
}

static void take(unsigned char out[UUID_BYTES]) {
        pthread_once(&once, make_page);
        if (!mark) {
                fetch(out, UUID_BYTES);
                return;
        }
        uint32_t now = current_mark();
        if (stock.left == 0 || stock.mark != now) {
                fetch(stock.bytes, STOCK_BYTES);
                stock.left = STOCK_BYTES;
                stock.mark = now;
        }
        stock.left -= UUID_BYTES;
        memcpy(out, stock.bytes + stock.left, UUID_BYTES);
}

void om_task_id_new(char ret_id[OM_ID_LEN + 1]) {
        static const char hex[] = "0123456789abcdef";
        unsigned char u[UUID_BYTES];
        char *p = ret_id;
        take(u);
        u[6] = (u[6] & 0x0f) | 0x40; /* version */
        u[8] = (u[8] & 0x3f) | 0x80; /* variant */
        for (int i = 0; i < UUID_BYTES; i++) {
                if (i == 4 || i == 6 || i == 8 || i == 10)
                        *p++ = '-';
                *p++ = hex[u[i] >> 4];
                *p++ = hex[u[i] & 15];
        }
        *p = '\0';
}
