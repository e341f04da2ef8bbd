//! The embedded guest's image, as the build of the program left it beside the program.

use crate::program::program;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where a build script's folder has it.
const IMAGE: &str = "out/guest/x86_64-unknown-linux-gnu/release/guest";

/// The newest image.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn guest_image() -> PathBuf {
    let program = program();
    let builds = program
        .parent()
        .map(|folder| folder.join("build"))
        .unwrap_or_default();
    let images = fs::read_dir(&builds)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join(IMAGE)));
    images
        .filter(|image| image.is_file())
        .max_by_key(|image| modified(image))
        .unwrap_or_else(|| {
            panic!(
                "no guest image below {}: run `cargo build --release` first",
                builds.display()
            )
        })
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
}
