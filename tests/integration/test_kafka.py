#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kafka beside other programs and among several daemons: foreign messages are tasks, what we publish others can read, partitions move."""
import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import SANITIZED, Daemon, case, main, wait_for, wakeups  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import SCRIPTS, Server  # noqa: E402


@contextlib.contextmanager
def broker():
    with Server("kafka") as server:
        yield server.values["bus_url"].replace("{case}", "x")


def bus(url, more=""):
    return Daemon(env={"EVENT_BUS_URL": url + more})


def pairs(flat):
    """kcat writes headers as name, value, name, value …"""
    return dict(zip(flat[::2], flat[1::2]))


class Stranger:
    """kcat, which knows Kafka and nothing of ours."""

    def __init__(self, url):
        self.brokers = url.split("//")[1].split("?")[0]

    def publish(self, topic, data, key=None, headers=()):
        command = ["kcat", "-P", "-b", self.brokers, "-t", topic] + [f"-H{h}" for h in headers] + (["-k", key] if key else [])
        subprocess.run(command, input=data, check=True, timeout=60)

    def topics(self):
        return subprocess.run(["kcat", "-L", "-b", self.brokers], check=True, timeout=60, text=True, stdout=subprocess.PIPE).stdout

    def ask(self, key, version, topic, rest):
        """What kcat cannot, of one topic, as the protocol's guide has it: its name, then the rest."""
        name = topic.encode()
        request = struct.pack(">hhih", key, version, 1, -1) + struct.pack(">ih", 1, len(name)) + name + rest
        host, port = self.brokers.split(":")
        with socket.create_connection((host, int(port)), 30) as s, s.makefile("rb") as answers:
            s.sendall(struct.pack(">i", len(request)) + request)
            answer = answers.read(struct.unpack(">i", answers.read(4))[0])
        error = struct.unpack_from(">h", answer, 14 + len(name))[0]  # after correlation, throttle, count, name
        assert error == 0, error

    def add_partitions(self, topic, count):
        self.ask(37, 0, topic, struct.pack(">iii?", count, -1, 10000, False))  # CreatePartitions

    def delete(self, topic):
        self.ask(20, 1, topic, struct.pack(">i", 10000))  # DeleteTopics

    def read(self, topic, committed=True):
        """All that the topic holds: key, headers, value of each."""
        level = "read_committed" if committed else "read_uncommitted"
        out = subprocess.run(
            ["kcat", "-C", "-b", self.brokers, "-t", topic, "-e", "-q", "-J", "-X", f"isolation.level={level}"],
            check=True, timeout=60, stdout=subprocess.PIPE,
        ).stdout
        messages = [json.loads(line) for line in out.splitlines()]
        return [(m["key"], pairs(m.get("headers", [])), m["payload"]) for m in messages]


@case
def what_another_program_publishes_is_a_task():
    with broker() as url, bus(url) as d, contextlib.closing(d.connect()) as c:
        stranger = Stranger(url)
        c.publish("orders", 0)
        stranger.publish("x.orders", b'{"order": 17}', key="k", headers=["shop=north", "traceparent=00-" + "a" * 32 + "-" + "b" * 16 + "-01"])
        stranger.publish("x.orders", b"no JSON at all", headers=["ce_id=17-4", "ce_source=/shop"])
        c.register("orders", "a")
        tasks = [c.next_task() for _ in range(3)]
        assert [t["payload"]["content"] for t in tasks] == [0, {"order": 17}, "no JSON at all"], tasks
        assert tasks[1]["headers"] == {"shop": "north"} and tasks[1]["traceparent"].startswith("00-aaa"), tasks[1]
        assert tasks[2]["id"] == "17-4" and tasks[2]["source"] == "/shop", tasks[2]
        assert tasks[1]["id"] == "x.orders:0:1", tasks[1]
        for t in tasks:
            c.ack(t, 1)


@case
def what_we_publish_another_program_reads():
    with broker() as url, bus(url, "&format=raw&cloudevents=true") as d, contextlib.closing(d.connect()) as c:
        made = {"id": c.publish("orders", {"order": 18}, key="k", headers={"shop": "south"})}
        (key, headers, value), = Stranger(url).read("x.orders")
        assert key == "k" and json.loads(value) == {"order": 18}, (key, value)
        assert headers["shop"] == "south" and headers["ce_id"] == made["id"] and headers["ce_type"] == "orders", headers
        c.register("orders", "a")
        task = c.next_task()
        assert task["id"] == made["id"] and task["payload"]["content"] == {"order": 18}, task


