#!/bin/bash
# How long a restore takes on a KVM with two-dimensional paging, by the size of memory: `lab.py run --mem 6G -- /payload/flat.sh`.
# The test guest, restored in mode `cow`, in a process of its own each time. Prints medians of $RUNS of what the reports say: from
# the request until the guest runs, and the memory slots alone. Each size comes twice, as the emulation's speed wanders.
HERE=$(dirname "$(readlink -f "$0")")
. "$HERE/lib.sh"
API=1 RUNS=${RUNS:-15}
mkdir -p /run/vmm && cp "$VMM" "$REMOTE" "${VMM%/*}/test-guest" /run/vmm/ || exit
VMM=/run/vmm/cumulet REMOTE=/run/vmm/cumulet-remote
exec {held}< <(exec python3 "$HERE/hold_kvm.py"); read -r _ <&"$held"
echo 1 >/proc/sys/vm/overcommit_memory
median() { sort -n | sed -n "$((RUNS / 2 + 1))p"; }
for mib in ${MIB:-512 4096 16384 512 4096 16384}; do
  rm -rf "$W"; mkdir -p "$W/s"
  spawn a -- --kernel /run/vmm/test-guest --cpus boot=1 --memory "size=${mib}M" --console off --debug-exit 0x501 \
    --serial "file=$W/said"
  within 30 grep -q 'test-guest ready' "$W/said" || { cat "$W"/*.out; exit 1; }
  api a pause && api a snapshot "file://$W/s" || exit
  stop a
  for _ in $(seq "$RUNS"); do
    spawn b -- --report --restore "source_url=file://$W/s,resume=on"
    within 30 grep -q 'routing entries' "$W/b.out" || { cat "$W/b.out"; exit 1; }
    stop b
    sed -n 's/^restored .* in \([0-9.]*\) ms$/\1/p' "$W/b.out" >>"$W/whole"
    sed -n 's/^ *slots added  *[0-9]*  *\([0-9.]*\) us$/\1/p' "$W/b.out" >>"$W/slot"
  done
  echo "FLAT $mib MiB: request to running $(median <"$W/whole") ms, of which the memory slot $(median <"$W/slot") us"
done
