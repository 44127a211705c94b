/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `omnictl completion SHELL` prints. The same texts stand in packaging/completions for packages; a test compares them. They know
 * nothing of the commands: they ask `omnictl __complete`.
 */
#include "ctl.h"

static const char bash_script[] =
        "# bash completion for omnictl and omnidaemon. Printed by: omnictl completion bash\n"
        "_omnictl() {\n"
        "        local -a words=()\n"
        "        local i word line last prefix\n"
        "        COMPREPLY=()\n"
        "        # bash parts words at \"=\" and \":\"; they are put together again.\n"
        "        for ((i = 1; i <= COMP_CWORD; i++)); do\n"
        "                word=${COMP_WORDS[i]}\n"
        "                if ((${#words[@]})) && [[ $word == [=:]* || ${COMP_WORDS[i - 1]} == *[=:] ]]; then\n"
        "                        words[-1]+=$word\n"
        "                else\n"
        "                        words+=(\"$word\")\n"
        "                fi\n"
        "        done\n"
        "        last=${words[-1]}\n"
        "        prefix=${last%\"${last##*[=:]}\"}\n"
        "        while IFS= read -r line; do\n"
        "                case $line in\n"
        "                :files) compopt -o filenames && mapfile -t -O \"${#COMPREPLY[@]}\" COMPREPLY < <(compgen -f -- "
        "\"${last#\"$prefix\"}\") ;;\n"
        "                :programs) mapfile -t -O \"${#COMPREPLY[@]}\" COMPREPLY < <(compgen -c -- \"$last\") ;;\n"
        "                *) line=${line%%$'\\t'*} && COMPREPLY+=(\"${line#\"$prefix\"}\") ;;\n"
        "                esac\n"
        "        done < <(\"${COMP_WORDS[0]}\" __complete -- \"${words[@]}\" 2>/dev/null)\n"
        "}\n"
        "complete -F _omnictl omnictl omnidaemon\n";

static const char zsh_script[] = "#compdef omnictl omnidaemon\n"
                                 "# zsh completion for omnictl and omnidaemon. Printed by: omnictl completion zsh\n"
                                 "_omnictl() {\n"
                                 "        local -a lines candidates\n"
                                 "        local line\n"
                                 "        lines=(\"${(@f)$(\"${words[1]}\" __complete -- \"${(@)words[2,CURRENT]}\" 2>/dev/null)}\")\n"
                                 "        for line in $lines; do\n"
                                 "                case $line in\n"
                                 "                :files) _files ;;\n"
                                 "                :programs) _command_names -e ;;\n"
                                 "                ?*) candidates+=(\"${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}\") ;;\n"
                                 "                esac\n"
                                 "        done\n"
                                 "        (($#candidates)) && _describe omnictl candidates\n"
                                 "}\n"
                                 "if [[ $funcstack[1] == _omnictl ]]; then\n"
                                 "        _omnictl \"$@\"\n"
                                 "else\n"
                                 "        compdef _omnictl omnictl omnidaemon\n"
                                 "fi\n";

static const char fish_script[] = "# fish completion for omnictl and omnidaemon. Printed by: omnictl completion fish\n"
                                  "function __omnictl_complete\n"
                                  "    set -l words (commandline -opc) (commandline -ct)\n"
                                  "    for line in ($words[1] __complete -- $words[2..-1] 2>/dev/null)\n"
                                  "        switch $line\n"
                                  "            case :files\n"
                                  "                __fish_complete_path (commandline -ct)\n"
                                  "            case :programs\n"
                                  "                __fish_complete_command\n"
                                  "            case '*'\n"
                                  "                echo $line\n"
                                  "        end\n"
                                  "    end\n"
                                  "end\n"
                                  "complete -c omnictl -f -a '(__omnictl_complete)'\n"
                                  "complete -c omnidaemon -f -a '(__omnictl_complete)'\n";

int cmd_completion(struct ctl *ctl) {
        static const char *const scripts[] = { bash_script, zsh_script, fish_script };

        om_buf_puts(&ctl->out, scripts[args_number(&ctl->args, "shell", 0)]);
        return 0;
}
