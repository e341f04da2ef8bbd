//! Tokens: what clients that come over TCP may do, for as long as they may.
//!
//! A token is a secret that whoever has it may use. Only its hash is known here and to the disk. One that is withdrawn, or whose
//! time is over, is worth nothing from then on, and what was opened with it ends.

mod secret;

pub(super) use secret::{Secret, SecretFile, SecretHash};

use super::Host;
use super::error::HostError;
use super::events::now_ms;
use super::state_store::Step;
use crate::lock::lock;
use api::{NewToken, Role, TokenName, TokenRequest, TokenView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

/// The name of the token that a host makes by itself.
pub(super) const OWN: &str = "host";
/// Tokens that there can be: each is looked at when somebody sends one.
const MOST: usize = 256;
/// The longest that a token can be told to live, in seconds: a hundred years.
const LONGEST_LIFE_S: u64 = 100 * 365 * 86_400;
/// The clock may be set while a stream is open: it is looked at so often.
const CLOCK_LOOK: Duration = Duration::from_secs(30);

/// What is kept of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TokenRecord {
    hash: SecretHash,
    role: Role,
    made_ms: u64,
    #[serde(default)]
    expires_ms: Option<u64>,
}

impl TokenRecord {
    fn is_over(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= now_ms)
    }
}

#[cfg(test)]
impl TokenRecord {
    pub(super) fn example(made_ms: u64) -> Self {
        Self {
            hash: SecretHash::of(&made_ms.to_string()),
            role: Role::Operate,
            made_ms,
            expires_ms: None,
        }
    }
}

/// One that is known.
#[derive(Debug)]
struct Known {
    record: TokenRecord,
    used_ms: Option<u64>,
    is_kept: bool,
    /// What grants hold on to; none once it is withdrawn and the disk does not know that yet.
    life: Option<watch::Sender<()>>,
}

impl Known {
    fn new(record: TokenRecord, is_kept: bool) -> Self {
        Self {
            record,
            used_ms: None,
            is_kept,
            life: Some(watch::Sender::new(())),
        }
    }

    fn is_valid(&self, now_ms: u64) -> bool {
        self.life.is_some() && !self.record.is_over(now_ms)
    }

    fn view(&self, name: &str, now_ms: u64) -> TokenView {
        TokenView {
            name: name.into(),
            role: self.record.role,
            made_ms: self.record.made_ms,
            expires_ms: self.record.expires_ms,
            used_ms: self.used_ms,
            valid: self.is_valid(now_ms),
            kept: self.is_kept,
        }
    }
}

/// What a token that was sent allows.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) name: String,
    pub(super) role: Role,
    expires_ms: Option<u64>,
    life: watch::Receiver<()>,
}

/// Who asks, as far as it matters what he may do.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) role: Role,
    /// The token that was sent, if one was.
    pub(super) grant: Option<Grant>,
    /// The number of the user who came by the host's socket.
    user: Option<u32>,
}

impl Access {
    /// Of who came by the host's socket: a user of that number.
    pub(super) fn by_socket(user: Option<u32>) -> Self {
        Self {
            role: Role::Admin,
            grant: None,
            user,
        }
    }

    /// Of who came over TCP, perhaps with a token.
    pub(super) fn over_tcp(role: Role, grant: Option<Grant>) -> Self {
        let user = None;
        Self { role, grant, user }
    }

    /// Who it is, in words.
    fn who(&self) -> String {
        match (&self.grant, self.user) {
            (Some(grant), _) => format!("token '{}'", grant.name),
            (None, Some(user)) => format!("user {user}"),
            (None, None) => "somebody".into(),
        }
    }

    /// Done when what was opened must end.
    pub(super) async fn ends(self) {
        let Some(mut grant) = self.grant else {
            return pending().await;
        };
        tokio::select! {
            () = expire(grant.expires_ms) => {}
            // Nothing is ever sent: it ends with its token.
            _withdrawn = grant.life.changed() => {}
        }
    }
}

async fn expire(expires_ms: Option<u64>) {
    let Some(at) = expires_ms else {
        return pending().await;
    };
    loop {
        let left = Duration::from_millis(at.saturating_sub(now_ms()));
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_LOOK)).await;
    }
}

/// Why a token is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worthless {
    Unknown,
    Expired,
}

/// All tokens of a host.
#[derive(Debug)]
pub(super) struct Tokens {
    known: Mutex<BTreeMap<String, Known>>,
    /// Whether those that are made are known to the next host.
    are_kept: bool,
}

