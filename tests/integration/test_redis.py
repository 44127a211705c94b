#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Redis when the way to it, or a part of it, goes: what waits for tasks without a deadline is not left waiting for nobody, and what was lost on the way
comes again when it can, not when RECLAIM_IDLE is over (three minutes, in these tests)."""
import contextlib
import os
import re
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main, wait_for  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import Server  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../fault"))
from proxy import Proxy  # noqa: E402

SOON = 8  # seconds within which a task comes that waits for no timer of minutes


def bus(url):
    return Daemon(env={"EVENT_BUS_URL": url})


def cli(port, *arguments):
    return subprocess.run(["redis-cli", "-h", "127.0.0.1", "-p", str(port), *arguments], capture_output=True, text=True, timeout=20, check=True).stdout


def ports_of(url):
    return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", url)]


def published(client, topic, content):
    """Publishes as soon as it goes."""

    def attempt():
        try:
            return client.publish(topic, content)
        except OmniError as e:
            assert e.kind == "unavailable", e
            return None

    return wait_for(attempt, 20, "a publish that succeeds")


@case
def a_reader_whose_connection_the_network_forgot_reads_on():
    with Server("redis") as server, Proxy(f"127.0.0.1:{ports_of(server.values['bus_url'])[0]}") as proxy:
        with bus(f"redis://{proxy.address}?answer_timeout_ms=300ms&connect_timeout_ms=500ms") as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("t", "agent")
            client.publish("t", "before")
            client.ack(client.next_task())
            proxy("forget")
            published(client, "t", "after")
            task = client.next_task(SOON)
            assert task and task["payload"]["content"] == "after", task
            client.ack(task)
            daemon.stop()


@case
def what_was_lost_on_the_way_comes_although_the_server_refuses_at_first():
    with Server("redis") as server, Proxy(f"127.0.0.1:{ports_of(server.values['bus_url'])[0]}") as proxy:
        port = ports_of(server.values["bus_url"])[0]
        with bus(f"redis://{proxy.address}") as daemon, bus(f"redis://127.0.0.1:{port}") as other:
            with contextlib.closing(daemon.connect()) as client, contextlib.closing(other.connect()) as publisher:
                client.register("t", "agent")
                publisher.publish("t", "seen")
                client.ack(client.next_task())
                wait_for(lambda: "blocked_clients:1" in cli(port, "info", "clients"), 10, "the next read, which waits")
                proxy("hole")
                publisher.publish("t", "lost on the way")
                wait_for(lambda: "pending\n1\n" in cli(port, "xinfo", "groups", "omni-stream:t"), 10, "the read that is lost")
                cli(port, "config", "set", "min-replicas-to-write", "1")
                proxy("reset")
                proxy("pass")
                wait_for(lambda: "errorstat_NOREPLICAS" in cli(port, "info", "errorstats"), 10, "a refusal")
                assert not client.deliveries
                cli(port, "config", "set", "min-replicas-to-write", "0")
                task = client.next_task(SOON)
                assert task and task["payload"]["content"] == "lost on the way", task
                client.ack(task)
                daemon.stop()
                other.stop()


def primary_of(port, key):
    slot = int(cli(port, "cluster", "keyslot", key))
    for line in cli(port, "cluster", "nodes").splitlines():
        words = line.split()
        for first, last in (map(int, (r.split("-") * 2)[:2]) for r in words[8:] if r[0].isdigit()):
            if "master" in words[2] and "fail" not in words[2] and first <= slot <= last:
                return int(words[1].split("@")[0].rpartition(":")[2])
    return None


@case
def a_frozen_primary_is_left_for_the_replica_that_took_over():
    with Server("redis", "cluster") as server:
        url = server.values["bus_url"].split("?")[0]
        ports = ports_of(url)
        with bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("t", "agent")
            client.publish("t", "before")
            client.ack(client.next_task())
            frozen = primary_of(ports[0], "omni-stream:t")
            server.do(f"pause {ports.index(frozen) + 1}")
            other = next(p for p in ports if p != frozen)
            wait_for(lambda: primary_of(other, "omni-stream:t") not in (None, frozen), 30, "the failover")
            published(client, "t", "after")
            task = client.next_task(SOON)
            assert task and task["payload"]["content"] == "after", task
            client.ack(task)
            server.do(f"resume {ports.index(frozen) + 1}")
            daemon.stop()


def come_at_once(client, topics, rounds):
    """Each task is waited for by a connection, not by a timer: one of a second would show itself in each round."""
    subscriptions = [client.register(topic, "agent") for topic in topics]
    began = time.monotonic()
    for n in range(rounds):
        for topic in topics:
            client.publish(topic, n)
            task = client.next_task(SOON)
            assert task and (task["topic"], task["payload"]["content"]) == (topic, n), task
            client.ack(task)
    assert time.monotonic() - began < rounds * len(topics) / 2, time.monotonic() - began
    for subscription in subscriptions:
        client.call("agent.unregister", subscription=subscription)


@case
def in_a_cluster_tasks_of_many_topics_on_one_server_come_at_once():
    with Server("redis", "cluster") as server:
        url = server.values["bus_url"].split("?")[0]
        port = ports_of(url)[0]
        with bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
            connected = len(cli(port, "client", "list").splitlines())
            topics = [topic for topic in map(str, range(40)) if primary_of(port, f"omni-stream:{topic}") == port][:5]
            come_at_once(client, topics, 4)
            wait_for(lambda: len(cli(port, "client", "list").splitlines()) <= connected, 10, "the end of connections that nobody needs")
            daemon.stop()


@case
def where_no_connection_can_be_had_to_wait_on_the_server_is_asked():
    with Server("redis") as server:
        url = server.values["bus_url"]
        port = ports_of(url)[0]
        with bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
            with socket.create_connection(("127.0.0.1", port)) as admin:  # the one connection that there is beside the daemon's

                def at_most(clients):
                    admin.sendall(f"CONFIG SET maxclients {clients}\r\n".encode())
                    assert admin.recv(100) == b"+OK\r\n"

                at_most(2)
                client.register("t", "agent")
                wait_for(lambda: "no connection to wait for tasks on" in daemon.log_text(), 10, "a word in the log")
                for n in range(3):
                    client.publish("t", n)
                    task = client.next_task(SOON)
                    assert task and task["payload"]["content"] == n, task
                    client.ack(task)
                at_most(100)
                wait_for(lambda: "cmd=xreadgroup" in cli(port, "client", "list"), 20, "somebody who waits on the server")
                come_at_once(client, ["t"], 10)
            daemon.stop()


@case
def a_stop_that_waits_for_a_client_asks_the_storage_no_more():
    """The pauses of agents are read every three seconds; who does not take its output is waited for, for one, after the storage was closed."""
    with Server("redis") as server:
        with Daemon(env={"STORAGE_URL": server.values["store_url"].replace("{case}", "stop"), "STOP_GRACE": "0"}) as daemon:
            with contextlib.closing(daemon.connect()) as client, contextlib.closing(daemon.connect()) as sleeper:
                registered = time.monotonic()
                sleeper.register("t", "agent", prefetch=200)
                for _ in range(200):
                    client.publish("t", "x" * 10000)
                time.sleep(registered + 2.5 - time.monotonic())
                daemon.stop()  # its exit status, and what a sanitizer says
                assert time.monotonic() - registered > 3, "nobody was waited for: nothing was tried"


def refused(call, *words):
    """The error of a call, which says each of these."""
    try:
        call()
    except OmniError as e:
        missing = [word for word in words if word not in str(e)]
        assert not missing, f"nothing of {missing} in: {e}"
        return e
    raise AssertionError(f"{words}: nothing was refused")


@case
def no_memory_on_the_server_a_replica_and_a_key_of_the_wrong_type_are_named():
    with Server("redis", "sentinel") as server:
        sentinel = ports_of(server.values["bus_url"])[0]
        primary, replica = (int(cli(sentinel, "sentinel", *words).split()[at]) for words, at in ((("get-master-addr-by-name", "omni"), 1), (("replicas", "omni"), 5)))
        url = f"redis://127.0.0.1:{primary}"
        with Daemon(env={"EVENT_BUS_URL": url, "STORAGE_URL": url}) as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("t", "agent")
            client.publish("t", 1)
            task = client.next_task()
            cli(primary, "config", "set", "maxmemory", "1")
            refused(lambda: client.publish("t", 2), "maxmemory")
            refused(lambda: client.ack(task, {"n": 1}), "maxmemory")
            refused(lambda: client.call("config.set", key="a", value=1), "maxmemory")
            cli(primary, "config", "set", "maxmemory", "0")
            client.ack(task, {"n": 1})
            cli(primary, "set", "omni-stream:wrong", "text")
            refused(lambda: client.publish("wrong", 1), "omni-stream:wrong")
            refused(lambda: client.register("wrong", "agent"), "omni-stream:wrong")
            client.publish("t", 3)  # and the rest goes on
            assert client.next_task()["payload"]["content"] == 3
            daemon.stop()
        with bus(f"redis://127.0.0.1:{replica}") as daemon, contextlib.closing(daemon.connect()) as client:
            refused(lambda: client.publish("t", 1), "replica")
            daemon.stop()


main()
