//! From the loader's jump to Rust code at CPL 3, and back for interrupts.
//!
//! Some hypervisors emulate CPL 0 instruction by instruction, slowly and incompletely, and run
//! CPL 3 natively. So CPL 0 is a few dozen plain instructions: a start that sets up the tables
//! below and leaves with `iretq`, stubs that set a flag and return, and one gate to halt. All
//! else, interrupt controllers and page tables included, is done at CPL 3: pages are user
//! accessible, and the I/O permission map in the TSS opens all ports. (IOPL 3 would do the
//! same, but not every hypervisor keeps it across exits.)
//!
//! Interrupts are on from the first CPL 3 instruction and never turned off there (`popf` may
//! silently not do so at CPL 3); the interrupt controllers decide what arrives.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// How many interrupt lines have a stub and a flag.
pub(crate) const LINES: usize = 8;
/// The vector of line 0. Above the exceptions, away from those that the PIC would use.
pub(crate) const FIRST_VECTOR: u8 = 0x40;
/// Vector of the local APIC's spurious interrupt, which must not be acknowledged.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;
/// The breakpoint exception: `int n` is not known to every hypervisor's instruction emulator, but
/// exceptions arrive everywhere.
const HALT_VECTOR: usize = 3;
const EXCEPTIONS: usize = 32;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 8, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

    .section .text.boot, "ax"
    .code32
    .global pvh_start
pvh_start:                              # ebx: the start info
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0x620, %eax                   # PAE, OSFXSR, OSXMMEXCPT: precompiled core uses SSE2
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER.LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $tss, %eax                     # a descriptor wants the address in pieces
    movw %ax, gdt + 0x3a
    shrl $16, %eax
    movb %al, gdt + 0x3c
    movb %ah, gdt + 0x3f
    movl $0x80010033, %eax              # PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x10, $long_mode
    .code64
long_mode:
    movl $0x2b, %eax
    movl %eax, %ds
    movl %eax, %es
    movl $0x38, %eax
    ltr %ax
    lidt idt_pointer
    movb $0xff, %al                     # both PICs masked: pins below 16 reach them too
    outb %al, $0x21
    outb %al, $0xa1
    movl $kernel_stack_top, %esp
    movl %ebx, %edi
    pushq $0x2b
    pushq $(user_stack_top - 8)         # as after a call
    pushq $0x3202                       # interrupts on
    pushq $0x33
    pushq $guest_main
    iretq

    .altmacro
    .macro exception number
    .align 16
    .if (\number == 8) || (\number >= 10 && \number <= 14) || (\number == 17) || (\number == 21)
    .else
    pushq $0
    .endif
    pushq $\number
    jmp fault
    .endm
    .align 16
    .global exception_stubs
exception_stubs:
    .set n, 0
    .rept 32
    exception %n
    .set n, n + 1
    .endr

fault:                                  # keep what is known and leave for CPL 3 to tell it
    popq FAULT + 0
    popq FAULT + 8
    popq FAULT + 16
    pushq $guest_fault
    movq %cr2, %rax
    movq %rax, FAULT + 24
    movq $0x33, 8(%rsp)
    movq $0x3002, 16(%rsp)
    movq $(fault_stack_top - 8), 24(%rsp)
    movq $0x2b, 32(%rsp)
    iretq

    .macro line number
    .align 32
    movb $1, PENDING + \number
    pushq %rax
    movl $0xfee000b0, %eax              # end of interrupt
    movl $0, (%rax)
    popq %rax
    iretq
    .endm
    .align 32
    .global line_stubs
line_stubs:
    .set n, 0
    .rept 8
    line %n
    .set n, n + 1
    .endr
    .noaltmacro

    .global halt_gate
halt_gate:                              # interrupts are off here, so no wake-up is lost
    cmpq $0, PENDING
    jne 1f
    sti
    hlt
1:  iretq
    .global spurious_stub
spurious_stub:
    iretq

    .section .data.boot, "aw"
    .align 4096
pml4:
    .quad pdpt + 0x67
    .fill 511, 8, 0
    .global pdpt
pdpt:
    .quad pd + 0x67, pd + 0x1067, pd + 0x2067, pd + 0x3067
    .fill 508, 8, 0
pd:                                     # 4 GiB, each page where it is, user accessible
    .set n, 0
    .rept 2048
    .quad n + 0xe7
    .set n, n + 0x200000
    .endr
    .align 16
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff            # 0x10: 64-bit code
    .quad 0x00cf93000000ffff            # 0x18: data
    .quad 0
    .quad 0x00cff3000000ffff            # 0x28: user data
    .quad 0x00affb000000ffff            # 0x30: user 64-bit code
    .quad 0x0000890000002068, 0         # 0x38: the TSS, its base put in at start
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 0xfff
    .quad IDT
    .align 16
