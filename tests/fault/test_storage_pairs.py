#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From each storage to each other one, on real servers, while agents work at a steady rate and the daemon is killed (-9) ten times on the way:
both are found equal, and every result that an agent produced is there once.

Long: every ordered pair, 20,000 results before, 200 tasks a second meanwhile. Short: a ring that visits each storage, less of all.
"""
import contextlib
import itertools

from fault import LONG, amount, case, main
from moves import move, store_of
from server import Server

SERVERS = ("redis", "nats", "postgresql", "s3", "mongodb")
RING = (("json", "json"), ("json", "postgresql"), ("postgresql", "s3"), ("s3", "nats"), ("nats", "mongodb"), ("mongodb", "redis"), ("redis", "json"))
KILLS, RESULTS, RATE = amount("KILLS", 10, 10), amount("RESULTS", 1000, 20000), amount("RATE", 200, 200)


def url_of(system, side, stack):
    if system == "json":
        return f"json:{side}?max_metrics=1000000"  # its default of 10,000 would drop the oldest
    url = store_of(stack.enter_context(Server(system)))
    return url + "?answer_timeout=30s" if system == "mongodb" else url  # the server here reads every document for a page of a list


def add(source, target):
    def run():
        with contextlib.ExitStack() as stack:
            move(url_of(source, "one", stack), url_of(target, "two", stack), kills=KILLS, preload=RESULTS, rate=RATE)

    run.__name__ = f"{source}_moves_to_{target}"
    case(run)


for pair in (("json", "json"), *itertools.permutations(("json", *SERVERS), 2)) if LONG else RING:
    add(*pair)
main()
