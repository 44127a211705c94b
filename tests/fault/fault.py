# SPDX-License-Identifier: Apache-2.0
"""What the fault tests share: how long they run, and the books that say what the daemon owes.

Each has a short form, which `make test` runs, and a long one, which `make soak` runs (FAULT_LONG=1). FAULT_SEED repeats the random choices of
a run: it is printed by each program. FAULT_KILLS, FAULT_PUBLISHES, FAULT_CUTS … override a single number.

The books are kept outside the daemon, by those who talk to it: what was attempted, what was acknowledged to the publisher, what was handled,
whose ack was answered. From them, and from nothing that the daemon says about itself, follows what must be there after any fault:
  - acknowledged to the publisher and its ack not even tried: still to be delivered;
  - its ack answered: its result is there, exactly as sent;
  - anything that was never attempted: never delivered.
"""
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import BIN, SANITIZED, Daemon, case, main, wait_for  # noqa: E402,F401
from omni_wire import Omni, OmniError  # noqa: E402,F401

LONG = os.environ.get("FAULT_LONG", "") not in ("", "0")
SEED = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
TOOLS = os.path.join(BIN, "../tests/bin")
rng = random.Random(SEED)
print(f"# FAULT_SEED={SEED}", flush=True)


def amount(name, short, long):
    """FAULT_NAME, or the number of this form."""
    return int(os.environ.get("FAULT_" + name) or (long if LONG else short))


def note(text):
    print("#", text, flush=True)


def lines(path):
    try:
        with open(path, encoding="ascii") as f:
            return f.read().splitlines()
    except FileNotFoundError:
        return []


class Books:
    """What one producer and one agent on one topic, and one who sets a configuration key, were told by the daemon."""

    def __init__(self, topic="work", agent="clerk"):
        self.topic, self.agent = topic, agent
        self.attempted = set()
        self.published = set()  # acknowledged to the publisher
        self.handled = {}  # id -> how often it was delivered
        self.tried = set()  # an ack was sent; whether it arrived is not known
        self.acked = {}  # id -> result of an answered ack
        self.checked = set()  # those of them whose result was seen
        self.in_doubt = lambda: False  # whether what is answered now may be lost for a reason that is not the daemon's
        self.settings = {}  # key -> the values that it may have: the last one answered, and those tried after it

    def owed(self):
        return self.published - self.tried

    # -- the daemon's users. Each may end with OmniError (a typed error) or OSError (the connection, or the daemon, is gone).
    def publish(self, client, n=1, size=100):
        ids = [f"{self.topic}-{len(self.attempted) + i}" for i in range(n)]
        self.attempted.update(ids)
        tasks = [{"id": i, "topic": self.topic, "payload": {"content": {"id": i, "filling": "x" * size}}} for i in ids]
        refused = None
        for task, outcome in zip(tasks, client.call("task.publish", tasks=tasks)["results"]):
            if "error" in outcome:
                refused = OmniError(outcome["error"])
            else:
                assert outcome["id"] == task["id"]
                if not self.in_doubt():
                    self.published.add(task["id"])
        if refused:
            raise refused

    def serve(self, client):
        return client.call("agent.register", topic=self.topic, name=self.agent, config={"prefetch": 100, "dlq_retry_limit": 1000, "retry_backoff_ms": 1})

    def take(self, client, timeout):
        """Everything delivered by now; waits so long for a first one."""
        tasks = []
        while True:
            task = client.next_task(timeout if not tasks else 0.001)
            if task is None:
                return tasks
            assert task["id"] in self.attempted, f"{task['id']} was never published"
            self.handled[task["id"]] = self.handled.get(task["id"], 0) + 1
            tasks.append(task)

    def ack(self, client, tasks):
        if not tasks:
            return
        results = {t["id"]: {"of": t["id"], "attempt": t["attempt"]} for t in tasks}
        self.tried.update(results)
        request = client.start("task.ack", deliveries=[{"delivery": t["delivery"], "result": results[t["id"]]} for t in tasks])
        client.finish(request)
        if not self.in_doubt():
            self.acked.update(results)

    def set(self, client, key, value):
        tried = self.settings.setdefault(key, [None])
        tried.append(value)
        client.call("config.set", key=key, value=value)
        if not self.in_doubt():
            self.settings[key] = [value]

    # -- settling up
    def drain(self, client, timeout=20):
        """Serves until nothing is owed, and says what does not come."""
        self.wait_for_storage(client)  # until its files are open, an ack's result is refused
        self.serve(client)
        deadline = time.monotonic() + timeout
        while self.owed():
            self.ack(client, self.take(client, 0.2))
            if time.monotonic() > deadline:
                lost = sorted(self.owed())
                raise AssertionError(f"{len(lost)} of {len(self.published)} acknowledged tasks are lost: {lost[:5]}")

    def check_results(self, client, ids=None):
        """Each answered ack's result is there. A later delivery of the same task (its first ack's answer was lost) may have replaced it."""
        ids = list(self.acked if ids is None else ids)
        self.wait_for_storage(client)
        for start in range(0, len(ids), 500):
            for i, request in [(i, client.start("task.get", id=i, agent=self.agent)) for i in ids[start : start + 500]]:
                try:
                    record = client.finish(request)
                except OmniError as e:
                    raise AssertionError(f"the result of {i} is lost: {e}") from e
                assert record["status"] == "completed" and record["result"]["of"] == i, record

    @staticmethod
    def wait_for_storage(client, timeout=20):
        """A daemon whose files take longer than a second to open serves meanwhile, and says `unavailable` of what is in them."""
        def is_there():
            try:
                return client.call("storage.health")
            except OmniError as e:
                assert e.kind == "unavailable", e
                return None

        wait_for(is_there, timeout, "the storage")

    def check_new_results(self, client, others):
        """Those whose ack was answered since the last time, and so many others: a walk over thousands of faults looks at each a few times, not at all
        of them each time."""
        new = [i for i in self.acked if i not in self.checked]
        self.check_results(client, new + rng.sample(sorted(self.checked), min(others, len(self.checked))))
        self.checked.update(new)

    def check_settings(self, client):
        for key, values in self.settings.items():
            try:
                value = client.call("config.get", key=key)["value"]
            except OmniError as e:
                assert e.kind == "not_found", e
                value = None
            assert value in values, f"{key} is {value!r}, not one of {values}"

    def check(self, daemon, timeout=20, others=None):
        """All that is owed and known; of results that were seen before only so many, if `others` says how many."""
        client = daemon.connect()
        try:
            self.drain(client, timeout)
            if others is None:
                self.check_results(client)
            else:
                self.check_new_results(client, others)
            self.check_settings(client)
        finally:
            client.close()
