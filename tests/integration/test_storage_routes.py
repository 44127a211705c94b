#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Several storages behind one daemon: results elsewhere, a backup, and moving from one storage to another step by step."""
import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../fault"))
from harness import BIN, SANITIZED, case, main, wait_for  # noqa: E402
from moves import KINDS, daemon, dump, follow, in_sync, status, store_of, verified  # noqa: E402
from omni_wire import OmniError  # noqa: E402
from proxy import Proxy  # noqa: E402
from server import Server  # noqa: E402

def fill(client, n=300):
    """Something of each kind."""
    client.register("greet", "greeter", prefetch=100)
    client.register("greet", "second", prefetch=100)
    for i in range(n):
        client.call("config.set", key=f"key/{i}", value={"n": i, "text": "ä\n\"", "list": [1.50, None]})
    for i in range(n):
        client.publish("greet", {"n": i}, idempotency_key=f"once-{i}")
    # The embedded bus remembers idempotency keys by itself: those of a bus that does not stand among the storage's keys.
    client.call("storage.import", kind="keys", entries=[
        {"key": f"idempotency/greet/{i}", "saved_ms": 0, "expires_ms": int((time.time() + 3600) * 1000), "value": {"id": f"id{i}"}} for i in range(n)])
    for _ in range(2 * n):
        task = client.next_task()
        client.ack(task, result={"echo": task["payload"]["content"]["n"]})


def expect(kind, function, text=""):
    try:
        function()
    except OmniError as e:
        assert e.kind == kind and text in str(e), (e.kind, str(e))
        return str(e)
    raise AssertionError(f"no {kind}")


@case
def results_go_to_a_storage_of_their_own():
    with daemon("json:one", {"RESULT_STORAGE_URL": "json:two"}) as d, contextlib.closing(d.connect()) as client:
        fill(client, 20)
        health = client.call("storage.health")
        assert health["name"] == "json" and health["results"] == 0 and [p["role"] for p in health["parts"]] == ["storage", "results"], health
        assert health["parts"][1]["results"] == 40 and health["parts"][1]["agents"] == 0 and health["parts"][0]["config"] >= 20, health
        assert len(client.call("task.list", limit=1000)["tasks"]) == 40
        d.stop()
        with open(os.path.join(d.folder, "two/results.json"), encoding="utf-8") as f:
            assert len(json.load(f)) == 20


@case
def a_result_storage_that_is_away_fails_only_what_needs_it_and_is_named():
    with Server("redis") as server, daemon("json:one", {"RESULT_STORAGE_URL": store_of(server), "CALL_TIMEOUT": "2s"}) as d:
        with contextlib.closing(d.connect()) as client:
            client.register("greet", "greeter")
            client.publish("greet", 1, id="first")
            client.ack(client.next_task(), result=1)
            server.do("kill")
            expect("unavailable", lambda: client.call("task.get", id="first"), "the result storage redis://")
            client.call("config.set", key="a", value=1)
            assert client.call("config.get", key="a")["value"] == 1
            assert len(client.call("agent.list")["agents"]) == 1
            health = client.call("storage.health")
            assert health["status"] == "up" and [p["status"] for p in health["parts"]] == ["up", "down"], health
            assert client.call("health")["status"] == "degraded" and "result" in client.call("health")["reasons"][0]
            server.do("up")
            wait_for(lambda: client.call("storage.health")["parts"][1]["status"] == "up", 20)
            assert client.call("task.get", id="first")["result"] == 1


