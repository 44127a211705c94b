#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The real Kafka, one broker that is its own controller (KRaft), got by Maven, once, outside the tree. See lib.sh; `build` prints the folder of its jars.
#   plain      no TLS, no users
#   sasl       SASL: user "omni" (SCRAM-SHA-512) and "poor", who may only look (PLAIN); both mechanisms are open
#   tls        TLS only, clients need a certificate
# KAFKA_ADVERTISED=HOST:PORT: where clients are told that it is, a proxy's address say.
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
version=3.9.1
jars=$cache/kafka-$version
started=0

build() {
        [[ -d $jars ]] && return
        { command -v mvn && command -v java; } >/dev/null || { say "no Maven and Java to get Kafka $version with (apt-get install maven)"; return 1; }
        mkdir -p "$cache"
        (
                flock 9
                [[ -d $jars ]] && exit
                tmp=$(mktemp -d "$cache/build-XXXXXX")
                trap 'rm -rf "$tmp"' EXIT
                cat >"$tmp/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>omnidaemon</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
POM
                if ! (cd "$tmp" && mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$tmp/jars") >"$tmp/log" 2>&1; then
                        say "cannot get Kafka $version: $(grep -m1 ERROR "$tmp/log")"
                        exit 1
                fi
                mv "$tmp/jars" "$jars"
        ) 9>"$cache/kafka.lock"
}
kinds() { printf '%s\n' plain sasl tls; }

java_options=(-Xmx1g -Xms128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info)
kafka() { java "${java_options[@]}" -cp "$jars/*" "$@"; }

prepare() {
        local c=$dir/certificates
        [[ $kind != tls ]] || make_certificates "$c" || return
        read -ra ports <<<"$(free_ports 2)"
        mkdir -p "$dir/data"
        configuration >"$dir/server.properties" || return
        if [[ $kind == tls ]]; then
                cat "$c/server.pem" "$c/ca.pem" >"$c/chain.pem"
                openssl pkcs12 -export -in "$c/chain.pem" -inkey "$c/server.key" -passout pass:secret -out "$c/server.p12" &&
                        keytool -importcert -noprompt -alias ca -file "$c/ca.pem" -storetype PKCS12 -storepass secret -keystore "$c/trust.p12" 2>/dev/null || return
        fi
        local scram=()
        [[ $kind != sasl ]] || scram=(--add-scram 'SCRAM-SHA-512=[name=omni,password=secret]')
        kafka kafka.tools.StorageTool format -t AAAAAAAAQACAAAAAAAAAAQ -c "$dir/server.properties" "${scram[@]}" >"$dir/format.log" 2>&1
}

configuration() {
        local c=$dir/certificates protocol=PLAINTEXT host=127.0.0.1
        case $kind in
        sasl) protocol=SASL_PLAINTEXT ;;
        tls) protocol=SSL host=localhost ;;
        esac
        cat <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:${ports[1]}
listeners=CLIENTS://127.0.0.1:${ports[0]},CONTROLLER://127.0.0.1:${ports[1]}
advertised.listeners=CLIENTS://${KAFKA_ADVERTISED:-$host:${ports[0]}}
listener.security.protocol.map=CLIENTS:$protocol,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
log.dirs=$dir/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
log.segment.bytes=67108864
log.index.size.max.bytes=65536
num.network.threads=2
num.io.threads=4
auto.create.topics.enable=false
delete.topic.enable=true
CONF
        case $kind in
        sasl)
                cat <<CONF
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.clients.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" password="secret" user_admin="secret" user_poor="secret";
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:omni;User:ANONYMOUS
CONF
                ;;
        tls)
                cat <<CONF
ssl.keystore.type=PKCS12
ssl.keystore.location=$c/server.p12
ssl.keystore.password=secret
ssl.key.password=secret
ssl.truststore.type=PKCS12
ssl.truststore.location=$c/trust.p12
ssl.truststore.password=secret
ssl.client.auth=required
CONF
                ;;
        esac
}

node_run() { exec java "${java_options[@]}" -cp "$jars/*" kafka.Kafka "$dir/server.properties"; }

# A port that is open is not enough: the broker must have caught up with its controller.
node_ready() {
        (($(grep -c 'Kafka Server started' "$dir/$1.log") > started))
} 2>/dev/null
node_launch() {
        alive "$1" && return
        started=$(grep -c 'Kafka Server started' "$dir/$1.log" 2>/dev/null)
        started=${started:-0} # times, before this one
        node_run "$1" </dev/null >>"$dir/$1.log" 2>&1 &
        pids[$1]=$!
}

urls() {
        local c=$dir/certificates where=127.0.0.1:${ports[0]} tls
        case $kind in
        plain)
                echo "bus_url=kafka://$where?session_timeout_ms=3s&prefix={case}"
                echo "bus_env=EVENT_BUS_TYPE=kafka"
                echo "bus_env=KAFKA_SERVERS=$where"
                echo "wrong_bus=resolve|kafka://no-such-host.invalid"
                echo "wrong_bus=replicas|kafka://$where?replicas=3&prefix=wrong"
                echo "wrong_bus=tls|kafka://$where?tls=true"
                ;;
        sasl)
                echo "bus_url=kafka://omni:secret@$where?sasl=scram-sha-512&session_timeout_ms=3s&prefix={case}"
                echo "wrong_bus=password|kafka://omni:wrong@$where?sasl=scram-sha-512"
                echo "wrong_bus=password|kafka://poor:wrong@$where"
                echo "wrong_bus=permission|kafka://poor:secret@$where?prefix=wrong"
                echo "wrong_bus=sasl|kafka://$where"
                echo "wrong_bus=sasl|kafka://omni:secret@$where?sasl=scram-sha-256"
                ;;
        tls)
                where=localhost:${ports[0]}
                tls="tls=true&tls_ca_file=$c/ca.pem&tls_cert_file=$c/client.pem&tls_key_file=$c/client.key"
                echo "bus_url=kafka://$where?$tls&session_timeout_ms=3s&prefix={case}"
                echo "wrong_bus=tls|kafka://$where"
                echo "wrong_bus=tls_ca_file|kafka://$where?tls=true"
                echo "wrong_bus=tls_cert_file|kafka://$where?tls=true&tls_ca_file=$c/ca.pem"
                ;;
        esac
        printf 'fault=%s\n' "kill;up" "pause;resume" "down;up"
}


if [[ ${1:-} == build ]]; then
        build && echo "$jars"
else
        server_main "$@"
fi
