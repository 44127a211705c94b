#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the daemon at random moments, over a stream of publishes that two groups of two workers handle.

The oracle is what the producer and the workers wrote down: each in a process of its own, never killed. Long: 1,000 kills over 100,000 publishes.
"""
import collections
import os
import signal
import subprocess
import sys
import time

from fault import SANITIZED, TOOLS, Daemon, amount, case, lines, main, note, rng, wait_for

KILLS = amount("KILLS", 20, 1000)
PUBLISHES = amount("PUBLISHES", 3000, 100000)
HELD = amount("HELD", 20000 if SANITIZED else 100000, 100000)
LIFE_S = 0.2  # a life's mean length after the daemon is ready
STARTUP_S = 0.05  # what a start takes, about; a fifth of the kills falls into it
READY_S = 10.0 if SANITIZED else 1.0
WINDOW = 20  # of a group of two workers: what both hold (10 each); an ack that is not answered yet is held
GROUPS = ("a", "b")
WORKERS = 2


def hold_tasks(daemon, count):
    """Tasks that nobody serves."""
    client = daemon.connect()
    requests = []
    for start in range(0, count, 1000):
        tasks = [{"topic": "held", "payload": {"content": {"n": start + i}}} for i in range(min(1000, count - start))]
        requests.append(client.start("task.publish", tasks=tasks))
        if len(requests) > 4:
            client.finish(requests.pop(0))
    for request in requests:
        client.finish(request)
    assert client.call("bus.stats", topic="held")["topics"][0]["depth"] == count
    client.close()


def processor_s(pid):
    """Of all its threads until now: what a start takes whatever else the machine does."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as f:
            total += int(f.read().split()[0])
    return total / 1e9


def kill_often(daemon, done):
    """Kills and starts. Returns how long each start took until a ping was answered, and how much processor time."""
    starts, work = [], []
    for _ in range(KILLS):
        time.sleep(rng.uniform(0, 2 * LIFE_S))
        daemon.kill(signal.SIGKILL)
        while rng.random() < 0.2:  # and again before it is ready, perhaps in the midst of repairing
            daemon.launch()
            time.sleep(rng.uniform(0, STARTUP_S))
            daemon.kill(signal.SIGKILL)
            done["early"] += 1
        start = time.monotonic()
        daemon.start()
        starts.append(time.monotonic() - start)
        work.append(processor_s(daemon.process.pid))
        done["kills"] += 1
    return sorted(starts), sorted(work)


def check_group(name, published, attempted, handled, kills):
    lost = [i for i in published if i not in handled]
    assert not lost, f"{len(lost)} acknowledged and never handled by group {name}: {lost[:5]}"
    invented = [i for i in handled if i not in attempted]
    assert not invented, f"group {name} handled what was never published: {invented[:5]}"
    again = sum(handled.values()) - len(handled)
    assert again <= WINDOW * kills, f"{again} early deliveries in group {name} after {kills} kills"
    return again


@case
def kill_9_at_random_moments_loses_nothing_acknowledged():
    done = {"kills": 0, "early": 0}
    with Daemon() as d:
        def tool(name, *arguments):
            return subprocess.Popen([os.path.join(TOOLS, name), *arguments], env=d.env, cwd=d.folder, stdin=subprocess.DEVNULL)

        hold_tasks(d, HELD)
        workers = [tool("recording_agent", "work", g, f"handled-{g}-{n}") for g in GROUPS for n in range(WORKERS)]
        try:
            admin = d.connect()
            wait_for(lambda: sum(g["workers"] for g in admin.call("bus.groups", topic="work")["groups"]) == len(workers), what="all workers")
            admin.close()
            rate = PUBLISHES / (KILLS * (LIFE_S + 2 * STARTUP_S))
            producer = tool("recording_producer", "work", str(PUBLISHES), "published", f"{rate:.1f}")
            begun = time.monotonic()
            starts, work = kill_often(d, done)
            streaming = producer.poll() is None
            assert producer.wait(300) == 0, "the producer failed"
            admin = d.connect()
            wait_for(lambda: all(g["lag"] + g["leased"] + g["retrying"] == 0 for g in admin.call("bus.groups", topic="work")["groups"]), 300, "an empty topic")
            assert all(g["dead"] == 0 for g in admin.call("bus.groups", topic="work")["groups"]), "a death of the daemon must not count as a failure of the task"
        finally:
            for w in workers:
                w.send_signal(signal.SIGTERM)
            statuses = [w.wait(30) for w in workers]
        assert statuses == [0] * len(workers), statuses
        took = time.monotonic() - begun
        published = lines(os.path.join(d.folder, "published"))
        attempted = {f"work-{n}" for n in range(PUBLISHES)}
        assert len(published) == len(set(published)) == PUBLISHES
        again = {}
        for g in GROUPS:
            handled = collections.Counter(line.split()[0] for n in range(WORKERS) for line in lines(os.path.join(d.folder, f"handled-{g}-{n}")))
            again[g] = check_group(g, published, attempted, handled, done["kills"] + done["early"])
        note(f"{done['kills']} kills and {done['early']} during a start, over {PUBLISHES} publishes in {took:.0f} s; all handled by both groups; "
             f"delivered again: {again}; the stream {'outlasted' if streaming else 'ended before'} the last kill")
        note(f"ready again with {HELD} tasks held: median {starts[len(starts) // 2] * 1e3:.0f} ms, most {starts[-1] * 1e3:.0f} ms; "
             f"processor time: median {work[len(work) // 2] * 1e3:.0f} ms, most {work[-1] * 1e3:.0f} ms; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        assert starts[-1] <= READY_S, f"a start took {starts[-1]:.2f} s with {HELD} tasks held"
        assert admin.call("bus.stats", topic="held")["topics"][0]["depth"] == HELD
        for g in GROUPS:
            requests = [(i, admin.start("task.get", id=i, agent=g)) for i in rng.sample(published, min(900, len(published)))]
            for i, request in requests:
                record = admin.finish(request)
                assert record["status"] == "completed" and record["result"] == record["content"], (i, record)
        admin.close()
        d.stop()


sys.exit(main())
