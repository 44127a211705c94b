#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The real NATS server: Debian's is too old to sync at every write, so it is built from its Go module, once, outside the tree. See lib.sh; `build` prints where it is.
#   plain      one server with JetStream that syncs every write
#   user       the same with a user "omni" and a password; "poor" may not use JetStream's interface, "keeper" purge nothing, account NONE has no JetStream
#              account SMALL may store 2 MB in 8 streams of 16 consumers each
#   token      a token instead; a second node without JetStream
#   tls        TLS only, clients need a certificate; a second node of it has an expired certificate
#   cluster    three nodes, three replicas of everything; `leader STREAM` prints who leads it, `kill-leader` kills the node that leads the most
#   nkey       users by NKey; a second node wants credentials: a JWT that an account's key has signed
#   leaf       a hub with the JetStream domain "hub", and a leaf node with one of its own, through which the hub is used
#   shared     the same as plain; the URL asks for one stream for all topics
#   weak       sync_interval is what it is by default: durability is weak
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
version=v2.15.2
server=$cache/nats-server-$version
keys=$cache/nats-keys-1

build() {
        [[ -x $server ]] && return
        command -v go >/dev/null || { say "no Go compiler to build nats-server $version with"; return 1; }
        mkdir -p "$cache"
        (
                flock 9
                [[ -x $server ]] && exit
                tmp=$(mktemp -d "$cache/build-XXXXXX")
                trap 'rm -rf "$tmp"' EXIT
                if ! GOBIN=$tmp go install "github.com/nats-io/nats-server/v2@$version" >"$tmp/log" 2>&1; then
                        say "cannot build nats-server $version: $(tail -1 "$tmp/log")"
                        exit 1
                fi
                mv "$tmp/nats-server" "$server"
        ) 9>"$cache/nats.lock"
}
build_keys() {
        local tmp
        [[ -x $keys ]] && return
        tmp=$(mktemp -d "$cache/build-XXXXXX") || return
        cp "$(dirname "${BASH_SOURCE[0]}")/nats_keys.go" "$tmp/main.go"
        if ! (cd "$tmp" && printf 'module keys\n' >go.mod && GOFLAGS=-mod=mod go get github.com/nats-io/nkeys@v0.4.16 github.com/nats-io/jwt/v2@v2.8.2 &&
                go build -o keys . && mv keys "$keys") >"$tmp/log" 2>&1; then
                say "cannot build nats_keys.go: $(tail -1 "$tmp/log")"
                rm -rf "$tmp"
                return 1
        fi
        rm -rf "$tmp"
}
kinds() { printf '%s\n' plain user token tls cluster nkey leaf shared weak; }

prepare() {
        local n
        case $kind in
        tls) nodes=2 && make_certificates "$dir/certificates" ;;
        cluster) nodes=3 ;;
        token | leaf) nodes=2 ;;
        nkey) nodes=2 && mkdir -p "$dir/keys" && build_keys && "$keys" "$dir/keys" ;;
        esac || return
        read -ra ports <<<"$(free_ports $((3 * nodes)))"
        for ((n = 1; n <= nodes; n++)); do
                mkdir -p "$dir/$n" && configuration "$n" >"$dir/$n.conf" || return
        done
}
port() { echo "${ports[$1 - 1]}"; }

configuration() { # N
        local n=$1 c=$dir/certificates name=server m routes=''
        echo "server_name: n$n"
        echo "listen: 127.0.0.1:$(port "$n")"
        echo "http: 127.0.0.1:${ports[2 * nodes + n - 1]}"
        echo "max_payload: 8MB"
        echo "write_deadline: 5s"
        case $kind$n in
        token2) ;;
        leaf1) echo "jetstream { store_dir: \"$dir/$n\", sync_interval: always, domain: hub }" ;;
        leaf2) echo "jetstream { store_dir: \"$dir/$n\", sync_interval: always, domain: leaf }" ;;
        weak1) echo "jetstream { store_dir: \"$dir/$n\" }" ;;
        *) echo "jetstream { store_dir: \"$dir/$n\", sync_interval: always }" ;;
        esac
        case $kind in
        user)
                cat <<CONF
