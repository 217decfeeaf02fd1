# A Linux guest lives on. It has a disk that is never at rest, a network card, a console and an entropy source; what it
# knows it says in lines (`do_witness` in guest/nano-init), and they all go to one file, whatever process it lives in.

# A VM's process is $NOW; its generations are counted by $GENERATION.
witness() { # KERNEL-PARAMETERS...
  needs_api || return
  tap tap0 192.168.77.1/24
  truncate -s 2M "$W/d.raw"
  # A guest that panics stands still, so that its last words stay: a reboot would begin the file anew.
  vm a panic=0 lab.do=witness lab.ip=192.168.77.2/24 "$@" -- --cpus boot=2 --memory size=128M \
    --disk "path=$W/d.raw,image_type=raw" --net tap=tap0,mac=12:34:56:78:90:01
  NOW=a GENERATION=0
}
lines() { grep -c '^WITNESS .* end' "$W/a.log"; }
has_lines() { [ "$(lines)" -ge "$1" ]; }
# further N: as many more lines have come. The first one may have been begun long ago; the second has not.
further() { within 90 has_lines $(($(lines) + $1)) || fail "the guest says nothing more"; }
# The guest's last line, as a whole, and a field of a line.
last() { grep '^WITNESS .* end' "$W/a.log" | tail -n 1; }
field() { sed -n "s/.* $1=\([^ ]*\) .*/\1/p" <<<"$2"; }
answers() { within 30 ping -c1 -W1 192.168.77.2 || fail "no answer to ping"; }

# save DIRECTORY: saves the VM and kills its process, as a host that fails would.
save() {
  api "$NOW" pause && save_paused "$1"
}
save_paused() { # DIRECTORY
  mkdir "$W/$1"
  api "$NOW" snapshot "file://$W/$1" || { fail "no snapshot"; return; }
  murder
}
murder() { kill -KILL "$(pid "$NOW")"; wait "$(pid "$NOW")" 2>/dev/null; NOW=; }
# revive DIRECTORY OPTIONS: in a new process.
revive() {
  GENERATION=$((GENERATION + 1)) NOW=g$GENERATION
  spawn "$NOW" -- --report --restore "source_url=file://$W/$1,$2"
}
# goes_on [GENERATIONS]: what the guest said in all its lives is what one guest says that has lived all the time, but
# that it knows how often it was restored.
goes_on() {
  # What follows the last end of a line has only been begun.
  head -n "$(wc -l <"$W/a.log")" "$W/a.log" | awk -v want="${1:-$GENERATION}" '
    function number(name) { match($0, " " name "=[0-9.]+"); return substr($0, RSTART + length(name) + 2, RLENGTH - length(name) - 2) + 0 }
    function wrong(what) { print what ": " $0; bad = 1; exit }
    { sub("\r$", "") }
    !/^WITNESS / { next }
    !/ end$/ { wrong("half a line") }
    $2 != ++lines { wrong("line " lines " is missing") }
    lines == 1 { nonce = $3 }
    $3 != nonce { wrong("another guest") }
    !/ faults=0 / { wrong("a program or the kernel has failed") }
    !/ memory=same disk=same / { wrong("something is lost") }
    number("tsc") <= tsc || number("up") < up || number("real") < real || number("forks") < forks { wrong("back in time") }
    { tsc = number("tsc"); up = number("up"); real = number("real"); forks = number("forks") }
    END { if (!bad && !(lines > 0 && forks == want)) { print "restored " want " times, and knows of " forks; bad = 1 }; exit bad }
  ' >"$W/wrong" || fail "$(cat "$W/wrong")"
}

