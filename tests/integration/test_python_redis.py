#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python OmniDaemon (the real package, from PyPI) and ours side by side on one Redis: each reads, handles and steers what the other wrote."""
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main, wait_for  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import SCRIPTS, Server  # noqa: E402

# Runs inside the package's environment, with its own storage, bus and SDK: does what each line of its input says, and answers each with a line.
DRIVER = r"""
import asyncio, json, logging, sys
logging.disable(logging.CRITICAL)
from omnidaemon import OmniDaemonSDK
from omnidaemon.event_bus.redis_stream_bus import RedisStreamEventBus
from omnidaemon.schemas import AgentConfig, EventEnvelope, PayloadBase, SubscriptionConfig
from omnidaemon.storage.redis_store import RedisStore

url, prefix = sys.argv[1:3]
store = RedisStore(url, prefix)
bus = RedisStreamEventBus(url, reclaim_interval=0.2, store=store)
sdk = OmniDaemonSDK(event_bus=bus, store=store)
seen = {}

def agent(name, fails):
    async def handle(message):
        seen.setdefault(name, []).append(message)
        if fails:
            raise ValueError("no luck in Python")
        await asyncio.sleep(0.002)
        return {"by": "python", "got": message["content"]}
    return handle

async def do(what, *args, **more):
    if what == "agent":
        topic, name = args
        config = SubscriptionConfig(**more.get("config", {}))
        await sdk.register_agent(AgentConfig(name=name, topic=topic, callback=agent(name, more.get("fails")), description=more.get("description", ""),
                                             tools=more.get("tools", []), config=config))
    elif what == "publish":
        topic, content = args
        return await sdk.publish_task(EventEnvelope(topic=topic, payload=PayloadBase(content=content, reply_to=more.pop("reply_to", None)), **more))
    elif what == "seen":
        return seen.get(args[0], [])
    else:
        side, call = what.split(".")
        return await getattr({"store": store, "sdk": sdk, "bus": bus}[side], call)(*args, **more)

async def serve():
    await store.connect()
    await bus.connect()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        try:
            answer = {"is": await do(request["do"], *request["args"], **request["more"])}
        except Exception as e:
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer, default=str), flush=True)

asyncio.run(serve())
"""


