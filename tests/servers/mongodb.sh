#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real server of MongoDB's protocol: FerretDB with its SQLite backend, built from its Go module, once, outside the tree. See lib.sh. MongoDB's own server is not
# to be had as a package of Debian; what differs (TTL and text indexes, replica sets) is said in backends/README.md. One line of FerretDB is changed: it looks for
# an _id by another expression than that of the index that it makes for it, and so reads the whole collection for each document (30 ms with 20,000).
#   plain      one server
#   tls        the same over TLS only, clients need a certificate; a second node of it has an expired certificate
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
version=v1.24.0
server=$cache/mongodb-server-ferretdb-$version-indexed

build() {
        [[ -x $server ]] && return
        command -v go >/dev/null || { say "no Go compiler to build FerretDB $version with"; return 1; }
        local looks=vendor/github.com/FerretDB/FerretDB/internal/backends/sqlite/metadata/metadata.go
        mkdir -p "$cache"
        (
                flock 9
                [[ -x $server ]] && exit
                tmp=$(mktemp -d "$cache/build-XXXXXX")
                trap 'rm -rf "$tmp"' EXIT
                cp "$(dirname "${BASH_SOURCE[0]}")/mongodb_server.go" "$tmp/main.go"
                if ! (cd "$tmp" && printf 'module server\n' >go.mod && go get "github.com/FerretDB/FerretDB@$version" && go mod tidy && go mod vendor &&
                        sed -i "/IDColumn = /s/'\$\._id'/'_id'/" "$looks" && grep -q "IDColumn = .*->'_id'" "$looks" &&
                        go build -mod=vendor -o server . && mv server "$server") >"$tmp/log" 2>&1; then
                        say "cannot build FerretDB $version: $(tail -1 "$tmp/log")"
                        exit 1
                fi
        ) 9>"$cache/mongodb.lock"
}
kinds() { printf '%s\n' plain tls; }
port() { echo "${ports[$1 - 1]}"; }

prepare() {
        local n
        [[ $kind != tls ]] || { nodes=2 && make_certificates "$dir/certificates"; } || return
        [[ $kind != tls ]] || cat "$dir/certificates/client.pem" "$dir/certificates/client.key" >"$dir/certificates/both.pem" || return
        read -ra ports <<<"$(free_ports "$nodes")"
        for ((n = 1; n <= nodes; n++)); do mkdir -p "$dir/$n" || return; done
}

# Half of its time is collecting garbage: it decodes every document for a page of a list. With memory to spare it collects rarely.
export GOGC=1000 GOMEMLIMIT=1GiB
node_run() {
        local c=$dir/certificates name=server
        (($1 == 1)) || name=expired
        if [[ $kind == tls ]]; then
                exec "$server" "127.0.0.1:$(port "$1")" "$dir/$1" "$c/$name.pem" "$c/$name.key" "$c/ca.pem"
        fi
        exec "$server" "127.0.0.1:$(port "$1")" "$dir/$1"
}
node_ready() { (exec 3<>"/dev/tcp/127.0.0.1/$(port "$1")") 2>/dev/null; }

urls() {
        local c=$dir/certificates where query=''
        where=127.0.0.1:$(port 1)
        if [[ $kind == tls ]]; then
                where=localhost:$(port 1)
                query="?tls=true&tlsCAFile=$c/ca.pem&tlsCertificateKeyFile=$c/both.pem"
        fi
        echo "store_url=mongodb://$where/{case}$query"
        if [[ $kind == plain ]]; then
                echo "store_env=STORAGE_BACKEND=mongodb"
                echo "store_env=MONGODB_URI=mongodb://$where/{case}"
                echo "wrong_store=TLS|mongodb://$where/x?tls=true"
                echo "wrong_store=resolve|mongodb://no-such-host.invalid/x"
                echo "wrong_store=replicaSet|mongodb://$where/x?replicaSet=nowhere"
                printf 'fault=%s\n' "kill;up" "pause;resume" "down;up"
        else
                echo "wrong_store=tls=true|mongodb://$where/x"
                echo "wrong_store=tlsCertificateKeyFile|mongodb://$where/x?tls=true&tlsCAFile=$c/ca.pem"
                echo "wrong_store=tlsCAFile|mongodb://$where/x?tls=true&tlsCertificateKeyFile=$c/both.pem"
                echo "wrong_store=expired|mongodb://localhost:$(port 2)/x$query"
                printf 'fault=%s\n' "kill 1;up 1" "pause 1;resume 1" "down 1;up 1"
        fi
}

server_main "$@"
