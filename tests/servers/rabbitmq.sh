#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The real RabbitMQ, Debian's, as private nodes with an epmd of their own: see lib.sh.
#   plain      one node
#   user       the same with a virtual host "team" and its user "omni"; "poor" has no permissions there; the host "full" may hold no queue
#   classic    the same as plain; the URL asks for classic queues, which have priorities
#   nolog      the same as plain; the URL asks for no logs of topics
#   tls        TLS only, clients need a certificate; a second node of it has an expired certificate
#   cluster    three nodes
# `ctl [N] …` runs rabbitmqctl on node N, `alarm on|off` sets and clears the memory alarm.
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
home=/usr/lib/rabbitmq
epmd_pid=''

build() {
        [[ -x $home/bin/rabbitmq-server ]] && command -v epmd >/dev/null && return
        say "Debian's rabbitmq-server is not installed"
        return 1
}
kinds() { printf '%s\n' plain user classic nolog tls cluster; }

prepare() {
        local n
        case $kind in
        tls) nodes=2 && make_certificates "$dir/certificates" ;;
        cluster) nodes=3 ;;
        esac || return
        read -ra ports <<<"$(free_ports $((2 * nodes + 1)))"
        export HOME=$dir/home ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=${ports[2 * nodes]}
        mkdir -p "$HOME" && umask 077
        [[ -s $HOME/.erlang.cookie ]] || head -c 24 /dev/urandom | base64 | tr -dc A-Za-z0-9 >"$HOME/.erlang.cookie"
        chmod 400 "$HOME/.erlang.cookie"
        echo '[].' >"$dir/plugins"
        for ((n = 1; n <= nodes; n++)); do configuration "$n" >"$dir/$n.conf" || return; done
        epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" </dev/null >>"$dir/epmd.log" 2>&1 &
        epmd_pid=$!
}
ended() { [[ -z $epmd_pid ]] || kill -KILL "$epmd_pid" 2>/dev/null; }
port() { echo "${ports[$1 - 1]}"; }
name() { echo "omni$1@localhost"; }

configuration() { # N
        local n=$1 c=$dir/certificates certificate=server m
        echo "log.console = true"
        echo "log.file = false"
        echo "heartbeat = 10"
        echo "vm_memory_high_watermark.absolute = 4GiB"
        echo "disk_free_limit.absolute = 50MB"
        echo "max_message_size = 16777216"
        if [[ $kind == tls ]]; then
                ((n == 1)) || certificate=expired
                echo "listeners.tcp = none"
                echo "listeners.ssl.default = 127.0.0.1:$(port "$n")"
                echo "ssl_options.cacertfile = $c/ca.pem"
                echo "ssl_options.certfile = $c/$certificate.pem"
                echo "ssl_options.keyfile = $c/$certificate.key"
                echo "ssl_options.verify = verify_peer"
                echo "ssl_options.fail_if_no_peer_cert = true"
        else
                echo "listeners.tcp.default = 127.0.0.1:$(port "$n")"
        fi
        if [[ $kind == cluster ]]; then
                echo "cluster_formation.peer_discovery_backend = classic_config"
                for ((m = 1; m <= nodes; m++)); do echo "cluster_formation.classic_config.nodes.$m = $(name "$m")"; done
        fi
}

# What looks like systemd makes the start script become the node, so that a signal to it is one to the node.
node_run() {
        cd "$dir" || return
        export RABBITMQ_NODENAME RABBITMQ_MNESIA_BASE=$dir/mnesia RABBITMQ_LOG_BASE=$dir/log RABBITMQ_CONFIG_FILE=$dir/$1 NOTIFY_SOCKET=$dir/none \
                RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins RABBITMQ_PID_FILE=$dir/$1.pid RABBITMQ_DIST_PORT=${ports[nodes + $1 - 1]} \
                RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
        RABBITMQ_NODENAME=$(name "$1")
        exec "$home/bin/rabbitmq-server"
}
# It answers a client's greeting with its own, which it does when it has recovered all that it holds.
node_ready() {
        if [[ $kind == tls ]]; then
                openssl s_client -connect "127.0.0.1:$(port "$1")" -cert "$dir/certificates/client.pem" -key "$dir/certificates/client.key" </dev/null 2>/dev/null | grep -q BEGIN
                return
        fi
        local said=''
        exec 3<>"/dev/tcp/127.0.0.1/$(port "$1")" || return
        printf 'AMQP\0\0\11\1' >&3
        IFS= read -r -t 2 -n 1 said <&3
        exec 3>&-
        [[ $said == $'\1' ]]
} 2>/dev/null

# RabbitMQ 3.10 writes down which quorum queues a node has some time after they were made, and one that is killed before that brings them back without a
# leader. That is a fault of its own, which no client can make good: what is killed here has had the time.
node_kill() {
        [[ -z $(trap -p EXIT) ]] || sleep 1.5
        node_signal KILL "$1"
        node_gone "$1"
}