@case
def a_task_that_is_too_large_is_refused_and_the_setting_named():
    with broker() as url, bus(url, "&max_message_bytes=20000") as d, contextlib.closing(d.connect()) as c:
        try:
            c.publish("orders", "x" * 30000)
            raise AssertionError("it was taken")
        except OmniError as e:
            assert "max_message_bytes" in str(e), e
        c.publish("orders", "x" * 10000)


@case
def partitions_move_between_three_daemons_and_nothing_is_lost_or_acknowledged_twice():
    n = 60
    with broker() as url:
        daemons = [bus(url, "&partitions=6").__enter__() for _ in range(3)]
        try:
            clients = [d.connect() for d in daemons]
            seen, refused = [], []
            publisher = daemons[0].connect()
            # A commit that meets a rebalance on a busy machine costs a daemon its partitions: what its workers had comes after that long.
            clients[0].register("t", "a", prefetch=2, reclaim_idle_ms=10000)
            clients[1].register("t", "a", prefetch=2, reclaim_idle_ms=10000)

            def serve(some, until, timeout=40):
                deadline = time.monotonic() + timeout
                while len(seen) < until:
                    assert time.monotonic() < deadline, (
                        f"{len(seen)} of {until}, not seen {set(range(until)) - {content for _, content in seen}}, "
                        f"refused {refused}, {publisher.call('bus.groups', topic='t')}"
                    )
                    for number in some:
                        task = clients[number].next_task(0.05)
                        if task:
                            try:
                                clients[number].ack(task, 1)
                            except OmniError as e:  # its partition moved meanwhile: another gets it
                                assert e.kind == "conflict", e
                                refused.append((number, task["payload"]["content"]))
                                continue
                            seen.append((number, task["payload"]["content"]))

            for i in range(n):
                publisher.publish("t", i, key=f"k{i}")
            serve([0, 1], n)
            clients[2].register("t", "a", prefetch=2, reclaim_idle_ms=10000)
            for i in range(n, 2 * n):
                publisher.publish("t", i, key=f"k{i}")
            serve([0, 1, 2], 2 * n)
            daemons[1].stop()
            for i in range(2 * n, 3 * n):
                publisher.publish("t", i, key=f"k{i}")
            serve([0, 2], 3 * n)
            contents = [content for _, content in seen]
            assert sorted(contents) == list(range(3 * n)), f"{len(contents)} deliveries of {len(set(contents))} tasks"
            # A share that a dead daemon had comes to the others.
            wait_for(lambda: publisher.call("bus.groups", topic="t")["groups"][0]["lag"] == 0, what="lag 0")
            daemons[2].kill()
            for i in range(3 * n, 4 * n):
                publisher.publish("t", i, key=f"k{i}")
            serve([0], 4 * n)
        finally:
            for d in daemons:
                d.__exit__(None, None, None)


@case
def an_acks_outputs_are_seen_once_and_with_it():
    with broker() as url, bus(url) as d, contextlib.closing(d.connect()) as c:
        c.register("t", "a")
        for i in range(5):
            c.publish("t", i)
            task = c.next_task()
            c.ack(task, 1, publish=[{"topic": "out", "payload": {"content": i}}])
        values = [json.loads(value)["payload"]["content"] for _, _, value in Stranger(url).read("x.out")]
        assert values == list(range(5)), values
        c.publish("t", 5)
        task = c.next_task()
        try:
            c.ack(task, 1, publish=[{"topic": "out", "payload": {"content": "x" * (18 << 20 >> 1)}} for _ in range(1)])
        except OmniError:
            pass
        values = [json.loads(value)["payload"]["content"] for _, _, value in Stranger(url).read("x.out")]
        assert values[:5] == list(range(5)), values[:5]