accounts {
  A { jetstream: { max_file: 1GB, max_mem: 64MB }, users: [
    { user: omni, password: secret }
    { user: poor, password: secret, permissions: { publish: { deny: "\$JS.>" } } }
    { user: keeper, password: secret, permissions: { publish: { deny: "\$JS.API.STREAM.PURGE.>" } } } ] }
  SMALL { jetstream: { max_file: 2MB, max_mem: 1MB, max_streams: 8, max_consumers: 16 }, users: [ { user: small, password: secret } ] }
  NONE { users: [ { user: none, password: secret } ] }
}
CONF
                ;;
        token) echo 'authorization { token: "s3cret" }' ;;
        nkey)
                if ((n == 1)); then
                        echo "authorization { users: [ { nkey: $(<"$dir/keys/user.pub") } ] }"
                else
                        cat "$dir/keys/resolver.conf"
                fi
                ;;
        leaf)
                if ((n == 1)); then
                        echo "leafnodes { listen: 127.0.0.1:${ports[nodes]} }"
                else
                        echo "leafnodes { remotes: [ { url: \"nats://127.0.0.1:${ports[nodes]}\" } ], reconnect: 1 }"
                fi
                ;;
        tls)
                ((n == 1)) || name=expired
                echo "tls { cert_file: \"$c/$name.pem\", key_file: \"$c/$name.key\", ca_file: \"$c/ca.pem\", verify: true }"
                ;;
        cluster)
                for ((m = 1; m <= nodes; m++)); do routes+=", \"nats://127.0.0.1:${ports[nodes + m - 1]}\""; done
                echo "cluster { name: omni, listen: 127.0.0.1:${ports[nodes + n - 1]}, routes: [${routes#, }] }"
                ;;
        esac
}

node_run() { exec "$server" -c "$dir/$1.conf"; }

# A client's greeting is not enough: JetStream must have recovered, and in a cluster each stream and consumer must have a leader again: an election
# takes NATS 4 to 9 s, and the cluster is not back before it.
node_ready() {
        local said='' monitor=${ports[2 * nodes + $1 - 1]}
        exec 3<>"/dev/tcp/127.0.0.1/$monitor" || return
        printf 'GET /healthz?js-server-only=true HTTP/1.0\r\n\r\n' >&3
        read -r -t 2 said <&3
        exec 3>&-
        [[ $said == *' 200 '* ]] || return
        [[ $kind != cluster ]] || python3 - "$monitor" <<'PYTHON'
import json, sys, urllib.request
url = "http://127.0.0.1:%s/jsz?accounts=true&streams=true&consumers=true" % sys.argv[1]
seen = json.load(urllib.request.urlopen(url, timeout=2))
things = [s for a in seen.get("account_details", []) for s in a.get("stream_detail", [])]
things += [c for s in things for c in s.get("consumer_detail") or []]
sys.exit(any(not t.get("cluster", {}).get("leader") for t in things))
PYTHON
} 2>/dev/null

formed() {
        local deadline=$((SECONDS + 30))
        if [[ $kind == leaf ]]; then
                until grep -q 'Leafnode connection created' "$dir/2.log"; do
                        ((SECONDS < deadline)) || { say "the leaf node does not reach its hub"; return 1; }
                        sleep 0.05
                done
        fi
        [[ $kind == cluster ]] || return 0
        until grep -hq 'JetStream cluster new metadata leader' "$dir"/[123].log; do
                ((SECONDS < deadline)) || { say "the cluster has no leader"; return 1; }
                sleep 0.05
        done
}

