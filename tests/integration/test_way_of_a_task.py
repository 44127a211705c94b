#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The whole way of a task through the socket of a real daemon, on the embedded defaults."""
import json
import os
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main, wait_for  # noqa: E402
from omni_wire import OmniError  # noqa: E402

shared = Daemon()  # most cases use topics of their own on one daemon
counter = iter(range(1, 1_000_000))


def topic():
    return f"t{next(counter)}"


def expect_error(kind, call, *arguments, **more):
    try:
        result = call(*arguments, **more)
    except OmniError as e:
        assert e.kind == kind, f"{e.kind}: {e}, not {kind}"
        return e
    raise AssertionError(f"no error, but {result}")


def group(client, name):
    return client.call("bus.groups", topic=name)["groups"][0]


@case
def hello_tells_the_bus_the_storage_and_the_limits():
    c = shared.connect()
    hello = c.call("hello", client="test", protocol=1)
    assert hello["server"] == "omnidaemond" and hello["protocol"] == 1, hello
    assert hello["bus"]["name"] == "local" and hello["storage"]["name"] == "json", hello
    assert {"priority", "ttl", "delay", "keys", "patterns", "dedupe", "exactly_once", "replay"} <= set(hello["capabilities"]), hello
    assert hello["limits"]["frame_bytes"] == 16 << 20 and hello["limits"]["depth"] == 64, hello
    expect_error("unsupported", c.call, "hello", protocol=99)


@case
def a_task_published_before_its_first_agent_is_delivered_and_its_result_found():
    c, t = shared.connect(), topic()
    task_id = c.publish(t, {"name": "world"})
    c.register(t, "greeter")
    task = c.next_task()
    assert task["id"] == task_id and task["attempt"] == 1 and task["payload"]["content"] == {"name": "world"}, task
    c.ack(task, {"greeting": "hello world"})
    record = c.call("task.get", id=task_id)
    assert record["task_id"] == task_id and record["agent"] == "greeter" and record["status"] == "completed", record
    assert record["result"] == {"greeting": "hello world"} and record["content"] == {"name": "world"}, record
    g = group(c, t)
    assert (g["lag"], g["leased"], g["retrying"], g["dead"], g["finished"]) == (0, 0, 0, 0, 1), g


@case
def content_arrives_byte_for_byte():
    c, t = shared.connect(), topic()
    everything = "".join(chr(i) for i in range(0x20, 0x3000) if chr(i) not in '"\\') + "\U0001f600\U0010ffff"
    contents = [
        b"{}", b"[]", b'""', b"0", b"-0", b"-0.0", b"1e400", b"18446744073709551616", b"1.000000000000000000000000000001", b"null",
        b"true", b'{"b":1,"a":2,"b":3,"":{"x":1,"x":1}}', b'{ "spaced" :\t[ 1 ,\n 2 ] }', b'"\\u0041\\ud83d\\ude00\\/\\n\\u0000"',
        b"[" * 60 + b"]" * 60, b'"' + everything.encode() + b'"', b'"' + b"x" * (1 << 20) + b'"', b"123456789012345678901234567890.5E-7",
    ]
    c.register(t, "mirror", prefetch=100)
    for content in contents:
        c.send_body(b'{"jsonrpc":"2.0","method":"task.publish","params":{"task":{"payload":{"content":%s},"topic":"%s"}}}' % (content, t.encode()))
    raw = b""
    seen = []
    while len(seen) < len(contents):
        while len(c.inbox) < 4 or len(c.inbox) < 4 + struct.unpack(">I", c.inbox[:4])[0]:
            data = c.sock.recv(1 << 20)
            assert data
            c.inbox += data
        (n,) = struct.unpack(">I", c.inbox[:4])
        raw, c.inbox = c.inbox[4 : 4 + n], c.inbox[4 + n :]
        while b'"content":' in raw:
            rest = raw.split(b'"content":', 1)[1]
            expected = contents[len(seen)]
            assert rest.startswith(expected) and rest[len(expected) : len(expected) + 1] in (b"}", b","), (expected[:80], rest[:80])
            seen.append(expected)
            raw = rest[len(expected) :]


