#!/bin/bash
# What `cargo xtask demo --linux` runs in L1: Debian's kernel boots with devices, is saved, killed, and lives again, once
# with one commit for all of its wiring, and once with a commit after each change. Every command is shown, and of the guest
# what it said itself. The monitor's reports go to /lab/out, for the comparison.
HERE=$(dirname "$(readlink -f "$0")")
export W=/tmp/demo
# The limits only end what hangs.
PATIENCE=${PATIENCE:-5}
. "$HERE/lib.sh"; . "$HERE/checks/restore.sh"
mkdir -p /run/vmm && cp "$VMM" "$REMOTE" /run/vmm/ || exit
VMM=/run/vmm/$(basename "$VMM") REMOTE=/run/vmm/$(basename "$REMOTE") API=1
DISKS=8 NETS=2
exec {held}< <(exec python3 "$HERE/hold_kvm.py"); read -r _ <&"$held"

shown() { # WORDS...: a command line, without the middle of one that nobody reads to its end
  local line='   $' word
  for word in "${@:1:21}"; do case $word in *' '*) line="$line '$word'";; *) line="$line $word";; esac; done
  [ $# -le 21 ] || line="$line ... ($(($# - 21)) more)"
  echo "$line"
}
start() { # NAME ARGUMENTS...
  shown cumulet --api-socket "$W/$1.api" "${@:2}"
  spawn "$1" -- "${@:2}"
}
remote() { shown cumulet-remote --api-socket "$W/$NOW.api" "$@"; api "$NOW" "$@"; }
lost() {
  echo "   $* $(cat "$W/note" 2>/dev/null)"
  tail -n 20 "$W"/*.out "$W/a.log"
  exit 1
}
said() { # LINE: in words
  echo "     guest: line $(cut -d' ' -f2 <<<"$1"); random number $(field nonce "$1"); memory $(field memory "$1"), disk" \
    "$(field disk "$1"); up $(field up "$1") s; restores that it knows of: $(field forks "$1")"
}

devices=(--cpus boot=2 --memory size=256M --serial off --console "file=$W/a.log" --disk)
for i in $(seq 0 $((DISKS - 1))); do
  truncate -s 16M "$W/disk$i"; devices+=("path=$W/disk$i,num_queues=2,image_type=raw")
done
devices+=(--net)
for i in $(seq 0 $((NETS - 1))); do
  tap "tap$i" "192.168.$((77 + i)).1/24" multi_queue || exit
  devices+=("tap=tap$i,num_queues=4,mac=12:34:56:78:90:0$i")
done

release=$(sed -n 's/^linux-image-\([^_]*\)_.*/\1/p' "$ART/guestkernel/MANIFEST" 2>/dev/null | head -n 1)
printf '\n1. Debian boots (%s): 2 vCPUs, 256 MiB, %s disks and %s network cards of 2 queues, entropy, console.\n\n' \
  "kernel ${release:-of the lab}" "$DISKS" "$NETS"
start a --kernel "$KERNEL" --initramfs "$INITRD" --cmdline "$BASE lab.do=witness lab.ip=192.168.77.2/24" "${devices[@]}"
NOW=a
up a 60 'WITNESS 3 .* end' && answers || lost "The guest does not come up."
said "$(last)"
echo "     it answers to ping; it counts its lines, and checks its memory and its disk before each"

printf '\n2. It is paused and saved, and its process is killed.\n\n'
mkdir "$W/snapshot"
remote pause && remote snapshot "file://$W/snapshot" || lost "It cannot be saved."
murder; shown kill -KILL cumulet
# The disks as they were then; only the first has been written to.
shown cp disk0 disk0.saved; cp --sparse=always "$W/disk0" "$W/disk0.saved"
cp "$W/a.log" "$W/before.log"
before=$(last)
said "$before"
echo "     the snapshot: $(du -m "$W/snapshot/memory-ranges" | cut -f1) MiB stored of 256 MiB of memory"

printf '\n3. It lives again, in new processes.\n\n'
# What comes second has the advantage: emulation has met the code before.
for commits in once each; do
  cp "$W/before.log" "$W/a.log"
  shown cp disk0.saved disk0; cp --sparse=always "$W/disk0.saved" "$W/disk0"
  GENERATION=1 NOW=$commits
  start "$commits" --restore "source_url=file://$W/snapshot,resume=on" --report --restore-commit "$commits"
  further 3 && answers || lost "The guest is not back."
  said "$(last)"
  goes_on || lost "This is not the guest that was saved."
  echo "     no line is missing, none came twice; it answers to ping, and so it is the same guest"
  echo
  murder
  cp "$W/$commits.out" "/lab/out/$commits.report"
done
