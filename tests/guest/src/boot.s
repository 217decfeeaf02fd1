# Everything that runs in ring 0. Kept as short as it can be: a host may emulate ring 0 one instruction at a time.
#
# The page tables that the boot needs are static data: the first GiB, mapped one to one in 2 MiB pages, open to ring 3.
# Ring 3 owns them from then on (they are ordinary memory to it) and maps whatever else the program touches.
#
# Ring 3 has IOPL 3 and an open I/O bitmap: a hypervisor that emulates ring 0 may lose IOPL on the way to ring 3, and
# then looks at the bitmap. For the same reason ring 3 asks for its interrupt flag to be changed, and uses no cli or sti.

.set CODE0, 0x08
.set USER_DATA, 0x1b
.set USER_CODE, 0x23
.set TSS0, 0x30
.set MAX_CPUS, 97
.set RING0_STACK, 1024
.set IOPL3, 0x3002
.set IF_BIT, 0x200
.set TSS_BYTES, 128
.set TSS_LIMIT, MAX_CPUS * TSS_BYTES + 8192
.set CR4_BITS, 0x620                    # PAE, OSFXSR, OSXMMEXCPT
.set CR0_BITS, 0x80000033               # PG, NE, ET, MP, PE

.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18                      # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.macro enter_ring3 entry, stack        # with interrupts off, until the program asks for them
    push $USER_DATA
    push \stack
    push $IOPL3
    push $USER_CODE
    push \entry
    iretq
.endm

# --- entry of the boot processor: 32-bit protected mode, no paging, ebx = hvm_start_info -----------------------------
.section .text.boot, "ax"
.code32
.globl pvh_start
pvh_start:
    lgdt gdt_pointer
    mov $CR4_BITS, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax                     # LME
    wrmsr
    mov $CR0_BITS, %eax
    mov %eax, %cr0
    ljmp $CODE0, $start64

.code64
start64:
    mov $(ring0_stacks + RING0_STACK), %esp
    mov $tss, %eax
    mov %ax, gdt + TSS0 + 2
    shr $16, %eax
    mov %al, gdt + TSS0 + 4
    mov $TSS0, %eax
    ltr %ax
    lidt idt_pointer
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %ebx, %edi
    enter_ring3 $guest_main, $(user_stack_end - 8)

# --- entry of the other processors: real mode, copied below 1 MiB by smp.rs ------------------------------------------
.globl ap_trampoline
.globl ap_trampoline_end
.code16
ap_trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl (ap_gdt_pointer - ap_trampoline)
    mov $CR4_BITS, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax                     # LME
    wrmsr
    mov $CR0_BITS, %eax
    mov %eax, %cr0
    ljmpl $CODE0, $ap_start64
.balign 8
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:

.code64
ap_start64:
    mov $1, %eax
    lock xadd %eax, ap_next
    cmp $MAX_CPUS, %eax
    jae ap_park
    mov %eax, %edi
    mov %eax, %edx
    shl $10, %edx
    lea ring0_stacks + RING0_STACK(%edx), %esp
    mov %eax, %edx
    shl $4, %edx
    add $TSS0, %edx
    ltr %dx
    lidt idt_pointer
    xor %ecx, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    mov %ecx, %fs
    mov %ecx, %gs
    mov ap_user_stacks(,%rdi,8), %rbx
    enter_ring3 $ap_main, %rbx
ap_park:
    hlt
    jmp ap_park

# --- services for ring 3: the undefined instruction at service_call, the service in eax, arguments in rdi, rsi, rdx ------
# Software interrupts and syscall would be the usual gates, but some hypervisors that emulate ring 0 do not take them
# from ring 3. Faults reach the descriptor table on all of them.
.text
.globl service_call
service_call:
    ud2
    ret

.globl stub_undefined
stub_undefined:
    cmpq $service_call, (%rsp)
    jne fault_stubs + 16 * 6
    addq $2, (%rsp)
    jmp *services(,%rax,8)
service_halt:                           # unless the word at rsi is no longer rdi; interrupts are off up to hlt
    cmp %rdi, (%rsi)
    jne 1f
    sti
    hlt
1:  iretq
service_enable:
    orl $IF_BIT, 16(%rsp)
    iretq
service_disable:
    andl $~IF_BIT, 16(%rsp)
    iretq
service_rdmsr:
    mov %edi, %ecx
    rdmsr
    iretq
service_wrmsr:
    mov %edi, %ecx
    mov %esi, %eax
    wrmsr
    iretq
service_cpuid:                          # here, as a hypervisor may be unable to trap it in ring 3; ebx goes to r8
    mov %edi, %eax
    mov %esi, %ecx
    mov %rbx, %r8
    cpuid
    xchg %rbx, %r8
    iretq
