#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL through the daemon: search, queries of people with omnictl, service files, passwords that nobody sees, and an idle daemon's rest."""
import csv
import io
import json
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import SANITIZED, Daemon, case, main, wait_for, wakeups  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from server import Server  # noqa: E402

server = Server("postgresql")


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
        first = finish(c, "bills", {"customer": "Ada"}, {"note": "invoice written, paid \"today\"", "sum": 1.50})
        second = finish(c, "bills", {"customer": "Bob"}, {"note": "nothing\nto do"})
        ids = lambda answer: [t["task_id"] for t in answer["tasks"]]  # noqa: E731
        wait_for(lambda: len(c.call("task.list")["tasks"]) == 2)
        assert ids(c.call("task.search", text="invoice")) == [first]
        assert ids(c.call("task.search", text="bob")) == [second]
        assert ids(c.call("task.search", filter={"result": {"sum": 1.5}})) == [first]
        assert ids(c.call("task.search", text="note or bills", filter={"status": "completed"})) == [second, first]
        page = c.call("task.search", text="bills", limit=1)
        assert ids(page) == [second] and ids(c.call("task.search", text="bills", limit=1, cursor=page["cursor"])) == [first]
        found = json.loads(ok(d.ctl("task", "search", "invoice", "--filter", '{"agent": "clerk"}')))
        assert ids(found) == [first], found
        assert {"search", "query"} <= set(c.call("hello")["capabilities"])

        query = "select task_id, doc->'result'->>'note' as note, (doc->'result'->>'sum')::numeric as sum, null as nothing from results order by saved_at"
        rows = json.loads(ok(d.ctl("storage", "query", query)))
        assert rows == {"columns": ["task_id", "note", "sum", "nothing"], "rows": [[first, 'invoice written, paid "today"', 1.5, None],
                        [second, "nothing\nto do", None, None]], "truncated": False}, rows
        text = ok(d.ctl("storage", "query", "-", "--format", "csv", stdin=query))
        assert list(csv.reader(io.StringIO(text, newline=""))) == [["task_id", "note", "sum", "nothing"], [first, 'invoice written, paid "today"', "1.5", ""],
                                                      [second, "nothing\nto do", "", ""]], text
        table = ok(d.ctl("storage", "query", query, "--format", "table"))
        assert table.splitlines()[0].split() == ["task_id", "note", "sum"] and first in table and "nothing\\nto do" in table, table
        assert ok(d.ctl("storage", "query", "select 1, 'a\tb'", "--format", "compact")) == "1\ta\\tb\n"
        limited = d.ctl("storage", "query", "select generate_series(1, 10)", "--limit", "2", "--format", "compact")
        assert ok(limited) == "1\n2\n" and "more rows" in limited.stderr, limited
        assert ok(d.ctl("storage", "query", "select 1 where false", "--format", "table")) == "No rows.\n"
        refused(d.ctl("storage", "query", "delete from results"), 1, "SELECT")
        refused(d.ctl("storage", "query", "select nextval('write_order')"), 6, "only reads")
        refused(d.ctl("storage", "query", "select * from nothing"), 1, "nothing")
        started = time.monotonic()
        refused(d.ctl("storage", "query", "select pg_sleep(60)", "--timeout", "1s"), 5)
        assert time.monotonic() - started < 20
        c.close()
        d.stop()


@case
def a_query_in_a_pipe_of_csv_is_rfc_4180():
    with Daemon("--storage-url", url("csv")) as d:
        ready(d)
        values = ["plain", "a,b", 'say "x"', "line\r\nline", "", " edge ", "é🦊"]
        text = ok(d.ctl("storage", "query", "select v from json_array_elements_text('" + json.dumps(values).replace("'", "''") + "') v", "--format", "csv"))
        # What subprocess read as text has \n for \r\n.
        assert [r[0] for r in list(csv.reader(io.StringIO(text, newline="")))[1:]] == [v.replace("\r\n", "\n") for v in values], text
        d.stop()


@case
def the_python_names_and_service_files_name_the_server():
    where = re.match(r"postgresql://(\w+):(\w+)@([^:]+):(\d+)/(\w+)", url("x"))
    with Daemon(start=False) as d:
        service = os.path.join(d.folder, "services")
        with open(service, "w", encoding="utf-8") as f:
            f.write(f"[omni]\nhost={where[3]}\nport={where[4]}\nuser={where[1]}\npassword={where[2]}\ndbname={where[5]}\n")
        d.start(env={"PGSERVICEFILE": service, "STORAGE_URL": "postgresql://?service=omni&schema=service"})
        c = ready(d)
        assert c.call("storage.health")["schema"] == "service"
        d.stop()
    with Daemon(env={"STORAGE_BACKEND": "postgresql", "POSTGRES_URL": url("names")}) as d:
        assert ready(d).call("storage.health")["name"] == "postgresql"
        d.stop()


@case
def passwords_reach_no_log_no_error_and_no_answer():
    secret = "geheim-4711"
    broken = url("secrets").replace(":secret@", f":{secret}@")
    for setting in (broken, broken.replace(f":{secret}@", "@") + f"&password={secret}"):
        with Daemon("--log-level", "debug", "--storage-url", setting) as d:
            c = d.connect()
            wait_for(lambda: "password" in c.call("storage.health").get("error", ""))
            said = json.dumps([c.call("storage.health"), c.call("health"), c.call("backends"), c.call("hello")])
            for call in (lambda: c.call("config.set", key="k", value=1), lambda: c.call("storage.query", query="select 1")):
                try:
                    call()
                    raise AssertionError("that must fail")
                except OmniError as e:
                    said += str(e)
            d.stop()
            for place, text in (("an answer", said), ("the log", d.log_text())):
                assert secret not in text, f"the password is in {place}"
            assert "password authentication failed" in said and "password" in d.log_text(), d.log_text()


@case
def a_query_under_way_ends_with_the_daemon():
    with Daemon("--storage-url", url("stop")) as d:
        c = ready(d)
        c.start("storage.query", query="select pg_sleep(300)", timeout_ms=300000)
        wait_for(lambda: c.call("storage.query", query="select count(*) from pg_stat_activity where query like '%om_query%' and state = 'active' "
                                "and pid <> pg_backend_pid()")["rows"][0][0] >= 1)
        started = time.monotonic()
        d.stop()
        assert time.monotonic() - started < 15


@case
def an_idle_daemon_rests():
    if SANITIZED:
        return
    with Daemon("--storage-url", url("idle")) as d:
        c = ready(d)
        c.close()
        time.sleep(3)
        before = wakeups(d.process.pid)
        time.sleep(5)
        woken = wakeups(d.process.pid) - before
        assert woken <= 10, f"{woken} wake-ups in 5 s"
        print(f"# {d.rss_bytes() / (1 << 20):.1f} MiB resident, {woken} wake-ups in 5 s", flush=True)
        d.stop()


try:
    main()
finally:
    server.__exit__()
