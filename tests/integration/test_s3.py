#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""S3 when it is not well: answers that say later, answers that get lost, credentials that may not do all, a primary that is away. The server is a real
one; between it and the daemon stands a proxy that spoils chosen answers, for no server gives these when it is asked to."""
import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import SANITIZED, Daemon, case, main, wait_for, wakeups  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import Server  # noqa: E402


def error(code):
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>spoilt</Message></Error>'.encode()


class Proxy:
    """To the server, but for what `spoil` says of a request: None, (status, body): instead of asking the server, or "lose": it is asked, and its answer
    is not passed on. `spoil(method, path, n)` is called with n counting requests of that method and path."""

    def __init__(self, url):
        self.real = urllib.parse.urlsplit(urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["endpoint"][0])
        self.spoil = lambda method, path, n: None
        self.counts = {}
        self.lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status, headers, body):
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                if self.command == "HEAD":
                    self.send_header("Content-Length", dict((n.lower(), v) for n, v in headers).get("content-length", "0"))
                elif status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def relay(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                with proxy.lock:
                    key = (self.command, self.path)
                    proxy.counts[key] = proxy.counts.get(key, 0) + 1
                    what = proxy.spoil(self.command, self.path, proxy.counts[key])
                if isinstance(what, tuple):
                    self.answer(what[0], [("Content-Type", "application/xml")], what[1])
                    return
                there = http.client.HTTPConnection(proxy.real.hostname, proxy.real.port, timeout=30)
                there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    there.putheader(name, value)
                there.endheaders(body)
                reply = there.getresponse()
                data = reply.read()
                there.close()
                if what == "lose":
                    self.close_connection = True
                    self.connection.close()
                    return
                self.answer(reply.status, reply.getheaders(), data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def through(self, url):
        return url.replace(self.real.geturl(), self.url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


names = iter(range(1, 1000))
server = None


def store_url():
    return server.values["store_url"].replace("{case}", f"case{next(names)}")


def setting(client, key):
    return client.call("config.get", key=key)["value"]


@case
def answers_that_say_later_are_asked_for_again():
    for status, code in ((503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests"), (409, "ConditionalRequestConflict"), (503, "ServiceUnavailable")):
        url = store_url()
        with Proxy(url) as proxy, Daemon("--storage-url", proxy.through(url)) as daemon:
            client = daemon.connect()
            proxy.spoil = lambda method, path, n, s=status, c=code: (s, error(c)) if n <= 2 and "/c/" in path else None
            client.call("config.set", key="k", value=code)
            assert setting(client, "k") == code
            assert max(n for (m, p), n in proxy.counts.items() if "/c/" in p) >= 3, proxy.counts


@case
def what_is_asked_for_too_often_is_unavailable_and_comes_back():
    url = store_url()
    with Proxy(url) as proxy, Daemon("--storage-url", proxy.through(url + "&retries=1")) as daemon:
        client = daemon.connect()
        proxy.spoil = lambda method, path, n: (503, error("SlowDown")) if "/c/" in path else None
        try:
            client.call("config.set", key="k", value=1)
            raise AssertionError("it was saved")
        except OmniError as e:
            assert e.kind == "unavailable" and "SlowDown" in str(e), e
        proxy.spoil = lambda method, path, n: None
        client.call("config.set", key="k", value=2)
        assert setting(client, "k") == 2


@case
def a_server_that_ignores_conditions_is_refused():
    url = store_url()
    with Proxy(url) as proxy:
        proxy.spoil = lambda method, path, n: (200, b"") if method == "PUT" else None
        with Daemon("--storage-url", proxy.through(url)) as daemon:
            client = daemon.connect()
            wait_for(lambda: "If-None-Match" in daemon.log_text(), what="the refusal")
            try:
                client.call("config.set", key="k", value=1)
                raise AssertionError("it was saved")
            except OmniError as e:
                assert "If-None-Match" in str(e), e
            proxy.spoil = lambda method, path, n: None
            wait_for(lambda: client.call("health")["storage"]["status"] == "up", timeout=20, what="the storage")


@case
def a_full_server_is_told_as_such():
    url = store_url()
    with Proxy(url) as proxy, Daemon("--storage-url", proxy.through(url)) as daemon:
        client = daemon.connect()
        client.call("config.set", key="k", value=1)
        proxy.spoil = lambda method, path, n: (507, error("XMinioStorageFull")) if method == "PUT" else None
        try:
            client.call("config.set", key="k", value=2)
            raise AssertionError("it was saved")
        except OmniError as e:
            assert e.kind == "limit" and "full" in str(e), e
        assert setting(client, "k") == 1


@case
def an_answer_that_was_lost_does_not_make_a_write_fail():
    url = store_url()
    with Proxy(url) as proxy, Daemon("--storage-url", proxy.through(url)) as daemon:
        client = daemon.connect()
        for method in ("PUT", "GET", "HEAD", "DELETE"):
            proxy.counts.clear()
            proxy.spoil = lambda m, path, n, method=method: "lose" if m == method and n == 1 and "/c/" in path else None
            client.call("config.set", key="k", value=method)
            assert setting(client, "k") == method
            assert client.call("config.delete", key="k")["deleted"] in (True, False)


@case
def an_upload_in_parts_whose_end_was_not_heard_is_there():
    url, large = store_url() + "&part_size=5M", "x" * (6 << 20)
    with Proxy(url) as proxy, Daemon("--storage-url", proxy.through(url)) as daemon:
        client = daemon.connect()
        for value in (large, large + "y"):  # new, and in place of another
            proxy.counts.clear()
            proxy.spoil = lambda m, path, n: "lose" if m == "POST" and "uploadId" in path and n == 1 else None
            client.call("config.set", key="k", value=value)
            assert setting(client, "k") == value
            assert any(m == "POST" and n > 1 for (m, p), n in proxy.counts.items()), proxy.counts


@case
def a_write_whose_answer_was_lost_does_not_undo_what_another_daemon_wrote_after_it():
    url = store_url()
    with Proxy(url) as proxy, Daemon("--storage-url", proxy.through(url)) as one, Daemon("--storage-url", url) as two:
        client, other = one.connect(), two.connect()
        client.call("config.set", key="k", value="before")

        def spoil(method, path, n):
            if method != "PUT" or "/c/k" not in path:
                return None
            puts.append(path)
            if len(puts) == 1:
                return "lose"
            if len(puts) == 2:  # the first has come through; the other daemon writes before it is repeated
                other.call("config.set", key="k", value="the other's")
            return None

        puts = []
        proxy.spoil = spoil
        client.call("config.set", key="k", value="ours")
        assert len(puts) >= 2, puts
        assert setting(client, "k") == "the other's" and setting(other, "k") == "the other's"


@case
def a_result_is_saved_once_though_every_first_answer_is_lost():
    url = store_url()
    with Proxy(url) as proxy, Daemon("--storage-url", proxy.through(url)) as daemon:
        client = daemon.connect()
        client.register("t", "a")
        proxy.counts.clear()
        proxy.spoil = lambda method, path, n: "lose" if method == "PUT" and n == 1 and ("/r/" in path or "/t/" in path) else None
        ident = client.call("task.publish", task={"topic": "t", "payload": {"content": 1}})["id"]
        client.ack(client.next_task(), {"n": 1})
        assert client.call("task.get", id=ident)["result"] == {"n": 1}
        assert len(client.call("task.list")["tasks"]) == 1


def temporary(policy):
    """Credentials that may do what the policy says, from the server's own STS; None where it gives none."""
    url = urllib.parse.urlsplit(server.values["store_url"])
    endpoint = urllib.parse.parse_qs(url.query)["endpoint"][0]
    said = subprocess.run(
        ["curl", "-sS", "--aws-sigv4", "aws:amz:us-east-1:sts", "-u", f"{url.username}:{urllib.parse.unquote(url.password)}", endpoint + "/",
         "--data", urllib.parse.urlencode({"Action": "AssumeRole", "Version": "2011-06-15", "DurationSeconds": 900, "Policy": json.dumps(policy)})],
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout

    def between(tag):
        return said.split(f"<{tag}>")[1].split(f"</{tag}>")[0]

    return between("AccessKeyId"), between("SecretAccessKey"), between("SessionToken")


@case
def what_credentials_may_not_do_is_named():
    url = store_url()
    bucket = urllib.parse.urlsplit(url).hostname
    key, secret, token = temporary({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]}]})
    env = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}
    bare = url.split("://")[0] + "://" + url.split("@")[1]
    with Daemon("--storage-url", bare, env=env) as daemon:
        client = daemon.connect()
        wait_for(lambda: client.call("health")["storage"]["status"] == "up", what="the storage")
        try:
            client.call("config.set", key="k", value=1)
            raise AssertionError("it was saved")
        except OmniError as e:
            assert e.kind == "denied" and "s3:PutObject" in str(e) and bucket in str(e), e
        text = daemon.log_text() + json.dumps(client.call("storage.health")) + json.dumps(client.call("health"))
        assert secret not in text and token not in text
        assert "environment" in json.dumps(client.call("storage.health"))


