#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that misbehaves on command, for what stands between a daemon and its servers.

    proxy.py HOST:PORT [--listen HOST:PORT]      prints "listening HOST:PORT", then obeys lines on standard input, each answered by "ok" or "error …"

    delay MS [JITTER_MS]   what passes waits so long, each way; order is kept
    cut N                  what passes comes in pieces of N bytes, a write each; 0: as it came
    stall                  nothing is read from either side any more: both run into full buffers
    hole                   everything is read and thrown away; new connections are taken and answered nothing, and reach the server when they
                           say something after it
    pass                   ends delay, cut, stall and hole
    forget                 the connections that there are: the server's side is closed, the client's stays open and answers nothing
                           more, as behind a firewall that has lost its table; new ones pass
    half-close             the sending side towards the client is closed on every connection
    reset                  every connection ends with RST, on both sides
    refuse                 no new connections are taken: the listening socket is closed
    accept                 they are again, on the same port
    count                  answers "ok N": connections now

It ends with its standard input. In tests, `Proxy` starts one and gives its commands as methods.
"""
import asyncio
import contextlib
import os
import random
import socket
import struct
import subprocess
import sys

PIECE = 65536


class Mood:
    """How everything is treated at the moment. `changed` wakes those who wait for another one."""

    def __init__(self):
        self.delay, self.jitter, self.piece = 0.0, 0.0, 0
        self.stalled = self.hole = False
        self.changed = asyncio.Event()

    def change(self):
        self.changed.set()
        self.changed = asyncio.Event()


class Link:
    """One client and its connection to the server. Two ways, each a reader that queues and a sender that waits for the moment of each piece."""

    def __init__(self, proxy, client):
        self.proxy, self.client, self.server = proxy, client, None
        self.tasks, self.forgotten = [], False

    async def run(self):
        loop = asyncio.get_running_loop()
        mood = self.proxy.mood
        try:
            first = b""
            while mood.hole:  # a receive that is cancelled may lose what it has: so what comes next is what tells
                first = await loop.sock_recv(self.client, PIECE)
                if not first:
                    return
            self.server = socket.socket(self.proxy.family)
            self.server.setblocking(False)
            await loop.sock_connect(self.server, self.proxy.target)
            for s in (self.client, self.server):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_sendall(self.server, first)
            for source, sink in ((self.client, self.server), (self.server, self.client)):
                queue = asyncio.Queue(64)
                self.tasks += [asyncio.create_task(self.take(source, queue)), asyncio.create_task(self.send(queue, sink))]
            await asyncio.gather(*self.tasks)
        except (OSError, asyncio.CancelledError):
            with contextlib.suppress(OSError):
                if self.forgotten:
                    await self.linger()
        finally:
            self.close()

    async def take(self, source, queue):
        loop, mood = asyncio.get_running_loop(), self.proxy.mood
        while True:
            while mood.stalled:
                await mood.changed.wait()
            data = await loop.sock_recv(source, PIECE)
            if mood.hole and data:
                continue
            await queue.put((loop.time() + mood.delay + random.uniform(0, mood.jitter), data))
            if not data:
                return

    async def send(self, queue, sink):
        loop, mood = asyncio.get_running_loop(), self.proxy.mood
        while True:
            due, data = await queue.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            while mood.stalled:
                await mood.changed.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            size = mood.piece or len(data)
            for start in range(0, len(data), size):
                await loop.sock_sendall(sink, data[start : start + size])
                if mood.piece:
                    await asyncio.sleep(0)

    def forget(self):
        self.forgotten = self.server is not None
        for t in self.tasks:
            t.cancel()

    async def linger(self):
        """The client is told nothing of what happened to the rest of its connection."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.server)
        loop.remove_writer(self.server)
        self.server.close()
        while await loop.sock_recv(self.client, PIECE):
            pass

    def reset(self):
        for s in (self.client, self.server):
            if s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        self.proxy.links.discard(self)
        for t in self.tasks:
            t.cancel()
        for s in (self.client, self.server):
            if s and s.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(s)
                asyncio.get_running_loop().remove_writer(s)
                s.close()


def address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class Server:
    def __init__(self, target, listen):
        found = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)[0]
        self.family, self.target = found[0], found[4]
        self.at, self.listener, self.accepting = listen, None, None
        self.mood, self.links, self.runs = Mood(), set(), set()

    def open(self):
        self.listener = socket.create_server(self.at, family=socket.getaddrinfo(*self.at)[0][0])
        self.listener.setblocking(False)
        self.at = self.listener.getsockname()[:2]
        self.accepting = asyncio.create_task(self.accept())

    async def accept(self):
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(self.listener)
            client.setblocking(False)
            link = Link(self, client)
            self.links.add(link)
            run = asyncio.create_task(link.run())
            self.runs.add(run)
            run.add_done_callback(self.runs.discard)

    def shut(self):
        self.accepting.cancel()
        asyncio.get_running_loop().remove_reader(self.listener)
        self.listener.close()
        self.listener = None

    def obey(self, word, numbers):
        mood = self.mood
        if word == "delay":
            mood.delay, mood.jitter = numbers[0] / 1000, (numbers[1] / 1000 if len(numbers) > 1 else 0)
        elif word == "cut":
            mood.piece = int(numbers[0])
        elif word == "stall":
            mood.stalled = True
        elif word == "hole":
            mood.hole = True
        elif word == "pass":
            mood.delay, mood.jitter, mood.piece, mood.stalled, mood.hole = 0.0, 0.0, 0, False, False
        elif word == "forget":
            for link in self.links:
                link.forget()
        elif word == "half-close":
            for link in self.links:
                link.client.shutdown(socket.SHUT_WR)
        elif word == "reset":
            for link in list(self.links):
                link.reset()
        elif word == "refuse" and self.listener:
            self.shut()
        elif word == "accept" and not self.listener:
            self.open()
        elif word == "count":
            return f"ok {len(self.links)}"
        elif word not in ("refuse", "accept"):
            return f"error: {word} is no command"
        mood.change()
        return "ok"


async def serve(target, listen):
    server = Server(target, listen)
    server.open()
    print(f"listening {server.at[0]}:{server.at[1]}", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        words = line.decode().split()
        try:
            answer = server.obey(words[0], [float(w) for w in words[1:]]) if words else "error: an empty line"
        except (ValueError, IndexError, OSError) as e:
            answer = f"error: {e}"
        print(answer, flush=True)
    os._exit(0)


class Proxy:
    """A proxy in a process of its own, in `with`: `proxy.address`, `proxy("delay", 50)`."""

    def __init__(self, target, listen="127.0.0.1:0"):
        self.process = subprocess.Popen([sys.executable, os.path.realpath(__file__), target, "--listen", listen],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().split()[1]
        self.host, self.port = address(self.address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def __call__(self, *words):
        self.process.stdin.write(" ".join(str(w) for w in words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer.startswith("ok"), answer
        return answer[3:]


def main():
    arguments = sys.argv[1:]
    listen = "127.0.0.1:0"
    if "--listen" in arguments:
        at = arguments.index("--listen")
        listen = arguments[at + 1]
        del arguments[at : at + 2]
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    asyncio.run(serve(address(arguments[0]), address(listen)))


if __name__ == "__main__":
    main()
