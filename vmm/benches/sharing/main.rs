//! Page sharing beside KSM on the same contents in the same run, and beside what the machine can do.
//! Prints a table with goals; asserts nothing.
//!
//! `cargo bench --bench sharing` runs all; `-- scan merge` those whose name has one of the words;
//! `--rounds N` sets how often each is measured, ours and KSM in turn, so that a change in the
//! machine's speed meets both; `--shared-pages N` how many pages the benchmark of scale shares;
//! `--verbose` says how each figure came about. `BALLONET` names another program for the guests.
//!
//! It needs /dev/kvm, and for KSM's part root and qemu-system-x86. KSM's settings and
//! vm.max_map_count are changed while it runs, and put back however it ends.
//!
//! Processor time is what the kernel counts: the scanner's thread and the agents' threads for ours,
//! ksmd for KSM. What is saved is what the kernel counts too. Without a guest, a VM's process is one
//! of this program that has the real agent and no vCPU; the scanner is the real one.
#![allow(missing_docs, reason = "a program, not a library")]
#![allow(clippy::cast_precision_loss, reason = "figures for people to read")]

mod contents;
mod cpu;
mod first_write;
mod guests;
mod holder;
mod ksm;
mod limit;
mod merge;
mod ours;
#[path = "../../src/cli/experiment/density/restore.rs"]
mod restore;
mod scale;
mod scan;
mod table;

use anyhow::Result;
use table::{Row, print_table};

/// What is measured.
#[derive(Debug)]
pub(crate) struct Options {
    words: Vec<String>,
    rounds: usize,
    /// In each process of the benchmark of scale.
    shared_pages: u64,
    is_verbose: bool,
    has_ksm: bool,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(holder::ARGUMENT) {
        return holder::run(&args.next().unwrap_or_default());
    }
    let options = options();
    put_back_at_end()?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for (name, bench) in [
        (
            "limit",
            scan::limit_rows as fn(&Options) -> Result<Vec<Row>>,
        ),
        ("scan", scan::rows),
        ("merge", merge::rate_rows),
        ("gibibyte", merge::gibibyte_rows),
        ("write", first_write::rows),
        ("scale", scale::rows),
    ] {
        if options.words.is_empty() || options.words.iter().any(|word| name.contains(word)) {
            eprintln!("measuring: {name}");
            match bench(&options) {
                Ok(more) => rows.extend(more),
                Err(error) => {
                    eprintln!("  failed: {error:#}");
                    failed.push(name);
                }
            }
        }
    }
    print_table(&rows);
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// Cargo adds `--bench`; other options are not ours.
fn options() -> Options {
    let problem = ksm::problem();
    if let Some(problem) = &problem {
        eprintln!("KSM is skipped: {problem}");
    }
    let mut options = Options {
        words: Vec::new(),
        rounds: 3,
        shared_pages: 100_000,
        is_verbose: false,
        has_ksm: problem.is_none(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|number| number.parse::<u64>().ok());
        match arg.as_str() {
            "--rounds" => {
                let rounds = number().and_then(|rounds| usize::try_from(rounds).ok());
                options.rounds = rounds.unwrap_or(options.rounds).max(1);
            }
            "--shared-pages" => options.shared_pages = number().unwrap_or(100_000).max(1000),
            "--verbose" => options.is_verbose = true,
            word if !word.starts_with('-') => options.words.push(word.into()),
            _ => {}
        }
    }
    options
}

/// From now on a panic or Ctrl-C puts all settings back and ends the program.
fn put_back_at_end() -> Result<()> {
    restore::on_panic();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            restore::put_all_back();
            std::process::exit(130);
        }
    });
    Ok(())
}