service_rdtsc:
    rdtsc
    iretq
service_stop:
    cli
    hlt
    jmp service_stop
service_triple_fault:
    lidt no_idt_pointer
    ud2

# --- interrupts: count, end of interrupt, return ---------------------------------------------------------------------
.globl interrupt_stubs_x2apic
.balign 32
interrupt_stubs_x2apic:
.set vector, 0
.rept 256
    .balign 16
    lock incq interrupt_counts + 8 * vector
    jmp eoi_x2apic
    .set vector, vector + 1
.endr
eoi_x2apic:
    lock incq interrupt_total
    push %rax
    push %rcx
    push %rdx
    mov $0x80b, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    pop %rdx
    pop %rcx
    pop %rax
    iretq

.globl interrupt_stubs_xapic
.balign 32
interrupt_stubs_xapic:
.set vector, 0
.rept 256
    .balign 16
    lock incq interrupt_counts + 8 * vector
    jmp eoi_xapic
    .set vector, vector + 1
.endr
eoi_xapic:
    lock incq interrupt_total
    push %rax
    push %rcx
    mov $0xfee000b0, %ecx
    xor %eax, %eax
    mov %eax, (%rcx)
    pop %rcx
    pop %rax
    iretq

.globl stub_nmi
stub_nmi:
    lock incq interrupt_counts + 8 * 2
    iretq
.globl stub_spurious
stub_spurious:
    lock incq interrupt_counts + 8 * 255
    iretq

# --- faults: hand the facts to ring 3, which reports them and ends the run -------------------------------------------
.globl fault_stubs
.balign 32
fault_stubs:
.set vector, 0
.rept 32
    .balign 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    push $0
    .endif
    push $vector
    jmp fault_to_ring3
    .set vector, vector + 1
.endr
fault_to_ring3:
    pop %rdi
    pop %rsi
    mov (%rsp), %rdx
    mov %cr2, %rcx
    mov 24(%rsp), %r8
    mov %r8, %rax
    sub $1024, %rax
    and $-16, %rax
    sub $8, %rax
    mov %rax, 24(%rsp)
    movq $fault_report, (%rsp)
    movq $USER_CODE, 8(%rsp)
    movq $IOPL3, 16(%rsp)
    movq $USER_DATA, 32(%rsp)
    iretq

# --- tables ----------------------------------------------------------------------------------------------------------
.section .data.tables, "aw"
.balign 4096
.globl pml4
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
pdpt:
    .quad pd + 7
    .fill 511, 8, 0
pd:
.set page, 0
.rept 512
    .quad page * 0x200000 + 0x87        # present, writable, user, 2 MiB
    .set page, page + 1
.endr

.balign 16
.globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08 ring 0 code, 64-bit
    .quad 0x00cf93000000ffff            # 0x10 ring 0 data
    .quad 0x00cff3000000ffff            # 0x18 ring 3 data
    .quad 0x00affb000000ffff            # 0x20 ring 3 code, 64-bit
    .quad 0
.rept MAX_CPUS
    .quad 0x0000890000000000 + TSS_LIMIT # a TSS each; the base is filled in before use
    .quad 0
.endr
gdt_end:
.balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 8
idt_pointer:
    .word 256 * 16 - 1
    .quad idt
.balign 8
no_idt_pointer:
    .word 0
    .quad 0

.balign 8
services:
    .quad service_halt, service_enable, service_rdmsr, service_wrmsr, service_stop
    .quad service_triple_fault, service_cpuid, service_rdtsc, service_disable

.balign 128
.globl tss
tss:
.set cpu, 0
.rept MAX_CPUS
    .long 0
    .quad ring0_stacks + RING0_STACK * (cpu + 1)
    .fill 90, 1, 0
    .word io_bitmap - tss - cpu * TSS_BYTES
    .fill 24, 1, 0
    .set cpu, cpu + 1
.endr
io_bitmap:
    .fill 8192, 1, 0
    .byte 0xff

.globl ap_next
.balign 4
ap_next:
    .long 1

.section .bss.tables, "aw", @nobits
.balign 4096
.globl idt
idt:
    .skip 256 * 16
.globl interrupt_counts
interrupt_counts:
    .skip 256 * 8
.globl interrupt_total
interrupt_total:
    .skip 8
.globl ap_user_stacks
ap_user_stacks:
    .skip MAX_CPUS * 8
.balign 1024
ring0_stacks:
    .skip RING0_STACK * MAX_CPUS
.balign 4096
    .skip 65536
.globl user_stack_end
user_stack_end:
