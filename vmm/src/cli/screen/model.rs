//! What is shown, and what keys do to it.

use crate::cli::counters::{COLUMNS, GRANT, MCTLSZ, MEMSZ, Unit, order};
use api::{EventView, Figure, Figures, HistoryView, VmFigures};
use protocol::VmName;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Lines that a key scrolls.
const SCROLL_STEP: usize = 10;

/// What fills the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Table,
    /// Which columns are shown, with the one that a key would change.
    Columns(usize),
    Vm,
    Help,
}

/// What follows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    Leave,
}

/// What the page of a VM shows beside its figures.
#[derive(Clone, Debug)]
pub(super) struct Details {
    pub(super) name: VmName,
    pub(super) history: HistoryView,
    /// Why it holds what it holds.
    pub(super) why: String,
    /// What happened to it, oldest first.
    pub(super) events: Vec<EventView>,
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) figures: Figures,
    /// Of the host, while its bars are shown.
    pub(super) history: Option<HistoryView>,
    details: Option<Details>,
    pub(super) page: Page,
    pub(super) unit: Unit,
    pub(super) has_bars: bool,
    /// Lines of a long page that are above the screen.
    pub(super) scroll: usize,
    pub(super) is_paused: bool,
    /// Why the figures are old, if the host does not answer.
    pub(super) lost: Option<String>,
    pub(super) is_shown: [bool; COLUMNS.len()],
    /// The column that sorts; none for the order in which VMs came.
    pub(super) sort: Option<usize>,
    pub(super) is_descending: bool,
    /// Which VM is chosen: by name, because rows move.
    chosen: Option<VmName>,
}

impl Model {
    pub(super) fn new(figures: Figures) -> Self {
        Self {
            figures,
            history: None,
            details: None,
            page: Page::Table,
            unit: Unit::default(),
            has_bars: false,
            scroll: 0,
            is_paused: false,
            lost: None,
            is_shown: [true; COLUMNS.len()],
            sort: None,
            is_descending: true,
            chosen: None,
        }
    }

    /// New figures came.
    pub(super) fn see(&mut self, figures: Figures) {
        self.lost = None;
        if !self.is_paused {
            self.figures = figures;
        }
    }

    /// More of a VM came.
    pub(super) fn see_details(&mut self, details: Option<Details>) {
        if !self.is_paused {
            self.details = details;
        }
    }

    /// The VM of which more is wanted than figures.
    pub(super) fn wanted_vm(&self) -> Option<VmName> {
        let vm = self.chosen_vm().filter(|_| self.page == Page::Vm);
        vm.map(|vm| vm.name.clone())
    }

    /// What is known of the chosen VM beside its figures.
    pub(super) fn details(&self) -> Option<&Details> {
        let chosen = self.chosen_vm().map(|vm| &vm.name);
        let details = self.details.as_ref();
        details.filter(|details| Some(&details.name) == chosen)
    }

    /// None came.
    pub(super) fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// The VMs in the order in which they are shown.
    pub(super) fn rows(&self) -> Vec<&VmFigures> {
        let mut vms: Vec<&VmFigures> = self.figures.vms.iter().collect();
        if let Some(Figure { read, .. }) = self.sort.map(|sort| COLUMNS[sort]) {
            vms.sort_by(|a, b| {
                let order = order(&read(a), &read(b));
                if self.is_descending {
                    order.reverse()
                } else {
                    order
                }
            });
        }
        vms
    }

    /// The chosen VM's row, the first if the chosen one has gone.
    pub(super) fn chosen_row(&self) -> usize {
        let rows = self.rows();
        let mut names = rows.iter().map(|vm| Some(&vm.name));
        names
            .position(|name| name == self.chosen.as_ref())
            .unwrap_or(0)
    }