@case
def a_migration_copies_all_and_is_switched_step_by_step():
    with daemon() as d, contextlib.closing(d.connect()) as client:
        fill(client)
        expect("conflict", lambda: client.call("storage.switch"))
        expect("conflict", lambda: client.call("storage.verify"))
        expect("invalid", lambda: client.call("storage.migrate", to="json:one"))
        expect("unsupported", lambda: client.call("storage.migrate", to="jsn:two"))
        before = {kind: len(dump(client, kind)) for kind in KINDS}
        assert before["results"] == 600 and before["keys"] >= 300 and before["config"] >= 300 and before["agents"] == 2, before
        client.call("storage.migrate", to="json:two")
        now = follow(client, in_sync)
        assert now["phase"] == "ready" and now["kinds"]["results"]["done"] == 600, now
        found = verified(client)
        assert found["differences"] == 0 and found["kinds"]["results"] == 600 and found["kinds"]["keys"] == before["keys"], found
        client.call("config.set", key="key/0", value="new")
        client.call("config.delete", key="key/1")
        assert client.call("storage.switch")["phase"] == "read"
        assert client.call("config.get", key="key/0")["value"] == "new"
        expect("not_found", lambda: client.call("config.get", key="key/1"))
        client.call("storage.switch")
        now = follow(client, lambda s: not s["switching"])
        assert now["phase"] == "primary" and now["storage"] == "json:two", now
        assert client.call("hello")["storage"]["url"] == "json:two"
        client.call("config.set", key="key/2", value="newer")
        follow(client, in_sync)
        assert verified(client)["differences"] == 0
        client.call("storage.switch")
        follow(client, lambda s: s["phase"] == "none")
        assert client.call("config.get", key="key/2")["value"] == "newer"
        after = {kind: len(dump(client, kind)) for kind in KINDS}
        assert after["results"] == before["results"] and after["config"] == before["config"] - 1, (before, after)
    # A restart is part of the next case.


@case
def an_abort_goes_back_from_each_phase_and_keeps_what_was_written_meanwhile():
    for phase, switches in (("ready", 0), ("read", 1), ("primary", 2)):
        with daemon() as d:
            with contextlib.closing(d.connect()) as client:
                fill(client, 50)
                client.call("storage.migrate", to="json:two")
                follow(client, in_sync)
                for _ in range(switches):
                    client.call("storage.switch")
                    follow(client, lambda s: not s["switching"])
                assert status(client)["phase"] == phase, status(client)
                client.call("config.set", key="key/2", value=phase)
                client.call("config.delete", key="key/3")
                client.publish("greet", 1, id="meanwhile")
                for _ in range(2):
                    client.ack(client.next_task(), result=phase)
                client.call("storage.abort")
                follow(client, lambda s: s["phase"] == "none")
                assert client.call("hello")["storage"]["url"] == "json:one"
            for killed in (False, True):
                if killed:
                    d.kill()
                    d.start()
                with contextlib.closing(d.connect()) as client:
                    assert status(client)["phase"] == "none" and status(client)["storage"] == "json:one", status(client)
                    assert client.call("config.get", key="key/2")["value"] == phase
                    expect("not_found", lambda: client.call("config.get", key="key/3"))
                    assert client.call("task.get", id="meanwhile")["result"] == phase
                    assert len(dump(client, "results")) == 102 and len(dump(client, "agents")) == 2


@case
def after_the_switch_either_url_leads_to_the_new_storage_and_no_third_one_is_taken():
    with daemon() as d:
        with contextlib.closing(d.connect()) as client:
            client.call("config.set", key="a", value=1)
            client.call("storage.migrate", to="json:two")
            follow(client, in_sync)
        d.kill()
        # STORAGE_URL changed too early
        d.launch(env={"STORAGE_URL": "json:two"})
        assert d.process.wait(20) == 2 and "set it to json:one" in d.log_text(), d.log_text()
        d.start()
        with contextlib.closing(d.connect()) as client:
            for _ in range(2):
                client.call("storage.switch")
                follow(client, lambda s: not s["switching"])
            client.call("config.set", key="b", value=2)
        d.kill()
        d.start()  # the old one is named still
        with contextlib.closing(d.connect()) as client:
            assert status(client)["phase"] == "primary" and client.call("hello")["storage"]["url"] == "json:two"
            assert client.call("config.get", key="b")["value"] == 2
            client.call("storage.switch")
        d.kill()
        d.start()
        with contextlib.closing(d.connect()) as client:
            assert status(client)["phase"] == "none" and client.call("hello")["storage"]["url"] == "json:two"
        assert "set STORAGE_URL" in d.log_text()
        d.kill()
        d.start(env={"STORAGE_URL": "json:two"})
        with contextlib.closing(d.connect()) as client:
            assert client.call("config.get", key="b")["value"] == 2
        assert not os.path.exists(os.path.join(d.folder, ".omnidaemon_data/storage-migration.json"))


