use super::*;
use std::fs;
use tempfile::TempDir;

fn spec(path: &Path, read_only: bool) -> DiskSpec {
    DiskSpec {
        path: path.into(),
        read_only,
        direct: false,
        raw: false,
    }
}

fn refusal(path: &Path, read_only: bool) -> String {
    let error = DiskImage::open(&spec(path, read_only)).unwrap_err();
    crate::error_chain(&error)
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no '{word}' in: {text}");
    }
}

#[test]
fn what_is_no_disk_is_named_with_a_remedy() {
    let folder = TempDir::new().unwrap();
    let place = |name: &str| folder.path().join(name);
    fs::write(place("empty"), "").unwrap();
    fs::write(place("short"), [0; 511]).unwrap();
    fs::write(place("odd"), [0; 1025]).unwrap();
    let pipe = rustix::fs::CWD;
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(pipe, place("pipe"), FileType::Fifo, mode, 0).unwrap();
    let cases: [(&str, &[&str]); 8] = [
        ("missing", &["No such file", "truncate -s 1G"]),
        ("odd/child", &["Not a directory"]),
        ("empty", &["0 bytes", "truncate -s 1G"]),
        ("short", &["511 bytes", "512", "give a raw image"]),
        ("odd,Ro", &["No such file", "',Ro'", ",ro ,direct"]),
        ("odd,x,raw2", &["No such file", "',raw2'", ",ro ,direct"]),
        ("odd", &["1025 bytes", "multiple", "truncate -s %512"]),
        ("pipe", &["is a pipe", "raw image"]),
    ];
    for (name, words) in cases {
        for read_only in [false, true] {
            // A pipe that nobody writes to must not make anybody wait.
            let text = refusal(&place(name), read_only);
            says(&text, words);
            says(&text, &[place(name).to_str().unwrap()]);
        }
    }
    says(&refusal(folder.path(), false), &["raw image"]);
    // Only where a file can be made, it is told how to.
    let _socket = std::os::unix::net::UnixListener::bind(place("socket")).unwrap();
    for path in [
        place("odd/child"),
        place("nowhere/disk"),
        place("socket"),
        "/dev/no-such-disk".into(),
    ] {
        let text = refusal(&path, false);
        says(&text, &["raw image or a block device"]);
        assert!(!text.contains("truncate"), "{text}");
    }
    says(&refusal(folder.path(), true), &["is a directory"]);
    says(
        &refusal(Path::new("/dev/null"), true),
        &["character device"],
    );
}

#[test]
fn who_may_not_even_read_a_disk_is_not_told_to_only_read_it() {
    let refused = |read_only| {
        let error = DiskError::Open {
            path: "/disk".into(),
            source: Errno::ACCESS,
            read_only,
        };
        crate::error_chain(&error)
    };
    says(&refused(false), &["Permission denied", "'/disk,ro'"]);
    says(
        &refused(true),
        &["Permission denied", "let this user read it"],
    );
    assert!(!refused(true).contains(",ro"));
}

#[test]
fn one_may_write_a_file_or_many_read_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, [0; 4096]).unwrap();
    let other_name = folder.path().join("link");
    fs::hard_link(&path, &other_name).unwrap();
    let writer = DiskImage::open(&spec(&path, false)).unwrap();
    for read_only in [false, true] {
        let text = refusal(&other_name, read_only);
        says(&text, &["in use by another VM", ",ro"]);
    }
    drop(writer);
    let insisting = DiskSpec {
        raw: true,
        ..spec(&path, false)
    };
    let writer = DiskImage::open(&insisting).unwrap();
    let text = DiskImage::open(&insisting).unwrap_err().to_string();
    says(&text, &["disk,raw,ro'"]);
    drop(writer);
    let readers = [&path, &other_name].map(|path| DiskImage::open(&spec(path, true)).unwrap());
    says(&refusal(&path, false), &["in use by another VM"]);
    drop(readers);
    assert!(DiskImage::open(&spec(&path, false)).is_ok());
}

#[test]
fn a_disk_of_one_sector_is_a_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    let image = DiskImage::open(&spec(file.path(), false)).unwrap();
    let geometry = Geometry {
        sectors: 1,
        block_size: 512,
    };
    assert_eq!(image.geometry, geometry);
}

/// A file of 64 KiB with these bytes at that place; from the end if it is negative.
fn file_with(path: &Path, at: i64, bytes: &[u8]) {
    let mut contents = vec![0; 64 << 10];
    let at = usize::try_from(at).unwrap_or_else(|_| {
        let from_end = usize::try_from(-at).unwrap();
        contents.len() - from_end
    });
    contents[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, contents).unwrap();
}

/// As qemu-img and the packers make them.
const NO_RAW_IMAGES: [(i64, &[u8], &str); 19] = [
    (0, b"QFI\xfb\0\0\0\x01", "-f qcow -O raw"),
    (0, b"QFI\xfb\0\0\0\x02", "-f qcow2 -O raw"),
    (0, b"QFI\xfb\0\0\0\x03", "-f qcow2 -O raw"),
    (0, b"QED\0", "-f qed"),
    (0, b"KDMV\x01\0\0\0", "-f vmdk"),
    (0, b"COWD", "-f vmdk"),
    (0, b"# Disk DescriptorFile\nversion=1", "-f vmdk"),
    (0, b"conectix", "-f vpc"),
    (-512, b"conectix", "-f vpc"),
    (0, b"vhdxfile", "-f vhdx"),
    (64, b"\x7f\x10\xda\xbe", "-f vdi"),
    (0, b"WithoutFreeSpace", "-f parallels"),
    (-512, b"koly", "-f dmg"),
    (0, b"\x3a\xff\x26\xed", "simg2img"),
    (0, b"\x1f\x8b\x08\0", "gzip -dc"),
    (0, b"BZh91AY&SY", "bzip2 -dc"),
    (0, b"\xfd7zXZ\0", "xz -dc"),
    (0, b"\x28\xb5\x2f\xfd", "zstd -dc"),
    (257, b"ustar", "tar -xf"),
];

#[test]
fn what_is_no_raw_image_is_refused_with_the_command_that_makes_one_of_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk");
    let name = path.to_str().unwrap();
    for (at, bytes, command) in NO_RAW_IMAGES {
        file_with(&path, at, bytes);
        for read_only in [false, true] {
            let text = refusal(&path, read_only);
            says(&text, &[command, name, "',raw'"]);
        }
    }
}

/// A guest may write what it likes into its disk.
#[test]
fn who_insists_gets_any_file_as_it_stands() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk");
    for (at, bytes, _) in NO_RAW_IMAGES {
        file_with(&path, at, bytes);
        let insists = DiskSpec {
            raw: true,
            ..spec(&path, false)
        };
        assert!(DiskImage::open(&insists).is_ok(), "{bytes:?}");
    }
}

/// What is short, or not of whole sectors, is named by what it is, not by its length.
#[test]
fn a_short_packed_file_is_called_what_it_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk.gz");
    fs::write(&path, b"\x1f\x8b\x08\0 and a little").unwrap();
    says(&refusal(&path, true), &["gzip file", "gzip -dc"]);
}
