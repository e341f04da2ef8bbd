//! What the log costs: the disk traffic of its cleaner beside the figures of the paper that its policy is from, and the time
//! that each step takes. Prints tables; asserts nothing.
//!
//! `cargo bench -p swap --bench log` runs all, in some 90 s on two processors, and writes charts and their figures
//! into `target/swap-log`; `-- --out DIR` puts them elsewhere, `-- costs` or `-- cleaning` runs one part.
#![allow(missing_docs, reason = "a program, not a library")]
#![allow(clippy::cast_precision_loss, reason = "figures for people to read")]
#![allow(clippy::unwrap_used, reason = "a program for those who wrote it")]

mod chart;
mod cleaning;
mod costs;
mod paper;
mod simulation;

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut out, mut words) = (PathBuf::from("../../target/swap-log"), Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--out" => out = args.next().expect("--out DIR").into(),
            _ => words.push(arg),
        }
    }
    let wants =
        |part: &str| words.is_empty() || words.iter().any(|word| part.contains(word.as_str()));
    if wants("costs") {
        costs::print();
    }
    if wants("cleaning") {
        std::fs::create_dir_all(&out)?;
        cleaning::run(&out)?;
    }
    Ok(())
}
