/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops of text.h as a machine without SSE2 runs them. */
#undef __SSE2__
#include "text_cases.h"

int main(void) { return text_main("text_portable"); }