@case
def a_storage_that_holds_something_is_not_written_over_by_mistake():
    with daemon("json:two") as d, contextlib.closing(d.connect()) as client:
        client.call("config.set", key="mine", value=1)
        d.stop()
        d.start(env={"STORAGE_URL": "json:one"})
        with contextlib.closing(d.connect()) as client:
            client.call("config.set", key="other", value=2)
            client.call("storage.migrate", to="json:two")
            now = follow(client, lambda s: s["phase"] == "none" and "trouble" in s)
            assert now["trouble_kind"] == "conflict" and "not empty" in now["trouble"], now
            client.call("storage.migrate", to="json:two", replace=True)
            follow(client, in_sync)
            assert verified(client)["differences"] == 0
            client.call("storage.abort")
            follow(client, lambda s: s["phase"] == "none")
            client.call("config.set", key="third", value=3)
        d.stop()
        d.start(env={"STORAGE_URL": "json:two"})
        with contextlib.closing(d.connect()) as client:
            assert [k for k in client.call("config.list")["config"] if k[0] != "_"] == ["other"]


@case
def what_a_backup_misses_while_it_is_away_is_kept_over_a_kill_and_brought_there():
    with Server("redis") as server, daemon("json:one", {"STORAGE_BACKUP_URL": store_of(server)}) as d:
        with contextlib.closing(d.connect()) as client:
            client.call("config.set", key="before", value=1)
            follow(client, in_sync)
            server.do("kill")
            for i in range(50):
                client.call("config.set", key=f"k{i}", value=i)
            client.call("config.delete", key="before")
            mirror = wait_for(lambda: (m := client.call("storage.health")["mirror"])["queued"] >= 51 and m, 10)
            assert mirror["role"] == "backup" and client.call("storage.health")["parts"][1]["status"] == "down"
            assert client.call("health")["status"] == "degraded"
        d.kill()
        d.start()
        with contextlib.closing(d.connect()) as client:
            assert status(client)["queued"] >= 51
            server.do("up")
            follow(client, in_sync)
            client.call("storage.migrate")
            assert follow(client, in_sync)["phase"] == "ready"
            assert verified(client)["differences"] == 0


@case
def verify_finds_what_somebody_else_changed_in_the_second_storage_and_repairs_it():
    with Server("redis") as server, daemon("json:one") as d, contextlib.closing(d.connect()) as client:
        fill(client, 20)
        client.call("storage.migrate", to=store_of(server))
        follow(client, in_sync)
        with daemon(store_of(server)) as other, contextlib.closing(other.connect()) as vandal:
            vandal.call("config.set", key="key/3", value="spoilt")
            vandal.call("config.delete", key="key/4")
            vandal.call("config.set", key="key/new", value=1)
            vandal.call("task.delete", id=vandal.call("task.list", limit=1)["tasks"][0]["task_id"])
            vandal.call("storage.clear", what="metrics")
            other.kill()
        metrics = len(dump(client, "metrics"))
        result = d.ctl("storage", "verify")
        assert result.returncode == 1, result
        found = status(client)["verify"]
        assert found["differences"] == 5 + (metrics > 0), found
        config = {(s["what"], s.get("key")) for s in found["shown"] if s["kind"] == "config"}
        assert config == {("different", "key/3"), ("missing", "key/4"), ("extra", "key/new")}, found
        assert d.ctl("storage", "verify", "--repair").returncode == 1
        follow(client, in_sync)
        assert d.ctl("storage", "verify").returncode == 0, status(client)["verify"]


