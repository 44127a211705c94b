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
