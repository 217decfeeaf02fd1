# Whole systems: Debian with systemd from a disk, and the same through firmware.

cidata() { # what cloud-init would read: addresses, host name, and whom to tell
  mkdosfs -n CIDATA -C "$W/ci" 8192 >/dev/null
  printf 'instance-id: cloud\nlocal-hostname: labhost\n' >"$W/meta-data"
  printf 'version: 2\nethernets:\n  id0:\n    match:\n      macaddress: 12:34:56:78:90:ab\n    addresses:\n    - 192.168.2.2/25\n    gateway4: 192.168.2.1\n' >"$W/network-config"
  printf '#cloud-config\n  echo -n "booted" > /dev/tcp/192.168.2.1/8001\n' >"$W/user-data"
  (cd "$W" && mcopy -i ci user-data meta-data network-config ::)
}
# The image is 1 GiB with 0.3 GiB in it. 9p shows no holes, so the list of what is not empty comes beside it.
full_image() {
  truncate -s 1G "$1"
  local start count
  while read -r start count; do
    dd if="$ART/full.raw" of="$1" bs=1M skip=$start seek=$start count=$count conv=notrunc status=none || return
  done <"$ART/full.extents"
}
cloud() {
  sshpass -p cloud123 ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 \
    -o LogLevel=ERROR cloud@192.168.2.2 "$@"
}
check_full() {
  [ -e "$ART/full.raw" ] || { fail "no full.raw: lab.py prepare full"; return; }
  cidata; full_image "$W/f.raw" || return
  local began; began=$(now)
  nc -l -p 8001 >"$W/notify" 2>/dev/null &
  spawn a -- --kernel "${FULLKERNEL:-$ART/full.vmlinux}" --cmdline "root=/dev/vda1 rw console=hvc0 quiet mitigations=off" \
    --disk "path=$W/f.raw" "path=$W/ci" --cpus "boot=${FULLCPUS:-2}" --memory size=512M \
    --net tap=,mac=12:34:56:78:90:ab,ip=192.168.2.1,mask=255.255.255.128 --serial off --console "file=$W/a.log"
  up a 330 'login:' || return
  note "login prompt after $(since "$began") s"
  within 60 test -s "$W/notify" || { fail "no message from the guest"; return; }
  within 120 cloud true || { fail "no ssh"; return; }
  note "ssh after $(since "$began") s, $(cloud 'hostname; systemctl is-system-running; systemctl --failed --plain --no-legend | cut -d" " -f1' | tr '\n' ' ')"
  [ "$(cat "$W/notify")" = booted ] && [ "$(cloud hostname)" = labhost ] || return
  cloud sudo poweroff; ends a 90
}
# echoes NAME SOCKET: eight MiB go into the guest by its socket device and come back.
echoes() {
  timeout $((60 * PATIENCE)) python3 - "$1" >"$W/echo" 2>&1 <<'PROGRAM' || { fail "no echo: $(tail -n 1 "$W/echo")"; return; }
import os, socket, sys, threading
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(b"CONNECT 1234\n")
said = b""
while not said.endswith(b"\n"):
    byte = peer.recv(1)
    assert byte, f"refused after {said}"
    said += byte
assert said.startswith(b"OK "), said
sent = os.urandom(8 << 20)
def send():
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
got = b"".join(iter(lambda: peer.recv(1 << 16), b""))
assert got == sent, f"{len(got)} bytes, others than the {len(sent)}"
PROGRAM
}
check_vsock() { # programs of the host and of Debian speak to each other; and again after a restore with another socket and CID
  [ -e "$ART/full.raw" ] || { fail "no full.raw: lab.py prepare full"; return; }
  needs_api || return
  cidata; full_image "$W/f.raw" || return
  spawn a -- --kernel "${FULLKERNEL:-$ART/full.vmlinux}" --cmdline "root=/dev/vda1 rw console=hvc0 quiet mitigations=off" \
    --disk "path=$W/f.raw" "path=$W/ci" --memory size=512M --vsock "id=v,cid=7,socket=$W/v" \
    --net id=n,tap=,mac=12:34:56:78:90:ab,ip=192.168.2.1,mask=255.255.255.128 --serial off --console "file=$W/a.log"
  up a 330 'login:' && within 120 cloud true || { fail "no ssh"; return; }
  cloud 'sudo modprobe vmw_vsock_virtio_transport && sudo systemd-run -q systemd-socket-activate --accept --inetd -l vsock::1234 cat' ||
    { fail "the guest has no listener"; return; }
  within 30 echoes "$W/v" || return
  mkdir "$W/s"
  api a pause && api a snapshot "file://$W/s" || { fail "no snapshot"; return; }
  kill -KILL "$(pid a)"; wait "$(pid a)" 2>/dev/null
  spawn b -- --restore "source_url=file://$W/s,resume=on,overrides=[[id=v,socket=$W/w,cid=9]]"
  within 60 echoes "$W/w" || return
  cloud sudo poweroff; ends b 90 && [ ! -e "$W/w" ]
}
check_firmware() { # CLOUDHV.fd, systemd-boot, Debian; wants `lab.py run --icount 2 --smp 1`
  [ -e "$ART/full.raw" ] || { fail "no full.raw: lab.py prepare full"; return; }
  full_image "$W/f.raw" || return
  spawn a -- --firmware "$ART/CLOUDHV.fd" --disk "path=$W/f.raw" --memory size=1G --serial "file=$W/a.log" --console off
  up a 390 'login:'
}
check_restore_firmware() { # saved in the firmware, before it has found the disk; then as above
  [ -e "$ART/full.raw" ] || { fail "no full.raw: lab.py prepare full"; return; }
  needs_api || return
  full_image "$W/f.raw" || return
  spawn a -- --firmware "$ART/CLOUDHV.fd" --disk "path=$W/f.raw" --memory size=1G --serial "file=$W/a.log" --console off
  within 20 test -S "$W/a.api" || { fail "no API"; return; }
  sleep 1
  mkdir "$W/s"
  api a pause && api a snapshot "file://$W/s" || { fail "no snapshot"; return; }
  kill -KILL "$(pid a)"; wait "$(pid a)" 2>/dev/null
  note "it had said $(wc -c <"$W/a.log") bytes"
  ! grep -qi linux "$W/a.log" || { fail "Linux has begun"; return; }
  mv "$W/a.log" "$W/firmware.log"; : >"$W/a.log"
  spawn b -- --restore "source_url=file://$W/s,resume=on"
  # The serial port's file is named in the snapshot.
  within 390 says a 'login:' || fail "no login prompt"
}
