#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""NATS beside other programs: what they publish becomes a task, what we publish they can read, and a full topic refuses."""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main, wait_for, wakeups  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import Server  # noqa: E402

SCRIPT = os.path.join(os.path.dirname(__file__), "../servers/nats.sh")


class Stranger:
    """A program that knows NATS's protocol (https://docs.nats.io/reference/reference-protocols/nats-protocol) and nothing of ours."""

    def __init__(self, url):
        host, port = url.split("//")[1].split("?")[0].split(":")
        self.file = socket.create_connection((host, int(port)), timeout=10).makefile("rwb")
        self.file.readline()
        self.say(b'CONNECT {"verbose":false,"headers":true}')

    def say(self, *parts):
        self.file.write(b"".join(p + b"\r\n" for p in parts))
        self.file.flush()

    def publish(self, subject, data, headers=None):
        block = b"NATS/1.0\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in (headers or {}).items()) + b"\r\n"
        self.say(f"HPUB {subject} {len(block)} {len(block) + len(data)}".encode(), block + data)

    def subscribe(self, subject):
        self.say(f"SUB {subject} 1".encode(), b"PING")
        while self.file.readline().strip() != b"PONG":
            pass

    def ask(self, subject):
        """The answer to a request without a body."""
        self.subscribe("their.answers")
        self.say(f"PUB {subject} their.answers 0".encode(), b"")
        return json.loads(self.next()[2])

    def next(self):
        """The next message's subject, headers and data."""
        while True:
            line = self.file.readline().split()
            if line[0] == b"PING":
                self.say(b"PONG")
            if line[0] not in (b"MSG", b"HMSG"):
                continue
            body = self.file.read(int(line[-1]) + 2)[:-2]
            size = int(line[-2]) if line[0] == b"HMSG" else 0
            headers = dict(h.split(": ", 1) for h in body[:size].decode().split("\r\n")[1:] if h)
            return line[1].decode(), headers, body[size:]


@contextlib.contextmanager
def server(kind="plain", value="bus_url"):
    folder = tempfile.mkdtemp(prefix="omni-nats-")
    process = subprocess.Popen([SCRIPT, "serve", folder, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        said = {}
        for line in process.stdout:
            if line == "ready\n":
                break
            name, text = line.strip().split("=", 1)
            said.setdefault(name, text.replace("{case}", "omni"))
        yield said[value]
    finally:
        process.stdin.close()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def bus(url, more=""):
    return Daemon(env={"EVENT_BUS_URL": url + more})


@case
def what_another_program_publishes_is_a_task():
    with server() as url, bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        client.register("orders.new", "agent")
        stranger = Stranger(url)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        stranger.publish("omni.t.orders.new", b'{"total": 1.50}', {"traceparent": trace, "ce-id": "17", "colour": "red"})
        task = client.next_task()
        assert task["payload"]["content"] == {"total": 1.5} and task["topic"] == "orders.new", task
        assert task["id"] == "17" and task["traceparent"] == trace and task["headers"]["colour"] == "red", task
        client.ack(task)
        stranger.publish("omni.t.orders.new", b"no JSON \xff \"at all\"")
        task = client.next_task()
        assert task["payload"]["content"] == 'no JSON \ufffd "at all"' and task["id"], task
        client.ack(task)
        # What looks like a record and is none does not break the frame.
        stranger.publish("omni.t.orders.new", b'{"id":"x","topic":"orders.new","payload":{"content":1}')
        task = client.next_task()
        assert task["payload"]["content"].startswith('{"id":"x"'), task
        client.ack(task)
        daemon.stop()


@case
def what_we_publish_another_program_can_read():
    with server() as url:
        stranger = Stranger(url)
        stranger.subscribe("omni.t.>")
        with bus(url, "&cloudevents=true") as daemon, contextlib.closing(daemon.connect()) as client:
            number = client.publish("orders.a b", {"n": 1}, headers={"colour": "red", "Nats-Rollup": "all"}, traceparent="00-1-2-01")
            subject, headers, data = stranger.next()
            assert subject == "omni.t.orders.a%20b", subject
            assert headers["Nats-Msg-Id"] == number and headers["colour"] == "red" and headers["traceparent"] == "00-1-2-01", headers
            assert headers["ce-id"] == number and headers["ce-type"] == "orders.a b" and "Nats-Rollup" not in headers, headers
            assert json.loads(data)["payload"]["content"] == {"n": 1}, data
            daemon.stop()
        with bus(url, "&format=raw") as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("bare", "agent")
            number = client.publish("bare", [1, 2.0])
            subject, headers, data = stranger.next()
            assert subject == "omni.t.bare" and data == b"[1, 2.0]" and headers["Nats-Msg-Id"] == number, (headers, data)
            task = client.next_task()
            assert task["id"] == number and task["payload"]["content"] == [1, 2.0], task
            client.ack(task)
            daemon.stop()


@case
def new_topics_of_a_cluster_take_their_first_tasks():
    # Forty streams of three copies take a busy disk its time: a call has more of it than the daemon.
    with server("cluster") as url, bus(url) as daemon, contextlib.closing(daemon.connect(timeout=90)) as client:
        for round_ in range(3):
            tasks = [{"topic": f"new.{round_}.{n}", "payload": {"content": n}} for n in range(40)]
            for _ in range(5):
                results = client.call("task.publish", tasks=tasks)["results"]
                # The disk of a busy machine may let the cluster make no stream for seconds; a stream that is made takes its first task.
                tasks = [t for t, r in zip(tasks, results) if "no leader to make" in json.dumps(r.get("error", ""))]
                if not tasks:
                    break
            assert all("id" in r for r in results), [r for r in results if "id" not in r][:2]
        daemon.stop()


@case
def topics_whose_streams_are_gone_while_the_cluster_has_no_leader_are_refused_once_each():
    with Server("nats", "cluster") as cluster:
        first = cluster.values["bus_url"].split("//")[1].split(",")[0]
        more = cluster.values["bus_url"].partition("?")[2].replace("{case}", "omni")
        tasks = [{"topic": f"gone{n}", "payload": {"content": n}} for n in range(8)]
        # One server by two names: the daemon stays with it.
        with bus(f"nats://{first},{first}?{more}") as daemon, contextlib.closing(daemon.connect()) as client:
            assert all("id" in r for r in client.call("task.publish", tasks=tasks)["results"])
            stranger = Stranger(f"nats://{first}")
            for n in range(8):
                assert stranger.ask(f"$JS.API.STREAM.DELETE.omni-t-gone{n}")["success"]
            cluster.do("kill 2 3")
            start = time.monotonic()
            for _ in range(2):
                try:
                    results = client.call("task.publish", tasks=tasks)["results"]
                    assert all(r["error"]["data"]["kind"] == "unavailable" for r in results), results
                except OmniError as e:
                    assert e.kind == "unavailable", e
            assert time.monotonic() - start < 20
            cluster.do("up 2 3")
            wait_for(lambda: published(client, "gone1"), 30, "a publish that succeeds")
            daemon.stop()


def published(client, topic):
    try:
        return client.publish(topic, 1)
    except OmniError as e:
        assert e.kind == "unavailable", e
        return None


@case
def a_full_topic_refuses_until_a_task_is_finished():
    with server() as url, bus(url, "&max_topic_tasks=3") as daemon, contextlib.closing(daemon.connect()) as client:
        for n in range(3):
            client.publish("small", n)
        try:
            client.publish("small", 3)
            raise AssertionError("a fourth task was taken")
        except OmniError as e:
            assert e.kind == "limit" and "max_topic_tasks" in str(e), e
        client.register("small", "agent")
        client.ack(client.next_task())

        def again():
            try:
                return client.publish("small", 4)
            except OmniError:
                return None

        wait_for(again, 5, "a publish after one was finished")
        assert [client.next_task()["payload"]["content"] for _ in range(3)] == [1, 2, 4]
        daemon.stop()


def refused(what, kind, *words):
    """Has it refused with this kind and each of these words, and soon."""
    start = time.monotonic()
    try:
        what()
    except OmniError as e:
        assert e.kind == kind and all(w in str(e) for w in words), (e.kind, str(e))
        assert time.monotonic() - start < 5
        return True
    return False


@case
def an_account_that_is_full_says_which_limit_to_raise():
    with server("user") as url:
        url = url.replace("omni:secret", "small:secret")
        with bus(url, "&max_topic_bytes=0") as daemon, contextlib.closing(daemon.connect()) as client:
            content = "x" * 200000
            for n in range(20):
                if refused(lambda: client.publish("big", content), "limit", "max_file"):
                    break
            else:
                raise AssertionError("20 tasks of 200 kB are in an account of 2 MB")
            client.register("big", "agent")
            client.ack(client.next_task())

            def again():
                with contextlib.suppress(OmniError):
                    return client.publish("big", "small again")

            wait_for(again, 5, "a publish after one was finished")
            for n in range(20):
                if refused(lambda: client.publish(f"topic {n}", 1), "limit", "limits"):
                    break
            else:
                raise AssertionError("20 topics are in an account of 8 streams")
            assert "max_streams" in daemon.log_text(), daemon.log_text()
            daemon.stop()


@case
def a_storage_that_is_full_says_so():
    with server("user") as url:
        store = url.replace("omni:secret", "small:secret").replace("nats://", "nats+kv://")
        with Daemon(env={"STORAGE_URL": store}) as daemon, contextlib.closing(daemon.connect()) as client:
            for n in range(20):
                if refused(lambda: client.call("config.set", key=f"k{n}", value="x" * 200000), "limit", "limits of the account"):
                    break
            else:
                raise AssertionError("20 settings of 200 kB are in an account of 2 MB")
            client.call("config.delete", key="k0")
            client.call("config.set", key="k0", value="small")
            assert client.call("config.get", key="k0")["value"] == "small"
            daemon.stop()


@case
def what_was_written_twice_and_deleted_is_gone_when_the_server_is_killed():
    with Server("nats") as killed:
        with Daemon(env={"STORAGE_URL": killed.values["store_url"].replace("{case}", "gone")}) as daemon, contextlib.closing(daemon.connect()) as client:
            for kept in (False, True):
                for n in range(20):
                    client.call("config.set", key=f"k{n}", value="first")
                    client.call("config.set", key=f"k{n}", value="second")
                for n in range(0, 20, 2 if kept else 1):
                    client.call("config.delete", key=f"k{n}")
                killed.do("kill")
                killed.do("up")
                wait_for(lambda: client.call("storage.health")["status"] == "up", 20)
                left = client.call("config.list", prefix="k")["config"]
                assert left == ({f"k{n}": "second" for n in range(1, 20, 2)} if kept else {}), left
            daemon.stop()


@case
def a_task_larger_than_the_server_takes_names_max_payload():
    with server() as url, bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        assert refused(lambda: client.publish("big", "x" * (8 << 20)), "limit", "max_payload")
        client.publish("big", "x" * (7 << 20))
        client.register("big", "agent")
        assert len(client.next_task()["payload"]["content"]) == 7 << 20
        daemon.stop()


@case
def credentials_of_a_file_are_used():
    with server("nkey", "credentials") as url, bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        client.register("t", "agent")
        client.publish("t", 1)
        client.ack(client.next_task())
        daemon.stop()


@case
def the_group_of_a_pattern_starts_where_it_says():
    with server() as url, bus(url, "&retention_ms=600000") as daemon, contextlib.closing(daemon.connect()) as client:
        client.register("orders.eu", "keeper")
        client.register("orders.us", "keeper")

        def publish(n):
            for topic in ("orders.eu", "orders.us"):
                client.publish(topic, n)
                client.ack(client.next_task())

        publish(1)
        time.sleep(0.05)  # the two halves have times that differ
        between = time.time()
        time.sleep(0.05)
        publish(2)
        for agent, start, expected in (("all", "first", [1, 1, 2, 2]), ("later", between, [2, 2])):
            with contextlib.closing(daemon.connect()) as other:
                other.register("orders.*", agent, start=start)
                got = []
                for _ in expected:
                    task = other.next_task()
                    got.append(task["payload"]["content"])
                    other.ack(task)
                assert sorted(got) == expected, (agent, got)
        with contextlib.closing(daemon.connect()) as other:
            other.register("orders.*", "new", start="new")
            publish(3)
            got = [other.next_task(), other.next_task()]
            assert [t["payload"]["content"] for t in got] == [3, 3], got
        daemon.stop()


def idle_wakeups(url):
    """How often the threads of a daemon that serves ten agents wake up in a second of doing nothing, and its main thread alone."""
    with bus(url) as daemon, contextlib.ExitStack() as stack:
        for n in range(10):
            client = stack.enter_context(contextlib.closing(daemon.connect()))
            client.register(f"t{n}", "agent")
            client.publish(f"t{n}", n)
            client.ack(client.next_task(), n)
        pid, seconds = daemon.process.pid, 5
        time.sleep(4)  # what was finished is swept meanwhile
        before, before_main = wakeups(pid), wakeups(pid, [pid])
        time.sleep(seconds)
        print(f"# {daemon.rss_bytes() / 1048576:.1f} MiB resident")
        result = (wakeups(pid) - before) / seconds, (wakeups(pid, [pid]) - before_main) / seconds
        daemon.stop()
        return result


@case
def ten_idle_agents_cost_no_wakeups():
    with server() as url:
        everywhere, _ = idle_wakeups(url)
        assert everywhere < 1, everywhere


@case
def ten_idle_agents_on_a_cluster_cost_few():
    with server("cluster") as url:
        _, main_thread = idle_wakeups(url)
        print(f"# {main_thread:.1f} wake-ups a second")
        assert main_thread < 5, main_thread


if __name__ == "__main__":
    main()
