/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SETTINGS_PRINT_H
#define OM_SETTINGS_PRINT_H
/*
 * What settings_print.c and settings_help.c share: values in words, and wrapped text.
 */
#include "settings_table.h"

/* A value as a person writes it: 10s, 16M, 0660. */
const char *om_settings_number(const struct om_setting *row, int64_t value, char out[32]);
/* Appends what the value may be: "1 to 1000", "auto, stderr or journal"; nothing for text. */
void om_settings_range(const struct om_setting *row, struct om_buf *out);
/* Writes `text` in lines of at most `width` columns, `first` before the first line and `rest` before the others, and a newline. */
void om_settings_put_wrapped(FILE *out, const char *first, const char *rest, unsigned width, const char *text);

#endif