ctl() { # N WORD …
        local n=$1
        shift
        RABBITMQ_NODENAME=$(name "$n") "$home/bin/rabbitmqctl" -q -n "$(name "$n")" "$@" >>"$dir/ctl.log" 2>&1 || { say "rabbitmqctl $*: $(tail -2 "$dir/ctl.log" | tr '\n' ' ')"; return 1; }
}

# RabbitMQ 3.10 starts what coordinates its streams with the first of them, and writes down that it has some seconds later: a node that is killed before that
# never has its streams again (none of a later version was tried). No test is about that: each node has one, and has written it down.
warm_up() {
        ctl 1 eval 'rabbit_amqqueue:declare(rabbit_misc:r(<<"/">>, queue, <<"warm-up">>), true, false, [{<<"x-queue-type">>, longstr, <<"stream">>}], none, <<"test">>),
                timer:sleep(200), [dets:sync(T) || T <- dets:all()].'
}

formed() {
        warm_up || return
        case $kind in
        user)
                ctl 1 eval '
                        rabbit_vhost:add(<<"team">>, <<"test">>), rabbit_vhost:add(<<"full">>, <<"test">>),
                        [rabbit_auth_backend_internal:add_user(U, <<"secret">>, <<"test">>) || U <- [<<"omni">>, <<"poor">>, <<"reader">>]],
                        rabbit_auth_backend_internal:set_permissions(<<"omni">>, <<"team">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>),
                        rabbit_auth_backend_internal:set_permissions(<<"omni">>, <<"full">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>),
                        rabbit_auth_backend_internal:set_permissions(<<"reader">>, <<"team">>, <<"^$">>, <<"^$">>, <<".*">>, <<"test">>).' &&
                        ctl 1 set_vhost_limits -p full '{"max-queues": 0}'
                ;;
        cluster) ctl 1 await_online_nodes 3 ;;
        esac
}

urls() {
        local c=$dir/certificates where query='' scheme=amqp user='' host=''
        where=127.0.0.1:$(port 1)
        case $kind in
        user) user=omni:secret@ host=/team ;;
        classic) query='queue_type=classic&' ;;
        nolog) query='log=false&' ;;
        tls) scheme=amqps where=localhost:$(port 1) query="tls_ca_file=$c/ca.pem&tls_cert_file=$c/client.pem&tls_key_file=$c/client.key&" ;;
        cluster) where=127.0.0.1:$(port 1),127.0.0.1:$(port 2),127.0.0.1:$(port 3) ;;
        esac
        echo "bus_url=$scheme://$user$where$host?${query}prefix={case}"
        case $kind in
        plain)
                echo "bus_env=EVENT_BUS_TYPE=rabbitmq"
                echo "bus_env=RABBITMQ_URL=amqp://$where"
                echo "wrong_bus=password|amqp://guest:wrong@$where"
                echo "wrong_bus=virtual host|amqp://$where/nowhere"
                echo "wrong_bus=amqp|amqps://$where"
                echo "wrong_bus=resolved|amqp://no-such-host.invalid"
                echo "wrong_bus=exchange_type|amqp://$where?exchange=amq.fanout"
                ;;
        user)
                echo "wrong_bus=password|amqp://omni:wrong@$where/team"
                echo "wrong_bus=virtual host|amqp://poor:secret@$where/team"
                echo "wrong_bus=permission|amqp://reader:secret@$where/team"
                echo "wrong_bus=limit|amqp://omni:secret@$where/full"
                ;;
        tls)
                echo "wrong_bus=amqps|amqp://$where"
                echo "wrong_bus=tls_ca_file|amqps://$where"
                echo "wrong_bus=tls_cert_file|amqps://$where?tls_ca_file=$c/ca.pem"
                echo "wrong_bus=expired|amqps://localhost:$(port 2)?$query"
                ;;
        esac
        case $kind in
        cluster) printf 'fault=%s\n' "kill 1;up 1" "pause 2;resume 2" "down 3;up 3" ;;
        tls) printf 'fault=%s\n' "kill 1;up 1" "pause 1;resume 1" ;;
        *) printf 'fault=%s\n' "kill;up" "pause;resume" "down;up" ;;
        esac
}

extra() {
        local n=1
        case $1 in
        ctl)
                shift
                [[ $1 =~ ^[0-9]+$ ]] && n=$1 && shift
                ctl "$n" "$@"
                ;;
        alarm) ctl 1 set_vm_memory_high_watermark "$([[ $2 == on ]] && echo 0.0000001 || echo 0.8)" ;;
        *) return 1 ;;
        esac
}

server_main "$@"
