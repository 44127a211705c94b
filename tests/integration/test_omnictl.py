#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""omnictl against the real daemon: every command, in a pipe and on a terminal; programs as agents that hang, flood, die or succeed."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../lib"))
from harness import BIN, SANITIZED, Daemon, case, main, wait_for  # noqa: E402

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
CTL = os.path.join(BIN, "omnictl")
SLOW = 5 if SANITIZED else 1


def ok(process):
    assert process.returncode == 0, f"exit {process.returncode}: {process.stderr}"
    return process.stdout


def refused(process, code, *words):
    assert process.returncode == code, f"exit {process.returncode}, not {code}: {process.stderr}{process.stdout}"
    for word in words:
        assert word in process.stderr, f"{word!r} is not in: {process.stderr}"
    assert "Sanitizer" not in process.stderr, process.stderr


class Agent:
    """omnictl agent run, in `with`."""

    def __init__(self, daemon, topic, program, *options, name="worker"):
        self.daemon = daemon
        self.topic = topic
        self.name = name
        if isinstance(program, str):
            program = ["sh", "-c", program]
        self.process = subprocess.Popen(
            [CTL, "agent", "run", "--topic", topic, "--name", name, *options, "--", *program],
            env=daemon.env, cwd=daemon.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: self.process.poll() is not None or '"workers": 1' in daemon.ctl("agent", "get", topic, name).stdout, 20, "the agent to serve")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def stop(self, number=signal.SIGTERM):
        """Its exit code and what it wrote on standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        assert "Sanitizer" not in errors, errors
        return self.process.returncode, errors


def publish(daemon, topic, content, *options):
    return ok(daemon.ctl("task", "publish", "--topic", topic, *options, "--", content)).strip()


def result(daemon, task_id, wait="20"):
    return json.loads(ok(daemon.ctl("task", "get", task_id, "--wait", wait)))


def failed(daemon, topic, *options, program, content="1"):
    """The record of a task that a program fails, with no retries."""
    with Agent(daemon, topic, program, "--retry-limit", "0", *options) as agent:
        record = result(daemon, publish(daemon, topic, content))
        assert record["status"] == "failed", record
        code, _ = agent.stop()
        assert code == 0
        return record


def on_terminal(daemon, *arguments, columns=100, rows=30, keys=(), until=None, timeout=20, env=None, stop=None):
    """Runs omnictl with a terminal of its own. What it wrote, its exit status, and whether the line settings are as they were."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    before = termios.tcgetattr(slave)
    environment = {**daemon.env, "TERM": "xterm-256color", **(env or {})}
    environment.pop("NO_COLOR", None) if not env or "NO_COLOR" not in env else None
    process = subprocess.Popen([CTL, *arguments], env=environment, cwd=daemon.folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    output = b""
    pending = list(keys)
    deadline = time.monotonic() + timeout * SLOW
    while True:
        assert time.monotonic() < deadline, f"omnictl {arguments} did not end: {output!r}"
        if select.select([master], [], [], 0.05)[0]:
            output += os.read(master, 65536)
        elif process.poll() is not None:
            break
        if pending and pending[0][0] in output:
            os.write(master, pending.pop(0)[1])
        if until and until in output and process.poll() is None:
            process.send_signal(stop or signal.SIGTERM)
            until = None
    same = termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)
    return output.decode("utf-8", "replace"), process.returncode, same


# -- without a daemon -------------------------------------------------------------------------------------------------


@case
def no_daemon_is_exit_code_3_and_says_how_to_start_one():
    daemon = Daemon(start=False)
    with daemon:
        refused(daemon.ctl("health"), 3, f"no OmniDaemon at {daemon.socket} (no such file)", '"omnidaemond"', "--socket")
        refused(daemon.ctl("task", "publish", "--topic", "t", "1"), 3, "no OmniDaemon")
        refused(daemon.ctl("agent", "run", "--topic", "t", "--name", "n", "--", "true"), 3, "no OmniDaemon")
        assert "no daemon" in ok(daemon.ctl("version", "-f", "table"))


@case
def a_wrong_command_line_is_exit_code_2_with_the_nearest_name():
    with Daemon(start=False) as daemon:
        refused(daemon.ctl("helth"), 2, '"health"')
        refused(daemon.ctl("task", "publish", "--topci", "x"), 2, "--topic", "task publish --help")
        refused(daemon.ctl("agent", "run", "--topic", "t", "--name", "n", "--", "./no-such-program"), 2, "cannot run")
        refused(daemon.ctl("task", "publish", "--topic", "t", "hello"), 2, "--text")
        refused(daemon.ctl("dlq", "replay", "a", "b"), 2, "--all")
        refused(daemon.ctl("task", "publish", "--topic", "x", "--watch", "1"), 2, "only read")


