use super::*;
use std::fs;
use tempfile::TempDir;

fn spec(path: &Path, read_only: bool) -> DiskSpec {
    DiskSpec {
        path: path.into(),
        read_only,
        direct: false,
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
    let cases: [(&str, &[&str]); 6] = [
        ("missing", &["No such file", "truncate -s 1G"]),
        ("odd/child", &["Not a directory"]),
        ("empty", &["0 bytes", "truncate -s 1G"]),
        ("short", &["511 bytes", "512"]),
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
    says(&refusal(folder.path(), true), &["is a directory"]);
    says(
        &refusal(Path::new("/dev/null"), true),
        &["character device"],
    );
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