urls() {
        local c=$dir/certificates where query='' scheme=nats sync='sync=always&' user='' shared=''
        where=127.0.0.1:$(port 1)
        case $kind in
        user) user=omni:secret@ ;;
        token) query='token=s3cret&' ;;
        tls)
                scheme=tls where=localhost:$(port 1)
                query="tls_ca_file=$c/ca.pem&tls_cert_file=$c/client.pem&tls_key_file=$c/client.key&"
                ;;
        cluster) where=127.0.0.1:$(port 1),127.0.0.1:$(port 2),127.0.0.1:$(port 3) query='replicas=3&' ;;
        nkey) query="nkey=$(<"$dir/keys/user.pub")&nkey_file=$dir/keys/user.nk&" ;;
        leaf) where=127.0.0.1:$(port 2) query='domain=hub&' ;;
        shared) shared='stream={case}-all&' ;;
        weak) sync='' ;;
        esac
        local store=${scheme/nats/nats+kv}
        store=${store/tls/tls+kv}
        echo "bus_url=$scheme://$user$where?$query$sync${shared}prefix={case}"
        echo "store_url=$store://$user$where/{case}?$query${sync%&}"
        case $kind in
        plain)
                echo "bus_env=EVENT_BUS_TYPE=nats"
                echo "bus_env=NATS_URL=nats://$where"
                echo "store_env=STORAGE_BACKEND=nats"
                echo "store_env=NATS_URL=nats://$where"
                echo "wrong_bus=TLS|tls://$where"
                echo "wrong_bus=replicas|nats://$where?replicas=3"
                echo "wrong_bus=resolve|nats://no-such-host.invalid"
                echo "wrong_store=TLS|tls+kv://$where"
                echo "wrong_store=replicas|nats+kv://$where/replicated?replicas=3"
                echo "wrong_store=resolve|nats+kv://no-such-host.invalid"
                ;;
        user)
                echo "wrong_bus=password|nats://omni:wrong@$where"
                echo "wrong_bus=password|nats://$where"
                echo "wrong_bus=permission|nats://poor:secret@$where"
                echo "wrong_bus=JetStream|nats://none:secret@$where"
                echo "wrong_store=password|nats+kv://omni:wrong@$where"
                echo "wrong_store=permission|nats+kv://poor:secret@$where"
                echo "wrong_store=JetStream|nats+kv://none:secret@$where"
                ;;
        token)
                echo "wrong_bus=token|nats://$where?token=wrong"
                echo "wrong_bus=JetStream|nats://127.0.0.1:$(port 2)?token=s3cret"
                echo "wrong_store=token|nats+kv://$where?token=wrong"
                ;;
        nkey)
                for scheme in bus=nats store=nats+kv; do
                        echo "wrong_${scheme%=*}=nkey|${scheme#*=}://$where?nkey=$(<"$dir/keys/stranger.pub")&nkey_file=$dir/keys/stranger.nk"
                        echo "wrong_${scheme%=*}=nkey|${scheme#*=}://$where?nkey=$(<"$dir/keys/user.pub")&nkey_file=$dir/keys/stranger.nk"
                        echo "wrong_${scheme%=*}=credentials_file|${scheme#*=}://127.0.0.1:$(port 2)?credentials_file=$dir/keys/stranger.creds"
                        echo "wrong_${scheme%=*}=credentials_file|${scheme#*=}://127.0.0.1:$(port 2)"
                done
                echo "credentials=nats://127.0.0.1:$(port 2)?credentials_file=$dir/keys/user.creds&${sync}prefix={case}"
                ;;
        shared)
                echo "wrong_bus=stream|nats://$where?stream=omni-state"
                ;;
        leaf)
                echo "wrong_bus=domain|nats://$where?domain=no-such-domain"
                echo "wrong_store=domain|nats+kv://$where?domain=no-such-domain"
                ;;
        tls)
                echo "wrong_bus=TLS|nats://$where"
                echo "wrong_bus=certificate|tls://$where"
                echo "wrong_bus=expired|tls://localhost:$(port 2)?$query"
                echo "wrong_store=certificate|tls+kv://$where"
                echo "wrong_store=expired|tls+kv://localhost:$(port 2)?$query"
                ;;
        esac
        case $kind in
        cluster) printf 'fault=%s\n' "kill-leader;up" "kill 1;up 1" "pause 2;resume 2" "down 3;up 3" "kill;up" ;;
        tls | token | nkey) printf 'fault=%s\n' "kill 1;up 1" "pause 1;resume 1" "down 1;up 1" ;;
        *) printf 'fault=%s\n' "kill;up" "pause;resume" "down;up" ;;
        esac
}

# Who said last that it leads.
leader() { # what it leads, as the log has it
        local n last=''
        last=$(grep -hE "cluster new (stream|consumer|metadata) leader.*$1|new metadata leader: $1" "$dir"/[123].log 2>/dev/null | sort | tail -1)
        n=$(grep -oE 'n[123]' <<<"$last" | tail -1)
        echo "${n#n}"
}
extra() {
        case $1 in
        kill-leader)
                local n
                n=$(leader '')
                node_kill "${n:-1}"
                ;;
        *) return 1 ;;
        esac
}

if [[ ${1:-} == build ]]; then
        build && echo "$server"
else
        server_main "$@"
fi