tss:
    .long 0
    .quad kernel_stack_top
    .fill 90, 1, 0
    .word 104
    .fill 8192, 1, 0                    # every port is open to CPL 3
    .byte 0xff

    .section .bss.boot, "aw", @nobits
    .align 4096
    .skip 4096
kernel_stack_top:
    .skip 16384
fault_stack_top:
    .skip 131072
user_stack_top:
    "#,
    options(att_syntax)
);

// The memory functions that compiled code calls. The string instructions are as fast as any
// for whole pages.
global_asm!(
    r#"
    .section .text.memory, "ax"
    .global memcpy, memmove, memset, memcmp, bcmp, rust_eh_personality
memmove:
    movq %rdi, %rax
    subq %rsi, %rax
    cmpq %rdx, %rax
    jb 1f
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
1:  movq %rdi, %rax                     # overlapping, target above: from the end
    movq %rdx, %rcx
    leaq -1(%rdi,%rdx), %rdi
    leaq -1(%rsi,%rdx), %rsi
    std
    rep movsb
    cld
    ret
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
memcmp:
bcmp:
    xorl %ecx, %ecx
1:  cmpq %rdx, %rcx
    je 2f
    movzbl (%rdi,%rcx), %eax
    movzbl (%rsi,%rcx), %r8d
    incq %rcx
    subl %r8d, %eax
    je 1b
    ret
2:  xorl %eax, %eax
    ret
rust_eh_personality:
    ud2
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static exception_stubs: u8;
    static line_stubs: u8;
    static halt_gate: u8;
    static spurious_stub: u8;
}

#[repr(align(4096))]
struct Idt([AtomicU64; 512]);

/// Empty until [`fill_idt`]; nothing can arrive before.
#[unsafe(no_mangle)]
static IDT: Idt = Idt([const { AtomicU64::new(0) }; 512]);

/// One flag per line, set by its stub. Aligned, so that the halt gate sees all eight at once.
#[repr(align(8))]
pub(crate) struct Pending([AtomicU8; LINES]);

#[unsafe(no_mangle)]
static PENDING: Pending = Pending([const { AtomicU8::new(0) }; LINES]);

/// What the exception stubs kept: vector, error code, RIP, CR2.
#[unsafe(no_mangle)]
static FAULT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Whether the line has interrupted since this was last asked.
pub(crate) fn take_pending(line: usize) -> bool {
    PENDING.0[line].swap(0, Ordering::AcqRel) != 0
}

/// Sleeps until some line is pending. Returns at once if one is.
pub(crate) fn halt() {
    // SAFETY: the gate changes no register and uses its own stack.
    unsafe { asm!("int3") };
}

/// Fills the interrupt table: exceptions, lines, the halt gate.
pub(crate) fn fill_idt() {
    for n in 0..EXCEPTIONS {
        gate(n, &raw const exception_stubs as u64 + 16 * n as u64, 0);
    }
    for n in 0..LINES {
        gate(
            usize::from(FIRST_VECTOR) + n,
            &raw const line_stubs as u64 + 32 * n as u64,
            0,
        );
    }
    gate(HALT_VECTOR, &raw const halt_gate as u64, 3);
    gate(
        usize::from(SPURIOUS_VECTOR),
        &raw const spurious_stub as u64,
        0,
    );
}

/// An interrupt gate to `target` that code of `caller_level` may use with `int`.
fn gate(vector: usize, target: u64, caller_level: u64) {
    let low = (target & 0xffff)
        | 0x10 << 16
        | (0x8e00 | caller_level << 13) << 32
        | (target >> 16 & 0xffff) << 48;
    IDT.0[2 * vector + 1].store(target >> 32, Ordering::Relaxed);
    IDT.0[2 * vector].store(low, Ordering::Release);
}

/// Empties the interrupt table, so that the next exception resets the machine.
pub(crate) fn empty_idt() {
    for word in &IDT.0 {
        word.store(0, Ordering::Relaxed);
    }
}

/// An exception is this program's own bug: it is told and ends the machine.
#[unsafe(no_mangle)]
extern "C" fn guest_fault() -> ! {
    let [vector, error, rip, cr2] = [0, 1, 2, 3].map(|n: usize| FAULT[n].load(Ordering::Relaxed));
    panic!("exception {vector}, error code {error:#x}, rip {rip:#x}, cr2 {cr2:#x}");
}