impl Tokens {
    /// Those that were kept.
    pub(super) fn of(kept: &BTreeMap<TokenName, TokenRecord>, are_kept: bool) -> Self {
        let kept = kept.iter();
        let known = kept.map(|(name, record)| (name.to_string(), Known::new(record.clone(), true)));
        Self {
            known: Mutex::new(known.collect()),
            are_kept,
        }
    }

    /// Takes the one that the host makes by itself.
    pub(super) fn add_own(&self, secret: &Secret) {
        let record = TokenRecord {
            hash: secret.hash(),
            role: Role::Admin,
            made_ms: now_ms(),
            expires_ms: None,
        };
        self.lock().insert(OWN.into(), Known::new(record, false));
    }

    /// What is granted to whoever sends this.
    pub(super) fn grant(&self, given: &str) -> Result<Grant, Worthless> {
        let (hash, now) = (SecretHash::of(given), now_ms());
        let mut known = self.lock();
        // All are compared, whichever it is.
        let found = known
            .iter_mut()
            .fold(None, |found, one| match one.1.record.hash.is(&hash) {
                true => Some(one),
                false => found,
            });
        let Some((name, known)) = found else {
            return Err(Worthless::Unknown);
        };
        let Some(life) = &known.life else {
            return Err(Worthless::Unknown);
        };
        if known.record.is_over(now) {
            return Err(Worthless::Expired);
        }
        known.used_ms = Some(now);
        Ok(Grant {
            name: name.clone(),
            role: known.record.role,
            expires_ms: known.record.expires_ms,
            life: life.subscribe(),
        })
    }

    /// All that are known, by name.
    pub(super) fn views(&self) -> Vec<TokenView> {
        let now = now_ms();
        let known = self.lock();
        let known = known.iter();
        known.map(|(name, known)| known.view(name, now)).collect()
    }

    /// One of them.
    pub(super) fn view(&self, name: &str) -> Option<TokenView> {
        self.lock()
            .get(name)
            .map(|known| known.view(name, now_ms()))
    }

    /// A name for a new one: the wanted one if it is free, or one that is.
    fn free_name(&self, wanted: Option<TokenName>) -> Result<TokenName, HostError> {
        let (known, now) = (self.lock(), now_ms());
        let is_free = |name: &TokenName| {
            let there = known.get(name.as_str());
            there.is_none_or(|known| !known.is_valid(now))
        };
        if let Some(name) = wanted {
            return match is_free(&name) {
                true if known.len() < MOST || known.contains_key(name.as_str()) => Ok(name),
                true => Err(HostError::TooManyTokens(MOST)),
                false => Err(HostError::TokenNameInUse(name)),
            };
        }
        if known.len() >= MOST {
            return Err(HostError::TooManyTokens(MOST));
        }
        let names = (1..).map(|number: u64| TokenName::try_from(format!("token-{number}")));
        let mut free = names.filter_map(Result::ok).filter(is_free);
        Ok(free.next().expect("there are more numbers than tokens"))
    }

    fn insert(&self, name: &TokenName, record: TokenRecord) -> TokenView {
        let known = Known::new(record, self.are_kept);
        let view = known.view(name.as_str(), now_ms());
        self.lock().insert(name.to_string(), known);
        view
    }

    /// From here on it is worth nothing. False if there is none of that name.
    fn withdraw(&self, name: &str) -> bool {
        let mut tokens = self.lock();
        let known = tokens.get_mut(name);
        known.map(|known| known.life = None).is_some()
    }

    fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        lock(&self.known)
    }
}

impl Host {
    /// Who may do what over TCP.
    pub(super) fn tokens(&self) -> &Tokens {
        &self.shared.tokens
    }

    /// Makes a token. It is known to the next host, too, before this returns.
    pub(super) async fn add_token(
        &self,
        request: TokenRequest,
        by: &Access,
    ) -> Result<NewToken, HostError> {
        let TokenRequest { name, role, .. } = request;
        let life_s = match request.expires_s {
            Some(life) if !(1..=LONGEST_LIFE_S).contains(&life) => {
                return Err(HostError::TokenLife(life));
            }
            life => life,
        };
        let _turn = self.shared.changes.lock().await;
        let name = self.tokens().free_name(name)?;
        let secret = Secret::new().map_err(HostError::TokenNotMade)?;
        let made_ms = now_ms();
        let record = TokenRecord {
            hash: secret.hash(),
            role,
            made_ms,
            expires_ms: life_s.map(|life| made_ms + life * 1000),
        };
        self.keep(vec![Step::AddToken(name.clone(), record.clone())])
            .await?;
        let view = self.tokens().insert(&name, record);
        let who = by.who();
        self.tell_of_token(&format!("token '{name}' was made by {who}: {role}"));
        Ok(NewToken {
            token: secret.as_str().into(),
            view,
        })
    }

