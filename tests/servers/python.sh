#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The Python OmniDaemon, which the JSON storage shares its folder with: installed by pip from PyPI into a virtual environment, once, outside the tree.
#   tests/servers/python.sh build    installs it if need be and prints its interpreter; fails, and says why, when it cannot be had
#   OMNI_TEST_CACHE: the folder of what is built (~/.cache/omnidaemon-tests)
set -euo pipefail
version=0.1.1
cache=${OMNI_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/omnidaemon-tests}
venv=$cache/python-omnidaemon-$version

build() {
        [[ -e $venv/complete && -x $venv/bin/python ]] && return
        mkdir -p "$cache"
        # One at a time. An environment cannot be moved, so a mark says that it is whole.
        exec 9>"$cache/python.lock"
        flock 9
        [[ -e $venv/complete && -x $venv/bin/python ]] && return
        rm -rf "$venv"
        local log=$cache/python.log
        if ! python3 -m venv "$venv" >"$log" 2>&1; then
                echo "python.sh: cannot make a virtual environment (Debian has it in python3-venv): $(tail -1 "$log")" >&2
                return 1
        fi
        if ! "$venv/bin/pip" install -q --disable-pip-version-check "omnidaemon==$version" >"$log" 2>&1; then
                echo "python.sh: cannot install omnidaemon $version (it needs Python 3.11): $(tail -1 "$log")" >&2
                return 1
        fi
        : >"$venv/complete"
}

case ${1:-} in
build) build && echo "$venv/bin/python" ;;
*) echo "usage: tests/servers/python.sh build" >&2; exit 2 ;;
esac
