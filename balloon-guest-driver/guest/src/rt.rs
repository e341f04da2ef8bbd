//! From the loader's jump to Rust code at CPL 3, and back for interrupts.
//!
//! Some hypervisors emulate CPL 0 instruction by instruction, slowly and incompletely, and run
//! CPL 3 natively. So CPL 0 is a few dozen plain instructions: a start that sets up the tables
//! below and leaves with `iretq`, stubs that set a flag and return, and one gate to halt. All
//! else, interrupt controllers and page tables included, is done at CPL 3: pages are user
//! accessible, and the I/O permission map in the TSS opens all ports. (IOPL 3 would do the
//! same, but not every hypervisor keeps it across exits.)
//!
//! The other CPUs begin in real mode, in a page below 1 MiB, and take the same way in fewer steps,
//! each with its own [`Area`] of stacks and TSS. Only the boot CPU gets device interrupts.
//!
//! Interrupts are on from the first CPL 3 instruction and never turned off there (`popf` may
//! silently not do so at CPL 3); the interrupt controllers decide what arrives.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use balloon_guest_driver::pool::PROCESSORS_MAX;

use crate::apic;

/// How many interrupt lines have a stub and a flag.
pub(crate) const LINES: usize = 8;
/// The vector of line 0. Above the exceptions, away from those that the PIC would use.
pub(crate) const FIRST_VECTOR: u8 = 0x40;
/// The vector by which CPUs wake one another.
pub(crate) const WAKE_VECTOR: u8 = 0x50;
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

    .code16
    .global trampoline
trampoline:                             # copied below 1 MiB, and begun there: cs is its address
    lgdtl %cs:(trampoline_gdt_pointer - trampoline)
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0x620, %eax                   # as at the boot CPU
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80010033, %eax              # to protected mode and paging at once
    movl %eax, %cr0
    ljmpl $0x10, $worker_long_mode
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .global trampoline_end
trampoline_end:
    .code64
worker_long_mode:
    movl $0x2b, %eax
    movl %eax, %ds
    movl %eax, %es
    movl $0xfee00020, %eax              # the local APIC's number, below 8
    movl (%rax), %edi
    shrl $24, %edi
    movq WORKER_STACKS(,%rdi,8), %rsp
    movl %edi, %eax
    shll $4, %eax
    addl $0x48, %eax
    ltr %ax
    lidt idt_pointer
    leaq 49144(%rsp), %rax              # the user stack's top, as after a call
    pushq $0x2b
    pushq %rax
    pushq $0x3202
    pushq $0x33
    pushq $worker_main
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

fault:                                  # leave for CPL 3 to tell it, on this CPU's fault stack
    popq %rdi
    popq %rsi
    movq (%rsp), %rdx
    movq %cr2, %rcx
    leaq 16416(%rsp), %rax              # 40 up to the kernel stack's top, as after a call
    movq $guest_fault, (%rsp)
    movq $0x33, 8(%rsp)
    movq $0x3002, 16(%rsp)
    movq %rax, 24(%rsp)
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

    .global wake_stub
wake_stub:
    pushq %rax
    movl $0xfee000b0, %eax              # end of interrupt
    movl $0, (%rax)
    popq %rax
    iretq

    .global halt_gate
halt_gate:                              # interrupts are off here, so no wake-up is lost
    cmpq $0, (%rdi)
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
    .global gdt
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff            # 0x10: 64-bit code
    .quad 0x00cf93000000ffff            # 0x18: data
    .quad 0
    .quad 0x00cff3000000ffff            # 0x28: user data
    .quad 0x00affb000000ffff            # 0x30: user 64-bit code
    .quad 0x0000890000002068, 0         # 0x38: the TSS, its base put in at start
    .fill 16, 8, 0                      # 0x48: those of eight other CPUs
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
kernel_stack_top:                       # the fault stack is next to it, as in an Area
    .skip 16384
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
    static wake_stub: u8;
    static trampoline: u8;
    static trampoline_end: u8;
    static mut gdt: [u64; 9 + 2 * PROCESSORS_MAX];
}

