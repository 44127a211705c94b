#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The real PostgreSQL, Debian's: see lib.sh. It refuses to run as root, so root runs it as the user postgres.
#   plain      one server; passwords (scram-sha-256)
#   tls        the same over TLS only; clients need a certificate beside the password. A second node has an expired certificate
#   pair       a primary (node 1) and a standby that takes over (2), synchronous; `failover` stops the one and promotes the other
#   weak       fsync off: durability is weak
#   small      its tables are on a disk of 128 MiB of memory, its log is not; `fill` leaves no room there, `free` gives it back. Needs root
# `sql [N] STATEMENT` runs a statement as the superuser in the database omni of node N, `limit N` sets max_connections of node 1 and restarts it.
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"

bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)
build() {
        [[ -x $bin/postgres && -x $bin/initdb ]] && return
        say "Debian's postgresql is not installed"
        return 1
}
kinds() {
        printf '%s\n' plain tls pair weak
        [[ $kind != small ]] || echo small # not for the whole conformance: it would be full
}
port() { echo "${ports[$1 - 1]}"; }
as_server() { if ((EUID == 0)); then runuser -u postgres -- "$@"; else "$@"; fi; }
data() { echo "$base/$1/data"; }

prepare() {
        case $kind in tls | pair) nodes=2 ;; esac
        read -ra ports <<<"$(free_ports "$nodes")"
        base=$dir/server
        mkdir -p "$base" && { ((EUID != 0)) || { chown postgres: "$base" && reachable; }; } || return
        [[ $kind != tls ]] || make_certificates "$dir/certificates" || return
        first_data 1 || return
        case $kind in
        tls) first_data 2 ;;
        pair) standby ;;
        esac
}

