# fish completion for omnictl and omnidaemon. Printed by: omnictl completion fish
function __omnictl_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in ($words[1] __complete -- $words[2..-1] 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path (commandline -ct)
            case :programs
                __fish_complete_command
            case '*'
                echo $line
        end
    end
end
complete -c omnictl -f -a '(__omnictl_complete)'
complete -c omnidaemon -f -a '(__omnictl_complete)'