@case
def a_result_arrives_byte_for_byte():
    c, t = shared.connect(), topic()
    task_id = c.publish(t, 1)
    c.register(t, "a")
    task = c.next_task()
    result = b'{"z":1e400,"a":[18446744073709551616,1.10],"a":"\\u00e9"}'
    c.send_body(b'{"jsonrpc":"2.0","method":"task.ack","params":{"deliveries":[{"delivery":%d,"result":%s}]}}' % (task["delivery"], result))
    c.call("task.get", id=task_id, wait_ms=5000)
    body = json.dumps({"jsonrpc": "2.0", "id": "raw", "method": "task.get", "params": {"id": task_id}}).encode()
    c.send_body(body)
    data = b""
    while result not in data:
        part = c.sock.recv(1 << 16)
        assert part, data
        data += part


@case
def two_groups_each_get_every_task_and_two_workers_share():
    t = topic()
    a1, a2, b, p = (shared.connect() for _ in range(4))
    a1.register(t, "a", prefetch=5)
    a2.register(t, "a", prefetch=5)
    b.register(t, "b", prefetch=50)
    ids = [r["id"] for r in p.call("task.publish", tasks=[{"topic": t, "payload": {"content": i}} for i in range(200)])["results"]]
    got = {"a": [], "b": []}
    for name, clients in (("a", [a1, a2]), ("b", [b])):
        while len(got[name]) < 200:
            for c in clients:
                task = c.next_task(0.2 if len(clients) > 1 else 5)
                if task:
                    got[name].append(task["id"])
                    c.ack(task)
    assert sorted(got["a"]) == sorted(ids) and got["b"] == ids
    assert a1.next_task(0.1) is None and a2.next_task(0.1) is None and b.next_task(0.1) is None


@case
def a_later_group_starts_with_what_comes_after_it_unless_told():
    c, t = shared.connect(), topic()
    c.register(t, "first")
    c.publish(t, "old")
    c.next_task()
    late, early, timed = shared.connect(), shared.connect(), shared.connect()
    late.register(t, "late")
    early.register(t, "early", start="first")
    timed.register(t, "timed", start=time.time() + 3600)
    c.publish(t, "new")
    assert late.next_task()["payload"]["content"] == "new"
    assert early.next_task()["payload"]["content"] == "old" and early.next_task()["payload"]["content"] == "new"
    assert timed.next_task(0.2)["payload"]["content"] == "new"  # a time to come: what is published from now on


@case
def a_failed_task_comes_back_counted_and_others_do_not_wait_for_it():
    c, t = shared.connect(), topic()
    c.register(t, "a", retry_backoff_ms=300, prefetch=1)
    bad = c.publish(t, "bad")
    good = c.publish(t, "good")
    task = c.next_task()
    assert task["id"] == bad
    c.fail(task, "not today", **{})
    started = time.monotonic()
    task = c.next_task()
    assert task["id"] == good
    c.ack(task)
    task = c.next_task()
    assert task["id"] == bad and task["attempt"] == 2, task
    assert 0.14 <= time.monotonic() - started < 2
    c.ack(task)


