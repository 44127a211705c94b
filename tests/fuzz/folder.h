/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FUZZ_FOLDER_H
#define OM_FUZZ_FOLDER_H
/* A folder of this process's own, in memory where the machine has that, removed with all that is in it when the process ends. One that
 * crashes leaves it: tests/fuzz/run says in $FUZZ_FOLDER where to make it, and cleans up there. */
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"

static char fuzz_folder[80];

static int fuzz_remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
        return ftw->level == 0 ? 0 : remove(path);
}
/* Removes what is in the folder. */
static inline void fuzz_folder_empty(void) { nftw(fuzz_folder, fuzz_remove_one, 8, FTW_DEPTH | FTW_PHYS); }

static void fuzz_folder_end(void) {
        fuzz_folder_empty();
        rmdir(fuzz_folder);
}

/* Makes it, the first time; its absolute path. */
static inline const char *fuzz_folder_make(void) {
        if (!fuzz_folder[0]) {
                const char *in = getenv("FUZZ_FOLDER");

                if (!in || strlen(in) > 40)
                        in = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
                snprintf(fuzz_folder, sizeof fuzz_folder, "%s/omni-fuzz-XXXXXX", in);
                MUST(mkdtemp(fuzz_folder));
                atexit(fuzz_folder_end);
        }
        return fuzz_folder;
}

static inline void fuzz_write_file(const char *path, const void *data, size_t size) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        MUST(fd >= 0 && write(fd, data, size) == (ssize_t) size);
        close(fd);
}

#endif
