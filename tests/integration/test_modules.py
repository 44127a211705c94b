#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Modules: each that was built loads, what is missing or broken is named, and the daemon loads only what it uses."""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../lib"))
from harness import BIN, Daemon, case, main  # noqa: E402

LIB = os.path.join(BIN, "../lib")
ROOT = os.path.join(os.path.dirname(__file__), "../..")


def listed(*flags):
    done = subprocess.run([BIN + "/omnidaemond", "--config", "/dev/null", "--print-backends", *flags], stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout)
    return {("bus", b["name"]): b for b in answer["buses"]} | {("store", b["name"]): b for b in answer["storages"]}


def refused(folder, url):
    done = subprocess.run([BIN + "/omnidaemond", "--config", "/dev/null", "--module-dir", folder, "--event-bus-url", url, "--check"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2, done
    return done.stderr


@case
def every_module_that_was_built_loads_and_says_what_it_can():
    names = listed()
    built = sorted(glob.glob(LIB + "/omnidaemon/*.so"))
    for path in built:
        side, name = os.path.basename(path)[:-3].split("_")
        assert names[side, name]["installed"], names[side, name]
    others = [k for k, b in names.items() if not b["installed"]]
    assert len(others) + len(built) + 2 == len(names), (others, built)
    for key in others:
        assert f"omnidaemon-{key[1]}" in names[key]["why"], names[key]
    sources = [d for d in glob.glob(ROOT + "/backends/*/") if os.path.basename(d[:-1]) not in ("local", "json")]
    for d in sources:
        for side in ("bus", "store"):
            if os.path.exists(f"{d}{side}.c"):
                assert names[side, os.path.basename(d[:-1])]["installed"], f"{d}{side}.c was not built"


@case
def a_module_that_the_build_is_to_leave_out_is_left_out():
    def commands(*variables):
        done = subprocess.run(["make", "-nB", "-C", ROOT, "B=" + tempfile.gettempdir() + "/never-built", *variables, "programs"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=True)
        return done.stdout
    assert "bus_redis.so" in commands() and "store_redis.so" in commands()
    without = commands("WITH_REDIS=no")
    assert "omnidaemond" in without and "redis" not in without, [line for line in without.splitlines() if "redis" in line]


@case
def what_is_no_module_is_refused_by_its_name():
    folder = tempfile.mkdtemp()
    try:
        with open(folder + "/bus_kafka.so", "w", encoding="ascii") as f:
            f.write("no library at all\n" * 100)
        text = refused(folder, "kafka://h")
        assert folder + "/bus_kafka.so" in text and "EVENT_BUS_URL" in text, text
        shutil.copy(LIB + "/libomniclient.so.0", folder + "/bus_kafka.so")
        assert "lacks om_kafka_bus_ops" in refused(folder, "kafka://h")
        with open(folder + "/old.c", "w", encoding="ascii") as f:
            f.write("unsigned om_kafka_bus_ops[64] = { 999 };\n")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder + "/bus_kafka.so", folder + "/old.c"], check=True)
        assert "interface number 999" in refused(folder, "kafka://h")
        os.remove(folder + "/bus_kafka.so")
        text = refused(folder, "kafka://h")
        assert folder in text and "install the package omnidaemon-kafka" in text, text
    finally:
        shutil.rmtree(folder)


@case
def the_daemon_lists_modules_without_loading_them():
    with Daemon() as d:
        c = d.connect()
        ids = [c.start("backends") for _ in range(100)]
        answers = [c.finish(i) for i in ids]
        assert all(a == answers[0] for a in answers)
        names = {b["name"]: b for b in answers[0]["buses"]}
        assert names["local"]["in_use"] and not names["kafka"]["in_use"], names
        with open(f"/proc/{d.process.pid}/maps", encoding="ascii") as f:
            assert "/omnidaemon/" not in f.read()
        assert c.call("ping") == {}


@case
def what_a_module_prints_when_it_is_loaded_spoils_no_list():
    folder = tempfile.mkdtemp()
    try:
        with open(folder + "/loud.c", "w", encoding="ascii") as f:
            f.write("""#include <stdio.h>
                __attribute__((constructor)) static void loud(void) { fputs("{ a warning\\n", stderr); }
                __attribute__((destructor)) static void end(void) { fputs("bye\\n", stderr); }
                unsigned om_kafka_bus_ops[64];\n""")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder + "/bus_kafka.so", folder + "/loud.c"], check=True)
        with Daemon("--module-dir", folder) as d:
            names = {b["name"] for b in d.connect().call("backends")["buses"]}
        assert {"local", "kafka"} <= names, names
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