@case
def the_files_for_packages_are_what_the_program_prints():
    with Daemon(start=False) as daemon:
        for shell, name in (("bash", "omnictl.bash"), ("zsh", "_omnictl"), ("fish", "omnictl.fish")):
            with open(os.path.join(ROOT, "packaging/completions", name), encoding="utf-8") as f:
                assert f.read() == ok(daemon.ctl("completion", shell)), f"packaging/completions/{name}: write it again with omnictl completion {shell}"
        with open(os.path.join(ROOT, "packaging/man/omnictl.1"), encoding="utf-8") as f:
            assert f.read() == ok(daemon.ctl("__man")), "packaging/man/omnictl.1: write it again with omnictl __man"


@case
def the_bash_completion_completes_commands_options_and_values():
    def complete(line):
        script = f"""source {ROOT}/packaging/completions/omnictl.bash
            PATH={BIN}:$PATH; COMP_WORDS=({line}); [[ '{line}' == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _omnictl
            printf '%s\\n' "${{COMPREPLY[@]}}" """
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30).stdout.split()

    assert complete("omnictl task pu") == ["publish"]
    assert "--topic" in complete("omnictl task publish --")
    assert complete("omnictl health --format js") == ["json"]
    assert complete("omnictl health --format = js") == ["json"]


# -- tasks ------------------------------------------------------------------------------------------------------------


@case
def content_arrives_byte_for_byte_whatever_way_it_is_given():
    content = '{"n": 123456789012345678901234567890, "x":1.10,"s":"\\u00e4\\ud83d\\ude00", "a":[ ] }'
    with Daemon() as daemon, Agent(daemon, "t", ["cat"]):
        with open(os.path.join(daemon.folder, "c.json"), "w", encoding="utf-8") as f:
            f.write(content)
        for arguments, stdin in (([content], ""), (["-"], content), ([], content), (["--file", "c.json"], "")):
            out = ok(daemon.ctl("task", "publish", "--topic", "t", "--wait", "--format", "compact", *arguments, stdin=stdin))
            assert out == '{"n":123456789012345678901234567890,"x":1.10,"s":"\\u00e4\\ud83d\\ude00","a":[]}\n', out
        assert ok(daemon.ctl("task", "publish", "--topic", "t", "--text", "--wait", stdin="a\nb\n")) == '"a\\nb"\n'


@case
def many_lines_are_many_tasks_in_order():
    with Daemon() as daemon:
        lines = "".join(f"{n}\n" for n in range(3000))
        process = daemon.ctl("task", "publish", "--topic", "t", "--lines", stdin=lines)
        ids = ok(process).split()
        assert len(ids) == len(set(ids)) == 3000
        assert "Published 3000 tasks" in process.stderr
        entries = json.loads(ok(daemon.ctl("bus", "inspect", "t", "--all")))["entries"]
        assert [e["task"]["payload"]["content"] for e in entries] == list(range(3000))
        assert [e["task"]["id"] for e in entries] == ids


@case
def a_bad_line_is_told_with_its_number_and_the_others_are_published():
    with Daemon() as daemon:
        process = daemon.ctl("task", "publish", "--topic", "t", "--lines", stdin="1\n{bad\n\n3\n")
        assert process.returncode == 2 and len(process.stdout.split()) == 2
        assert "line 2" in process.stderr and "1 line was not published" in process.stderr


@case
def files_are_tasks_and_results_are_waited_for():
    with Daemon() as daemon, Agent(daemon, "t", "jq=$(cat); case $jq in *bad*) echo oops >&2; exit 100;; esac; echo fine"):
        for name, text in (("a.txt", "alpha"), ("b.txt", "bad"), ("c.bin", None)):
            with open(os.path.join(daemon.folder, name), "wb") as f:
                f.write(text.encode() if text else b"\xff\xfe")
        process = daemon.ctl("task", "publish", "--topic", "t", "--each-file", "--wait", "-f", "compact", "a.txt", "b.txt", "c.bin", "missing")
        assert process.returncode == 1, process.stderr
        rows = [line.split("\t")[1:] for line in process.stdout.splitlines()]
        assert rows == [["completed", "fine", ""], ["failed", "", "oops"]], rows
        assert "c.bin: it is not text in UTF-8" in process.stderr and "missing: No such file" in process.stderr