@case
def a_task_that_always_fails_ends_in_the_dead_letters_and_can_be_replayed_and_purged():
    c, t = shared.connect(), topic()
    c.register(t, "a", retry_backoff_ms=1, dlq_retry_limit=2)
    other = shared.connect()
    other.register(t, "b")
    task_id = c.publish(t, {"keep": [1, 2.50]})
    other.ack(other.next_task())
    for attempt in (1, 2, 3):
        task = c.next_task()
        assert task["attempt"] == attempt, task
        c.fail(task, f"broken {attempt}")
    dead = wait_for(lambda: c.call("dlq.list", topic=t, agent="a")["dead_letters"], what="a dead letter")
    assert len(dead) == 1 and dead[0]["task"]["id"] == task_id and dead[0]["task"]["payload"]["content"] == {"keep": [1, 2.50]}, dead
    assert dead[0]["error"]["message"] == "broken 3" and dead[0]["attempts"] == 3 and dead[0]["worker"], dead
    assert c.call("dlq.get", topic=t, agent="a", id=dead[0]["id"])["task"]["id"] == task_id
    record = c.call("task.get", id=task_id, agent="a")
    assert record["status"] == "failed" and record["error"] == "broken 3", record
    assert c.call("dlq.replay", topic=t, agent="a", ids=[dead[0]["id"]]) == {"replayed": 1}
    task = c.next_task()
    assert task["id"] == task_id and task["attempt"] == 1, task
    assert other.next_task(0.1) is None
    c.call("task.fail", delivery=task["delivery"], error={"message": "never", "type": "Hopeless"}, retry=False)
    dead = wait_for(lambda: c.call("dlq.list", topic=t, agent="a")["dead_letters"])
    assert dead[0]["error"] == {"message": "never", "type": "Hopeless"} and dead[0]["attempts"] == 1, dead
    assert c.call("dlq.purge", topic=t, agent="a", all=True) == {"purged": 1}
    assert c.call("dlq.list", topic=t, agent="a")["dead_letters"] == []
    assert group(c, t)["dead"] == 0


@case
def a_closed_connection_hands_its_tasks_to_another_worker_at_once():
    t = topic()
    a, b = shared.connect(), shared.connect()
    a.register(t, "a", prefetch=10)
    b.call("task.publish", tasks=[{"topic": t, "payload": {"content": i}} for i in range(10)])
    held = [a.next_task() for _ in range(10)]
    assert all(held)
    b.register(t, "a", prefetch=10)
    a.close()
    started = time.monotonic()
    again = [b.next_task(5) for _ in range(10)]
    assert time.monotonic() - started < 1
    assert sorted(x["id"] for x in again) == sorted(x["id"] for x in held) and all(x["attempt"] == 2 for x in again), again


@case
def a_worker_holds_no_more_than_its_prefetch():
    c, t = shared.connect(), topic()
    c.register(t, "a", prefetch=5)
    c.call("task.publish", tasks=[{"topic": t, "payload": {"content": i}} for i in range(50)])
    held = [c.next_task() for _ in range(5)]
    assert all(held) and c.next_task(0.2) is None
    g = group(c, t)
    assert g["leased"] == 5 and g["lag"] == 45, g
    c.ack(held[0])
    assert c.next_task(2) and c.next_task(0.1) is None


@case
def a_worker_that_shows_no_sign_of_life_loses_its_lease_and_its_late_ack_is_refused():
    t = topic()
    hung, healthy = shared.connect(), shared.connect()
    hung.register(t, "a", reclaim_idle_ms=200)
    hung.publish(t, 1)
    task = hung.next_task()
    for _ in range(3):
        time.sleep(0.1)
        hung.call("task.extend", deliveries=[task["delivery"]])
    healthy.register(t, "a", reclaim_idle_ms=200)
    assert healthy.next_task(0.05) is None
    again = healthy.next_task(3)
    assert again["id"] == task["id"] and again["attempt"] == 2, again
    expect_error("conflict", hung.ack, task)
    assert ("task.revoked" in [n[0] for n in hung.notifications]), hung.notifications
    expect_error("not_found", hung.call, "task.ack", deliveries=[{"delivery": 4711}])
    healthy.ack(again)