@case
def a_topics_partitions_and_retention_are_changed_while_it_is_served():
    with broker() as url, bus(url) as d, bus(url) as other:
        with contextlib.closing(d.connect()) as c, contextlib.closing(other.connect()) as far:
            assert "configure" in c.call("hello")["capabilities"]
            c.register("t", "a", prefetch=10)
            for i in range(8):
                c.publish("t", i, key=f"k{i}")
            for _ in range(8):
                c.ack(c.next_task())
            assert c.call("bus.configure", topic="t") == {"topic": "t", "partitions": 1, "retention_ms": 0}
            # By the daemon that does not serve it; what it serves there goes on.
            shown = json.loads(d.ctl("bus", "configure", "t", "--partitions", "4", "--retention", "1h", "--format", "json").stdout)
            assert shown == {"topic": "t", "partitions": 4, "retention_ms": 3600000}, shown
            for i in range(40):
                far.publish("t", 100 + i, key=f"k{i}")
            seen = []
            while len(seen) < 40:
                task = c.next_task(30)
                assert task, f"{len(seen)} of 40 came: {seen}"
                seen.append(task["payload"]["content"])
                c.ack(task)
            assert sorted(seen) == list(range(100, 140)), seen
            wait_for(lambda: c.call("bus.groups", topic="t")["groups"][0]["lag"] == 0, 20, "lag 0")
            # What was finished since then stays: a group that starts with the first has all of it.
            far.register("t", "late", start="first", prefetch=100)
            again = set()
            while not again >= set(range(100, 140)):
                task = far.next_task(30)
                assert task, f"only {len(again)} came: {again}"
                again.add(task["payload"]["content"])
                far.ack(task)
            for params, kind, words in (({"partitions": 2}, "invalid", "4"), ({"partitions": 0}, "invalid", "partitions"), ({"retention_ms": -1}, "invalid", "retention_ms")):
                try:
                    c.call("bus.configure", topic="t", **params)
                    raise AssertionError(params)
                except OmniError as e:
                    assert e.kind == kind and words in str(e), e
            # A topic that is not there yet is made so.
            assert c.call("bus.configure", topic="new", partitions=3, retention_ms=5000) == {"topic": "new", "partitions": 3, "retention_ms": 5000}
            wait_for(lambda: 'x.new" with 3 partitions' in Stranger(url).topics(), 20, "what a stranger sees of it")
            d.stop()
            other.stop()


@case
def partitions_that_another_tool_adds_are_served_by_who_serves_the_topic():
    with broker() as url, bus(url) as d, contextlib.closing(d.connect()) as c:
        c.register("t", "a", prefetch=10)
        c.publish("t", "one")
        c.ack(c.next_task())
        Stranger(url).add_partitions("x.t", 3)
        c.publish("t", "after")
        c.ack(c.next_task())
        wait_for(lambda: "t has 3 partitions now, and so have its groups" in d.log_text(), 30, "the groups' partitions")
        for key in range(20):
            Stranger(url).publish("x.t", b'"theirs"', key=str(key))
        for n in range(20):
            task = c.next_task(30)
            assert task and task["payload"]["content"] == "theirs", f"{n} of 20 came"
            c.ack(task)
        wait_for(lambda: c.call("bus.groups", topic="t")["groups"][0]["lag"] == 0, 20, "lag 0")
        d.stop()


@case
def the_brokers_are_asked_about_many_groups_together():
    """One by one, a thousand groups kept all other questions waiting for minutes."""
    n = 150
    with broker() as url, Daemon(env={"EVENT_BUS_URL": url, "LOG_LEVEL": "debug"}) as d, contextlib.closing(d.connect()) as c:
        for life in range(2):
            asked = [c.start("agent.register", topic=f"t{i // 2}", name="ab"[i % 2], config={}) for i in range(n)]
            for request in asked:
                c.finish(request)
            for i in range(0, n, 2):
                c.publish(f"t{i // 2}", life)
            for _ in range(n):
                task = c.next_task()
                assert task["payload"]["content"] == life, task
                c.ack(task)
            if life == 0:
                wait_for(lambda: "topics swept" in d.log_text(), what="a sweep")
                d.stop()
                d.start()
                c = d.connect()
        opened = [(int(k), int(new)) for k, new in re.findall(r"(\d+) groups opened at once, (\d+) of them new", d.log_text())]
        # What a call finds waiting is as much as came meanwhile, so it is a matter of time how many calls there are.
        assert sum(k for k, _ in opened) == 2 * n and sum(new for _, new in opened) == n and len(opened) <= n // 3, opened
        swept = [int(k) for k in re.findall(r"(\d+) topics swept", d.log_text())]
        assert len(swept) <= 10 and max(swept) >= 10, swept


