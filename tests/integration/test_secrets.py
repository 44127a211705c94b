#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Marked passwords in the URL of every bus and storage, in each place where a URL can have one: they are in no log, no error, no answer of the
daemon and no process list, whether the server is away or the URL is wrong."""
import concurrent.futures
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import BIN, Daemon, case, main, wait_for  # noqa: E402
from omni_wire import OmniError  # noqa: E402

numbers = itertools.count()


def mark():
    return f"S3cr3t{next(numbers)}x9137"


# {} is a secret. Nobody listens on port 1.
BUSES = (
    "redis://u:{}@127.0.0.1:1/0",
    "rediss://:{}@127.0.0.1:1",
    "redis+cluster://u:{}@127.0.0.1:1,127.0.0.1:2",
    "redis+sentinel://u:{}@127.0.0.1:1/mymaster?sentinel_password={}",
    "kafka://u:{}@127.0.0.1:1?sasl=PLAIN",
    "kafka://127.0.0.1:1?rdkafka.sasl.mechanisms=PLAIN&rdkafka.security.protocol=sasl_plaintext&rdkafka.sasl.username=u&rdkafka.sasl.password={}",
    "kafka://127.0.0.1:1?rdkafka.ssl.key.password={}",
    "amqp://u:{}@127.0.0.1:1/%2F",
    "amqps://u:{}@127.0.0.1:1,127.0.0.1:2/v",
    "nats://u:{}@127.0.0.1:1",
    "nats://127.0.0.1:1?token={}",
    "tls://u:{}@127.0.0.1:1",
)
STORAGES = (
    "redis://u:{}@127.0.0.1:1/0",
    "redis+sentinel://u:{}@127.0.0.1:1/mymaster?sentinel_password={}",
    "postgresql://u:{}@127.0.0.1:1/d",
    "postgresql://u@127.0.0.1:1/d?password={}",
    "mongodb://u:{}@127.0.0.1:1/d",
    "s3://key:{}@bucket/p?endpoint=http://127.0.0.1:1&region=r&session_token={}",
    "nats+kv://u:{}@127.0.0.1:1",
    "nats+kv://127.0.0.1:1?token={}",
)


REFUSED = (  # by the modules, which see it decoded
    "s3://key:{}@bucket/p?endpoint=http://127.0.0.1:1&region=r&replica=s3%3A%2F%2Fkey%3A{}%40other%2Fp%3Fendpoint%3Dhttp%3A%2F%2F127.0.0.1%3A2%26region%3Dr",
    "kafka://127.0.0.1:1?rdkafka.sasl.passwort={}%40",
)


def marked(url):
    words = [mark() for _ in range(url.count("{}"))]
    return url.format(*words), words


def wrong(url):
    """The same, each wrong in another way."""
    yield url + ("&" if "?" in url else "?") + "nonsense=1"
    yield url.replace("://", "x://", 1)
    yield url.replace("127.0.0.1:1", "127.0.0.1:99999", 1)
    yield url.replace("127.0.0.1:1", "[127.0.0.1:1", 1)
    yield url.replace("127.0.0.1:1", "", 1)
    yield url + "\\ #"


class Witness:
    def __init__(self):
        self.seen = []

    def sees(self, where, text):
        self.seen.append((where, text))

    def swears(self, url, words):
        for where, text in self.seen:
            for word in words:
                at = text.find(word)
                assert at < 0, f"{url}: in {where}: …{text[max(0, at - 200):at + 60]}…"


def look_at(daemon, witness):
    with contextlib.closing(daemon.connect()) as client:
        def ask(method, **params):
            try:
                witness.sees(method, json.dumps(client.call(method, **params)))
            except OmniError as e:
                witness.sees(f"the error of {method}", str(e) + json.dumps(e.data))

        for method in ("hello", "health", "backends", "agent.list", "bus.topics", "bus.stats", "storage.health", "storage.status", "config.list", "metrics"):
            ask(method)
        ask("task.publish", topic="t", tasks=[{"payload": {"content": 1}}], timeout_ms=300)
        ask("agent.register", topic="t", name="a", config={})
        ask("config.set", key="k", value=1)
        ask("task.get", id="t")
        ask("storage.query", query="select 1")
    for arguments in (("health",), ("storage", "health"), ("config", "list"), ("backends",)):
        for form in ("table", "json"):
            done = daemon.ctl(*arguments, "--format", form, timeout=30)
            witness.sees(" ".join(("omnictl", *arguments)), done.stdout + done.stderr)
    for place in ("cmdline", "comm"):
        with open(f"/proc/{daemon.process.pid}/{place}", encoding="utf-8", errors="replace") as f:
            witness.sees(f"/proc/PID/{place}", f.read())


COMMON = {"LOG_LEVEL": "debug", "CALL_TIMEOUT": "300ms", "PUBLISH_TIMEOUT": "300ms"}


def check(flags, env):
    done = subprocess.run([os.path.join(BIN, "omnidaemond"), *flags, "--check"], env={**os.environ, **env}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=30, check=False)
    return done.returncode, done.stdout


def try_it(setting, template, by_flag=False):
    url, words = marked(template)
    flags, env = ([f"--{setting.lower().replace('_', '-')}", url], {}) if by_flag else ([], {setting: url})
    witness = Witness()
    with Daemon(*flags, env={**COMMON, **env}) as d:
        look_at(d, witness)
        d.stop()
        witness.sees("the log", d.log_text())
    status, said = check(flags, env)
    assert status == 0 and "***" in said, said
    witness.sees("--check", said)
    witness.swears(template, words)
    for bad in wrong(url):
        witness = Witness()
        witness.sees(f"the complaint about {bad}", check([], {setting: bad})[1])
        witness.swears(bad, words)


def try_all(tries):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # most of it is waiting
        for one in [pool.submit(try_it, *t) for t in tries]:
            one.result()


@case
def secrets_of_buses_are_seen_nowhere():
    try_all(("EVENT_BUS_URL", url) for url in BUSES)


@case
def secrets_of_storages_are_seen_nowhere():
    try_all(("STORAGE_URL", url) for url in STORAGES)


@case
def secrets_of_the_other_urls_are_seen_nowhere():
    try_all((setting, "redis://u:{}@127.0.0.1:1/3") for setting in ("RESULT_STORAGE_URL", "STORAGE_BACKUP_URL"))


@case
def secrets_where_none_may_be_are_not_shown_either():
    for template in REFUSED:
        url, words = marked(template)
        witness = Witness()
        with Daemon(env={**COMMON, "EVENT_BUS_URL" if url.startswith("kafka") else "STORAGE_URL": url}, start=False) as d:
            d.launch()
            assert d.process.wait(30) == 2, d.log_text()
            witness.sees("the log", d.log_text())
        witness.swears(template, words)


@case
def a_url_on_the_command_line_is_shown_by_ps_without_its_secrets():
    try_all((("EVENT_BUS_URL", BUSES[3], True), ("STORAGE_URL", STORAGES[0], True)))
    url, words = marked("redis://u:{}@127.0.0.1:1")
    with Daemon(f"--storage-url={url}", "--log-level=debug", env=COMMON) as d:
        with open(f"/proc/{d.process.pid}/cmdline", "rb") as f:
            shown = f.read()
        assert b"--storage-url=redis://u:***@127.0.0.1:1" in shown and words[0].encode() not in shown, shown
        # What it was told holds over a reload.
        d.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload" in d.log_text())
        with contextlib.closing(d.connect()) as client:
            assert client.call("hello")["storage"]["url"].startswith("redis://u:***@127.0.0.1:1")
        assert words[0] not in d.log_text()
        d.stop()


@case
def a_storage_named_to_omnictl_is_hidden_from_ps_and_from_what_it_says():
    url, words = marked("s3://u:{}@bucket?endpoint=http://127.0.0.1:1")
    with Daemon(env=COMMON) as d:
        d.process.send_signal(signal.SIGSTOP)  # omnictl waits for its answer
        ctl = subprocess.Popen([os.path.join(BIN, "omnictl"), "--socket", d.socket, "storage", "migrate", "--to", url, "--yes"],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        def shown():
            with open(f"/proc/{ctl.pid}/cmdline", "rb") as f:
                return f.read()

        try:
            wait_for(lambda: b"--to\0s3***" in shown(), 10, "the URL is hidden")
            assert words[0].encode() not in shown()
        finally:
            d.process.send_signal(signal.SIGCONT)
        wait_for(lambda: "new storage s3" in d.log_text(), 10, "the daemon speaks of the storage")
        ctl.send_signal(signal.SIGINT)
        said = ctl.communicate(timeout=30)[0]
        assert words[0] not in said + d.log_text(), said
        d.stop()


main()
