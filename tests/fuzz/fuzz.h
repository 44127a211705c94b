/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FUZZ_H
#define OM_FUZZ_H
/*
 * What the fuzz targets share. A target is one function, called with bytes from libFuzzer (`make fuzz`) or from the files of its corpus
 * (replay.c, in `make test`). It aborts when something that must hold does not.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                                \
        do {                                                                                           \
                if (!(condition)) {                                                                    \
                        fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
                        abort();                                                                       \
                }                                                                                      \
        } while (0)

#endif
