//! Builds the embedded guest, so that `ballonet run` needs no download.
//!
//! The image is a package of its own, with its own lock file and flags for the bare machine, built
//! by a second cargo below this one. What this cargo tells its build scripts must not reach that
//! one, or the image would be built with this build's flags and wrappers.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// What the image is made of, from the project's root. Its target folder, which a developer's own
/// build makes, is not.
const SOURCES: [&str; 9] = [
    "Cargo.toml",
    "balloon-guest-driver/Cargo.toml",
    "balloon-guest-driver/src",
    "balloon-guest-driver/guest/.cargo",
    "balloon-guest-driver/guest/Cargo.toml",
    "balloon-guest-driver/guest/Cargo.lock",
    "balloon-guest-driver/guest/build.rs",
    "balloon-guest-driver/guest/link.ld",
    "balloon-guest-driver/guest/src",
];

fn main() -> ExitCode {
    match build_guest() {
        Ok(image) => {
            println!("cargo:rustc-env=GUEST_ELF={}", image.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot build the embedded guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build_guest() -> Result<PathBuf, String> {
    let root = folder("CARGO_MANIFEST_DIR")?.join("..");
    println!("cargo:rerun-if-changed=build.rs");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    let target = folder("OUT_DIR")?.join("guest");
    let output = guest_cargo(&root.join("balloon-guest-driver/guest"), &target)
        .output()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if output.status.success() {
        Ok(target.join(GUEST_TARGET).join("release/guest"))
    } else {
        Err(why(&output))
    }
}

fn folder(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{variable} is not set"))
}

/// The command that builds the image, in the guest's folder, where cargo finds its settings.
fn guest_cargo(guest: &Path, target: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os().filter(|(name, _)| belongs_to_this_build(name)) {
        command.env_remove(name);
    }
    command
        .current_dir(guest)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            GUEST_TARGET,
            "--target-dir",
        ])
        .arg(target)
        .env("CARGO_BUILD_BUILD_DIR", target);
    command
}

/// Variables that cargo, its wrappers and this build's flags put there. Where toolchain and
/// registry are, and how to reach them, is the same for both builds.
fn belongs_to_this_build(name: &OsStr) -> bool {
    const KEPT: [&str; 5] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    let name = name.to_string_lossy();
    let build =
        name.starts_with("CARGO") || (name.starts_with("RUST") && !name.starts_with("RUSTUP_"));
    build && !KEPT.iter().any(|kept| name.starts_with(kept))
}

fn why(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    let remedy = if told.contains("--locked") {
        "\nrun `cargo update --workspace` in balloon-guest-driver/guest and commit its Cargo.lock"
    } else {
        ""
    };
    format!("cargo ended with {}:\n{told}{remedy}", output.status)
}
