#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""NATS beside other programs: what they publish becomes a task, what we publish they can read, and a full topic refuses."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import SANITIZED, Daemon, case, main, wait_for, wakeups  # noqa: E402
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

    def ask(self, subject, body=""):
        """The answer to a request."""
        self.subscribe("their.answers")
        self.say(f"PUB {subject} their.answers {len(body)}".encode(), body.encode())
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


class Holding:
    """A proxy before the server that can keep one answer back: the next one that contains a text. What comes behind it goes on."""

    def __init__(self, url):
        host, port = url.split("//")[1].split("?")[0].split(":")
        self.server, self.text, self.kept, self.came = (host, int(port)), None, None, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f"{host}:{port}", f"127.0.0.1:{self.listener.getsockname()[1]}")
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, server = self.listener.accept()[0], socket.create_connection(self.server)
                for run, a, b in ((self.pass_on, client, server), (self.answer, server, client)):
                    threading.Thread(target=run, args=(a, b), daemon=True).start()

    def pass_on(self, a, b):
        with contextlib.suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)

    def answer(self, a, b):
        file = a.makefile("rb")
        with contextlib.suppress(OSError):
            while line := file.readline():
                if line.split(b" ")[0] in (b"MSG", b"HMSG"):
                    line += file.read(int(line.split()[-1]) + 2)
                if self.text and self.text in line:
                    self.text, self.kept = None, (b, line)
                    self.came.set()
                    continue
                b.sendall(line)
            b.shutdown(socket.SHUT_WR)

    def keep(self, text):
        self.came.clear()
        self.text = text

    def release(self):
        self.kept[0].sendall(self.kept[1])


@case
def what_a_sweep_saw_of_a_topic_that_was_deleted_takes_nothing_from_the_one_made_anew():
    with server() as url:
        proxy = Holding(url)
        with bus(proxy.url) as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("t", "a")
            for i in range(3):
                client.publish("t", i)
            proxy.keep(b"consumer_list_response")
            for _ in range(3):
                client.ack(client.next_task())
            assert proxy.came.wait(10), "no sweep"
            client.call("topic.delete", topic="t")
            for i in (10, 11):
                client.publish("t", i)
            proxy.release()
            for _ in range(2):  # the second is asked after the answer has been read, and what it leads to sent
                client.call("bus.stats", topic="t")
            assert Stranger(url).ask("$JS.API.STREAM.INFO.omni-t-t")["state"]["messages"] == 2
            client.register("t", "a")
            assert [client.next_task()["payload"]["content"] for _ in range(2)] == [10, 11]
            daemon.stop()


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
        assert time.monotonic() - start < (30 if SANITIZED else 5)
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


@contextlib.contextmanager
def kept(url, n):
    """Ends when the server has been told of n tasks that they are kept: it tells of each Nak, and such a one is."""
    stranger = Stranger(url)
    stranger.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.>")
    yield
    for _ in range(n):
        stranger.next()


@case
def what_a_killed_server_forgot_of_finished_tasks_does_not_wait_for_their_leases():
    """A server writes its consumers' state every 100 ms: killed, it has forgotten the last acks, and knows of tasks that take long that a daemon keeps them."""
    n, ends = 30, {
        "acked": lambda client, d: client.start("task.ack", deliveries=[{"delivery": d}]),
        "dead": lambda client, d: client.start("task.fail", delivery=d, error={"message": "never"}, retry=False),
        "retried": lambda client, d: client.start("task.fail", delivery=d, error={"message": "once more"}, delay_ms=3000)}
    with Server("nats") as killed, bus(killed.values["bus_url"].replace("{case}", "omni")) as daemon, contextlib.closing(daemon.connect()) as client:
        for topic, end in ends.items():
            with kept(killed.values["bus_url"], n):
                client.register(topic, "a", prefetch=n)
                for i in range(n):
                    client.publish(topic, i)
                tasks = [client.next_task() for _ in range(n)]
            for request in [end(client, t["delivery"]) for t in tasks]:
                client.finish(request)
            killed.do("kill")
            killed.do("up")
            if topic == "retried":
                for i in range(n):
                    client.ack(client.next_task(10))
            group = {}

            def finished():
                with contextlib.suppress(OmniError):
                    group.update(client.call("bus.groups", topic=topic)["groups"][0])
                    return group["lag"] + group["leased"] + group["retrying"] == 0

            wait_for(finished, 10, f"the end of what is {topic}")
            assert not client.deliveries, topic
            assert group["dead"] == (n if topic == "dead" else 0), group
        daemon.stop()