@case
def an_ack_publishes_and_replies_with_the_right_correlation():
    c, t = shared.connect(), topic()
    c.register(t, "a")
    reader = shared.connect()
    out = reader.register(t + ".out", "r")
    back = reader.register(t + ".back", "r")
    task_id = c.publish(t, "in", reply_to=t + ".back", correlation_id="corr", tenant_id="ten", source="src")
    c.ack(c.next_task(), {"answer": 42}, publish=[{"topic": t + ".out", "payload": {"content": n}} for n in (1, 2)])
    got = {out: [], back: []}
    while sum(map(len, got.values())) < 3:
        while not reader.deliveries:
            reader.turn(5)
        subscription, task = reader.deliveries.popleft()
        got[subscription].append(task)
    assert [x["payload"]["content"] for x in got[out]] == [1, 2]
    for task in got[out] + got[back]:
        assert task["causation_id"] == task_id and task["correlation_id"] == "corr", task
    reply = got[back][0]
    assert reply["payload"]["content"] == {"answer": 42} and reply["tenant_id"] == "ten" and reply["source"] == "src", reply


@case
def bad_outputs_refuse_the_ack_and_leave_the_lease():
    c, t = shared.connect(), topic()
    c.register(t, "a")
    c.publish(t, 1)
    task = c.next_task()
    expect_error("invalid", c.ack, task, 1, publish=[{"topic": "", "payload": {"content": 1}}])
    assert group(c, t)["leased"] == 1
    c.ack(task)


@case
def a_batch_publishes_the_good_and_refuses_the_bad_in_place():
    c, t = shared.connect(), topic()
    tasks = [{"topic": t, "payload": {"content": i}} for i in range(1000)]
    tasks[17] = {"topic": t, "payload": {}}
    tasks[500] = {"topic": t, "payload": {"content": 1}, "prority": 3}
    results = c.call("task.publish", tasks=tasks)["results"]
    assert [i for i, r in enumerate(results) if "error" in r] == [17, 500]
    assert "content" in results[17]["error"]["message"] and "priority" in results[500]["error"]["message"], results[500]
    assert c.call("bus.topics", topic=t)["topics"][0]["depth"] == 998


@case
def tasks_beside_no_task_and_things_that_are_none_are_published_all_the_same():
    c, t = shared.connect(), topic()
    good = {"topic": t, "payload": {"content": [{"deep": "]}"}]}}
    for params in ({"tasks": [good, 5, "x", good], "task": None}, {"task": None, "tasks": [good, [good], good, {}]}):
        results = c.call("task.publish", **params)["results"]
        assert ["error" in r for r in results] == ([False, True, True, False] if "x" in params["tasks"] else [False, True, False, True]), results
    assert c.call("bus.topics", topic=t)["topics"][0]["depth"] == 4


@case
def delay_ttl_priority_and_keys_are_kept():
    c, t = shared.connect(), topic()
    c.call("task.publish", tasks=[{"topic": t, "payload": {"content": i}, "priority": p} for i, p in enumerate((0, 9, 5, 9))])
    c.register(t, "a", prefetch=1)
    expired = c.publish(t, "expired", ttl_ms=30)
    time.sleep(0.05)  # the first task is with the worker meanwhile
    order = []
    for _ in range(4):
        task = c.next_task()
        order.append(task["payload"]["content"])
        c.ack(task)
    assert order == [1, 3, 2, 0], order
    assert c.next_task(0.1) is None, expired
    assert wait_for(lambda: group(c, t)["expired"] == 1)
    started = time.monotonic()
    c.publish(t, "later", delay_ms=250)
    assert c.call("bus.topics", topic=t)["topics"][0]["delayed"] == 1
    task = c.next_task()
    assert 0.24 <= time.monotonic() - started < 0.6, time.monotonic() - started
    c.ack(task)
    k = topic()
    w1, w2 = shared.connect(), shared.connect()
    w1.register(k, "a")
    w2.register(k, "a")
    c.call("task.publish", tasks=[{"topic": k, "payload": {"content": [key, n]}, "key": key} for n in range(20) for key in "xyz"])
    seen = {"x": [], "y": [], "z": []}
    open_keys = {}
    while sum(map(len, seen.values())) < 60:
        for w in (w1, w2):
            task = w.next_task(0.05)
            if not task:
                for other in (w1, w2):
                    for key, (owner, held) in list(open_keys.items()):
                        if owner is other:
                            other.ack(held)
                            del open_keys[key]
                continue
            key, n = task["payload"]["content"]
            assert key not in open_keys, "two tasks of one key are out at a time"
            open_keys[key] = (w, task)
            seen[key].append(n)
    assert all(v == list(range(20)) for v in seen.values()), seen


