# SPDX-License-Identifier: Apache-2.0
"""Steers inject.h, which makes a daemon's system calls and allocations fail."""
import contextlib
import mmap
import os
import struct

from fault import BIN, Daemon

LIBRARY = os.path.realpath(os.path.join(BIN, "../tests/fault/inject.so"))
SANITIZED_PROGRAM = os.path.realpath(os.path.join(BIN, "../tests/fault/omnidaemond"))  # there where allocations cannot be reached by the library
KINDS = ("fsync", "write", "open", "accept", "read", "truncate", "rename", "send", "receive", "wait", "lock", "map", "allocate")
SCOPES = ("any", "state", "sockets", "elsewhere")
FORM = "=IIIiqqqqq256s"
FOREVER = -1
DIE = -9  # for an error: the process dies there


class FaultyDaemon(Daemon):
    """A daemon whose calls fail when told to. Scope "state": on files under its state folder only."""

    def __init__(self, *flags, start=True):
        super().__init__(*flags, start=False)
        self.state = os.path.join(self.folder, "state")
        self.flags += ["--state-dir", self.state]
        name = os.path.join(self.folder, "inject")
        with open(name, "wb") as f:
            f.write(bytes(struct.calcsize(FORM)))
        with open(name, "r+b") as f:
            self.control = mmap.mmap(f.fileno(), 0)
        self.faulty = {"LD_PRELOAD": " ".join(filter(None, (os.environ.get("LD_PRELOAD"), LIBRARY))), "OM_INJECT": name}
        # A sanitizer's own library wants to be the first one; this one only stands before the C library.
        self.faulty["ASAN_OPTIONS"] = ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0")))
        if os.path.exists(SANITIZED_PROGRAM):
            self.program = SANITIZED_PROGRAM
        if start:
            self.start()

    def launch(self, env=None):
        super().launch({**self.faulty, **(env or {})})

    def arm(self, kinds, error=0, nth=1, times=1, every=0, scope="state"):
        """From now on, the nth call of these kinds (and `times` - 1 after it, or each `every`-th) fails with the error; 0: takes part only."""
        bits = sum(1 << KINDS.index(kind) for kind in kinds.split())
        self.disarm()
        struct.pack_into(FORM, self.control, 0, 0, bits, SCOPES.index(scope), error, nth, times, every, 0, 0, self.state.encode())
        struct.pack_into("=I", self.control, 0, 1)

    def disarm(self):
        """Returns how many such calls there were, and how many failed."""
        struct.pack_into("=I", self.control, 0, 0)
        return struct.unpack_from("=qq", self.control, struct.calcsize("=IIIiqqq"))

    def alive(self):
        return self.process.poll() is None

    @contextlib.contextmanager
    def armed(self, *arguments, **named):
        self.arm(*arguments, **named)
        try:
            yield
        finally:
            self.disarm()
