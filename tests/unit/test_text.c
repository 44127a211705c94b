/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops of text.h as this machine runs them. */
#include "text_cases.h"

int main(void) { return text_main("text"); }
