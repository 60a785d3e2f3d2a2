# bash completion for pinproxy.

_pinproxy() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} i command=
	COMPREPLY=()
	if [[ $cur == = ]]; then # a flag, = and its value are three words to bash
		cur=
	elif [[ $prev == = ]]; then
		prev=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--) # what follows is a command of its own
			if declare -F _command_offset >/dev/null; then
				_command_offset $((i + 1))
			elif ((COMP_CWORD == i + 1)); then
				mapfile -t COMPREPLY < <(compgen -c -- "$cur" | sort -u)
			else
				mapfile -t COMPREPLY < <(compgen -f -- "$cur")
			fi
			return
			;;
		check | status | cleanup) command=${COMP_WORDS[i]} ;;
		esac
	done
	case $prev in
	-f | --rules | --socket)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	--offload) mapfile -t COMPREPLY < <(compgen -W 'auto off' -- "$cur") && return ;;
	--log-level) mapfile -t COMPREPLY < <(compgen -W 'debug info warn error' -- "$cur") && return ;;
	--log-format) mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$cur") && return ;;
	--gateway) mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur") && return ;;
	--user) mapfile -t COMPREPLY < <(compgen -u -- "$cur") && return ;;
	--socket-group) mapfile -t COMPREPLY < <(compgen -g -- "$cur") && return ;;
	-r | --rule | --tun | --dial-timeout | --host-loopback | --http) return ;;
	esac
	case $command in
	check) mapfile -t COMPREPLY < <(compgen -W '--rule --rules --connect --json --dial-timeout --socket --help' -- "$cur") ;;
	status) mapfile -t COMPREPLY < <(compgen -W '--json --watch --socket --help' -- "$cur") ;;
	cleanup) mapfile -t COMPREPLY < <(compgen -W '--help' -- "$cur") ;;
	*)
		if [[ $cur == -* ]]; then
			mapfile -t COMPREPLY < <(compgen -W '--rule --rules --tun --offload --dial-timeout --strict --gateway --host-loopback --dry-run --log-level --log-format --socket --socket-group --user --http --version --help' -- "$cur")
		elif ((COMP_CWORD == 1)); then
			mapfile -t COMPREPLY < <(compgen -W 'check status cleanup' -- "$cur")
		fi
		;;
	esac
} && complete -F _pinproxy pinproxy
