#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The daemon's whole way of a task under valgrind: no invalid access, nothing leaked. (With sanitizers in the build, they look on instead.)"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import SANITIZED, Daemon, case, main  # noqa: E402

SUPPRESSIONS = os.path.realpath(os.path.join(os.path.dirname(__file__), "../lib/valgrind.supp"))
VALGRIND = [] if SANITIZED else ["valgrind", "-q", "--leak-check=full", "--show-leak-kinds=definite,possible", "--errors-for-leak-kinds=definite,possible",
                                 "--error-exitcode=99", f"--suppressions={SUPPRESSIONS}"]


@case
def nothing_is_misused_or_leaked_on_the_way_of_a_task():
    with Daemon(start=False) as d:
        d.wrapper = VALGRIND
        d.start(ready_within=60)
        c = d.connect(timeout=60)
        c.register("t", "a", retry_backoff_ms=1, dlq_retry_limit=1, prefetch=50)
        for i in range(300):
            more = {"delay_ms": 5} if i % 7 == 0 else {}
            if i % 5 == 0:
                more["idempotency_key"] = f"order {i // 2}"
            c.publish("t", {"i": i}, reply_to="t.r" if i % 10 == 0 else None, key=f"k{i % 3}", priority=i % 10, **more)
        handled = 0
        while True:
            task = c.next_task(3)
            if not task:
                break
            handled += 1
            if handled % 13 == 0:
                c.fail(task, "unlucky")
            else:
                c.ack(task, {"r": 1}, publish=[{"topic": "o", "payload": {"content": 1}}] if handled % 20 == 0 else [])
        assert handled >= 270, handled
        for method, params in (("health", {}), ("bus.stats", {}), ("metrics.get", {}), ("task.list", {"limit": 1000}), ("backends", {}),
                               ("agent.list", {}), ("dlq.list", {"topic": "t", "agent": "a"}), ("topic.delete", {"topic": "o"})):
            c.call(method, **params)
        c.send_raw(b"\0\0\0\5{")
        d.stop()


main()
