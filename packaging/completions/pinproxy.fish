# fish completion for pinproxy.

# Behind -- is a command of its own.
function __pinproxy_command
    set -l words (commandline -opc)
    set -l dash (contains -i -- -- $words); or return
    set -l command (string escape -- $words[(math $dash + 1)..])
    complete -C (string join ' ' -- $command (commandline -ct))
end

set -l host 'not __fish_seen_subcommand_from check status cleanup'
set -l ruled 'not __fish_seen_subcommand_from status cleanup'
set -l asking 'not __fish_seen_subcommand_from cleanup'
complete -c pinproxy -f
complete -c pinproxy -n 'contains -- -- (commandline -opc)' -a '(__pinproxy_command)'
complete -c pinproxy -n __fish_use_subcommand -a check -d 'which rule, which port, and what stands in the way'
complete -c pinproxy -n __fish_use_subcommand -a status -d 'rules, ports, flows and failures'
complete -c pinproxy -n __fish_use_subcommand -a cleanup -d 'undo what a killed pinproxy left behind'
complete -c pinproxy -s h -l help -d 'print the usage'
complete -c pinproxy -n $host -l version -d 'print the version'
complete -c pinproxy -n $ruled -s r -l rule -x -d 'add a rule'
complete -c pinproxy -n $ruled -s f -l rules -r -F -d 'read rules from a file'
complete -c pinproxy -n $host -l tun -x -d 'name of the TUN device'
complete -c pinproxy -n $host -l offload -x -a 'auto off' -d 'offload on the device'
complete -c pinproxy -n $ruled -l dial-timeout -x -d 'how long a destination may take to answer'
complete -c pinproxy -n $host -l strict -d 'also capture sockets bound to a source address'
complete -c pinproxy -n $host -l gateway -x -a '(command ls /sys/class/net 2>/dev/null)' -d 'also pin what hosts behind a device send'
complete -c pinproxy -n $host -l host-loopback -x -d 'where a command reaches the loopback of this host'
complete -c pinproxy -n $host -l dry-run -d 'print changes to the host, and change nothing'
complete -c pinproxy -n $host -l log-level -x -a 'debug info warn error' -d 'what to log'
complete -c pinproxy -n $host -l log-format -x -a 'text json' -d 'form of the log'
complete -c pinproxy -n $asking -l socket -r -F -d 'control socket'
complete -c pinproxy -n $host -l socket-group -x -a '(__fish_complete_groups)' -d 'group allowed to query the control socket'
complete -c pinproxy -n $host -l user -x -a '(__fish_complete_users)' -d 'user to switch to once the device is made'
complete -c pinproxy -n $host -l http -x -d 'serve a live page, /metrics and /healthz'
complete -c pinproxy -n '__fish_seen_subcommand_from check' -l connect -d 'check: also connect, from the pin and as programs do'
complete -c pinproxy -n '__fish_seen_subcommand_from check status' -l json -d 'check, status: print JSON'
complete -c pinproxy -n '__fish_seen_subcommand_from status' -l watch -d 'status: refresh every second'
