#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Crowds of clients that misbehave: the daemon's memory stays bounded, a healthy client hardly notices, and who must be ended is ended with a reason.

Long: 10,000 connections that never read, 1,000 that send one byte a second. The crowds are tests/lib/bin/crowd.c, at the lowest priority, so that
they take little time from the client that measures.
"""
import contextlib
import os
import subprocess
import sys
import threading
import time

from fault import LONG, SANITIZED, TOOLS, Daemon, OmniError, amount, case, main, note, wait_for

SILENT = amount("SILENT", 100 if SANITIZED else 300, 10000)
SLOW = amount("SLOW", 100, 1000)
SAMPLES = amount("SAMPLES", 200, 3000)
IDLE = amount("IDLE", 500, 10000)
# The short form has small crowds, and so a small total, for which the largest frame must be small too.
TOTAL_BYTES = (256 if LONG else 8) << 20
LIMITS = ["--session-total-bytes", str(TOTAL_BYTES), *([] if LONG else ["--max-frame-bytes", "1M"])]
# What is freed but still the process's, the sessions themselves, and what bus and storage need for the healthy client.
BESIDES = (TOTAL_BYTES >> 2) + (16 << 20)


class Crowd:
    def __init__(self, kind, daemon, n):
        self.n = n
        self.process = subprocess.Popen(
            [os.path.join(TOOLS, "crowd"), daemon.socket, kind, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self):
        """Until each has done its worst."""
        assert self.process.stdout.readline() == "ready\n", "the crowd has dispersed"

    def leave(self):
        """How many the daemon had ended."""
        self.process.stdin.close()
        ended = int(self.process.stdout.read().split()[-2])
        self.process.wait(60)
        self.process.stdout.close()
        return ended

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        self.process.stdin.close()
        self.process.stdout.close()


# -- who measures --------------------------------------------------------------------------------------------------------------


def latencies(client):
    """p50 and p99 in ms of a durable publish, a ping and a look into the storage."""
    took = []
    for n in range(SAMPLES):
        start = time.perf_counter()
        if n % 3 == 0:
            client.call("ping")
        elif n % 3 == 1:
            client.call("config.list")
        else:
            client.publish("healthy", n)
        took.append(time.perf_counter() - start)
        time.sleep(0.0005)
    took.sort()
    return took[len(took) // 2] * 1e3, took[len(took) * 99 // 100] * 1e3


def best(client):
    """Of three: other programs of the machine are not the daemon's doing."""
    return min((latencies(client) for _ in range(3)), key=lambda l: l[1])


def text(l):
    return f"p50 {l[0]:.2f} p99 {l[1]:.2f} ms"


class Peak:
    """The most memory that the daemon itself has had, files that it maps left out."""

    def __init__(self, daemon):
        self.path = f"/proc/{daemon.process.pid}/status"
        self.first = self.most = self.now()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def now(self):
        with open(self.path, encoding="ascii") as f:
            return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon:"))

    def watch(self):
        while not self.over.wait(0.02):
            self.most = max(self.most, self.now())

    def grown(self):
        return max(self.most, self.now()) - self.first

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def reasons(daemon):
    """The ends that the log tells of, by reason: reason -> number."""
    found = {}
    for line in daemon.log_text().splitlines():
        for reason in ("does not read", "SESSION_TOTAL_BYTES", "SLOW_CLIENT", "frame_bytes"):
            if reason in line:
                found[reason] = found.get(reason, 0) + 1
    return found


def measured(daemon, what, crowds, bound):
    """A healthy client beside crowds (kind, number): its latencies and the daemon's memory."""
    n = sum(number for _, number in crowds)
    with contextlib.closing(daemon.connect(120)) as healthy, contextlib.ExitStack() as stack:
        before = best(healthy)
        peak = stack.enter_context(Peak(daemon))
        here = [stack.enter_context(Crowd(kind, daemon, number)) for kind, number in crowds]
        coming = latencies(healthy)
        for crowd in here:
            crowd.wait()
        during = best(healthy)
        grown = peak.grown()
        note(f"{n} {what}: a healthy client's {text(before)} before, {text(coming)} while they come, {text(during)} when they are there")
        note(f"    {grown >> 10} KiB more memory at most, {grown // n} bytes each; ended so far: {reasons(daemon)}")
        # A sanitizer's allocator keeps what was given back.
        assert SANITIZED or grown < bound, f"{grown} bytes for {n} connections, more than {bound}"
        # Only the long form runs alone on the machine.
        assert during[1] <= (2 * before[1] if LONG else 2 * before[1] + 50), f"p99 {before[1]:.2f} ms before, {during[1]:.2f} ms during"
        yield here, healthy


def ended_with(daemon, reason, n, within):
    """Each has its line, and a healthy client has its answers meanwhile."""
    longest, deadline = 0, time.monotonic() + within
    with contextlib.closing(daemon.connect(120)) as client:
        while (found := reasons(daemon).get(reason, 0)) < n:
            assert time.monotonic() < deadline, f"{found} of {n} have been ended with a reason"
            start = time.monotonic()
            client.call("ping")
            client.call("health")
            longest = max(longest, time.monotonic() - start)
            time.sleep(0.05)
    note(f"    while {n} are ended, an answer takes {longest:.3f} s at most; the log says: " + line_with(daemon, reason))
    return longest


def connections(daemon):
    with contextlib.closing(daemon.connect()) as client:
        return client.call("health")["connections"]


def line_with(daemon, reason):
    return [line for line in daemon.log_text().splitlines() if reason in line][-1][25:]


@case
def many_that_are_idle_cost_next_to_nothing():
    with Daemon() as daemon:
        for (crowd,), _ in measured(daemon, "idle connections", [("idle", IDLE)], IDLE * 2048 + (2 << 20)):
            assert crowd.leave() == 0, "idle connections were ended"
        daemon.stop()


