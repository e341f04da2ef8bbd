//! The secret that lets a client on TCP change things. It lies in the host's folder for as long as the host
//! lives, readable for those who may use the socket.

use crate::host::runtime_dir::create_private_file;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Random bytes in a token: beyond any guessing.
const RANDOM_BYTES: usize = 24;

/// A token. It does not print itself.
#[derive(Clone)]
pub(in crate::host) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A new one that nobody can guess.
    pub(in crate::host) fn new() -> io::Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(
                &mut bytes[filled..],
                rustix::rand::GetRandomFlags::empty(),
            )?;
        }
        Ok(Self(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }

    #[cfg(test)]
    pub(super) fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// As it is typed.
    pub(in crate::host) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `given` is it. The time this takes does not tell how much of it was right.
    pub(super) fn is(&self, given: &str) -> bool {
        let (own, given) = (self.0.as_bytes(), given.as_bytes());
        let differences = own
            .iter()
            .zip(given)
            .fold(0, |differences, (own, given)| differences | (own ^ given));
        own.len() == given.len() && differences == 0
    }

    /// Writes it into a file. One of a host that was killed may be there.
    pub(in crate::host) fn store(&self, path: PathBuf) -> io::Result<TokenFile> {
        let mut file = create_private_file(&path)?;
        let stored = TokenFile(path);
        writeln!(file, "{}", self.0)?;
        Ok(stored)
    }
}

/// The file of a token: it goes when this is dropped.
#[derive(Debug)]
pub(in crate::host) struct TokenFile(PathBuf);

impl TokenFile {
    /// Where it is.
    pub(in crate::host) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TokenFile {
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
        let token = Token::new().unwrap();
        let file = token.store(path).unwrap();
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(token.is(text.trim()));
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_two_tokens_are_equal_and_none_prints_itself() {
        let (a, b) = (Token::new().unwrap(), Token::new().unwrap());
        assert!(!a.is(b.as_str()));
        assert_eq!(a.as_str().len(), 2 * RANDOM_BYTES);
        assert!(!format!("{a:?}").contains(a.as_str()));
    }
}
