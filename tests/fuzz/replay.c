/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over the files of a folder, and over each of them cut short: what was found once stays found. Prints TAP. */
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

int main(int argc, char **argv) {
        int n = 0;
        for (int i = 1; i < argc; i++) {
                DIR *dir = opendir(argv[i]);
                if (!dir) {
                        printf("not ok 1 - %s cannot be opened\n", argv[i]);
                        return 1;
                }
                for (struct dirent *entry; (entry = readdir(dir));) {
                        char path[4096];
                        struct stat st;
                        snprintf(path, sizeof(path), "%s/%s", argv[i], entry->d_name);
                        if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
                                continue;
                        FILE *f = fopen(path, "rbe");
                        uint8_t *data = malloc((size_t) st.st_size + 1);
                        size_t size = f && data ? fread(data, 1, (size_t) st.st_size, f) : 0;
                        for (size_t cut = 0; cut <= size; cut += 1 + size / 64) {
                                uint8_t *exact = malloc(cut + (cut == 0)); /* a block of just this length: reading past it is seen */
                                memcpy(exact, data, cut);
                                LLVMFuzzerTestOneInput(exact, cut);
                                free(exact);
                        }
                        LLVMFuzzerTestOneInput(data, size);
                        free(data);
                        if (f)
                                fclose(f);
                        n++;
                }
                closedir(dir);
        }
        printf("%s 1 - the %d files of the corpus pass\n1..1\n", n ? "ok" : "not ok", n);
        return n ? 0 : 1;
}