@case
def all_that_a_task_can_have_is_carried():
    with Daemon() as daemon, Agent(daemon, "t", "env | grep -E '^(OMNI_(TASK|AGENT|TOPIC)|TRACEPARENT)' | sort", "--text", name="n") as agent:
        task_id = publish(daemon, "t", "1", "--key", "k", "--priority", "7", "--correlation-id", "c", "--causation-id", "d", "--source", "s", "--tenant-id", "x",
                          "--header", "a=1=2", "--traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "--id", "my id", "--reply-to", "answers")
        assert task_id == "my id"
        environment = dict(line.split("=", 1) for line in result(daemon, task_id)["result"].splitlines())
        created = float(environment.pop("OMNI_TASK_CREATED_AT"))
        assert abs(created - time.time()) < 60
        assert environment == {
            "OMNI_TASK_ID": "my id", "OMNI_TASK_TOPIC": "t", "OMNI_TASK_ATTEMPT": "1", "OMNI_TASK_KEY": "k", "OMNI_TASK_PRIORITY": "7", "OMNI_TASK_CORRELATION_ID": "c",
            "OMNI_TASK_CAUSATION_ID": "d", "OMNI_TASK_SOURCE": "s", "OMNI_TASK_TENANT_ID": "x", "OMNI_TASK_HEADERS": '{"a":"1=2"}', "OMNI_TASK_REPLY_TO": "answers",
            "OMNI_AGENT": "n", "OMNI_TOPIC": "t", "TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, environment
        reply = json.loads(ok(daemon.ctl("bus", "inspect", "answers")))["entries"][0]["task"]
        assert reply["causation_id"] == "my id" and reply["correlation_id"] == "c"
        assert agent.stop()[0] == 0
        first = ok(daemon.ctl("task", "publish", "--topic", "u", "--idempotency-key", "i", "1"))
        assert ok(daemon.ctl("task", "publish", "--topic", "u", "--idempotency-key", "i", "1")) == first


@case
def results_are_listed_filtered_paged_and_deleted():
    with Daemon() as daemon, Agent(daemon, "t", ["cat"]):
        ids = [line.split("\t")[0] for line in ok(daemon.ctl("task", "publish", "--topic", "t", "--lines", "--wait", "-f", "compact", stdin="".join(f"{n}\n" for n in range(1200)))).splitlines()]
        assert len(ids) == 1200
        assert len(ok(daemon.ctl("task", "list", "-f", "compact")).splitlines()) == 20
        assert {line.split("\t")[0] for line in ok(daemon.ctl("task", "list", "--all", "-f", "compact")).splitlines()} == set(ids)
        page = json.loads(ok(daemon.ctl("task", "list", "-n", "1100")))
        rest = json.loads(ok(daemon.ctl("task", "list", "-n", "1100", "--cursor", page["cursor"])))
        assert len(page["tasks"]) == 1100 and len(rest["tasks"]) == 100 and "cursor" not in rest
        assert json.loads(ok(daemon.ctl("task", "list", "--status", "failed")))["tasks"] == []
        assert len(json.loads(ok(daemon.ctl("task", "list", "--since", "1h", "--until", "0s", "--topic", "t", "--agent", "worker")))["tasks"]) == 20
        assert json.loads(ok(daemon.ctl("task", "list", "--until", "1h")))["tasks"] == []
        refused(daemon.ctl("task", "delete", ids[0]), 2, "--yes")
        ok(daemon.ctl("task", "delete", ids[0], "--yes"))
        refused(daemon.ctl("task", "delete", ids[0], "--yes"), 4)
        refused(daemon.ctl("task", "get", ids[0]), 4)
        refused(daemon.ctl("task", "get", ids[0], "--wait", "100ms"), 5)


# -- programs as agents -------------------------------------------------------------------------------------------------


@case
def output_is_json_where_it_reads_as_json_else_text():
    with Daemon() as daemon:
        for program, expected in (("echo '{\"a\": 1}'", {"a": 1}), ("echo 12", 12), ("echo a b", "a b"), ("printf 'a\\n\\n'", "a\n"), ("true", None), ("printf '\\377x'", "\ufffdx")):
            with Agent(daemon, "t", program) as agent:
                assert result(daemon, publish(daemon, "t", "1"))["result"] == expected, program
                assert agent.stop()[0] == 0
        with Agent(daemon, "t", ["cat"], "--text", "--raw") as agent:
            assert result(daemon, publish(daemon, "t", '"12\\n\\u00e4"'))["result"] == "12\nä"
            assert agent.stop()[0] == 0


@case
def a_failing_program_is_tried_again_and_then_dead_with_what_it_said():
    with Daemon() as daemon:
        with Agent(daemon, "t", "echo attempt $OMNI_TASK_ATTEMPT >&2; exit 3", "--retry-limit", "2", "--retry-backoff", "10ms") as agent:
            record = result(daemon, publish(daemon, "t", '{"x":1}'))
            assert (record["status"], record["error"], record["error_type"], record["attempts"]) == ("failed", "attempt 3", "exit_3", 3), record
            code, errors = agent.stop()
            assert code == 0 and errors.count("failed (attempt") == 3, errors
        letter = json.loads(ok(daemon.ctl("dlq", "list")))["dead_letters"][0]
        assert letter["topic"] == "t" and letter["agent"] == "worker" and letter["error"]["message"] == "attempt 3"
        assert json.loads(ok(daemon.ctl("dlq", "show", "t", "worker", letter["id"])))["task"]["payload"]["content"] == {"x": 1}
        assert ok(daemon.ctl("dlq", "replay", "t", "worker", letter["id"])) == "Replayed 1 dead letter.\n"
        with Agent(daemon, "t", "echo fine") as agent:
            wait_for(lambda: json.loads(daemon.ctl("task", "get", record["task_id"]).stdout)["status"] == "completed", 10, "the replayed task")
            assert agent.stop()[0] == 0
        refused(daemon.ctl("dlq", "purge", "t", "worker", "--all"), 2, "--yes")
        assert ok(daemon.ctl("dlq", "purge", "t", "worker", "--all", "--yes")) == "Deleted 0 dead letters.\n"


@case
def exit_100_fails_without_another_try():
    with Daemon() as daemon, Agent(daemon, "t", "echo never >&2; exit 100") as agent:
        record = result(daemon, publish(daemon, "t", "1"))
        assert (record["status"], record["error"], record["attempts"]) == ("failed", "never", 1), record
        assert agent.stop()[0] == 0


@case
def a_program_that_hangs_is_ended_with_all_that_it_started():
    with Daemon() as daemon:
        mark = os.path.join(daemon.folder, "pids")
        start = time.monotonic()
        record = failed(daemon, "t", "--timeout", "300ms", "--kill-after", "200ms",
                        program=f"trap '' TERM; sleep 1000 & echo $! $$ >{mark}; echo working >&2; while :; do sleep 1000; done")
        assert time.monotonic() - start < 10 * SLOW
        assert record["error_type"] == "timeout" and "300 ms" in record["error"] and "working" in record["error"], record
        with open(mark, encoding="ascii") as f:
            for pid in f.read().split():
                wait_for(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat", encoding="ascii").read().split()[2] == "Z", 5, f"the end of {pid}")


@case
def a_program_that_floods_fails_clearly_and_costs_little_memory():
    with Daemon() as daemon, Agent(daemon, "t", "yes", "--retry-limit", "0", "--max-output", "64k") as agent:
        record = result(daemon, publish(daemon, "t", "1"))
        assert record["error_type"] == "output" and "64 KiB" in record["error"], record
        with open(f"/proc/{agent.process.pid}/status", encoding="ascii") as f:
            peak = int(re.search(r"VmHWM:\s+(\d+)", f.read()).group(1))
        assert SANITIZED or peak < 32 << 10, f"{peak} KiB"
        assert agent.stop()[0] == 0
    with Daemon() as daemon:
        record = failed(daemon, "t", program="yes error | head -c 5000000 >&2; echo the end >&2; exit 1")
        assert record["error"].endswith("the end") and len(record["error"]) <= 8192, len(record["error"])


@case
def a_program_that_a_signal_ends_says_so():
    with Daemon() as daemon:
        record = failed(daemon, "t", program="echo so far >&2; kill -SEGV $$")
        assert record["error_type"] == "signal" and "signal 11 (SIGSEGV)" in record["error"] and "so far" in record["error"], record


@case
def a_program_that_cannot_be_run_fails_the_task_not_the_agent():
    with Daemon() as daemon:
        path = os.path.join(daemon.folder, "broken")
        with open(path, "w", encoding="ascii") as f:
            f.write("#!/no/such/interpreter\n")
        os.chmod(path, 0o755)
        record = failed(daemon, "t", program=[path])
        assert record["error_type"] == "exit_127" and "cannot run" in record["error"], record


@case
def a_program_need_not_read_its_input():
    big = json.dumps("x" * 3_000_000)
    with Daemon() as daemon:
        with open(os.path.join(daemon.folder, "big"), "w", encoding="ascii") as f:
            f.write(big)
        with Agent(daemon, "t", "exec 0<&-; echo closed") as agent:
            assert ok(daemon.ctl("task", "publish", "--topic", "t", "--wait", "--file", "big")) == '"closed"\n'
            assert agent.stop()[0] == 0
        with Agent(daemon, "t", "sleep 0.3; echo ignored") as agent:
            assert ok(daemon.ctl("task", "publish", "--topic", "t", "--wait", "--file", "big")) == '"ignored"\n'
            assert agent.stop()[0] == 0
        with Agent(daemon, "t", ["wc", "-c"]) as agent:
            assert ok(daemon.ctl("task", "publish", "--topic", "t", "--wait", "--file", "big")) == "3000002\n"
            assert agent.stop()[0] == 0
        with Agent(daemon, "t", ["cat"], "--max-output", "4M") as agent:
            assert len(ok(daemon.ctl("task", "publish", "--topic", "t", "--wait", "--file", "big"))) == 3_000_003
            assert agent.stop()[0] == 0


@case
def what_a_program_leaves_running_does_not_hold_its_task():
    with Daemon() as daemon, Agent(daemon, "t", "sleep 1000 & echo done") as agent:
        start = time.monotonic()
        assert result(daemon, publish(daemon, "t", "1"))["result"] == "done"
        assert time.monotonic() - start < 5 * SLOW
        assert agent.stop()[0] == 0


@case
def workers_run_side_by_side():
    with Daemon() as daemon, Agent(daemon, "t", "sleep 0.5; echo $$", "--workers", "4") as agent:
        start = time.monotonic()
        rows = ok(daemon.ctl("task", "publish", "--topic", "t", "--lines", "--wait", "-f", "compact", stdin="1\n2\n3\n4\n")).splitlines()
        assert len(rows) == 4 and time.monotonic() - start < 1.5 * SLOW, time.monotonic() - start
        assert agent.stop()[0] == 0


@case
def once_ends_after_so_many_tasks_and_gives_the_others_back():
    with Daemon() as daemon:
        for n in range(5):
            publish(daemon, "t", str(n))
        with Agent(daemon, "t", ["cat"], "--once=2", "--workers", "4", "--prefetch", "5") as agent:
            assert agent.process.wait(20) == 0
        groups = json.loads(ok(daemon.ctl("bus", "groups", "t")))["groups"][0]
        assert (groups["finished"], groups["lag"] + groups["leased"] + groups["retrying"]) == (2, 3), groups


@case
def the_first_signal_lets_programs_finish():
    with Daemon() as daemon, Agent(daemon, "t", "sleep 0.7; echo finished", "--workers", "2") as agent:
        ids = [publish(daemon, "t", str(n)) for n in range(4)]
        wait_for(lambda: json.loads(ok(daemon.ctl("bus", "groups", "t")))["groups"][0]["leased"] == 2, 10, "two tasks to run")
        code, _ = agent.stop(signal.SIGINT)
        assert code == 0
        assert result(daemon, ids[0])["result"] == "finished" and result(daemon, ids[1])["result"] == "finished"
        group = json.loads(ok(daemon.ctl("bus", "groups", "t")))["groups"][0]
        assert (group["finished"], group["lag"], group["leased"], group["workers"]) == (2, 2, 0, 0), group


@case
def the_second_signal_ends_them_and_the_task_goes_to_another():
    with Daemon() as daemon:
        mark = os.path.join(daemon.folder, "pid")
        with Agent(daemon, "t", f"echo $$ >{mark}; sleep 1000") as agent:
            task_id = publish(daemon, "t", "1")
            wait_for(lambda: os.path.exists(mark) and open(mark, encoding="ascii").read().strip(), 10, "the program to start")
            agent.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert agent.process.poll() is None
            code, errors = agent.stop(signal.SIGTERM)
            assert code == 128 + signal.SIGTERM, (code, errors)
            pid = open(mark, encoding="ascii").read().strip()
            wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 5, "the program's end")
        with Agent(daemon, "t", "echo attempt $OMNI_TASK_ATTEMPT", name="worker") as agent:
            assert result(daemon, task_id)["result"] == "attempt 1"
            assert agent.stop()[0] == 0


@case
def killed_itself_it_takes_its_programs_along():
    with Daemon() as daemon:
        mark = os.path.join(daemon.folder, "pid")
        with Agent(daemon, "t", f"echo $$ >{mark}; exec sleep 1000") as agent:
            publish(daemon, "t", "1")
            wait_for(lambda: os.path.exists(mark) and open(mark, encoding="ascii").read().strip(), 10, "the program to start")
            agent.process.kill()
            pid = open(mark, encoding="ascii").read().strip()
            wait_for(lambda: not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat", encoding="ascii").read().split()[2] == "Z", 5, "the program's end")


@case
def an_agent_goes_on_when_the_daemon_was_started_anew():
    with Daemon() as daemon, Agent(daemon, "t", "echo $OMNI_TASK_ATTEMPT") as agent:
        assert result(daemon, publish(daemon, "t", "1"))["result"] == 1
        daemon.kill(signal.SIGKILL)
        daemon.start()
        assert result(daemon, publish(daemon, "t", "2"))["result"] == 1
        code, errors = agent.stop()
        assert code == 0 and "waiting for the daemon" in errors and "Connected again" in errors, errors


@case
def a_program_whose_lease_is_over_is_ended():
    with Daemon() as daemon:
        mark = os.path.join(daemon.folder, "pid")
        with Agent(daemon, "t", f"test -e {mark} && exec echo second; echo $$ >{mark}; sleep 1000") as agent:
            task_id = publish(daemon, "t", "1")
            wait_for(lambda: os.path.exists(mark) and open(mark, encoding="ascii").read().strip(), 10, "the program to start")
            daemon.kill(signal.SIGKILL)
            pid = open(mark, encoding="ascii").read().strip()
            wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 5 * SLOW, "the program's end")
            daemon.start()
            assert result(daemon, task_id)["result"] == "second"
            assert agent.stop()[0] == 0


@case
def an_agent_that_is_deleted_ends_and_says_why():
    with Daemon() as daemon, Agent(daemon, "t", ["cat"]) as agent:
        refused(daemon.ctl("agent", "delete", "t", "worker"), 2, "--yes")
        assert ok(daemon.ctl("agent", "delete", "t", "worker", "--yes")) == "Deleted worker on t.\n"
        _, errors = agent.process.communicate(timeout=20)
        assert agent.process.returncode != 0 and "ended by the daemon" in errors, (agent.process.returncode, errors)


@case
def an_agent_starts_again_where_it_is_told():
    with Daemon(env={"EVENT_BUS_URL": "local:?retention_ms=3600000"}) as daemon, Agent(daemon, "t", ["sh", "-c", "cat >> seen; echo >> seen"]):
        for content in ("1", "2"):
            result(daemon, publish(daemon, "t", content))
        refused(daemon.ctl("agent", "seek", "t", "worker"), 2, "--to")
        refused(daemon.ctl("agent", "seek", "t", "worker", "--to", "first"), 2, "--yes")
        refused(daemon.ctl("agent", "seek", "t", "worker", "--to", "yesterday", "--yes"), 1, "Unix time")
        refused(daemon.ctl("agent", "seek", "t", "nobody", "--to", "first", "--yes"), 4, "nobody")

        def seen():
            with open(os.path.join(daemon.folder, "seen"), encoding="utf-8") as f:
                return f.read().split()

        assert ok(daemon.ctl("agent", "seek", "t", "worker", "--to", "1000.5", "--yes")) == "Started again: worker on t. 2 tasks come.\n"
        wait_for(lambda: seen() == ["1", "2", "1", "2"], 20, "both once more")
        assert json.loads(ok(daemon.ctl("agent", "seek", "t", "worker", "--to", "new", "--yes", "--format", "json"))) == {"tasks": 0}
    with Daemon() as daemon, Agent(daemon, "t", ["true"]):
        result(daemon, publish(daemon, "t", "1"))
        assert "No task comes" in ok(daemon.ctl("agent", "seek", "t", "worker", "--to", "first", "--yes"))


@case
def standard_error_is_shown_where_wanted():
    with Daemon() as daemon, Agent(daemon, "t", "echo one >&2; printf 'two \\033[2J' >&2; echo >&2", "--show-stderr") as agent:
        task_id = publish(daemon, "t", "1")
        result(daemon, task_id)
        _, errors = agent.stop()
        assert f"{task_id[:8]}  one" in errors and f"{task_id[:8]}  two \\x1b[2J" in errors, errors


# -- everything else ----------------------------------------------------------------------------------------------------


@case
def agents_are_shown_paused_and_resumed():
    with Daemon() as daemon, Agent(daemon, "t", ["cat"], "--description", "echoes", "--tool", "a", "--tool", "b"):
        agent = json.loads(ok(daemon.ctl("agent", "list")))["agents"][0]
        assert agent["name"] == "worker" and agent["tools"] == ["a", "b"] and agent["description"] == "echoes", agent
        ok(daemon.ctl("agent", "unsubscribe", "--topic", "t", "--name", "worker"))
        assert json.loads(ok(daemon.ctl("agent", "get", "t", "worker")))["paused"] is True
        task_id = publish(daemon, "t", "1")
        refused(daemon.ctl("task", "get", task_id, "--wait", "300ms"), 5)
        ok(daemon.ctl("agent", "resume", "t", "worker"))
        assert result(daemon, task_id)["result"] == 1
        refused(daemon.ctl("agent", "get", "t", "nobody"), 4)
        assert "Deleted t" in ok(daemon.ctl("topic", "delete", "t", "--yes"))
        refused(daemon.ctl("topic", "delete", "t", "--yes"), 4)


@case
def settings_are_kept_in_the_storage():
    with Daemon() as daemon:
        ok(daemon.ctl("config", "set", "model", "small"))
        ok(daemon.ctl("config", "set", "limits", '{"tokens": 12345678901234567890}'))
        assert ok(daemon.ctl("config", "get", "model")) == '"small"\n'
        assert ok(daemon.ctl("config", "list", "-f", "compact")) == 'limits\t{"tokens":12345678901234567890}\nmodel\tsmall\n'
        refused(daemon.ctl("config", "get", "nothing"), 4)
        refused(daemon.ctl("config", "delete", "model"), 2, "--yes")
        ok(daemon.ctl("config", "delete", "model", "--yes"))
        refused(daemon.ctl("config", "delete", "model", "--yes"), 4)
        refused(daemon.ctl("storage", "clear-all"), 2, "--yes")
        assert "Deleted" in ok(daemon.ctl("storage", "clear", "config", "--yes"))


@case
def a_storage_without_a_language_says_so_and_csv_is_for_queries():
    with Daemon() as daemon:
        refused(daemon.ctl("storage", "query", "select 1"), 1, '"json"', "query")
        refused(daemon.ctl("task", "list", "--format", "csv"), 2, "storage query")
        refused(daemon.ctl("task", "search", "--filter", '{"status":"failed"}'), 1, '"json"', "search")
        refused(daemon.ctl("task", "search", "--filter", "{status"), 2, "FILTER")


@case
def every_command_that_reads_has_every_format():
    commands = [["health"], ["backends"], ["metrics"], ["agent", "list"], ["agent", "get", "t", "worker"], ["task", "list"], ["bus", "topics"], ["bus", "groups"], ["bus", "inspect", "t"],
                ["bus", "stats"], ["bus", "dlq"], ["dlq", "list"], ["storage", "health"], ["config", "list"], ["version"], ["call", "ping"]]
    with Daemon() as daemon, Agent(daemon, "t", "exit 100"):
        result(daemon, publish(daemon, "t", '"\\u001b[2J\u202e"'))
        publish(daemon, "u", '"waits"')
        for command in commands:
            for form in ("table", "json", "compact", "tree"):
                out = ok(daemon.ctl(*command, "--format", form))
                assert "\033" not in out and ("\u202e" not in out or form == "json"), (command, form)
                if form == "json":
                    json.loads(out)
                if form == "table":
                    assert out.strip(), command
        rows = [line.split("\t") for line in ok(daemon.ctl("bus", "groups", "-f", "compact")).splitlines()]
        assert rows[0][:2] == ["t", "worker"] and rows[0][6] == "1", rows
        assert ok(daemon.ctl("health", "-q")) == ""
        assert json.loads(ok(daemon.ctl("call", "config.list", "-", stdin='{"prefix":"nothing"}'))) == {"config": {}}
        refused(daemon.ctl("call", "config.lst"), 1)


@case
def watching_prints_a_json_line_for_each_event_and_survives_a_restart():
    with Daemon() as daemon:
        process = subprocess.Popen([CTL, "watch", "t", "-e", "publish", "-n", "2"], env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: json.loads(ok(daemon.ctl("health")))["connections"] >= 2, 10, "the watcher")
        time.sleep(0.2)
        publish(daemon, "other", "1")
        first = publish(daemon, "t", "1")
        event = json.loads(process.stdout.readline())
        assert event["event"] == "publish" and event["topic"] == "t" and event["id"] == first, event
        daemon.kill(signal.SIGKILL)
        daemon.start()
        wait_for(lambda: json.loads(ok(daemon.ctl("health")))["connections"] >= 2, 10, "the watcher")
        time.sleep(0.2)
        second = publish(daemon, "t", "2")
        out, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and json.loads(out)["id"] == second, (out, errors)


@case
def a_reader_that_has_seen_enough_is_no_fault():
    with Daemon() as daemon:
        ok(daemon.ctl("task", "publish", "--topic", "t", "--lines", stdin="1\n" * 3000))
        out = subprocess.run(f"{CTL} bus inspect t --all -f compact | head -1; echo ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash", env=daemon.env, capture_output=True, text=True, timeout=30, check=True)
        assert out.stderr == "" and len(out.stdout.splitlines()) == 2, out


@case
def it_answers_to_the_name_omnidaemon_too():
    with Daemon() as daemon:
        out = subprocess.run([os.path.join(BIN, "omnidaemon"), "bus", "--help"], env=daemon.env, capture_output=True, text=True, timeout=30, check=True)
        assert "Usage: omnidaemon bus COMMAND" in out.stdout


# -- on a terminal --------------------------------------------------------------------------------------------------------


@case
def a_terminal_gets_tables_colour_and_its_width():
    with Daemon() as daemon, Agent(daemon, "t", ["cat"]):
        result(daemon, publish(daemon, "t", '"日本 \\u001b[31m \\u009b2J ' + "long " * 60 + '"'))
        out, code, _ = on_terminal(daemon, "task", "list", columns=90)
        assert code == 0 and "\033[32mcompleted\033[0m" in out and "\u009b" not in out and "\033[31m" not in out, out
        for line in re.sub("\033\\[[0-9;]*m", "", out).splitlines():
            assert len(line) + line.count("日") + line.count("本") <= 90, line
        assert "…" in out and "ago" in out or "now" in out
        out, _, _ = on_terminal(daemon, "task", "list", env={"NO_COLOR": "1"})
        assert "\033" not in out
        out, _, _ = on_terminal(daemon, "task", "list", env={"LC_ALL": "C"})
        assert "…" not in out and "..." in out
        out, _, _ = on_terminal(daemon, "task", "list", "--format", "json")
        assert "\u009b" not in out and "\\u009b" in out


@case
def a_terminal_is_asked_before_something_is_destroyed():
    with Daemon() as daemon:
        publish(daemon, "t", "1")
        out, code, _ = on_terminal(daemon, "topic", "delete", "t", keys=[(b"[y/N]", b"n\n")])
        assert code == 1 and "nothing was done" in out, out
        out, code, _ = on_terminal(daemon, "topic", "delete", "t", keys=[(b"[y/N]", b"y\n")])
        assert code == 0 and "Deleted t: 1 tasks" in out, out


@case
def progress_is_drawn_on_a_terminal_and_gone_at_the_end():
    with Daemon() as daemon, Agent(daemon, "t", "sleep 0.1; cat"):
        with open(os.path.join(daemon.folder, "lines"), "w", encoding="ascii") as f:
            f.write("1\n" * 6)
        out, code, _ = on_terminal(daemon, "task", "publish", "--topic", "t", "--lines", "--file", "lines", "--wait")
        assert code == 0 and "waiting for results" in out and "/6" in out and "\r\033[K" in out, out
        assert "6 completed, 0 failed." in out.split("\r\033[K")[-1], out


@case
def top_and_watch_put_the_terminal_back_however_they_end():
    with Daemon() as daemon, Agent(daemon, "t", ["cat"]):
        publish(daemon, "t", "1")
        for how in ({"keys": [(b"PUB/S", b"s"), (b"by tasks", b"\033[B"), (b"by tasks", b"q")]}, {"until": b"PUB/S", "stop": signal.SIGINT}, {"until": b"PUB/S", "stop": signal.SIGTERM}):
            out, code, same = on_terminal(daemon, "top", "--interval", "0.2", columns=120, **how)
            assert same and out.rstrip().endswith("\033[?25h\033[?1049l"), (how, code, out[-200:])
            assert code == (0 if "keys" in how else -how["stop"]), (how, code)
        out, code, same = on_terminal(daemon, "bus", "stats", "--watch", "0.2", keys=[(b"TOPIC", b"q")])
        assert code == 0 and same and "\033[?1049h" in out and out.rstrip().endswith("\033[?1049l"), out
        assert len(ok(daemon.ctl("top", "--interval", "0.1", "-n", "2")).split("TOPIC, AGENT")) == 3


@case
def watch_in_a_pipe_parts_its_frames():
    with Daemon() as daemon:
        process = subprocess.Popen([CTL, "bus", "topics", "--watch=0.1"], env=daemon.env, stdout=subprocess.PIPE, text=True)
        decoder = json.JSONDecoder()
        text = ""
        while len(text) < 200:
            text += process.stdout.readline()
        process.terminate()
        process.communicate()
        document, end = decoder.raw_decode(text)
        assert document["topics"] == [] and decoder.raw_decode(text[end:].lstrip())[0] == document


@case
def agent_run_on_a_terminal_tells_each_task_in_a_line():
    with Daemon() as daemon:
        ids = [publish(daemon, "t", str(n)) for n in range(2)]
        out, code, _ = on_terminal(daemon, "agent", "run", "--topic", "t", "--name", "n", "--once=2", "--retry-limit", "0", "--", "sh", "-c", "read x; test $x = 0 || { echo no >&2; exit 1; }")
        plain = re.sub("\033\\[[0-9;]*m", "", out)
        assert code == 0 and "Serving t as n with 1 worker" in plain, out
        assert re.search(f"done    {ids[0]}  [0-9.]+ [mµ]?s", plain) and re.search(f"failed  {ids[1]}  [0-9.]+ [mµ]?s  no", plain), plain


if __name__ == "__main__":
    main()
