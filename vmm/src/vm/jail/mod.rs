//! What a VM process may still do once its guest runs: hardly more than what it does.
//!
//! A guest that breaks out of its device's code has this process, not the machine. The jail sees to it that it has no
//! more than that: what a VM process needs of the world is open by then, and the rest is out of reach. Several layers
//! stop the same, each in another part of the kernel, so that a hole in one is not the end. vmm/docs/security.md says
//! what each stops, and what none does.
//!
//! The order is given by what the layers need of each other:
//!
//! ```text
//!   open ─▶ enter ─▶ build ─▶ close ─▶ run
//!             │                 ├─ limits     of the descriptors that are open by now, and of memory
//!             │                 └─ seccomp    on all threads; a vCPU's own list when it comes out of the gate
//!             ├─ namespaces    needs capabilities, those of a user namespace at least
//!             ├─ capabilities  from here on none, and nothing that root owns
//!             ├─ undumpable
//!             └─ landlock      the first layer that stops opening
//! ```
//!
//! What is entered before `build` belongs to one thread, and the threads that are built inherit it. What comes after
//! can forbid building: no memory file, thread, ring or part of the machine is made any more.
//!
//! A layer that this machine does not have is left out and reported: the others hold.

mod allowed;
mod capabilities;
mod descriptors;
mod forbidden;
mod landlock;
mod limits;
mod names;
mod namespaces;
mod seccomp;
#[cfg(test)]
mod tests;

pub use descriptors::close_inherited;
pub(super) use seccomp::VcpuJail;

use limits::OwnFiles;
use namespaces::Leaving;
use page::PageCount;
use protocol::{Holding, JailLayer, JailMode, JailReport};

/// A jail that is not closed yet: the process can still make things of what it has.
#[derive(Debug)]
pub(super) struct Jail {
    report: JailReport,
    own_files: Option<OwnFiles>,
    vcpus: VcpuJail,
    leaving: Option<Leaving>,
}

impl Jail {
    /// Puts this thread behind the layers that the threads inherit which it starts from now on. Nothing can be opened
    /// any more.
    pub(super) fn enter(mode: JailMode) -> Self {
        let all: &[JailLayer] = match mode {
            JailMode::Off => &[],
            JailMode::Enforce | JailMode::Log => &JailLayer::ALL,
        };
        Self::enter_layers(mode, all)
    }

    /// As [`Self::enter`], with some of the layers.
    fn enter_layers(mode: JailMode, wanted: &[JailLayer]) -> Self {
        let mut jail = Self {
            report: JailReport {
                mode,
                ..JailReport::default()
            },
            own_files: OwnFiles::open().ok(),
            vcpus: VcpuJail::default(),
            leaving: None,
        };
        // What the host may not do to others it must go on being able to do to this process.
        let is_above = capabilities::is_above_others();
        let is_hidden = wanted.contains(&JailLayer::Undumpable) && is_above;
        if wanted.contains(&JailLayer::Namespaces) {
            jail.leaving = Some(namespaces::leave());
        }
        let drop_all = || capabilities::drop_all(is_above);
        jail.hold(wanted, JailLayer::Capabilities, drop_all);
        if is_hidden {
            jail.hold(wanted, JailLayer::Undumpable, capabilities::hide);
        }
        jail.hold(wanted, JailLayer::Landlock, landlock::forbid_all);
        jail.await_closing(wanted);
        jail
    }

    /// What a vCPU's thread enters before it runs its guest.
    pub(super) fn of_vcpus(&self) -> VcpuJail {
        self.vcpus.clone()
    }

    /// Closes it, for all threads that there are, around a guest of that size. None can be started any more. Returns what holds.
    pub(super) fn close(mut self, guest: PageCount) -> JailReport {
        let mode = self.report.mode;
        let is_awaited = |layer| self.report.layers.contains_key(&layer);
        let (limits, seccomp) = (
            is_awaited(JailLayer::Limits),
            is_awaited(JailLayer::Seccomp),
        );
        if let Some(leaving) = self.leaving.take() {
            let held = leaving.arrive();
            self.report.layers.insert(JailLayer::Namespaces, held);
        }
        if limits {
            let held = limits::set(self.own_files.take(), guest);
            self.report.layers.insert(JailLayer::Limits, held);
        }
        drop(self.own_files.take());
        if seccomp {
            let held = seccomp::install(mode, &self.vcpus);
            self.report.layers.insert(JailLayer::Seccomp, held);
        }
        self.report
    }

    fn hold(&mut self, wanted: &[JailLayer], layer: JailLayer, enter: impl FnOnce() -> Holding) {
        if wanted.contains(&layer) {
            self.report.layers.insert(layer, enter());
        }
    }

    /// These do not hold before the jail is closed.
    fn await_closing(&mut self, wanted: &[JailLayer]) {
        let last = [JailLayer::Limits, JailLayer::Seccomp];
        let awaited = last.into_iter().filter(|layer| wanted.contains(layer));
        let awaited = awaited.map(|layer| (layer, Holding::No));
        self.report.layers.extend(awaited);
    }
}

/// Whether what was tried holds, by the kernel's word.
fn held<T, E: std::fmt::Display>(what: &str, tried: Result<T, E>) -> Holding {
    match tried {
        Ok(_) => Holding::Whole,
        Err(error) => {
            tracing::debug!("{what}: {error}");
            Holding::No
        }
    }
}