@case
def an_idempotency_key_publishes_once():
    c, t = shared.connect(), topic()
    first = c.call("task.publish", task={"topic": t, "payload": {"content": 1}, "idempotency_key": "order-1"})
    second = c.call("task.publish", task={"topic": t, "payload": {"content": 1}, "idempotency_key": "order-1"})
    assert "duplicate" not in first and second == {"id": first["id"], "duplicate": True}, second
    assert c.call("bus.topics", topic=t)["topics"][0]["depth"] == 1


@case
def patterns_receive_from_every_matching_topic():
    c, t = shared.connect(), topic()
    c.register(f"{t}.*", "star")
    d = shared.connect()
    d.register(f"{t}.#", "hash")
    for name in ("x", "x.y", "z"):
        c.publish(f"{t}.{name}", name)
    assert [c.next_task()["payload"]["content"] for _ in range(2)] == ["x", "z"] and c.next_task(0.1) is None
    assert sorted(d.next_task()["payload"]["content"] for _ in range(3)) == ["x", "x.y", "z"]


@case
def pause_keeps_tasks_and_resume_delivers_them():
    c, t = shared.connect(), topic()
    c.register(t, "a")
    c.call("agent.pause", topic=t, name="a")
    c.publish(t, 1)
    assert c.next_task(0.2) is None
    assert c.call("agent.get", topic=t, name="a")["paused"] is True
    c.call("agent.resume", topic=t, name="a")
    assert c.next_task()["payload"]["content"] == 1


@case
def a_deleted_agent_is_told_and_starts_clean_when_it_registers_again():
    c, t = shared.connect(), topic()
    c.register(t, "a", prefetch=1)
    c.call("task.publish", tasks=[{"topic": t, "payload": {"content": i}} for i in range(5)])
    c.next_task()
    admin = shared.connect()
    admin.call("agent.delete", topic=t, name="a")
    while not any(n[0] == "agent.ended" for n in c.notifications):
        c.turn(5)
    expect_error("not_found", admin.call, "agent.get", topic=t, name="a")
    c.register(t, "a")
    assert c.next_task(0.2) is None
    c.publish(t, "fresh")
    assert c.next_task()["payload"]["content"] == "fresh"
    assert admin.call("topic.delete", topic=t)["agents"] == 1
    expect_error("not_found", admin.call, "bus.inspect", topic=t)
    expect_error("not_found", admin.call, "topic.delete", topic=t)


@case
def waiting_for_a_result_wakes_at_once_and_times_out_in_time():
    c, w, t = shared.connect(), shared.connect(), topic()
    w.register(t, "a")
    started = time.monotonic()
    expect_error("timeout", c.call, "task.get", id="no-such-task", wait_ms=150)
    assert 0.14 < time.monotonic() - started < 1
    expect_error("not_found", c.call, "task.get", id="no-such-task")
    task_id = c.publish(t, 1)
    task = w.next_task()
    waiting = c.start("task.get", id=task_id, wait_ms=10000)
    time.sleep(0.05)
    started = time.monotonic()
    w.ack(task, "done")
    assert c.finish(waiting)["result"] == "done" and time.monotonic() - started < 0.5


