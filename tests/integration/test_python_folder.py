#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A folder of the JSON storage goes back and forth between the Python OmniDaemon (the real package, from PyPI) and ours."""
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main, wait_for  # noqa: E402

SCRIPT = os.path.join(os.path.dirname(__file__), "../servers/python.sh")

# What runs inside the package's environment: its own storage class does all the reading and writing.
WRITE = r"""
import asyncio, sys, time
from omnidaemon.storage.json_store import JSONStore

def answer(message):
    return message

async def write(folder):
    s = JSONStore(folder)
    await s.connect()
    await s.add_agent("greet", {"callback": answer, "callback_name": "answer", "name": "greeter", "tools": ["search"], "description": "said \u00e9",
                                "config": {"consumer_count": 2, "reclaim_idle_ms": 6000, "dlq_retry_limit": 3}})
    await s.add_agent("greet", {"callback": answer, "callback_name": "answer", "name": "second", "tools": [], "description": "", "config": {}})
    record = {"content": {"name": "w\u00f6rld", "big": 12345678901234567890123}, "webhook": None, "reply_to": None, "topic": "greet",
              "correlation_id": None, "causation_id": None, "source": None, "delivery_attempts": 1, "created_at": time.time(), "agent": "greeter",
              "processing_consumer": "consumer:greeter-1", "runner_id": "r", "status": "completed", "timestamp": time.time()}
    await s.save_result("old", {**record, "task_id": "old", "result": "expired"}, ttl_seconds=-5)
    for i in range(3):
        await s.save_result(f"t-{i}", {**record, "task_id": f"t-{i}", "result": {"n": i}}, ttl_seconds=86400)
    await s.save_result("for-ever", {**record, "task_id": "for-ever", "result": None})
    for event in ("task_received", "task_processed"):
        await s.save_metric({"topic": "greet", "agent": "greeter", "runner_id": "r", "event": event, "task_id": "t-0", "processing_time_sec": 0.25,
                             "timestamp": time.time()})
    await s.save_config("colour", {"name": "bl\u00e5", "rgb": [0, 0, 255]})
    await s.save_config("_omnidaemon_start_time", None)
    await s.save_config("_subscription_active:group:greet:second", False)
    await s.close()

asyncio.run(write(sys.argv[1]))
"""

READ = r"""
import asyncio, json, sys
from omnidaemon import OmniDaemonSDK
from omnidaemon.storage.json_store import JSONStore

class NoBus:
    pass

async def read(folder):
    s = JSONStore(folder)
    await s.connect()
    sdk = OmniDaemonSDK(event_bus=NoBus(), store=s)
    seen = {"agents": await sdk.list_agents(), "agent": await sdk.get_agent("greet", "greeter"), "results": await s.list_results(),
            "metrics": await sdk.metrics(), "raw_metrics": await s.get_metrics(), "health": await s.health_check(),
            "config": {k: await s.get_config(k) for k in ("colour", "size", "_omnidaemon_start_time", "_subscription_active:group:greet:second")},
            "by_id": {r["task_id"]: await s.get_result(r["task_id"]) for r in await s.list_results()}}
    await s.save_result("from-python", {"task_id": "from-python", "topic": "greet", "agent": "greeter", "status": "completed", "result": "later"}, 60)
    await s.save_metric({"topic": "greet", "agent": "greeter", "event": "task_failed"})
    await s.close()
    print(json.dumps(seen))

asyncio.run(read(sys.argv[1]))
"""


