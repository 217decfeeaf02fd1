# Network on tap, and what hangs on it.

# net QUEUE-PAIRS OFFLOADS NET-OPTIONS: ssh in, a file copied both ways, every queue pair there, and each of the offloads
# negotiated (1) or none (0): checksums and TCP segments both ways.
net() {
  local pairs=$1 offloads=$2 bits bit
  vm a lab.ip=192.168.77.2/24 -- --memory size=256M --cpus "boot=$pairs" --net "$3,mac=12:34:56:78:90:01,num_queues=$((pairs * 2))"
  up a 200 && within 30 ping -c1 -W1 192.168.77.2 || { fail "no answer to ping"; return; }
  within 60 guest 192.168.77.2 true || { fail "no ssh"; return; }
  note "$(ping -q -i 0.05 -c 20 192.168.77.2 | sed -n 's/^rtt //p')"
  dd if=/dev/urandom of="$W/file" bs=1M count=4 2>/dev/null
  local digest; digest=$(sha256sum <"$W/file")
  guest 192.168.77.2 'cat >/tmp/f; sha256sum </tmp/f' <"$W/file" >"$W/there" || { fail "copy to the guest"; return; }
  guest 192.168.77.2 'cat /tmp/f' </dev/null >"$W/back" || { fail "copy from the guest"; return; }
  [ "$(cat "$W/there")" = "$digest" ] || { fail "the guest got other bytes"; return; }
  [ "$(sha256sum <"$W/back")" = "$digest" ] || { fail "other bytes came back"; return; }
  guest 192.168.77.2 'ls -d /sys/class/net/eth0/queues/rx-* | wc -l; cat /sys/class/net/eth0/address /sys/class/net/eth0/device/features' </dev/null >"$W/nic"
  note "$(head -n 1 "$W/nic") receive queues, 4 MiB both ways"
  [ "$(head -n 2 "$W/nic" | tr '\n' ' ')" = "$pairs 12:34:56:78:90:01 " ] || { fail "$(tr '\n' ' ' <"$W/nic")"; return; }
  bits=$(sed -n 3p "$W/nic")
  for bit in 0 1 7 8 11 12; do
    [ "${bits:bit:1}" = "$offloads" ] || { fail "feature bit $bit of $bits is not $offloads"; return; }
  done
}
check_net() { tap tap0 192.168.77.1/24; net 1 1 tap=tap0; }
check_net4() { tap tap0 192.168.77.1/24 multi_queue; net 4 1 tap=tap0; }
check_net_created() { net 1 1 tap=,ip=192.168.77.1,mask=255.255.255.0; } # the VMM makes the tap
check_net_split() { tap tap0 192.168.77.1/24; net 1 1 tap=tap0,packed=off; }
check_net_no_offload() { tap tap0 192.168.77.1/24; net 1 0 tap=tap0,offload_tso=off,offload_ufo=off,offload_csum=off; }

check_net16() { tap tap0 192.168.77.1/24 multi_queue; net 16 1 tap=tap0; }
check_net_mtu() { # the VMM gives the tap it makes an address, a MAC and an MTU, which the guest learns
  vm a lab.ip=192.168.77.2/24 -- --memory size=256M \
    --net tap=lab7,ip=192.168.77.1,mask=255.255.255.0,host_mac=12:34:56:78:90:77,mtu=4000,mac=12:34:56:78:90:01
  up a && within 60 guest 192.168.77.2 true || return
  note "host: $(cat /sys/class/net/lab7/address) $(cat /sys/class/net/lab7/mtu), guest: $(guest 192.168.77.2 'cat /sys/class/net/eth0/mtu' </dev/null)"
  [ "$(cat "$W/note")" = "host: 12:34:56:78:90:77 4000, guest: 4000" ] || return
  ping -q -M do -s 3900 -c 3 192.168.77.2 >"$W/ping.log"
}

macvtap() { # a tap device that the VMM does not open itself
  ip link add veth0 type veth peer name veth1; ip link set veth0 up; ip link set veth1 up; ip addr add 192.168.77.1/24 dev veth1
  ip link add link veth0 name mt0 type macvtap mode bridge; ip link set mt0 address 12:34:56:78:90:01 up
  TAP=/dev/tap$(cat /sys/class/net/mt0/ifindex)
}
# Each descriptor is a queue, even one that nobody reads.
check_macvtap() { macvtap; net 1 1 fd=3 3<>"$TAP"; }
check_net_fds() { macvtap; net 2 1 'fd=[3,4]' 3<>"$TAP" 4<>"$TAP"; }
check_vsock() {
  modprobe vhost_vsock 2>/dev/null
  vm a -- --memory size=256M --vsock "cid=3,socket=$W/a.vsock"
  up a && [ -S "$W/a.vsock" ]
}
