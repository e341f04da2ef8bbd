//! A memory file of which a first touch makes a whole block, where that is advised.
//!
//! The machine's setting for memory files is `never` nearly everywhere
//! (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`), and it is not for us to change it. But that setting is for the
//! kernel's own mount, where `memfd_create` makes its files. A mount of one's own has one of its own, and this one
//! is in no namespace: nobody finds it, and it ends with its last file.
//!
//! What it takes is the right to mount, and a machine that does not forbid large pages by `deny`. Whoever lacks either
//! has small pages that the agent makes large afterwards (`agent/large`).

use rustix::fs::{AtFlags, Mode, OFlags, ftruncate, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use std::fs::File;

/// Takes no notice of what is advised, whatever a mount says.
const DENIED: &str = "[deny]";
const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Makes one of so many bytes.
///
/// # Errors
/// When this process may not mount, or this kernel has no large pages for files.
pub(super) fn memory_file(name: &str, bytes: u64) -> Result<File, Errno> {
    if std::fs::read_to_string(SETTING).is_ok_and(|setting| setting.contains(DENIED)) {
        return Err(Errno::OPNOTSUPP);
    }
    let system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&system, "huge", "advise")?;
    // As many bytes as there are.
    fsconfig_set_string(&system, "size", "0")?;
    fsconfig_create(&system)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let root = fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&root, name, flags, Mode::RUSR | Mode::WUSR)?;
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
