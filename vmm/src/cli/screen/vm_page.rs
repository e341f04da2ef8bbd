//! The page of one VM: its memory by state over time, why it holds what it holds, what happened to it, and
//! all figures.

use super::bars::bars;
use super::model::{Details, Model};
use crate::cli::counters::{COLUMNS, Unit, in_percent};
use crate::cli::table;
use api::{EventView, Figure, HistoryView, VmFigures};
use page::PageState;
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;

const NAME_WIDTH: usize = 11;
const VALUE_WIDTH: usize = 9;
/// A figure with its name, and what is between two of them.
const FIGURE_WIDTH: usize = 20;
const EVENTS: usize = 8;

/// Columns of the history besides the states of pages, under the names that are shown.
const OTHERS: [(&str, &str); 3] = [("used", "holds"), ("target", "target"), ("touched", "uses")];

pub(super) fn lines(model: &Model, width: usize) -> Vec<Line<'static>> {
    let Some(vm) = model.chosen_vm() else {
        return vec![Line::from("It has gone.")];
    };
    let details = model.details();
    let mut lines = vec![title(vm, model.unit)];
    let said = [limit(vm, model.unit), belief(vm, model.unit)];
    let said = said.iter().flatten().flat_map(|text| wrapped(text, width));
    lines.extend(said.map(Line::from));
    lines.extend(
        details
            .iter()
            .flat_map(|details| over_time(&details.history, vm.memsz, model.unit, width)),
    );
    lines.extend(details.iter().flat_map(|details| why(details, width)));
    lines.extend(
        details
            .iter()
            .flat_map(|details| events(&details.events, model.figures.time_ms, width)),
    );
    lines.extend(devices(vm, width));
    lines.extend(figures(vm, model.unit, width));
    lines
}

fn heading(text: String) -> Line<'static> {
    Line::from(text).style(Style::new().add_modifier(Modifier::BOLD))
}

fn title(vm: &VmFigures, unit: Unit) -> Line<'static> {
    let [size, min, max] = [vm.memsz, vm.amin, vm.amax].map(|bytes| unit.text(bytes));
    heading(format!(
        "VM {}: {}, {size} {}, {} shares, min {min}, max {max}",
        vm.name,
        vm.state_word(),
        unit.name(),
        vm.ashrs,
    ))
}

/// What stops it, if something does.
fn limit(vm: &VmFigures, unit: Unit) -> Option<String> {
    let limit = vm.touch_limit?;
    let [slow, stop] = [limit.slow_above_bytes, limit.stop_above_bytes].map(|size| unit.text(size));
    let name = unit.name();
    Some(format!(
        "Its guest may have touched {slow} {name}: it runs a tenth of the time above that, not at all beyond {stop} {name}. \
         It was blocked {:.0} % of the last second.",
        in_percent(vm.blocked_permille)
    ))
}

/// What it uses, and what the policy acts on, once that is known.
fn belief(vm: &VmFigures, unit: Unit) -> Option<String> {
    let [likely, believed] = [vm.tchd?, vm.tchd_believed?].map(|size| unit.text(size));
    let name = unit.name();
    Some(format!(
        "Its working set is {likely} {name} by estimate; the policy takes it for {believed} {name}."
    ))
}

/// A line of bars for each state that it ever had memory in, up to its size.
fn over_time(history: &HistoryView, size: u64, unit: Unit, width: usize) -> Vec<Line<'static>> {
    let room = width.saturating_sub(NAME_WIDTH + VALUE_WIDTH);
    let line = |(column, name): &(&str, &str)| {
        let column = history.columns.iter().find(|found| found.name == *column)?;
        let values = column.known_or_zero();
        let now = values
            .last()
            .filter(|_| values.iter().any(|&value| value > 0))?;
        let (bars, now) = (bars(&values, room, size), unit.text(*now));
        Some(Line::from(format!(
            "{name:<NAME_WIDTH$}{bars}{now:>VALUE_WIDTH$}"
        )))
    };
    let states = PageState::ALL.map(|state| (state.name(), state.name()));
    states.iter().chain(&OTHERS).filter_map(line).collect()
}

fn why(details: &Details, width: usize) -> Vec<Line<'static>> {
    section("Why it holds what it holds", wrapped(&details.why, width))
}

fn events(events: &[EventView], now_ms: u64, width: usize) -> Vec<Line<'static>> {
    let newest = events.iter().rev().take(EVENTS);
    let told = newest.map(|event| {
        let ago = now_ms.saturating_sub(event.time_ms) / 1000;
        format!("{:>9}  {}", age(ago), event.what)
    });
    let lines = told.flat_map(|text| wrapped(&text, width)).collect();
    section("What happened to it", lines)
}

/// Its disks and network cards, if it has any.
fn devices(vm: &VmFigures, width: usize) -> Vec<Line<'static>> {
    let disks = vm
        .disks
        .iter()
        .map(|disk| format!("disk {}", table::disk(disk)));
    let nets = vm.nets.iter();
    let told = disks.chain(nets.map(|net| format!("network {}", table::network(net))));
    let lines: Vec<String> = told.flat_map(|text| wrapped(&text, width)).collect();
    match lines.is_empty() {
        true => Vec::new(),
        false => section("Its disks and network cards", lines),
    }
}

/// All columns but its name, as many beside each other as fit.
fn figures(vm: &VmFigures, unit: Unit, width: usize) -> Vec<Line<'static>> {
    let figure = |column: &Figure<VmFigures>| {
        let value = unit.reading(&(column.read)(vm));
        format!("{:<8}{value:>9}   ", column.column)
    };
    let beside = (width / FIGURE_WIDTH).max(1);
    let is_told = |column: &&Figure<VmFigures>| !column.is_rare || !(column.read)(vm).is_nothing();
    let told: Vec<_> = COLUMNS[1..].iter().filter(is_told).copied().collect();
    let rows = told.chunks(beside);
    let rows = rows.map(|row| row.iter().map(figure).collect());
    section(
        &format!("Figures, sizes in {}", unit.name()),
        rows.collect(),
    )
}

fn section(name: &str, lines: Vec<String>) -> Vec<Line<'static>> {
    let head = [Line::default(), heading(name.into())];
    head.into_iter()
        .chain(lines.into_iter().map(Line::from))
        .collect()
}

pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// Lines of whole words; a word that is longer than a line has one of its own, and is cut off there.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wrapping_keeps_every_word_and_no_line_of_two_words_is_too_long(
            words in prop::collection::vec("[a-z]{1,12}", 1..40), width in 0_usize..60
        ) {
            let text = words.join(" ");
            let lines = wrapped(&text, width);
            prop_assert_eq!(lines.join(" "), text);
            let fits = |line: &String| line.len() <= width || !line.contains(' ');
            prop_assert!(lines.iter().all(fits));
        }
    }
}
