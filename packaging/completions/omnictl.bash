# bash completion for omnictl and omnidaemon. Printed by: omnictl completion bash
_omnictl() {
        local -a words=()
        local i word line last prefix
        COMPREPLY=()
        # bash parts words at "=" and ":"; they are put together again.
        for ((i = 1; i <= COMP_CWORD; i++)); do
                word=${COMP_WORDS[i]}
                if ((${#words[@]})) && [[ $word == [=:]* || ${COMP_WORDS[i - 1]} == *[=:] ]]; then
                        words[-1]+=$word
                else
                        words+=("$word")
                fi
        done
        last=${words[-1]}
        prefix=${last%"${last##*[=:]}"}
        while IFS= read -r line; do
                case $line in
                :files) compopt -o filenames && mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "${last#"$prefix"}") ;;
                :programs) mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -c -- "$last") ;;
                *) line=${line%%$'\t'*} && COMPREPLY+=("${line#"$prefix"}") ;;
                esac
        done < <("${COMP_WORDS[0]}" __complete -- "${words[@]}" 2>/dev/null)
}
complete -F _omnictl omnictl omnidaemon
