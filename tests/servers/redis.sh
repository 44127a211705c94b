#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The real Redis, Debian's: see lib.sh.
#   plain      one server, append-only file synced at every write
#   acl        the same, with a user "omni" that has a password; nobody else may log in
#   tls        the same over TLS only, clients need a certificate; a second node of it has an expired certificate
#   cluster    three primaries and three replicas; `failover` promotes the replica of node 1, or node 1 where it is one
#   sentinel   a primary (node 1), a replica (2) and three sentinels (3-5); `failover` as a sentinel orders it
#   everysec   appendfsync everysec: durability is weak
# `cli [N] …` runs redis-cli on node N.
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"

build() {
        command -v redis-server >/dev/null && command -v redis-cli >/dev/null && return
        say "Debian's redis-server is not installed"
        return 1
}
kinds() { printf '%s\n' plain acl tls cluster sentinel everysec; }

prepare() {
        case $kind in
        tls) nodes=2 && make_certificates "$dir/certificates" ;;
        cluster) nodes=6 ;;
        sentinel) nodes=5 ;;
        esac || return
        # The bus between the nodes of a cluster has the client's port plus 10,000.
        read -ra ports <<<"$(free_ports "$nodes" "$([[ $kind == cluster ]] && echo 10000)")"
}
port() { echo "${ports[$1 - 1]}"; }

node_run() {
        local n=$1 p c=$dir/certificates name=server
        p=$(port "$n")
        mkdir -p "$dir/$n"
        local arguments=(--port "$p" --bind 127.0.0.1 --dir "$dir/$n" --appendonly yes --appendfsync always --save "" --repl-diskless-sync-delay 0)
        case $kind in
        everysec) arguments+=(--appendfsync everysec) ;;
        acl)
                # Nobody can be `default`, but its rights stay: Redis checks them when it reads transactions out of its append-only file, and without them
                # silently leaves those out (redis/redis issue 14541, in 7.0 and 7.2).
                arguments+=(--user default off "~*" "&*" +@all --user omni on ">secret" "~*" "&*" +@all)
                ;;
        tls)
                ((n == 1)) || name=expired
                arguments+=(--port 0 --tls-port "$p" --tls-cert-file "$c/$name.pem" --tls-key-file "$c/$name.key" --tls-ca-cert-file "$c/ca.pem" --tls-auth-clients yes)
                ;;
        cluster)
                arguments+=(--cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 2000 --cluster-announce-ip 127.0.0.1)
                ;;
        sentinel)
                if ((n > 2)); then
                        [[ -s $dir/$n/sentinel.conf ]] || printf '%s\n' "port $p" "bind 127.0.0.1" "dir $dir/$n" "sentinel monitor omni 127.0.0.1 $(port 1) 2" \
                                "sentinel down-after-milliseconds omni 3000" "sentinel failover-timeout omni 4000" >"$dir/$n/sentinel.conf"
                        exec redis-server "$dir/$n/sentinel.conf" --sentinel
                fi
                # A restart finds the primary that the sentinels chose meanwhile.
                local primary=''
                primary=$(primary_by_sentinels)
                if [[ -n $primary && $primary != "$p" ]]; then
                        arguments+=(--replicaof "127.0.0.1 $primary")
                elif [[ -z $primary ]] && ((n == 2)); then
                        arguments+=(--replicaof "127.0.0.1 $(port 1)")
                fi
                ;;
        esac
        exec redis-server "${arguments[@]}"
}

primary_by_sentinels() {
        local n
        for n in 3 4 5; do
                timeout 1 redis-cli -h 127.0.0.1 -p "$(port "$n")" sentinel get-master-addr-by-name omni 2>/dev/null | sed -n 2p | grep -E '^[0-9]+$' && return
        done
}

cli() { # N ARGUMENT …
        local n=$1 c=$dir/certificates
        shift
        case $kind in
        tls) redis-cli --tls --cacert "$c/ca.pem" --cert "$c/client.pem" --key "$c/client.key" -h localhost -p "$(port "$n")" ${1+"$@"} ;;
        acl) REDISCLI_AUTH=secret redis-cli --user omni -h 127.0.0.1 -p "$(port "$n")" "$@" ;;
        *) redis-cli -h 127.0.0.1 -p "$(port "$n")" "$@" ;;
        esac
}

node_ready() {
        local answer
        # The second node's certificate is expired: it answers nobody who looks.
        [[ $kind == tls && $1 == 2 ]] && { grep -q 'Ready to accept connections' "$dir/$1.log"; return; }
        answer=$(cli "$1" ping 2>/dev/null)
        [[ $answer == PONG ]]
}

