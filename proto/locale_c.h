/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_LOCALE_C_H
#define OM_LOCALE_C_H
/*
 * The "C" locale as an object, for numbers: a program that links the client library may have set a locale whose decimal
 * point is a comma. Internal to proto/. Thread: any.
 */
#include <locale.h>

/* Made once and kept for the life of the process; 0 only when memory ran out at the first call. */
locale_t om_locale_c(void);

#endif
