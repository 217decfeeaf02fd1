# Network on tap, and what hangs on it.

# net QUEUE-PAIRS NET-OPTIONS: ssh in, a file copied both ways, every queue pair in use.
net() {
  local pairs=$1
  vm a lab.ip=192.168.77.2/24 -- --memory size=256M --cpus "boot=$pairs" --net "$2,mac=12:34:56:78:90:01,num_queues=$((pairs * 2))"
  up a 200 && within 30 ping -c1 -W1 192.168.77.2 || { fail "no answer to ping"; return; }
  within 60 guest 192.168.77.2 true || { fail "no ssh"; return; }
  note "$(ping -q -i 0.05 -c 20 192.168.77.2 | sed -n 's/^rtt //p')"
  dd if=/dev/urandom of="$W/file" bs=1M count=4 2>/dev/null
  local digest; digest=$(sha256sum <"$W/file")
  guest 192.168.77.2 'cat >/tmp/f; sha256sum </tmp/f' <"$W/file" >"$W/there" || { fail "copy to the guest"; return; }
  guest 192.168.77.2 'cat /tmp/f' </dev/null >"$W/back" || { fail "copy from the guest"; return; }
  [ "$(cat "$W/there")" = "$digest" ] || { fail "the guest got other bytes"; return; }
  [ "$(sha256sum <"$W/back")" = "$digest" ] || { fail "other bytes came back"; return; }
  guest 192.168.77.2 'ls -d /sys/class/net/eth0/queues/rx-* | wc -l; cat /sys/class/net/eth0/address' </dev/null >"$W/nic"
  note "$(head -n 1 "$W/nic") receive queues, 4 MiB both ways"
  [ "$(tr '\n' ' ' <"$W/nic")" = "$pairs 12:34:56:78:90:01 " ]
}
check_net() { tap tap0 192.168.77.1/24; net 1 tap=tap0; }
check_net4() { tap tap0 192.168.77.1/24 multi_queue; net 4 tap=tap0; }
check_net_created() { net 1 tap=,ip=192.168.77.1,mask=255.255.255.0; } # the VMM makes the tap
check_net_split() { tap tap0 192.168.77.1/24; net 1 tap=tap0,packed=off; }
check_net_no_offload() { tap tap0 192.168.77.1/24; net 1 tap=tap0,offload_tso=off,offload_ufo=off,offload_csum=off; }

check_macvtap() { # the tap is handed over as a descriptor
  ip link add veth0 type veth peer name veth1; ip link set veth0 up; ip link set veth1 up; ip addr add 192.168.78.1/24 dev veth1
  ip link add link veth0 name mt0 type macvtap mode bridge; ip link set mt0 address 12:34:56:78:90:0a up
  vm a lab.ip=192.168.78.2/24 -- --memory size=256M --net fd=3,mac=12:34:56:78:90:0a 3<>"/dev/tap$(cat /sys/class/net/mt0/ifindex)"
  up a && within 30 ping -c1 -W1 192.168.78.2
}
check_vsock() {
  modprobe vhost_vsock 2>/dev/null
  vm a -- --memory size=256M --vsock "cid=3,socket=$W/a.vsock"
  up a && [ -S "$W/a.vsock" ]
}
