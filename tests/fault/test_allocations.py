#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Memory runs out: each allocation in turn fails, those of libevent, LMDB and the C library included.

The daemon answers with a typed error, closes that connection, or ends with a word about it; it does not crash, and does not hang; and nothing that it
acknowledged is lost. Long: each allocation from the start to the end of a round; short: a sample of them, at random.
"""
import errno
import sys

from fault import SANITIZED, Books, amount, case, main, note, rng
from inject import FOREVER
from round import FaultyDaemon, Tally, during_start, during_work, reopen

SAMPLE = amount("ALLOCATIONS", 60, 0)


def count(daemon, books, act):
    """How many allocations a round makes."""
    act(daemon, books, Tally(), "a round without a fault", lambda d: d.arm("allocate", errno.ENOMEM, nth=1 << 40, scope="any"))
    return daemon.disarm()[0]


def points(total):
    return range(1, total + 1) if not SAMPLE else sorted(rng.sample(range(1, total + 1), min(SAMPLE, total)))


def walk(name, act, daemon, books, times=1):
    tally = Tally()
    total = count(daemon, books, act)
    for n in points(total):
        act(daemon, books, tally, f"allocation {n} of about {total} {name}", lambda d, n=n: d.arm("allocate", errno.ENOMEM, nth=n, times=times, scope="any"))
    tally.say(f"of about {total} allocations {name}, one fails" if times == 1 else f"of about {total} allocations {name}, {times} fail")
    reopen(daemon, books)


def each_one_at_work_fails():
    books = Books()
    with FaultyDaemon() as daemon:
        walk("at work", during_work, daemon, books)
        note(f"{len(books.published)} tasks acknowledged, {len(books.acked)} acks answered, none lost")


def each_one_of_a_start_fails():
    books = Books()
    with FaultyDaemon() as daemon:
        walk("from the start", during_start, daemon, books)


def twenty_in_a_row_fail():
    books = Books()
    with FaultyDaemon() as daemon:
        walk("at work", during_work, daemon, books, times=20)


def all_fail_until_there_is_memory_again():
    books = Books()
    with FaultyDaemon() as daemon:
        walk("at work", during_work, daemon, books, times=FOREVER)


if SANITIZED:
    note("a sanitizer's allocator cannot be made to fail from outside: these run in the plain build only")
else:
    for function in (each_one_at_work_fails, each_one_of_a_start_fails, twenty_in_a_row_fail, all_fail_until_there_is_memory_again):
        case(function)
sys.exit(main())
