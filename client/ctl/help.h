/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_HELP_H
#define OM_CTL_HELP_H
/* Help, the man page and completions, from the table of commands. Thread: one. */
#include "ctl.h"

/* Help for a command, for a group of them, or (NULL) for the whole program. */
void help_put(struct ctl *ctl, struct om_buf *b, const struct command *c);
/* "task publish --topic TOPIC [OPTIONS] [CONTENT…]" without the program's name. */
void help_put_usage(struct om_buf *b, const struct command *c);
/* "-t, --topic TOPIC" */
void help_put_option(struct om_buf *b, const struct option *o);

struct help_code {
        int code;
        const char *meaning;
};
extern const struct help_code help_exit_codes[]; /* ended by meaning == NULL */
extern const struct help_code help_run_codes[];  /* of the programs of `agent run` */

#endif