@case
def answers_to_tasks_of_a_server_that_lost_its_disk_do_not_finish_those_that_came_after_them():
    """Both are numbered from 1, and another daemon has made the group anew before this one looks."""
    n = 3
    with Server("nats") as lost, bus(url := lost.values["bus_url"].replace("{case}", "omni")) as late, contextlib.closing(late.connect()) as client:
        with kept(url, n):
            client.register("t", "a", prefetch=n)
            for i in range(n):
                client.publish("t", i)
            old = [client.next_task() for _ in range(n)]
        late.process.send_signal(signal.SIGSTOP)
        lost.do("kill")
        shutil.rmtree(os.path.join(lost.folder, "1"))
        lost.do("up")
        with bus(url) as first, contextlib.closing(first.connect()) as other:
            other.register("t", "a", prefetch=n)
            for i in range(n):
                other.publish("t", i + n)
            new = [other.next_task() for _ in range(n)]
            late.process.send_signal(signal.SIGCONT)
            wait_for(lambda: client.turn(20) or client.notifications, 20)
            assert [sorted(said["deliveries"]) for what, said in client.notifications] == [[t["delivery"] for t in old]], client.notifications
            for task in old:
                with contextlib.suppress(OmniError):
                    client.ack(task)
                    raise AssertionError("an answer that comes too late is taken")
            client.close()
            for task in new:
                other.fail(task, "once more", delay_ms=0)
            again = sorted(other.next_task(10)["payload"]["content"] for _ in range(n))
            assert again == list(range(n, 2 * n)), again
            first.stop()
        late.stop()


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


@case
def the_group_of_a_pattern_and_an_agent_that_is_named_as_both_are_two():
    with server() as url, bus(url) as daemon:
        with contextlib.closing(daemon.connect()) as one, contextlib.closing(daemon.connect()) as other:
            one.register("a.b", "a.*.c")
            other.register("a.*", "c")
            one.publish("a.b", 1)
            for client in (one, other):
                task = client.next_task()
                assert task["payload"]["content"] == 1, task
                client.ack(task)
        daemon.stop()


def streams_and_consumers(url, *subjects):
    """What the server has for these subjects: each stream's configuration, and its consumers' by their names."""
    stranger = Stranger(url)
    found = {}
    for subject in subjects:
        for stream in stranger.ask("$JS.API.STREAM.LIST", json.dumps({"subject": subject}))["streams"] or []:
            name = stream["config"]["name"]
            consumers = stranger.ask(f"$JS.API.CONSUMER.LIST.{name}")["consumers"] or []
            found[name] = stream, {c["name"]: c["config"] for c in consumers}
    return found


@case
def each_topic_has_a_stream_of_its_own_unless_one_is_asked_for():
    with server() as url, bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        client.register("orders.new", "agent")
        client.register("orders.*", "all")
        client.publish("orders.new", 1)
        client.publish("bills", 1)
        found = streams_and_consumers(url, "omni.t.>")
        assert set(found) == {"omni-t-orders+new", "omni-t-bills"}, found.keys()
        stream, consumers = found["omni-t-orders+new"]
        assert stream["config"]["subjects"] == ["omni.t.orders.new"] and stream["config"].get("max_msgs_per_subject", -1) == -1, stream
        assert set(consumers) == {"agent", "orders+=2A@all"} and not any("filter_subject" in c for c in consumers.values()), consumers
        assert consumers["agent"]["metadata"]["omni_start"] == "1" and consumers["agent"]["opt_start_seq"] == 1, consumers
        daemon.stop()


