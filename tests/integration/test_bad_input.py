#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Broken frames and broken requests against a running daemon: each gets the error that PROTOCOL.md promises, and the daemon goes on."""
import json
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main  # noqa: E402

VECTORS = os.path.join(os.path.dirname(__file__), "../../proto/vectors")
daemon = Daemon()


def frame(body):
    return struct.pack(">I", len(body)) + body


def still_works():
    c = daemon.connect()
    assert c.call("ping") == {}
    c.close()


def error_of(body, expect_id=None):
    """Sends one body; the error's code and kind. The connection must go on."""
    c = daemon.connect(timeout=10)
    c.send_body(body)
    message = c.receive()
    assert message and "error" in message, (body[:100], message)
    assert message["id"] == expect_id, (body[:100], message)
    assert c.call("ping") == {}, body[:100]
    c.close()
    return message["error"]["code"], message["error"]["data"]["kind"], message["error"]["message"]


@case
def frames_that_cannot_be_framed_end_the_connection_with_an_error():
    for head, kind in ((b"\0\0\0\0", "invalid"), (b"\xff\xff\xff\xff", "limit"), (b"\x01\0\0\x01", "limit"), (b"GET / HTTP/1.1\r\n\r\n", "limit")):
        c = daemon.connect(timeout=10)
        c.send_raw(head)
        message = c.receive()
        assert message["id"] is None and message["error"]["code"] == -32600 and message["error"]["data"]["kind"] == kind, message
        assert c.receive() is None
        still_works()


