//! Shows a model.

use super::bars::bars;
use super::model::{Model, Page};
use super::vm_page::{self, age};
use crate::cli::counters::{COLUMNS, NAME, Unit};
use api::{Figure, HistoryView, HostFigures, QueuedView, VmFigures};
use policy::MemoryState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, TableState};

/// Columns of a terminal that a name takes, and what is between it and figures.
const NAME_WIDTH: u16 = 14;
const GAP: u16 = 1;
/// At the end of the name of a VM that is blocked.
const BLOCKED_MARK: char = '!';

const HELP: &str = "\
Keys
  up, down     choose a VM          enter    its page
  left, right  sort by a column     r        the other way    n  unsorted
  M, B, N      sort by MEMSZ, MCTLSZ, GRANT
  f            choose columns       u        KiB, MiB, GiB
  b            bars of the last ten minutes
  space        pause                pg up, pg dn  scroll
  h, ?         this page            q, esc   back; leave

A name with a ! is that of a VM that is blocked: it has touched more than it
may (%BLKD, TCHLIM). VMs that wait to be admitted are told after QUEUE.

What there is of a VM:";

/// The host's history that has bars, and how it is called.
const BARS: [(&str, &str); 4] = [
    ("free", "free"),
    ("ballooned", "balloons"),
    ("shared", "shared"),
    ("broken", "broken"),
];

/// Shows it. How many lines of the page could be scrolled out of sight.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) -> usize {
    let mut head = host_lines(model, frame.area().width);
    head.push(Line::default());
    // On a terminal of few rows VMs come first.
    head.truncate(usize::from(frame.area().height / 2).max(1));
    let height = u16::try_from(head.len()).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(height),
        Constraint::Min(0),
        Constraint::Length(1),
    ]);
    let [above, body, foot] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(head), above);
    let bar = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(foot_text(model)).style(bar), foot);
    match model.page {
        Page::Table => table(frame, body, model),
        Page::Columns(at) => choose_columns(frame, body, model, at),
        Page::Vm => return page(frame, body, vm_page::lines(model, body.width.into()), model),
        Page::Help => return page(frame, body, help_lines(body.width), model),
    }
    0
}

/// Shows lines from where they are scrolled to.
fn page(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'static>>, model: &Model) -> usize {
    let furthest = lines.len().saturating_sub(area.height.into());
    let above = model.scroll.min(furthest);
    let shown: Vec<Line<'static>> = lines.into_iter().skip(above).collect();
    frame.render_widget(Paragraph::new(shown), area);
    furthest
}

fn host_lines(model: &Model, width: u16) -> Vec<Line<'static>> {
    let host = &model.figures.host;
    let (u, name) = (model.unit, model.unit.name());
    let m = |bytes| u.text(bytes);
    let mut lines = vec![
        first_line(host, model.figures.vms.len()),
        Line::from(format!(
            "PMEM   /{name}: {:>7} total, {:>7} used,  {:>7} free, {:>7} minfree",
            m(host.pmem_total),
            m(host.pmem_used),
            m(host.pmem_free),
            host.minfree.map_or_else(|| "-".into(), m),
        )),
        Line::from(format!(
            "PSHARE /{name}: {:>7} shared,{:>7} common,{:>7} saving,{:>7} broken",
            m(host.pshare_shared),
            m(host.pshare_common),
            u.difference(host.pshare_saving),
            m(host.broken),
        )),
        Line::from(format!(
            "MEMCTL /{name}: {:>7} curr,  {:>7} target,{:>7} max",
            m(host.memctl_curr),
            m(host.memctl_target),
            m(host.memctl_max),
        )),
        Line::from(format!(
            "SCAN   /s  : {:>7} pages, {:>7} merged,{:>7} broken; {}.{} % of a core",
            host.covered_per_s,
            host.merges_per_s,
            host.breaks_per_s,
            host.scan_core_permille / 10,
            host.scan_core_permille % 10,
        )),
    ];
    if host.swap_curr + host.swap_target + host.zip_zipped > 0 {
        let saved = host.zip_zipped.saturating_sub(host.pool);
        lines.push(Line::from(format!(
            "SWAP   /{name}: {:>7} curr,  {:>7} target,{:>7} r/s,    {:>7} w/s",
            m(host.swap_curr),
            m(host.swap_target),
            m(host.swap_read_per_s),
            m(host.swap_written_per_s),
        )));
        lines.push(Line::from(format!(
            "ZIP    /{name}: {:>7} zipped,{:>7} saved",
            m(host.zip_zipped),
            m(saved),
        )));
    }
    lines.extend(queue_line(&model.figures.queue, u));
    let history = model.history.iter();
    lines.extend(history.flat_map(|history| bar_lines(history, host, u, width.into())));
    lines
}