restore() { # MODE
  witness && up a 200 'WITNESS 3 ' && answers || return
  local began; began=$(now); save s || return
  note "snapshot $(since "$began") s, $(du -sm "$W/s" | cut -f1) MB"
  began=$(now); revive s "resume=on,memory_restore_mode=$1"
  further 1 || return
  note "restore $(since "$began") s"
  further 1 && answers && further 2 && goes_on || return
  grep -q "memory zone mem0: $1" "$W/$NOW.out" || { fail "not in mode $1"; return; }
  # Restored to stand still, and saved again before it has run.
  save s2 || return
  revive s2 "memory_restore_mode=$1"
  within 20 test -S "$W/$NOW.api" && within 20 grep -q ', paused in' "$W/$NOW.out" && save_paused s3 || return
  revive s3 "resume=on,memory_restore_mode=$1"
  # The third life begins with the generation id of a second that nobody has lived.
  further 2 && answers && goes_on 2
}
check_restore_cow() { restore cow; }
check_restore_copy() { restore copy; }
check_restore_ondemand() { restore ondemand; }

check_restore_offline() { # a processor that was taken away comes back
  witness lab.offline=1 && up a 200 'WITNESS 3 ' && answers || return
  [ "$(field cpus "$(last)")" = 0 ] || { fail "$(last)"; return; }
  save s && revive s resume=on && further 3 && answers && goes_on || return
  [ "$(field cpus "$(last)")" = 0-1 ] || fail "$(last)"
}
check_restore_unstarted() { # one that was never started, and devices that no driver has touched
  witness maxcpus=1 lab.wait=fork && up a 120 WAITING || return
  save s && revive s resume=on
  within 90 has_lines 3 || { fail "the guest says nothing"; return; }
  answers && goes_on || return
  [ "$(field cpus "$(last)")" = 0-1 ] || { fail "$(last)"; return; }
  # And so is a guest whose drivers began in the second life.
  save s2 && revive s2 resume=on && further 2 && answers && goes_on
}
check_restore_idle() { # halted, with a timer pending
  needs_api || return
  vm a lab.do=sleep -- --cpus boot=1 --memory size=128M
  NOW=a GENERATION=0
  up a 120 SLEEPING || return
  sleep 3; save s || return
  sleep $((20 * PATIENCE)); revive s resume=on
  within 60 says a SLEPT || { fail "it sleeps on"; return; }
  local slept; slept=$(echo "$(value a SLEPT) - $(value a SLEEPING)" | bc)
  note "slept $slept s of its own time"
  [ "${slept%.*}" -ge 14 ] && [ "${slept%.*}" -lt $((15 + 5 * PATIENCE)) ]
}

check_restore_clock() { # the gap is the guest's with advance; with wall it is its board's alone, and frozen, nobody's
  witness && up a 200 'WITNESS 3 ' && further 5 || return
  local first before gap=$((30 * PATIENCE)) slack=$((6 * PATIENCE)) policy behind elapsed ticks
  first=$(grep '^WITNESS 1 ' "$W/a.log")
  before=$(last); behind=$(($(date +%s) - $(field real "$before")))
  local began; began=$(now); save s || return
  sleep "$gap"
  # Ticks of the counter in a second.
  local hz; hz=$(echo "($(field tsc "$before") - $(field tsc "$first")) / ($(field up "$before") - $(field up "$first"))" | bc)
  mv "$W/a.log" "$W/before.log"
  for policy in wall frozen advance; do
    : >"$W/a.log"
    elapsed=$(since "$began"); revive s "resume=on,clock=$policy" && further 2 || return
    local after; after=$(last)
    local late=$(($(date +%s) - $(field real "$after") - behind))
    local up; up=$(echo "($(field up "$after") - $(field up "$before")) / 1" | bc)
    ticks=$(echo "($(field tsc "$after") - $(field tsc "$before")) / $hz" | bc)
    local board=$(($(date +%s) - $(field rtc "$after")))
    note "$policy: of $elapsed s, its wall clock lost $late, its board's $board, uptime went $up s on, its counter $ticks s"
    elapsed=${elapsed%.*}
    # The board's clock shows the host's time, or that of the pause.
    case $policy in
      frozen) [ "$board" -ge $((elapsed - slack)) ] && [ "$board" -le $((elapsed + slack)) ] || return;;
      *) [ "${board#-}" -le $slack ] || return;;
    esac
    case $policy in
      wall | frozen)
        [ "$late" -ge $((elapsed - slack)) ] && [ "$late" -le $((elapsed + slack)) ] &&
          [ "$up" -ge 0 ] && [ "$up" -le $slack ] && [ "$ticks" -ge 0 ] && [ "$ticks" -le $slack ] || return;;
      advance)
        [ "${late#-}" -le $slack ] && [ "$up" -ge "$gap" ] && [ "$ticks" -ge "$gap" ] || return;;
    esac
    murder; mv "$W/a.log" "$W/$policy.log"
  done
}

