#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The test vectors of proto/vectors against a running daemon: what they promise is what it does."""
import base64
import json
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main  # noqa: E402

VECTORS = os.path.join(os.path.dirname(__file__), "../../proto/vectors")
daemon = Daemon()


def vectors(name):
    with open(os.path.join(VECTORS, name), encoding="ascii") as f:
        return json.load(f)


class Raw:
    """A connection that shows replies as they are on the wire."""

    def __init__(self):
        self.client = daemon.connect(timeout=10)
        self.data = b""

    def body(self):
        while True:
            if len(self.data) >= 4:
                (n,) = struct.unpack(">I", self.data[:4])
                if len(self.data) >= 4 + n:
                    body, self.data = self.data[4 : 4 + n], self.data[4 + n :]
                    return body
            more = self.client.sock.recv(1 << 18)
            if not more:
                return None
            self.data += more

    def send(self, data):
        self.client.send_raw(data)


def check(reply, body):
    message = json.loads(body)
    text = body.decode()
    assert f'"id":{reply["id_json"]}' in text, (reply, text[:200])
    if reply.get("result"):
        assert "result" in message, text[:300]
    else:
        assert message["error"]["code"] == reply["code"] and message["error"]["data"]["kind"] == reply["kind"], (reply, text[:300])


@case
def each_conversation_of_frames_is_answered_as_promised():
    for vector in vectors("frames.json"):
        try:
            raw = Raw()
            raw.send(base64.b64decode(vector["bytes_base64"]))
            expected = list(vector["replies"])
            for _ in vector["replies"]:
                body = raw.body()
                assert body is not None, "closed before the last reply"
                matching = [r for r in expected if f'"id":{r["id_json"]}' in body.decode()]
                assert matching, (expected, body[:200])
                check(matching[0], body)
                expected.remove(matching[0])
            if vector["end"] == "closed":
                assert raw.body() is None
            elif vector["end"] == "open":
                ping = b'{"jsonrpc":"2.0","id":"end","method":"ping"}'
                raw.send(struct.pack(">I", len(ping)) + ping)
                assert raw.body() is not None
            raw.client.close()
        except AssertionError as e:
            raise AssertionError(f"{vector['name']}: {e}") from e


@case
def each_message_is_answered_as_promised():
    for vector in vectors("messages.json"):
        body = vector["body"].encode() if "body" in vector else base64.b64decode(vector["body_base64"])
        raw = Raw()
        raw.send(struct.pack(">I", len(body)) + body)
        try:
            if vector["reply"] is not None:
                check(vector["reply"], raw.body())
            ping = b'{"jsonrpc":"2.0","id":"end","method":"ping"}'
            raw.send(struct.pack(">I", len(ping)) + ping)
            assert json.loads(raw.body())["id"] == "end", "something was answered that should not be"
        except AssertionError as e:
            raise AssertionError(f"{vector['name']}: {e}") from e
        raw.client.close()


@case
def each_task_is_taken_or_refused_as_promised():
    raw = Raw()
    for n, vector in enumerate(vectors("tasks.json")):
        task = vector["task"].encode() if "task" in vector else base64.b64decode(vector["task_base64"])
        body = b'{"jsonrpc":"2.0","id":%d,"method":"task.publish","params":{"task":%s}}' % (n, task)
        raw.send(struct.pack(">I", len(body)) + body)
        answer = raw.body()
        message = json.loads(answer)
        if vector["valid"]:
            assert "result" in message, (vector["name"], answer[:300])
        else:
            error = message["error"]
            assert (error["code"], error["data"]["kind"]) == (vector["code"], vector["kind"]), (vector["name"], error)
            assert vector.get("message_has", "") in error["message"], (vector["name"], error)


@case
def contents_of_the_vectors_arrive_byte_for_byte():
    wanted = [base64.b64decode(v["content_base64"]) for v in vectors("tasks.json") if v["valid"]]
    assert len(wanted) > 20
    for content in wanted:
        raw = Raw()
        for request in (
            b'{"jsonrpc":"2.0","id":1,"method":"agent.register","params":{"name":"a","topic":"carried"}}',
            b'{"jsonrpc":"2.0","id":2,"method":"task.publish","params":{"task":{"topic":"carried","payload":{"content":%s}}}}' % content,
        ):
            raw.send(struct.pack(">I", len(request)) + request)
        seen = b""
        while b'"content":' not in seen:
            seen = raw.body()
        got = seen.split(b'"content":', 1)[1]
        assert got.startswith(content) and got[len(content) : len(content) + 1] in (b"}", b","), (content[:100], got[:100])
        ack = b'{"jsonrpc":"2.0","id":3,"method":"task.ack","params":{"deliveries":[{"delivery":1}]}}'
        raw.send(struct.pack(">I", len(ack)) + ack)
        while b'"id":3' not in raw.body():
            pass
        raw.client.close()


try:
    main()
finally:
    daemon.stop()
    daemon.__exit__()
