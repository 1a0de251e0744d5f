#!/usr/bin/env bash
# Several hosts on one machine: each is a set of Linux namespaces on a bridge that leads nowhere else.
#   hosts.sh up N | down               hosts h0 … hN-1; host i has the address 10.82.0.(10+i)
#   hosts.sh exec HOST CMD…            run a command there
#   hosts.sh crash HOST | start HOST   power off; power on, with the same disk and address
#   hosts.sh part HOST | heal HOST     pull the cable; put it back
#   hosts.sh loss HOST PERCENT | unloss HOST     lose packets, in both directions
#   hosts.sh rate HOST 20mbit | unrate HOST      limit what it receives and what it sends
#   hosts.sh counters                  HOST, bytes received, bytes sent; a line for each
# Needs root, iproute2, tini, util-linux, procps, nftables. Environment:
#   HOSTS_ROOT   where the hosts' disks are (default: /tmp/shoal-hosts)
#   HOSTS_NET    the first three bytes of their addresses (default: 10.82.0). Two sets of hosts may have the same.
#   HOSTS_SHM    the size of each /dev/shm (default: 256m)
#   HOSTS_SHOW   absolute paths, joined by colons, that hosts see although they are below /tmp, /run or $HOME
#   HOSTS_HELD   if set, hosts end when the standard input that `up` and `start` were given does
set -euo pipefail
ROOT=${HOSTS_ROOT:-/tmp/shoal-hosts} NET=${HOSTS_NET:-10.82.0}
if [ -n "${HOSTS_HELD:-}" ]; then life=(cat); else life=(sleep infinity); exec </dev/null; fi
exec 3<&0

# A namespace is known by a process in it, and never gets a name: so nothing stays behind.
pid_of() { cat "$ROOT/$1.pid" 2>/dev/null || { echo "hosts.sh: $1 is not up" >&2; return 1; }; }
on() { local pid; pid=$(pid_of "$1"); shift; nsenter -t "$pid" -n -- "$@"; }      # on its network, with our files

# Print the pid of a background `unshare --fork`'s child as soon as that is tini.
child_of() {
  for _ in $(seq 500); do
    pgrep -P "$1" -x tini && return
    sleep 0.01
  done
  return 1
}

start_switch() {
  setsid unshare --net --fork --kill-child tini -- "${life[@]}" <&3 >/dev/null 2>"$ROOT/switch.log" &
  child_of $! > "$ROOT/switch.pid"
  on switch ip link set lo up
  on switch ip link add br0 type bridge
  on switch ip addr add "$NET.1/24" dev br0
  on switch ip link set br0 up
}

start_host() {
  local host=$1 disk=$ROOT/$1 pid
  mkdir -p "$disk"/{tmp,run,home}; chmod 1777 "$disk/tmp"
  setsid unshare --mount --uts --ipc --pid --net --fork --mount-proc --kill-child \
    bash -euo pipefail -c "$(declare -f furnish); furnish \"\$@\"" furnish "$host" "$ROOT" "${life[@]}" \
    <&3 >/dev/null 2>"$disk/init.log" &
  pid=$(child_of $!) || { echo "hosts.sh: $host did not start: $(cat "$disk/init.log")" >&2; return 1; }
  echo "$pid" > "$ROOT/$host.pid"
  on switch ip link add "v$host" type veth peer name eth0 netns "$pid"
  on switch ip link set "v$host" master br0 up
  on "$host" ip link set lo up
  on "$host" ip addr add "$NET.$((10 + ${host#h}))/24" dev eth0
  on "$host" ip link set eth0 up
  on "$host" ip route add default via "$NET.1"    # by which a UDP connect finds eth0
}

# Become a host's first process. What a host has for itself, and why:
#   /tmp, /dev/shm   Ray's session and its object store        /run   sshd's
#   $HOME            tokens, settings, keys, ~/.bashrc
#   hosts            gloo listens where the hostname resolves to
#   resolv.conf      a resolver that does not answer costs gloo 20 s a connection, one that refuses at once nothing
# The pid namespace: `ray stop` ends every process of Ray that it can see.
furnish() {
  local host=$1 root=$2 path pair cover disk; shift 2
  hostname "$host"
  mount --bind "$root/hosts" /etc/hosts
  mount --bind "$root/resolv.conf" /etc/resolv.conf
  mount -t sysfs sysfs /sys
  mount -t tmpfs -o "size=${HOSTS_SHM:-256m}" tmpfs /dev/shm
  for path in ${HOSTS_SHOW//:/ }; do
    for pair in "$HOME:home" /tmp:tmp /run:run; do
      cover=${pair%:*} disk=$root/$host/${pair##*:}
      case $path in "$cover"/*)
        mkdir -p "$disk${path#"$cover"}"; mount --rbind "$path" "$disk${path#"$cover"}"; break ;;
      esac
    done
  done
  cd "$root/$host"   # still reached from here, and only so, when $root itself is covered
  mount --no-canonicalize --rbind run /run
  mount --no-canonicalize --rbind home "$HOME"
  mount --no-canonicalize --rbind tmp /tmp
  cd /
  exec tini -g -- "$@"
}

drop() { printf '  %s "v%s" numgen random mod 100 < %s drop\n' "$1" "$2" "$3"; }

case ${1:-} in
up)
  mkdir -p "$ROOT"; start_switch
  printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' > "$ROOT/resolv.conf"
  { echo 127.0.0.1 localhost; for ((i = 0; i < $2; i++)); do echo "$NET.$((10 + i)) h$i"; done; } > "$ROOT/hosts"
  for ((i = 0; i < $2; i++)); do start_host "h$i"; done ;;
down)   # its first process takes every process of a host with it, and no other
  for file in "$ROOT"/*.pid; do kill -9 "$(cat "$file")" || true; rm "$file"; done 2>/dev/null
  rm -rf "$ROOT" ;;
start)  start_host "$2" ;;
crash)  # no packet leaves a host without power, also none to say that its connections are closed
  on switch ip link del "v$2"; kill -9 "$(pid_of "$2")"; rm "$ROOT/$2.pid" ;;
exec)   pid=$(pid_of "$2"); shift 2; exec nsenter -t "$pid" -m -u -i -n -p -- "$@" ;;
part)   on switch ip link set "v$2" down ;;
heal)   on switch ip link set "v$2" up ;;
rate)
  on switch tc qdisc replace dev "v$2" root tbf rate "$3" burst 64kb latency 400ms
  on "$2" tc qdisc replace dev eth0 root tbf rate "$3" burst 64kb latency 400ms ;;
unrate) # nothing is left to undo on a host that was off meanwhile
  on switch tc qdisc del dev "v$2" root || true; on "$2" tc qdisc del dev eth0 root || true ;;
loss)
  { echo "table bridge loss-$2 { chain both { type filter hook forward priority 0"
    drop iifname "$2" "$3"; drop oifname "$2" "$3"; echo '}'; echo '}'; } | on switch nft -f - ;;
unloss) on switch nft delete table bridge "loss-$2" ;;
counters)   # what its port of the switch has sent, a host has received
  on switch cat /proc/net/dev | awk '$1 ~ /^vh/ { sub(/^v/, "", $1); sub(/:/, "", $1); print $1, $10, $2 }' ;;
*)      sed -n '2,17p' "$0" >&2; exit 2 ;;
esac
