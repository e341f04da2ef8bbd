//! A memory file of which a first touch makes a whole block, where that is advised.
//!
//! The machine's setting for memory files is `never` nearly everywhere
//! (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`), and it is not for us to change it. But that setting is for the
//! kernel's own mount, where `memfd_create` makes its files. A mount of one's own has one of its own, and this one
//! is in no namespace: nobody finds it, and it ends with its last file.
//!
//! What it takes is the right to mount, and a machine that does not forbid large pages by `deny`. Who may not mount has
//! files of the kernel's own mount: small pages that the agent makes large afterwards (`agent/large`), unless the
//! machine's setting heeds advice.

use crate::memory::mapping::BLOCK_BYTES;
use rustix::fs::{AtFlags, Mode, OFlags, fchmod, ftruncate, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use std::fs::File;

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The machine's setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    /// This kernel has no large pages for files.
    Missing,
    /// None for anybody, whatever a mount says.
    Denied,
    /// None for files of the kernel's own mount, at their first touch.
    Never,
    /// Where it is advised, or everywhere.
    Heeded,
}

impl Setting {
    fn read() -> Self {
        std::fs::read_to_string(SETTING).map_or(Self::Missing, |text| Self::parse(&text))
    }

    /// The word in brackets is the one that holds.
    fn parse(text: &str) -> Self {
        let word = text.split(['[', ']']).nth(1);
        match word {
            Some("deny") => Self::Denied,
            Some("never") => Self::Never,
            Some(_) => Self::Heeded,
            None => Self::Missing,
        }
    }
}

/// Whether touches of files of the kernel's own mount make whole blocks where that is advised.
pub(super) fn is_advice_heeded() -> bool {
    Setting::read() == Setting::Heeded
}

/// What keeps this machine from making guest memory of large pages at its first touch, what that costs, and how it is
/// changed. None where nothing does.
#[must_use]
pub fn hindrance() -> Option<String> {
    let tried = memory_file("probe", 2 << 20).map(drop);
    let setting = Setting::read();
    match (setting, tried) {
        (Setting::Missing, _) => Some(
            "guest memory stays in pages of 4 KiB, which costs guests up to half of their random accesses: this \
             kernel has no large pages for files (CONFIG_TRANSPARENT_HUGEPAGE)"
                .into(),
        ),
        (Setting::Denied, _) => Some(format!(
            "guest memory stays in pages of 4 KiB, which costs guests up to half of their random accesses: this \
             machine denies large pages. To allow them, `echo never > {SETTING}`, and start VMs anew"
        )),
        (Setting::Heeded, _) | (_, Ok(())) => None,
        (Setting::Never, Err(error)) => Some(format!(
            "guest memory becomes large pages only some time after it was touched, for this user may not mount a \
             file system for it ({error}). Run the host as root, or `echo advise > {SETTING}`, and start VMs anew"
        )),
    }
}

/// What the file system of such a file holds at most.
pub(super) fn most_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES as u64)
}

/// Makes one of so many bytes.
///
/// # Errors
/// When this process may not mount, or this kernel has no large pages for files.
pub(super) fn memory_file(name: &str, bytes: u64) -> Result<File, Errno> {
    if matches!(Setting::read(), Setting::Denied | Setting::Missing) {
        return Err(Errno::OPNOTSUPP);
    }
    let system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&system, "huge", "advise")?;
    // Such a file takes no seals, and whoever has it may make it longer. But it holds no more than its last block has.
    let most = most_bytes(bytes).to_string();
    fsconfig_set_string(&system, "size", most)?;
    fsconfig_create(&system)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let root = fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&root, name, flags, Mode::empty())?;
    // As with the kernel's own: only who may write a file is told what it holds (mincore(2)), and a VM process is not who it
    // was when it made this. Nobody finds it who was not given it.
    fchmod(&file, Mode::RUSR | Mode::WUSR | Mode::ROTH | Mode::WOTH)?;
    // The name stays in the kernel's lists of mappings and descriptors.
    unlinkat(&root, name, AtFlags::empty())?;
    ftruncate(&file, bytes)?;
    Ok(File::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::mapping::Place;
    use crate::memory::mapping::advise_large;
    use crate::memory::ram::allocated_pages;
    use page::PageCount;

    #[test]
    fn the_word_in_brackets_is_the_machines_setting() {
        for (text, setting) in [
            (
                "always within_size advise [never] deny force\n",
                Setting::Never,
            ),
            (
                "always within_size [advise] never deny force\n",
                Setting::Heeded,
            ),
            (
                "[always] within_size advise never deny force\n",
                Setting::Heeded,
            ),
            (
                "always within_size advise never [deny] force\n",
                Setting::Denied,
            ),
            ("", Setting::Missing),
        ] {
            assert_eq!(Setting::parse(text), setting, "{text}");
        }
    }

    /// Whoever has it may make it longer, but not have it hold more.
    #[test]
    fn a_file_holds_no_more_than_it_was_made_for() {
        let bytes = 5 << 20;
        let file = memory_file("test", bytes).unwrap();
        ftruncate(&file, bytes + (1 << 30)).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, bytes).unwrap();
        let beyond = rustix::fs::fallocate(&file, flags, 0, 64 << 20);
        assert_eq!(beyond, Err(Errno::NOSPC));
        assert!(allocated_pages(&file).unwrap() <= PageCount(3 * 512));
    }

    /// Needs the right to mount, as the whole-guest tests do.
    #[test]
    fn one_touch_makes_a_whole_block_where_that_is_advised_and_one_page_elsewhere() {
        let file = memory_file("test", 8 << 20).unwrap();
        let place = Place::of(&file, 8 << 20).unwrap();
        let start = place.start() as u64;
        advise_large(&(start..start + (2 << 20))).unwrap();
        let touch = |byte: usize| place.touch(byte);
        touch(4096);
        let made = allocated_pages(&file).unwrap();
        assert!(
            [PageCount(512), PageCount(1)].contains(&made),
            "one page, if memory is in pieces: {made:?}"
        );
        touch(6 << 20);
        assert_eq!(allocated_pages(&file).unwrap(), made + PageCount(1));
    }
}
