#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients that send anything at all, in any order, and go away in the middle of it: the daemon goes on, and stops cleanly under such a load.
Run it with sanitizers: that is what it is for."""
import os
import random
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main  # noqa: E402
import json  # noqa: E402

METHODS = """hello ping health backends metrics.get daemon.watch agent.register agent.list agent.get agent.pause agent.resume agent.delete
    topic.delete agent.unregister bus.topics bus.groups bus.stats bus.inspect dlq.list dlq.get dlq.replay dlq.purge storage.health storage.clear storage.query
    config.get config.set config.delete config.list task.publish task.get task.list task.delete task.ack task.fail task.extend""".split()
NAMES = """topic name agent id ids all limit cursor key value prefix what events config tools worker description subscription task tasks
    deliveries delivery error retry delay_ms wait_ms delete_dead_letters client protocol""".split()
TASK = {"topic": "t", "payload": {"content": 1}}
VALUES = [None, 1, -1, 1.5, "", "a", "t", "t.*", "x" * 300, [], ["1"], {}, True, False, {"content": 1}, TASK, [TASK], [{"delivery": 1}], [1, 2]]


def message(rng, number):
    method = rng.choice(METHODS)
    agent = f"a{rng.randint(0, 3)}"
    params = {}
    if rng.random() < 0.8:
        if method == "agent.register":
            params = {"topic": "t", "name": agent}
        elif method == "task.publish":
            params = {"task": TASK}
        elif method in ("task.fail", "task.ack", "task.extend"):
            n = rng.randint(1, 30)
            params = {"task.fail": {"delivery": n, "error": {"message": "x"}}, "task.ack": {"deliveries": [{"delivery": n, "result": 1}]},
                      "task.extend": {"deliveries": [n]}}[method]
        elif method.startswith(("agent", "topic")):
            params = {"topic": "t", "name": agent} if method.startswith("agent") else {"topic": "t"}
        elif method.startswith("dlq"):
            params = {"topic": "t", "agent": agent, **({"all": True} if method in ("dlq.replay", "dlq.purge") else {})}
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        params[rng.choice(NAMES)] = rng.choice(VALUES)
    body = {"jsonrpc": "2.0", "method": method, "params": params}
    if rng.random() < 0.9:
        body["id"] = number
    return json.dumps(body).encode()


def client(path, seed, until):
    rng = random.Random(seed)
    while time.monotonic() < until:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(0.05)
        try:
            s.connect(path)
            for number in range(rng.randint(1, 150)):
                dice = rng.random()
                if dice < 0.97:
                    body = message(rng, number)
                    s.sendall(struct.pack(">I", len(body)) + body)
                elif dice < 0.998:
                    body = rng.randbytes(rng.randint(1, 60))
                    s.sendall(struct.pack(">I", len(body)) + body)
                else:
                    s.sendall(rng.randbytes(rng.randint(1, 9)))
            end = rng.random()
            if end < 0.3:
                s.shutdown(socket.SHUT_WR)
            if end < 0.6:
                while s.recv(65536):
                    pass
        except OSError:
            pass
        s.close()


def crowd(daemon, seconds):
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=client, args=(daemon.socket, seed, until)) for seed in range(6)]
    for thread in threads:
        thread.start()
    return threads


@case
def clients_that_send_anything_do_not_bring_the_daemon_down():
    with Daemon() as daemon:
        for thread in crowd(daemon, 5):
            thread.join()
        c = daemon.connect()
        assert c.call("health")["status"] in ("running", "ready"), daemon.log_text()
        c.close()
        daemon.stop()


@case
def a_stop_under_such_a_load_is_clean():
    with Daemon("--stop-grace", "500ms") as daemon:
        threads = crowd(daemon, 4)
        time.sleep(1.5)
        status = daemon.kill(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert status == 0, f"{status}\n{daemon.log_text()}"


main()
