#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the scripts of tests/servers share. Each gets one real server and holds it, for as long as whoever started the script keeps its standard input open:
#
#   NAME.sh build               gets the server if need be, outside the tree; fails, and says why, when it cannot be had
#   NAME.sh kinds               the variants that there are, a line each (plain, tls, cluster …)
#   NAME.sh serve DIR [KIND]    starts it in the folder DIR on free ports of the loopback address, and prints, a line each,
#
#       bus_url=URL             what to give the daemon; where it can be one, or the other. {case} in it stands for a name of the user's own
#       store_url=URL
#       bus_env=NAME=VALUE  the same by the variables of the Python OmniDaemon, one a line; likewise store_env
#       fault=A;B           commands below that make it unable to serve and able again (or that it must bear), in this order
#       wrong_bus=TEXT|URL      a URL that cannot work, and what the error must name (wrong password, TLS to a plain port …)
#       wrong_store=TEXT|URL
#       ready
#
#     and then, for each line of standard input, `ok` or `failed WHY`:
#
#       kill [N …]   kill -9 of these nodes (of all without N)     pause [N …]  SIGSTOP      resume [N …] SIGCONT
#       down [N …]   an orderly end, the data stay                 up [N …]     started again on the same port; `ok` when it answers
#       …            what the script adds
#
#     At the end of the input, and at SIGTERM, everything is killed and the script ends. DIR stays: it is the caller's.
#
# A script sets `nodes`, defines node_run N (runs the server in the foreground, logging into $dir/N.log), node_ready N (0 when it answers), urls, and where
# needed prepare (before the first start), formed (after it), ended (at the end) and extra WORD … (its own commands), and calls server_main "$@".
#   OMNI_TEST_CACHE: the folder of what is built (~/.cache/omnidaemon-tests)
set -uo pipefail
# shellcheck disable=SC2034 # for the scripts that read this
cache=${OMNI_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/omnidaemon-tests}
script=$(basename "${BASH_SOURCE[1]}")
nodes=1
dir='' kind=plain
declare -A pids=()

say() { printf '%s: %s\n' "$script" "$*" >&2; }

# Ports that nobody listens on, below the range from which the kernel takes those of clients, so that none of these takes it before the server does.
# With a second number each port that is so much higher is free too, and below that range.
free_ports() { # N [OFFSET]
        python3 - "$1" "${2:-0}" <<'PYTHON'
import random, socket, sys
n, offset = int(sys.argv[1]), int(sys.argv[2])
held, ports = [], []
while len(ports) < n:
    port = random.randrange(10000, 32000 - offset)
    try:
        for number in {port, port + offset}:
            s = socket.socket()
            held.append(s)
            s.bind(("127.0.0.1", number))
        ports.append(port)
    except OSError:
        pass
print(*ports)
PYTHON
}

