//! A guest's memory and the agent that changes what backs it.
//!
//! Devices and vCPUs reach guest memory through one mapping, [`GuestRam::memory`]. The agent, and
//! nobody else, takes pages away from under it.

pub mod agent;
mod error;
pub mod ram;
mod residency;
mod userfault;

pub use agent::AgentHandle;
pub use error::MemoryError;
pub use ram::{ClaimedGfn, GuestRam, RamLayout};