@case
def dead_letters_of_names_with_dots_are_their_own_groups():
    groups = (("a.b", "c"), ("a", "b.c"))
    with server() as url, bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        for topic, agent in groups:
            client.register(topic, agent, dlq_retry_limit=0)
            client.publish(topic, topic)
            client.fail(client.next_task(), "on purpose")
        for topic, agent in groups:
            letters = wait_for(lambda: client.call("dlq.list", topic=topic, agent=agent)["dead_letters"], 10)
            assert [letter["task"]["topic"] for letter in letters] == [topic], letters
            assert client.call("dlq.replay", topic=topic, agent=agent, all=True) == {"replayed": 1}
            task = client.next_task()
            assert task["topic"] == topic, task
            client.ack(task)
        daemon.stop()


@case
def two_daemons_and_two_topics_share_one_stream():
    with server("shared") as url, bus(url) as one, bus(url) as two, contextlib.ExitStack() as stack:
        client, other, all_of_them = (stack.enter_context(contextlib.closing(d.connect())) for d in (one, two, two))
        client.register("orders.new", "agent")
        other.register("bills", "agent")
        all_of_them.register("#", "all")
        # One id on two topics is two tasks; each task reaches the groups of its topic, wherever it was published.
        for topic, publisher in (("orders.new", other), ("bills", client)):
            publisher.publish(topic, topic, id="17")
            publisher.publish(topic, topic, id="17")
        for subscriber, topics in ((client, ["orders.new"]), (other, ["bills"]), (all_of_them, ["bills", "orders.new"])):
            tasks = [subscriber.next_task() for _ in topics]
            assert sorted(t["payload"]["content"] for t in tasks) == topics and all(t["id"] == "17" for t in tasks), tasks
            for task in tasks:
                subscriber.ack(task)
        found = streams_and_consumers(url, "omni.t.>")
        assert list(found) == ["omni-all"] and found["omni-all"][0]["config"]["subjects"] == ["omni.t.>"], found
        assert {n: c["filter_subject"] for n, c in found["omni-all"][1].items()} == {
            "orders+new@agent": "omni.t.orders.new", "orders+new@=23@all": "omni.t.orders.new",
            "bills@agent": "omni.t.bills", "bills@=23@all": "omni.t.bills"}, found
        # What all have finished goes, and is counted; what one has not, stays.
        wait_for(lambda: streams_and_consumers(url, "omni.t.>")["omni-all"][0]["state"]["messages"] == 0, 5, "the sweep")
        client.publish("bills", 2)
        for daemon in (one, two):
            with contextlib.closing(daemon.connect()) as c:
                rows = {r["topic"]: r for r in c.call("bus.topics")["topics"]}
                assert {t: (r["depth"], r["published"], r["groups"]) for t, r in rows.items()} == {"bills": (1, 2, 2), "orders.new": (0, 1, 2)}, rows
        # A topic that is deleted leaves the other, and the stream. It comes again as a new one, to the pattern's group as well.
        client.call("topic.delete", topic="bills")
        found = streams_and_consumers(url, "omni.t.>")
        assert set(found["omni-all"][1]) == {"orders+new@agent", "orders+new@=23@all"} and not found["omni-all"][0]["state"]["messages"], found
        assert [r["topic"] for r in client.call("bus.topics")["topics"]] == ["orders.new"]
        other.publish("bills", "again", id="17")
        while (task := all_of_them.next_task())["payload"]["content"] != "again":
            pass
        rows = {r["topic"]: r for r in client.call("bus.topics")["topics"]}
        assert rows["bills"]["published"] == 1 and rows["bills"]["depth"] == 1, rows
        one.stop()
        two.stop()


@case
def a_shared_stream_that_somebody_deleted_is_made_again():
    with server("shared") as url, bus(url) as one, bus(url) as two, contextlib.ExitStack() as stack:
        client, other = (stack.enter_context(contextlib.closing(d.connect())) for d in (one, two))
        other.register("orders.*", "all")
        for topic in ("orders.a", "orders.b"):
            client.publish(topic, 1)
            other.publish(topic, 2)
            for _ in range(2):
                other.ack(other.next_task())
        assert Stranger(url).ask("$JS.API.STREAM.DELETE.omni-all")["success"]
        # One daemon finds it gone and makes it; the other learns that its topics are gone with it.
        client.publish("orders.a", 3)
        other.publish("orders.b", 4)
        got = [other.next_task() for _ in range(2)]
        assert sorted(t["payload"]["content"] for t in got) == [3, 4], got
        rows = {r["topic"]: r["published"] for r in client.call("bus.topics")["topics"]}
        assert rows == {"orders.a": 1, "orders.b": 1}, rows
        one.stop()
        two.stop()


