/* SPDX-License-Identifier: Apache-2.0 */
/* What a test orders: see inject.h. The file is mapped before main(), and before whatever other constructors allocate. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "inject.h"

struct control *inject_control;

__attribute__((constructor(101))) static void begin(void) {
        const char *name = getenv("OM_INJECT");
        int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
        void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *inject_control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

        if (fd >= 0)
                close(fd);
        if (p != MAP_FAILED)
                inject_control = p;
}

bool inject_watched(enum kind kind) { return inject_control && inject_control->armed && (inject_control->kinds & 1u << kind) != 0; }

bool inject_hit(void) {
        struct control *c = inject_control;
        int64_t n = ++c->seen;
        bool fails = c->every ? n % c->every == 0 : n >= c->nth && (c->times < 0 || n < c->nth + c->times);

        if (fails)
                c->failed++;
        if (fails && c->error == INJECT_DIE)
                kill(getpid(), SIGKILL);
        return fails;
}
