#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The daemon as a service: what the service manager is told, sockets that it hands over, reload, limits of the system."""
import os
import resource
import signal
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import BIN, Daemon, case, main, wait_for  # noqa: E402
from omni_wire import OmniError  # noqa: E402


class Manager:
    """The service manager's end of $NOTIFY_SOCKET."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(10)

    def wait_for(self, word):
        """The first message with that word in it, as a dictionary."""
        while True:
            text = self.socket.recv(4096).decode()
            if word in text:
                return dict(line.split("=", 1) for line in text.splitlines())


def service(d, **more):
    """A daemon that finds what systemd would have put into its environment."""
    manager = Manager(d.folder)
    d.env.pop("OMNIDAEMON_SOCKET")
    d.env.update(NOTIFY_SOCKET=manager.path, STATE_DIRECTORY=d.folder + "/state", RUNTIME_DIRECTORY=d.folder + "/run", OMNIDAEMON_CONFIG=d.folder + "/conf", **more)
    d.socket = d.folder + "/run/omnidaemon.sock"
    write(d, "")
    return manager


def write(d, text):
    with open(d.folder + "/conf", "w", encoding="utf-8") as f:
        f.write(text)


@case
def the_service_manager_hears_ready_reloading_and_stopping():
    with Daemon(start=False) as d:
        manager = service(d)
        d.start()
        assert "local:" in manager.wait_for("READY=1")["STATUS"]
        assert os.path.isdir(d.folder + "/state"), os.listdir(d.folder)
        write(d, "PREFETCH=4\n")
        d.process.send_signal(signal.SIGHUP)
        assert int(manager.wait_for("RELOADING=1")["MONOTONIC_USEC"]) > 0
        manager.wait_for("READY=1")
        d.process.send_signal(signal.SIGTERM)
        assert int(manager.wait_for("STOPPING=1")["EXTEND_TIMEOUT_USEC"]) > 10_000_000
        assert d.process.wait(20) == 0
        assert not os.path.exists(d.socket)


@case
def the_watchdog_is_fed_when_there_is_one():
    with Daemon(start=False) as d:
        manager = service(d, WATCHDOG_USEC="200000")
        d.start()
        manager.wait_for("WATCHDOG=1")
        manager.wait_for("WATCHDOG=1")
        d.stop()


@case
def a_reload_tells_what_changed_and_a_wrong_file_changes_nothing():
    with Daemon(start=False) as d:
        service(d)
        d.start()
        c = d.connect()
        write(d, "PREFETCH=4\nMAX_FRAME_BYTES=1M\n")
        assert c.call("daemon.reload") == {"changed": ["PREFETCH"], "restart_needed": ["MAX_FRAME_BYTES"]}
        write(d, "PREFETCHH=5\n")
        try:
            c.call("daemon.reload")
            raise AssertionError("a misspelt setting was accepted")
        except OmniError as e:
            assert "PREFETCHH" in str(e) and "line 1" in str(e), e
        write(d, "PREFETCH=4\n")
        assert c.call("daemon.reload")["changed"] == []
        d.stop()


@case
def a_socket_that_was_handed_over_is_served_and_outlives_the_daemon():
    with Daemon(start=False) as d:
        handed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        handed.bind(d.socket)
        handed.listen(16)
        early = d.connect()  # waits in the queue until there is a daemon
        early.start("ping")
        command = 'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$1" --state-dir state --socket-path /nowhere/at/all'
        process = subprocess.Popen(["bash", "-c", command, str(handed.fileno()), os.path.join(BIN, "omnidaemond")], cwd=d.folder, env=d.env,
                                   pass_fds=[handed.fileno()], stderr=subprocess.DEVNULL)
        try:
            assert d.connect().call("ping") == {}
            assert early.receive(10)["result"] == {}
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert os.path.exists(d.socket)


@case
def a_connection_above_the_limit_is_refused_and_the_others_go_on():
    with Daemon("--max-connections", "2") as d:
        wait_for(lambda: d.connect().call("ping") == {}, what="a place after the first probe")
        first, second = d.connect(), d.connect()
        first.call("ping")
        second.call("ping")
        third = d.connect()
        third.sock.settimeout(10)
        assert b"MAX_CONNECTIONS" in third.sock.recv(4096)
        assert third.sock.recv(4096) == b""
        second.close()
        wait_for(lambda: served(d), what="a place for another")
        first.call("ping")
        d.stop()


def served(d):
    try:
        return d.connect().call("ping") == {}
    except OSError:
        return False


@case
def a_low_limit_of_open_files_is_told_and_lived_with():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Daemon(start=False) as d:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        try:
            d.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        with open(f"/proc/{d.process.pid}/limits", encoding="ascii") as f:
            limit = next(int(line.split()[3]) for line in f if line.startswith("Max open files"))
        assert limit >= 16384 or "open files" in d.log_text(), (limit, d.log_text())
        d.stop()


main()
