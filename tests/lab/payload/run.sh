#!/bin/bash
# Runs checks in L1, one after the other, each in a process group of its own and with a time limit, and prints one
# line for each:
#   RESULT <name> <ok|FAIL|skip> <seconds> <note>
# $CHECK_TIMEOUT is the limit of each check in seconds, $PATIENCE multiplies it and every other limit.
# A failed check also shows the end of every log it left. The exit status is 0 only if no check failed.
#
#   run.sh CHECK...     the named checks; `run.sh --list` names them all
HERE=$(dirname "$(readlink -f "$0")")
load() { . "$HERE/lib.sh"; for f in "$HERE"/checks/*.sh; do . "$f"; done; }

if [ "$1" = --one ]; then
  load
  "check_$2"
  exit
fi
if [ "$1" = --list ]; then
  load; declare -F | sed -n 's/^declare -f check_//p'; exit
fi

# Read from 9p once, not at every start of a VM.
VMM=${VMM:-/vmm/cumulet} REMOTE=${REMOTE:-/vmm/cumulet-remote}
mkdir -p /run/vmm
for binary in VMM REMOTE; do
  if [ -e "${!binary}" ] && cp "${!binary}" /run/vmm/; then
    export "$binary=/run/vmm/$(basename "${!binary}")"
  fi
done

exec {held}< <(exec python3 "$HERE/hold_kvm.py")
read -r _ <&"$held" || echo "no VM is held: L1 may die when the first or the last one comes and goes"

clean_up() { # GROUP: whatever the check has left
  kill -KILL -- "-$1" 2>/dev/null
  for link in $(ip -o link show | sed -n 's/^[0-9]*: \([^:@]*\).*/\1/p'); do
    case $link in lo) ;; *) ip link del "$link" 2>/dev/null;; esac
  done
  ip -all netns delete 2>/dev/null
  umount -l /tmp/check/* 2>/dev/null
  echo 0 >/proc/sys/vm/nr_hugepages
  rm -rf /tmp/check
}
show_logs() {
  for log in "$W"/*.out "$W"/*.log; do
    [ -s "$log" ] || continue
    echo "---- ${log##*/}"; tail -n "${LOG_LINES:-25}" "$log" | tr -d '\r' | cut -c1-300
  done
  echo "---- dmesg of L1"; dmesg | tail -n +"$((1 + SEEN))" | tail -n 15
}

export W=/tmp/check
LIMIT=$(( ${CHECK_TIMEOUT:-400} * ${PATIENCE:-1} ))
failed=0
for name in "$@"; do
  rm -rf $W; mkdir -p $W
  SEEN=$(dmesg | wc -l)
  read -r began _ </proc/uptime
  setsid timeout --kill-after=5 "$LIMIT" bash "$0" --one "$name" >$W/check.out 2>&1 &
  group=$!
  wait $group; status=$?
  read -r ended _ </proc/uptime
  seconds=$(echo "scale=2; $ended - $began" | bc)
  note=$([ ! -e $W/note ] || tr '\n' ' ' <$W/note)
  if [ -e $W/skip ]; then
    echo "RESULT $name skip $seconds $(tr '\n' ' ' <$W/skip)"
  elif [ $status = 0 ]; then
    echo "RESULT $name ok $seconds $note"
  else
    [ $status = 124 ] && note="no end within $LIMIT s; $note"
    [ $status = 127 ] && note="a command was not found; $note"
    echo "RESULT $name FAIL $seconds $note"
    show_logs
    failed=1
  fi
  clean_up $group
done
exit $failed
