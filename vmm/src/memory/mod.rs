//! A guest's memory and the agent that changes what backs it.
//!
//! Devices and vCPUs reach guest memory through one mapping, [`GuestRam::memory`]. The agent, and
//! nobody else, takes pages away from under it.

pub mod agent;
pub mod areas;
pub mod block_window;
pub(crate) mod doors;
mod error;
mod heartbeat;
mod large_file;
pub(crate) mod left_out;
mod mapping;
pub mod pagemap;
mod pages;
pub mod ram;
pub mod residency;
#[cfg(test)]
#[cfg(feature = "lockset")]
mod seeded_faults;
pub mod store;
pub(crate) mod swap;
mod userfault;

pub use agent::AgentHandle;
pub use error::MemoryError;
pub use large_file::hindrance as large_page_hindrance;
pub(crate) use pagemap::IOCTL as PAGEMAP_IOCTL;
pub use ram::GuestRam;
pub(crate) use userfault::IOCTLS as USERFAULT_IOCTLS;
