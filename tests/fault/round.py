# SPDX-License-Identifier: Apache-2.0
"""A round of everything that makes a daemon write, with a fault in it, and the judgement afterwards.

Whatever the fault, each request is answered (a result or a typed error) or its connection is closed, in bounded time; the daemon lives on or ends with
an exit status and a line that says why; and what the books say is owed is there afterwards, in this daemon and in the one that opens its files next.
"""
import contextlib
import signal
import time

from fault import OmniError, note
from inject import FaultyDaemon

CALL_S = 8  # longer than that, and a request counts as never answered
OTHERS = 20  # results of earlier rounds that are looked at again after each fault; at the end all of them are
RECOVERY_S = 25  # the bus opens its folder again after 10 s at most
KINDS = {"invalid", "not_found", "exists", "denied", "unsupported", "unavailable", "timeout", "limit", "conflict", "internal"}
HONEST = KINDS - {"invalid", "exists", "denied", "unsupported"}  # what a fault of the machine may be called


class Unanswered(AssertionError):
    pass


def attempt(step, errors):
    """One step. True when the connection is still good."""
    try:
        step()
        return True
    except OmniError as e:
        assert e.kind in HONEST, f"a fault of the machine is answered {e.kind}: {e}"
        errors.append(e.kind)
        return True
    except TimeoutError as e:
        raise Unanswered("a request was never answered") from e
    except OSError:
        errors.append("closed")
        return False


def connect(daemon, within=CALL_S):
    """A client, or None when the daemon is gone."""
    deadline = time.monotonic() + within
    while daemon.alive():
        try:
            return daemon.connect(CALL_S)
        except OSError as e:
            if time.monotonic() > deadline:
                raise Unanswered(f"no connection: {e}") from e
            time.sleep(0.002)
    return None


def known_result(client, books):
    """What is there may be out of reach; it is never said not to be there."""
    for i in list(books.acked)[:1]:
        try:
            client.call("task.get", id=i)
        except OmniError as e:
            assert e.kind != "not_found", f"the result of {i} is denied"
            raise


def play(daemon, books, errors):
    """Publish, deliver, ack with a result, fail, set a key, read it all. A closed connection is opened again and the rest goes on."""
    held = []
    steps = [
        lambda c: books.serve(c),
        lambda c: books.publish(c, 3),
        lambda c: books.publish(c, 1, 5000),
        lambda c: held.extend(books.take(c, 0.03)),
        lambda c: books.ack(c, held[:2]),
        lambda c: c.fail(held[2], "on purpose") if len(held) > 2 else None,
        lambda c: books.set(c, "key", len(books.attempted)),
        lambda c: known_result(c, books),
        lambda c: books.publish(c, 1),
        lambda c: books.ack(c, books.take(c, 0.03)),
        lambda c: c.call("task.list", limit=10),
        lambda c: c.call("bus.stats"),
        lambda c: c.call("health"),
    ]
    client = connect(daemon)
    try:
        for step in steps:
            if client is None:
                return
            if not attempt(lambda step=step, c=client: step(c), errors):
                client.close()
                held = []
                client = connect(daemon)
    finally:
        if client:
            client.close()


def ended_well(daemon, what):
    """It may end, but as a program that knows why."""
    status = daemon.process.wait(20)
    log = daemon.log_text()
    assert status in (1, 2), f"{what}: ended with status {status}\n{log[-3000:]}"
    assert log.strip(), f"{what}: ended without a word"


def settle(daemon, books, what):
    """With the fault gone: a daemon that is still there becomes well by itself, and what it owes is there; then a new one on the same files."""
    deadline = time.monotonic() + RECOVERY_S
    while daemon.alive():
        try:
            with contextlib.closing(daemon.connect(CALL_S)) as client:
                books.serve(client)
                books.publish(client, 1)
                books.set(client, "key", len(books.attempted))
            books.check(daemon, others=OTHERS)
            break
        except (OmniError, OSError) as e:
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not well again after {RECOVERY_S} s: {e}\n{daemon.log_text()[-3000:]}") from e
            time.sleep(0.02)
    if not daemon.alive():
        ended_well(daemon, what)
        daemon.log.close()
        daemon.start()
        books.check(daemon, others=OTHERS)


def reopen(daemon, books):
    """What is on the disk, seen by a new process."""
    daemon.kill(signal.SIGKILL)
    daemon.start()
    books.check(daemon)


class Tally:
    def __init__(self):
        self.points = self.ended = self.last = 0
        self.seen = 0  # calls of the last round that could have failed
        self.errors = {}

    def add(self, errors, ended):
        self.points += 1
        self.ended += ended
        for e in errors:
            self.errors[e] = self.errors.get(e, 0) + 1

    def merge(self, other):
        self.points += other.points
        self.ended += other.ended
        self.last = max(self.last, other.last)
        for e, n in other.errors.items():
            self.errors[e] = self.errors.get(e, 0) + n

    def say(self, what):
        note(f"{what}: {self.points} faults, daemon ended {self.ended} times, answers: {dict(sorted(self.errors.items()))}")


def during_work(daemon, books, tally, what, arm):
    """One fault in a running daemon. False when the round was over before it came to it."""
    errors = []
    arm(daemon)
    try:
        play(daemon, books, errors)
    except Unanswered as e:
        raise AssertionError(f"{what}: {e}\n{daemon.log_text()[-3000:]}") from e
    tally.seen, failed = daemon.disarm()
    ended = not daemon.alive()
    settle(daemon, books, what)
    if failed:
        tally.add(errors, ended)
    return failed > 0


def during_start(daemon, books, tally, what, arm):
    """One fault while a daemon starts on what is there (the last one was killed), and in its first round."""
    errors = []
    if daemon.process:
        if daemon.alive():
            daemon.kill(signal.SIGKILL)
    arm(daemon)
    daemon.launch()
    try:
        play(daemon, books, errors)
    except Unanswered as e:
        raise AssertionError(f"{what}: {e}\n{daemon.log_text()[-3000:]}") from e
    tally.seen, failed = daemon.disarm()
    ended = not daemon.alive()
    settle(daemon, books, what)
    if failed:
        tally.add(errors, ended)
    return failed > 0


__all__ = ["FaultyDaemon", "Tally", "during_work", "during_start", "play", "reopen"]
