# SPDX-License-Identifier: Apache-2.0
"""A client of OmniDaemon in a page: Python's standard library and proto/PROTOCOL.md, nothing else.

It is an example of how little a client needs, and the whole-system tests use it to look at the daemon from outside: what it
sends and receives are the bytes of the socket, with no library of ours in between.
"""
import collections
import itertools
import json
import os
import socket
import struct
import time


class OmniError(Exception):
    """An error reply. `kind` is data.kind, `code` JSON-RPC's code."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.code = error["code"]
        self.kind = error["data"]["kind"]
        self.data = error["data"]


def default_socket():
    if os.environ.get("OMNIDAEMON_SOCKET"):
        return os.environ["OMNIDAEMON_SOCKET"]
    user = os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "omnidaemon/omnidaemon.sock")
    return user if os.path.exists(user) else "/run/omnidaemon/omnidaemon.sock"


class Omni:
    def __init__(self, path=None, timeout=30):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.timeout = timeout  # of each wait for a message, unless it says otherwise
        self.sock.settimeout(timeout)
        self.sock.connect(path or default_socket())
        self.ids = itertools.count(1)
        self.inbox = b""
        self.replies = {}  # id -> message
        self.deliveries = collections.deque()  # (subscription, task)
        self.notifications = collections.deque()  # everything else that the daemon says of itself

    def close(self):
        self.sock.close()

    # -- frames
    def send_raw(self, data):
        self.sock.settimeout(self.timeout)
        self.sock.sendall(data)

    def send_body(self, body):
        self.send_raw(struct.pack(">I", len(body)) + body)

    def receive(self, timeout=None):
        """The next message, or None when the daemon closed the connection."""
        self.sock.settimeout(self.timeout if timeout is None else timeout)
        while True:
            if len(self.inbox) >= 4:
                (length,) = struct.unpack(">I", self.inbox[:4])
                if len(self.inbox) >= 4 + length:
                    body, self.inbox = self.inbox[4 : 4 + length], self.inbox[4 + length :]
                    return json.loads(body)
            data = self.sock.recv(1 << 18)
            if not data:
                return None
            self.inbox += data

    # -- messages
    def start(self, method, **params):
        """Sends a request and returns its id at once."""
        request = next(self.ids)
        self.send_body(json.dumps({"jsonrpc": "2.0", "id": request, "method": method, "params": params}).encode())
        return request

    def notify(self, method, **params):
        self.send_body(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def turn(self, timeout=None):
        """Takes in one message and files it."""
        message = self.receive(timeout)
        if message is None:
            raise ConnectionResetError("the daemon closed the connection")
        if message.get("method") == "task.deliver":
            for task in message["params"]["tasks"]:
                self.deliveries.append((message["params"]["subscription"], task))
        elif "method" in message:
            self.notifications.append((message["method"], message["params"]))
        else:
            self.replies[message["id"]] = message

    def finish(self, request, timeout=None):
        while request not in self.replies:
            self.turn(timeout)
        message = self.replies.pop(request)
        if "error" in message:
            raise OmniError(message["error"])
        return message["result"]

    def call(self, method, **params):
        return self.finish(self.start(method, **params))

    # -- what most want
    def publish(self, topic, content, **more):
        payload = {"content": content}
        for name in ("webhook", "reply_to"):
            if name in more:
                payload[name] = more.pop(name)
        return self.call("task.publish", task={"topic": topic, "payload": payload, **more})["id"]

    def register(self, topic, name, **config):
        return self.call("agent.register", topic=topic, name=name, config=config)["subscription"]

    def next_task(self, timeout=30):
        """The next task delivered to this connection, or None when none comes in time."""
        deadline = time.monotonic() + timeout
        while not self.deliveries:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                self.turn(left)
            except (socket.timeout, TimeoutError):
                return None
        return self.deliveries.popleft()[1]

    def ack(self, task, result=None, **more):
        return self.call("task.ack", deliveries=[{"delivery": task["delivery"], "result": result, **more}])

    def fail(self, task, message, **more):
        return self.call("task.fail", delivery=task["delivery"], error={"message": message}, **more)
