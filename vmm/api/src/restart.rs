//! What becomes of a VM that has ended, as people know it from containers.

use protocol::VmName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// Whether a VM is started again when it has ended, and with the next host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never. It is forgotten when it has ended.
    #[default]
    No,
    /// If it ended otherwise than by switching itself off or by `stop`; and with the next host, if it was to run when
    /// the last one ended.
    OnFailure,
    /// However it ended, but after `stop` only with the next host.
    Always,
}

impl RestartPolicy {
    /// All of them, as they are written.
    const WORDS: [(Self, &str); 3] = [
        (Self::No, "no"),
        (Self::OnFailure, "on-failure"),
        (Self::Always, "always"),
    ];
}

/// A text that names no such policy.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' does not say when to start again: write no, on-failure or always")]
pub struct InvalidRestartPolicy(String);

impl FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidRestartPolicy> {
        let mut words = Self::WORDS.into_iter();
        let found = words.find(|(_, word)| *word == text);
        found
            .map(|(policy, _)| policy)
            .ok_or_else(|| InvalidRestartPolicy(text.chars().take(40).collect()))
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Self::WORDS.into_iter();
        let word = words.find(|(policy, _)| policy == self);
        f.write_str(word.map_or("no", |(_, word)| word))
    }
}

/// What is known of a VM that is to come back, whether it runs or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DefinitionView {
    /// Its name.
    pub name: VmName,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// What it is promised.
    pub memory_bytes: u64,
    /// How it stands.
    pub state: DefinitionState,
    /// How often it was started again by this host because it had ended.
    pub restarts: u64,
}

/// How it stands with a VM that is to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DefinitionState {
    /// It is among the VMs: it runs, starts or ends.
    Running,
    /// It waits to be admitted, or for its time to be started again.
    Coming,
    /// It was stopped.
    Stopped,
    /// Its guest switched itself off.
    SwitchedOff,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_written_as_it_is_typed_and_sent() {
        for (policy, word) in RestartPolicy::WORDS {
            assert_eq!(policy.to_string(), word);
            assert_eq!(word.parse(), Ok(policy));
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("\"{word}\""));
        }
        let error = "sometimes".parse::<RestartPolicy>().unwrap_err();
        assert!(error.to_string().contains("'sometimes'"), "{error}");
    }
}
