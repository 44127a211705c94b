#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make demo` shows: a daemon on its defaults, a plain program as an agent, a few hundred tasks, their results, a dead letter.
#   packaging/demo.sh [BUILD_DIR]
# Everything happens in a folder of its own, which goes when the script ends, however it ends; so do the processes.
set -euo pipefail

build=$(realpath "${1:-build}")
[[ -x $build/bin/omnidaemond && -x $build/bin/omnictl ]] || { echo "demo: nothing is built in $build; run: make" >&2; exit 1; }
folder=$(mktemp -d /tmp/omnidaemon-demo.XXXXXX)
daemon='' agent=''

end() { # a process of ours, and its end
        [[ -z $1 ]] || ! kill -TERM "$1" 2>/dev/null || wait "$1" 2>/dev/null || true
}
cleanup() {
        trap - EXIT
        end "$agent"
        end "$daemon"
        rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

cd "$folder"
export OMNIDAEMON_SOCKET=$folder/omnidaemon.sock
export PATH=$build/bin:$PATH
unset XDG_RUNTIME_DIR NOTIFY_SOCKET

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
        bold=$'\e[1m' cyan=$'\e[36m' dim=$'\e[2m' plain=$'\e[0m'
        format=()
else
        bold='' cyan='' dim='' plain=''
        format=(--format table)
fi
heading() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
remark() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
shown() { printf '%s$ %s%s\n' "$cyan" "$*" "$plain"; }
run() { # shows a command, then its output
        shown "$@"
        "$@"
}
wait_until() { # something that becomes true; fails after ten seconds
        local tries=0
        until "$@" >/dev/null 2>&1; do
                ((++tries < 200)) || { echo "demo: this did not come true: $*" >&2; cat "$folder"/*.log >&2; exit 1; }
                sleep 0.05
        done
}

heading "1. A daemon, with no settings at all"
shown "omnidaemond &"
omnidaemond >daemon.log 2>&1 &
daemon=$!
wait_until omnictl health -q
run omnictl health "${format[@]}"

heading "2. A plain program becomes an agent"
cat >count-words.sh <<'PROGRAM'
#!/bin/sh
# Counts the words and letters of a text on standard input. Knows nothing of OmniDaemon.
text=$(cat)
case $text in
*"no words"*) echo "it says that it has no words" >&2; exit 1 ;;
esac
set -- $(printf '%s' "$text" | wc -wm)
echo "{\"words\": $1, \"letters\": $2}"
PROGRAM
chmod +x count-words.sh
run cat count-words.sh
shown "omnictl agent run --topic words --name counter --workers 2 --raw --retry-limit 1 --retry-backoff 200ms -- ./count-words.sh &"
omnictl agent run --topic words --name counter --workers 2 --raw --retry-limit 1 --retry-backoff 200ms -- ./count-words.sh >agent.log 2>&1 &
agent=$!
wait_until omnictl agent get words counter

heading "3. A few hundred tasks: pieces of the texts on this machine"
# Paragraphs of licences and other texts, a line each; without any such file, of this script.
texts=()
for f in /usr/share/common-licenses/* /usr/share/perl/5.*/*/*.txt /usr/share/doc/*/*.txt; do
        [[ -f $f && ! -L $f && ${#texts[@]} -lt 60 ]] && texts+=("$f")
done
((${#texts[@]})) || texts=("${BASH_SOURCE[0]}")
iconv -c -f UTF-8 -t UTF-8 -- "${texts[@]}" 2>/dev/null |
        awk -v RS='' '{ gsub(/[[:space:]]+/, " "); if (length($0) > 40) print }' | head -n 300 >pieces.txt || true
echo "This piece has no words, or so it says." >>pieces.txt
remark "$(wc -l <pieces.txt) pieces from ${#texts[@]} files; one of them makes the program fail, which is seen below."
shown "omnictl task publish --topic words --text --lines --wait --file pieces.txt"
omnictl task publish --topic words --text --lines --wait --file pieces.txt --format compact >results.txt || true
remark "$(grep -c $'\tcompleted\t' results.txt || true) results came back."

heading "4. Results"
run omnictl task list --status completed --limit 6 "${format[@]}"

heading "5. The task that failed, twice, is a dead letter"
run omnictl dlq list "${format[@]}"
run omnictl dlq show words counter "$(omnictl dlq list words counter --format compact | cut -f3)" "${format[@]}"

heading "6. What the daemon says of itself"
run omnictl bus stats "${format[@]}"
run omnictl metrics "${format[@]}"
run omnictl health "${format[@]}"

heading "7. A clean stop"
kill -TERM "$agent"
wait "$agent"
agent=''
shown "kill -TERM $daemon"
kill -TERM "$daemon"
status=0
wait "$daemon" || status=$?
daemon=''
remark "The daemon ended with exit code $status."
((status == 0)) || { cat daemon.log >&2; exit 1; }

heading "What to try next"
cat <<NEXT
  export PATH=$build/bin:\$PATH
  omnidaemond                                                     a daemon in this terminal
  omnictl agent run --topic words --name counter -- wc -w         in another: any program as an agent
  omnictl task publish --topic words --text --wait "to be or not"
  omnictl top                                                     and omnictl watch, to look on
  omnictl --help
NEXT
