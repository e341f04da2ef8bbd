//! A VM process from its first message to its end: it opens everything, enters its jail, builds the
//! machine, closes the jail, and runs.

mod build;
mod door;
mod open;
mod run;

pub use run::POWER_OFF_PATIENCE;

use crate::vm::end_signals::EndSignals;
use crate::vm::error::VmError;
use crate::vm::jail::Jail;
use open::Opened;
use protocol::{Channel, ChannelError, FromVm};
use rustix::fd::OwnedFd;

/// Runs the VM that the host at `channel` describes; its console is at `console`.
///
/// # Errors
/// When the VM cannot start or go on. The host has been told then, if it is still there.
pub fn main(mut channel: Channel, console: OwnedFd) -> Result<(), VmError> {
    let result = open_build_run(&mut channel, console);
    if let Err(error) = &result {
        let error = crate::error_chain(error);
        ignore_gone_host(channel.send(&FromVm::Failed { error }, &[]));
    }
    result
}

/// The channel is to another host in the end, if one has come.
fn open_build_run(channel: &mut Channel, console: OwnedFd) -> Result<(), VmError> {
    let signals = EndSignals::take().map_err(VmError::StartThread)?;
    let opened = Opened::by_first_message(channel, console)?;
    let jail = Jail::enter(opened.config.jail);
    build::build(channel, signals, opened, jail)?.run()
}

/// The host may have died: the VM's own end is the same then.
fn ignore_gone_host(sent: Result<(), ChannelError>) {
    if let Err(error) = sent {
        tracing::debug!("the host is not there: {error}");
    }
}
