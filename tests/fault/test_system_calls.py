#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""System calls that fail, each in turn: a disk that cannot sync, one that is full, calls that are interrupted or do a part only, no descriptors left.

Each case walks through the calls of one kind: the first one fails, then the second one …, until a round passes without reaching it.
Long: every point; short: every few.
"""
import contextlib
import errno
import sys

from fault import LONG, Books, case, main, note
from inject import FOREVER
from round import FaultyDaemon, Tally, during_start, during_work, reopen

MOST = 2000  # points of one walk: more than there are


def walk(name, act, daemon, books, step, **fault):
    tally = Tally()
    n = 1
    while n < MOST:
        what = f"{name} number {n}"
        if not act(daemon, books, tally, what, lambda d, n=n: d.arm(nth=n, **fault)):
            break
        n += step
    assert tally.points, f"{name}: no call was reached"
    tally.say(name)
    return tally


def stride(short):
    return 1 if LONG else short


def work_and_start(name, short, work=True, **fault):
    books = Books()
    with FaultyDaemon() as daemon:
        if work:
            walk(f"{name} at work", during_work, daemon, books, stride(short), **fault)
            reopen(daemon, books)
        walk(f"{name} from the start", during_start, daemon, books, stride(short), **fault)
        reopen(daemon, books)
        note(f"{len(books.published)} tasks acknowledged, {len(books.acked)} acks answered, none lost")


def fresh_start(name, short, **fault):
    """The first start of all, with no files there."""
    tally = Tally()
    n = 1
    while n < MOST:
        books = Books()
        with FaultyDaemon(start=False) as daemon:
            if not during_start(daemon, books, tally, f"{name} number {n}", lambda d, n=n: d.arm(nth=n, **fault)):
                break
            reopen(daemon, books)
        n += stride(short)
    tally.say(name)


@case
def each_sync_in_turn_fails_with_EIO():
    work_and_start("EIO of a sync", 1, kinds="fsync", error=errno.EIO)


@case
def each_sync_of_a_first_start_fails_with_EIO():
    fresh_start("EIO of a sync in an empty folder", 2, kinds="fsync", error=errno.EIO)


@case
def each_write_in_turn_meets_a_full_disk():
    work_and_start("ENOSPC of a write", 3, kinds="write truncate", error=errno.ENOSPC)


@case
def a_disk_that_stays_full_until_there_is_room_again():
    work_and_start("a full disk from a write on", 7, kinds="write truncate", error=errno.ENOSPC, times=FOREVER)


@case
def each_write_in_turn_does_a_part_only():
    work_and_start("a short write", 5, kinds="write", error=0)


@case
def each_file_that_is_opened_or_renamed_in_turn_fails():
    work_and_start("EIO of open or rename", 2, work=False, kinds="open rename lock map", error=errno.EIO)
    fresh_start("EIO of open or rename in an empty folder", 2, kinds="open rename lock map", error=errno.EIO)


@case
def every_second_call_is_interrupted():
    # Only what Linux may interrupt: not open(2), flock(2) without waiting, or the reading of a file.
    for kinds, scope in (("read accept wait", "elsewhere"), ("write", "state"), ("send receive write read", "sockets")):
        books = Books()
        with FaultyDaemon(start=False) as daemon:
            tally = Tally()
            for every in (2, 3, 5):
                during_start(daemon, books, tally, f"EINTR of {kinds}", lambda d, e=every: d.arm(kinds, errno.EINTR, every=e, scope=scope))
            assert not tally.errors and not tally.ended, f"EINTR of {kinds}: {tally.errors}\n{daemon.log_text()}"
            reopen(daemon, books)
            tally.say(f"EINTR of {kinds}")


@case
def every_second_send_and_receive_does_a_part_only():
    books = Books()
    with FaultyDaemon(start=False) as daemon:
        tally = Tally()
        for every in (1, 2, 3):
            during_start(daemon, books, tally, "short sends and receives", lambda d, e=every: d.arm("send receive read write", 0, every=e, scope="sockets"))
        assert not tally.errors and not tally.ended, f"{tally.errors}\n{daemon.log_text()}"
        tally.say("short sends and receives")


@case
def no_descriptor_for_a_connection_is_told_and_passes():
    books = Books()
    for error in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED):
        with FaultyDaemon() as daemon:
            with contextlib.closing(daemon.connect()) as old:
                old.call("ping")
                daemon.arm("accept", error, times=5, scope="any")
                refused = 0
                for _ in range(8):
                    with contextlib.closing(daemon.connect(10)) as client:
                        client.send_body(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
                        message = client.receive()
                        if message and "error" in message:
                            assert message["error"]["data"]["kind"] == "limit", message
                            refused += 1
                        else:
                            assert message and message["id"] == 1, message
                    old.call("ping")
                seen, failed = daemon.disarm()
                note(f"accept4 fails with {errno.errorcode[error]}: {failed} of {seen}, {refused} clients told")
            books = Books(f"work-{error}")
            books.check(daemon)
            daemon.stop()


sys.exit(main())