const IO_MAP_OFFSET: u16 = 104;
const IO_MAP_BYTES: usize = 8192;
/// The descriptors of the other CPUs' task state segments.
const WORKER_DESCRIPTORS: usize = 9;
/// An available 64-bit TSS of [`Tss`]'s size.
const TSS_DESCRIPTOR: u64 = 0x0000_8900_0000_0000 | (size_of::<Tss>() as u64 - 1);

/// What a CPU other than the first needs. The start knows the distances between the stacks.
#[repr(C, align(4096))]
pub(crate) struct Area {
    kernel_stack: [u8; 4096],
    fault_stack: [u8; 16384],
    user_stack: [u8; 32768],
    tss: Tss,
}

/// A task state segment that opens all ports to CPL 3.
#[repr(C, packed)]
struct Tss {
    reserved: u32,
    kernel_stack_top: u64,
    unused: [u8; 90],
    io_map_offset: u16,
    io_map: [u8; IO_MAP_BYTES],
    io_map_end: u8,
}

/// Where the kernel stacks of the other CPUs end, by their number.
#[unsafe(no_mangle)]
static WORKER_STACKS: [AtomicU64; PROCESSORS_MAX] = [const { AtomicU64::new(0) }; PROCESSORS_MAX];

/// Makes an area the CPU's own, before it is started.
///
/// # Safety
/// Once for a CPU, which does not run yet.
pub(crate) unsafe fn prepare_worker(cpu: usize, area: &'static mut Area) {
    let kernel_stack_top = area.kernel_stack.as_ptr_range().end as u64;
    area.tss = Tss {
        reserved: 0,
        kernel_stack_top,
        unused: [0; 90],
        io_map_offset: IO_MAP_OFFSET,
        io_map: [0; IO_MAP_BYTES],
        io_map_end: 0xff,
    };
    WORKER_STACKS[cpu].store(kernel_stack_top, Ordering::Release);
    let base = &raw const area.tss as u64;
    let low = TSS_DESCRIPTOR | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56;
    let table = (&raw mut gdt).cast::<u64>();
    for (word, value) in (WORKER_DESCRIPTORS + 2 * cpu..).zip([low, base >> 32]) {
        assert!(word < WORKER_DESCRIPTORS + 2 * PROCESSORS_MAX);
        // SAFETY: inside the table, as was just asserted.
        let word = unsafe { table.add(word) };
        // SAFETY: the caller says that the CPU whose entry it is does not run.
        unsafe { word.write_volatile(value) };
    }
}

/// The real-mode code by which another CPU begins. It works in any page below 1 MiB.
pub(crate) fn trampoline_code() -> &'static [u8] {
    let start = &raw const trampoline;
    let length = &raw const trampoline_end as usize - start as usize;
    // SAFETY: the bytes between the two symbols, which nobody changes.
    unsafe { core::slice::from_raw_parts(start, length) }
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

/// Whether the line has interrupted since this was last asked.
pub(crate) fn take_pending(line: usize) -> bool {
    PENDING.0[line].swap(0, Ordering::AcqRel) != 0
}

/// Sleeps until some line is pending. Returns at once if one is. For the boot CPU.
pub(crate) fn halt() {
    // SAFETY: the eight flags are aligned as a word, and words may be seen at any time.
    let flags = unsafe { AtomicU64::from_ptr((&raw const PENDING).cast_mut().cast()) };
    halt_while_zero(flags);
}

/// Sleeps until the next interrupt if the word is zero. It is looked at with interrupts off, so an
/// interrupt after that ends the sleep.
pub(crate) fn halt_while_zero(word: &AtomicU64) {
    // SAFETY: the gate reads the word, changes no register and uses its own stack.
    unsafe { asm!("int3", in("rdi") word.as_ptr()) };
}

/// Fills the interrupt table: exceptions, lines, waking, the halt gate.
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
    gate(usize::from(WAKE_VECTOR), &raw const wake_stub as u64, 0);
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
extern "C" fn guest_fault(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    let cpu = apic::id();
    panic!("exception {vector} on cpu {cpu}, error code {error:#x}, rip {rip:#x}, cr2 {cr2:#x}");
}
