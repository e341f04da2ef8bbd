//! Errors in the one form that clients get, RFC 9457's. What an error's kind means stands in one table, from
//! which answers are made, the description of the interface, and the page that its `type` points to.

use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the kinds of errors are listed.
const PROBLEMS_PATH: &str = "/v1/problems";

/// An error as RFC 9457 describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of error; /v1/problems lists them all.
    #[serde(default)]
    #[schema(format = "uri-reference", example = "/v1/problems#unknown-vm")]
    pub r#type: String,
    /// The kind in words, the same for every error of its kind.
    #[schema(example = "unknown VM")]
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    pub status: u16,
    /// What is wrong here and what would help.
    #[schema(example = "no VM is called 'web': `ballonet ps` lists them")]
    pub detail: String,
    /// The path that was asked for.
    #[serde(default)]
    #[schema(format = "uri-reference", example = "/v1/vms/web")]
    pub instance: String,
}

impl Problem {
    /// An error of a kind, which happened where `instance` says.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: String, instance: &str) -> Self {
        let ProblemView {
            r#type,
            title,
            status,
        } = kind.view();
        Self {
            r#type,
            title,
            status,
            detail,
            instance: instance.into(),
        }
    }

    /// Whether it is of that kind.
    #[must_use]
    pub fn is(&self, kind: ProblemKind) -> bool {
        self.title == kind.title()
    }
}

/// A kind of error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemView {
    /// What `type` says in errors of this kind.
    #[schema(format = "uri-reference", example = "/v1/problems#unknown-vm")]
    pub r#type: String,
    /// What `title` says in them.
    #[schema(example = "unknown VM")]
    pub title: String,
    /// Their HTTP status.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    pub status: u16,
}

/// The kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their titles say it")]
pub enum ProblemKind {
    InvalidRequest,
    TokenNeeded,
    RoleNeeded,
    WrongAddress,
    AnotherSite,
    UnknownVm,
    UnknownToken,
    NoSuchRoute,
    MethodNotOffered,
    TooSlow,
    NameInUse,
    StillRuns,
    NotAdmitted,
    NoMemoryInTime,
    NotRunningYet,
    NotDecidedYet,
    BodyTooLarge,
    DidNotStart,
    HostError,
    Stopping,
    HostEnded,
    QueueFull,
    TooManyTokens,
    TooManyStreams,
    TooManyConsoles,
    NoAudit,
    NotKept,
    NotOurs,
    NotAdopted,
    NotReleased,
}

impl ProblemKind {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::InvalidRequest,
        Self::TokenNeeded,
        Self::RoleNeeded,
        Self::WrongAddress,
        Self::AnotherSite,
        Self::UnknownVm,
        Self::UnknownToken,
        Self::NoSuchRoute,
        Self::MethodNotOffered,
        Self::TooSlow,
        Self::NameInUse,
        Self::StillRuns,
        Self::NotAdmitted,
        Self::NoMemoryInTime,
        Self::NotRunningYet,
        Self::NotDecidedYet,
        Self::BodyTooLarge,
        Self::DidNotStart,
        Self::HostError,
        Self::Stopping,
        Self::HostEnded,
        Self::QueueFull,
        Self::TooManyTokens,
        Self::TooManyStreams,
        Self::TooManyConsoles,
        Self::NoAudit,
        Self::NotKept,
        Self::NotOurs,
        Self::NotAdopted,
        Self::NotReleased,
    ];

    fn meaning(self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid request"),
            Self::TokenNeeded => (StatusCode::UNAUTHORIZED, "token needed"),
            Self::RoleNeeded => (StatusCode::FORBIDDEN, "role needed"),
            Self::WrongAddress => (StatusCode::FORBIDDEN, "wrong address"),
            Self::AnotherSite => (StatusCode::FORBIDDEN, "another site"),
            Self::UnknownVm => (StatusCode::NOT_FOUND, "unknown VM"),
            Self::UnknownToken => (StatusCode::NOT_FOUND, "unknown token"),
            Self::NoSuchRoute => (StatusCode::NOT_FOUND, "no such route"),
            Self::MethodNotOffered => (StatusCode::METHOD_NOT_ALLOWED, "method not offered"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too slow"),
            Self::NameInUse => (StatusCode::CONFLICT, "name in use"),
            Self::StillRuns => (StatusCode::CONFLICT, "still runs"),
            Self::NotAdmitted => (StatusCode::CONFLICT, "not admitted"),
            Self::NoMemoryInTime => (StatusCode::CONFLICT, "no memory in time"),
            Self::NotRunningYet => (StatusCode::CONFLICT, "not running yet"),
            Self::NotDecidedYet => (StatusCode::CONFLICT, "not decided yet"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body too large"),
            Self::DidNotStart => (StatusCode::UNPROCESSABLE_ENTITY, "did not start"),
            Self::HostError => (StatusCode::INTERNAL_SERVER_ERROR, "host error"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Self::HostEnded => (StatusCode::SERVICE_UNAVAILABLE, "host ended"),
            Self::QueueFull => (StatusCode::SERVICE_UNAVAILABLE, "queue full"),
            Self::TooManyTokens => (StatusCode::CONFLICT, "too many tokens"),
            Self::TooManyStreams => (StatusCode::SERVICE_UNAVAILABLE, "too many streams"),
            Self::TooManyConsoles => (StatusCode::SERVICE_UNAVAILABLE, "too many consoles"),
            Self::NoAudit => (StatusCode::SERVICE_UNAVAILABLE, "audit given up"),
            Self::NotKept => (StatusCode::INSUFFICIENT_STORAGE, "not kept"),
            Self::NotOurs => (StatusCode::CONFLICT, "not run by this host"),
            Self::NotAdopted => (StatusCode::UNPROCESSABLE_ENTITY, "not adopted"),
            Self::NotReleased => (StatusCode::GATEWAY_TIMEOUT, "not released"),
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.meaning().0
    }

    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.meaning().1
    }

    /// As clients see it.
    #[must_use]
    pub fn view(self) -> ProblemView {
        let (status, title) = self.meaning();
        let anchor = title.to_lowercase().replace(' ', "-");
        ProblemView {
            r#type: format!("{PROBLEMS_PATH}#{anchor}"),
            title: title.into(),
            status: status.as_u16(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_kinds_of_errors_have_one_type() {
        let types: BTreeSet<String> = ProblemKind::ALL
            .into_iter()
            .map(|kind| kind.view().r#type)
            .collect();
        assert_eq!(types.len(), ProblemKind::ALL.len());
    }
}
