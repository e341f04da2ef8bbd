//! Which system calls the threads of a VM process may make, and what happens to one that makes another.
//!
//! All threads have the same list, of which those that run vCPUs have the part that they need: a guest's way out leads
//! through them first. The lists are in `allowed`.

use super::allowed::{Allowed, ON_OTHERS, ON_VCPUS, REFUSED, When};
use super::forbidden;
use protocol::{Holding, JailMode};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// What a vCPU's thread enters; clones are the same one. Empty as long as the jail is open, or if there is none.
#[derive(Clone, Debug, Default)]
pub(in crate::vm) struct VcpuJail(Arc<OnceLock<BpfProgram>>);

impl VcpuJail {
    /// From here on this thread can do what a vCPU does, and no more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::vm) fn enter(&self) -> Result<(), Error> {
        self.0.get().map_or(Ok(()), |program| apply_filter(program))
    }
}

/// Closes the jail for all threads that there are, and prepares the one of `vcpus`.
pub(super) fn install(mode: JailMode, vcpus: &VcpuJail) -> Holding {
    match try_install(mode, vcpus) {
        Ok(()) => Holding::Whole,
        Err(error) => {
            tracing::debug!("seccomp: {error}");
            Holding::No
        }
    }
}

fn try_install(mode: JailMode, vcpus: &VcpuJail) -> Result<(), Error> {
    let others = compile(ON_OTHERS, mode)?;
    let of_vcpus = compile(ON_VCPUS, mode)?;
    if mode == JailMode::Enforce {
        forbidden::name_before_the_end().map_err(Error::Seccomp)?;
        apply_filter_all_threads(&refusal()?)?;
    }
    apply_filter_all_threads(&others)?;
    // Set once, for a process has one jail.
    vcpus.0.get_or_init(|| of_vcpus);
    Ok(())
}

/// A program that lets calls on the list pass.
pub(super) fn compile(list: &[&[Allowed]], mode: JailMode) -> Result<BpfProgram, Error> {
    let own_pid = u64::from(std::process::id());
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for allowed in list.iter().copied().flatten() {
        let rules = rules.entry(allowed.call).or_default();
        rules.extend(rules_of(allowed.when, own_pid)?);
    }
    if mode == JailMode::Enforce {
        // By the other program they fail.
        rules.extend(REFUSED.iter().map(|&call| (call, Vec::new())));
    }
    let otherwise = match mode {
        JailMode::Enforce => SeccompAction::Trap,
        JailMode::Log | JailMode::Off => SeccompAction::Log,
    };
    program(rules, otherwise, SeccompAction::Allow)
}

/// A program by which some calls fail, and nothing else happens.
fn refusal() -> Result<BpfProgram, Error> {
    let rules = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let fail = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    program(rules, SeccompAction::Allow, fail)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(rules, otherwise, on_match, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// One of them must match; none is a match.
fn rules_of(when: When, own_pid: u64) -> Result<Vec<SeccompRule>, Error> {
    let rule = |argument, operator, value| -> Result<SeccompRule, Error> {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        Ok(SeccompRule::new(vec![condition])?)
    };
    match when {
        When::Always => Ok(Vec::new()),
        When::IsOneOf { argument, values } => {
            let each = values.iter();
            each.map(|&value| rule(argument, SeccompCmpOp::Eq, value.into()))
                .collect()
        }
        When::LacksBits { argument, bits } => {
            let masked = SeccompCmpOp::MaskedEq(bits.into());
            Ok(vec![rule(argument, masked, 0)?])
        }
        When::IsOwnProcess { argument } => Ok(vec![rule(argument, SeccompCmpOp::Eq, own_pid)?]),
    }
}
