#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an idle daemon costs: memory, wake-ups, time to get ready, idle connections. Wide bounds where sanitizers are in the build."""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import SANITIZED, Daemon, case, main, wakeups  # noqa: E402


def processor_seconds(pid):
    """Of all its threads: nanoseconds that they ran, as the scheduler counts them (Documentation/scheduler/sched-stats.rst)."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as f:
            total += int(f.read().split()[0])
    return total / 1e9


@case
def an_idle_daemon_is_small_and_does_not_wake_up():
    with Daemon() as d:
        c = d.connect()
        c.call("hello")
        time.sleep(0.5)
        before = wakeups(d.process.pid)
        time.sleep(3)
        assert wakeups(d.process.pid) == before, f"{wakeups(d.process.pid) - before} wake-ups in 3 s"
        rss = d.rss_bytes()
        print(f"# {rss / 1048576:.2f} MiB resident")
        assert SANITIZED or rss <= 8 << 20, rss
        d.stop()


@case
def a_used_daemon_that_is_idle_again_does_not_wake_up():
    with Daemon(env={"METRICS_INTERVAL": "1s"}) as d:
        c = d.connect()
        c.register("t", "a")
        for i in range(50):
            c.publish("t", i)
            c.ack(c.next_task(), i)
        time.sleep(2.5)  # the snapshot of the metrics is written meanwhile
        before = wakeups(d.process.pid)
        time.sleep(3)
        assert wakeups(d.process.pid) == before, f"{wakeups(d.process.pid) - before} wake-ups in 3 s"
        d.stop()


@case
def the_daemon_is_ready_soon():
    times, busy = [], []
    for _ in range(1 if SANITIZED else 5):
        with Daemon(start=False) as d:
            started = time.monotonic()
            d.start()
            times.append(time.monotonic() - started)
            busy.append(processor_seconds(d.process.pid))
            d.stop()
    print(f"# ready after {sorted(times)[len(times) // 2] * 1000:.1f} ms (median), {min(busy) * 1000:.0f} ms of them on a processor")
    assert SANITIZED or min(busy) <= 0.030, busy  # how long it waits for one is the machine's affair


@case
def idle_connections_cost_little():
    n = 1000
    with Daemon() as d:
        first = d.connect()
        first.call("hello")
        time.sleep(0.2)
        before = d.rss_bytes()
        clients = [d.connect() for _ in range(n)]
        for c in clients:
            c.call("hello")
        after = d.rss_bytes()
        each = (after - before) / n
        print(f"# {each:.0f} bytes resident for each idle connection")
        assert SANITIZED or each <= 8192, each
        for c in clients:
            c.close()
        d.stop()


main()
