/* SPDX-License-Identifier: Apache-2.0 */
/* The end of every main() of a Check program: run, count, tell. */
#include "suite.h"

#include <stdlib.h>

int om_test_main(Suite *suite) {
        SRunner *runner = srunner_create(suite);
        int failed;

        srunner_run_all(runner, CK_ENV);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#ifdef __SANITIZE_THREAD__
/* Debian's libmongoc counts the references of what its threads share by atomic instructions that the sanitizer does not see. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) { return "race:libbson-1.0.so\nrace:libmongoc-1.0.so\n"; }
#endif
