#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ beside other programs: what they publish becomes a task, what we publish they can read; alarms, full queues, exchanges of others.
(Debian's own Python: python3-pika is the stranger's library.)"""
import contextlib
import json
import os
import sys
import time

import pika

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import SANITIZED, Daemon, case, main, wait_for, wakeups  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import Server  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../fault"))
from proxy import Proxy  # noqa: E402

SOON = 60  # seconds: what the node that died held comes when the bus gives it up

@contextlib.contextmanager
def broker():
    """The broker, the URL for a daemon, and a channel of a program that knows nothing of us."""
    with Server("rabbitmq") as server:
        url = server.values["bus_url"].replace("{case}", "omni")
        stranger = pika.BlockingConnection(pika.URLParameters(url.split("?")[0] + "/%2F"))
        yield server, url, stranger.channel()
        stranger.close()


def bus(url, more=""):
    return Daemon(env={"EVENT_BUS_URL": url + more})


def properties(**headers):
    return pika.BasicProperties(message_id="17", correlation_id="c1", headers=headers)


def get(channel, queue):
    return wait_for(lambda: (lambda m: m if m[0] else None)(channel.basic_get(queue, auto_ack=True)), 10, f"a message in {queue}")


@case
def what_another_program_publishes_is_a_task():
    with broker() as (_, url, stranger), bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        client.register("orders.new", "agent")
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        stranger.basic_publish("omni", "orders.new", b'{"total": 1.50}', properties(traceparent=trace, colour="red", size=3))
        task = client.next_task()
        assert task["payload"]["content"] == {"total": 1.5} and task["topic"] == "orders.new", task
        assert task["id"] == "17" and task["traceparent"] == trace and task["correlation_id"] == "c1", task
        assert task["headers"] == {"colour": "red", "size": "3"}, task
        client.ack(task)
        stranger.basic_publish("omni", "orders.new", b'no JSON \xff "at all"')
        task = client.next_task()
        assert task["payload"]["content"] == 'no JSON \ufffd "at all"' and task["id"], task
        client.ack(task)
        # What looks like a record and is none does not break the frame.
        stranger.basic_publish("omni", "orders.new", b'{"id":"x","topic":"orders.new","payload":{"content":1}')
        task = client.next_task()
        assert task["payload"]["content"].startswith('{"id":"x"'), task
        client.ack(task)
        daemon.stop()


@case
def what_we_publish_another_program_can_read():
    with broker() as (_, url, stranger):
        stranger.exchange_declare("omni", "topic", durable=True)
        stranger.queue_declare("theirs")
        stranger.queue_bind("theirs", "omni", "#")
        with bus(url, "&cloudevents=true") as daemon, contextlib.closing(daemon.connect()) as client:
            number = client.publish("orders.a b", {"n": 1}, headers={"colour": "red", "x-match": "all"}, traceparent="00-1-2-01")
            method, props, body = get(stranger, "theirs")
            assert method.routing_key == "orders.a b" and props.message_id == number and props.delivery_mode == 2, (method, props)
            assert props.headers["colour"] == "red" and props.headers["traceparent"] == "00-1-2-01" and "x-match" not in props.headers, props
            assert props.headers["cloudEvents:id"] == number and props.headers["cloudEvents:type"] == "orders.a b", props
            assert json.loads(body)["payload"]["content"] == {"n": 1}, body
            daemon.stop()
        with bus(url, "&format=raw") as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("bare", "agent")
            number = client.publish("bare", [1, 2.0])
            _, props, body = get(stranger, "theirs")
            assert body == b"[1, 2.0]" and props.message_id == number, (props, body)
            task = client.next_task()
            assert task["id"] == number and task["payload"]["content"] == [1, 2.0], task
            client.ack(task)
            daemon.stop()


@case
def queues_of_other_programs_are_consumed_and_published_to():
    with broker() as (_, url, stranger), bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        stranger.queue_declare("jobs")
        stranger.queue_declare("results")
        stranger.basic_publish("", "jobs", b'"first"')
        client.register("queue:jobs", "agent")
        task = client.next_task()
        assert task["payload"]["content"] == "first" and task["topic"] == "queue:jobs", task
        client.ack(task)
        client.publish("queue:results", {"done": True}, ttl_ms=60000)
        _, props, _ = get(stranger, "results")
        assert props.expiration == "60000", props
        try:
            client.publish("queue:nowhere", 1)
            raise AssertionError("published to a queue that is not there")
        except OmniError as e:
            assert e.kind == "not_found" and "queue" in str(e), e
        daemon.stop()


@case
def exchanges_of_other_programs_and_of_each_type():
    with broker() as (_, url, stranger):
        for kind in "direct", "fanout", "headers":
            stranger.exchange_declare(f"their-{kind}", kind, durable=True)
            with bus(url, f"-{kind}&exchange=their-{kind}&exchange_type={kind}") as daemon, contextlib.closing(daemon.connect()) as client:
                client.register("t", "agent")
                client.publish("t", kind)
                task = client.next_task()
                assert task["payload"]["content"] == kind, task
                client.ack(task)
                try:
                    client.register("t.*", "pattern")
                    raise AssertionError("a pattern without an exchange of the type topic")
                except OmniError as e:
                    assert e.kind == "unsupported" and "exchange_type" in str(e), e
                daemon.stop()


@case
def a_full_queue_refuses_until_a_task_is_finished():
    with broker() as (_, url, _stranger), bus(url, "&max_topic_tasks=3") as daemon, contextlib.closing(daemon.connect()) as client:

        def refused():  # a quorum queue finds out some messages late
            try:
                client.publish("small", 0)
                return None
            except OmniError as e:
                return e

        error = wait_for(refused, 10, "a refusal")
        assert error.kind == "limit" and "max_topic_tasks" in str(error), error
        client.register("small", "agent")
        client.ack(client.next_task())
        wait_for(lambda: refused() is None, 10, "a publish after one was finished")
        daemon.stop()


@case
def workers_that_come_one_by_one_take_no_more_than_they_want():
    """Their consumer is made anew for each of them, and what came of the one before does not count at the broker."""
    each, workers = 100, 10
    with broker() as (_, url, stranger), bus(url) as daemon, contextlib.ExitStack() as connections:
        publisher = connections.enter_context(contextlib.closing(daemon.connect()))
        for request in [publisher.start("task.publish", task={"topic": "t", "payload": {"content": i}}) for i in range(4 * each * workers)]:
            publisher.finish(request)
        for _ in range(workers):
            client = connections.enter_context(contextlib.closing(daemon.connect()))
            client.register("t", "a", prefetch=each)
            for _ in range(each):
                assert client.next_task()
        at_least = each * workers
        taken = wait_for(lambda: 4 * at_least - stranger.queue_declare("omni.t.t", passive=True).method.message_count, what="tasks taken")
        print(f"# {taken} taken of {at_least} wanted")
        assert at_least <= taken <= at_least + each, taken


@case
def a_memory_alarm_is_told_and_survived():
    with broker() as (server, url, _stranger), bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        client.register("t", "agent")
        client.publish("t", 1)
        task = client.next_task()
        server.do("alarm on")

        def refused():
            start = time.monotonic()
            try:
                client.publish("t", 2)
                return None
            except OmniError as e:
                assert time.monotonic() - start < 1, "it took too long"
                return e

        error = wait_for(refused, 10, "a refusal")
        assert error.kind == "unavailable" and "alarm" in str(error), error
        client.ack(task)  # acknowledging goes on
        health = client.call("health")
        assert "alarm" in json.dumps(health), health
        server.do("alarm off")
        wait_for(lambda: refused() is None, 10, "a publish after the alarm")
        daemon.stop()


@case
def what_a_slow_broker_gives_late_is_not_left_out():
    with broker() as (_, url, _stranger), Proxy(url.split("//")[1].split("?")[0]) as proxy:
        with bus(url.replace(url.split("//")[1].split("?")[0], proxy.address)) as daemon:
            client = daemon.connect(60)
            client.register("t", "agent", dlq_retry_limit=0)
            for i in range(5):
                client.publish("t", i)
            for _ in range(5):
                task = client.next_task()
                client.call("task.fail", delivery=task["delivery"], error={"message": "on purpose"})
            wait_for(lambda: client.call("bus.groups", topic="t")["groups"][0]["dead"] == 5)
            proxy("delay", "700")
            letters = client.call("dlq.list", topic="t", agent="agent")["dead_letters"]
            assert len(letters) == 5, letters
            assert client.call("dlq.get", topic="t", agent="agent", id=letters[4]["id"]) == letters[4]
            assert len(client.call("bus.inspect", topic="t")["entries"]) == 5
            proxy("pass")
            daemon.stop()


@case
def a_peer_that_is_a_black_hole_hangs_nobody():
    """librabbitmq's own sockets would block here without an end; the loop goes on, and the connection is made anew."""
    with broker() as (_, url, _stranger), Proxy(url.split("//")[1].split("?")[0]) as proxy:
        with bus(url.replace(url.split("//")[1].split("?")[0], proxy.address), "&heartbeat_ms=1s&connect_timeout_ms=1s") as daemon:
            client = daemon.connect()
            client.register("t", "agent")
            client.publish("t", 1)
            client.ack(client.next_task())
            proxy("hole")
            for _ in range(10):
                start = time.monotonic()
                try:
                    client.publish("t", 2)
                    raise AssertionError("published into a black hole")
                except OmniError as e:
                    assert e.kind == "unavailable" and time.monotonic() - start < 1.2, (e, time.monotonic() - start)
                client.call("ping")
                time.sleep(0.3)
            proxy("pass")

            def again():
                try:
                    return client.publish("t", "after it")
                except OmniError:
                    return None

            wait_for(again, 10, "a publish after the hole")
            while (task := client.next_task())["payload"]["content"] != "after it":
                client.ack(task)
            daemon.stop()


