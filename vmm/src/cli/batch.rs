//! `ballonet top --batch`: figures over time as a table that other programs read, in the manner of
//! esxtop's batch mode. The columns are those of the first sample, so a VM that comes later has none,
//! and one that has gone leaves its cells empty.

use crate::api::Figures;
use crate::name::VmName;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::io::Write;

/// What a column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    /// Of which VM; of the host if of none.
    vm: Option<VmName>,
    figure: String,
}

/// Writes samples, the header first.
#[derive(Debug)]
pub(super) struct Batch<W: Write> {
    table: csv::Writer<W>,
    columns: Vec<Column>,
}

impl<W: Write> Batch<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            table: csv::Writer::from_writer(out),
            columns: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, figures: &Figures) -> Result<()> {
        let sample = Sample::of(figures)?;
        if self.columns.is_empty() {
            self.columns = sample.columns();
            let names = self.columns.iter().map(Column::name);
            let header: Vec<String> = std::iter::once("time_ms".into()).chain(names).collect();
            self.table.write_record(&header)?;
        }
        let cells = self.columns.iter().map(|column| sample.cell(column));
        let time = std::iter::once(figures.time_ms.to_string());
        self.table
            .write_record(time.chain(cells).collect::<Vec<_>>())?;
        self.table.flush().map_err(Into::into)
    }
}

impl Column {
    fn name(&self) -> String {
        match &self.vm {
            Some(vm) => format!("vm({vm}) {}", self.figure),
            None => format!("host {}", self.figure),
        }
    }
}

/// Figures by their names.
struct Sample {
    host: Map<String, Value>,
    vms: Vec<(VmName, Map<String, Value>)>,
}

impl Sample {
    fn of(figures: &Figures) -> Result<Self> {
        let vms = figures.vms.iter();
        let vms = vms.map(|vm| Ok((vm.name.clone(), named(serde_json::to_value(vm)?)?)));
        Ok(Self {
            host: named(serde_json::to_value(&figures.host)?)?,
            vms: vms.collect::<Result<_>>()?,
        })
    }

    fn columns(&self) -> Vec<Column> {
        let of = |vm: Option<&VmName>, figures: &Map<String, Value>| -> Vec<Column> {
            let names = figures.keys().filter(|name| *name != "name");
            let column = |figure: &String| Column {
                vm: vm.cloned(),
                figure: figure.clone(),
            };
            names.map(column).collect()
        };
        let vms = self.vms.iter();
        let vms = vms.flat_map(|(name, figures)| of(Some(name), figures));
        of(None, &self.host).into_iter().chain(vms).collect()
    }

    fn cell(&self, column: &Column) -> String {
        let figures = match &column.vm {
            None => Some(&self.host),
            Some(wanted) => {
                let mut vms = self.vms.iter();
                vms.find(|(name, _)| name == wanted)
                    .map(|(_, figures)| figures)
            }
        };
        match figures.and_then(|figures| figures.get(&column.figure)) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(values)) => {
                let words: Vec<String> = values.iter().map(ToString::to_string).collect();
                words.join(" ")
            }
            Some(value) => value.to_string(),
        }
    }
}

fn named(value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(figures) => Some(figures),
        _ => None,
    }
    .context("figures have names")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{HostFigures, VmFigures};

    fn figures(time_ms: u64, names: &[&str]) -> Figures {
        let vm = |name: &&str| -> VmFigures {
            let mut vm = serde_json::json!({ "name": name, "phase": "running" });
            let zeros = [
                "memsz",
                "grant",
                "cnsm",
                "sztgt",
                "mctlsz",
                "mctltgt",
                "mctlmax",
                "swcur",
                "zip",
                "zero",
                "shrd",
                "shrdsvd",
                "ovhd",
                "ovhdmax",
                "amin",
                "amax",
                "ashrs",
                "used",
                "private",
                "empty",
                "broken",
                "areas",
                "areas_limit",
                "merges_per_s",
                "breaks_per_s",
                "inflated_pages",
                "deflated_pages",
                "uptime_s",
            ];
            zeros.iter().for_each(|zero| vm[*zero] = 0.into());
            vm["responding"] = true.into();
            vm["mctl"] = false.into();
            serde_json::from_value(vm).unwrap()
        };
        Figures {
            publication: 1,
            time_ms,
            host: HostFigures::default(),
            vms: names.iter().map(vm).collect(),
        }
    }

    #[test]
    fn every_row_has_the_columns_of_the_first() {
        let mut text = Vec::new();
        let mut batch = Batch::new(&mut text);
        batch.add(&figures(1, &["a", "b"])).unwrap();
        batch.add(&figures(2, &["b", "c"])).unwrap();
        drop(batch);
        let mut table = csv::Reader::from_reader(text.as_slice());
        let header = table.headers().unwrap().clone();
        let place = |name: &str| header.iter().position(|column| column == name);
        let (a, b) = (place("vm(a) memsz").unwrap(), place("vm(b) memsz").unwrap());
        assert_eq!(place("vm(c) memsz"), None);
        let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
        assert_eq!((&rows[0][0], &rows[0][a], &rows[0][b]), ("1", "0", "0"));
        assert_eq!((&rows[1][0], &rows[1][a], &rows[1][b]), ("2", "", "0"));
    }
}
