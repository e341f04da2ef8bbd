//! A group of users of this machine, by its name or number: who may use the host's socket besides its owner.
#![expect(
    unsafe_code,
    reason = "the C library alone knows all groups of a machine"
)]

use libc::{c_char, c_int};
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;
use std::str::FromStr;
use thiserror::Error;

/// Bytes of a group's entry, with the names of all its members.
const LARGEST_ENTRY: usize = 1 << 20;

/// A group, as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name, or its number.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

/// A text that names no group.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "this machine has no group '{0}': make it with `groupadd {0}`, or name one of /etc/group, or its number"
)]
pub struct UnknownGroup(String);

impl FromStr for Group {
    type Err = UnknownGroup;

    fn from_str(text: &str) -> Result<Self, UnknownGroup> {
        let unknown = || UnknownGroup(text.chars().take(40).collect());
        // The largest number is none: it stands for leaving a file's group as it is.
        let number = text.parse().ok().filter(|&number| number != u32::MAX);
        let gid = number.or_else(|| number_of(text)).ok_or_else(unknown)?;
        let name = text.into();
        Ok(Self { name, gid })
    }
}

/// The number of a group by its name, from wherever this machine has its groups.
fn number_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0; 1 << 10];
    loop {
        match look_up(&name, &mut buffer) {
            Ok(found) => return found,
            Err(libc::ERANGE) if buffer.len() < LARGEST_ENTRY => buffer.resize(buffer.len() * 4, 0),
            Err(_) => return None,
        }
    }
}

fn look_up(name: &CString, buffer: &mut [c_char]) -> Result<Option<u32>, c_int> {
    let mut entry = MaybeUninit::<libc::group>::uninit();
    let mut found = ptr::null_mut();
    // SAFETY: the name ends with a zero, the buffer is as long as is said, and all of them live until this returns.
    let error = unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if error != 0 {
        return Err(error);
    }
    // SAFETY: what was found is `entry`, which was filled then; it is null where nothing was found.
    let found = unsafe { found.as_ref() };
    Ok(found.map(|entry| entry.gr_gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_known_by_its_name_and_by_its_number() {
        assert_eq!("root".parse::<Group>().unwrap().gid, 0);
        assert_eq!("12345".parse::<Group>().unwrap().gid, 12_345);
        for text in ["", "no such group", "-1", "4294967295", "a\0b"] {
            let error = text.parse::<Group>().unwrap_err();
            assert!(error.to_string().contains("groupadd"), "{text}");
        }
    }
}