/// Who waits to be admitted, with what size and for how long, if anybody does.
fn queue_line(queue: &[QueuedView], unit: Unit) -> Option<Line<'static>> {
    let told = |queued: &QueuedView| {
        let size = unit.text(queued.memory_bytes);
        format!("{} {size} for {}", queued.name, age(queued.waited_s))
    };
    let all = queue.iter().map(told).collect::<Vec<_>>().join(", ");
    let text = format!("QUEUE  /{}: {:>7} wait:   {all}", unit.name(), queue.len());
    (!queue.is_empty()).then(|| Line::from(text).style(WARNING))
}

fn first_line(host: &HostFigures, vms: usize) -> Line<'static> {
    let state = host.state.map_or("-".into(), |state| state.to_string());
    let [one, five, fifteen] = host.overcommit_avg.map(|average| average.max(0.0));
    Line::from(vec![
        Span::from(format!("up {}, {vms} VMs, ", uptime(host))),
        Span::styled(format!("{state} state"), state_style(host.state)),
        Span::from(format!(
            "; MEM overcommit avg: {one:.2}, {five:.2}, {fifteen:.2}"
        )),
    ])
}

/// What is not as it should be,
const WARNING: Style = Style::new().fg(Color::Yellow);
/// and what is wrong.
const ALARM: Style = Style::new().fg(Color::Red);

/// What is wrong stands out.
fn state_style(state: Option<MemoryState>) -> Style {
    let style = match state {
        Some(MemoryState::Soft) => WARNING,
        Some(MemoryState::Hard | MemoryState::Low) => ALARM,
        _ => return Style::new(),
    };
    style.add_modifier(Modifier::BOLD)
}

/// A line of bars for each part of what the host has.
fn bar_lines(
    history: &HistoryView,
    host: &HostFigures,
    unit: Unit,
    width: usize,
) -> Vec<Line<'static>> {
    let room = width.saturating_sub(11 + 9);
    let line = |(column, name): &(&str, &str)| {
        let column = history.columns.iter().find(|found| found.name == *column)?;
        let values = column.known_or_zero();
        let now = unit.text(*values.last()?);
        let bars = bars(&values, room, host.pmem_total);
        Some(Line::from(format!("{name:<11}{bars}{now:>9}")))
    };
    BARS.iter().filter_map(line).collect()
}

fn uptime(host: &HostFigures) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds are shown"
    )]
    let seconds = host.uptime_s as u64;
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Columns of a terminal that a figure takes.
fn figure_width(unit: Unit) -> u16 {
    match unit {
        Unit::Kibibytes => 10,
        Unit::Mebibytes | Unit::Gibibytes => 7,
    }
}

/// The columns that are wanted, as many as fit: the first, or those up to the one that sorts.
fn fitting(model: &Model, width: u16) -> Vec<usize> {
    let room = width.saturating_sub(NAME_WIDTH) / (figure_width(model.unit) + GAP);
    let shown = (1..COLUMNS.len()).filter(|&column| model.is_wanted(column));
    let shown: Vec<usize> = shown.collect();
    let last = shown.iter().position(|column| Some(*column) == model.sort);
    let skip = last.map_or(0, |last| (last + 1).saturating_sub(room.into()));
    let figures = shown.into_iter().skip(skip).take(room.into());
    std::iter::once(NAME).chain(figures).collect()
}

