#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A migration whose daemon dies at each of its writes, syncs, renames and other calls on files in turn, and is started again: nothing that was
acknowledged is lost, nothing that was deleted comes back, nothing is there twice, and both storages hold the same.

Long: every call; short: every few.
"""
import contextlib
import errno
import json

from fault import LONG, case, main, note
from harness import wait_for
from inject import DIE, FaultyDaemon
from moves import dump
from omni_wire import OmniError

CALLS = "fsync write open truncate rename"


class Gone(Exception):
    """The daemon died."""


class Story:
    """What is done, whoever dies: settings set and deleted, metrics and results written, and the migration a step further each time."""

    def __init__(self, daemon):
        self.daemon, self.known, self.results, self.metrics = daemon, {}, set(), set()
        self.old, self.new = f"json:{daemon.state}/one", f"json:{daemon.state}/two"

    def call(self, client, method, **params):
        try:
            return client.call(method, **params)
        except OmniError as e:
            if e.kind not in ("unavailable", "timeout", "internal", "limit"):
                raise
            return None
        except (OSError, AssertionError) as e:
            raise Gone() from e

    def write(self, client, n):
        for i in range(3):
            key = f"k{(n + i) % 7}"
            self.known[key] = None
            if (n + i) % 3 == 2:
                if self.call(client, "config.delete", key=key) is not None:
                    self.known[key] = "deleted"
            elif self.call(client, "config.set", key=key, value=[n, i]) is not None:
                self.known[key] = [n, i]
        at = 1700000000000 + n
        if self.call(client, "storage.import", kind="results", entries=[
                {"key": f"r{n}", "name": "a", "saved_ms": at, "topic": "t", "status": "completed", "value": {"task_id": f"r{n}", "n": n}}]) is not None:
            self.results.add(f"r{n}")
        if self.call(client, "storage.import", kind="metrics", entries=[{"saved_ms": at, "value": {"n": n, "saved_at": at / 1000}}]) is not None:
            self.metrics.add(n)
        if n % 4 == 3:
            self.results.discard(f"r{n - 1}")  # there or not, until it is answered
            self.call(client, "task.delete", id=f"r{n - 1}")

    def follow(self, client, until):
        now = self.call(client, "storage.status")
        while now and not until(now):
            now = self.call(client, "storage.status", seen=now["revision"], wait_ms=2000)
        return now

    def step(self, client, now):
        """The next step, from wherever it is."""
        if now["phase"] in ("none", "ending"):
            self.call(client, "storage.migrate", to=self.new, replace=True)
        elif now["phase"] in ("ready", "read", "primary"):
            self.call(client, "storage.switch")
        self.follow(client, lambda s: s["phase"] not in ("check", "copy", "ending") and not s.get("switching"))

    def is_over(self, now):
        return now["phase"] == "none" and now["storage"] == self.new

    def go(self, n=100):
        with contextlib.closing(self.daemon.connect()) as client:
            for _ in range(30):
                n += 1
                self.write(client, n)
                now = self.call(client, "storage.status")
                if not now:
                    continue
                if self.is_over(now):
                    return
                self.step(client, now)
            raise AssertionError(f"no end: {now}")

    def check(self, what):
        with contextlib.closing(self.daemon.connect()) as client:
            config = {k: v for k, v in client.call("config.list")["config"].items() if k[0] != "_"}
            for key, value in self.known.items():
                if value == "deleted":
                    assert key not in config, f"{what}: {key} came back"
                elif value is not None:
                    assert config.get(key) == value, f"{what}: {key} is {config.get(key)}, not {value}"
            results = [e["key"] for e in dump(client, "results")]
            assert len(results) == len(set(results)) and self.results <= set(results), f"{what}: {sorted(self.results - set(results))} are missing"
            metrics = [e["value"]["n"] for e in dump(client, "metrics") if "n" in e["value"]]
            assert len(metrics) == len(set(metrics)), f"{what}: a metric twice: {sorted(metrics)}"
            assert self.metrics <= set(metrics), f"{what}: {sorted(self.metrics - set(metrics))} are missing"

    def same(self, what):
        """Both sides hold the same, where there are two."""
        with contextlib.closing(self.daemon.connect()) as client:
            now = self.follow(client, lambda s: s["phase"] in ("none", "ending") or (
                s["phase"] not in ("check", "copy") and s["queued"] == 0 and all(k["state"] == "copied" for k in s["kinds"].values())))
            if now["phase"] in ("none", "ending"):
                return
            client.call("storage.verify")
            found = self.follow(client, lambda s: not s["verify"]["running"])["verify"]
            assert found["differences"] == 0, f"{what}: {json.dumps(found)}"


def start(daemon):
    daemon.start(env={"STORAGE_URL": f"json:{daemon.state}/one", "STORAGE_COPY_RATE": "0"})


def walk(error, what, step, times=1):
    points, n = 0, 1
    while True:
        with FaultyDaemon(start=False) as daemon:
            start(daemon)
            story = Story(daemon)
            with contextlib.closing(daemon.connect()) as client:
                for i in range(5):
                    story.write(client, i)
            daemon.arm(CALLS, error=error, nth=n, times=times)
            with contextlib.suppress(Gone, OSError):
                story.go()
            reached = daemon.disarm()[1] > 0
            if reached and error == DIE:
                daemon.process.wait(30)
                start(daemon)
            name = f"{what} at call {n}"
            # A disk that failed is looked at again by the storage itself, with a pause.
            wait_for(lambda: is_up(daemon), 30, f"{name}: storage")
            story.check(name)
            story.same(name)
            story.go(200)
            story.check(name)
            daemon.kill()
            daemon.start(env={"STORAGE_URL": story.new})
            story.check(name)
            daemon.stop()
        if not reached:
            break
        points += 1
        n += step
    assert points, f"{what}: no call was reached"
    note(f"{what}: {points} points, the last one call {n - step}")


def is_up(daemon):
    with contextlib.closing(daemon.connect()) as client:
        return client.call("storage.health")["status"] == "up"


@case
def a_daemon_that_dies_at_any_call_of_a_migration_goes_on_where_it_was():
    walk(DIE, "death", 1 if LONG else 11)


@case
def a_disk_that_is_full_at_any_call_of_a_migration_loses_nothing():
    walk(errno.ENOSPC, "full disk", 1 if LONG else 23)


main()
