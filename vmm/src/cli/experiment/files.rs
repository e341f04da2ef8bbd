//! What an experiment leaves in its folder: the report, the charts, and every value that was seen.

use anyhow::{Context, Result};
use experiment::draw::svg;
use experiment::outcome::Performed;
use experiment::plot::{Plot, plots};
use experiment::report::Report;
use experiment::series::Unit;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder, and what was written there.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// Whether the folder was made here: if nothing comes into it, it goes again.
    is_new: bool,
    names: Vec<String>,
}

/// A value that was seen, as a line of the CSV.
#[derive(Debug, Serialize)]
struct Row<'a> {
    time_s: f64,
    run: usize,
    repetition: u32,
    variation: &'a str,
    vm: &'a str,
    series: &'a str,
    value: f64,
    unit: &'a str,
}

impl Files {
    pub(super) fn make(folder: PathBuf) -> Result<Self> {
        let is_new = !folder.exists();
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}: give another --out", folder.display()))?;
        Ok(Self {
            folder,
            is_new,
            names: Vec::new(),
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Draws, and tells the files' names with what they show.
    pub(super) fn draw(&mut self, plots: Vec<Plot>) -> Result<Vec<(String, String)>> {
        let mut charts = Vec::new();
        for plot in plots {
            let name = format!("{}.svg", plot.name);
            self.put(&name, svg(&plot)?.as_bytes())?;
            charts.push((name, plot.title));
        }
        Ok(charts)
    }

    pub(super) fn write(&mut self, report: &Report<'_>, performed: &[Performed]) -> Result<()> {
        let charts = self.draw(plots(report.scenario, performed))?;
        self.put("report.md", report.markdown(&charts).as_bytes())?;
        self.put("scenario.toml", report.text.as_bytes())?;
        let path = self.path("data.csv");
        write_rows(&path, performed).with_context(|| format!("cannot write {}", path.display()))?;
        self.names.push("data.csv".into());
        Ok(())
    }

    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        self.names.push(name.into());
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if self.is_new && self.names.is_empty() {
            // Not empty if somebody else has put something there: then it stays.
            drop(fs::remove_dir(&self.folder));
        }
    }
}

/// In long format: one value a line.
fn write_rows(path: &Path, performed: &[Performed]) -> Result<()> {
    let mut table = csv::Writer::from_path(path)?;
    for (index, run) in performed.iter().enumerate() {
        let variation = run.combination.to_string();
        for (subject, series, points) in run.record.lines() {
            let (vm, name, unit) = (subject.to_string(), series.name(), series.unit());
            for point in points {
                table.serialize(Row {
                    time_s: (point.time_s * 1000.0).round() / 1000.0,
                    run: index + 1,
                    repetition: run.repetition + 1,
                    variation: &variation,
                    vm: &vm,
                    series: &name,
                    value: point.value,
                    unit: raw_symbol(unit),
                })?;
            }
        }
    }
    table.flush().map_err(Into::into)
}

/// What a value counts that nobody has made readable yet.
fn raw_symbol(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "bytes",
        Unit::Count => "count",
        other => other.symbol(),
    }
}
