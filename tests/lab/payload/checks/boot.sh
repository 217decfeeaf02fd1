# Booting, CPUs, memory, reset and power.

check_boot() { # PVH ELF kernel, one vCPU, to user space and off
  vm a lab.do=off -- --cpus boot=1 --memory size=256M
  up a && ends a && note "guest uptime $(value a NANO-UP | cut -d' ' -f1) s"
}
check_bzimage() {
  KERNEL=$ART/guestkernel/bzImage
  vm a lab.do=off -- --memory size=256M
  up a && ends a
}
check_onefile() { # kernel and initramfs in one PVH ELF file
  spawn a -- --kernel "$ART/nano.vmlinux" --cmdline "$BASE lab.do=off" --serial off --console "file=$W/a.log" --memory size=512M
  up a && ends a
}
check_serial() { # the console on the UART instead of hvc0
  spawn a -- --kernel "$KERNEL" --initramfs "$INITRD" --cmdline "console=ttyS0 quiet panic=-1 mitigations=off lab.do=off" \
    --serial "file=$W/a.log" --console off --memory size=256M
  up a && ends a
}
check_rng() {
  vm a lab.do=rng -- --memory size=256M
  ends a && note "$(value a RNG)" && says a '^RNG virtio_rng.0 256'
}

smp() { # VCPUS
  vm a lab.do=off -- --cpus "boot=$1" --memory size=512M
  up a 300 && ends a && note "guest uptime $(value a NANO-UP | cut -d' ' -f1) s" && says a "cpus=$1 "
}
check_smp2() { smp 2; }
check_smp4() { smp 4; }
check_smp8() { smp 8; }
check_smp16() { smp 16; }
check_smp32() { smp 32; }
check_smp() { smp 4; }

check_topology() { # 2 threads x 2 cores x 1 die x 2 packages
  vm a lab.ip=192.168.77.2/24 -- --cpus boot=8,topology=2:2:1:2 --memory size=256M --net "tap=,ip=192.168.77.1,mask=255.255.255.0"
  up a 200 && within 60 guest 192.168.77.2 true || return
  local t=/sys/devices/system/cpu/cpu7/topology
  note "cpu7: $(guest 192.168.77.2 "cat $t/physical_package_id $t/core_id $t/thread_siblings_list" | tr '\n' ' ')"
  [ "$(guest 192.168.77.2 "cat $t/physical_package_id $t/thread_siblings_list" | tr '\n' ' ')" = "1 6-7 " ]
}
check_numa() {
  vm a lab.do=numa -- --cpus boot=2 --memory size=0 --memory-zone id=m0,size=256M id=m1,size=256M \
    --numa guest_numa_id=0,cpus=0,memory_zones=m0,distances=[1@20] guest_numa_id=1,cpus=1,memory_zones=m1,distances=[0@20]
  up a && ends a || return
  note "$(value a 'NODE 0') / $(value a 'NODE 1')"
  says a '^NODE 0 cpus=0 kib=[12][0-9]\{5\} distance=10 20' && says a '^NODE 1 cpus=1 kib=[12][0-9]\{5\} distance=20 10'
}
check_hugepages() {
  echo 160 >/proc/sys/vm/nr_hugepages
  vm a -- --memory size=256M,hugepages=on,hugepage_size=2M
  up a || return
  local free; free=$(sed -n 's/HugePages_Free: *//p' /proc/meminfo)
  note "$free of 160 huge pages free"
  [ "$free" -le 140 ] && stop a && within 20 grep -q '^HugePages_Free: *160' /proc/meminfo
}

check_reboot() { # ten times, counted by the guest on its disk; the same VMM process all the time
  truncate -s 1M "$W/d.raw"
  # The first sector is written to, which takes a disk whose type is not a guess.
  vm a lab.do=reboots lab.times=10 -- --memory size=256M --disk "path=$W/d.raw,image_type=raw"
  ends a 390 || { fail "after $(tr -d '\0' <"$W/d.raw" | head -c 8) reboots"; return; }
  note "$(tr -d '\0' <"$W/d.raw") reboots"
  [ "$(tr -d '\0' <"$W/d.raw")" = 10 ]
}
check_sigterm() { # an orderly stop from outside is a normal end
  vm a -- --memory size=256M
  up a || return
  kill "$(pid a)"; ends a 20
}
check_powerbutton() { # the guest has to see the event
  needs_api || return
  vm a lab.do=button -- --memory size=256M
  up a && api a power-button || return
  ends a 60
}
check_platform() { # names, clocks and the time, as Linux sees them
  vm a lab.do=platform -- --cpus boot=1 --memory size=256M --platform \
    "serial_number=lab-serial-7,uuid=8a3f1c52-77d0-4e0b-9d5e-2f3a4b5c6d7e,oem_strings=[first,second]"
  up a && ends a || return
  note "clocks $(value a 'CLOCKS available_clocksource'), RTC off by $(value a RTC | cut -d' ' -f2) s"
  says a '^CLOCKS available_clocksource .*kvm-clock' && says a '^CLOCKS available_clocksource .*tsc' || return
  says a '^CLOCKS current_clocksource \(kvm-clock\|tsc\)' || return
  says a '^RTC rtc_cmos .*[ -][0-2]\b' || { fail "RTC: $(value a RTC)"; return; }
  says a '^DMI product_serial lab-serial-7' && says a '^DMI product_uuid 8a3f1c52-77d0-4e0b-9d5e-2f3a4b5c6d7e' &&
    says a '^OEM .*first|second|' || { fail "$(value a 'DMI product_serial') $(value a 'DMI product_uuid') $(value a OEM)"; return; }
}
check_pvpanic() { # a kernel that panics says so to whoever watches the VM
  vm a panic=0 lab.do=panic -- --memory size=256M --pvpanic --event-monitor "path=$W/events"
  up a && within 60 grep -q '"panic"' "$W/events" || { fail "no event: $(tail -n 3 "$W/events")"; return; }
  note "$(tr -d ' \n' <"$W/events" | grep -o '"event":"panic"[^}]*}*' | tail -n 1)"
  kill -0 "$(pid a)"
}