@contextlib.contextmanager
def member_of_the_same_name(url, name):
    """Another one joins the daemon's consumer group as the member that the daemon is."""
    brokers = url.split("//")[1].split("?")[0]
    command = ["kcat", "-q", "-b", brokers, "-X", f"group.instance.id={name}", "-X", "partition.assignment.strategy=cooperative-sticky", "-G", "x.omnidaemon", "x.omni-wake"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@case
def a_daemon_whose_name_another_one_has_says_so_and_one_that_a_frozen_broker_takes_for_two_joins_again():
    with Server("kafka") as server:
        url = server.values["bus_url"].replace("{case}", "x") + "&instance=mine"
        with Daemon(env={"EVENT_BUS_URL": url, "LOG_LEVEL": "debug"}) as d, contextlib.closing(d.connect()) as c:

            def works(n):
                c.publish("t", n)
                task = c.next_task(20)
                assert task["payload"]["content"] == n, task
                c.ack(task)

            c.register("t", "a")
            works(0)
            server.do("pause")
            wait_for(lambda: "was not answered" in d.log_text(), 60)
            server.do("resume")
            wait_for(lambda: c.call("health")["bus"]["status"] == "up", 20)
            works(1)
            time.sleep(2)  # some heartbeats: the broker may have done by itself what comes now
            if "it joins again" not in d.log_text():
                with member_of_the_same_name(url, "mine"):
                    wait_for(lambda: "it joins again" in d.log_text(), 30)
            works(2)
            with member_of_the_same_name(url, "mine"):
                wait_for(lambda: c.call("health")["bus"]["status"] == "down", 30)
            assert "another daemon has the same name (instance=" in c.call("health")["bus"]["error"], c.call("health")["bus"]
            d.stop()


@case
def a_broker_that_has_lost_what_it_confirmed_is_published_to_all_the_same():
    with Server("kafka") as server, Daemon(env={"EVENT_BUS_URL": server.values["bus_url"].replace("{case}", "x")}) as d, contextlib.closing(d.connect()) as c:
        for life in range(3):
            for n in range(20):
                c.publish("t", n)
            server.do("kill")
            path = f"{server.folder}/data/x.t-0/00000000000000000000.log"
            os.truncate(path, os.path.getsize(path) - 1000)
            server.do("up")

            def published():
                with contextlib.suppress(OmniError):
                    return c.publish("t", "after it")

            wait_for(published, 10, "publishing again")
            assert d.log_text().count("the brokers have lost") == life + 1, d.log_text()
        c.register("t", "a", start="first", prefetch=100)
        contents = []
        while "after it" not in contents[-1:] or contents.count("after it") < 3:
            task = c.next_task(20)
            contents.append(task["payload"]["content"])
            c.ack(task)
        d.stop()


@case
def tasks_of_a_topic_that_another_tool_deleted_and_made_anew_are_not_taken_for_those_of_the_old_one():
    """Both are numbered from 0, and of the old one the group has finished the first."""
    with broker() as url, bus(url) as d, contextlib.closing(d.connect()) as c:

        def published(topic, n):
            with contextlib.suppress(OmniError):
                return c.publish(topic, ["new", n])

        c.register("t", "a", prefetch=100)
        for life in range(3):
            for n in range(20 - 5 * life):
                c.publish("t", [life, n])
            for n in range(20 - 5 * life):
                task = c.next_task(20)
                assert task and task["payload"]["content"] == [life, n], (life, n, task)
                c.ack(task)
            if life == 2:
                d.stop()
            Stranger(url).delete("x.t")
            if life == 2:
                d.start()
                c = d.connect()
                c.register("t", "a", prefetch=100)

            wait_for(lambda: published("t", 0), 10, "publishing to the new one")
            if life == 1:  # more than the old one had: its last place is one of the new one's
                for n in range(1, 40):
                    c.publish("t", ["new", n])
            for n in range(40 if life == 1 else 1):
                task = c.next_task(20)
                assert task and task["payload"]["content"] == ["new", n], (life, n, task)
                c.ack(task)
        c.register("u", "a", prefetch=100)
        old = [c.publish("u", ["old", n]) and c.next_task(20) for n in range(5)]
        c.ack(old[3])
        Stranger(url).delete("x.u")
        for n in range(5):  # one of them has the place of what was finished
            wait_for(lambda: published("u", n), 10, "publishing to the new one")
        assert [c.next_task(20)["payload"]["content"] for _ in range(5)] == [["new", n] for n in range(5)]
        d.stop()


@case
def a_user_with_few_rights_uses_what_others_made_and_is_told_which_right_is_missing():
    with Server("kafka", "sasl") as server, tempfile.TemporaryDirectory() as folder:
        where = server.values["bus_url"].split("@")[1].split("?")[0]
        jars = subprocess.run([f"{SCRIPTS}/kafka.sh", "build"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        with open(f"{folder}/admin", "w") as f:
            login = 'org.apache.kafka.common.security.scram.ScramLoginModule required username="omni" password="secret";'
            f.write(f"security.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-512\nsasl.jaas.config={login}\n")

        def allow(resource, *operations):
            command = ["java", "-cp", f"{jars}/*", "kafka.admin.AclCommand", "--bootstrap-server", where, "--command-config", f"{folder}/admin", "--add"]
            command += ["--allow-principal", "User:poor", resource, "*", *(f"--operation={o}" for o in operations)]
            subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def kept():
            login = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=SCRAM-SHA-512", "sasl.username=omni", "sasl.password=secret")
            command = ["kcat", "-C", "-b", where, "-t", "x.t", "-e", "-q", *(f"-X{x}" for x in login)]
            return len(subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE).stdout.splitlines())

        def refused(c, method, *words, **params):
            try:
                raise AssertionError(c.call(method, **params))
            except OmniError as e:
                assert e.kind == "denied" and all(word in str(e) for word in words), (e.kind, e)

        with bus(f"kafka://omni:secret@{where}", "?sasl=scram-sha-512&prefix=x") as d, contextlib.closing(d.connect()) as c:
            c.register("t", "a")
            c.publish("t", 1)
            c.ack(c.next_task())
            d.stop()
        allow("--topic", "Read", "Write", "Describe")
        allow("--group", "Read", "Describe")
        with bus(f"kafka://poor:secret@{where}", "?prefix=x") as d, contextlib.closing(d.connect()) as c:
            c.register("t", "a")
            c.publish("t", 2)
            c.ack(c.next_task())
            refused(c, "agent.register", "x.new", "Create", topic="new", name="a", config={})
            refused(c, "bus.configure", "x.t", "Alter", topic="t", partitions=4)
            refused(c, "bus.configure", "x.t", "DescribeConfigs", topic="t", retention_ms=5000)
            allow("--topic", "DescribeConfigs")
            refused(c, "bus.configure", "x.t", "AlterConfigs", topic="t", retention_ms=5000)
            assert c.call("bus.configure", topic="t") == {"topic": "t", "partitions": 1, "retention_ms": 0}
            c.publish("t", 3)
            c.ack(c.next_task())
            wait_for(lambda: "deleting what is finished of the topic x.t (takes the right Delete)" in d.log_text(), 30, "a warning of what stays")
            assert d.log_text().count("warning") == 1, d.log_text()
            assert kept() == 3, kept()
            allow("--topic", "Delete")
            c.publish("t", 4)
            c.ack(c.next_task())
            wait_for(lambda: kept() == 0, 30, "what is finished to be deleted")
            allow("--topic", "Alter")
            refused(c, "bus.configure", '"t" has 2 partitions now', "AlterConfigs", topic="t", partitions=2, retention_ms=5000)
            assert c.call("bus.configure", topic="t") == {"topic": "t", "partitions": 2, "retention_ms": 0}
            for key in range(20):
                c.publish("t", key, key=str(key))
            for n in range(20):
                task = c.next_task(15)
                assert task, f"{n} of 20 came of the two partitions"
                c.ack(task)
            d.stop()


@case
def ten_idle_agents_cost_few_wake_ups():
    with broker() as url, bus(url) as d, contextlib.closing(d.connect()) as c:
        for i in range(10):
            c.register(f"t{i}", "a")
            c.publish(f"t{i}", i)
            c.ack(c.next_task(), 1)
        time.sleep(8)

        before, threads = wakeups(d.process.pid), len(os.listdir(f"/proc/{d.process.pid}/task"))
        time.sleep(10)
        each = (wakeups(d.process.pid) - before) / 10
        print(f"# {each:.1f} wake-ups a second, {threads} threads, {d.rss_bytes() / 1048576:.1f} MiB resident")
        assert SANITIZED or each < 25, each  # of the library's own threads, each of which wakes up once a second


main()
