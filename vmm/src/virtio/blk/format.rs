//! Tells a raw image from other files that people keep disks in. A guest that got one of those would
//! find no disk in it, and might write over its header.

use std::path::Path;

/// As much of a file's beginning as has to be looked at.
pub(super) const HEAD_BYTES: u64 = 512;
/// As much of its end.
pub(super) const TAIL_BYTES: u64 = 512;

/// A kind of file that holds a disk and is not one.
#[derive(Debug)]
pub(super) struct Format {
    pub(super) name: &'static str,
    /// Any of them will do.
    signs: &'static [Sign],
    remedy: Remedy,
}

/// Bytes at a place.
#[derive(Debug)]
enum Sign {
    Head(usize, &'static [u8]),
    /// At the beginning of the last [`TAIL_BYTES`].
    Tail(&'static [u8]),
}

/// What makes a raw image of it.
#[derive(Debug)]
enum Remedy {
    /// qemu-img, which calls the format this.
    Convert(&'static str),
    /// A command that prints what is in the file.
    Print(&'static str),
    /// A command that wants the file and a name for the result.
    Into(&'static str),
    /// A command that takes out what is in the file.
    TakeOut(&'static str),
}

#[rustfmt::skip]
const FORMATS: [Format; 20] = [
    format("a qcow image", &[Sign::Head(0, b"QFI\xfb\0\0\0\x01")], Remedy::Convert("qcow")),
    format("a qcow2 image", &[Sign::Head(0, b"QFI\xfb")], Remedy::Convert("qcow2")),
    format("a QED image", &[Sign::Head(0, b"QED\0")], Remedy::Convert("qed")),
    format("a VMDK image", &[Sign::Head(0, b"KDMV"), Sign::Head(0, b"COWD"), Sign::Head(0, b"# Disk DescriptorFile")], Remedy::Convert("vmdk")),
    // A fixed one is a raw image with its sign after it.
    format("a VHD image", &[Sign::Head(0, b"conectix"), Sign::Tail(b"conectix")], Remedy::Convert("vpc")),
    format("a VHDX image", &[Sign::Head(0, b"vhdxfile")], Remedy::Convert("vhdx")),
    format("a VDI image", &[Sign::Head(64, b"\x7f\x10\xda\xbe")], Remedy::Convert("vdi")),
    format("a Parallels image", &[Sign::Head(0, b"WithoutFreeSpace"), Sign::Head(0, b"WithouFreSpacExt")], Remedy::Convert("parallels")),
    format("a DMG image", &[Sign::Tail(b"koly")], Remedy::Convert("dmg")),
    format("a sparse image of Android", &[Sign::Head(0, b"\x3a\xff\x26\xed")], Remedy::Into("simg2img")),
    format("a gzip file", &[Sign::Head(0, b"\x1f\x8b\x08")], Remedy::Print("gzip -dc")),
    format("a bzip2 file", &[Sign::Head(4, b"1AY&SY")], Remedy::Print("bzip2 -dc")),
    format("an xz file", &[Sign::Head(0, b"\xfd7zXZ\0")], Remedy::Print("xz -dc")),
    format("a zstd file", &[Sign::Head(0, b"\x28\xb5\x2f\xfd")], Remedy::Print("zstd -dc")),
    format("an lz4 file", &[Sign::Head(0, b"\x04\x22\x4d\x18")], Remedy::Print("lz4 -dc")),
    format("a zip archive", &[Sign::Head(0, b"PK\x03\x04")], Remedy::Print("unzip -p")),
    format("a 7z archive", &[Sign::Head(0, b"7z\xbc\xaf\x27\x1c")], Remedy::Print("7z e -so")),
    format("a RAR archive", &[Sign::Head(0, b"Rar!\x1a\x07")], Remedy::Print("unrar p -inul")),
    format("an lzip file", &[Sign::Head(0, b"LZIP")], Remedy::Print("lzip -dc")),
    format("a tar archive", &[Sign::Head(257, b"ustar")], Remedy::TakeOut("tar -xf")),
];

const fn format(name: &'static str, signs: &'static [Sign], remedy: Remedy) -> Format {
    Format {
        name,
        signs,
        remedy,
    }
}

impl Format {
    /// By a file's first and last bytes. None: it may be a raw image.
    pub(super) fn recognize(head: &[u8], tail: &[u8]) -> Option<&'static Self> {
        let is_there = |sign: &Sign| match sign {
            Sign::Head(at, bytes) => head.get(*at..).is_some_and(|from| from.starts_with(bytes)),
            Sign::Tail(bytes) => tail.starts_with(bytes),
        };
        FORMATS
            .iter()
            .find(|format| format.signs.iter().any(is_there))
    }

    /// The command that makes a raw image of a file of this format.
    pub(super) fn remedy(&self, path: &Path) -> String {
        let path = path.display();
        match self.remedy {
            Remedy::Convert(name) => format!("qemu-img convert -f {name} -O raw {path} {path}.raw"),
            Remedy::Print(command) => format!("{command} {path} > {path}.raw"),
            Remedy::Into(command) => format!("{command} {path} {path}.raw"),
            Remedy::TakeOut(command) => format!("{command} {path}"),
        }
    }
}