# Persistent memory with a file system that is mounted while its VM is saved and killed, and comes back with a copy of the file.
check_restore_pmem() {
  needs_api || return
  local g=192.168.77.2 sum
  truncate -s 64M "$W/p.img" && mkfs.ext4 -q -b 4096 "$W/p.img" || return
  tap tap0 192.168.77.1/24
  vm a lab.ip=$g/24 -- --memory size=256M --pmem "id=p,file=$W/p.img" --net tap=tap0,mac=12:34:56:78:90:01
  up a && within 60 guest $g true || { fail "no ssh"; return; }
  NOW=a GENERATION=0
  guest $g 'mount -t ext4 -o dax /dev/pmem0 /mnt' || { fail "no mount: $(guest $g 'dmesg | tail -n 3')"; return; }
  sum=$(guest $g 'dd if=/dev/urandom of=/mnt/a bs=1M count=8 2>/dev/null; sync; sha256sum </mnt/a')
  save s || return
  cp --sparse=always "$W/p.img" "$W/q.img"
  revive s "resume=on,overrides=[[id=p,file=$W/q.img]]"
  within 60 guest $g true || { fail "no ssh after the restore"; return; }
  [ "$(guest $g 'sha256sum </mnt/a')" = "$sum" ] || { fail "other bytes after the restore"; return; }
  # Once more from the storage, what the first life wrote; and something new.
  [ "$(guest $g 'umount /mnt && mount -t ext4 -o dax /dev/pmem0 /mnt && sha256sum </mnt/a')" = "$sum" ] || { fail "other bytes after mounting again"; return; }
  guest $g 'cp /mnt/a /mnt/b && umount /mnt' || return
  api "$NOW" shutdown-vmm; wait "$(pid "$NOW")"
  [ "$(debugfs -R 'cat /b' "$W/q.img" 2>/dev/null | sha256sum)" = "$sum" ] || { fail "the file has not what the guest wrote"; return; }
  [ "$(debugfs -R 'cat /b' "$W/p.img" 2>/dev/null | wc -c)" = 0 ] || fail "the first file was written after the restore"
}

was_reset() { [ "$(grep -c NANO-INIT "$W/a.log")" != 1 ]; }
# once_more DIRECTORY OPTIONS: whether it is the snapshot's fault: of some more lives out of it, how many end so.
once_more() {
  local i resets=0
  mv "$W/a.log" "$W/reset.log"; mv "$W/$NOW.out" "$W/reset.out"
  for i in 1 2 3 4 5 6 7 8; do
    murder; echo NANO-INIT >"$W/a.log"
    revive "$1" "resume=on,$2"
    further 2 >/dev/null; was_reset && resets=$((resets + 1))
  done
  echo "of 8 more lives out of the same snapshot, $resets were reset"
}
check_generations() { # one after the other, each of the snapshot of the one before
  witness && up a 200 'WITNESS 3 ' && answers || return
  local modes=(cow copy ondemand) n count=${GENERATIONS:-100} began; began=$(now)
  for ((n = 1; n <= count; n++)); do
    save "s$n" || { fail "generation $n"; return; }
    # The one before was needed as long as its guest lived.
    rm -rf "$W/s$((n - 1))" "$W/g$((n - 3)).out"
    revive "s$n" "resume=on,memory_restore_mode=${modes[n % 3]}"
    further 2 && answers || { fail "generation $n"; return; }
    # Seen at once, the monitor's own words are still there, and the snapshot.
    was_reset && { fail "generation $n: the guest was reset; $(once_more "s$n" "memory_restore_mode=${modes[n % 3]}")"; return; }
    if [ $((n % 10)) = 0 ]; then goes_on || { fail "generation $n"; return; }; fi
  done
  goes_on || return
  note "$count generations in $(since "$began") s, $(lines) lines"
}