@case
def a_shared_stream_has_limits_for_each_topic_and_ids_of_raw_messages():
    with server("shared") as url, bus(url, "&max_topic_tasks=2&format=raw") as daemon, contextlib.closing(daemon.connect()) as client:
        numbers = [client.publish("small", n) for n in range(2)]
        assert refused(lambda: client.publish("small", 2), "limit", "max_topic_tasks")
        client.publish("other", 1)
        client.register("small", "agent")
        tasks = [client.next_task() for _ in range(2)]
        assert [t["id"] for t in tasks] == numbers and [t["payload"]["content"] for t in tasks] == [0, 1], tasks
        client.ack(tasks[0])

        def again():
            with contextlib.suppress(OmniError):
                return client.publish("small", 3)

        wait_for(again, 5, "a publish after one was finished")
        held = client.call("bus.inspect", topic="small")
        assert [e["task"]["payload"]["content"] for e in held["entries"]] == [1, 3], held
        daemon.stop()


@case
def an_account_of_few_streams_has_many_topics_in_one():
    with server("user") as url:
        url = url.replace("omni:secret", "small:secret")
        with bus(url, "&stream=all") as daemon, contextlib.closing(daemon.connect()) as client:
            for n in range(20):
                client.publish(f"topic {n}", n)
            for n in range(16):
                client.register(f"topic {n}", "agent")
            assert sorted(client.next_task()["payload"]["content"] for _ in range(16)) == list(range(16))
            assert refused(lambda: client.register("topic 16", "agent"), "limit", "max_consumers")
            daemon.stop()


@case
def another_programs_consumer_of_a_shared_stream_holds_what_it_has_not_finished():
    with server("shared") as url, bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        client.register("orders.new", "agent")
        client.register("bills", "agent")
        config = {"durable_name": "theirs", "ack_policy": "explicit", "filter_subject": "omni.t.orders.*"}
        assert "error" not in Stranger(url).ask("$JS.API.CONSUMER.CREATE.omni-all.theirs", json.dumps({"stream_name": "omni-all", "config": config}))
        for topic in ("orders.new", "bills"):
            client.publish(topic, 1)
            client.ack(client.next_task())

        def held():
            info = Stranger(url).ask("$JS.API.STREAM.INFO.omni-all", json.dumps({"subjects_filter": ">"}))
            return info["state"].get("subjects")

        wait_for(lambda: held() == {"omni.t.orders.new": 1}, 5, "the sweep of one topic")
        for topic in ("orders.new", "bills"):  # and the next one leaves it, too
            client.publish(topic, 2)
            client.ack(client.next_task())
        wait_for(lambda: held() == {"omni.t.orders.new": 2}, 5, "the sweep of one topic once more")
        daemon.stop()


def refusal(url):
    """What the daemon says of a bus that it cannot use."""
    with bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
        try:
            client.publish("t", 1)
        except OmniError as e:
            return str(e) + daemon.log_text()
        finally:
            daemon.stop()
    raise AssertionError("it was taken")


@case
def a_stream_that_cannot_be_shared_is_refused_with_what_to_mend():
    with server() as url:
        stranger = Stranger(url)

        def there(name, **config):
            config = dict({"name": name, "subjects": [f"{name}.t.>"], "storage": "file", "discard": "new", "allow_direct": True}, **config)
            answer = stranger.ask(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config))
            assert "error" not in answer, answer

        def shared(name):
            return url.replace("prefix=omni", f"prefix={name}&stream={name}")

        there("foreign", subjects=["news.>"])
        text = refusal(shared("foreign"))
        assert "stream=foreign" in text and "foreign.t.>" in text, text
        for name, config in (("old", {"max_age": 10**12}), ("queue", {"retention": "workqueue"}), ("dropping", {"discard": "old"})):
            there(name, **config)
            text = refusal(shared(name))
            assert f"stream={name}" in text and "retention limits" in text, text
        # A stream that somebody made well, with more subjects, is used.
        there("good", subjects=["news2.>", "good.t.>"])
        with bus(shared("good")) as daemon, contextlib.closing(daemon.connect()) as client:
            client.register("t", "agent")
            client.publish("t", 1)
            client.ack(client.next_task())
            daemon.stop()
        # Topics with streams of their own, and topics that share one, are not of one prefix.
        with bus(url) as daemon, contextlib.closing(daemon.connect()) as client:
            client.publish("t", 1)
            daemon.stop()
        text = refusal(url + "&stream=omni-all")
        assert "stream=" in text and "prefix" in text, text
        text = refusal(shared("good").replace("&stream=good", ""))
        assert "stream=" in text and "prefix" in text, text


