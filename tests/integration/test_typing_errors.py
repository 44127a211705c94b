#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a typo in a setting is answered with."""
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import BIN, Daemon, case, main  # noqa: E402


def run(*flags, env=None, files=None):
    with Daemon(start=False) as d:
        for name, text in (files or {}).items():
            with open(os.path.join(d.folder, name), "w", encoding="utf-8") as f:
                f.write(text)
        return subprocess.run([os.path.join(BIN, "omnidaemond"), *flags], cwd=d.folder, env={**d.env, **(env or {})},
                              capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)


def says(result, *words, status=2):
    assert result.returncode == status, (result.returncode, result.stderr)
    for word in words:
        assert word in result.stderr, f"{word!r} is not in {result.stderr!r}"


@case
def an_unknown_bus_names_the_known_ones():
    says(run("--event-bus-url", "kafk://x"), '"kafk"', "local", "redis", "kafka", "rabbitmq", "nats")
    says(run(env={"EVENT_BUS_TYPE": "kafk"}), '"kafk"', "EVENT_BUS_TYPE", "redis_stream", "kafka", "rabbitmq", "nats", "local")
    says(run("--storage-url", "jsn:x"), '"jsn"', "json", "redis", "postgresql", "mongodb", "s3")
    says(run(env={"STORAGE_BACKEND": "postgres9"}), '"postgres9"', "postgresql")


@case
def a_known_bus_that_is_not_installed_says_so():
    with tempfile.TemporaryDirectory() as nothing:
        says(run("--event-bus-url", "kafka://h:9092", "--module-dir", nothing), "kafka", "bus_kafka.so", nothing, "install the package omnidaemon-kafka")


@case
def a_misspelt_setting_in_the_file_is_found_with_its_line():
    result = run("--config", "c.conf", files={"c.conf": "# comment\n\nEVENT_BUS_URL=local:\nPREFECH=5\n"})
    says(result, "c.conf", "4", "PREFECH", "PREFETCH")


@case
def a_wrong_value_names_the_setting_and_what_it_may_be():
    says(run("--prefetch", "many"), "PREFETCH", '"many"')
    says(run(env={"PREFETCH": "0"}), "PREFETCH", "1")
    says(run("--prefech", "5"), "--prefech", "--prefetch")
    says(run("--event-bus-url", "local:?durabilty=always"), "durabilty", "durability")
    says(run("--event-bus-url", "local:?durability=sometimes"), "durability", "always")


@case
def check_prints_what_is_in_force_and_its_source_without_passwords():
    result = run("--check", "--prefetch", "7", env={"RESULT_TTL": "1h"}, files={".env": "LOG_LEVEL=debug\n"})
    assert result.returncode == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "flag" in lines["PREFETCH"] and " 7" in lines["PREFETCH"], lines["PREFETCH"]
    assert "environment" in lines["RESULT_TTL"], lines["RESULT_TTL"]
    assert ".env" in lines["LOG_LEVEL"] and "default" in lines["MAX_CONNECTIONS"], result.stdout
    result = run("--check", env={"EVENT_BUS_URL": "redis://u:secret@h:1"})
    assert "secret" not in result.stdout + result.stderr, result


@case
def omnictl_against_no_daemon_says_how_to_start_one():
    with Daemon(start=False) as d:
        result = d.ctl("health")
        assert result.returncode == 3, result
        assert d.socket in result.stderr and "omnidaemond" in result.stderr and "OMNIDAEMON_SOCKET" in result.stderr, result.stderr


@case
def a_second_daemon_on_the_same_socket_or_folder_is_refused():
    with Daemon() as d:
        again = subprocess.run([os.path.join(BIN, "omnidaemond")], cwd=d.folder, env=d.env, capture_output=True, text=True, timeout=20, check=False)
        assert again.returncode == 1 and "already" in again.stderr, (again.returncode, again.stderr)
        other = subprocess.run([os.path.join(BIN, "omnidaemond"), "--socket-path", d.socket + "2"], cwd=d.folder, env={**d.env, "OMNIDAEMON_SOCKET": d.socket + "2"},
                               capture_output=True, text=True, timeout=20, check=False)
        assert other.returncode == 1 and str(d.process.pid) in other.stderr, (other.returncode, other.stderr)
        d.connect().call("ping")


main()
