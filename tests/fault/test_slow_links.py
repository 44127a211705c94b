#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Servers that are far away: each system behind a proxy that makes a way there and back 900 ms long, which is longer than any of them may be
silent at first. It becomes ready, tasks are handled once each, and a connection is taken for lost once at most when it is in use: from then on it
is known to be slow.
"""
import contextlib
import os
import random
import re
import socket
import threading

from fault import case, main
from harness import Daemon, wait_for
from proxy import Proxy
from server import Server

EACH_WAY_MS, TASKS, READY_S = 450, 10, 60


def free_port():
    """One that nobody listens on, below those that the kernel gives to clients."""
    while True:
        port = random.randrange(10000, 32000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def round_of_tasks(client, first):
    client.call("task.publish", tasks=[{"topic": "t", "payload": {"content": first + i}} for i in range(TASKS)])
    tasks = [client.next_task() for _ in range(TASKS)]
    assert sorted(t["payload"]["content"] for t in tasks) == list(range(first, first + TASKS)), tasks
    assert all(t["attempt"] == 1 for t in tasks), tasks
    client.call("task.ack", deliveries=[{"delivery": t["delivery"], "result": t["payload"]["content"]} for t in tasks])


def log_of(daemon):
    with open(os.path.join(daemon.folder, "log"), errors="replace") as f:
        return f.read()


def serve_over_a_slow_link(system, is_bus):
    listen = "127.0.0.1:0"
    environment = {}
    if system == "kafka":  # a client goes where the broker says that it is
        listen = f"127.0.0.1:{free_port()}"
        environment["KAFKA_ADVERTISED"] = listen
    with Server(system, environment=environment) as server:
        url = server.values["bus_url" if is_bus else "store_url"].replace("{case}", "slow")
        target = re.search(r"(127\.0\.0\.1|localhost):\d+", url).group(0)
        with Proxy(target, listen) as proxy:
            proxy("delay", EACH_WAY_MS)
            url = url.replace(target, proxy.address)
            with Daemon(env={"EVENT_BUS_URL": url} if is_bus else {"EVENT_BUS_URL": "local:", "STORAGE_URL": url}) as daemon:
                try:
                    use(daemon)
                except Exception as e:
                    raise AssertionError(f"{system}: {e!r}\n{log_of(daemon)}") from e


def use(daemon):
    with contextlib.closing(daemon.connect()) as client:
        client.timeout = 60

        def is_up():
            health = client.call("health")
            return health["bus"]["status"] == health["storage"]["status"] == "up"

        wait_for(is_up, READY_S, "health")
        client.register("t", "a")
        round_of_tasks(client, 0)
        before = log_of(daemon).count(" connecting: ")
        for i in range(1, 6):
            round_of_tasks(client, i * TASKS)
        assert is_up()
        assert log_of(daemon).count(" connecting: ") <= before + 1, "it was taken for away again"


def all_at_once(systems, is_bus):
    failures = []

    def run(system):
        try:
            serve_over_a_slow_link(system, is_bus)
        except Exception as e:
            failures.append(str(e))

    threads = [threading.Thread(target=run, args=(s,)) for s in systems]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, "\n".join(failures)


@case
def buses_that_are_far_away_serve():
    all_at_once(("redis", "nats", "rabbitmq", "kafka"), is_bus=True)


@case
def storages_that_are_far_away_keep_results():
    all_at_once(("redis", "nats", "postgresql", "mongodb", "s3"), is_bus=False)


if __name__ == "__main__":
    main()