@case
def many_that_never_read_cost_bounded_memory_and_are_ended():
    with Daemon(*LIMITS, "--stalled-client", "40s" if LONG else "3s") as daemon:
        for _ in measured(daemon, "connections that never read", [("silent", SILENT)], TOTAL_BYTES + BESIDES):
            ended_with(daemon, "does not read", SILENT * 9 // 10, 120)
        daemon.stop()


@case
def many_that_ask_for_much_and_never_read_cost_bounded_memory():
    with Daemon(*LIMITS, "--stalled-client", "60s") as daemon:
        for _ in measured(daemon, "connections that ask for much and never read", [("greedy", SILENT)], TOTAL_BYTES + BESIDES):
            pass
        daemon.stop()


@case
def many_that_begin_large_frames_cost_bounded_memory_and_those_with_most_are_ended():
    with Daemon(*LIMITS) as daemon:
        # Twice the total in all.
        half = f"half={min(2 * TOTAL_BYTES // SILENT, 200 << 10)}"
        for _ in measured(daemon, "connections that send the beginning of a frame", [(half, SILENT)], TOTAL_BYTES + BESIDES):
            ended_with(daemon, "SESSION_TOTAL_BYTES", 1, 60)
        daemon.stop()


@case
def many_that_send_a_byte_a_second_cost_little_and_are_ended():
    with Daemon("--slow-client", "30s" if LONG else "5s") as daemon:
        for (crowd,), _ in measured(daemon, "connections that send a byte a second", [("slow", SLOW)], SLOW * 4096 + (8 << 20)):
            ended_with(daemon, "SLOW_CLIENT", SLOW, 90)
            wait_for(lambda: connections(daemon) < SLOW // 10, 20, "the end of the slow ones")
            crowd.leave()
        daemon.stop()


@case
def all_of_them_at_once_are_ended_with_reasons_and_a_healthy_client_hardly_notices():
    flags = ["--stalled-client", "60s", "--slow-client", "30s"] if LONG else ["--stalled-client", "6s", "--slow-client", "5s"]
    crowds = [("silent", SILENT), ("slow", SLOW)]
    with Daemon(*LIMITS, *flags) as daemon, contextlib.closing(daemon.connect()) as worker, contextlib.closing(daemon.connect()) as claimer:
        worker.register("work", "w", prefetch=1000)
        for _, healthy in measured(daemon, "that never read or send a byte a second", crowds, TOTAL_BYTES + BESIDES):
            claimer.send_raw(b"\xff\xff\xff\xff" + b"x" * 1000)
            filling = "x" * 65536
            for n in range(200):
                healthy.publish("work", [n, filling])
            ended_with(daemon, "frame_bytes", 1, 10)
            ended_with(daemon, "SLOW_CLIENT", SLOW, 90)
            ended_with(daemon, "does not read", SILENT * 9 // 10, 180)
            me = f"(pid {os.getpid()},"  # whose worker stopped reading
            wait_for(lambda: [l for l in daemon.log_text().splitlines() if me in l and "does not read" in l], 120, "the end of the worker")
            note(f"    latencies after that: {text(latencies(healthy))}; ended: {reasons(daemon)}")
        daemon.stop()


@case
def one_that_claims_four_gigabytes_is_told_and_ended():
    with Daemon() as daemon:
        before = daemon.rss_bytes()
        with contextlib.closing(daemon.connect()) as client:
            client.send_raw(b"\xff\xff\xff\xff" + b"x" * 100000)
            answer = client.receive(10)
            assert answer["error"]["data"]["kind"] == "limit", answer
            assert client.receive(10) is None, "its sending side is not closed"
        wait_for(lambda: "closed:" in daemon.log_text() or "frame" in daemon.log_text(), 10, "a line in the log")
        note([line for line in daemon.log_text().splitlines() if "frame" in line or "closed" in line][-1][25:])
        assert daemon.rss_bytes() - before < 4 << 20
        daemon.stop()


@case
def a_worker_that_stops_reading_is_ended_and_another_has_its_tasks():
    count, filling = 400, "x" * 65536
    with Daemon("--stalled-client", "2s") as daemon:
        with contextlib.closing(daemon.connect()) as stuck, contextlib.closing(daemon.connect()) as client:
            stuck.register("work", "w", prefetch=1000)
            before = daemon.rss_bytes()
            most = 0
            ids = set()
            for n in range(count):
                ids.add(client.publish("work", [n, filling]))
                most = max(most, daemon.rss_bytes())
            wait_for(lambda: "closed:" in daemon.log_text(), 20, "the end of the worker")
            note([line for line in daemon.log_text().splitlines() if "closed:" in line][-1][25:])
            note(f"a worker that stopped reading {count * len(filling) >> 20} MiB of tasks: {(most - before) >> 10} KiB more memory at most")
            client.register("work", "w", prefetch=100)
            while ids:
                task = client.next_task(10)
                assert task, f"{len(ids)} tasks are missing"
                client.ack(task)
                ids.discard(task["id"])
        daemon.stop()


@case
def more_than_the_most_connections_are_told_and_the_others_served():
    with Daemon("--max-connections", "100") as daemon:
        told, clients = 0, []
        for _ in range(150):
            clients.append(daemon.connect(10))
        for c in clients:
            with contextlib.suppress(OSError, OmniError):
                c.start("ping")
            try:
                answer = c.receive()
            except OSError as e:
                raise AssertionError(f"closed without a word: {e}") from e
            told += "error" in answer and answer["error"]["data"]["kind"] == "limit"
        assert told == 50, told
        assert "connections are refused" in daemon.log_text()
        for c in clients:
            c.close()
        daemon.stop()


main()