class Python:
    """The package in a process of its own. Use it in `with`."""

    def __init__(self, url, prefix):
        build = subprocess.run([os.path.join(SCRIPTS, "python.sh"), "build"], capture_output=True, text=True, check=False)
        assert build.returncode == 0, build.stderr
        self.process = subprocess.Popen([build.stdout.strip(), "-c", DRIVER, url, prefix], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, what, *args, **more):
        self.process.stdin.write(json.dumps({"do": what, "args": args, "more": more}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the Python one ended with {self.process.wait()}"
        answer = json.loads(line)
        assert "error" not in answer, (what, args, answer["error"])
        return answer["is"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


_server = None
_numbers = itertools.count()


@contextlib.contextmanager
def both(bus=False):
    """The two of them on keys of this case alone: our daemon, a client of it, and the Python one."""
    url = _server.values["bus_url"]
    prefix = f"case{next(_numbers)}"
    with Daemon("--storage-url", f"{url}?prefix={prefix}", "--event-bus-url", url if bus else "local:", env={"METRICS_INTERVAL": "1s"}) as d, \
            Python(url, prefix) as python:
        c = d.connect()
        yield d, c, python
        c.close()
        d.stop()


def show(d, *arguments):
    run = d.ctl(*arguments, "--format", "json")
    assert run.returncode == 0, (arguments, run.stderr)
    return json.loads(run.stdout)


def record(task_id, **more):
    """What the Python one saves for a task of `greet`."""
    return {"content": {"name": "w\u00f6rld", "big": 12345678901234567890123}, "webhook": None, "reply_to": None, "topic": "greet", "task_id": task_id,
            "correlation_id": None, "causation_id": None, "source": None, "delivery_attempts": 1, "created_at": time.time(), "agent": "greeter",
            "processing_consumer": "consumer:greeter-1", "runner_id": "r", "status": "completed", "result": "fine", "timestamp": time.time(), **more}


def handle(c, result):
    """Our agent's next task, acknowledged with this result; its id."""
    task = c.next_task()
    assert task, "no task came"
    c.ack(task, result)
    return task["id"]


# -- the storage ----------------------------------------------------------------------------------------------------------------


@case
def what_the_python_one_wrote_is_read_by_ours():
    with both() as (d, c, python):
        python("store.add_agent", "greet", {"name": "greeter", "callback_name": "answer", "tools": ["search"], "description": "said \u00e9",
                                            "config": {"consumer_count": 2, "reclaim_idle_ms": 6000, "dlq_retry_limit": 3}})
        python("store.add_agent", "greet", {"name": "second"})
        python("store.add_agent", "other:topic", {"name": "greeter"})
        for i in range(3):
            python("store.save_result", f"t-{i}", record(f"t-{i}", result={"n": i}), ttl_seconds=86400)
        python("store.save_result", "for-ever", record("for-ever", result=None))
        python("store.save_result", "short", record("short"), ttl_seconds=1)
        python("store.save_metric", {"topic": "greet", "agent": "greeter", "event": "task_processed"})
        python("store.save_config", "colour", {"name": "bl\u00e5", "rgb": [0, 0, 255]})
        python("store.save_config", "nothing", None)
        python("store.save_config", "_subscription_active:group:greet:second", False)
        python("store.save_config", "_subscription_active:group:greet:greeter", True)

        wait_for(lambda: d.ctl("task", "get", "short").returncode == 4, what="the end of what lives a second")
        assert [t["task_id"] for t in show(d, "task", "list")["tasks"]] == ["for-ever", "t-2", "t-1", "t-0"]
        assert [t["task_id"] for t in show(d, "task", "list", "--topic", "greet", "--agent", "greeter", "--status", "completed", "--limit", "2")["tasks"]] == \
            ["for-ever", "t-2"]
        assert show(d, "task", "list", "--topic", "other")["tasks"] == []
        got = show(d, "task", "get", "t-1")
        assert got["result"] == {"n": 1} and got["agent"] == "greeter" and got["content"] == record("")["content"], got
        agents = {(a["topic"], a["name"]): a for a in show(d, "agent", "list")["agents"]}
        assert set(agents) == {("greet", "greeter"), ("greet", "second"), ("other:topic", "greeter")}, agents
        greeter = agents["greet", "greeter"]
        assert greeter["tools"] == ["search"] and greeter["description"] == "said é" and greeter["callback_name"] == "answer", greeter
        assert greeter["config"]["dlq_retry_limit"] == 3 and not greeter["paused"] and agents["greet", "second"]["paused"]
        assert [a["name"] for a in c.call("agent.list", topic="other:topic")["agents"]] == ["greeter"]
        assert show(d, "config", "list") == {"colour": {"name": "blå", "rgb": [0, 0, 255]}, "nothing": None, "_subscription_active:group:greet:greeter": True,
                                             "_subscription_active:group:greet:second": False}, show(d, "config", "list")
        health = show(d, "storage", "health")
        assert (health["agents"], health["metrics"]) == (3, 1) and health["durability"] == "strong", health


@case
def what_ours_wrote_is_read_by_the_python_one():
    with both() as (d, c, python):
        c.register("greet", "greeter", callback_name="serve", dlq_retry_limit=0)
        c.call("agent.register", topic="greet", name="another", description="ours", tools=[{"name": "t"}])
        c.call("agent.pause", topic="greet", name="another")
        done = c.publish("greet", {"name": "wörld", "n": 1.50})
        handle(c, {"greeting": "hällo"})
        failed = c.publish("greet", 2)
        c.call("task.fail", delivery=c.next_task()["delivery"], error={"message": "no luck", "type": "Unlucky"}, retry=False)
        c.call("config.set", key="size", value=[1, {"two": None}])
        wait_for(lambda: len(c.call("task.list", limit=10)["tasks"]) == 2, what="both results")

        agents = {a["name"]: a for a in python("sdk.list_agents")["greet"]}
        assert set(agents) == {"greeter", "another"}
        assert agents["another"]["description"] == "ours" and agents["another"]["tools"] == [{"name": "t"}], agents
        assert python("sdk.get_agent", "greet", "greeter")["callback"] == "serve"
        assert python("sdk.get_agent", "greet", "greeter")["config"]["dlq_retry_limit"] == 0
        entries = {e["task_id"]: e for e in python("store.list_results")}
        assert set(entries) == {done, failed} and abs(entries[done]["saved_at"] - time.time()) < 60, entries
        got = python("sdk.get_result", done)
        for member in ("content", "webhook", "reply_to", "topic", "task_id", "correlation_id", "causation_id", "source", "delivery_attempts", "created_at",
                       "runner_id", "status", "result", "timestamp"):
            assert member in got, (member, got)
        assert got["status"] == "completed" and got["result"] == {"greeting": "hällo"} and got["content"]["name"] == "wörld"
        assert python("sdk.get_result", failed)["error_type"] == "Unlucky"
        assert python("store.get_config", "size") == [1, {"two": None}]
        assert python("store.get_config", "_subscription_active:group:greet:another") is False
        assert python("store.get_config", "_subscription_active:group:greet:greeter") is True
        wait_for(lambda: python("store.get_metrics"), what="metrics")
        assert all(isinstance(m["saved_at"], float) for m in python("store.get_metrics"))
        assert python("sdk.metrics") is not None, "ours do not disturb its own"


@case
def results_of_several_agents_on_one_task_are_kept_and_the_python_one_reads_the_newest():
    with both() as (d, c, python):
        c.register("greet", "first")
        other = d.connect()
        other.register("greet", "second")
        task_id = c.publish("greet", 1)
        handle(c, "of the first")
        wait_for(lambda: python("sdk.get_result", task_id), what="the first result")
        time.sleep(0.005)
        handle(other, "of the second")
        wait_for(lambda: python("sdk.get_result", task_id)["result"] == "of the second", what="the second result")
        assert len(python("store.list_results")) == 1, "the Python one sees one result a task"
        assert [t["agent"] for t in c.call("task.list", limit=10)["tasks"]] == ["second", "first"]
        assert c.call("task.get", id=task_id, agent="first")["result"] == "of the first"
        assert c.call("task.get", id=task_id)["result"] == "of the second"
        # What the Python one saved is kept when ours saves another agent's.
        python("store.save_result", "t", record("t"), ttl_seconds=86400)
        c.call("agent.register", topic="more", name="mine")
        c.call("task.publish", task={"id": "t", "topic": "more", "payload": {"content": 1}})
        handle(c, "mine")
        wait_for(lambda: python("sdk.get_result", "t")["result"] == "mine", what="our result")
        assert c.call("task.get", id="t", agent="greeter")["result"] == "fine"
        assert {t["agent"] for t in c.call("task.list", limit=10)["tasks"] if t["task_id"] == "t"} == {"mine", "greeter"}
        # Gone for the one is gone for the other.
        assert python("sdk.delete_result", "t") is True
        for agent in ({}, {"agent": "mine"}, {"agent": "greeter"}):
            try:
                raise AssertionError(f"still there: {c.call('task.get', id='t', **agent)}")
            except OmniError as e:
                assert e.kind == "not_found", e
        assert c.call("task.delete", id=task_id)["deleted"] == 2
        assert python("sdk.get_result", task_id) is None and python("store.list_results") == []
        assert c.call("task.list", limit=10)["tasks"] == []
        other.close()


@case
def a_pause_by_the_one_is_seen_by_the_other():
    with both() as (d, c, python):
        c.register("greet", "greeter")
        python("bus.unsubscribe", "greet", "greeter")
        assert c.call("agent.get", topic="greet", name="greeter")["paused"]
        assert show(d, "agent", "list")["agents"][0]["paused"]
        c.call("agent.resume", topic="greet", name="greeter")
        assert python("store.get_config", "_subscription_active:group:greet:greeter") is True
        c.publish("greet", 1)
        handle(c, 1)
        python("store.save_config", "_subscription_active:group:greet:greeter", False)
        time.sleep(3.5)  # the daemon looks every 3 s
        c.publish("greet", 2)
        assert c.next_task(timeout=1) is None, "a paused agent gets a task"
        python("store.save_config", "_subscription_active:group:greet:greeter", True)
        assert c.next_task(timeout=10), "a resumed agent gets none"


@case
def what_the_one_deletes_or_clears_is_gone_for_the_other():
    with both() as (d, c, python):
        for name in ("a", "b"):
            python("store.add_agent", "greet", {"name": name})
            c.call("agent.register", topic="ours", name=name)
        python("store.delete_agent", "ours", "a")
        assert [a["name"] for a in c.call("agent.list", topic="ours")["agents"]] == ["b"]
        c.call("agent.delete", topic="greet", name="a")
        assert [a["name"] for a in python("store.get_agents_by_topic", "greet")] == ["b"]
        c.call("topic.delete", topic="greet")
        assert set(python("store.list_all_agents")) == {"ours"}
        python("store.delete_topic", "ours")
        assert c.call("agent.list")["agents"] == []

        def fill():
            python("store.save_result", "theirs", record("theirs"), ttl_seconds=60)
            python("store.save_config", "theirs", 1)
            python("store.add_agent", "greet", {"name": "theirs"})
            python("store.save_metric", {"topic": "greet"})
            c.call("config.set", key="ours", value=2)
            c.register("clear", "ours")
            c.publish("clear", 1)
            handle(c, 1)
            wait_for(lambda: len(c.call("task.list", limit=10)["tasks"]) == 2, what="both results")
        fill()
        cleared = python("store.clear_all")
        assert (cleared["agents"], cleared["results"]) == (2, 2), cleared
        assert c.call("task.list", limit=10)["tasks"] == [] and c.call("config.list")["config"] == {} and c.call("agent.list")["agents"] == []
        fill()
        cleared = c.call("storage.clear", what="all")["cleared"]
        assert (cleared["agents"], cleared["results"]) == (2, 2) and cleared["metrics"] >= 1, cleared
        assert python("store.list_results") == [] and python("store.list_all_agents") == {}
        assert python("store.get_config", "theirs") is None and python("store.get_config", "ours") is None


# -- the bus ----------------------------------------------------------------------------------------------------------------------


@case
def a_task_of_the_python_one_is_handled_by_ours_and_it_reads_the_result():
    with both(bus=True) as (d, c, python):
        topic = f"theirs-{os.getpid()}"
        first = python("publish", topic, {"before": "any agent"}, correlation_id="together", source="python")
        c.register(topic, "greeter")
        second = python("publish", topic, ["wörld", 12345678901234567890123])
        tasks = [c.next_task(), c.next_task()]
        assert [t["id"] for t in tasks] == [first, second], tasks
        assert tasks[0]["correlation_id"] == "together" and tasks[0]["source"] == "python" and tasks[0]["payload"]["content"] == {"before": "any agent"}
        for task in tasks:
            c.ack(task, {"by": "ours"})
        got = wait_for(lambda: python("sdk.get_result", second), what="the result")
        assert got["result"] == {"by": "ours"} and got["content"] == ["wörld", 12345678901234567890123] and got["status"] == "completed", got


@case
def a_task_of_ours_is_handled_by_the_python_one_and_ours_reads_the_result():
    with both(bus=True) as (d, c, python):
        topic = f"ours-{os.getpid()}"
        python("agent", topic, "greeter")
        reply = d.connect()
        reply.register(f"{topic}-replies", "reader")
        task_id = c.publish(topic, {"name": "wörld"}, reply_to=f"{topic}-replies", correlation_id="together", headers={"x": "y"})
        got = c.call("task.get", id=task_id, wait_ms=10000)
        assert got["result"] == {"by": "python", "got": {"name": "wörld"}} and got["agent"] == "greeter", got
        message = python("seen", "greeter")[0]
        assert message["task_id"] == task_id and message["correlation_id"] == "together" and message["processing_consumer"] == "consumer:greeter-1", message
        answer = reply.next_task()
        assert answer["payload"]["content"]["by"] == "python" and answer["causation_id"] == task_id and answer["correlation_id"] == "together", answer
        reply.close()


@case
def a_python_agent_and_ours_in_one_group_share_the_load():
    with both(bus=True) as (d, c, python):
        topic = f"shared-{os.getpid()}"
        n = 300
        python("agent", topic, "greeter")
        script = os.path.join(d.folder, "agent.sh")
        with open(script, "w", encoding="ascii") as f:
            f.write('#!/bin/sh\ncat >/dev/null; echo \'{"by": "ours"}\'\n')
        os.chmod(script, 0o755)
        run = subprocess.Popen([os.path.join(os.environ.get("OMNI_BIN", "build/bin"), "omnictl"), "agent", "run", "--topic", topic, "--name", "greeter",
                                "--workers", "2", "--", script], env=d.env, stdin=subprocess.DEVNULL)
        try:
            wait_for(lambda: any(g["agent"] == "greeter" and g["workers"] for g in c.call("bus.groups", topic=topic)["groups"]), what="our agent")
            ids = [c.publish(topic, {"n": i}) if i % 2 else python("publish", topic, {"n": i}) for i in range(n)]
            by = {i: c.call("task.get", id=i, wait_ms=30000)["result"]["by"] for i in ids}
            theirs = [m["task_id"] for m in python("seen", "greeter")]
            assert set(by.values()) == {"ours", "python"}, "one of the two did all of it"
            assert len(theirs) == len(set(theirs)) and set(theirs) == {i for i in ids if by[i] == "python"}, "some were handled twice"
            groups = c.call("bus.groups", topic=topic)["groups"]
            assert [(g["agent"], g["lag"], g["leased"]) for g in groups] == [("greeter", 0, 0)], groups
        finally:
            run.terminate()
            run.wait(20)


@case
def dead_letters_of_the_one_are_listed_and_replayed_by_the_other():
    with both(bus=True) as (d, c, python):
        topic = f"dead-{os.getpid()}"
        # Theirs, by our tools.
        python("agent", topic, "theirs", fails=True, config={"reclaim_idle_ms": 100, "dlq_retry_limit": 1})
        task_id = python("publish", topic, {"n": 1})
        letters = wait_for(lambda: show(d, "dlq", "list", topic, "theirs")["dead_letters"], timeout=20, what="its dead letter")
        assert len(letters) == 1 and letters[0]["task"]["id"] == task_id and letters[0]["task"]["payload"]["content"] == {"n": 1}, letters
        assert python("sdk.inspect_dlq", topic), "the Python one does not see its own"
        python("bus.unsubscribe", topic, "theirs")
        c.call("agent.resume", topic=topic, name="theirs")
        c.register(topic, "theirs")
        assert d.ctl("dlq", "replay", topic, "theirs", "--all", "--yes").returncode == 0
        assert handle(c, "at last") == task_id
        assert show(d, "dlq", "list", topic, "theirs")["dead_letters"] == []
        # Ours, by theirs, which can list them and no more.
        topic = f"{topic}-too"
        other = d.connect()
        other.register(topic, "ours", dlq_retry_limit=0)
        task_id = other.publish(topic, {"n": 2})
        other.call("task.fail", delivery=other.next_task()["delivery"], error={"message": "no luck", "type": "Unlucky"}, retry=False)
        wait_for(lambda: show(d, "dlq", "list", topic, "ours")["dead_letters"], what="our dead letter")
        letter = json.loads(python("sdk.inspect_dlq", topic)[0]["data"]["data"])
        assert letter["topic"] == topic and letter["original_stream"] == f"omni-stream:{topic}" and "no luck" in json.dumps(letter["error"]), letter
        message = json.loads(letter["failed_message"]) if isinstance(letter["failed_message"], str) else letter["failed_message"]
        assert message["task_id"] == task_id and message["content"] == {"n": 2}, letter
        other.close()


if __name__ == "__main__":
    with Server("redis") as _server:
        main()
