# What the checks share. Sourced by run.sh, in L1, once for each check.
#
# A check is a function check_NAME. It succeeds or fails by its status; `note` adds to its line, `skip` ends it as
# skipped. It may leave VMs, taps and files behind: run.sh takes them away.
#
# $VMM and $REMOTE are the binaries under test, $ART the lab cache (kernels, guests).

: "${VMM:=/vmm/cumulet}" "${REMOTE:=/vmm/cumulet-remote}" "${ART:=/art}"
KERNEL=${KERNEL:-$ART/guestkernel/vmlinux} INITRD=${INITRD:-$ART/nano.cpio}
# quiet and hvc0: every byte to an emulated UART costs a nested exit to the VMM, about a millisecond.
# reboot=t would skip the reset register and the keyboard controller, which are what a reboot is to test.
BASE="console=hvc0 quiet panic=-1 mitigations=off"
W=${W:-/tmp/check}; mkdir -p "$W"

# A machine that is busy with other things needs more of it: all time limits are multiplied by this.
PATIENCE=${PATIENCE:-1}

now() { local t; read -r t _ </proc/uptime; echo "$t"; }
since() { echo "$(now) - $1" | bc; }
note() { printf '%s' "${NOTED:+; }$*" >>"$W/note"; NOTED=1; }
skip() { echo "$*" >"$W/skip"; exit 0; }
fail() { note "$*"; return 1; }

# A check that talks to its VMs calls this first; without it they have no API.
needs_api() { API=1; [ -x "$REMOTE" ] || fail "no $REMOTE"; }

# spawn NAME [NETNS COMMAND...] -- ARGUMENTS: the VMM in the background. Its console goes to $W/NAME.log, what it
# says itself to $W/NAME.out.
spawn() {
  local name=$1 prefix=(); shift
  while [ "$1" != -- ]; do prefix+=("$1"); shift; done; shift
  rm -f "$W/$name.api" "$W/$name.log"
  "${prefix[@]}" "$VMM" ${API:+--api-socket "$W/$name.api"} "$@" >"$W/$name.out" 2>&1 &
  printf -v "PID_$name" %s $!
}
# vm NAME KERNEL-PARAMETERS... -- ARGUMENTS: the nano guest with its console on hvc0.
vm() {
  local name=$1 line=$BASE; shift
  while [ "$1" != -- ]; do line="$line $1"; shift; done; shift
  spawn "$name" $NETNS -- --kernel "$KERNEL" --initramfs "$INITRD" --cmdline "$line" \
    --serial off --console "file=$W/$name.log" "$@"
}
pid() { local p="PID_$1"; echo "${!p}"; }
api() { local name=$1; shift; "$REMOTE" --api-socket "$W/$name.api" "$@"; }
# within SECONDS COMMAND...: tries until the command succeeds.
within() {
  local end=$(( $(cut -d. -f1 /proc/uptime) + $1 * PATIENCE )); shift
  until "$@" >/dev/null 2>&1; do [ "$(cut -d. -f1 /proc/uptime)" -ge $end ] && return 1; sleep 0.1; done
}
says() { grep -q -- "$2" "$W/$1.log"; }
# up NAME [SECONDS [TEXT]]: the console has said it. Ends early when the VMM has ended.
up() {
  local end=$(( $(cut -d. -f1 /proc/uptime) + ${2:-120} * PATIENCE ))
  until says "$1" "${3:-NANO-UP}" 2>/dev/null; do
    if ! kill -0 "$(pid "$1")" 2>/dev/null; then
      says "$1" "${3:-NANO-UP}" 2>/dev/null && return 0
      wait "$(pid "$1")"; fail "the VMM ended with status $?"; return
    fi
    [ "$(cut -d. -f1 /proc/uptime)" -ge $end ] && { fail "no '${3:-NANO-UP}' within ${2:-120} s"; return; }
    sleep 0.1
  done
}
# ends NAME [SECONDS]: the VMM ends by itself, with status 0.
ends() {
  local p status; p=$(pid "$1")
  within "${2:-150}" gone "$p" || { fail "the VMM did not end within ${2:-150} s"; return; }
  wait "$p"; status=$?
  [ $status = 0 ] || fail "the VMM ended with status $status"
}
gone() { ! kill -0 "$1"; }
stop() { local p; p=$(pid "$1"); [ -z "$p" ] || { kill "$p"; wait "$p"; } 2>/dev/null; }
tap() { ip tuntap add "$1" mode tap vnet_hdr ${3:-} && ip addr add "$2" dev "$1" && ip link set "$1" up; }
value() { sed -n "s/^$2 \(.*\)/\1/p" "$W/$1.log" | tail -n 1 | tr -d '\r'; }
# The nano guest's root has no password.
guest() {
  ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 -o LogLevel=ERROR \
    -o PreferredAuthentications=none,password -o BatchMode=yes "root@$1" "$2"
}
