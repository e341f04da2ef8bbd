//! Linux guests on QEMU's own computer, with QEMU's own balloon device. They obey as those of `linux` do.

use crate::linux::{LinuxKernel, Obeys};
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
}

impl Obeys for LinuxQemu {
    fn name(&self) -> &str {
        &self.name
    }

    fn printed(&self) -> String {
        self.qemu.printed_from(0)
    }

    fn type_line(&mut self, line: &str) {
        self.qemu.type_line(line);
    }

    fn next_order(&mut self) -> u32 {
        self.orders += 1;
        self.orders
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
