#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""proto/PROTOCOL.md sentence by sentence against a real daemon: what the other tests do not hold it to already."""
import json
import os
import re
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main, wait_for  # noqa: E402
from omni_wire import OmniError  # noqa: E402

shared = Daemon()
counter = iter(range(1, 1_000_000))
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def topic():
    return f"p{next(counter)}"


def expect_error(kind, call, *arguments, **more):
    try:
        result = call(*arguments, **more)
    except OmniError as e:
        assert e.kind == kind, f"{e.kind}: {e}, not {kind}"
        return e
    raise AssertionError(f"no error, but {result}")


def group(client, name, agent=None):
    return [g for g in client.call("bus.groups", topic=name)["groups"] if agent in (None, g["agent"])][0]


def notification(client, method, timeout=5):
    deadline = time.monotonic() + timeout
    while True:
        for n in client.notifications:
            if n[0] == method:
                client.notifications.remove(n)
                return n[1]
        client.turn(max(0.01, deadline - time.monotonic()))


# -- connection --------------------------------------------------------------------------------------------------------


@case
def hello_has_all_its_members_and_no_others():
    hello = shared.connect().call("hello", client=None, protocol=None)
    assert set(hello) == {"server", "version", "protocol", "bus", "storage", "capabilities", "limits", "pid", "runner_id"}, hello
    assert set(hello["bus"]) == set(hello["storage"]) == {"name", "url"}, hello
    assert hello["limits"] == {"frame_bytes": 16 << 20, "depth": 64, "batch": 1000, "prefetch": 1000, "in_flight": 1024}, hello
    assert hello["pid"] == shared.process.pid and isinstance(hello["runner_id"], str)
    e = expect_error("unsupported", shared.connect().call, "hello", protocol=2)
    assert "1" in str(e), e


@case
def a_client_that_ends_its_sending_side_gets_its_answers_and_its_leases_end():
    c, w, t = shared.connect(), shared.connect(), topic()
    c.register(t, "a", prefetch=1)
    c.publish(t, 1)
    task = c.next_task()
    waiting = c.start("task.get", id=task["id"], wait_ms=400)
    pings = [c.start("ping") for _ in range(50)]
    c.sock.shutdown(socket.SHUT_WR)
    for ping in pings:
        assert c.finish(ping) == {}
    try:
        assert c.finish(waiting, 5)["status"] == "completed"
    except OmniError as e:
        assert e.kind in ("timeout", "unavailable"), e
    assert c.receive(5) is None, "closed after the last answer"
    w.register(t, "a")
    again = w.next_task()
    assert again["id"] == task["id"] and again["attempt"] == 2, again
    w.ack(again)


@case
def requests_of_one_connection_take_effect_in_their_order():
    c, t = shared.connect(), topic()
    requests = []
    for i in range(300):
        single = {"task": {"topic": t, "payload": {"content": 2 * i}}}
        requests.append(c.start("task.publish", **single))
        requests.append(c.start("task.publish", tasks=[{"topic": t, "payload": {"content": 2 * i + 1}}]))
    for r in requests:
        c.finish(r)
    seen, cursor = [], None
    while True:
        page = c.call("bus.inspect", topic=t, limit=100, cursor=cursor)
        seen += [e["task"]["payload"]["content"] for e in page["entries"]]
        cursor = page.get("cursor")
        if cursor is None:
            assert "cursor" not in page
            break
    assert seen == list(range(600)), "oldest first, and in the order of sending"


@case
def an_id_comes_back_as_it_was_sent():
    c = shared.connect()
    for text in (b"null", b'"a\\u0041"', b"1.50", b"-0", b"12345678901234567890", b'""', b'"' + b"x" * 254 + b'"'):
        body = b'{"jsonrpc":"2.0","id":%s,"method":"ping"}' % text
        c.send_body(body)
        data = b""
        while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
            data += c.sock.recv(4096)
        assert b'"id":' + text + b"," in data or b'"id":' + text + b"}" in data, (text, data)


