#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Memory runs out: each allocation in turn fails, those of libevent, LMDB and the C library included.

The daemon answers with a typed error, closes that connection, or ends with a word about it; it does not crash, and does not hang; and nothing that it
acknowledged is lost. Long: the first allocation after exec(2) fails, then the second one, …, until rounds pass without reaching it; several daemons at
a time, each with every so-manieth. Short: a sample of them, at random. With a sanitizer in the build the daemon is one of these tests' own (inject_memory.c
says why), and what it leaks where it ends by itself counts too.
"""
import concurrent.futures
import contextlib
import copy
import errno
import itertools
import os
import shutil
import signal
import sys
import tempfile

from fault import SANITIZED, Books, amount, case, main, note, rng
from inject import FOREVER
from round import FaultyDaemon, Tally, during_start, during_work, play, reopen

SAMPLE = amount("ALLOCATIONS", 40 if SANITIZED else 60, 0)
LANES = 4
MISSES = 4  # so many rounds that did not come to it are the end: threads make one round's count differ from the next one's a little


class Fresh:
    """A daemon and its books, new for each fault, in an empty folder."""

    def __init__(self):
        self.published = self.acked = 0

    def fill(self, _daemon):
        return Books()

    def fault(self, act, tally, what, arm):
        with FaultyDaemon(start=False) as daemon:
            books = self.fill(daemon)
            hit = act(daemon, books, tally, what, arm)
            reopen(daemon, books)
            self.published += len(books.published)
            self.acked += len(books.acked)
        return hit

    def end(self):
        pass


class Killed(Fresh):
    """The same on the files of a daemon that was killed: always the same files, for a start takes memory for each result that is there."""

    state = books = None

    @classmethod
    def prepare(cls, folder):
        cls.state, cls.books = os.path.join(folder, "state"), Books()
        with FaultyDaemon() as daemon:
            play(daemon, cls.books, [])
            with contextlib.closing(daemon.connect()) as client:
                cls.books.publish(client, 3)
                cls.books.serve(client)
                cls.books.ack(client, cls.books.take(client, 1)[:1])
            daemon.kill(signal.SIGKILL)
            shutil.copytree(daemon.state, cls.state)

    def fill(self, daemon):
        shutil.copytree(self.state, daemon.state)
        return copy.deepcopy(self.books)


class Lasting:
    """The same daemon for every fault of a lane, or the next one on its files."""

    def __init__(self):
        self.books = Books()
        self.daemon = FaultyDaemon()
        self.published = self.acked = 0

    def fault(self, act, tally, what, arm):
        return act(self.daemon, self.books, tally, what, arm)

    def end(self):
        with self.daemon:
            reopen(self.daemon, self.books)
        self.published, self.acked = len(self.books.published), len(self.books.acked)


def lane(numbers, world, act, name, times):
    """Faults of these numbers, until some in a row are not reached."""
    tally, subject, misses = Tally(), world(), 0
    try:
        for n in numbers:
            reached = subject.fault(act, tally, f"allocation {n} {name}", lambda d, n=n: d.arm("allocate", errno.ENOMEM, nth=n, times=times, scope="any"))
            misses = 0 if reached else misses + 1
            tally.last = n if reached else tally.last
            if misses == MISSES:
                break
    finally:
        subject.end()
    return tally, subject


def count(world, act):
    """How many allocations the first round makes."""
    tally, subject = Tally(), world()
    try:
        subject.fault(act, tally, "a round without a fault", lambda d: d.arm("allocate", errno.ENOMEM, nth=1 << 40, scope="any"))
    finally:
        subject.end()
    return tally.seen


def walk(name, act, world, times=1):
    if SAMPLE:
        total = count(world, act)
        chosen = rng.sample(range(1, total + 1), min(SAMPLE, total))
        lanes = [sorted(chosen[k::LANES]) for k in range(LANES)]
    else:
        lanes = [itertools.count(k + 1, LANES) for k in range(LANES)]
    whole = Tally()
    published = acked = 0
    with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
        for tally, subject in pool.map(lambda numbers: lane(numbers, world, act, name, times), lanes):
            whole.merge(tally)
            published += subject.published
            acked += subject.acked
    assert whole.points, f"no allocation {name} was reached"
    which = f"a sample of the about {total} allocations" if SAMPLE else f"each allocation up to number {whole.last}"
    whole.say(f"{which} {name} fails" + ("" if times == 1 else f", and {'all' if times == FOREVER else times - 1} after it"))
    note(f"{published} tasks acknowledged, {acked} acks answered, none lost")


@case
def each_one_at_work_fails():
    walk("at work", during_work, Lasting)


@case
def each_one_from_the_start_fails():
    with tempfile.TemporaryDirectory(prefix="omni-test-") as folder:
        Killed.prepare(folder)
        walk("from the start", during_start, Killed)


@case
def each_one_from_a_first_start_fails():
    walk("from the start in an empty folder", during_start, Fresh)


@case
def twenty_in_a_row_fail():
    walk("at work", during_work, Lasting, times=20)


@case
def all_fail_until_there_is_memory_again():
    walk("at work", during_work, Lasting, times=FOREVER)


sys.exit(main())
