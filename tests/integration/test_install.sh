#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make install` puts down is enough to build and run agents elsewhere, C++ includes the header, and uninstall leaves nothing. Prints TAP.
# The functions below are called through check().
# shellcheck disable=SC2317
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
build=$(realpath "${OMNI_BUILD:-build}")
work=$(mktemp -d)
daemon=
finish() {
        [[ -z $daemon ]] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null
        rm -rf "$work"
}
trap finish EXIT
number=0 failed=0
check() { # check NAME COMMAND …
        local name=$1
        shift
        number=$((number + 1))
        if "$@" >"$work/out" 2>&1; then
                echo "ok $number - $name"
        else
                echo "not ok $number - $name"
                sed 's/^/# /' "$work/out"
                failed=1
        fi
}
run_install() { # run_install install|uninstall DESTDIR PREFIX
        B=$build DESTDIR=$2 PREFIX=$3 VERSION=$version SOMAJOR=$major packaging/install.sh "$1"
}
version=$(sed -n 's/^VERSION := //p' Makefile)
major=$(sed -n 's/^SOMAJOR := //p' Makefile)
prefix=$work/prefix

check "install into a prefix of one's own" run_install install "" "$prefix"
check "the programs, the library, its header and the protocol are there" \
        ls "$prefix/bin/omnidaemond" "$prefix/bin/omnictl" "$prefix/bin/omnidaemon" "$prefix/lib/libomniclient.so.$major" \
        "$prefix/lib/libomniclient.so" "$prefix/lib/libomniclient.a" "$prefix/include/omniclient.h" "$prefix/lib/pkgconfig/omniclient.pc" \
        "$prefix/share/doc/omnidaemon/PROTOCOL.md"

# The examples, outside of the tree, with nothing but pkg-config. A library with a sanitizer needs it in the program too.
flags=
case $(basename "$build") in
*address-undefined*) flags=-fsanitize=address,undefined ;;
*address*) flags=-fsanitize=address ;;
*thread*) flags=-fsanitize=thread ;;
esac
compiler=gcc
case $(basename "$build") in *clang*) compiler=clang ;; esac
build_examples() {
        cp -r "$prefix/share/doc/omnidaemon/examples" "$work/examples" &&
                PKG_CONFIG_PATH=$prefix/lib/pkgconfig make -C "$work/examples" CC="$compiler" CFLAGS="-O1 -Wall -Wextra -Wno-unused-parameter -Werror $flags"
}
check "the examples build with pkg-config alone" build_examples
cat >"$work/a.cc" <<'END'
#include <omniclient.h>
int main() {
        omni_publish_options o = OMNI_PUBLISH_OPTIONS_INIT;
        omni_agent_options a = OMNI_AGENT_OPTIONS_INIT;
        omni_client_options c = OMNI_CLIENT_OPTIONS_INIT;
        return o.size + a.size + c.size == 0;
}
END
is_cxx() {
        local cxx
        cxx=$(command -v c++ || command -v clang++) || { echo "neither c++ nor clang++ is installed"; return 1; }
        "$cxx" -fsyntax-only -Wall -Wextra -Werror -I"$prefix/include" "$work/a.cc"
}
check "the header is C++ as well" is_cxx
is_c99() { gcc -std=c99 -pedantic -Wall -Wextra -Werror -I"$prefix/include" -fsyntax-only -x c - <<<"#include <omniclient.h>"; }
check "the header is C99 without extensions" is_c99

export LD_LIBRARY_PATH=$prefix/lib OMNIDAEMON_SOCKET=$work/d.sock
mkdir "$work/state"
(cd "$work/state" && exec "$prefix/bin/omnidaemond") >"$work/daemon.log" 2>&1 &
daemon=$!
for ((i = 0; i < 1000; i++)); do
        "$prefix/bin/omnictl" health >/dev/null 2>&1 && break
        sleep 0.02
done
serve_and_publish() {
        "$work/examples/agent" >"$work/agent.out" &
        local agent=$!
        "$work/examples/publisher" 500 >"$work/publisher.out" || return 1
        kill -TERM "$agent" && wait "$agent" || return 1
        cat "$work/publisher.out"
        grep -q '"greeting":"hello"' "$work/publisher.out" && grep -q 'published 500 of 500' "$work/publisher.out"
}
check "an agent and a publisher built there work with the daemon installed there" serve_and_publish
pipeline() {
        diff - <("$work/examples/pipeline" "one four five" | sort) <<'END'
{"word":"five","bytes":4}
{"word":"four","bytes":4}
{"word":"one","bytes":3}
END
}
check "the pipeline prints each word's measure" pipeline
own_loop() { diff <(printf 'handled 1\nhandled [2]\n') <(printf '1\n[2]\n' | "$work/examples/eventloop" | sort); }
check "a program with a loop of its own handles what it published" own_loop
bad_line() { ! echo "{" | "$work/examples/eventloop" 2>"$work/err" && grep content "$work/err"; }
check "a line that is no JSON is refused with words" bad_line

empty() { [[ -z $(find "$1" ! -type d) ]] || { find "$1" ! -type d && return 1; }; }
check "uninstall" run_install uninstall "" "$prefix"
check "nothing is left" empty "$prefix"
staged() {
        run_install install "$work/stage" /usr && [[ -x $work/stage/usr/bin/omnidaemond ]] &&
                grep -qx "prefix=/usr" "$work/stage/usr/lib/pkgconfig/omniclient.pc" && ! grep -rqI "$work" "$work/stage"
}
check "DESTDIR is in front of the paths and in none of the files" staged
check "uninstall with DESTDIR" run_install uninstall "$work/stage" /usr
check "nothing is left there either" empty "$work/stage"
echo "1..$number"
exit "$failed"
