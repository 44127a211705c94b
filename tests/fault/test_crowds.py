#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Crowds of clients that misbehave: the daemon's memory stays bounded, a healthy client hardly notices, and who must be ended is ended with a reason.

Long: 10,000 connections that never read, 1,000 that send one byte a second. Each crowd is a process of its own (this file with --crowd), so that it
takes no time from the client that measures.
"""
import contextlib
import resource
import select
import socket
import struct
import subprocess
import sys
import time

from fault import LONG, SANITIZED, Daemon, OmniError, amount, case, main, note, wait_for

SILENT = amount("SILENT", 100 if SANITIZED else 300, 10000)
SLOW = amount("SLOW", 100, 1000)
SAMPLES = amount("SAMPLES", 300, 3000)
GREEDY = amount("GREEDY", 20, 500)
OUTPUT_BYTES = 64 << 10  # what waits for a client that does not read before it is not read either; the least that the setting allows
IN_FLIGHT = 1024  # requests of one connection that are answered all the same: limits.in_flight
# Besides: the event, the session, what came in; and buffers double.
PING_BYTES, HEALTH_BYTES = (2 * (OUTPUT_BYTES + IN_FLIGHT * reply) + (64 << 10) for reply in (64, 1200))


def frame(text):
    return struct.pack(">I", len(text)) + text


# -- the crowds ----------------------------------------------------------------------------------------------------------------


def connected(path, n):
    crowd = []
    while len(crowd) < n:
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(path)  # waits while the queue of the listening socket is full
        except BlockingIOError:
            time.sleep(0.01)
            continue
        s.setblocking(False)
        crowd.append(s)
    return crowd


def over():
    return bool(select.select([sys.stdin], [], [], 0)[0])


def silent(path, n, method="ping"):
    """Each asks for as much as its socket takes, again and again, and reads nothing."""
    request = frame(b'{"jsonrpc":"2.0","id":1,"method":"%s"}' % method.encode()) * 50
    crowd, left = connected(path, n), {}
    started = False
    while not over():
        for s in crowd:
            try:
                while True:
                    data = left.get(s) or request
                    left[s] = data[s.send(data) :]
            except OSError:
                pass  # its socket is full, or the daemon has ended it
            if started:
                time.sleep(0.0005)
        if not started:
            started = True
            print("ready", flush=True)


def greedy(path, n):
    """The same, and the answers are long."""
    silent(path, n, "health")


def slow(path, n):
    """A byte a second each, of a frame that is right."""
    request = frame(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    crowd, at = connected(path, n), 0
    print("ready", flush=True)
    while not over():
        for s in crowd:
            with contextlib.suppress(OSError):
                s.send(request[at : at + 1])
            time.sleep(1 / n)
        at = (at + 1) % len(request)


class Crowd:
    def __init__(self, kind, daemon, n):
        self.process = subprocess.Popen([sys.executable, __file__, "--crowd", kind, daemon.socket, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        while (line := self.process.stdout.readline()) != b"ready\n":
            assert line, "the crowd has dispersed"
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


# -- who measures --------------------------------------------------------------------------------------------------------------


def p99_ms(client):
    """Of a durable publish and a ping."""
    took = []
    for n in range(SAMPLES):
        start = time.perf_counter()
        if n % 2:
            client.call("ping")
        else:
            client.publish("healthy", n)
        took.append(time.perf_counter() - start)
        time.sleep(0.0005)
    return sorted(took)[len(took) * 99 // 100] * 1e3


def measured(daemon, what, crowd_of, bytes_each, n):
    """A healthy client beside a crowd. The better of three windows each: other programs of the machine are not the daemon's doing."""
    with contextlib.closing(daemon.connect()) as healthy:
        before = min(p99_ms(healthy) for _ in range(3))
        rss = daemon.rss_bytes()
        with crowd_of():
            during = min(p99_ms(healthy) for _ in range(3))
            grown = daemon.rss_bytes() - rss
        note(f"{n} {what}: p99 of a healthy client {before:.2f} ms before, {during:.2f} ms during; {grown >> 10} KiB more memory ({grown // n} bytes each)")
        # A sanitizer's allocator keeps what was given back.
        assert SANITIZED or grown < n * bytes_each + (8 << 20), f"{grown} bytes for {n} connections"
        # Only the long form runs alone on the machine.
        assert during <= (2 * before if LONG else 2 * before + 50), f"p99 {before:.2f} ms before, {during:.2f} ms during"


@case
def many_that_never_read_cost_bounded_memory_and_are_ended():
    with Daemon("--session-output-bytes", str(OUTPUT_BYTES), "--stalled-client", "15s" if LONG else "2s") as daemon:
        measured(daemon, "connections that never read", lambda: Crowd("silent", daemon, SILENT), PING_BYTES, SILENT)
        longest = 0
        with contextlib.closing(daemon.connect(120)) as admin, Crowd("silent", daemon, SILENT):
            deadline = time.monotonic() + 60 + SILENT // 50
            while True:
                start = time.monotonic()
                left = admin.call("health")["connections"]
                longest = max(longest, time.monotonic() - start)
                if left < 10:
                    break
                assert start < deadline, f"{left} of those that never read are still there"
                time.sleep(0.05)
            # The last few of them may still be on their way out.
            def closed():
                return [line for line in daemon.log_text().splitlines() if "closed:" in line]

            wait_for(lambda: len(closed()) >= SILENT, 60, "a line in the log for each that was ended")
        note(f"while all {SILENT} come, fill their sockets and are ended, an answer takes {longest:.2f} s at most")
        note(f"the log says of each: {closed()[-1][25:]}")
        with contextlib.closing(daemon.connect()) as client:
            client.call("ping")
        daemon.stop()


@case
def some_that_ask_for_much_and_never_read_cost_bounded_memory():
    with Daemon("--session-output-bytes", str(OUTPUT_BYTES), "--stalled-client", "60s") as daemon:
        measured(daemon, "connections that ask for much and never read", lambda: Crowd("greedy", daemon, GREEDY), HEALTH_BYTES, GREEDY)
        daemon.stop()


@case
def many_that_send_a_byte_a_second_cost_little():
    with Daemon() as daemon:
        measured(daemon, "connections that send a byte a second", lambda: Crowd("slow", daemon, SLOW), 4096, SLOW)
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


if len(sys.argv) > 1 and sys.argv[1] == "--crowd":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (20000, max(hard, 20000)))
    {"silent": silent, "greedy": greedy, "slow": slow}[sys.argv[2]](sys.argv[3], int(sys.argv[4]))
    sys.exit()
sys.exit(main())
