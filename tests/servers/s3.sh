#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An S3 server: MinIO, built from its Go module, once, outside the tree; Amazon's own is not to be had for tests. See lib.sh; `build` prints where it is.
#   plain      one server, over HTTP
#   tls        TLS only, in the region eu-test-1; a second node of it has an expired certificate
#   replica    two servers: the second has a copy, as far as whoever uses it writes one
# Its files are in memory where that can be had, for it syncs each of them and only its process is ever killed; with OMNI_TEST_ON_DISK=1 they are in DIR.
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
version=v0.0.0-20260212201848-7aac2a2c5b7c
server=$cache/minio-${version##v0.0.0-}
user=omnitester secret='omni/secret+1'
bucket=omnidaemon-test

build() {
        [[ -x $server ]] && return
        command -v go >/dev/null || { say "no Go compiler to build MinIO $version with"; return 1; }
        mkdir -p "$cache"
        (
                flock 9
                [[ -x $server ]] && exit
                tmp=$(mktemp -d "$cache/build-XXXXXX")
                trap 'rm -rf "$tmp"' EXIT
                if ! GOBIN=$tmp go install -trimpath -ldflags=-s "github.com/minio/minio@$version" >"$tmp/log" 2>&1; then
                        say "cannot build MinIO $version: $(tail -1 "$tmp/log")"
                        exit 1
                fi
                mv "$tmp/minio" "$server"
        ) 9>"$cache/minio.lock"
}
kinds() { printf '%s\n' plain tls replica; }

prepare() {
        local n
        [[ $kind == plain ]] || nodes=2
        if [[ $kind == tls ]]; then
                make_certificates "$dir/certificates" || return
                for n in 1 2; do
                        mkdir -p "$dir/certs$n/CAs" || return
                        cp "$dir/certificates/$( ((n == 1)) && echo server || echo expired).pem" "$dir/certs$n/public.crt" &&
                                cp "$dir/certificates/$( ((n == 1)) && echo server || echo expired).key" "$dir/certs$n/private.key" || return
                done
        fi
        read -ra ports <<<"$(free_ports "$nodes")"
        data=$dir/data
        [[ -z ${OMNI_TEST_ON_DISK:-} && -w /dev/shm ]] || return 0
        data=$(mktemp -d /dev/shm/omni-s3-XXXXXX)/data || return
        # Gone with this script, however that ends; its whole group may be killed.
        setsid sh -c "tail --pid=$$ -f /dev/null; rm -rf '${data%/data}'" </dev/null >/dev/null 2>&1 &
}
address() { echo "127.0.0.1:${ports[$1 - 1]}"; }
endpoint() { if [[ $kind == tls ]]; then echo "https://localhost:${ports[$1 - 1]}"; else echo "http://$(address "$1")"; fi; }
region() { if [[ $kind == tls ]]; then echo eu-test-1; else echo us-east-1; fi; }

node_run() {
        mkdir -p "$data$1"
        MINIO_ROOT_USER=$user MINIO_ROOT_PASSWORD=$secret MINIO_BROWSER=off MINIO_UPDATE=off MINIO_SITE_REGION=$(region) GOMAXPROCS=2 GOGC=400 \
                exec "$server" server "$data$1" --quiet --address "$(address "$1")" --certs-dir "$dir/certs$1"
}

# A request as the server's owner; what it answers on standard output.
signed() { # CURL-ARGUMENT …
        curl -sS --max-time 10 --cacert "$dir/certificates/ca.pem" --aws-sigv4 "aws:amz:$(region):s3" -u "$user:$secret" "$@" 2>>"$dir/curl.log"
}
node_ready() {
        local insecure=()
        [[ $kind != tls ]] || insecure=(-k)
        [[ $(curl -s "${insecure[@]}" --max-time 2 -o /dev/null -w '%{http_code}' "$(endpoint "$1")/minio/health/ready") == 200 ]] || return
        [[ $kind$1 != tls2 ]] || return 0
        # It says that it is ready before it serves: it does when it makes the bucket, or has it.
        [[ $(signed -o /dev/null -w '%{http_code}' -X PUT "$(endpoint "$1")/$bucket") =~ ^(200|409)$ ]]
}

encoded() { python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.argv[1], safe="{}"))' "$1"; }

urls() {
        local who ca='' where query replica=''
        who=$(encoded "$user"):$(encoded "$secret")
        where=$(endpoint 1)
        [[ $kind != tls ]] || ca="&region=eu-test-1&tls_ca_file=$dir/certificates/ca.pem"
        [[ $kind != replica ]] || replica="&replica=$(encoded "s3://$bucket?endpoint=$(endpoint 2)")"
        query="endpoint=$where$ca"
        echo "store_url=s3://$who@$bucket/{case}?$query$replica"
        case $kind in
        plain)
                echo "store_env=STORAGE_BACKEND=s3"
                echo "store_env=S3_BUCKET=$bucket"
                echo "store_env=S3_ENDPOINT=$where"
                echo "store_env=AWS_ACCESS_KEY_ID=$user"
                echo "store_env=AWS_SECRET_ACCESS_KEY=$secret"
                echo "wrong_store=AWS_ACCESS_KEY_ID|s3://nobody:$(encoded "$secret")@$bucket?$query"
                echo "wrong_store=AWS_SECRET_ACCESS_KEY|s3://$user:wrong@$bucket?$query"
                echo "wrong_store=bucket|s3://$who@no-such-bucket?$query"
                echo "wrong_store=resolve|s3://$who@$bucket?endpoint=http://no-such-host.invalid"
                echo "wrong_store=TLS|s3://$who@$bucket?endpoint=https://$(address 1)"
                ;;
        tls)
                echo "wrong_store=tls_ca_file|s3://$who@$bucket?endpoint=$where&region=eu-test-1"
                echo "wrong_store=region=eu-test-1|s3://$who@$bucket?endpoint=$where&region=us-west-2&tls_ca_file=$dir/certificates/ca.pem"
                echo "wrong_store=expired|s3://$who@$bucket?endpoint=$(endpoint 2)$ca"
                echo "wrong_store=endpoint|s3://$who@$bucket?endpoint=http://$(address 1)&region=eu-test-1"
                ;;
        replica) echo "replica_url=s3://$who@$bucket/{case}?endpoint=$(endpoint 2)" ;;
        esac
        printf 'fault=%s\n' "kill 1;up 1" "pause 1;resume 1" "down 1;up 1"
}

if [[ ${1:-} == build ]]; then
        build && echo "$server"
else
        server_main "$@"
fi
