#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the daemon while a producer and two agents run: they carry on by themselves, nothing acknowledged is lost, no result is missing."""
import collections
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import BIN, SANITIZED, Daemon, case, main, wait_for  # noqa: E402

TOOLS = os.path.join(BIN, "../tests/bin")


def lines(path):
    with open(path, encoding="ascii") as f:
        return f.read().splitlines()


@case
def a_producer_and_two_agents_carry_on_when_the_daemon_is_killed():
    count, kills = (4000, 3) if SANITIZED else (20000, 5)
    with Daemon() as d:
        def tool(name, *arguments):
            return subprocess.Popen([os.path.join(TOOLS, name), *arguments], env=d.env, cwd=d.folder, stdin=subprocess.DEVNULL)

        d.connect().call("hello")
        agents = [tool("recording_agent", "work", "a", "handled-a"), tool("recording_agent", "work", "b", "handled-b")]
        admin = d.connect()
        wait_for(lambda: len(admin.call("bus.groups", topic="work")["groups"]) == 2, what="two groups")
        producer = tool("recording_producer", "work", str(count), "published")
        try:
            for _ in range(kills):
                time.sleep(0.2)
                d.kill(signal.SIGKILL)
                d.start()
            assert producer.wait(120) == 0, "the producer failed"
            published = lines(os.path.join(d.folder, "published"))
            assert len(published) == count and len(set(published)) == count
            admin = d.connect()
            wait_for(lambda: all(g["lag"] + g["leased"] + g["retrying"] == 0 for g in admin.call("bus.groups", topic="work")["groups"]), 120, "an empty topic")
        finally:
            for a in agents:
                a.send_signal(signal.SIGTERM)
            statuses = [a.wait(30) for a in agents]
        assert statuses == [0, 0], statuses
        known = set(published)
        for name in ("a", "b"):
            handled = collections.Counter(line.split()[0] for line in lines(os.path.join(d.folder, "handled-" + name)))
            lost = [i for i in published if i not in handled]
            assert not lost, f"{len(lost)} acknowledged and never handled by {name}"
            # handled again only what was under way at a kill: with the agent (10 leased, 10 whose ack was on its way), or with the producer, which sends
            # again what was not answered (500 in flight)
            again = sum(n - 1 for task, n in handled.items() if task in known)
            assert again <= kills * (10 + 10 + 500), f"{again} handled again by {name} after {kills} kills"
            missing = []
            requests = {admin.start("task.get", id=i, agent=name): i for i in published[: 900]}
            for request in requests:
                record = admin.finish(request)
                if record["status"] != "completed" or record["result"] != record["content"]:
                    missing.append(record)
            assert not missing, missing[:3]
        total, cursor = 0, None
        while True:
            page = admin.call("task.list", topic="work", agent="a", limit=1000, cursor=cursor)
            total += len(page["tasks"])
            cursor = page.get("cursor")
            if not cursor:
                break
        assert total >= count, f"{count - total} results are missing"
        d.stop()


@case
def a_c_agent_a_shell_agent_and_a_client_of_the_bare_protocol_work_together():
    with Daemon() as d:
        c_agent = subprocess.Popen([os.path.join(TOOLS, "recording_agent"), "mix", "in-c", "handled"], env=d.env, cwd=d.folder, stdin=subprocess.DEVNULL)
        shell = subprocess.Popen([os.path.join(BIN, "omnictl"), "agent", "run", "--topic", "mix", "--name", "in-shell", "--", "sh", "-c", "tr a-z A-Z"],
                                 env=d.env, cwd=d.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            c = d.connect()
            c.register("mix", "in-python", prefetch=100)
            wait_for(lambda: len([a for a in c.call("agent.list", topic="mix")["agents"] if a["workers"]]) == 3, what="three agents")
            ids = [c.publish("mix", f"word {n}") for n in range(50)]
            for _ in ids:
                task = c.next_task()
                c.ack(task, len(task["payload"]["content"]))
            for n, task_id in enumerate(ids):
                assert c.call("task.get", id=task_id, agent="in-c", wait_ms=10000)["result"] == f"word {n}"
                assert c.call("task.get", id=task_id, agent="in-shell", wait_ms=10000)["result"] == f"WORD {n}"
                assert c.call("task.get", id=task_id, agent="in-python")["result"] == len(f"word {n}")
        finally:
            for p in (c_agent, shell):
                p.send_signal(signal.SIGTERM)
            statuses = [p.wait(30) for p in (c_agent, shell)]
        assert statuses == [0, 0], statuses
        d.stop()


main()