@case
def an_export_is_imported_whole_or_refused():
    with daemon("json:one") as d, contextlib.closing(d.connect()) as client:
        fill(client, 250)
        client.call("storage.import", kind="metrics", entries=[
            {"saved_ms": 1700000000000 + i, "value": {"saved_at": 1700000000 + i / 1000, "n": i}} for i in range(700)])
        assert d.ctl("storage", "export", "all.jsonl").returncode == 0
        path = os.path.join(d.folder, "all.jsonl")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with open(path, encoding="utf-8") as f:
            lines = f.readlines()
        before = {kind: sorted(json.dumps(e, sort_keys=True) for e in dump(client, kind)) for kind in KINDS}
        d.stop()
        d.start(env={"STORAGE_URL": "json:two"})
        with contextlib.closing(d.connect()) as fresh:
            for name, text in (("cut", lines[:-1]), ("half a line", [*lines[:-2], lines[-2][:-9]]), ("one missing", lines[:5] + lines[6:]),
                               ("one more", lines[:5] + lines[4:]), ("no header", lines[1:]), ("behind", lines + lines[3:4]), ("empty", [])):
                with open(os.path.join(d.folder, "bad.jsonl"), "w", encoding="utf-8") as f:
                    f.writelines(text)
                bad = d.ctl("storage", "import", "bad.jsonl")
                assert bad.returncode == 1 and bad.stderr, (name, bad)
                assert not dump(fresh, "config") and not dump(fresh, "results"), name
            for _ in range(2):  # the second time changes nothing
                good = d.ctl("storage", "import", "all.jsonl")
                assert good.returncode == 0, good
            after = {kind: sorted(json.dumps(e, sort_keys=True) for e in dump(fresh, kind)) for kind in KINDS}
            assert {k: len(v) for k, v in after.items()} == {k: len(v) for k, v in before.items()}
            assert after["results"] == before["results"] and after["metrics"] == before["metrics"] and after["keys"] == before["keys"]
            piped = d.ctl("storage", "export", "-")
            assert len(piped.stdout.splitlines()) == len(lines)


@case
def marks_beyond_their_limit_become_one_for_the_kind_and_no_write_fails():
    with Server("redis") as server, daemon("json:one", {"STORAGE_BACKUP_URL": store_of(server), "STORAGE_QUEUE_BYTES": "1M"}) as d:
        with contextlib.closing(d.connect()) as client:
            client.call("config.set", key="gone", value=1)
            follow(client, in_sync)
            server.do("kill")
            client.call("config.delete", key="gone")
            for start in range(0, 6000, 500):
                for request in [client.start("config.set", key=f"key/{i}" + "x" * 100, value=i) for i in range(start, start + 500)]:
                    client.finish(request)
            mirror = client.call("storage.health")["mirror"]
            assert mirror["overflows"] >= 1 and mirror["whole_kinds"] == ["config"] and mirror["queue_bytes"] < 2 << 20, mirror
            server.do("up")
            follow(client, in_sync)
            assert verified(client)["differences"] == 0


@case
def the_steps_of_the_readme_move_from_json_to_redis_while_an_agent_works():
    with Server("redis") as server, daemon("json:one") as d:
        url, published, over = store_of(server), [], threading.Event()
        agent = subprocess.Popen([os.path.join(BIN, "omnictl"), "agent", "run", "--topic", "t", "--name", "a", "--", "cat"], env=d.env, cwd=d.folder)

        def publish():
            while not over.is_set():
                done = d.ctl("task", "publish", "--topic", "t", f"[{len(published)}]", "--format", "compact")
                if done.returncode == 0:
                    published.append(done.stdout.strip())

        thread = threading.Thread(target=publish)
        thread.start()

        def step(*arguments, says, **more):
            done = d.ctl("storage", *arguments, **more)
            assert done.returncode == 0 and says in done.stdout, done

        try:
            wait_for(lambda: len(published) > 20)
            step("migrate", "--to", "-", stdin=url + "\n", says="Copied")
            step("verify", "--format", "table", says="Both hold the same")
            step("switch", says="Reads come from the new storage")
            step("switch", says="The new storage is the primary")
            wait_for(lambda n=len(published): len(published) > n + 20)
            over.set()
            thread.join()
            with contextlib.closing(d.connect()) as client:
                for task in published:
                    client.call("task.get", id=task, wait_ms=20000)
            d.stop()
            d.start(env={"STORAGE_URL": url})
            step("status", "--format", "table", says="primary")
            step("switch", "--yes", says="The old storage is let go")
            with contextlib.closing(d.connect()) as client:
                for i, task in enumerate(published):
                    assert client.call("task.get", id=task)["result"] == [i]
        finally:
            over.set()
            thread.join()
            agent.terminate()
            agent.wait(30)


