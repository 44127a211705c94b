#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The real NATS server: Debian's is too old to sync at every write, so it is built from its Go module, once, outside the tree.
#   tests/servers/nats.sh build      builds it if need be and prints where it is; fails, and says why, when it cannot be had
#   OMNI_TEST_CACHE: the folder of what is built (~/.cache/omnidaemon-tests)
set -euo pipefail
version=v2.15.2
cache=${OMNI_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/omnidaemon-tests}
server=$cache/nats-server-$version

build() {
        [[ -x $server ]] && return
        command -v go >/dev/null || { echo "nats.sh: no Go compiler to build nats-server $version with" >&2; return 1; }
        mkdir -p "$cache"
        local tmp
        tmp=$(mktemp -d "$cache/build-XXXXXX")
        if ! GOBIN=$tmp go install "github.com/nats-io/nats-server/v2@$version" >"$tmp/log" 2>&1; then
                echo "nats.sh: cannot build nats-server $version: $(tail -1 "$tmp/log")" >&2
                rm -rf "$tmp"
                return 1
        fi
        mv "$tmp/nats-server" "$server"
        rm -rf "$tmp"
}

case ${1:-} in
build) build && echo "$server" ;;
*) echo "usage: tests/servers/nats.sh build" >&2; exit 2 ;;
esac
