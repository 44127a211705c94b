#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The power goes: the state folder is on a file system of its own, which is shut down under the running daemon without its journal being written.

An ext4 image on a loop device. EXT4_IOC_SHUTDOWN with NOLOGFLUSH makes the file system drop everything that was not synced, as a power cut does: what
a write(2) left in the page cache never reaches the image. The daemon goes on for a moment, on a disk that fails every call; nothing that it
acknowledges then is on the disk, so it must acknowledge nothing. Then it is killed, the image mounted again (ext4 replays its journal), and the daemon started on what is there.

Needs root, for mount. Long: 500 cuts.
"""
import contextlib
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

from fault import Books, Daemon, OmniError, amount, case, main, note, rng

CUTS = amount("CUTS", 5, 500)
CUTS_A_DISK = 25  # then a new one: the first files of a folder are a case of their own
IMAGE_BYTES = 1 << 30
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
NOLOGFLUSH = 2
# The kernel's shutdown is not one moment: for its two milliseconds, and a little more, an fdatasync(2) that is under way may return 0 for what is then
# dropped (without a daemon, three threads that append and sync see it in one of forty cuts). What is answered between the beginning of the call and so
# long after it is in doubt; what was answered before must be there.
DOUBT_S = 0.05


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()} (needs root, loop devices and e2fsprogs)")


class Disk:
    """A file system whose power can be cut."""

    def __init__(self):
        if os.geteuid() != 0:
            raise AssertionError("a power cut cannot be tried: mounting a file system needs root")
        self.folder = tempfile.mkdtemp(prefix="omni-disk-")
        self.image = os.path.join(self.folder, "image")
        self.path = os.path.join(self.folder, "mounted")
        self.mounted = False
        self.cutting = self.cut_at = None

    def __enter__(self):
        try:
            os.mkdir(self.path)
            with open(self.image, "wb") as f:
                f.truncate(IMAGE_BYTES)
            run("mkfs.ext4", "-q", "-F", self.image)
            self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.mounted:
            self.unmount()
        shutil.rmtree(self.folder, ignore_errors=True)

    def mount(self):
        run("mount", "-o", "loop", self.image, self.path)
        self.mounted = True
        self.cutting = self.cut_at = None

    def unmount(self):
        run("umount", self.path)
        self.mounted = False

    def cut(self):
        fd = os.open(self.path, os.O_RDONLY)
        try:
            self.cutting = time.monotonic()
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
            self.cut_at = time.monotonic()
        finally:
            os.close(fd)

    def in_doubt(self):
        return self.cutting is not None and (self.cut_at is None or time.monotonic() < self.cut_at + DOUBT_S)


class Load:
    """One who publishes, one who acknowledges with results and sets a key, until the daemon is gone. The books are read when both have ended."""

    def __init__(self, daemon, books):
        self.daemon, self.books = daemon, books
        self.over = threading.Event()
        self.fault = None
        self.threads = [threading.Thread(target=self.guarded, args=(work,)) for work in (self.publish, self.work)]
        for t in self.threads:
            t.start()

    def guarded(self, work):
        try:
            with contextlib.closing(self.daemon.connect(5)) as client:
                while not self.over.is_set():
                    try:
                        work(client)
                    except OmniError:
                        time.sleep(0.005)  # a typed error: what a daemon without a disk has to answer
        except TimeoutError as e:
            if not self.over.is_set():
                self.fault = e
        except OSError:
            pass
        except Exception as e:  # pylint: disable=broad-except
            self.fault = e

    def publish(self, client):
        self.books.publish(client, rng.randint(1, 20), rng.choice((10, 100, 100, 1000, 9000)))

    def work(self, client):
        if not hasattr(client, "serving"):
            self.books.serve(client)
            client.serving = True
        self.books.ack(client, self.books.take(client, 0.05))
        self.books.set(client, f"key{rng.randint(0, 9)}", rng.randint(0, 1 << 30))

    def join(self):
        self.over.set()
        for t in self.threads:
            t.join(30)
            assert not t.is_alive(), "a client hangs"
        if self.fault:
            raise self.fault


def check_files(folder):
    """What people may open is what they expect: JSON in NAME.json, whole."""
    seen = 0
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as f:
                data = f.read()
            if name.endswith(".json") and data:
                json.loads(data)
                seen += 1
    return seen


def one_cut(disk, daemon, books):
    load = Load(daemon, books)
    try:
        time.sleep(rng.uniform(0.02, 0.4))
        disk.cut()
        time.sleep(rng.choice((0, 0, 0.01, 0.2)))
    finally:
        daemon.kill(signal.SIGKILL)
        load.join()
    disk.unmount()
    disk.mount()
    readable = check_files(disk.path)
    daemon.start()
    with contextlib.closing(daemon.connect()) as client:
        books.drain(client)
        books.check_new_results(client, 500)
        books.check_settings(client)
    return readable


class Sums:
    def __init__(self):
        self.cuts = self.published = self.acked = self.again = self.readable = 0

    def add(self, books):
        self.published += len(books.published)
        self.acked += len(books.acked)
        self.again += sum(books.handled.values()) - len(books.handled)


def cut_a_new_disk(times, sums):
    books = Books()
    with Disk() as disk, Daemon("--state-dir", os.path.join(disk.path, "state")) as daemon:
        books.in_doubt = disk.in_doubt
        for _ in range(times):
            sums.cuts += 1
            try:
                sums.readable += one_cut(disk, daemon, books)
            except Exception:
                note(f"at cut {sums.cuts}; the daemon's log ends:")
                note(daemon.log_text()[-3000:].replace("\n", "\n# "))
                raise
        with contextlib.closing(daemon.connect()) as client:
            books.check_results(client)
        daemon.stop()
    sums.add(books)


@case
def a_power_cut_loses_nothing_acknowledged():
    sums = Sums()
    begun = time.monotonic()
    while sums.cuts < CUTS:
        cut_a_new_disk(min(CUTS_A_DISK, CUTS - sums.cuts), sums)
        note(f"{sums.cuts} power cuts in {time.monotonic() - begun:.0f} s: {sums.published} tasks acknowledged to the publisher, {sums.acked} acks answered, "
             f"{sums.again} delivered again, nothing lost; {sums.readable} JSON files read")


sys.exit(main())
