# SPDX-License-Identifier: Apache-2.0
"""What the whole-system tests share: a daemon in a folder of its own, cases that print TAP, and waiting for things."""
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from omni_wire import Omni

BIN = os.environ.get("OMNI_BIN") or os.path.join(os.path.dirname(__file__), "../../build/bin")
BIN = os.path.realpath(BIN)
SANITIZED = "address" in BIN or "thread" in BIN or "undefined" in BIN

_cases = []


def case(function):
    """A test; its name is the sentence."""
    _cases.append(function)
    return function


def main():
    failed = 0
    only = sys.argv[1:]
    cases = [c for c in _cases if not only or any(o in c.__name__ for o in only)]
    print(f"1..{len(cases)}", flush=True)
    for number, function in enumerate(cases, 1):
        name = function.__name__.replace("_", " ")
        try:
            function()
            print(f"ok {number} - {name}", flush=True)
        except Exception:
            failed += 1
            print(f"not ok {number} - {name}", flush=True)
            for line in traceback.format_exc().splitlines():
                print("#", line, flush=True)
    sys.exit(1 if failed else 0)


def wait_for(condition, timeout=10, what="condition"):
    """Calls until it returns something true; that is its answer."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(0.01)


def wakeups(pid, threads=None):
    """Voluntary context switches of all its threads, or of these: each is a return from a wait."""
    total = 0
    for thread in threads or os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as f:
            for line in f:
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
    return total


class Daemon:
    """omnidaemond with its state in a temporary folder. Use it in `with`."""

    def __init__(self, *flags, env=None, start=True):
        self.folder = tempfile.mkdtemp(prefix="omni-test-")
        self.socket = os.path.join(self.folder, "d.sock")
        self.flags = list(flags)
        self.env = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "XDG_RUNTIME_DIR")}
        self.env.update({"OMNIDAEMON_SOCKET": self.socket, **(env or {})})
        self.process = None
        self.program = os.path.join(BIN, "omnidaemond")
        self.wrapper = []  # what runs the daemon, say valgrind
        if start:
            self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.kill(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def launch(self, env=None):
        """Starts the process and waits for nothing."""
        self.log = open(os.path.join(self.folder, "log"), "ab")
        self.process = subprocess.Popen(
            [*self.wrapper, self.program, *self.flags],
            cwd=self.folder, env={**self.env, **(env or {})}, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )

    def start(self, ready_within=20, env=None):
        self.launch(env)
        deadline = time.monotonic() + ready_within
        while True:
            try:
                with contextlib.closing(self.connect()) as client:
                    client.call("ping")
                return self
            except OSError:
                if self.process.poll() is not None:
                    raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log_text()}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"the daemon is not ready:\n{self.log_text()}")
                time.sleep(0.002)

    def connect(self, timeout=30):
        return Omni(self.socket, timeout)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(30)
        self.log.close()
        return self.process.returncode

    def stop(self):
        """A graceful stop; the exit status must be 0 (a sanitizer's report makes it something else)."""
        status = self.kill(signal.SIGTERM)
        assert status == 0, f"the daemon ended with {status}:\n{self.log_text()}"

    def log_text(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            for line in f:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def ctl(self, *arguments, stdin="", timeout=60, env=None):
        """omnictl in a pipe: a CompletedProcess with text."""
        return subprocess.run(
            [os.path.join(BIN, "omnictl"), *arguments],
            env={**self.env, **(env or {})}, cwd=self.folder, input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        )