@case
def a_mirror_elsewhere_holds_nothing_and_can_take_the_place_of_a_server_that_is_lost():
    with Server("nats", "leaf") as nodes:
        url = nodes.values["bus_url"].replace("{case}", "omni")
        stranger = Stranger(url)

        def api(domain, what, **body):
            return stranger.ask(f"$JS.{domain}.API.STREAM.{what}", json.dumps(body) if body else "")

        def messages(domain):
            state = api(domain, "INFO.omni-t-t").get("state", {})
            return state.get("messages"), state.get("last_seq")

        mirror = {"name": "omni-t-t", "storage": "file", "allow_direct": True, "discard": "new"}
        copied = {"name": "omni-t-t", "external": {"api": "$JS.hub.API", "deliver": "mirrored"}}
        with bus(url) as d, contextlib.closing(d.connect()) as client:
            client.register("t", "a")
            answer = api("leaf", "CREATE.omni-t-t", **mirror, mirror=copied)
            assert "error" not in answer, answer
            for i in range(5):
                client.publish("t", i)
            wait_for(lambda: messages("leaf") == (5, 5), 10, "copied")
            for _ in range(2):
                client.ack(client.next_task())
            # What its group has finished goes, whatever the mirror has read of it.
            wait_for(lambda: messages("hub") == (3, 5), 20, "swept")
            stats = client.call("bus.stats", topic="t")["topics"][0]
            assert [g["agent"] for g in stats["groups"]] == ["a"], stats
            d.stop()
        stranger = Stranger(url)
        nodes.do("down 1")
        taken = {k: v for k, v in mirror.items() if k != "mirror"}
        answer = api("leaf", "UPDATE.omni-t-t", **taken, subjects=["omni.t.t"])
        assert "error" not in answer, answer
        with bus(url.replace("domain=hub", "domain=leaf")) as d, contextlib.closing(d.connect()) as client:
            client.register("t", "a")
            client.publish("t", 5)
            got = []
            while not {2, 3, 4, 5} <= set(got):
                task = client.next_task()
                got.append(task["payload"]["content"])
                client.ack(task)
            assert [t["topic"] for t in client.call("bus.stats")["topics"]] == ["t"]
            d.stop()


@case
def what_may_not_be_deleted_is_said_once():
    with server("user") as url:
        env = {"EVENT_BUS_URL": url.replace("omni:secret@", "keeper:secret@"), "LOG_LEVEL": "debug"}
        with Daemon(env=env) as d, contextlib.closing(d.connect()) as client:
            said = lambda: [line.split()[1] for line in d.log_text().splitlines() if "what is finished of topic t stays" in line]  # noqa: E731
            client.register("t", "agent")
            for n in range(3):
                client.publish("t", n)
                client.ack(client.next_task())
                wait_for(lambda: len(said()) > n, 20, "that it stays")
            assert said()[0] == "warning" and set(said()[1:]) == {"debug"}, said()
            assert "lacks the permission" in d.log_text()
            d.stop()


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
    for kind in ("plain", "shared"):
        with server(kind) as url:
            everywhere, _ = idle_wakeups(url)
            assert everywhere < 1, (kind, everywhere)


@case
def ten_idle_agents_on_a_cluster_cost_few():
    with server("cluster") as url:
        _, main_thread = idle_wakeups(url)
        print(f"# {main_thread:.1f} wake-ups a second")
        assert main_thread < 5, main_thread


if __name__ == "__main__":
    main()
