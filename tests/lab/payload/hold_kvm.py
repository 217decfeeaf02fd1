"""Keeps one empty VM of L1's KVM, until it is killed. Says so on standard output.

Linux patches its scheduler when the first VM is made and when the last one is gone (the static key of preemption
notifiers), and QEMU's emulation of several processors now and then executes the half-patched code: L1 dies of an int3.
With a VM that is always there, nothing is patched.
"""

import fcntl
import os
import time

KVM_CREATE_VM = 0xAE01

machine = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC), KVM_CREATE_VM, 0)
print("holding", flush=True)
while True:
    time.sleep(3600)
