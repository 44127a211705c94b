# SPDX-License-Identifier: Apache-2.0
"""A real server for a test written in Python: held by one of the scripts of tests/servers, whose lib.sh says what they are told and answer."""
import os
import shutil
import subprocess
import tempfile

SCRIPTS = os.environ.get("OMNI_SERVERS") or os.path.join(os.path.dirname(__file__), "../servers")


class Server:
    """`Server("redis")`, or of a kind, `Server("redis", "cluster")`. Use it in `with`; it ends with this process, however that ends. What the
    script reads of its environment besides: `environment`."""

    def __init__(self, system, kind="plain", environment=None):
        self.folder = tempfile.mkdtemp(prefix="omni-test-server-")
        script = os.path.join(SCRIPTS, f"{system}.sh")
        self.process = subprocess.Popen([script, "serve", self.folder, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **(environment or {})})
        self.values = {}
        while (line := self._line()) != "ready":
            name, _, value = line.partition("=")
            self.values.setdefault(name, value)

    def _line(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the server's script ended with {self.process.wait()}")
        return line.rstrip("\n")

    def do(self, command):
        """Has a command of lib.sh done: "kill", "up"."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self._line()
        assert answer == "ok", f"{command}: {answer}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)