fn table(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let columns = fitting(model, area.width);
    let header = columns.iter().map(|&at| heading(model, at));
    let rows = model.rows();
    let rows = rows.iter().map(|vm| {
        let cells = columns.iter().map(|&at| cell(vm, at, model.unit));
        Row::new(cells.collect::<Vec<_>>()).style(vm_style(vm))
    });
    let widths = columns.iter().map(|&at| match at {
        NAME => Constraint::Length(NAME_WIDTH),
        _ => Constraint::Length(figure_width(model.unit)),
    });
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .column_spacing(GAP)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(model.chosen_row()));
    frame.render_stateful_widget(table, area, &mut state);
}

fn vm_style(vm: &VmFigures) -> Style {
    match vm.responding && vm.credible {
        true if vm.is_blocked() => WARNING,
        true => Style::new(),
        false => ALARM,
    }
}

/// The sorting column's name is underlined.
fn heading(model: &Model, at: usize) -> Line<'static> {
    let name = COLUMNS[at].column;
    let line = match at {
        NAME => Line::from(name),
        _ => Line::from(name).right_aligned(),
    };
    match model.sort {
        Some(sort) if sort == at => line.style(Style::new().add_modifier(Modifier::UNDERLINED)),
        _ => line,
    }
}

fn cell(vm: &VmFigures, at: usize, unit: Unit) -> Line<'static> {
    match at {
        NAME => Line::from(marked_name(vm)),
        _ => Line::from(unit.reading(&(COLUMNS[at].read)(vm))).right_aligned(),
    }
}

/// The mark is seen without colors, and however long the name is.
fn marked_name(vm: &VmFigures) -> String {
    let (name, room) = (vm.name.as_str(), usize::from(NAME_WIDTH) - 1);
    match vm.is_blocked() {
        true => format!("{name:<room$.room$}{BLOCKED_MARK}"),
        false => name.into(),
    }
}

fn choose_columns(frame: &mut Frame<'_>, area: Rect, model: &Model, at: usize) {
    let rows = COLUMNS
        .iter()
        .zip(model.is_shown)
        .map(|(column, is_shown)| {
            let mark = if is_shown { "[x]" } else { "[ ]" };
            Row::new([format!("{mark} {:<8} {}", column.column, column.help)])
        });
    let table = Table::new(rows, [Constraint::Fill(1)])
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(at));
    frame.render_stateful_widget(table, area, &mut state);
}

fn help_lines(width: u16) -> Vec<Line<'static>> {
    let keys = HELP.lines().map(Line::from);
    let meaning = |column: &Figure<VmFigures>| format!("  {:<8} {}", column.column, column.help);
    // Two beside each other, where both can be read.
    let each = usize::from(width / 2).max(1);
    let columns: Vec<Line<'static>> = if each >= 60 {
        let pairs = COLUMNS.chunks(2).map(|pair| {
            let texts = pair
                .iter()
                .map(|column| format!("{:<each$}", meaning(column)));
            Line::from(texts.collect::<String>())
        });
        pairs.collect()
    } else {
        COLUMNS
            .iter()
            .map(|column| Line::from(meaning(column)))
            .collect()
    };
    keys.chain(columns).collect()
}