# Two controls for `generations`: as many lives out of one snapshot; and a guest that is only paused as often.
check_lives() {
  witness && up a 200 'WITNESS 3 ' && answers || return
  local modes=(cow copy ondemand) n count=${GENERATIONS:-100} resets=0
  save s || return
  for ((n = 1; n <= count; n++)); do
    [ -z "$NOW" ] || murder
    echo NANO-INIT >"$W/a.log"; rm -f "$W/g$((n - 3)).out"
    revive s "resume=on,memory_restore_mode=${modes[n % 3]}"
    further 2 || { fail "life $n"; return; }
    if was_reset; then resets=$((resets + 1)); note "life $n (${modes[n % 3]})"; fi
  done
  note "$resets of $count were reset"
  [ $resets = 0 ]
}
check_pauses() {
  witness && up a 200 'WITNESS 3 ' && answers || return
  local n count=${GENERATIONS:-100}
  for ((n = 1; n <= count; n++)); do
    api a pause && sleep 1 && api a resume && further 2 || { fail "pause $n"; return; }
    was_reset && { fail "pause $n: the guest was reset"; return; }
  done
  note "$count pauses, $(lines) lines"
}
check_endures() { # nothing is done to it
  witness && up a 200 'WITNESS 3 ' && answers || return
  local began; began=$(now)
  while [ "$(echo "$(since "$began") < ${SECONDS_TO_LIVE:-600}" | bc)" = 1 ]; do
    further 2 || return
    was_reset && { fail "the guest was reset after $(since "$began") s"; return; }
  done
  note "$(lines) lines in $(since "$began") s"
}
# The control's control: the same guest, left alone in this monitor and in QEMU, side by side. Tells how often each was reset;
# ends early when both were.
check_endures_beside_qemu() {
  witness && up a 200 'WITNESS 3 ' || return
  tap tap1 192.168.78.1/24
  truncate -s 2M "$W/q.raw"
  qemu-system-x86_64 -nodefaults -display none -machine q35,accel=kvm -cpu host -smp 2 -m 128M \
    -kernel "$ART/guestkernel/bzImage" -initrd "$INITRD" -append "$BASE panic=0 lab.do=witness lab.ip=192.168.78.2/24" \
    -device virtio-serial-pci -chardev "file,id=c,path=$W/q.log" -device virtconsole,chardev=c \
    -drive "if=none,id=d,file=$W/q.raw,format=raw" -device virtio-blk-pci,drive=d \
    -netdev tap,id=n,ifname=tap1,script=no,downscript=no -device virtio-net-pci,netdev=n,mac=12:34:56:78:90:02,romfile= \
    >"$W/q.out" 2>&1 &
  PID_q=$!
  up q 200 'WITNESS 3 ' || return
  local began resets=(0 0) name i; began=$(now)
  while [ "$(echo "$(since "$began") < ${SECONDS_TO_LIVE:-600}" | bc)" = 1 ]; do
    sleep 5; i=0
    for name in a q; do
      local times=$(($(grep -c NANO-INIT "$W/$name.log") - 1))
      [ $times = "${resets[i]}" ] || { resets[i]=$times; echo "$name: reset $times after $(since "$began") s"; }
      i=$((i + 1))
    done
    [ "${resets[0]}" = 0 ] || [ "${resets[1]}" = 0 ] || break
  done
  note "in $(since "$began") s: reset ${resets[0]} times, QEMU's ${resets[1]} times; $(grep -c ' end' "$W/a.log") lines, QEMU's $(grep -c ' end' "$W/q.log")"
}
