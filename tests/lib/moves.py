# SPDX-License-Identifier: Apache-2.0
"""Moving a daemon from one storage to another, while agents work and the daemon dies: what the tests of storages share."""
import collections
import contextlib
import json
import signal
import threading
import time

from harness import Daemon
from omni_wire import OmniError

KINDS = ("agents", "results", "metrics", "config", "keys")
QUICK = {"STORAGE_COPY_RATE": "0", "METRICS_INTERVAL": "1s", "RETRY_BACKOFF": "10ms"}


def daemon(storage="json:one", env=None, start=True):
    return Daemon(env={"STORAGE_URL": storage, **QUICK, **(env or {})}, start=start)


def store_of(server):
    return server.values["store_url"].replace("{case}", "moves")


def kind_of(url):
    return url.split(":")[0]


def status(client, **more):
    return client.call("storage.status", **more)


def follow(client, until, timeout=120):
    """The status, once `until` says so: told by the daemon, not asked for again and again. It may take as long as it gets on."""
    now, far, end = status(client), None, 0
    while not until(now):
        at = (now.get("done"), (now.get("verify") or {}).get("compared"))
        if far != at:
            far, end = at, time.monotonic() + timeout
        assert time.monotonic() < end, now
        now = status(client, seen=now["revision"], wait_ms=5000)
    return now


def in_sync(now):
    return now["phase"] not in ("check", "copy") and now["queued"] == 0 and all(k["state"] in ("copied", "follows") for k in now["kinds"].values())


def verified(client):
    client.call("storage.verify")
    found = follow(client, lambda s: not s["verify"]["running"])["verify"]
    assert "error" not in found, found
    return found


def dump(client, kind):
    entries, cursor = [], None
    while True:
        page = client.call("storage.export", kind=kind, **({"cursor": cursor} if cursor else {}))
        entries += page["entries"]
        cursor = page.get("cursor")
        if not cursor:
            return entries


class Work:
    """A publisher, an agent and one who sets and deletes settings, each of which outlives the daemon's deaths."""

    def __init__(self, d, rate=0):
        self.d, self.interval = d, 1 / rate if rate else 0
        self.over, self.done, self.all_out = threading.Event(), threading.Event(), threading.Event()
        self.published, self.acked, self.settings, self.failures, self.due = [], set(), {}, [], time.monotonic()
        self.threads = [threading.Thread(target=self.run, args=(part,)) for part in (self.publish, self.serve, self.configure)]
        for t in self.threads:
            t.start()

    def run(self, part):
        while not self.over.is_set():
            try:
                with contextlib.closing(self.d.connect(10)) as client:
                    part(client)
            except (OSError, OmniError) as e:
                if isinstance(e, OmniError) and e.kind not in ("unavailable", "timeout", "conflict"):
                    self.failures.append(repr(e))
                self.over.wait(0.02)
            except AssertionError:
                pass  # no task for a while, or the connection's end

    def publish(self, client):
        while not self.over.is_set() and not self.done.is_set():
            name = f"t{len(self.published)}-{time.monotonic_ns()}"
            client.publish("work", {"n": len(self.published)}, id=name, idempotency_key=name)
            self.published.append(name)
            if self.interval:
                self.done.wait(max(0, self.due - time.monotonic()))
                self.due = max(self.due, time.monotonic() - 1) + self.interval  # what it is late by, it makes up for a second
        self.all_out.set()
        self.over.wait(0.1)

    def serve(self, client):
        client.register("work", "clerk", prefetch=20)
        acks = collections.deque()  # under way: as many at once as tasks come
        while not self.over.is_set():
            if acks and not client.deliveries:
                request, name = acks.popleft()
                client.finish(request)
                self.acked.add(name)
                continue
            task = client.next_task(0.5)
            if not task:
                raise OSError("closed")
            ack = {"delivery": task["delivery"], "result": {"id": task["id"]}}
            acks.append((client.start("task.ack", deliveries=[ack]), task["id"]))

    def configure(self, client):
        n = 0
        while not self.over.is_set() and not self.done.is_set():
            key, n = f"s{n % 50}", n + 1
            value = [n, time.monotonic_ns()]
            self.settings[key] = None  # unknown until it is answered
            if n % 7 == 0:
                client.call("config.delete", key=key)
                self.settings[key] = "deleted"
            else:
                client.call("config.set", key=key, value=value)
                self.settings[key] = value
            self.done.wait(10 * self.interval)  # with a rate: one for ten tasks, or the settings would be most of the load
        self.over.wait(0.1)

    def finish(self):
        self.done.set()
        assert self.all_out.wait(60)
        with contextlib.closing(self.d.connect(60)) as client:
            for name in self.published:
                if name not in self.acked:  # not yet, or its answer was lost with the daemon
                    assert client.call("task.get", id=name, wait_ms=60000)["status"] == "completed", name

    def end(self):
        self.over.set()
        for t in self.threads:
            t.join()

    def check(self, client):
        assert not self.failures, self.failures[:5]
        config = client.call("config.list")["config"]
        for key, value in self.settings.items():
            if value == "deleted":
                assert key not in config, (key, config[key])
            elif value is not None:
                assert config.get(key) == value, (key, value, config.get(key))
        results = [(e["key"], e["name"]) for e in dump(client, "results")]
        assert len(results) == len(set(results)), "a result twice"
        missing = set(self.published) - {key for key, _ in results}
        assert not missing, f"{len(missing)} of {len(self.published)} results are missing"
        metrics = [e["value"] for e in dump(client, "metrics")]
        texts = [json.dumps(m, sort_keys=True) for m in metrics]
        assert len(texts) == len(set(texts)), "a metric twice"


