//! Leaves out what keeps threads apart at guest memory, one step at a time, in tests of real guest memory that pass otherwise: each
//! must be told, and of the place that relied on it.

use super::left_out::Step;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

/// A page may have to meet what is left out.
const TRIES: usize = 5;

const SWAP: &str = "memory::swap::tests";
const SHARE: &str = "memory::agent::share::tests";

/// What is left out, the test in which that matters, and what is written where it is told.
struct Fault {
    step: Step,
    folder: &'static str,
    test: &'static str,
    file: &'static str,
    told_at: &'static [&'static str],
}

const fn fault(
    step: Step,
    (folder, test): (&'static str, &'static str),
    (file, told_at): (&'static str, &'static [&'static str]),
) -> Fault {
    Fault {
        step,
        folder,
        test,
        file,
        told_at,
    }
}

const ALL_OUT: (&str, &str) = (
    SWAP,
    "what_is_above_the_limit_goes_out_and_comes_back_as_it_was",
);
const NOISE_OUT: (&str, &str) = (SWAP, "the_same_with_pages_that_do_not_shrink_and_a_file");
const SHARED_OUT: (&str, &str) = (
    SHARE,
    "nothing_is_lost_where_pages_are_shared_of_which_some_are_out",
);
const AGENT_OUT: &str = "memory/agent/out.rs";
const AGENT_SHARE: &str = "memory/agent/share.rs";
const BALLOON: &str = "memory/agent/balloon.rs";
const PAGER: &str = "memory/swap/pager.rs";
const MIDDLE: &str = "memory/swap/mod.rs";

const FAULTS: &[Fault] = &[
    fault(Step::HolesWait, ALL_OUT, (AGENT_OUT, &["punch(run)"])),
    fault(Step::WritersWait, ALL_OUT, (AGENT_OUT, &["LookedAt"])),
    fault(
        Step::NoneComes,
        (
            SHARE,
            "what_is_written_to_a_hole_that_is_taken_for_zeros_is_kept",
        ),
        (PAGER, &["userfault.zero"]),
    ),
    fault(
        Step::ReadComesProtected,
        NOISE_OUT,
        (PAGER, &["Deed::Kept"]),
    ),
    fault(
        Step::StaysProtected,
        NOISE_OUT,
        (AGENT_OUT, &["swap.lower"]),
    ),
    fault(
        Step::WrittenIsForgotten,
        NOISE_OUT,
        (PAGER, &["protect(page, Protection::Lifted)"]),
    ),
    fault(
        Step::LetGoIsForgotten,
        (
            SWAP,
            "what_is_written_without_a_limit_is_not_taken_for_what_came_back",
        ),
        (MIDDLE, &["userfault.unregister"]),
    ),
    fault(
        Step::GivenUpIsForgotten,
        (SWAP, "what_a_guest_gives_up_is_not_brought_back"),
        (BALLOON, &["punch(range)"]),
    ),
    fault(
        Step::MovedIsForgotten,
        (
            SHARE,
            "what_was_shared_and_written_since_it_came_back_goes_out_as_it_is",
        ),
        (AGENT_SHARE, &["fence.lower"]),
    ),
    fault(
        Step::OutIsNotCompared,
        SHARED_OUT,
        (AGENT_SHARE, &["self.read(", "holds_zeros("]),
    ),
    fault(
        Step::FrameStays,
        (
            SHARE,
            "a_touch_that_is_answered_late_makes_no_page_where_a_frame_is_shown",
        ),
        (PAGER, &["userfault.zero"]),
    ),
    fault(
        Step::LargeIsWhole,
        (SWAP, "the_same_with_large_pages"),
        (MIDDLE, &["self.forget(self.pages_at"]),
    ),
    fault(
        Step::SharedBehindFence,
        (SHARE, "equal_pages_show_the_frame_and_cost_nothing"),
        (AGENT_SHARE, &["self.read(", "holds_zeros("]),
    ),
    fault(
        Step::BlockIsClosed,
        (SWAP, "the_same_with_large_pages"),
        (AGENT_OUT, &["punch(run)"]),
    ),
    fault(
        Step::SharedIsClosed,
        SHARED_OUT,
        (
            AGENT_SHARE,
            &["map_store(", "move_to(", "punch(range.clone())"],
        ),
    ),
    fault(Step::ComesUnderLog, ALL_OUT, (PAGER, &["copy_as("])),
    fault(Step::AdmissionIsHeld, ALL_OUT, (PAGER, &["copy_as("])),
    fault(
        Step::FenceIsHeeded,
        NOISE_OUT,
        (PAGER, &["protect(page, Protection::Lifted)"]),
    ),
    fault(
        Step::AnswerComesLast,
        (
            "memory::agent::tests",
            "pages_given_back_are_free_when_the_answer_comes",
        ),
        (BALLOON, &["punch(range)"]),
    ),
    fault(
        Step::NamedOnce,
        (SHARE, "a_request_that_names_a_page_twice_is_refused"),
        (AGENT_SHARE, &["copy_home("]),
    ),
    fault(
        Step::SharedIsNotSampled,
        (SHARE, "a_sample_leaves_alone_what_is_not_private"),
        ("memory/agent/sample.rs", &["drop_mappings("]),
    ),
    fault(
        Step::ThroughBuffer,
        (
            "virtio::blk::tests::agent",
            "no_byte_is_lost_when_the_agent_works_on_pages_that_the_disk_reads_into",
        ),
        ("virtio/blk/worker.rs", &["go_to_device("]),
    ),
];

impl Fault {
    /// Runs its test alone in a process.
    fn run(&self) -> Output {
        let test = format!("{}::{}", self.folder, self.test);
        Command::new(std::env::current_exe().unwrap())
            .args([&test, "--exact", "--nocapture"])
            .env("BALLONET_LOCKSET_FAULT", format!("{:?}", self.step))
            .output()
            .unwrap()
    }

    /// What is told, and that it is the place that relied on what was left out.
    fn told(&self, output: &Output) -> Option<String> {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = said.lines().find(|line| line.starts_with("lockset: "))?;
        let place = told.split_once(" at vmm/").expect("it names a place").1;
        let (file, line) = place.split_once(':').unwrap();
        assert!(file.ends_with(self.file), "{:?}: {told}", self.step);
        let number: usize = line.split(':').next().unwrap().parse().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = fs::read_to_string(root.join(file)).unwrap();
        let there = source.lines().nth(number - 1).unwrap();
        // A call may begin on the line before its name.
        let next = source.lines().nth(number).unwrap();
        let is_right = |words: &&str| there.contains(words) || next.contains(words);
        assert!(
            self.told_at.iter().any(is_right),
            "{:?}: {told}, where is written: {there}",
            self.step
        );
        Some(told.to_owned())
    }
}

#[test]
fn whatever_is_left_out_is_told_of_where_it_was_relied_on() {
    let (mut table, mut missed) = (String::new(), Vec::new());
    for fault in FAULTS {
        let begin = Instant::now();
        let told = (0..TRIES).find_map(|_| fault.told(&fault.run()));
        let milliseconds = begin.elapsed().as_millis();
        if told.is_none() {
            missed.push(fault.step);
        }
        let told = told.as_deref().unwrap_or("nothing is told");
        writeln!(table, "{:?}: {milliseconds} ms: {told}", fault.step).unwrap();
    }
    println!("{table}{} of {}", FAULTS.len() - missed.len(), FAULTS.len());
    assert!(missed.is_empty(), "nobody misses {missed:?}");
}
