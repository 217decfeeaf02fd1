# Disks.

check_disk() {
  truncate -s 64M "$W/d.raw"
  vm a lab.do=off -- --disk "path=$W/d.raw" --memory size=256M
  up a && ends a && says a 'blk=.*vda'
}

# block NAME DISK-OPTIONS: the guest reads the whole image, writes, flushes, reads back; digests are compared with the
# image on the host.
block() {
  dd if=/dev/urandom of="$W/d.raw" bs=1M count=16 2>/dev/null
  local before; before=$(sha256sum <"$W/d.raw")
  vm a lab.do=blk -- -v --memory size=256M ${CPUS:+--cpus boot=$CPUS} --disk "path=$W/d.raw$1"
  up a && ends a 200 || return
  says a BLK-DONE || { fail "the guest did not finish"; return; }
  [ "$(value a BLK-READ)" = "$before" ] || { fail "the guest read other bytes than the image has"; return; }
  local wrote; wrote=$(value a BLK-WROTE)
  [ "$(value a BLK-BACK)" = "$wrote" ] || { fail "the guest did not read back what it wrote"; return; }
  [ "$(dd if="$W/d.raw" bs=1M skip=8 count=4 2>/dev/null | sha256sum)" = "$wrote" ] ||
    { fail "the image does not hold what the guest wrote"; return; }
  # Everything else, the last sector apart, is as it was.
  [ "$(stat -c %s "$W/d.raw")" = $((16 << 20)) ] || { fail "the image changed its size"; return; }
  note "$(value a BLK-QUEUES) queues"
}
# ring PACKED: the virtio-blk device's ring has that format (feature bit 34).
ring() {
  local bits; bits=$(sed -n 's/^FEATURES virtio[0-9]* 0x0002 \([01]*\).*/\1/p' "$W/a.log")
  [ "${bits:34:1}" = "$1" ] || fail "feature bit 34 is '${bits:34:1}', not $1"
}
# through ENGINE: what the VMM has chosen, by its log.
through() { note "$(sed -n 's/.* through \(.*\)/\1/p' "$W/a.out")"; grep -q " through $1\$" "$W/a.out"; }
check_block_uring() { block "" && through io_uring; }
check_block_aio() { block ",_disable_io_uring=on" && through aio; }
check_block_sync() { block ",_disable_io_uring=on,_disable_aio=on" && through sync; }
check_block_direct() { block ",direct=on" && note "direct I/O"; }
check_block_packed() { block ",packed=on" && ring 1; }
check_block_split() { block ",packed=off" && ring 0; }
check_block_queues() { CPUS=4 block ",num_queues=4,queue_size=256" && [ "$(value a BLK-QUEUES)" = 4 ]; }
# discard ENGINE DISK-OPTIONS: what the guest gives up takes no room on the host, what it zeroes is zero, the rest is as it was.
discard() {
  dd if=/dev/urandom of="$W/d.raw" bs=1M count=16 2>/dev/null
  cp "$W/d.raw" "$W/want.raw"; sync "$W/d.raw"
  dd if=/dev/zero of="$W/want.raw" bs=1M seek=4 count=4 conv=notrunc 2>/dev/null
  dd if=/dev/zero of="$W/want.raw" bs=1M seek=9 count=1 conv=notrunc 2>/dev/null
  dd if=/dev/zero of="$W/want.raw" bs=512 seek=32767 count=1 conv=notrunc 2>/dev/null
  local before; before=$(stat -c %b "$W/d.raw")
  vm a lab.do=discard -- -v --memory size=256M --disk "path=$W/d.raw,image_type=raw,sparse=on$2"
  up a && ends a && through "$1" || return
  says a '^DISCARDED' && says a '^ZEROED' || { fail "$(value a DISCARD-MAX)"; return; }
  cmp "$W/d.raw" "$W/want.raw" || { fail "the image holds other bytes"; return; }
  [ "$(value a DISCARD-BACK)" = "$(sha256sum <"$W/want.raw")" ] || { fail "the guest reads other bytes"; return; }
  local freed; freed=$((before - $(stat -c %b "$W/d.raw")))
  note "$((freed / 2)) KiB less on the host"
  [ $freed -ge 8192 ]
}
check_block_discard() { discard io_uring ""; }
check_block_discard_aio() { discard aio ",_disable_io_uring=on"; }
check_block_discard_sync() { discard sync ",_disable_io_uring=on,_disable_aio=on"; }
check_block_readonly() {
  dd if=/dev/urandom of="$W/d.raw" bs=1M count=16 2>/dev/null
  local before; before=$(sha256sum <"$W/d.raw")
  vm a lab.do=blk -- --memory size=256M --disk "path=$W/d.raw,readonly=on,serial=lab-serial-1"
  ends a 200 || return
  says a '^BLK-SIZE 32768 RO 1 SERIAL lab-serial-1' || { fail "$(value a BLK-SIZE)"; return; }
  ! says a BLK-WRITTEN && [ "$(value a BLK-READ)" = "$before" ] && [ "$(sha256sum <"$W/d.raw")" = "$before" ]
}
check_block_locked() { # a second VM must not open the image of the first
  truncate -s 16M "$W/d.raw"
  vm a -- --memory size=256M --disk "path=$W/d.raw"
  up a || return
  vm b -- --memory size=256M --disk "path=$W/d.raw"
  within 30 gone "$(pid b)" || { fail "the second VM runs"; return; }
  wait "$(pid b)"
  local status=$?
  note "status $status: $(grep -i lock "$W/b.out" | head -n 1)"
  [ $status = 1 ] && grep -qi lock "$W/b.out" && kill -0 "$(pid a)"
}
