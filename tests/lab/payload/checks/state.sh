# Snapshot, restore, migration and hotplug: everything that takes the API.

snapshot() { # RESTORE-OPTIONS: the guest counts on where it stood
  needs_api || return
  mkdir "$W/snap"
  vm a lab.do=count lab.ip=192.168.77.2/24 -- --memory size=256M --cpus boot=1
  up a 90 "COUNT 20" || return
  local began; began=$(now)
  api a pause && api a snapshot "file://$W/snap" || { fail "no snapshot"; return; }
  note "snapshot $(since "$began") s, $(du -sm "$W/snap" | cut -f1) MB"
  stop a
  local last; last=$(value a COUNT)
  mv "$W/a.log" "$W/before.log"; : >"$W/a.log"
  began=$(now)
  spawn b -- --restore "source_url=file://$W/snap$1"
  within 20 test -S "$W/b.api" && within 20 api b resume || { fail "no restore"; return; }
  # The console file is named in the snapshot: the restored guest goes on writing there.
  within 30 grep -q COUNT "$W/a.log" || { fail "the guest does not count"; return; }
  note "restore $(since "$began") s; last '$last', first '$(grep -m1 COUNT "$W/a.log" | tr -d '\r')'"
  local first; first=$(grep -m1 -o 'COUNT [0-9]*' "$W/a.log" | cut -d' ' -f2)
  [ "$first" -ge "${last%% *}" ] && [ "$first" -le $(( ${last%% *} + 3 )) ]
}
check_snapshot() { snapshot ""; }
check_ondemand() { snapshot ",memory_restore_mode=ondemand"; }

# migrate RECEIVE-URL SEND-URL: from one network namespace to another, both on one bridge; the guest is pinged all the
# time.
migrate() {
  needs_api || return
  ip link add br0 type bridge; ip addr add 192.168.77.1/24 dev br0; ip link set br0 up
  local i
  for i in 1 2; do
    ip netns add h$i; ip link add u$i type veth peer name eth0 netns h$i; ip link set u$i master br0 up
    ip -n h$i link add sw0 type bridge; ip -n h$i link set eth0 master sw0 up
    ip -n h$i addr add 192.168.77.25$i/24 dev sw0; ip -n h$i link set sw0 up; ip -n h$i link set lo up
    ip netns exec h$i ip tuntap add tap0 mode tap vnet_hdr; ip -n h$i link set tap0 master sw0 up
  done
  NETNS="ip netns exec h1" vm a lab.ip=192.168.77.2/24 -- --memory "size=256M$MEMORY" --net tap=tap0,mac=12:34:56:78:90:01
  up a 90 && within 30 ping -c1 -W1 192.168.77.2 || return
  spawn b ip netns exec h2 --
  within 20 test -S "$W/b.api" || { fail "no receiver"; return; }
  api b receive-migration "$1" >"$W/receive.out" 2>&1 &
  sleep 1
  ping -D -i 0.02 192.168.77.2 >"$W/ping.txt" 2>&1 & local ping=$!
  sleep 1
  local began; began=$(now)
  api a send-migration "$2" >"$W/send.out" 2>&1 || { fail "send-migration failed"; return; }
  within 60 gone "$(pid a)" || { fail "the source stays"; return; }
  note "$(since "$began") s"
  sleep 2; kill -INT $ping; wait $ping
  [ "$(api b info | jq -r .state)" = Running ] || { fail "the destination does not run"; return; }
  note "longest ping gap $(sed -n 's/^\[\([0-9.]*\)\].*bytes from.*/\1/p' "$W/ping.txt" |
    awk 'NR>1 && $1-l>g {g=$1-l} {l=$1} END {printf "%.0f", g*1000}') ms"
  ping -c1 -W2 192.168.77.2 >/dev/null
}
check_migrate_unix() { migrate "receiver_url=unix:$W/mig.sock" "destination_url=unix:$W/mig.sock"; }
check_migrate_local() { MEMORY=,shared=on migrate "receiver_url=unix:$W/mig.sock" "destination_url=unix:$W/mig.sock,local=on"; }
check_migrate_tcp() { migrate receiver_url=tcp:192.168.77.252:6000 destination_url=tcp:192.168.77.252:6000; }
check_migrate_postcopy() {
  migrate receiver_url=tcp:192.168.77.252:6002,memory_mode=postcopy destination_url=tcp:192.168.77.252:6002,memory_mode=postcopy
}

check_hotplug() {
  needs_api || return
  truncate -s 16M "$W/d.raw"
  vm a -- --memory size=512M,hotplug_size=1G --cpus boot=1,max=4
  up a && api a add-disk "path=$W/d.raw" >/dev/null && api a resize --cpus 2 && api a resize --memory 768M &&
    sleep 2 && api a counters >/dev/null
}