def python(program, folder):
    interpreter = subprocess.run([SCRIPT, "build"], capture_output=True, text=True, check=False)
    assert interpreter.returncode == 0, interpreter.stderr
    run = subprocess.run([interpreter.stdout.strip(), "-c", program, folder], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def show(d, *arguments):
    run = d.ctl(*arguments, "--format", "json")
    assert run.returncode == 0, (arguments, run.stderr)
    return json.loads(run.stdout)


def daemon_on_a_python_folder():
    d = Daemon("--storage-url", "json:data", start=False)
    d.data = os.path.join(d.folder, "data")
    python(WRITE, d.data)
    d.start()
    return d


@case
def a_folder_of_the_python_one_opens_with_ours():
    with daemon_on_a_python_folder() as d:
        assert [t["task_id"] for t in show(d, "task", "list")["tasks"]] == ["for-ever", "t-2", "t-1", "t-0"]
        record = show(d, "task", "get", "t-1")
        assert record["result"] == {"n": 1} and record["agent"] == "greeter" and record["content"]["big"] == 12345678901234567890123, record
        assert show(d, "task", "list", "--topic", "greet", "--agent", "greeter", "--status", "completed", "--limit", "2")["tasks"]
        assert d.ctl("task", "get", "old").returncode != 0, "it has expired"
        agents = {a["name"]: a for a in show(d, "agent", "list")["agents"]}
        assert set(agents) == {"greeter", "second"}
        assert agents["greeter"]["tools"] == ["search"] and agents["greeter"]["description"] == "said é" and agents["greeter"]["callback_name"] == "answer"
        assert agents["greeter"]["config"]["dlq_retry_limit"] == 3 and not agents["greeter"]["paused"] and agents["second"]["paused"]
        assert show(d, "config", "get", "colour") == {"name": "blå", "rgb": [0, 0, 255]}
        health = show(d, "storage", "health")
        assert (health["agents"], health["metrics"], health["config"]) == (2, 2, 3), health
        d.stop()


@case
def a_folder_of_ours_opens_with_the_python_one_after_a_clean_stop_and_comes_back():
    with daemon_on_a_python_folder() as d:
        c = d.connect()
        c.register("greet", "greeter", callback_name="serve", dlq_retry_limit=0)
        c.call("agent.register", topic="greet", name="another", description="ours", tools=[{"name": "t"}])
        c.call("agent.pause", topic="greet", name="another")
        done = c.publish("greet", {"name": "wörld", "n": 1.50})
        c.ack(c.next_task(), {"greeting": "hällo"})
        failed = c.publish("greet", 2)
        c.call("task.fail", delivery=c.next_task()["delivery"], error={"message": "no luck", "type": "Unlucky"}, retry=False)
        c.call("config.set", key="size", value=[1, {"two": None}])
        wait_for(lambda: len(c.call("task.list", limit=10)["tasks"]) == 6, what="both results")
        c.close()
        d.stop()
        left = sorted(os.listdir(d.data))
        assert not [name for name in left if "journal" in name or name.endswith(".tmp")], left

        seen = json.loads(python(READ, d.data))
        assert seen["health"]["status"] == "healthy" and seen["health"]["agents_count"] == 3
        ours = {a["name"]: a for a in seen["agents"]["greet"]}
        assert set(ours) == {"greeter", "second", "another"}
        assert ours["another"]["description"] == "ours" and ours["another"]["tools"] == [{"name": "t"}] and ours["another"]["config"]["dlq_retry_limit"] == 3
        assert seen["agent"]["callback"] == "serve" and seen["agent"]["config"]["dlq_retry_limit"] == 0, seen["agent"]
        results = {r["task_id"]: r for r in seen["results"]}
        assert {done, failed, "t-0", "for-ever"} <= set(results)
        entry = results[done]
        assert abs(entry["saved_at"] - time.time()) < 60 and abs(entry["expires_at"] - entry["saved_at"] - 86400) < 2, entry
        assert "expires_at" not in results["for-ever"] and results["t-0"]["result"]["result"] == {"n": 0}
        record = seen["by_id"][done]
        for member in ("content", "webhook", "reply_to", "topic", "task_id", "correlation_id", "causation_id", "source", "delivery_attempts", "created_at",
                       "runner_id", "status", "result", "timestamp"):
            assert member in record, (member, record)
        assert record["status"] == "completed" and record["result"] == {"greeting": "hällo"} and record["content"]["name"] == "wörld"
        assert isinstance(record["created_at"], float) and isinstance(record["timestamp"], float)
        assert seen["by_id"][failed]["status"] == "failed" and seen["by_id"][failed]["error_type"] == "Unlucky"
        assert seen["config"] == {"colour": {"name": "blå", "rgb": [0, 0, 255]}, "size": [1, {"two": None}], "_omnidaemon_start_time": None,
                                  "_subscription_active:group:greet:second": False}, seen["config"]
        assert seen["metrics"]["greet"]["greeter"]["tasks_processed"] == 1, "its own are there yet, ours do not disturb it"
        assert len(seen["raw_metrics"]) > 2 and all(isinstance(m["saved_at"], float) for m in seen["raw_metrics"]), seen["raw_metrics"]

        d.start()  # on what the Python one wrote over ours
        c = d.connect()
        assert c.call("task.get", id="from-python")["result"] == "later"
        assert c.call("task.get", id=done)["result"] == {"greeting": "hällo"}
        assert c.call("task.list", limit=1)["tasks"][0]["task_id"] == "from-python"
        assert c.call("agent.get", topic="greet", name="another")["paused"]
        assert c.call("config.get", key="size")["value"] == [1, {"two": None}]
        d.stop()


if __name__ == "__main__":
    main()
