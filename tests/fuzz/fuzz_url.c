/* SPDX-License-Identifier: Apache-2.0 */
/* URLs: what is accepted has sound parts, and the password is in no message, no redacted form and no redacted line. */
#include <string.h>

#include "../../backends/url.h"
#include "fuzz.h"
#include "memory.h"

/* One of the allocations that reading makes fails. */
static void without_memory(const char *text, unsigned n) {
        struct om_error e = OM_ERROR_INIT;
        struct om_url *url = NULL;
        int r;

        fuzz_fail_allocation(n);
        r = om_url_parse(text, &url, &e);
        if (fuzz_fail_allocation(0) == 0) /* it made that many */
                MUST(r < 0);
        if (r < 0)
                MUST(e.message[0]);
        else
                om_url_free(url);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct om_error e = OM_ERROR_INIT;
        struct om_buf line = OM_BUF_INIT;
        struct om_url *url;

        char *text = malloc(size + 1);
        memcpy(text, data, size);
        text[size] = 0;
        if (size % 4 == 0)
                without_memory(text, (unsigned) (size / 4 % 32 + 1));
        om_url_redact(&line, text, size);
        MUST(om_buf_ok(&line));
        if (om_url_parse(text, &url, &e) == 0) {
                MUST(url->scheme && *url->scheme && url->path && url->redacted);
                for (size_t i = 0; i < url->n_hosts; i++)
                        MUST(url->hosts[i].name);
                for (size_t i = 0; i < url->n_params; i++)
                        MUST(om_url_param(url, url->params[i].name));
                if (url->password && strlen(url->password) > 3 && strcmp(url->password, "***") != 0) {
                        /* it may stand elsewhere in the text, or with escapes in its place: take only one that stands in its place alone */
                        char *first = strstr(text, url->password);
                        if (first > text && first[-1] == ':' && first[strlen(url->password)] == '@' && !strstr(first + 1, url->password))
                                MUST(!strstr(url->redacted, url->password));
                }
                om_url_free(url);
        } else
                MUST(e.message[0]);
        om_buf_deinit(&line);
        free(text);
        return 0;
}
