#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The proxy does what it says: each command, between a client and a server that sends everything back."""
import contextlib
import socket
import sys
import threading
import time

import fault  # noqa: F401  (the path to harness)
from harness import case, main, wait_for
from proxy import Proxy


class Echo:
    """Sends back what it gets, one thread a connection. Counts what it got, and remembers how each connection ended."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.got, self.ends = 0, []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def serve(self, s):
        try:
            while data := s.recv(65536):
                self.got += len(data)
                s.sendall(data)
            self.ends.append("end")
        except OSError as e:
            self.ends.append(type(e).__name__)
        s.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@contextlib.contextmanager
def set_up():
    echo = Echo()
    with Proxy(echo.address) as proxy:
        yield echo, proxy
    echo.close()


def connect(proxy):
    s = socket.create_connection((proxy.host, proxy.port), 10)
    s.settimeout(10)
    return s


def echoed(s, data):
    s.sendall(data)
    back = b""
    while len(back) < len(data):
        piece = s.recv(1 << 20)
        assert piece, "closed early"
        back += piece
    assert back == data


def silent(s, seconds=0.2):
    s.settimeout(seconds)
    try:
        data = s.recv(65536)
        raise AssertionError(f"{data!r} came")
    except TimeoutError:
        s.settimeout(10)


@case
def what_passes_is_the_same_bytes():
    with set_up() as (_, proxy), connect(proxy) as s:
        echoed(s, bytes(range(256)) * 4000)
        assert proxy("count") == "1"


@case
def an_end_of_input_passes_and_what_was_sent_before_arrives():
    with set_up() as (echo, proxy), connect(proxy) as s:
        s.sendall(b"last words")
        s.shutdown(socket.SHUT_WR)
        assert s.recv(100, socket.MSG_WAITALL) == b"last words"
        wait_for(lambda: echo.ends, what="the end at the other side")  # its thread notes it after it has answered
        assert echo.ends == ["end"]


@case
def delay_holds_each_way_and_keeps_the_order():
    with set_up() as (_, proxy), connect(proxy) as s:
        proxy("delay", 50, 20)
        start = time.monotonic()
        echoed(s, b"x")
        assert 0.1 <= time.monotonic() - start < 5
        echoed(s, b"".join(b"%05d" % n for n in range(20000)))
        proxy("pass")
        start = time.monotonic()
        echoed(s, b"x")
        assert time.monotonic() - start < 0.1


@case
def cut_makes_small_pieces():
    with set_up() as (_, proxy), connect(proxy) as s:
        proxy("cut", 1)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        echoed(s, b"0123456789" * 50)


@case
def stall_fills_the_buffers_and_loses_nothing():
    with set_up() as (_, proxy), connect(proxy) as s:
        echoed(s, b"before")
        proxy("stall")
        s.sendall(b"waits")
        silent(s)
        proxy("pass")
        assert s.recv(5, socket.MSG_WAITALL) == b"waits"


@case
def a_hole_takes_everything_and_answers_nothing():
    with set_up() as (echo, proxy), connect(proxy) as old:
        echoed(old, b"before")
        proxy("hole")
        old.sendall(b"gone")
        with connect(proxy) as new:
            new.sendall(b"gone too")
            silent(new)
            silent(old)
            assert echo.got == len(b"before")
            proxy("pass")
            echoed(new, b"after")


@case
def half_close_ends_what_the_client_reads_only():
    with set_up() as (echo, proxy), connect(proxy) as s:
        echoed(s, b"before")
        proxy("half-close")
        assert s.recv(10) == b""
        s.sendall(b"still heard")
        deadline = time.monotonic() + 10
        while echo.got < len(b"beforestill heard"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@case
def reset_is_felt_on_both_sides():
    with set_up() as (echo, proxy), connect(proxy) as s:
        echoed(s, b"before")
        proxy("reset")
        try:
            s.recv(10)
            raise AssertionError("no reset")
        except ConnectionResetError:
            pass
        deadline = time.monotonic() + 10
        while not echo.ends:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert echo.ends == ["ConnectionResetError"] and proxy("count") == "0"
        with connect(proxy) as again:
            echoed(again, b"after")


@case
def what_is_forgotten_answers_nothing_more_and_what_is_new_passes():
    with set_up() as (echo, proxy), connect(proxy) as old:
        echoed(old, b"before")
        proxy("forget")
        wait_for(lambda: echo.ends, 10, "the server's end of it")
        old.sendall(b"gone")
        silent(old)
        with connect(proxy) as new:
            echoed(new, b"passes")
        silent(old)
        assert echo.got == len(b"beforepasses")


@case
def refuse_and_accept_on_the_same_port():
    with set_up() as (_, proxy), connect(proxy) as old:
        proxy("refuse")
        try:
            connect(proxy).close()
            raise AssertionError("taken")
        except ConnectionRefusedError:
            pass
        echoed(old, b"goes on")
        proxy("accept")
        with connect(proxy) as new:
            echoed(new, b"again")


sys.exit(main())
