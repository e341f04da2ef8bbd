//! Linux guests on QEMU's own computer, with QEMU's own balloon device. They obey as those of `linux` do.

use crate::linux::{GuestMemory, LinuxKernel, READ_MEMORY, answer_in, read_complaints};
use crate::qemu::Qemu;
use crate::wait::wait_while_progress;
use std::ops::{Deref, DerefMut};

/// A QEMU with a Linux guest that obeys.
#[derive(Debug)]
pub struct LinuxQemu {
    qemu: Qemu,
    name: String,
    orders: u32,
}

impl LinuxQemu {
    /// Boots that kernel on KVM, under that name, with memory as in `256M` and a balloon `b0` that deflates on OOM, and waits
    /// until its first process obeys. The second of its monitors is left to others.
    #[must_use]
    pub fn boot(kernel: &LinuxKernel, name: &str, memory: &str) -> Self {
        let guest = Self {
            qemu: Qemu::start_linux(name, memory, kernel),
            name: name.to_owned(),
            orders: 0,
        };
        guest.wait_until_ready(0);
        guest
    }

    /// Waits until its first process obeys, of which it told after that many bytes of what it printed.
    ///
    /// # Panics
    /// If it does not come so far.
    pub fn wait_until_ready(&self, after: usize) {
        let printed = wait_while_progress("the guest is ready", || {
            let text = self.qemu.printed_from(after);
            let is_ready = text.lines().any(|line| line.starts_with("ready "));
            if is_ready { Ok(text) } else { Err(text.len()) }
        });
        assert!(!printed.contains("failed: "), "{printed}");
    }

    /// Gives an order that is not waited for, and of which there may be no answer.
    ///
    /// # Panics
    /// If it is more than a line, or QEMU has ended.
    pub fn order(&mut self, command: &str) -> u32 {
        assert!(!command.contains('\n'), "an order is one line: {command}");
        self.orders += 1;
        self.qemu.type_line(&format!("{} {command}", self.orders));
        self.orders
    }

    /// Waits until an order is done; what it printed, and the status it ended with.
    #[must_use]
    pub fn answer(&self, order: u32) -> (String, u8) {
        wait_while_progress(&format!("order {order} of {} is done", self.name), || {
            let text = self.qemu.printed_from(0);
            answer_in(&text, order).ok_or(text.len())
        })
    }

    /// Runs a shell command that must succeed; what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&mut self, command: &str) -> String {
        let order = self.order(command);
        let (printed, status) = self.answer(order);
        assert_eq!(status, 0, "`{command}` in {}: {printed}", self.name);
        printed
    }

    /// The most important of its kernel's figures on memory.
    pub fn memory(&mut self) -> GuestMemory {
        GuestMemory::parse(&self.run(READ_MEMORY))
    }

    /// Messages of its kernel that tell of its own or its machine's faults.
    pub fn complaints(&mut self) -> String {
        self.run(&read_complaints())
    }
}

impl Deref for LinuxQemu {
    type Target = Qemu;

    fn deref(&self) -> &Qemu {
        &self.qemu
    }
}

impl DerefMut for LinuxQemu {
    fn deref_mut(&mut self) -> &mut Qemu {
        &mut self.qemu
    }
}

impl Drop for LinuxQemu {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the guest {} printed:\n{}",
                self.name,
                self.qemu.printed_from(0)
            );
        }
    }
}
