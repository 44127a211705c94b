#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How many instructions the daemon spends on a task: a figure that repeats where seconds do not, whatever else the machine does.
#   tests/bench/instructions.sh BUILD_DIR [publish|whole_way|whole_way_results|topics …]
# The daemon runs under callgrind, once with 10,000 tasks and once with 20,000, in batches of 100; the difference is what 10,000 tasks cost
# without start and stop. Nothing is synced: the kernel's part is not counted anyway. CALLGRIND_KEEP=DIR keeps the profiles, one a load,
# for callgrind_annotate.
set -euo pipefail
build=$(realpath "${1:-build}")
shift || true
loads=("$@")
((${#loads[@]})) || loads=(publish whole_way whole_way_results topics)
work=$(mktemp -d /var/tmp/omni-instructions-XXXXXX)
trap 'rm -rf "$work"' EXIT

instructions() { # LOAD TASKS: prints how many the whole run took
        local dir=$work/$1.$2 pid
        mkdir -p "$dir"
        (
                cd "$dir"
                OMNIDAEMON_SOCKET=$dir/d.sock STORAGE_URL="json:$dir/data?durability=memory&compact_min_bytes=1G" \
                        exec valgrind --tool=callgrind --fair-sched=yes --callgrind-out-file="$dir/out" \
                        "$build/bin/omnidaemond" --event-bus-url 'local:?durability=memory' >"$dir/log" 2>&1
        ) &
        pid=$!
        OMNIDAEMON_SOCKET=$dir/d.sock "$build/tests/bench/bench" --drive "$1" "$2"
        kill -TERM $pid
        wait $pid
        sed -nE 's/.*Collected : ([0-9]+).*/\1/p' "$dir/log"
}

printf '%-20s %s\n' "" "instructions a task"
for load in "${loads[@]}"; do
        few=$(instructions "$load" 10000)
        many=$(instructions "$load" 20000)
        printf '%-20s %d\n' "$load" $(((many - few) / 10000))
        if [[ -n ${CALLGRIND_KEEP:-} ]]; then
                mkdir -p "$CALLGRIND_KEEP"
                cp "$work/$load.20000/out" "$CALLGRIND_KEEP/$load.callgrind"
        fi
done