@case
def a_storage_that_takes_two_seconds_slows_nobody_who_does_not_need_it():
    with Server("redis") as server:
        host = store_of(server).split("//")[1].split("/")[0].split("?")[0].split("@")[-1]
        with Proxy(host) as proxy:
            slow = store_of(server).replace(host, proxy.address) + "&answer_timeout_ms=20s"
            with daemon("json:one", {"RESULT_STORAGE_URL": slow}) as d, contextlib.closing(d.connect()) as client, contextlib.closing(d.connect()) as other:
                client.register("greet", "greeter")
                client.publish("greet", 1, id="first")
                client.ack(client.next_task(), result=1)
                proxy("delay", "1000")
                asked = [client.start("task.get", id="first") for _ in range(300)]
                rss = d.rss_bytes()
                began = time.monotonic()
                for i in range(50):
                    other.call("config.set", key=f"k{i}", value=i)
                    other.call("agent.list")
                took = time.monotonic() - began
                assert took < 1.5, f"{took:.1f} s: settings waited for the results' storage"
                for request in asked:
                    assert client.finish(request, 60)["result"] == 1
                assert SANITIZED or d.rss_bytes() - rss < 32 << 20  # a sanitizer keeps what is freed
            with daemon("json:one", {"STORAGE_BACKUP_URL": slow, "STORAGE_QUEUE_BYTES": "1M"}) as d, contextlib.closing(d.connect()) as client:
                began = time.monotonic()
                rss = d.rss_bytes()
                for start in range(0, 5000, 500):
                    for request in [client.start("config.set", key=f"k{i}", value="x" * 500) for i in range(start, start + 500)]:
                        client.finish(request)
                took = time.monotonic() - began
                assert took < 20, f"{took:.1f} s for 5000 settings"
                assert SANITIZED or d.rss_bytes() - rss < 48 << 20  # a sanitizer keeps what is freed
                proxy("pass")
                follow(client, in_sync)


@case
def passwords_of_all_storages_stay_where_they_belong():
    words = {name: f"S3cr3t-{name}-9137" for name in ("bus", "storage", "results", "backup", "to")}
    with daemon(f"redis://u:{words['storage']}@127.0.0.1:1/0", {
        "EVENT_BUS_URL": f"redis://u:{words['bus']}@127.0.0.1:1/1",
        "RESULT_STORAGE_URL": f"redis://u:{words['results']}@127.0.0.1:1/2",
        "STORAGE_BACKUP_URL": f"redis://u:{words['backup']}@127.0.0.1:1/3", "LOG_LEVEL": "debug", "CALL_TIMEOUT": "1s",
    }, start=False) as d:
        d.start(ready_within=30)
        seen = []
        with contextlib.closing(d.connect()) as client:
            def ask(method, **params):
                try:
                    seen.append(json.dumps(client.call(method, **params)))
                except OmniError as e:
                    seen.append(str(e) + json.dumps(e.data))
            for method in ("hello", "health", "storage.health", "storage.status", "config.list", "backends", "storage.verify", "storage.switch",
                           "storage.abort"):
                ask(method)
            for to in ("redis://u:{}@127.0.0.1:1/4", "redis://u:{}@127.0.0.1:1/4?nonsense=1", "nope://u:{}@x", "redis://u:{}@[x"):
                ask("storage.migrate", to=to.format(words["to"]))
            ask("storage.status")
        with open(f"/proc/{d.process.pid}/cmdline", "rb") as f:
            seen.append(f.read().decode())
        d.kill()
        d.launch(env={"STORAGE_BACKUP_URL": f"nope://u:{words['backup']}@h", "RESULT_STORAGE_URL": f"redis://u:{words['results']}@h?x=1"})
        d.process.wait(20)
        seen.append(d.log_text())
        for name, word in words.items():
            for text in seen:
                assert word not in text, (name, text[max(0, text.find(word) - 200):][:400])
    # What has to keep the URL is the owner's alone.
    with daemon() as d, contextlib.closing(d.connect()) as client:
        client.call("storage.migrate", to="json:two")
        follow(client, in_sync)
        state = os.path.join(d.folder, ".omnidaemon_data")
        for name in ("storage-migration.json", "storage-marks.journal"):
            assert stat.S_IMODE(os.stat(os.path.join(state, name)).st_mode) == 0o600, name


main()