@case
def frames_cut_anywhere_are_lost_alone():
    whole = frame(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    for cut in range(1, len(whole)):
        c = daemon.connect(timeout=10)
        c.send_raw(whole[:cut])
        c.close()
    still_works()


@case
def frames_in_single_bytes_and_many_in_one_piece_are_answered():
    c = daemon.connect(timeout=10)
    for byte in frame(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'):
        c.send_raw(bytes([byte]))
    assert c.receive()["id"] == 1
    c.send_raw(b"".join(frame(b'{"jsonrpc":"2.0","id":%d,"method":"ping","params":{}}' % n) for n in range(3000)))
    assert sorted(c.receive()["id"] for _ in range(3000)) == list(range(3000))


@case
def a_frame_of_the_greatest_length_is_taken():
    c = daemon.connect()
    content = b"x" * (16 << 20)
    body = b'{"jsonrpc":"2.0","id":1,"method":"task.publish","params":{"task":{"topic":"big","payload":{"content":"%s"}}}}'
    body %= content[: (16 << 20) - len(body) + 2]
    assert len(body) == 16 << 20, len(body)
    c.send_body(body)
    assert "id" in c.receive()["result"]
    c.register("big", "a")
    assert len(c.next_task(30)["payload"]["content"]) > (15 << 20)


BODIES = [  # body, id that comes back, code
    (b"x", None, -32700), (b"{", None, -32700), (b'{"jsonrpc":"2.0","id":1,"method":"ping"', None, -32700), (b"\xef\xbb\xbf{}", None, -32700),
    (b'{"a":"\xff"}', None, -32700), (b'{"a":"\xed\xa0\x80"}', None, -32700), (b'{"a":"\xc0\x80"}', None, -32700), (b'{"a":01}', None, -32700),
    (b'{"a":+1}', None, -32700), (b'{"a":1.}', None, -32700), (b'{"a":.5}', None, -32700), (b'{"a":NaN}', None, -32700), (b"{'a':1}", None, -32700),
    (b'{"a":1,}', None, -32700), (b"[1,]", None, -32700), (b'{"a":"\\x"}', None, -32700), (b'{"a":"\\ud800"}', None, -32700),
    (b'{"a":"\n"}', None, -32700), (b"{} {}", None, -32700), (b"\0", None, -32700), (b"tru", None, -32700), (b'"abc', None, -32700),
    (b"[" * 65 + b"]" * 65, None, -32700), (b"[" * 100000, None, -32700), (b"// comment\n{}", None, -32700), (b" ", None, -32700),
    (b"[]", None, -32600), (b"null", None, -32600), (b"1", None, -32600), (b'"ping"', None, -32600), (b"{}", None, -32600),
    (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', None, -32600),
    (b'{"id":1,"method":"ping"}', 1, -32600), (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', 1, -32600), (b'{"jsonrpc":2.0,"id":1,"method":"ping"}', 1, -32600),
    (b'{"jsonrpc":"2.0","id":1}', 1, -32600), (b'{"jsonrpc":"2.0","id":1,"method":5}', 1, -32600), (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', None, -32600),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', None, -32600), (b'{"jsonrpc":"2.0","id":[1],"method":"ping"}', None, -32600),
    (b'{"jsonrpc":"2.0","id":"' + b"x" * 300 + b'","method":"ping"}', None, -32600), (b'{"jsonrpc":"2.0","id":1,"method":"ping","extra":1}', 1, -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"pnig"}', 1, -32601), (b'{"jsonrpc":"2.0","id":"a","method":""}', "a", -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', 1, -32602), (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":1}', 1, -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":"x"}', 1, -32602),
]


@case
def bodies_that_are_no_request_get_their_code():
    for body, expect_id, code in BODIES:
        got, kind, message = error_of(body, expect_id)
        assert got == code, (body[:80], got, message)
        assert kind == ("unsupported" if code == -32601 else "invalid"), (body[:80], kind)
        assert message, body


TASK = {"topic": "t", "payload": {"content": 1}}


def task(**changes):
    changed = {**TASK, **changes}
    return {"task": {k: v for k, v in changed.items() if v is not Ellipsis}}


def payload(**changes):
    return task(payload={"content": 1, **changes})


REQUESTS = [  # method, params, a word that the message must hold
    ("task.publish", {}, "task"), ("task.publish", {"task": 1}, "task"), ("task.publish", {"task": []}, "object"), ("task.publish", {"task": TASK, "tasks": [TASK]}, "task"),
    ("task.publish", {"tasks": {}}, "array"), ("task.publish", {"tasks": []}, "tasks"), ("task.publish", {"tasks": [TASK] * 1001}, "1000"), ("task.publish", {"tusk": TASK}, "task"),
    ("task.publish", {"tasks": [TASK], "task": TASK}, "task"), ("task.publish", {"tasks": [TASK, 5], "tusks": TASK}, "tusks"), ("task.publish", {"tasks": [TASK], "more": 1}, "more"),
    ("task.publish", task(topic=...), "topic"), ("task.publish", task(topic=""), "topic"), ("task.publish", task(topic=5), "topic"), ("task.publish", task(topic="x" * 201), "200"),
    ("task.publish", task(topic="a\nb"), "control"), ("task.publish", task(topic="omni-dlq:x"), "omni-dlq"), ("task.publish", task(topic="a:dlq"), ":dlq"), ("task.publish", task(topic=None), "topic"),
    ("task.publish", task(payload=...), "payload"), ("task.publish", task(payload=[]), "payload"), ("task.publish", task(payload={}), "content"), ("task.publish", payload(contnet=1), "content"),
    ("task.publish", payload(webhook=5), "webhook"), ("task.publish", payload(reply_to=""), "reply_to"), ("task.publish", payload(reply_to=7), "reply_to"), ("task.publish", payload(reply_to="a:dlq"), "reply_to"),
    ("task.publish", task(id=""), "id"), ("task.publish", task(id=5), "id"), ("task.publish", task(id="x" * 201), "id"), ("task.publish", task(id="a\u0000b"), "id"),
    ("task.publish", task(created_at="now"), "created_at"), ("task.publish", task(created_at=-1), "created_at"), ("task.publish", task(created_at=1e300), "created_at"),
    ("task.publish", task(priority=10), "priority"), ("task.publish", task(priority=-1), "priority"), ("task.publish", task(priority=1.5), "priority"), ("task.publish", task(priority="1"), "priority"),
    ("task.publish", task(ttl_ms=0), "ttl_ms"), ("task.publish", task(ttl_ms=-5), "ttl_ms"), ("task.publish", task(ttl_ms=1e30), "ttl_ms"), ("task.publish", task(ttl_ms=10**30), "ttl_ms"),
    ("task.publish", task(delay_ms=-1), "delay_ms"), ("task.publish", task(delay_ms="1s"), "delay_ms"), ("task.publish", task(delay_ms=10**12), "delay_ms"),
    ("task.publish", task(key=5), "key"), ("task.publish", task(key=""), "key"), ("task.publish", task(idempotency_key=""), "idempotency_key"), ("task.publish", task(idempotency_key=[]), "idempotency_key"),
    ("task.publish", task(headers=[]), "headers"), ("task.publish", task(headers={"a": 1}), "headers"), ("task.publish", task(correlation_id=5), "correlation_id"), ("task.publish", task(causation_id={}), "causation_id"),
    ("task.publish", task(source=1), "source"), ("task.publish", task(tenant_id=1), "tenant_id"), ("task.publish", task(traceparent=1), "traceparent"), ("task.publish", task(delivery_attempts=-1), "delivery_attempts"),
    ("task.publish", task(prority=1), "priority"), ("task.publish", task(xyzzy=1), "xyzzy"),
    ("task.get", {}, "id"), ("task.get", {"id": 5}, "id"), ("task.get", {"id": ""}, "id"), ("task.get", {"id": "a", "wait_ms": -1}, "wait_ms"), ("task.get", {"id": "a", "wait_ms": "1"}, "wait_ms"),
    ("task.get", {"id": "a", "wait": 1}, "wait_ms"), ("task.get", {"id": "a", "wait_ms": 10**9}, "wait_ms"), ("task.list", {"limit": 0}, "limit"), ("task.list", {"limit": 1001}, "limit"),
    ("task.list", {"limit": "x"}, "limit"), ("task.list", {"status": "done"}, "status"), ("task.list", {"since": "x"}, "since"), ("task.list", {"cursor": "%%%"}, "cursor"), ("task.list", {"cursor": 5}, "cursor"),
    ("task.delete", {}, "id"), ("task.ack", {}, "deliveries"), ("task.ack", {"deliveries": []}, "deliveries"), ("task.ack", {"deliveries": [{}]}, "delivery"), ("task.ack", {"deliveries": [{"delivery": "1"}]}, "delivery"),
    ("task.ack", {"deliveries": [{"delivery": 1, "publish": {}}]}, "publish"), ("task.ack", {"deliveries": [{"delivery": 1, "reslut": 1}]}, "result"), ("task.ack", {"deliveries": 1}, "deliveries"),
    ("task.fail", {}, "delivery"), ("task.fail", {"delivery": 1}, "error"), ("task.fail", {"delivery": 1, "error": "x"}, "error"), ("task.fail", {"delivery": 1, "error": {}}, "message"),
    ("task.fail", {"delivery": 1, "error": {"message": "m"}, "retry": 1}, "retry"), ("task.fail", {"delivery": 1, "error": {"message": "m"}, "delay_ms": -1}, "delay_ms"), ("task.extend", {"deliveries": ["x"]}, "deliveries"), ("task.extend", {}, "deliveries"),
    ("agent.register", {}, "name"), ("agent.register", {"name": "a"}, "topic"), ("agent.register", {"topic": "t"}, "name"), ("agent.register", {"name": "", "topic": "t"}, "name"), ("agent.register", {"name": "a", "topic": ""}, "topic"),
    ("agent.register", {"name": "a", "topic": "t", "config": []}, "config"), ("agent.register", {"name": "a", "topic": "t", "config": {"prefetch": 0}}, "prefetch"), ("agent.register", {"name": "a", "topic": "t", "config": {"prefetch": 1001}}, "prefetch"),
    ("agent.register", {"name": "a", "topic": "t", "config": {"prefetsch": 5}}, "prefetch"), ("agent.register", {"name": "a", "topic": "t", "config": {"dlq_retry_limit": -1}}, "dlq_retry_limit"), ("agent.register", {"name": "a", "topic": "t", "config": {"retry_backoff_ms": "1s"}}, "retry_backoff_ms"),
    ("agent.register", {"name": "a", "topic": "t", "config": {"start": "last"}}, "start"), ("agent.register", {"name": "a", "topic": "t", "tools": {}}, "tools"), ("agent.register", {"name": "a", "topic": "t", "config": {"reclaim_idle_ms": -1}}, "reclaim_idle_ms"),
    ("agent.unregister", {}, "subscription"), ("agent.get", {"topic": "t"}, "name"), ("agent.pause", {"name": "x"}, "topic"), ("agent.delete", {}, "topic"), ("topic.delete", {}, "topic"),
    ("agent.seek", {"topic": "t", "name": "a"}, "start"), ("agent.seek", {"topic": "t", "name": "a", "start": "yesterday"}, "start"), ("bus.inspect", {}, "topic"), ("bus.inspect", {"topic": "t", "limit": -1}, "limit"), ("bus.topics", {"limit": 5.5}, "limit"), ("bus.groups", {"topic": 1}, "topic"), ("bus.stats", {"topc": "t"}, "topic"), ("bus.configure", {"partitions": 2}, "topic"), ("bus.configure", {"topic": "t", "partitions": "2"}, "partitions"),
    ("dlq.list", {}, "topic"), ("dlq.list", {"topic": "t"}, "agent"), ("dlq.get", {"topic": "t", "agent": "a"}, "id"), ("dlq.replay", {"topic": "t", "agent": "a"}, "ids"), ("dlq.purge", {"topic": "t", "agent": "a", "ids": [], "all": True}, "all"), ("dlq.purge", {"topic": "t", "agent": "a", "ids": [5]}, "ids"),
    ("storage.clear", {}, "what"), ("storage.clear", {"what": "everything"}, "what"), ("storage.query", {}, "query"), ("storage.query", {"query": 5}, "query"), ("config.get", {}, "key"), ("config.set", {"key": "k"}, "value"), ("config.set", {"value": 1}, "key"), ("config.set", {"key": 5, "value": 1}, "key"), ("config.delete", {}, "key"),
    ("config.list", {"prefix": 5}, "prefix"), ("daemon.watch", {"events": ["publsh"]}, "publish"), ("daemon.watch", {"events": "publish"}, "events"), ("hello", {"protocol": "1"}, "protocol"), ("hello", {"client": 5}, "client"), ("ping", {"x": 1}, "x"),
]


@case
def requests_with_wrong_params_are_told_which_and_why():
    assert len(REQUESTS) >= 100
    wrong = []
    for method, params, word in REQUESTS:
        body = json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()
        code, kind, message = error_of(body, 7)
        if (code, kind) != (-32602, "invalid") or word not in message:
            wrong.append(f"{method} {json.dumps(params)[:90]}: {code} {kind} {message!r}, expected -32602 invalid with {word!r}")
    assert not wrong, "\n" + "\n".join(wrong)


@case
def notifications_that_are_wrong_are_not_answered():
    c = daemon.connect(timeout=10)
    for body in (b'{"jsonrpc":"2.0","method":"nope"}', b'{"jsonrpc":"2.0","method":"task.publish","params":{}}', b'{"jsonrpc":"2.0","method":"task.ack","params":{"deliveries":[{"delivery":5}]}}'):
        c.send_body(body)
    assert c.call("ping") == {} and not c.replies and not c.notifications


@case
def repeated_members_are_refused_where_they_mean_something():
    for body in (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"ping"}', b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}'):
        c = daemon.connect(timeout=10)
        c.send_body(body)
        assert c.receive()["error"]["code"] == -32600
    code, kind, message = error_of(b'{"jsonrpc":"2.0","id":1,"method":"task.publish","params":{"task":{"topic":"a","topic":"b","payload":{"content":1}}}}', 1)
    assert code == -32602 and kind == "invalid" and "topic" in message, message


try:
    main()
finally:
    daemon.stop()
    daemon.__exit__()
