//! Shows a model.

use super::columns::{COLUMNS, Column, mebibytes};
use super::model::{Model, Page};
use crate::api::{HostFigures, VmFigures};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, TableState};

/// Columns of a terminal that a name and any other figure take, and what is between them.
const NAME_WIDTH: u16 = 14;
const FIGURE_WIDTH: u16 = 7;
const GAP: u16 = 1;

const HELP: &str = "\
Keys
  up, down     choose a VM          enter   its page
  left, right  sort by a column     r       the other way   n  unsorted
  f            choose columns       space   pause
  h, ?         this page            q, esc  back; leave

Sizes are MiB. What there is of a VM:";

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let areas = Layout::vertical([
        Constraint::Length(6),
        Constraint::Min(0),
        Constraint::Length(1),
    ]);
    let [head, body, foot] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(host_lines(model)), head);
    match model.page {
        Page::Table => table(frame, body, model),
        Page::Columns(at) => choose_columns(frame, body, model, at),
        Page::Vm => frame.render_widget(Paragraph::new(vm_lines(model.chosen_vm())), body),
        Page::Help => frame.render_widget(Paragraph::new(help_lines(body.width)), body),
    }
    let bar = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(foot_text(model)).style(bar), foot);
}

fn host_lines(model: &Model) -> Vec<Line<'static>> {
    let host = &model.figures.host;
    let [one, five, fifteen] = host.overcommit_avg.map(|average| average.max(0.0));
    let m = mebibytes;
    let state = host.state.as_deref().unwrap_or("-");
    let minfree = host.minfree.map_or_else(|| "-".into(), m);
    vec![
        format!(
            "up {}, {} VMs; MEM overcommit avg: {one:.2}, {five:.2}, {fifteen:.2}",
            uptime(host),
            model.figures.vms.len(),
        ),
        format!(
            "PMEM   /MiB: {:>7} total, {:>7} used, {:>7} free; {state} state, {minfree} minfree",
            m(host.pmem_total),
            m(host.pmem_used),
            m(host.pmem_free),
        ),
        format!(
            "PSHARE /MiB: {:>7} shared,{:>7} common,{:>7} saving; {} broken, {} reserve",
            m(host.pshare_shared),
            m(host.pshare_common),
            m(host.pshare_saving),
            m(host.broken),
            m(host.reserve),
        ),
        format!(
            "SWAP   /MiB: {:>7} curr; ZIP {} zipped; scan {} pages/s",
            m(host.swap_curr),
            m(host.zip_zipped),
            host.covered_per_s,
        ),
        format!(
            "MEMCTL /MiB: {:>7} curr,  {:>7} target,{:>7} max",
            m(host.memctl_curr),
            m(host.memctl_target),
            m(host.memctl_max),
        ),
    ]
    .into_iter()
    .map(Line::from)
    .collect()
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

/// The columns that are wanted, as many as fit.
fn fitting(model: &Model, width: u16) -> Vec<usize> {
    let others = width.saturating_sub(NAME_WIDTH) / (FIGURE_WIDTH + GAP);
    let shown = (0..COLUMNS.len()).filter(|&column| model.is_shown[column]);
    shown.take(usize::from(others) + 1).collect()
}

fn table(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let columns = fitting(model, area.width);
    let header = columns.iter().map(|&at| heading(model, at));
    let rows = model.rows();
    let rows = rows.iter().map(|vm| {
        let cells = columns.iter().map(|&at| cell(vm, at, &COLUMNS[at]));
        Row::new(cells.collect::<Vec<_>>())
    });
    let widths = columns.iter().map(|&at| match at {
        0 => Constraint::Length(NAME_WIDTH),
        _ => Constraint::Length(FIGURE_WIDTH),
    });
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .column_spacing(GAP)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(model.chosen_row()));
    frame.render_stateful_widget(table, area, &mut state);
}

/// The sorting column's name is underlined.
fn heading(model: &Model, at: usize) -> Line<'static> {
    let name = COLUMNS[at].name;
    let line = match at {
        0 => Line::from(name),
        _ => Line::from(name).right_aligned(),
    };
    match model.sort {
        Some(sort) if sort == at => line.style(Style::new().add_modifier(Modifier::UNDERLINED)),
        _ => line,
    }
}

fn cell(vm: &VmFigures, at: usize, column: &Column) -> Line<'static> {
    let line = Line::from((column.cell)(vm).text());
    match at {
        0 => line,
        _ => line.right_aligned(),
    }
}

fn choose_columns(frame: &mut Frame<'_>, area: Rect, model: &Model, at: usize) {
    let rows = COLUMNS
        .iter()
        .zip(model.is_shown)
        .map(|(column, is_shown)| {
            let mark = if is_shown { "[x]" } else { "[ ]" };
            Row::new([format!("{mark} {:<8} {}", column.name, column.meaning)])
        });
    let table = Table::new(rows, [Constraint::Fill(1)])
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(at));
    frame.render_stateful_widget(table, area, &mut state);
}

/// All columns, in two where there is room.
fn vm_lines(vm: Option<&VmFigures>) -> Vec<Line<'static>> {
    let Some(vm) = vm else {
        return vec![Line::from("It has gone.")];
    };
    let figure = |column: &Column| format!("{:<8}{:>9}", column.name, (column.cell)(vm).text());
    let title =
        Line::from(format!("VM {}", vm.name)).style(Style::new().add_modifier(Modifier::BOLD));
    let pairs = COLUMNS[1..].chunks(2).map(|pair| {
        let figures: Vec<String> = pair.iter().map(figure).collect();
        Line::from(figures.join("      "))
    });
    std::iter::once(title).chain(pairs).collect()
}

fn help_lines(width: u16) -> Vec<Line<'static>> {
    let keys = HELP.lines().map(Line::from);
    let meaning = |column: &Column| format!("  {:<8} {}", column.name, column.meaning);
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
        Page::Table => "h help  q leave  enter VM  arrows choose, sort  f columns  space pause",
        Page::Columns(_) => "up, down choose  space show or hide  q back",
        Page::Vm => "up, down another VM  q back",
        Page::Help => "q back",
    };
    format!(" {pause}{keys}")
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{any_key, model, press};
    use super::*;
    use proptest::prelude::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    fn shown(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
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
        let wide = shown(&model(), 230, 50);
        assert!(
            COLUMNS.iter().all(|column| wide[6].contains(column.name)),
            "{wide:#?}"
        );
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
            !header.contains("MEMSZ") && header.contains("ASHRS"),
            "{header}"
        );
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
            for key in keys {
                press(&mut model, key);
                shown(&model, width, height);
            }
        }
    }
}