@case
def the_node_of_the_queues_is_killed_while_we_are_connected_to_another():
    """Queues and streams are led where they were declared: on the first node, and we are on the second."""
    with Server("rabbitmq", "cluster") as server:
        nodes = server.values["bus_url"].replace("{case}", "omni").partition("//")[2].split("?")[0].split(",")
        with bus(f"amqp://{nodes[0]}?prefix=omni") as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("t", "agent", prefetch=10)
            client.publish("t", "declared")
            client.ack(client.next_task())
            daemon.stop()
        with bus(f"amqp://{nodes[1]},{nodes[2]}?prefix=omni") as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("t", "agent", prefetch=10)
            expected, handled = set(), set()

            def work(until):
                while not until():
                    try:
                        expected.add(client.publish("t", len(expected)))
                    except OmniError as e:
                        assert e.kind == "unavailable", e
                    task = client.next_task(0.05)
                    if task:
                        handled.add(task["id"])
                        with contextlib.suppress(OmniError):  # of one that was delivered again meanwhile
                            client.ack(task)

            work(lambda: len(handled) == 100)
            server.do("kill 1")
            before, killed = len(handled), time.monotonic()
            work(lambda: len(handled) > before + 20)
            assert time.monotonic() - killed < 5 + SANITIZED * 5, time.monotonic() - killed
            work(lambda: len(handled) > before + 300)
            server.do("up 1")
            while expected - handled:
                task = client.next_task(SOON)
                assert task, f"{len(expected - handled)} tasks are missing"
                handled.add(task["id"])
                with contextlib.suppress(OmniError):
                    client.ack(task)
            wait_for(lambda: [g["leased"] + g["lag"] + g["retrying"] for g in client.call("bus.groups", topic="t")["groups"]] == [0], 20)
            daemon.stop()


@case
def idle_with_ten_agents_it_hardly_wakes_up():
    with broker() as (_, url, _stranger), bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        for n in range(10):
            client.register(f"t{n}", "agent")
            client.publish(f"t{n}", n)
            client.ack(client.next_task())
        time.sleep(2)
        before = wakeups(daemon.process.pid)
        time.sleep(10)
        each = (wakeups(daemon.process.pid) - before) / 10
        print(f"# {each:.1f} wake-ups a second")
        assert each < 5, each
        daemon.stop()


if __name__ == "__main__":
    main()
