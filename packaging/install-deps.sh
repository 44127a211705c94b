#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs by apt what a build, the tests or the linters miss on Debian 12; quiet and instant when nothing is missing.
#   packaging/install-deps.sh [build] [test] [lint] [clang] [bench] [MODULE, redis say, …]
set -euo pipefail

declare -A packages=(
        [build]="gcc make pkg-config libc6-dev libevent-dev liblmdb-dev libsystemd-dev uthash-dev"
        [redis]="libhiredis-dev libssl-dev"
        [kafka]="librdkafka-dev"
        [rabbitmq]="librabbitmq-dev libssl-dev"
        [nats]="libnats-dev"
        [postgresql]="libpq-dev"
        [mongodb]="libmongoc-dev"
        [s3]="libcurl4-openssl-dev libexpat1-dev libssl-dev"
        [test]="check curl g++ libjansson-dev python3 python3-venv tmux procps valgrind e2fsprogs mount openssl redis-server postgresql rabbitmq-server python3-pika kcat maven default-jre-headless"
        [lint]="clang clang-format clang-tidy codespell shellcheck"
        [clang]="clang libclang-rt-14-dev llvm"
        [bench]="beanstalkd curl libcurl4-openssl-dev libnats-dev libhiredis-dev librabbitmq-dev librdkafka-dev libmongoc-dev libpq-dev maven default-jre-headless redis-server postgresql rabbitmq-server python3-venv valgrind"
)
wanted=()
for group in "${@:-build}"; do
        [[ -v packages[$group] ]] || { echo "install-deps: no group \"$group\"; known: ${!packages[*]}" >&2; exit 2; }
        read -ra more <<<"${packages[$group]}"
        wanted+=("${more[@]}")
done

missing=()
for p in "${wanted[@]}"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
done
((${#missing[@]})) || exit 0

command -v apt-get >/dev/null || {
        echo "install-deps: these are missing and there is no apt-get to install them: ${missing[*]}" >&2
        exit 1
}
sudo=()
if ((EUID != 0)); then
        command -v sudo >/dev/null || {
                echo "install-deps: run as root, or install first: apt-get install ${missing[*]}" >&2
                exit 1
        }
        sudo=(sudo)
fi
echo "installing: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
        "${sudo[@]}" apt-get update -qq >&2
        "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