# The server's user must get to its folder: a test's own are root's alone.
reachable() {
        local d=$dir
        while ! as_server test -x "$base" && [[ $d == /tmp/* || $d == /var/tmp/* || $d == ${BENCH_DIR:-/tmp}/* ]]; do
                chmod o+x "$d" || return
                d=$(dirname "$d")
        done
        as_server test -x "$base" || { say "the user postgres cannot reach $base"; return 1; }
}

first_data() { # N
        local n=$1 d
        d=$(data "$n")
        mkdir -p "$base/$n" || return
        [[ $kind != small ]] || mount -t tmpfs -o size=128m tmpfs "$base/$n" || return # in mounts of our own: see the end of the file
        ((EUID != 0)) || chown postgres: "$base/$n" || return
        local wal=()
        [[ $kind != small ]] || wal=(--waldir "$base/wal")
        as_server "$bin/initdb" -D "$d" "${wal[@]}" -U postgres -A trust --no-locale -E UTF8 --no-sync >"$dir/initdb.$n.log" 2>&1 || { tail -3 "$dir/initdb.$n.log" >&2; return 1; }
        {
                echo "listen_addresses = '127.0.0.1'"
                echo "port = $(port "$n")"
                echo "unix_socket_directories = ''"
                echo "max_connections = 60"
                echo "max_wal_senders = 4"
                echo "shared_buffers = 64MB"
                echo "log_line_prefix = '%m %u '"
                case $kind in
                weak) echo "fsync = off" ;;
                tls)
                        echo "ssl = on"
                        echo "ssl_cert_file = '$base/$n/server.pem'"
                        echo "ssl_key_file = '$base/$n/server.key'"
                        echo "ssl_ca_file = '$base/$n/ca.pem'"
                        ;;
                esac
        } | as_server tee -a "$d/postgresql.conf" >/dev/null
        {
                echo "host all postgres 127.0.0.1/32 trust"
                if [[ $kind == tls ]]; then
                        echo "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca"
                else
                        echo "host replication all 127.0.0.1/32 trust"
                        echo "host all all 127.0.0.1/32 scram-sha-256"
                fi
        } | as_server tee "$d/pg_hba.conf" >/dev/null
        [[ $kind != tls ]] || certificate "$n"
}
certificate() { # N: the second one's has expired
        local name=server c=$dir/certificates
        (($1 == 1)) || name=expired
        cp "$c/$name.pem" "$base/$1/server.pem" && cp "$c/$name.key" "$base/$1/server.key" && cp "$c/ca.pem" "$base/$1/ca.pem" || return
        ((EUID != 0)) || chown postgres: "$base/$1"/server.* || return
        chmod 600 "$base/$1/server.key" "$c/client.key"
}
standby() {
        node_up 1 || return
        mkdir -p "$base/2" && { ((EUID != 0)) || chown postgres: "$base/2"; } || return
        as_server "$bin/pg_basebackup" -h 127.0.0.1 -p "$(port 1)" -U postgres -D "$(data 2)" -R -X stream -c fast >"$dir/basebackup.log" 2>&1 || { tail -3 "$dir/basebackup.log" >&2; return 1; }
        {
                echo "port = $(port 2)"
                echo "synchronous_standby_names = ''"
        } | as_server tee -a "$(data 2)/postgresql.conf" >/dev/null
}

node_run() {
        if ((EUID == 0)); then
                exec setpriv --reuid=postgres --regid=postgres --init-groups "$bin/postgres" -D "$(data "$1")"
        fi
        exec "$bin/postgres" -D "$(data "$1")"
}
# kill -9 of the postmaster alone leaves its children, who end by themselves; the next start must not meet them.
node_kill() {
        local children=''
        [[ -z ${pids[$1]:-} ]] || children=$(pgrep -P "${pids[$1]}" 2>/dev/null)
        node_signal KILL "$1"
        # shellcheck disable=SC2086 # numbers
        [[ -z $children ]] || kill -9 $children 2>/dev/null
        node_gone "$1"
}
# All of its processes are stopped: those that serve connections would go on without it.
node_pause() { signal_all STOP "$1"; }
node_resume() { signal_all CONT "$1"; }
signal_all() {
        local children
        alive "$2" || return 0
        children=$(pgrep -P "${pids[$2]}")
        # shellcheck disable=SC2086 # numbers
        kill "-$1" "${pids[$2]}" $children 2>/dev/null
        # shellcheck disable=SC2086 # numbers
        [[ $1 != STOP ]] || stopped "${pids[$2]}" $children
}
node_down() { node_resume "$1"; node_signal INT "$1"; node_gone "$1"; } # fast shutdown: connections are ended

psql() { # N STATEMENT
        PGSSLMODE=disable "$bin/psql" -X -q -t -A -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(port "$1")" -U postgres -d "${3:-postgres}" -c "$2"
}
node_ready() { [[ $(psql "$1" 'SELECT 1' 2>/dev/null) == 1 ]]; }

formed() {
        psql 1 "CREATE ROLE omni LOGIN PASSWORD 'secret'" && psql 1 "CREATE ROLE poor LOGIN PASSWORD 'secret'" && psql 1 "CREATE DATABASE omni OWNER omni" || return
        [[ $kind != pair ]] || psql 1 "ALTER SYSTEM SET synchronous_standby_names = '*'" && psql 1 "SELECT pg_reload_conf()" >/dev/null
}

urls() {
        local c=$dir/certificates where query=''
        where=127.0.0.1:$(port 1)
        case $kind in
        tls)
                where=localhost:$(port 1)
                query="sslrootcert=$c/ca.pem&sslcert=$c/client.pem&sslkey=$c/client.key&"
                ;;
        pair) where=127.0.0.1:$(port 1),127.0.0.1:$(port 2) ;;
        esac
        echo "store_url=postgresql://omni:secret@$where/omni?${query}schema={case}"
        case $kind in
        pair) printf 'fault=%s\n' "failover" ;;
        tls) printf 'fault=%s\n' "kill 1;up 1" "pause 1;resume 1" "down 1;up 1" ;;
        *) printf 'fault=%s\n' "kill;up" "pause;resume" "down;up" ;;
        esac
        case $kind in
        plain)
                echo "store_env=STORAGE_BACKEND=postgresql"
                echo "store_env=POSTGRES_URL=postgresql://omni:secret@$where/omni?schema={case}"
                echo "wrong_store=password|postgresql://omni:wrong@$where/omni"
                echo "wrong_store=password|postgresql://omni@$where/omni"
                echo "wrong_store=database|postgresql://omni:secret@$where/nowhere"
                echo "wrong_store=privilege|postgresql://poor:secret@$where/omni"
                echo "wrong_store=sslmode|postgresql://omni:secret@$where/omni?sslmode=require"
                echo "wrong_store=language|postgresql://omni:secret@$where/omni?language=klingon"
                ;;
        tls)
                echo "wrong_store=sslcert|postgresql://omni:secret@$where/omni?sslmode=require"
                echo "wrong_store=pg_hba.conf|postgresql://omni:secret@$where/omni?sslmode=disable"
                echo "wrong_store=certificate|postgresql://omni:secret@$where/omni?sslrootcert=$c/server.pem"
                echo "wrong_store=not valid now|postgresql://omni:secret@localhost:$(port 2)/omni?$query"
                ;;
        esac
}

ended() {
        [[ $kind != small || -z ${base:-} ]] || umount -l "$base/1"
}

extra() { # the caller's own words
        local n=1
        case $1 in
        sql)
                shift
                [[ $1 =~ ^[0-9]+$ ]] && { n=$1; shift; }
                psql "$n" "$*" omni >&2
                ;;
        limit) # the superuser keeps three for itself
                psql 1 "ALTER SYSTEM SET max_connections = $2" && node_down 1 && node_up 1
                ;;
        failover)
                node_down 1 && psql 2 'SELECT pg_promote(true, 30)' >/dev/null
                ;;
        fill)
                [[ $kind == small ]] || return
                cat /dev/zero >"$base/1/filling" 2>/dev/null
                [[ -s $base/1/filling ]]
                ;;
        free) rm -f "$base/1/filling" ;;
        *) return 1 ;;
        esac
}

# A mount goes with the script, however that ends.
[[ ${1:-} != serve || ${3:-} != small || -n ${OMNI_OWN_MOUNTS:-} ]] || OMNI_OWN_MOUNTS=1 exec unshare --mount --propagation private "$0" "$@"
server_main "$@"