    pub(super) fn chosen_vm(&self) -> Option<&VmFigures> {
        self.rows().get(self.chosen_row()).copied()
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::GoOn;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match (key.code, self.page) {
            (KeyCode::Char('c'), _) if is_control => return Next::Leave,
            (KeyCode::Char('q'), Page::Table) => return Next::Leave,
            (KeyCode::Char('q') | KeyCode::Esc, _) => self.go(Page::Table),
            (KeyCode::Char('h' | '?'), _) => self.go(Page::Help),
            (KeyCode::Char('f'), Page::Table) => self.go(Page::Columns(0)),
            (KeyCode::Char('u'), _) => self.unit = self.unit.next(),
            (KeyCode::Char('b'), _) => self.has_bars = !self.has_bars,
            (KeyCode::PageDown, _) => self.scroll = self.scroll.saturating_add(SCROLL_STEP),
            (KeyCode::PageUp, _) => self.scroll = self.scroll.saturating_sub(SCROLL_STEP),
            (KeyCode::Enter, Page::Table) if self.chosen_vm().is_some() => {
                // From here on it is this VM, whatever happens to the order.
                self.choose(0);
                self.go(Page::Vm);
            }
            (KeyCode::Enter, _) => self.go(Page::Table),
            (code, Page::Columns(at)) => self.press_in_columns(code, at),
            (code, Page::Table | Page::Vm) => self.press_in_table(code),
            (KeyCode::Up, Page::Help) => self.scroll = self.scroll.saturating_sub(1),
            (KeyCode::Down, Page::Help) => self.scroll = self.scroll.saturating_add(1),
            (_, Page::Help) => {}
        }
        Next::GoOn
    }

    fn go(&mut self, page: Page) {
        self.page = page;
        self.scroll = 0;
    }

    /// No page is scrolled beyond its end.
    pub(super) fn scroll_at_most(&mut self, lines: usize) {
        self.scroll = self.scroll.min(lines);
    }

    fn press_in_columns(&mut self, code: KeyCode, at: usize) {
        match code {
            KeyCode::Up => self.page = Page::Columns(at.saturating_sub(1)),
            KeyCode::Down => self.page = Page::Columns((at + 1).min(COLUMNS.len() - 1)),
            // Without names rows say nothing.
            KeyCode::Char(' ') if at > 0 => self.is_shown[at] = !self.is_shown[at],
            _ => {}
        }
    }