@case
def a_replica_is_read_while_the_primary_is_away():
    with Server("s3", "replica") as both:
        primary = both.values["store_url"].replace("{case}", "case")
        replica = both.values["replica_url"].replace("{case}", "case")
        with Daemon("--storage-url", replica) as copier:
            copier.connect().call("config.set", key="k", value="the copy")
        with Daemon("--storage-url", primary) as daemon:
            client = daemon.connect()
            client.call("config.set", key="k", value="the original")
            assert setting(client, "k") == "the original"
            assert client.call("storage.health")["replica"]["answers"] is True
            both.do("kill 1")
            assert setting(client, "k") == "the copy"
            assert "k" in client.call("config.list")["config"]
            try:
                client.call("config.set", key="k", value="nowhere")
                raise AssertionError("it was saved")
            except OmniError as e:
                assert e.kind == "unavailable", e
            both.do("up 1")
            wait_for(lambda: setting(client, "k") == "the original", what="the primary is read again")
            client.call("config.set", key="k", value="new")
            assert client.call("storage.health")["replica"]["reads"] >= 1
            both.do("kill 2")
            health = client.call("storage.health")["replica"]
            assert health["answers"] is False and health["error"], health


@case
def an_idle_daemon_does_not_wake_up():
    if SANITIZED:
        return
    with Daemon("--storage-url", store_url()) as daemon:
        daemon.connect().call("config.set", key="k", value=1)
        time.sleep(1.5)
        before = wakeups(daemon.process.pid)
        time.sleep(3)
        assert wakeups(daemon.process.pid) - before <= 3


if __name__ == "__main__":
    with Server("s3") as server:
        main()
