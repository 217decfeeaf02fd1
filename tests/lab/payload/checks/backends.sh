# Devices whose other half is another process or a real device.

check_virtiofs() {
  mkdir "$W/sh"; echo hello >"$W/sh/f"
  /usr/libexec/virtiofsd --socket-path="$W/fs.sock" --shared-dir="$W/sh" --sandbox=none --cache=never >"$W/virtiofsd.out" 2>&1 &
  within 10 test -S "$W/fs.sock" || { fail "no virtiofsd"; return; }
  vm a lab.do=virtiofs -- --memory size=512M,shared=on --fs "tag=myfs,socket=$W/fs.sock"
  ends a && says a "FS hello"
}
check_tpm() {
  mkdir "$W/tpm"
  swtpm socket --tpmstate "dir=$W/tpm" --ctrl "type=unixio,path=$W/tpm.sock" --flags startup-clear --tpm2 >"$W/swtpm.out" 2>&1 &
  within 10 test -S "$W/tpm.sock" || { fail "no swtpm"; return; }
  vm a lab.do=tpm -- --memory size=512M --tpm "socket=$W/tpm.sock"
  ends a && says a "TPM 2"
}
check_vhost_user_blk() {
  truncate -s 32M "$W/vu.raw"
  qemu-storage-daemon --blockdev "file,node-name=f,filename=$W/vu.raw" \
    --export "vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=$W/vub.sock,writable=on" >"$W/storage-daemon.out" 2>&1 &
  within 10 test -S "$W/vub.sock" || { fail "no qemu-storage-daemon"; return; }
  vm a lab.do=off -- --memory size=256M,shared=on --disk "vhost_user=on,socket=$W/vub.sock"
  up a && says a 'blk=.*vda'
}
check_vhost_user_net() { # passt: the guest pings its gateway
  echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range
  ip link add up0 type dummy; ip addr add 10.9.9.1/24 dev up0; ip link set up0 up; ip route add default dev up0
  passt --vhost-user -f --socket "$W/passt.sock" -a 10.9.9.2 -n 24 -g 10.9.9.1 --runas 0 >"$W/passt.out" 2>&1 &
  within 10 test -S "$W/passt.sock" || { fail "no passt"; return; }
  vm a lab.ip=10.9.9.2/24 lab.gw=10.9.9.1 lab.do=ping -- --memory size=256M,shared=on \
    --net "vhost_user=true,socket=$W/passt.sock,mac=12:34:56:78:90:01,num_queues=2"
  ends a 90 && says a "bytes from"
}
check_vfio() { # lab.py --iommu intel --qemu-arg "-device e1000e": the guest gets the real (emulated) card
  modprobe -a vfio-pci
  local device; device=$(lspci -Dn -d "${VFIO:-8086:10d3}" | head -n 1 | cut -d' ' -f1)
  [ -n "$device" ] || { fail "no device ${VFIO:-8086:10d3} in L1"; return; }
  local sys=/sys/bus/pci/devices/$device
  [ ! -e $sys/driver ] || echo "$device" >$sys/driver/unbind
  echo vfio-pci >$sys/driver_override; echo "$device" >/sys/bus/pci/drivers_probe
  vm a lab.do=info -- --memory size=512M --device "path=$sys/"
  ends a && says a "PCI .*$(cat $sys/vendor) $(cat $sys/device)"
}
