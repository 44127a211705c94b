#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""MongoDB through the daemon: search, queries of people with omnictl, the Python names, passwords that nobody sees."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import Daemon, case, main, wait_for  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import Server  # noqa: E402

server = Server("mongodb")


def url(case_name, more=""):
    return server.values["store_url"].replace("{case}", case_name) + more


def ready(daemon):
    wait_for(lambda: daemon.connect().call("storage.health")["status"] == "up", 20, "the storage")
    return daemon.connect()


def ok(process):
    assert process.returncode == 0, f"exit {process.returncode}: {process.stderr}"
    return process.stdout


def refused(process, code, *words):
    assert process.returncode == code, f"exit {process.returncode}, not {code}: {process.stderr}{process.stdout}"
    for word in words:
        assert word in process.stderr, f"{word!r} is not in: {process.stderr}"


def finish(client, topic, content, result):
    task_id = client.publish(topic, content)
    client.ack(client.next_task(), result)
    return task_id


@case
def results_are_searched_and_queried():
    with Daemon("--storage-url", url("search")) as d:
        c = ready(d)
        c.register("bills", "clerk")
        first = finish(c, "bills", {"customer": "Ada"}, {"note": "invoice written, paid", "sum": 1.50})
        second = finish(c, "bills", {"customer": "Bob"}, {"note": "nothing to do", "sum": 2})
        ids = lambda answer: [t["task_id"] for t in answer["tasks"]]  # noqa: E731
        wait_for(lambda: len(c.call("task.list")["tasks"]) == 2)
        assert ids(c.call("task.search", text="Invoice")) == [first]
        assert ids(c.call("task.search", filter={"result": {"sum": 1.5}})) == [first]
        page = c.call("task.search", text="bills", limit=1)
        assert ids(page) == [second] and ids(c.call("task.search", text="bills", limit=1, cursor=page["cursor"])) == [first]
        assert ids(json.loads(ok(d.ctl("task", "search", "invoice", "--filter", '{"agent": "clerk"}')))) == [first]
        assert {"search", "query"} <= set(c.call("hello")["capabilities"])
        query = '[{"$group":{"_id":"$status","n":{"$sum":1}}}]'
        rows = json.loads(ok(d.ctl("storage", "query", query)))
        assert rows == {"columns": ["_id", "n"], "rows": [["completed", 2]], "truncated": False}, rows
        assert ok(d.ctl("storage", "query", "-", "--format", "csv", stdin=query)).split() == ["_id,n", "completed,2"]
        refused(d.ctl("storage", "query", '[{"$facet":{"a":[{"$out":"agents"}]}}]'), 6, "$out", "only reads")
        refused(d.ctl("storage", "query", "select 1"), 1, "pipeline")
        c.close()
        d.stop()


@case
def the_python_names_name_the_server():
    with Daemon(env={"STORAGE_BACKEND": "mongodb", "MONGODB_URI": url("names")}) as d:
        health = ready(d).call("storage.health")
        assert health["name"] == "mongodb" and health["database"] == "names" and health["server"] == "FerretDB", health
        assert health["expiry"] == "sweeper" and health["search"] == "regular expression" and health["durability"] == "weak", health
        d.stop()


@case
def passwords_reach_no_log_no_error_and_no_answer():
    secret = "geheim-4711"
    with Daemon("--log-level", "debug", "--storage-url", url("secrets").replace("//", f"//omni:{secret}@")) as d:
        c = d.connect()
        wait_for(lambda: "password" in c.call("storage.health").get("error", ""), 20, "an error that names the password")
        said = json.dumps([c.call("storage.health"), c.call("health"), c.call("backends"), c.call("hello")])
        d.stop()
        assert secret not in said and secret not in d.log_text()


@case
def many_documents_are_replaced_at_once():
    """FerretDB 1 has a hundred connections to its SQLite, and holds one for each document that a command replaces."""
    with Daemon("--storage-url", url("replaced")) as d:
        c = ready(d)
        for turn in range(6):
            c.call("storage.import", kind="results", entries=[
                {"key": f"t{n}", "name": "clerk", "saved_ms": 1000 + n, "topic": "work", "status": "completed", "value": {"turn": turn}} for n in range(400)])
        assert all(e["value"]["turn"] == 5 for e in c.call("storage.export", kind="results", limit=400)["entries"])
        c.close()
        d.stop()


@case
def a_list_that_takes_too_long_is_no_reason_to_think_the_server_away():
    with Daemon("--storage-url", url("slow", "?answer_timeout=500ms")) as d:
        c = ready(d)
        for start in range(0, 40000, 1000):
            c.call("storage.import", kind="results", entries=[
                {"key": f"t{n}", "name": "clerk", "saved_ms": 1000 + n, "topic": "work", "status": "completed", "value": n} for n in range(start, start + 1000)])
        try:
            raise AssertionError(len(c.call("task.list")["tasks"]))
        except OmniError as e:
            assert e.kind == "timeout" and "answer_timeout" in str(e), (e.kind, e)
        c.call("config.set", key="k", value=1)
        assert c.call("config.get", key="k")["value"] == 1 and "connecting" not in d.log_text(), d.log_text()
        c.close()
        d.stop()


@case
def a_walk_goes_on_where_it_was_when_the_server_comes_back():
    with Daemon("--storage-url", url("walk")) as d:
        c = ready(d)
        c.call("storage.import", kind="config", entries=[{"key": f"k{n:04}", "saved_ms": 1000 + n, "value": n} for n in range(250)])
        seen, cursor = [], None
        for turn in range(3):
            page = c.call("storage.export", kind="config", limit=100, **({"cursor": cursor} if cursor else {}))
            seen += [e["value"] for e in page["entries"]]
            cursor = page.get("cursor")
            if turn == 1:  # the cursor that the server keeps is gone with it
                server.do("kill")
                server.do("up")
                c.close()
                c = ready(d)
        assert not cursor and seen == list(range(250)), (cursor, seen)
        c.close()
        d.stop()


try:
    main()
finally:
    server.__exit__()
