//! The secret that a token is, and what is kept of it: its hash, from which nobody finds the secret. The one that a host makes
//! by itself lies in its folder for as long as it lives, readable for its owner.

use crate::host::runtime_dir::create_private_file;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Random bytes in a token: beyond any guessing, so that a plain hash of it is, too.
const RANDOM_BYTES: usize = 32;

/// A token as it is sent. It does not print itself.
#[derive(Clone)]
pub(in crate::host) struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// A new one that nobody can guess.
    pub(in crate::host) fn new() -> io::Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
        }
        Ok(Self(hex(&bytes)))
    }

    /// As it is typed.
    pub(in crate::host) fn as_str(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub(in crate::host) fn hash(&self) -> SecretHash {
        SecretHash::of(&self.0)
    }

    /// Writes it into a file. One of a host that was killed may be there.
    pub(in crate::host) fn store(&self, path: PathBuf) -> io::Result<SecretFile> {
        let mut file = create_private_file(&path)?;
        let stored = SecretFile(path);
        writeln!(file, "{}", self.0)?;
        Ok(stored)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a secret, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct SecretHash(String);

impl SecretHash {
    /// That of what somebody says is one.
    pub(in crate::host) fn of(given: &str) -> Self {
        Self(hex(digest(&SHA256, given.as_bytes()).as_ref()))
    }

    /// Whether both are of one secret. The time this takes does not tell how much of them is equal.
    pub(super) fn is(&self, other: &Self) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), other.0.as_bytes()).is_ok()
    }
}

/// The file of a secret: it goes when this is dropped.
#[derive(Debug)]
pub(in crate::host) struct SecretFile(PathBuf);

impl SecretFile {
    /// Where it is.
    pub(in crate::host) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // One that is gone already is what is wanted.
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_owner_can_read_the_file_and_it_goes_with_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "old").unwrap();
        let secret = Secret::new().unwrap();
        let file = secret.store(path).unwrap();
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(secret.hash().is(&SecretHash::of(text.trim())));
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_two_secrets_are_equal_and_none_prints_itself() {
        let (a, b) = (Secret::new().unwrap(), Secret::new().unwrap());
        assert!(!a.hash().is(&b.hash()));
        assert_eq!(a.as_str().len(), 2 * RANDOM_BYTES);
        for printed in [format!("{a:?}"), format!("{:?}", a.hash())] {
            assert!(!printed.contains(a.as_str()));
        }
    }

    /// What an older program has kept is of the same secrets.
    #[test]
    fn the_hash_is_the_one_that_everybody_knows() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(SecretHash::of("abc"), SecretHash(known.into()));
    }
}