    /// Withdraws a token: it is worth nothing from now on, whether the disk takes that or not.
    pub(super) async fn remove_token(&self, name: &str, by: &Access) -> Result<(), HostError> {
        let _turn = self.shared.changes.lock().await;
        if !self.tokens().withdraw(name) {
            return Err(HostError::UnknownToken(name.chars().take(80).collect()));
        }
        match TokenName::try_from(name.to_owned()) {
            Ok(kept) => {
                let kept = self.shared.store.commit(vec![Step::RemoveToken(kept)]);
                let name = || name.to_owned();
                kept.done().await.map_err(|source| HostError::TokenStays {
                    name: name(),
                    source,
                })?;
            }
            // The host's own is in its folder alone.
            Err(_) => drop(std::fs::remove_file(self.shared.place.token())),
        }
        self.tokens().forget(name);
        let who = by.who();
        self.tell_of_token(&format!("token '{name}' was withdrawn by {who}"));
        Ok(())
    }

    fn tell_of_token(&self, what: &str) {
        let mut state = self.lock();
        state.events.add(None, what);
        state.publish_change();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::of(&BTreeMap::new(), false)
    }

    fn record(secret: &Secret, role: Role, expires_ms: Option<u64>) -> TokenRecord {
        TokenRecord {
            hash: secret.hash(),
            role,
            made_ms: 1,
            expires_ms,
        }
    }

    fn name(name: &str) -> TokenName {
        name.parse().unwrap()
    }

    #[test]
    fn a_token_grants_its_role_until_it_is_withdrawn_or_its_time_is_over() {
        let tokens = tokens();
        let [one, other, old] = [(); 3].map(|()| Secret::new().unwrap());
        tokens.insert(&name("one"), record(&one, Role::Read, None));
        tokens.insert(&name("other"), record(&other, Role::Operate, None));
        tokens.insert(&name("old"), record(&old, Role::Admin, Some(2)));
        assert_eq!(tokens.grant(one.as_str()).unwrap().role, Role::Read);
        assert_eq!(tokens.grant(other.as_str()).unwrap().name, "other");
        assert_eq!(tokens.grant(old.as_str()).unwrap_err(), Worthless::Expired);
        for wrong in ["", &one.as_str()[1..], &one.as_str().to_uppercase()] {
            assert_eq!(tokens.grant(wrong).unwrap_err(), Worthless::Unknown);
        }
        let used: Vec<_> = tokens
            .views()
            .iter()
            .map(|view| view.used_ms.is_some())
            .collect();
        assert_eq!(used, [false, true, true], "old, one, other");
        assert!(tokens.withdraw("one") && !tokens.withdraw("nobody"));
        assert_eq!(tokens.grant(one.as_str()).unwrap_err(), Worthless::Unknown);
        assert!(!tokens.view("one").unwrap().valid);
        tokens.forget("one");
        assert_eq!(tokens.view("one"), None);
    }

    #[tokio::test]
    async fn what_was_opened_with_a_token_ends_with_it() {
        let tokens = tokens();
        let [one, short] = [(); 2].map(|()| Secret::new().unwrap());
        tokens.insert(&name("one"), record(&one, Role::Read, None));
        tokens.insert(
            &name("short"),
            record(&short, Role::Read, Some(now_ms() + 50)),
        );
        let access = |secret: &Secret| {
            let grant = tokens.grant(secret.as_str()).unwrap();
            Access::over_tcp(grant.role, Some(grant))
        };
        access(&short).ends().await;
        let access = access(&one);
        let open = tokio::time::timeout(Duration::from_millis(50), access.clone().ends()).await;
        assert!(open.is_err(), "it is still open");
        tokens.withdraw("one");
        access.ends().await;
    }

    #[test]
    fn a_name_is_given_once_and_again_when_its_token_is_worth_nothing() {
        let tokens = tokens();
        let secret = Secret::new().unwrap();
        assert_eq!(tokens.free_name(None).unwrap(), name("token-1"));
        tokens.insert(&name("token-1"), record(&secret, Role::Read, None));
        assert_eq!(tokens.free_name(None).unwrap(), name("token-2"));
        assert!(tokens.free_name(Some(name("token-1"))).is_err());
        tokens.insert(&name("token-1"), record(&secret, Role::Read, Some(2)));
        assert!(tokens.free_name(Some(name("token-1"))).is_ok());
        for number in 0..MOST {
            tokens.insert(
                &name(&format!("t{number}")),
                record(&secret, Role::Read, None),
            );
        }
        assert!(matches!(
            tokens.free_name(None),
            Err(HostError::TooManyTokens(_))
        ));
    }
}
