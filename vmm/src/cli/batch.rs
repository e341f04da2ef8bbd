//! `ballonet top --batch`: counters over time as a table that other programs read, as esxtop's batch mode
//! prints them, so that what reads those files reads these: a first column of times, then
//! `\\HOST\Memory\COUNTER` and `\\HOST\Group Memory(ID:VM)\COUNTER`, every cell in quotes, sizes in
//! megabytes.
//!
//! The columns are those of the first sample, so a VM that comes later has none, and one that has gone leaves
//! its cells empty.

use super::counters::{HOST_COUNTERS, VM_COUNTERS, for_programs};
use anyhow::Result;
use api::{Figure, Figures, Reading, VmFigures};
use csv::{QuoteStyle, WriterBuilder};
use page::VmId;

/// What esxtop calls its column of times: the format, and that times are universal.
const TIME: &str = "(PDH-CSV 4.0) (UTC)(0)";

/// Makes rows of samples, the header first.
#[derive(Debug)]
pub(super) struct Batch {
    machine: String,
    /// The VMs that have columns, once there is a header.
    vms: Option<Vec<VmId>>,
}

impl Batch {
    /// Of what happens on a machine of that name.
    pub(super) fn new(machine: String) -> Self {
        Self { machine, vms: None }
    }

    /// The row of a sample, under the header if it is the first.
    pub(super) fn rows(&mut self, figures: &Figures) -> Result<String> {
        let mut builder = WriterBuilder::new();
        let mut table = builder
            .quote_style(QuoteStyle::Always)
            .from_writer(Vec::new());
        let vms = match &self.vms {
            Some(vms) => vms,
            None => {
                table.write_record(self.header(figures))?;
                self.vms
                    .insert(figures.vms.iter().map(|vm| vm.id).collect())
            }
        };
        let time = std::iter::once(time_text(figures.time_ms / 1000));
        let host = HOST_COUNTERS
            .iter()
            .map(|figure| (figure.read)(&figures.host));
        let vms = vms.iter().flat_map(|id| {
            let vm = figures.vms.iter().find(|vm| vm.id == *id);
            let counters = VM_COUNTERS.iter();
            counters.map(move |figure| vm.map_or(Reading::Unknown, figure.read))
        });
        let cells = host.chain(vms).map(|cell| for_programs(&cell));
        table.write_record(time.chain(cells))?;
        Ok(String::from_utf8(table.into_inner()?)?)
    }

    fn header(&self, figures: &Figures) -> Vec<String> {
        let machine = &self.machine;
        let time = std::iter::once(TIME.to_owned());
        let host = HOST_COUNTERS.iter();
        let host = host.map(|figure| format!(r"\\{machine}\Memory\{}", figure.counter));
        let vms = figures.vms.iter().flat_map(|VmFigures { id, name, .. }| {
            VM_COUNTERS.iter().map(move |Figure { counter, .. }| {
                format!(r"\\{machine}\Group Memory({id}:{name})\{counter}")
            })
        });
        time.chain(host).chain(vms).collect()
    }
}

/// Seconds since 1970 as `MM/DD/YYYY HH:MM:SS`.
fn time_text(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{month:02}/{day:02}/{year:04} {hour:02}:{minute:02}:{second:02}")
}

/// The year, month and day, so many days after the first of January 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::super::screen::{blocked_figures, vm_figures};
    use super::*;
    use api::HostFigures;

    fn figures(time_ms: u64, vms: &[(u32, &str)]) -> Figures {
        let named = |(id, name): &(u32, &str)| VmFigures {
            id: VmId(*id),
            actv: (*id == 1).then_some(12.5),
            ..blocked_figures(vm_figures(name, 64 << 20, 10))
        };
        Figures {
            publication: 1,
            time_ms,
            host: HostFigures::default(),
            vms: vms.iter().map(named).collect(),
            queue: Vec::new(),
        }
    }

    #[test]
    fn every_row_has_the_columns_of_the_first() {
        let mut batch = Batch::new("here".into());
        let mut text = batch.rows(&figures(1000, &[(1, "a"), (2, "b")])).unwrap();
        text += &batch.rows(&figures(2000, &[(2, "b"), (3, "c")])).unwrap();
        let mut table = csv::Reader::from_reader(text.as_bytes());
        let header = table.headers().unwrap().clone();
        let place = |name: &str| header.iter().position(|column| column == name);
        let a = place(r"\\here\Group Memory(1:a)\Memory Size MBytes").unwrap();
        let b = place(r"\\here\Group Memory(2:b)\Memory Size MBytes").unwrap();
        let [active_a, active_b] = ["1:a", "2:b"]
            .map(|vm| place(&format!(r"\\here\Group Memory({vm})\% Active Estimate")).unwrap());
        assert!(!header.iter().any(|column| column.contains("3:c")));
        assert!(place(r"\\here\Memory\Free MBytes").is_some());
        let [blocked, limit] = ["% Blocked", "Touch Limit MBytes"]
            .map(|counter| place(&format!(r"\\here\Group Memory(1:a)\{counter}")).unwrap());
        let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
        assert_eq!(&rows[0][0], "01/01/1970 00:00:01");
        assert_eq!((&rows[0][a], &rows[0][b]), ("64.00", "64.00"));
        assert_eq!((&rows[0][active_a], &rows[0][active_b]), ("12.50", ""));
        assert_eq!((&rows[0][blocked], &rows[0][limit]), ("90.00", "1.00"));
        assert_eq!((&rows[1][a], &rows[1][b]), ("", "64.00"));
    }

    #[test]
    fn times_are_dates_of_the_calendar() {
        for (seconds, text) in [
            (0, "01/01/1970 00:00:00"),
            (951_782_399, "02/28/2000 23:59:59"),
            (951_782_400, "02/29/2000 00:00:00"),
            (1_709_251_199, "02/29/2024 23:59:59"),
            (4_107_542_399, "02/28/2100 23:59:59"),
            (4_107_542_400, "03/01/2100 00:00:00"),
            (1_798_761_599, "12/31/2026 23:59:59"),
        ] {
            assert_eq!(time_text(seconds), text);
        }
    }
}