# -- tasks and results -------------------------------------------------------------------------------------------------


@case
def what_a_task_carries_arrives_and_what_was_absent_is_made_or_stays_so():
    c, t = shared.connect(), topic()
    c.register(t, "a")
    carried = {"id": f"my-{t}", "tenant_id": "acme", "correlation_id": "c-1", "causation_id": "c-0", "source": "test", "delivery_attempts": 7,
               "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "headers": {"x": "1", "é": "\n"}, "created_at": 1700000000.125}
    c.call("task.publish", task={"topic": t, "payload": {"content": 1, "webhook": {"url": "http://example.invalid"}, "reply_to": None}, **carried})
    task = c.next_task()
    for name, value in carried.items():
        assert task[name] == value, (name, task)
    assert list(task)[:2] == ["delivery", "attempt"], task
    c.ack(task)
    before = time.time()
    made = c.publish(t, 2)
    task = c.next_task()
    assert UUID.fullmatch(made) and task["id"] == made and before - 1 < task["created_at"] < time.time() + 1, task
    assert not {"tenant_id", "headers", "key", "traceparent"} & {k for k, v in task.items() if v is not None}, task
    c.ack(task)


@case
def a_result_record_has_every_member_and_null_for_what_is_absent():
    c, t = shared.connect(), topic()
    c.call("agent.register", topic=t, name="a", worker="w-1", config={"dlq_retry_limit": 0})
    hello = c.call("hello")
    done = c.publish(t, {"x": 1})
    c.call("task.ack", deliveries=[{"delivery": c.next_task()["delivery"]}])
    r = c.call("task.get", id=done)
    common = {"task_id", "topic", "content", "webhook", "reply_to", "correlation_id", "causation_id", "source", "tenant_id", "created_at", "delivery_attempts",
              "agent", "worker", "runner_id", "attempts", "status", "timestamp"}
    assert set(r) == common | {"result"}, set(r) ^ (common | {"result"})
    for name in ("webhook", "reply_to", "correlation_id", "causation_id", "source", "tenant_id", "result"):
        assert r[name] is None, (name, r)
    assert r["delivery_attempts"] == 0, r
    assert (r["worker"], r["runner_id"], r["attempts"], r["agent"], r["status"]) == ("w-1", hello["runner_id"], 1, "a", "completed"), r
    failed = c.publish(t, 1)
    c.call("task.fail", delivery=c.next_task()["delivery"], error={"message": "no", "type": "Bad"})
    r = c.call("task.get", id=failed, wait_ms=5000)
    assert set(r) == common | {"error", "error_type"}, set(r) ^ (common | {"error", "error_type"})
    assert (r["status"], r["error"], r["error_type"], r["attempts"]) == ("failed", "no", "Bad", 1), r


@case
def task_get_takes_the_agents_record_or_the_newest_and_waits_for_the_agent_it_names():
    a, b, c, t = shared.connect(), shared.connect(), shared.connect(), topic()
    a.register(t, "a")
    b.register(t, "b", start="first")
    task_id = c.publish(t, 1)
    of_a, of_b = a.next_task(), b.next_task()
    waiting_b = c.start("task.get", id=task_id, agent="b", wait_ms=10000)
    waiting_any = c.start("task.get", id=task_id, wait_ms=10000)
    a.ack(of_a, "from a")
    assert c.finish(waiting_any)["result"] == "from a"
    expect_error("not_found", c.call, "task.get", id=task_id, agent="b")
    expect_error("timeout", c.call, "task.get", id=task_id, agent="b", wait_ms=50)
    time.sleep(0.01)  # records of one millisecond would have no newest
    b.ack(of_b, "from b")
    assert c.finish(waiting_b)["result"] == "from b"
    assert c.call("task.get", id=task_id)["result"] == "from b" and c.call("task.get", id=task_id, agent="a")["result"] == "from a"
    assert [r["agent"] for r in c.call("task.list", topic=t)["tasks"]] == ["b", "a"]
    assert c.call("task.delete", id=task_id) == {"deleted": 2} and c.call("task.delete", id=task_id) == {"deleted": 0}


@case
def task_list_filters_by_all_it_offers_and_ends_without_a_cursor():
    c, t = shared.connect(), topic()
    c.register(t, "a", dlq_retry_limit=0)
    good = [c.publish(t, i) for i in range(3)]
    for _ in good:
        c.ack(c.next_task(), 1)
    time.sleep(0.01)
    middle = time.time()
    time.sleep(0.01)
    bad = c.publish(t, "bad")
    c.fail(c.next_task(), "no")
    c.call("task.get", id=bad, wait_ms=5000)
    ids = lambda **f: [r["task_id"] for r in c.call("task.list", topic=t, **f)["tasks"]]  # noqa: E731
    assert ids(status="failed") == [bad] and ids(status="completed") == good[::-1]
    assert ids(since=middle) == [bad] and ids(until=middle) == good[::-1] and ids(agent="nobody") == []
    page = c.call("task.list", topic=t, limit=4)
    assert len(page["tasks"]) == 4 and "cursor" not in page, page
    page = c.call("task.list", topic=t, limit=3)
    rest = c.call("task.list", topic=t, limit=3, cursor=page["cursor"])
    assert [r["task_id"] for r in rest["tasks"]] == good[:1] and "cursor" not in rest, rest
    expect_error("invalid", c.call, "task.list", cursor="no cursor of anybody")
    expect_error("invalid", c.call, "bus.inspect", topic=t, cursor="no cursor of anybody")


@case
def save_results_false_saves_none_for_the_completed():
    c, t = shared.connect(), topic()
    c.register(t, "a", save_results=False, dlq_retry_limit=0)
    done = c.publish(t, 1)
    c.ack(c.next_task(), "r")
    expect_error("not_found", c.call, "task.get", id=done)
    failed = c.publish(t, 2)
    c.fail(c.next_task(), "no")
    assert c.call("task.get", id=failed, wait_ms=5000)["status"] == "failed"


@case
def headers_and_traceparent_reach_the_reply_and_outputs_keep_what_they_have_of_their_own():
    c, t = shared.connect(), topic()
    out, back = t + ".out", t + ".back"
    c.register(t, "a")
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    task_id = c.publish(t, 1, reply_to=back, correlation_id="corr", tenant_id="ten", source="src", webhook="http://example.invalid/", traceparent=trace)
    c.ack(c.next_task(), {"r": 1}, publish=[{"topic": out, "payload": {"content": 1}},
                                            {"topic": out, "payload": {"content": 2}, "correlation_id": "own", "causation_id": "mine"}])
    reply = c.call("bus.inspect", topic=back)["entries"][0]["task"]
    assert reply["payload"]["content"] == {"r": 1} and reply["causation_id"] == task_id and reply["id"] != task_id, reply
    assert (reply["correlation_id"], reply["tenant_id"], reply["source"], reply["payload"]["webhook"]) == ("corr", "ten", "src", "http://example.invalid/"), reply
    assert reply["payload"].get("reply_to") is None and reply["traceparent"] == trace, reply
    first, second = [e["task"] for e in c.call("bus.inspect", topic=out)["entries"]]
    assert (first["causation_id"], first["correlation_id"]) == (task_id, "corr"), first
    assert (second["causation_id"], second["correlation_id"]) == ("mine", "own"), second


# -- delivery ----------------------------------------------------------------------------------------------------------


@case
def a_partly_failed_ack_says_which_deliveries_failed():
    c, t = shared.connect(), topic()
    c.register(t, "a")
    good = c.publish(t, 1)
    c.publish(t, 2)
    first, second = c.next_task(), c.next_task()
    c.ack(second)
    e = expect_error("conflict", c.call, "task.ack", deliveries=[{"delivery": second["delivery"]}, {"delivery": first["delivery"], "result": "kept"}])
    assert e.data["deliveries"] == [second["delivery"]], e.data
    assert c.call("task.get", id=good, wait_ms=2000)["result"] == "kept"
    e = expect_error("not_found", c.call, "task.ack", deliveries=[{"delivery": 10**9}, {"delivery": 10**9 + 1}])
    assert e.data["deliveries"] == [10**9, 10**9 + 1], e.data
    for method, params in (("task.fail", {"delivery": first["delivery"], "error": {"message": "late"}}), ("task.extend", {"deliveries": [first["delivery"]]})):
        expect_error("conflict", c.call, method, **params)
    expect_error("not_found", c.call, "task.extend", deliveries=[10**9])
    expect_error("not_found", c.call, "task.fail", delivery=10**9, error={"message": "x"})


@case
def task_revoked_names_the_subscription_and_the_deliveries_and_counts_as_lease_expired():
    c, t = shared.connect(), topic()
    subscription = c.register(t, "a", reclaim_idle_ms=60, dlq_retry_limit=0)
    c.publish(t, 1)
    task = c.next_task()
    assert notification(c, "task.revoked") == {"subscription": subscription, "deliveries": [task["delivery"]]}
    expect_error("conflict", c.ack, task)
    wait_for(lambda: group(c, t)["dead"] == 1)
    letter = c.call("dlq.list", topic=t, agent="a")["dead_letters"][0]
    assert letter["error"]["type"] == "lease_expired" and letter["attempts"] == 1, letter


@case
def a_task_that_loses_its_workers_ends_in_the_dead_letters_as_worker_lost():
    admin, t = shared.connect(), topic()
    admin.publish(t, 1)
    for _ in range(2):
        w = shared.connect()
        w.register(t, "a", dlq_retry_limit=1)
        assert w.next_task()
        w.close()
    wait_for(lambda: group(admin, t)["dead"] == 1)
    letter = admin.call("dlq.list", topic=t, agent="a")["dead_letters"][0]
    assert set(letter) == {"id", "task", "error", "attempts", "worker", "failed_at"} and set(letter["error"]) == {"message", "type"}, letter
    assert letter["error"]["type"] == "worker_lost" and letter["attempts"] == 2, letter
    assert admin.call("dlq.get", topic=t, agent="a", id=letter["id"]) == letter


@case
def agent_unregister_gives_the_unfinished_back_uncounted():
    c, t = shared.connect(), topic()
    subscription = c.register(t, "a")
    c.publish(t, 1)
    task = c.next_task()
    assert c.call("agent.unregister", subscription=subscription) == {}
    expect_error("conflict", c.ack, task)
    expect_error("not_found", c.call, "agent.unregister", subscription=subscription)
    again = c.call("agent.register", topic=t, name="a")
    assert again["subscription"] != subscription and again["created"] is False, again
    task = c.next_task()
    assert task["attempt"] == 1, task
    c.ack(task)


@case
def delay_ms_of_a_failure_takes_the_place_of_the_backoff():
    c, t = shared.connect(), topic()
    c.register(t, "a", retry_backoff_ms=3_600_000, retry_backoff_max_ms=3_600_000)
    c.publish(t, 1)
    started = time.monotonic()
    c.fail(c.next_task(), "soon", delay_ms=120)
    assert group(c, t)["retrying"] == 1
    task = c.next_task()
    assert task["attempt"] == 2 and 0.11 < time.monotonic() - started < 2, task
    c.fail(task, "at once", delay_ms=0)
    assert c.next_task(2)["attempt"] == 3


@case
def agent_ended_names_the_subscription_and_a_reason():
    c, t = shared.connect(), topic()
    subscription = c.register(t, "a")
    c.publish(t, 1)
    task = c.next_task()
    shared.connect().call("agent.delete", topic=t, name="a")
    ended = notification(c, "agent.ended")
    assert ended["subscription"] == subscription and isinstance(ended["reason"], str) and set(ended) == {"subscription", "reason"}, ended
    expect_error("conflict", c.ack, task)


@case
def daemon_stopping_says_how_long_is_left_and_stopping_gives_tasks_back_uncounted():
    with Daemon("--stop-grace", "300ms") as d:
        c = d.connect()
        c.register("t", "a")
        c.publish("t", 1)
        assert c.next_task()["attempt"] == 1
        d.process.terminate()
        stopping = notification(c, "daemon.stopping")
        assert set(stopping) == {"grace_ms"} and stopping["grace_ms"] == 300, stopping
        expect_error("unavailable", c.publish, "t", 2)
        assert d.process.wait(10) == 0
        d.log.close()
        d.start()
        c = d.connect()
        c.register("t", "a")
        assert c.next_task()["attempt"] == 1
        d.stop()


# -- agents ------------------------------------------------------------------------------------------------------------


@case
def agents_and_their_pause_survive_a_restart():
    with Daemon() as d:
        c = d.connect()
        made = c.call("agent.register", topic="t", name="a", description="does", tools=[{"name": "x"}, "y"], config={"callback_name": "cb", "prefetch": 3})
        assert set(made) == {"subscription", "group", "created", "paused"} and made["created"] and not made["paused"], made
        assert made["group"] == "group:t:a"
        agent = c.call("agent.get", topic="t", name="a")
        assert set(agent) == {"name", "topic", "group", "callback_name", "description", "tools", "config", "created_at", "paused", "workers", "leased"}, agent
        assert agent["workers"] == 1 and agent["callback_name"] == "cb" and agent["tools"] == [{"name": "x"}, "y"], agent
        c.call("agent.pause", topic="t", name="a")
        c.publish("t", 1)
        d.kill()
        d.start()
        c = d.connect()
        listed = c.call("agent.list", topic="t")["agents"]
        assert len(listed) == 1 and listed[0]["paused"] and listed[0]["workers"] == 0 and listed[0]["description"] == "does", listed
        assert listed[0]["created_at"] == agent["created_at"]
        assert c.call("agent.register", topic="t", name="a")["paused"] is True
        assert c.next_task(0.2) is None and group(c, "t")["paused"] is True
        c.call("agent.resume", topic="t", name="a")
        assert c.next_task()["attempt"] == 1
        c.close()
        d.stop()


@case
def start_may_be_a_time():
    c, t = shared.connect(), topic()
    c.publish(t, "before")
    time.sleep(0.02)
    at = time.time()
    time.sleep(0.02)
    c.publish(t, "after")
    c.register(t, "a", start=at)
    task = c.next_task()
    assert task["payload"]["content"] == "after", task
    assert c.next_task(0.1) is None


@case
def deleting_a_topic_tells_how_much_there_was():
    c, t = shared.connect(), topic()
    c.register(t, "a")
    c.register(t, "b")
    c.call("agent.pause", topic=t, name="a")
    c.call("task.publish", tasks=[{"topic": t, "payload": {"content": i}} for i in range(3)])
    assert c.call("topic.delete", topic=t) == {"tasks": 3, "agents": 2}
    expect_error("not_found", c.call, "topic.delete", topic=t)
    for method in ("agent.get", "agent.delete", "agent.pause", "agent.resume"):
        expect_error("not_found", c.call, method, topic=t, name="a")


# -- bus, dead letters -------------------------------------------------------------------------------------------------


@case
def a_bus_without_settings_of_topics_says_so():
    with Daemon() as d:
        c = d.connect()
        assert "configure" not in c.call("hello")["capabilities"]
        try:
            c.call("bus.configure", topic="x", partitions=2)
            raise AssertionError("configured")
        except OmniError as e:
            assert e.kind == "unsupported" and "local" in str(e) and "omnictl backends" in str(e), e


@case
def bus_stats_and_its_totals_add_up():
    with Daemon() as d:
        c = d.connect()
        c.register("x", "a", dlq_retry_limit=0, prefetch=1)
        c.register("y.*", "p", prefetch=1)
        for i in range(4):
            c.publish("x", i)
        c.publish("y.1", 1)
        c.publish("z", 1, delay_ms=3_600_000)
        c.fail([t for t in (c.next_task(), c.next_task()) if t["topic"] == "x"][0], "no")
        wait_for(lambda: group(c, "x")["dead"] == 1 and group(c, "x")["leased"] == 1)
        stats = c.call("bus.stats")
        by_name = {t["topic"]: t for t in stats["topics"]}
        assert "y.*" in by_name and by_name["y.*"]["groups"][0]["agent"] == "p", by_name
        assert set(by_name["x"]) == {"topic", "depth", "delayed", "published", "groups"}, by_name["x"]
        groups = [g for t in stats["topics"] for g in t["groups"]]
        assert set(groups[0]) == {"topic", "agent", "group", "lag", "leased", "retrying", "dead", "finished", "expired", "workers", "paused"}, groups[0]
        totals = stats["totals"]
        assert set(totals) == {"topics", "depth", "delayed", "published", "groups", "lag", "leased", "retrying", "dead"}, totals
        for name in ("lag", "leased", "retrying", "dead"):
            assert totals[name] == sum(g[name] for g in groups), (name, stats)
        for name in ("depth", "delayed", "published"):
            assert totals[name] == sum(t[name] for t in stats["topics"]), (name, stats)
        assert totals["groups"] == 2 and totals["published"] == 6 and totals["delayed"] == 1 and totals["dead"] == 1 and totals["leased"] == 2, totals
        topics = c.call("bus.topics")["topics"]
        assert set(topics[0]) == {"topic", "depth", "delayed", "published", "groups"} and isinstance(topics[0]["groups"], int), topics
        page = c.call("bus.topics", limit=1)
        names = [page["topics"][0]["topic"]]
        while "cursor" in page:
            page = c.call("bus.topics", limit=1, cursor=page["cursor"])
            names += [t["topic"] for t in page["topics"]]
        assert sorted(names) == ["x", "y.1", "z"], names
        c.close()
        d.stop()


@case
def dead_letters_are_paged_replayed_and_purged_and_a_group_that_is_not_there_is_not_found():
    c, t = shared.connect(), topic()
    for method, more in (("dlq.list", {}), ("dlq.get", {"id": "1"}), ("dlq.replay", {"all": True}), ("dlq.purge", {"all": True}), ("dlq.purge", {"ids": ["1"]})):
        expect_error("not_found", c.call, method, topic=t, agent="a", **more)
    c.register(t, "a", dlq_retry_limit=0)
    other = shared.connect()
    other.register(t, "b")
    for i in range(5):
        c.publish(t, i)
        c.fail(c.next_task(), f"no {i}")
        other.ack(other.next_task())
    wait_for(lambda: group(c, t, "a")["dead"] == 5)
    page = c.call("dlq.list", topic=t, agent="a", limit=3)
    rest = c.call("dlq.list", topic=t, agent="a", limit=3, cursor=page["cursor"])
    letters = page["dead_letters"] + rest["dead_letters"]
    assert [x["error"]["message"] for x in letters] == [f"no {i}" for i in range(5)] and "cursor" not in rest, letters
    expect_error("not_found", c.call, "dlq.get", topic=t, agent="a", id="no-such-id")
    assert c.call("dlq.replay", topic=t, agent="a", ids=[letters[1]["id"], "no-such-id"]) == {"replayed": 1}
    task = c.next_task()
    assert task["payload"]["content"] == 1 and task["attempt"] == 1 and other.next_task(0.1) is None, task
    c.ack(task)
    assert c.call("dlq.purge", topic=t, agent="a", ids=[letters[0]["id"]]) == {"purged": 1}
    assert c.call("dlq.purge", topic=t, agent="a", all=True) == {"purged": 3}
    expect_error("invalid", c.call, "dlq.purge", topic=t, agent="a")
    expect_error("invalid", c.call, "dlq.purge", topic=t, agent="a", all=True, ids=[])


# -- storage, settings, the daemon -------------------------------------------------------------------------------------


@case
def settings_whose_key_begins_with_an_underscore_are_the_daemons_own():
    c = shared.connect()
    expect_error("denied", c.call, "config.set", key="_mine", value=1)
    expect_error("denied", c.call, "config.delete", key="_mine")
    expect_error("invalid", c.call, "config.set", key="", value=1)
    expect_error("invalid", c.call, "config.set", key="a\nb", value=1)
    expect_error("invalid", c.call, "config.set", key="x" * 1025, value=1)
    assert c.call("config.set", key="x" * 1024, value=1) == {}
    assert c.call("config.get", key="x" * 1024) == {"key": "x" * 1024, "value": 1}
    assert c.call("config.delete", key="x" * 1024) == {"deleted": True} and c.call("config.delete", key="x" * 1024) == {"deleted": False}


@case
def storage_clear_tells_how_many_of_each_kind():
    with Daemon() as d:
        c = d.connect()
        c.register("t", "a")
        c.publish("t", 1)
        c.ack(c.next_task())
        c.call("config.set", key="k", value=1)
        assert c.call("storage.clear", what="results") == {"cleared": {"results": 1}}
        assert c.call("task.list")["tasks"] == []
        assert c.call("storage.clear", what="config")["cleared"]["config"] >= 1
        cleared = c.call("storage.clear", what="all")["cleared"]
        assert set(cleared) == {"agents", "results", "metrics", "config"} and cleared["agents"] == 1 and cleared["results"] == 0, cleared
        expect_error("invalid", c.call, "storage.clear", what="everything")
        c.publish("t", 2)
        assert c.next_task()["payload"]["content"] == 2, "an agent that is serving goes on"
        c.close()
        d.stop()


@case
def clearing_the_settings_resumes_what_was_paused():
    with Daemon() as d:
        c = d.connect()
        c.register("t", "a")
        c.call("agent.pause", topic="t", name="a")
        c.publish("t", 1)
        c.call("storage.clear", what="config")
        assert c.next_task()["payload"]["content"] == 1
        assert not c.call("agent.get", topic="t", name="a")["paused"] and not group(c, "t")["paused"]
        c.close()
        d.stop()


@case
def health_and_storage_health_have_their_members():
    c = shared.connect()
    health = c.call("health")
    assert {"status", "reasons", "version", "pid", "runner_id", "uptime_s", "bus", "storage", "agents", "connections", "memory_bytes"} <= set(health), health
    assert {"name", "url", "status", "durability"} <= set(health["bus"]) and health["connections"] >= 1, health
    storage = c.call("storage.health")
    assert storage["name"] == "json" and storage["status"] == "up" and storage["latency_ms"] > 0 and "error" not in storage, storage
    with Daemon() as d:
        c = d.connect()
        assert c.call("health")["status"] == "running"
        c.register("t", "a")
        assert c.call("health")["status"] == "ready"
        d.stop()
    with Daemon("--event-bus-url", "local:bus?durability=memory") as d:
        health = d.connect().call("health")
        assert health["status"] == "degraded" and health["reasons"], health
        d.stop()


@case
def metrics_count_from_the_start_and_latency_is_null_before_the_first_ack():
    c, t = shared.connect(), topic()
    c.register(t, "a", retry_backoff_ms=0, dlq_retry_limit=1)
    c.publish(t, 1)
    task = c.next_task()
    of = lambda kind: [x for x in c.call("metrics.get", topic=t)[kind] if x["topic"] == t][0]  # noqa: E731
    assert of("agents") == {"topic": t, "agent": "a", "received": 1, "processed": 0, "failed": 0, "dead": 0, "latency_ms": None}, of("agents")
    c.fail(task, "no")
    c.ack(c.next_task())
    assert of("topics") == {"topic": t, "published": 1, "delivered": 2, "acked": 1, "failed": 1, "retried": 1, "dead": 0, "expired": 0}, of("topics")
    assert set(of("agents")["latency_ms"]) == {"p50", "p99", "p999", "max"}, of("agents")


@case
def watches_are_sixteen_a_connection_and_show_only_the_events_they_asked_for():
    c, w, t = shared.connect(), shared.connect(), topic()
    numbers = [w.call("daemon.watch", events=["fail", "dead_letter"], topic=t)["watch"]]
    for _ in range(15):
        numbers.append(w.call("daemon.watch", events=["connect"])["watch"])
    assert len(set(numbers)) == 16
    expect_error("limit", w.call, "daemon.watch")
    expect_error("invalid", shared.connect().call, "daemon.watch", events=["no_such_event"])
    w.notifications.clear()
    c.register(t, "a", dlq_retry_limit=0)
    task_id = c.publish(t, 1)
    c.fail(c.next_task(), "no")
    seen = []
    while len(seen) < 2:
        event = notification(w, "watch.event")
        if event["watch"] == numbers[0]:
            seen.append(event)
    assert [e["event"] for e in seen] in (["fail", "dead_letter"], ["dead_letter", "fail"]), seen
    assert all(e["topic"] == t and e["agent"] == "a" and e["id"] == task_id and abs(e["at"] - time.time()) < 60 for e in seen), seen


@case
def a_watcher_that_does_not_keep_up_is_told_how_many_events_it_lost():
    c, w, t = shared.connect(), shared.connect(), topic()
    w.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    watch = w.call("daemon.watch", events=["publish"], topic=t)["watch"]
    n = 60000
    for _ in range(n // 1000):
        c.call("task.publish", tasks=[{"topic": t, "payload": {"content": 0}}] * 1000)
    seen = lost = 0
    while seen + lost < n:
        event = notification(w, "watch.event", 10)
        if event["event"] == "lost":
            assert set(event) == {"watch", "event", "at", "n"} and event["watch"] == watch and event["n"] > 0, event
            lost += event["n"]
        else:
            seen += 1
    assert seen + lost == n and lost > 0, (seen, lost)
    c.call("topic.delete", topic=t)


@case
def daemon_reload_tells_what_changed_and_what_needs_a_restart():
    reloaded = shared.connect().call("daemon.reload")
    assert reloaded == {"changed": [], "restart_needed": []}, reloaded


# -- limits ------------------------------------------------------------------------------------------------------------


@case
def the_limits_are_where_they_are_said_to_be():
    c, t = shared.connect(), topic()
    one = {"topic": t, "payload": {"content": 0}}
    expect_error("invalid", c.call, "task.publish", tasks=[])
    expect_error("invalid", c.call, "task.publish", tasks=[one] * 1001)
    expect_error("invalid", c.call, "task.publish", tasks=[one], task=one)
    assert len(c.call("task.publish", tasks=[one] * 1000)["results"]) == 1000
    expect_error("invalid", c.call, "task.ack", deliveries=[])
    expect_error("invalid", c.call, "task.ack", deliveries=[{"delivery": 1}] * 1001)
    expect_error("invalid", c.call, "agent.register", topic=t, name="a", config={"prefetch": 1001})
    expect_error("invalid", c.call, "task.list", limit=0)
    expect_error("invalid", c.call, "task.list", limit=1001)
    expect_error("invalid", c.call, "task.get", id="x", wait_ms=86_400_001)
    c.call("topic.delete", topic=t)
    expect_error("invalid", c.publish, "x" * 201, 0)
    expect_error("invalid", c.publish, "omni-dlq:x", 0)
    expect_error("invalid", c.publish, "a:dlq", 0)
    many = shared.connect()
    for i in range(256):
        many.register(f"{t}.many", f"a{i}")
    expect_error("limit", many.register, f"{t}.many", "one-more")
    many.close()


@case
def more_requests_than_may_be_in_flight_are_answered_all_the_same():
    c = shared.connect()
    started = time.monotonic()
    waits = [c.start("task.get", id=f"nobody-{i}", wait_ms=500) for i in range(1500)]
    assert c.call("ping") == {}
    assert time.monotonic() - started > 0.45, "it is not read before some of the others are answered"
    for request in waits:
        expect_error("timeout", c.finish, request)


try:
    main()
finally:
    shared.stop()
    shared.__exit__()