    fn press_in_table(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            KeyCode::Char('r') => self.is_descending = !self.is_descending,
            KeyCode::Char('n') => self.sort = None,
            KeyCode::Char('M') => self.sort_by(MEMSZ),
            KeyCode::Char('B') => self.sort_by(MCTLSZ),
            KeyCode::Char('N') => self.sort_by(GRANT),
            KeyCode::Right | KeyCode::Char('>') => self.sort_by_next(1),
            KeyCode::Left | KeyCode::Char('<') => self.sort_by_next(COLUMNS.len() - 1),
            KeyCode::Up | KeyCode::Char('k') => self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') => self.choose(1),
            _ => {}
        }
    }

    /// Sorts by a column as esxtop's keys do, the largest first.
    fn sort_by(&mut self, column: usize) {
        self.sort = Some(column);
        self.is_descending = true;
    }

    /// Sorts by the next column that is shown, `step` at a time around all.
    /// Whether a column is shown: one that says nothing of any VM, as most of the time, takes no room.
    pub(super) fn is_wanted(&self, column: usize) -> bool {
        let Figure { read, is_rare, .. } = COLUMNS[column];
        let says_something = |vm: &VmFigures| !read(vm).is_nothing();
        self.is_shown[column] && (!is_rare || self.figures.vms.iter().any(says_something))
    }

    fn sort_by_next(&mut self, step: usize) {
        let from = self.sort.unwrap_or(match step {
            1 => COLUMNS.len() - 1,
            _ => 0,
        });
        let others = (1..=COLUMNS.len()).map(|count| (from + count * step) % COLUMNS.len());
        let shown = others.into_iter().find(|&column| self.is_wanted(column));
        self.sort = shown;
    }

    fn choose(&mut self, step: isize) {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let row = self.chosen_row().saturating_add_signed(step).min(last);
        self.chosen = rows.get(row).map(|vm| vm.name.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use api::{HistoryColumn, HostFigures, Span, TouchLimitView};
    use proptest::prelude::*;

    pub(in crate::cli) fn vm(name: &str, memsz: u64, ashrs: u64) -> VmFigures {
        VmFigures {
            kind: Default::default(),
            capabilities: Default::default(),
            stale: false,
            paused: false,
            name: name.parse().unwrap(),
            id: page::VmId(1),
            phase: api::VmPhase::Running,
            responding: true,
            credible: true,
            uptime_s: 1.0,
            memsz,
            grant: 0,
            cnsm: 0,
            sztgt: memsz,
            tchd: None,
            tchd_low: None,
            tchd_high: None,
            tchd_believed: None,
            tchd_w: None,
            actv: None,
            actvs: None,
            actvf: None,
            witness: None,
            balloon_health: None,
            touch_limit: None,
            blocked_permille: 0,
            blocked_us: 0,
            mctl: true,
            mctlsz: 0,
            mctltgt: 0,
            large: 0,
            large_made: 0,
            large_broken: 0,
            large_refused: 0,
            swap_out_pages: 0,
            swap_in_pages: 0,
            swap_waited_us: 0,
            swap_waiting: 0,
            swap_written: 0,
            swap_read: 0,
            swtgt: None,
            swr: None,
            sww: None,
            cachesz: None,
            cacheusd: None,
            cachemax: None,
            zip_per_s: None,
            unzip_per_s: None,
            swap_file: None,
            swap_file_used: None,
            swap_write_cost: None,
            pool_waits: Default::default(),
            file_waits: Default::default(),
            mctlmax: 0,
            swcur: 0,
            zip: 0,
            zero: 0,
            shrd: 0,
            shrdsvd: 0,
            cowh: 0,
            ovhd: 0,
            ovhdmax: 0,
            amin: 0,
            amax: memsz,
            ashrs,
            pinned: None,
            used: 0,
            private: 0,
            empty: memsz,
            ballooned: 0,
            broken: 0,
            areas: 0,
            areas_limit: 0,
            merges_per_s: 0,
            breaks_per_s: 0,
            inflated_pages: 0,
            deflated_pages: 0,
            nets: Vec::new(),
            disks: Vec::new(),
        }
    }

    /// The same VM, stopped for nine tenths of its time.
    pub(in crate::cli) fn blocked(vm: VmFigures) -> VmFigures {
        VmFigures {
            touch_limit: Some(TouchLimitView {
                slow_above_bytes: 1 << 20,
                stop_above_bytes: 3 << 19,
            }),
            blocked_permille: 900,
            ..vm
        }
    }

    pub(in crate::cli::screen) fn model() -> Model {
        Model::new(Figures {
            publication: 1,
            time_ms: 0,
            host: HostFigures::default(),
            vms: vec![
                vm("b", 2 << 20, 10),
                vm("a", 3 << 20, 30),
                vm("c", 1 << 20, 20),
            ],
            queue: Vec::new(),
        })
    }

    pub(in crate::cli::screen) fn details(name: &str) -> Details {
        let column = |name: &str, value: u64| HistoryColumn {
            name: name.into(),
            values: vec![Some(0), Some(value)],
        };
        Details {
            name: name.parse().unwrap(),
            history: HistoryView {
                vm: Some(name.parse().unwrap()),
                span: Span::TenMinutes,
                time_ms: vec![0, 1000],
                columns: vec![
                    column("private", 1 << 20),
                    column("empty", 1 << 20),
                    column("target", 2 << 20),
                ],
            },
            why: "'b' should hold 2 MiB. Memory is taken first from 'c'.".into(),
            events: vec![EventView {
                time_ms: 0,
                vm: Some(name.parse().unwrap()),
                what: "started as process 7".into(),
            }],
        }
    }

    fn names(model: &Model) -> String {
        model.rows().iter().map(|vm| vm.name.as_str()).collect()
    }

    pub(in crate::cli::screen) fn press(model: &mut Model, code: KeyCode) -> Next {
        model.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn vms_come_in_their_own_order_until_a_column_sorts_them() {
        let mut model = model();
        assert_eq!(names(&model), "bac");
        press(&mut model, KeyCode::Right);
        assert_eq!((model.sort, names(&model)), (Some(0), "cba".into()));
        press(&mut model, KeyCode::Right);
        assert_eq!(names(&model), "abc", "by size, the largest first");
        press(&mut model, KeyCode::Char('r'));
        assert_eq!(names(&model), "cba");
        press(&mut model, KeyCode::Char('n'));
        assert_eq!(names(&model), "bac");
    }

    #[test]
    fn the_chosen_vm_stays_chosen_when_rows_move() {
        let mut model = model();
        press(&mut model, KeyCode::Down);
        assert_eq!(model.chosen_vm().unwrap().name.as_str(), "a");
        press(&mut model, KeyCode::Right);
        assert_eq!(model.chosen_vm().unwrap().name.as_str(), "a");
        press(&mut model, KeyCode::Enter);
        assert_eq!(model.page, Page::Vm);
        model.see(Figures::default());
        assert_eq!(model.chosen_vm(), None);
    }

    #[test]
    fn a_pause_keeps_the_figures() {
        let mut model = model();
        press(&mut model, KeyCode::Char(' '));
        model.see(Figures::default());
        assert_eq!(model.figures.vms.len(), 3);
        press(&mut model, KeyCode::Char(' '));
        model.see(Figures::default());
        assert!(model.figures.vms.is_empty());
    }

    #[test]
    fn keys_of_esxtop_sort_by_its_columns() {
        let mut model = model();
        press(&mut model, KeyCode::Char('r'));
        press(&mut model, KeyCode::Char('M'));
        assert_eq!(
            names(&model),
            "abc",
            "the largest first, whatever was before"
        );
    }

    #[test]
    fn a_page_begins_at_its_beginning_and_ends_at_its_end() {
        let mut model = model();
        press(&mut model, KeyCode::Char('h'));
        press(&mut model, KeyCode::PageDown);
        press(&mut model, KeyCode::Down);
        assert_eq!(model.scroll, 11);
        model.scroll_at_most(5);
        assert_eq!(model.scroll, 5);
        press(&mut model, KeyCode::Char('q'));
        assert_eq!(model.scroll, 0);
    }

    /// Of the VM that was chosen before nothing is shown under the name of another.
    #[test]
    fn details_are_those_of_the_chosen_vm_or_none() {
        let mut model = model();
        press(&mut model, KeyCode::Enter);
        assert_eq!(model.wanted_vm().unwrap().as_str(), "b");
        model.see_details(Some(details("b")));
        assert!(model.details().is_some());
        press(&mut model, KeyCode::Down);
        assert_eq!(model.wanted_vm().unwrap().as_str(), "a");
        assert!(model.details().is_none());
        press(&mut model, KeyCode::Char('q'));
        assert_eq!(model.wanted_vm(), None);
    }

    #[test]
    fn q_goes_back_and_then_leaves() {
        let mut model = model();
        press(&mut model, KeyCode::Char('h'));
        assert_eq!(press(&mut model, KeyCode::Char('q')), Next::GoOn);
        assert_eq!(press(&mut model, KeyCode::Char('q')), Next::Leave);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(model.press(control_c), Next::Leave);
    }

    pub(in crate::cli::screen) fn any_key() -> impl Strategy<Value = KeyCode> {
        prop_oneof![
            any::<char>().prop_map(KeyCode::Char),
            prop::sample::select(" qhf?rnp<>jkubMBN".chars().collect::<Vec<_>>())
                .prop_map(KeyCode::Char),
            prop::sample::select(vec![
                KeyCode::Up,
                KeyCode::Down,
                KeyCode::Left,
                KeyCode::Right,
                KeyCode::Enter,
                KeyCode::PageUp,
                KeyCode::PageDown,
                KeyCode::Esc,
            ]),
        ]
    }
}