fn foot_text(model: &Model) -> String {
    if let Some(why) = &model.lost {
        return format!(" these figures are old: {why}");
    }
    let pause = if model.is_paused { "PAUSED  " } else { "" };
    let keys = match model.page {
        Page::Table => "h help  q leave  enter VM  arrows choose, sort  f columns  u units  b bars",
        Page::Columns(_) => "up, down choose  space show or hide  q back",
        Page::Vm => "up, down another VM  pg up, pg dn scroll  u units  q back",
        Page::Help => "up, down, pg up, pg dn scroll  q back",
    };
    format!(" {pause}{keys}")
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{any_key, blocked, details, model, press, vm};
    use super::*;
    use proptest::prelude::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    fn shown(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| {
                draw(frame, model);
            })
            .unwrap();
        let buffer = terminal.backend().buffer().clone();
        let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
        cells
            .chunks(usize::from(width).max(1))
            .map(<[&str]>::concat)
            .collect()
    }

    #[test]
    fn a_small_terminal_shows_whole_columns_and_a_wide_one_all() {
        let small = shown(&model(), 80, 24);
        assert!(small[6].starts_with("NAME"), "{small:#?}");
        assert!(
            small[6].contains("MCTLSZ") && !small[6].contains("BRK/s"),
            "{small:#?}"
        );
        assert!(
            small[8].starts_with("a ") && small[8].contains("3.0"),
            "{small:#?}"
        );
        let wide = shown(&model(), 290, 50);
        assert!(
            COLUMNS
                .iter()
                .all(|column| column.is_rare != wide[6].contains(column.column)),
            "{wide:#?}"
        );
    }

    #[test]
    fn a_tiny_terminal_shows_some_of_the_host_and_some_of_its_vms() {
        let rows = shown(&model(), 20, 5);
        let starts = ["up 0:00:00", "PMEM", "NAME", "b ", " h help"];
        for (row, start) in rows.iter().zip(starts) {
            assert!(row.starts_with(start), "{rows:#?}");
        }
    }

    #[test]
    fn a_column_that_is_hidden_makes_room_for_another() {
        let mut model = model();
        for key in [
            KeyCode::Char('f'),
            KeyCode::Down,
            KeyCode::Char(' '),
            KeyCode::Esc,
        ] {
            press(&mut model, key);
        }
        let header = &shown(&model, 80, 24)[6];
        assert!(
            !header.contains("MEMSZ") && header.contains("SHRD"),
            "{header}"
        );
    }

    /// By a column that nobody sees it would look unsorted.
    #[test]
    fn the_column_that_sorts_is_always_there() {
        let mut model = model();
        press(&mut model, KeyCode::Left);
        let header = &shown(&model, 80, 24)[6];
        assert!(
            header.starts_with("NAME") && header.trim_end().ends_with("BRK/s"),
            "{header}"
        );
    }

    #[test]
    fn sizes_are_told_in_the_unit_that_is_named() {
        let mut model = model();
        for (unit, size) in [("/MiB", " 3.0 "), ("/GiB", " 0.00 "), ("/KiB", " 3072 ")] {
            let rows = shown(&model, 80, 24);
            assert!(rows[1].contains(unit), "{rows:#?}");
            assert!(
                rows[8].starts_with("a ") && rows[8].contains(size),
                "{rows:#?}"
            );
            press(&mut model, KeyCode::Char('u'));
        }
    }

    #[test]
    fn what_the_host_does_not_have_has_no_line_and_no_column() {
        let rows = shown(&model(), 290, 50);
        let words = ["SWAP", "SWCUR", "ZIP", "CACHE", "QUEUE"];
        let is_shown = |word: &&str| rows.iter().any(|row| row.contains(*word));
        assert!(!words.iter().any(is_shown), "{rows:#?}");
        let mut swapping = model();
        swapping.figures.host.swap_curr = 1 << 20;
        swapping.figures.vms[0].swcur = 1 << 20;
        let rows = shown(&swapping, 300, 24);
        assert!(rows.iter().any(|row| row.contains("SWCUR")), "{rows:#?}");
        assert!(!rows.iter().any(|row| row.contains("UNZIP/s")));
        let rows = shown(&swapping, 80, 24);
        assert!(
            rows.iter()
                .any(|row| row.starts_with("SWAP") && row.contains(" 1.0 curr"))
        );
        assert!(rows.iter().any(|row| row.starts_with("ZIP")), "{rows:#?}");
    }

    #[test]
    fn the_page_of_a_vm_tells_its_states_over_time_and_why_and_what_happened() {
        let mut model = model();
        press(&mut model, KeyCode::Enter);
        model.see_details(Some(details("b")));
        let rows = shown(&model, 80, 24);
        for (start, part) in [
            ("VM b: run", "10 shares"),
            ("private", "▄      1.0"),
            ("target", "█      2.0"),
            ("Why", ""),
            ("'b' should hold", "from 'c'."),
            ("What happened", ""),
            ("      0 s", "started as process 7"),
        ] {
            let is_it = |row: &String| row.starts_with(start) && row.contains(part);
            assert!(rows.iter().any(is_it), "{start} {part} in {rows:#?}");
        }
        assert!(!rows.iter().any(|row| row.starts_with("swapped")));
    }

    /// A long name leaves room for the mark, and the row is where it was.
    #[test]
    fn a_vm_that_is_blocked_has_a_mark_after_its_name() {
        let mut model = model();
        let name = "a-name-that-is-too-long";
        model.figures.vms[0] = blocked(vm(name, 2 << 20, 10));
        let rows = shown(&model, 80, 24);
        assert!(rows[7].starts_with("a-name-that-i! "), "{rows:#?}");
        assert!(rows[8].starts_with("a              "), "{rows:#?}");
        assert!(!rows[6].contains("%BLKD"), "{rows:#?}");
        let wide = shown(&model, 120, 24);
        assert!(wide[6].contains("%BLKD  TCHLIM"), "{wide:#?}");
        assert!(wide[7].contains("     90     1.0"), "{wide:#?}");
        assert!(wide[8].contains("      0       -"), "{wide:#?}");
    }

    #[test]
    fn those_that_wait_to_be_admitted_have_a_line_while_there_are_any() {
        let mut model = model();
        let queued = |name: &str, waited_s| QueuedView {
            name: name.parse().unwrap(),
            memory_bytes: 128 << 20,
            waited_s,
            why: "there is no room".into(),
        };
        model.figures.queue = vec![queued("large", 150), queued("next", 3)];
        let rows = shown(&model, 80, 24);
        let line = "QUEUE  /MiB:       2 wait:   large 128 for 2 min, next 128 for 3 s";
        assert_eq!(rows[5].trim_end(), line);
        assert!(rows[7].starts_with("NAME"), "{rows:#?}");
    }

    #[test]
    fn the_page_of_a_vm_says_what_stops_it_and_what_its_working_set_is_taken_for() {
        let mut model = model();
        model.figures.vms[0] = blocked(vm("b", 2 << 20, 10));
        press(&mut model, KeyCode::Enter);
        let page = shown(&model, 80, 24).concat();
        for words in [
            "VM b: block",
            "may have touched 1.0 MiB",
            "beyond 1.5 MiB",
            "blocked 90 % of",
        ] {
            assert!(page.contains(words), "{words} in {page}");
        }
        assert!(!page.contains("policy"), "nothing is known: {page}");
        model.figures.vms[0].tchd = Some(1 << 20);
        model.figures.vms[0].tchd_believed = Some(3 << 19);
        let page = shown(&model, 80, 24).concat();
        assert!(page.contains("1.0 MiB by estimate"), "{page}");
        assert!(page.contains("takes it for 1.5 MiB"), "{page}");
    }

    #[test]
    fn old_figures_are_said_to_be_old() {
        let mut model = model();
        model.lose("no host answers".into());
        assert!(shown(&model, 80, 24)[23].contains("old: no host answers"));
    }

    proptest! {
        #[test]
        fn no_keys_and_no_size_of_the_terminal_are_too_much(
            keys in prop::collection::vec(any_key(), 0..40),
            width in 0_u16..100,
            height in 0_u16..40,
        ) {
            let mut model = model();
            model.see_details(Some(details("b")));
            model.history = Some(details("b").history);
            for key in keys {
                press(&mut model, key);
                shown(&model, width, height);
            }
        }
    }
}