# Certificates of one test authority: ca.pem, server.pem + server.key, client.pem + client.key, and expired.pem + expired.key.
make_certificates() { # DIR
        local c=$1 who
        mkdir -p "$c"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=omnidaemon-test-ca -keyout "$c/ca.key" -out "$c/ca.pem" 2>/dev/null || return
        for who in server client expired; do
                openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=localhost" -keyout "$c/$who.key" -out "$c/$who.csr" 2>/dev/null || return
                printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >"$c/$who.ext"
        done
        for who in server client; do
                openssl x509 -req -in "$c/$who.csr" -CA "$c/ca.pem" -CAkey "$c/ca.key" -CAcreateserial -days 2 -extfile "$c/$who.ext" -out "$c/$who.pem" 2>/dev/null || return
        done
        mkdir -p "$c/authority" && : >"$c/authority/index" && echo 01 >"$c/authority/serial"
        printf '[ca]\ndefault_ca=a\n[a]\ndatabase=%s/authority/index\nserial=%s/authority/serial\nnew_certs_dir=%s/authority\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n' \
                "$c" "$c" "$c" >"$c/authority/conf"
        openssl ca -batch -notext -config "$c/authority/conf" -cert "$c/ca.pem" -keyfile "$c/ca.key" -extfile "$c/expired.ext" -startdate 20200101000000Z -enddate 20200102000000Z \
                -in "$c/expired.csr" -out "$c/expired.pem" 2>/dev/null || return
        chmod 644 "$c"/*.key # a server of another user reads them; they protect nothing
}

each() { # FUNCTION [N …]: for these nodes, or for all
        local n what=$1
        shift
        (($#)) || eval "set -- {1..$nodes}"
        for n in "$@"; do "$what" "$n" || return; done
}
alive() { [[ -n ${pids[$1]:-} ]] && kill -0 "${pids[$1]}" 2>/dev/null; }
node_launch() {
        alive "$1" && return
        node_run "$1" </dev/null >>"$dir/$1.log" 2>&1 &
        pids[$1]=$!
}
node_wait() { # until it answers; a minute at most
        local deadline=$((SECONDS + 60))
        until node_ready "$1"; do
                alive "$1" || { say "node $1 ended: $(tail -3 "$dir/$1.log" | tr '\n' ' ')"; return 1; }
                ((SECONDS < deadline)) || { say "node $1 does not answer: $(tail -3 "$dir/$1.log" | tr '\n' ' ')"; return 1; }
                sleep 0.02
        done
}
node_up() { node_launch "$1" && node_wait "$1"; }
node_signal() { # SIGNAL N
        alive "$2" || return 0
        kill "-$1" "${pids[$2]}"
}
node_gone() { # waits until the process is
        [[ -z ${pids[$1]:-} ]] || wait "${pids[$1]}" 2>/dev/null
        pids[$1]=''
}
node_kill() { node_signal KILL "$1"; node_gone "$1"; }
node_down() { node_signal CONT "$1"; node_signal TERM "$1"; node_gone "$1"; }
stopped() { # PID …: until they are. A signal stops a process when one of its threads gets to it; until then the others go on
        local pid stat
        for pid in "$@"; do
                while stat=$(cat "/proc/$pid/stat" 2>/dev/null) && [[ ${stat##*) } != [TtZX]* ]]; do sleep 0.002; done
        done
}
node_pause() { node_signal STOP "$1" && stopped ${pids[$1]:+"${pids[$1]}"}; }
node_resume() { node_signal CONT "$1"; }

build() { :; }
kinds() { echo plain; }
prepare() { :; }
formed() { :; }
ended() { :; }
extra() { return 127; }

everything_ends() {
        trap - EXIT
        each node_kill
        ended
        exit "${1:-0}"
}

serve() {
        local word rest
        mkdir -p "$dir" || exit 1
        trap 'everything_ends 1' EXIT
        trap 'everything_ends 0' TERM INT HUP
        if ! { build >&2 && prepare && each node_launch && each node_wait && formed; }; then
                say "cannot start ($kind)"
                exit 1
        fi
        urls
        echo ready
        while read -r word rest; do
                # shellcheck disable=SC2086 # words
                case $word in
                kill | down | pause | resume) each "node_$word" $rest ;;
                up)
                        each node_launch $rest && each node_wait $rest
                        ;;
                *) extra "$word" $rest ;;
                esac >&2
                # shellcheck disable=SC2181 # of all branches
                if (($? == 0)); then echo ok; else echo "failed $word $rest"; fi
        done
        everything_ends 0
}

server_main() {
        case ${1:-} in
        build) build ;;
        kinds) kinds ;;
        serve)
                dir=${2:?usage: $script serve DIR [KIND]}
                mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
                kind=${3:-plain}
                [[ $'\n'$(kinds)$'\n' == *$'\n'"$kind"$'\n'* ]] || { say "no kind \"$kind\"; there are: $(kinds | tr '\n' ' ')"; exit 2; }
                serve
                ;;
        *)
                echo "usage: tests/servers/$script build | kinds | serve DIR [KIND]" >&2
                exit 2
                ;;
        esac
}