@case
def results_are_listed_newest_first_and_a_cursor_walks_them_all():
    c, t = shared.connect(), topic()
    c.register(t, "a", prefetch=100)
    ids = [r["id"] for r in c.call("task.publish", tasks=[{"topic": t, "payload": {"content": i}} for i in range(250)])["results"]]
    for _ in range(250):
        task = c.next_task()
        c.notify("task.ack", deliveries=[{"delivery": task["delivery"], "result": task["payload"]["content"]}])
    c.call("task.get", id=ids[-1], wait_ms=5000)
    wait_for(lambda: group(c, t)["finished"] == 250)
    walked, cursor = [], None
    while True:
        page = c.call("task.list", topic=t, limit=60, cursor=cursor)
        walked += [r["task_id"] for r in page["tasks"]]
        cursor = page.get("cursor")
        if not cursor:
            break
    assert walked == ids[::-1], (len(walked), walked[:3], ids[-3:])
    assert c.call("task.delete", id=ids[0]) == {"deleted": 1}
    expect_error("not_found", c.call, "task.get", id=ids[0])
    expect_error("unsupported", c.call, "task.search", text="x")


@case
def settings_hold_any_json_and_are_listed_by_prefix():
    c = shared.connect()
    values = {"p.null": None, "p.true": True, "p.number": 1.5, "p.text": "é\n", "p.list": [1, {}], "p.object": {"a": {"b": []}}}
    for key, value in values.items():
        c.call("config.set", key=key, value=value)
    assert c.call("config.list", prefix="p.")["config"] == values
    assert c.call("config.get", key="p.object")["value"] == values["p.object"]
    assert c.call("config.delete", key="p.true") == {"deleted": True}
    expect_error("not_found", c.call, "config.get", key="p.true")


@case
def health_stats_metrics_and_backends_tell_the_truth():
    c, t = shared.connect(), topic()
    c.register(t, "a")
    c.publish(t, 1)
    c.ack(c.next_task())
    health = c.call("health")
    assert health["status"] == "ready" and health["bus"]["durability"] == "strong", health
    stats = c.call("bus.stats", topic=t)
    assert stats["topics"][0]["published"] == 1 and stats["topics"][0]["groups"][0]["finished"] == 1, stats
    metrics = c.call("metrics.get", topic=t)
    agent = [a for a in metrics["agents"] if a["topic"] == t][0]
    assert agent["processed"] == 1 and agent["latency_ms"]["p50"] > 0, metrics
    names = {b["name"]: b for b in c.call("backends")["buses"]}
    assert names["local"]["installed"] and names["local"]["in_use"] and not names["kafka"]["in_use"], names


@case
def a_watcher_sees_events_live():
    c, w, t = shared.connect(), shared.connect(), topic()
    w.call("daemon.watch", topic=t)
    c.register(t, "a")
    c.publish(t, 1)
    c.ack(c.next_task())
    events = []
    while {"publish", "deliver", "ack"} - set(events):
        while not w.notifications:
            w.turn(5)
        method, params = w.notifications.popleft()
        assert method == "watch.event", method
        events.append(params["event"])


@case
def a_graceful_stop_lets_work_finish_and_loses_nothing():
    with Daemon() as d:
        c = d.connect()
        c.register("t", "a", prefetch=2)
        c.call("task.publish", tasks=[{"topic": "t", "payload": {"content": i}} for i in range(4)])
        first, second = c.next_task(), c.next_task()
        d.process.terminate()
        while not any(n[0] == "daemon.stopping" for n in c.notifications):
            c.turn(5)
        expect_error("unavailable", c.publish, "t", 9)
        c.ack(first, "in time")
        c.ack(second, "too")
        assert d.process.wait(10) == 0, d.log_text()
        d.log.close()
        d.start()
        c = d.connect()
        assert c.call("task.get", id=first["id"])["result"] == "in time"
        c.register("t", "a")
        left = [c.next_task() for _ in range(2)]
        assert [x["payload"]["content"] for x in left] == [2, 3] and all(x["attempt"] == 1 for x in left), left
        d.stop()


try:
    main()
finally:
    shared.stop()
    shared.__exit__()