formed() {
        local n addresses=()
        case $kind in
        cluster)
                for ((n = 1; n <= nodes; n++)); do addresses+=("127.0.0.1:$(port "$n")"); done
                redis-cli --cluster create "${addresses[@]}" --cluster-replicas 1 --cluster-yes >"$dir/create.log" 2>&1 || { tail -3 "$dir/create.log" >&2; return 1; }
                until_true cluster_is_whole
                ;;
        sentinel) until_true sentinels_agree ;;
        esac
}
until_true() {
        local deadline=$((SECONDS + 30))
        until "$@"; do
                ((SECONDS < deadline)) || { say "this did not come true: $*"; return 1; }
                sleep 0.05
        done
}
cluster_is_whole() {
        local n
        for ((n = 1; n <= nodes; n++)); do
                [[ $(cli "$n" cluster info) == *cluster_state:ok* ]] || return
        done
        (($(cli 1 cluster slots | grep -c '^127\.0\.0\.1$') == nodes))
}
sentinels_agree() {
        local n
        for n in 3 4 5; do
                [[ $(cli "$n" sentinel master omni | grep -A1 -x num-other-sentinels | tail -1) == 2 &&
                        $(cli "$n" sentinel master omni | grep -A1 -x num-slaves | tail -1) == 1 ]] || return
        done
}

urls() {
        local c=$dir/certificates scheme=redis where query='' prefix='prefix={case}'
        where=127.0.0.1:$(port 1)
        case $kind in
        acl) where=omni:secret@$where ;;
        tls)
                scheme=rediss where=localhost:$(port 1)
                query="tls_ca_file=$c/ca.pem&tls_cert_file=$c/client.pem&tls_key_file=$c/client.key"
                ;;
        cluster) scheme=redis+cluster where=127.0.0.1:$(port 1),127.0.0.1:$(port 2),127.0.0.1:$(port 3) ;;
        sentinel) scheme=redis+sentinel where=127.0.0.1:$(port 3),127.0.0.1:$(port 4),127.0.0.1:$(port 5)/omni ;;
        esac
        # Where a replica may take over, only what it has is safe: publishes wait for it, acknowledgements do not.
        # A publish that fails may stand behind the WAIT of another on its connection: both together take less than a second.
        case $kind in cluster | sentinel) printf '%s\n' "bus_url=$scheme://$where?wait_replicas=1&wait_timeout_ms=300" acks=unreplicated ;; *) echo "bus_url=$scheme://$where${query:+?$query}" ;; esac
        echo "store_url=$scheme://$where?${query:+$query&}$prefix"
        case $kind in
        cluster) printf 'fault=%s\n' "failover" "kill 1;up 1" "pause 2;resume 2" "down 3;up 3" "kill;up" ;;
        sentinel) printf 'fault=%s\n' "failover" "kill 3;up 3" "kill 1 2;up 1 2" ;;
        tls) printf 'fault=%s\n' "kill 1;up 1" "pause 1;resume 1" "down 1;up 1" ;;
        *) printf 'fault=%s\n' "kill;up" "pause;resume" "down;up" ;;
        esac
        local side
        if [[ $kind == plain ]]; then
                echo "bus_env=EVENT_BUS_TYPE=redis_stream"
                echo "bus_env=REDIS_URL=redis://$where"
                echo "store_env=STORAGE_BACKEND=redis"
                echo "store_env=REDIS_URL=redis://$where"
                echo "store_env=REDIS_KEY_PREFIX={case}"
        fi
        for side in bus store; do
                case $kind in
                plain)
                        echo "wrong_$side=password|redis://:wrong@$where"
                        echo "wrong_$side=database|redis://$where/99"
                        echo "wrong_$side=TLS|rediss://$where?tls_verify=false"
                        ;;
                acl)
                        echo "wrong_$side=password|redis://omni:wrong@127.0.0.1:$(port 1)"
                        echo "wrong_$side=password|redis://127.0.0.1:$(port 1)"
                        ;;
                tls)
                        echo "wrong_$side=TLS|redis://$where"
                        echo "wrong_$side=certificate|rediss://$where"
                        echo "wrong_$side=expired|rediss://localhost:$(port 2)?$query"
                        ;;
                esac
        done
}

extra() { # the caller's own words
        case $1 in
        failover)
                case $kind in
                cluster) until_true promote_replica ;;
                sentinel) sentinel_failover ;;
                *) return 1 ;;
                esac
                ;;
        cli) shift && cli "$@" ;;
        *) return 1 ;;
        esac
}
# Left alone the sentinels make a replica of the old primary after eight seconds or more; until then nothing has one.
sentinel_failover() {
        local old
        old=$(primary_by_sentinels)
        [[ $(cli 3 sentinel failover omni) == OK ]] && until_true is_another_than "$old" &&
                [[ $(redis-cli -h 127.0.0.1 -p "$old" replicaof 127.0.0.1 "$(primary_by_sentinels)") == OK* ]]
}
is_another_than() { local now && now=$(primary_by_sentinels) && [[ -n $now && $now != "$1" ]]; }
# The one that may take over: node 1 itself where it is a replica by now.
replica_of_first() {
        local n id self
        id=$(cli 1 cluster myid) && [[ -n $id ]] || return
        for ((n = 1; n <= nodes; n++)); do
                self=$(cli "$n" cluster nodes | grep myself)
                [[ $self == *"slave $id"* || ($n == 1 && $self == *slave*) ]] && { replica=$n; return; }
        done
        return 1
}
promote_replica() { replica_of_first && [[ $(cli "$replica" cluster failover force) == OK ]]; }

server_main "$@"