def move(source, target, kills=10, preload=2000, rate=0):
    """Moves while work goes on and the daemon dies; then the new one alone has all."""
    metrics = min(preload, 2000)
    with daemon(source, {"STORAGE_COPY_RATE": "4000"}, start=False) as d:
        d.start()
        with contextlib.closing(d.connect()) as client:
            for start in range(0, preload, 200):
                client.call("storage.import", kind="results", entries=[
                    {"key": f"old{i}", "name": "clerk", "saved_ms": 1700000000000 + i, "topic": "work", "status": "completed",
                     "value": {"task_id": f"old{i}", "n": i, "text": "x" * 200}} for i in range(start, start + 200)])
                client.call("storage.import", kind="metrics", entries=[
                    {"saved_ms": 1700000000000 + i, "topic": "work", "value": {"event": "old", "n": i, "saved_at": 1700000000 + i / 1000}}
                    for i in range(start, min(start + 200, metrics))])
        work, began = Work(d, rate), time.monotonic()
        try:
            with contextlib.closing(d.connect()) as client:
                client.call("storage.migrate", to=target)
            for n in range(kills):
                time.sleep(0.05 + 0.07 * n)  # anywhere on the way
                d.kill(signal.SIGKILL)
                d.start()
                if n == kills - 1:
                    break
            with contextlib.closing(d.connect(60)) as client:
                if status(client)["phase"] == "none":  # it died before the beginning was durable
                    client.call("storage.migrate", to=target)
                follow(client, in_sync, 240)
                assert verified(client)["differences"] == 0, status(client)["verify"]
                client.call("storage.switch")
                d.kill(signal.SIGKILL)
                d.start()
            with contextlib.closing(d.connect(60)) as client:
                assert status(client)["phase"] == "read"
                for _ in range(20):
                    client.call("storage.switch")
                    if follow(client, lambda s: not s["switching"])["phase"] == "primary":
                        break
                assert status(client)["phase"] == "primary", status(client)
                d.kill(signal.SIGKILL)
                d.start()
            with contextlib.closing(d.connect(60)) as client:
                assert status(client)["phase"] == "primary"
                work.finish()
            work.end()
            took = time.monotonic() - began
            with contextlib.closing(d.connect(60)) as client:
                follow(client, in_sync)
                found = verified(client)
                assert found["differences"] == 0, found
                work.check(client)
                client.call("storage.switch")
                follow(client, lambda s: s["phase"] == "none")
            d.kill(signal.SIGKILL)
            d.start(env={"STORAGE_URL": target})
            with contextlib.closing(d.connect(60)) as client:
                work.check(client)
                old = {e["key"]: e["value"]["n"] for e in dump(client, "results") if e["key"].startswith("old")}
                assert len(old) == preload and all(old[f"old{i}"] == i for i in range(preload))
                assert sum(e["value"].get("event") == "old" for e in dump(client, "metrics")) == metrics
                print(f"# {kind_of(source)} to {kind_of(target)}: {preload} results, {len(work.published)} tasks meanwhile, {took:.0f} s", flush=True)
            d.stop()
        finally:
            work.end()
