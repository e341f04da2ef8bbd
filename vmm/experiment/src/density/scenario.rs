//! A comparison as it is written: the budget, the guests, how long to look, and the sides.

use balloon_guest_driver::workload::spec::{Action, Spec};
use page::{PageCount, Size};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use thiserror::Error;

/// Sides at most.
const MOST_SIDES: usize = 16;
/// Guests at most.
const MOST_GUESTS: u32 = 256;
/// Seconds of anything at most.
const MOST_SECONDS: u32 = 3600;

/// Why a comparison is refused.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DensityError {
    #[error(transparent)]
    Toml(#[from] Box<toml::de::Error>),
    #[error("{key} = {value}: must be {wanted}")]
    Value {
        key: &'static str,
        value: String,
        wanted: String,
    },
    #[error("there is no side '{name}': there are {known}")]
    Side { name: String, known: String },
}

/// A comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Density {
    /// Always `density`.
    kind: String,
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub title: String,
    /// What is done, and why so.
    pub about: String,
    /// Memory for all that belongs to a side, as in `1536M`.
    budget: String,
    /// The size of each guest's VM.
    vm: String,
    /// The size of each guest's disk.
    disk: String,
    /// What each guest does: a tile.
    pub workload: String,
    /// What it does while all sleep, before they wake.
    pub asleep: String,
    /// Seconds after the last guest's start until it is measured.
    pub warm_s: u32,
    /// Seconds that the guest alone is measured,
    pub solo_s: u32,
    /// that a number of guests is looked at,
    pub short_s: u32,
    /// and that it is confirmed.
    pub long_s: u32,
    /// How much of what it does alone every guest must do, in percent.
    pub keep_percent: f64,
    /// How much longer than alone its 99th of a hundred may take, in milliseconds.
    pub p99_extra_ms: f64,
    /// Guests to try at most.
    pub most: u32,
    /// Seconds to wait for guests that wake, and for memory that is wanted back.
    pub patience_s: u32,
    /// What is compared.
    #[serde(rename = "side")]
    pub sides: Vec<Side>,
    /// What is otherwise where it has to be quick.
    quick: Quick,
}

/// What is otherwise where it has to be quick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quick {
    budget: String,
    warm_s: u32,
    solo_s: u32,
    short_s: u32,
    long_s: u32,
    patience_s: u32,
    sides: Vec<String>,
    /// Guests to begin with.
    first: u32,
}

/// One of those that are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Its name.
    pub name: String,
    /// What it is, and why its settings are fair.
    pub what: String,
    /// Guests to begin with.
    pub first: u32,
    /// What runs the guests.
    #[serde(flatten)]
    pub vmm: Vmm,
}

/// What runs the guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "vmm", rename_all = "snake_case")]
pub enum Vmm {
    /// Ourselves.
    Ballonet(BallonetSettings),
    /// QEMU's microvm.
    Qemu(QemuSettings),
    /// The same, adopted by a host of ours.
    QemuManaged(ManagedSettings),
}

/// How a host of ours is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BallonetSettings {
    /// Whether guests have a balloon.
    pub balloon: bool,
    /// The tax on idle memory, in percent; the default where none is given.
    pub idle_tax: Option<u64>,
    /// Whether pages are shared.
    pub sharing: bool,
    /// Whether there are large pages.
    pub large_pages: bool,
    /// Whether there is a compressed pool.
    pub compression: bool,
    /// Whether there are swap files.
    pub swap: bool,
    /// Seconds in which every page is looked at once for others that are equal.
    pub scan_pass_s: u64,
    /// Seconds that each sample is watched.
    pub sample_period_s: u32,
    /// Seconds that targets hold.
    pub rebalance_interval_s: u32,
    /// Percent of the budget that the host is not told of: for what the kernel needs for it, and for the host itself.
    pub reserve_percent: u64,
}

impl Default for BallonetSettings {
    fn default() -> Self {
        Self {
            balloon: true,
            idle_tax: None,
            sharing: true,
            large_pages: true,
            compression: true,
            swap: true,
            scan_pass_s: 20,
            sample_period_s: 20,
            rebalance_interval_s: 3,
            reserve_percent: 5,
        }
    }
}

/// How QEMU and the machine under it are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QemuSettings {
    /// Whether its balloon device takes what guests report free.
    pub free_page_reporting: bool,
    /// Whether the kernel merges equal pages, and in how many seconds it should have looked at all.
    pub ksm_pass_s: Option<u32>,
    /// Whether the kernel swaps to compressed memory.
    pub zram: bool,
}

/// How a host of ours that has adopted QEMUs is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ManagedSettings {
    /// The tax on idle memory, in percent; the default where none is given.
    pub idle_tax: Option<u64>,
    /// Seconds that targets hold.
    pub rebalance_interval_s: u32,
    /// Percent of the budget that the host is not told of, as of a host of our own VMs.
    pub reserve_percent: u64,
}

impl Default for ManagedSettings {
    fn default() -> Self {
        let ours = BallonetSettings::default();
        Self {
            idle_tax: ours.idle_tax,
            rebalance_interval_s: ours.rebalance_interval_s,
            reserve_percent: ours.reserve_percent,
        }
    }
}

impl Density {
    /// Whether a text is meant to be one of these.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        let table: Result<toml::Table, _> = toml::from_str(text);
        table.is_ok_and(|table| table.get("kind").and_then(toml::Value::as_str) == Some("density"))
    }

    /// Reads one, in full or as it is where it has to be quick, with these sides, or all where none are named.
    ///
    /// # Errors
    /// Names what is not understood or makes no sense.
    pub fn parse(text: &str, is_quick: bool, sides: &[String]) -> Result<Self, DensityError> {
        let mut density: Self = toml::from_str(text).map_err(Box::new)?;
        if is_quick {
            density.hurry();
        }
        let quick = density.quick.sides.clone();
        if !sides.is_empty() {
            density.choose(sides)?;
        } else if is_quick {
            density.choose(&quick)?;
        }
        density.check()?;
        Ok(density)
    }

    fn hurry(&mut self) {
        let Quick {
            budget,
            warm_s,
            solo_s,
            short_s,
            long_s,
            patience_s,
            sides: _,
            first,
        } = self.quick.clone();
        (self.budget, self.warm_s, self.solo_s) = (budget, warm_s, solo_s);
        (self.short_s, self.long_s, self.patience_s) = (short_s, long_s, patience_s);
        for side in &mut self.sides {
            side.first = first;
        }
    }

    fn choose(&mut self, names: &[String]) -> Result<(), DensityError> {
        let known = self.sides.clone();
        self.sides.clear();
        for name in names {
            let side = known.iter().find(|side| side.name == *name);
            let side = side.ok_or_else(|| DensityError::Side {
                name: name.clone(),
                known: names_of(&known),
            })?;
            self.sides.push(side.clone());
        }
        Ok(())
    }

    fn check(&self) -> Result<(), DensityError> {
        let sizes = [
            ("budget", &self.budget),
            ("vm", &self.vm),
            ("disk", &self.disk),
        ];
        for (key, value) in sizes {
            size(key, value)?;
        }
        let is_tile =
            Spec::parse(&self.workload).is_ok_and(|spec| matches!(spec.action, Action::Tile(_)));
        if !is_tile {
            return Err(wrong(
                "workload",
                &self.workload,
                "a tile, as in tile:size=64M".into(),
            ));
        }
        let within = |key, value: u32, least: u32, most: u32| match (least..=most).contains(&value)
        {
            true => Ok(()),
            false => Err(wrong(key, value, format!("from {least} to {most}"))),
        };
        for (key, seconds) in [
            ("warm_s", self.warm_s),
            ("solo_s", self.solo_s),
            ("short_s", self.short_s),
            ("long_s", self.long_s),
            ("patience_s", self.patience_s),
        ] {
            within(key, seconds, 1, MOST_SECONDS)?;
        }
        within("most", self.most, 1, MOST_GUESTS)?;
        if !(1.0..=100.0).contains(&self.keep_percent) {
            return Err(wrong(
                "keep_percent",
                self.keep_percent,
                "from 1 to 100".into(),
            ));
        }
        let names: BTreeSet<&str> = self.sides.iter().map(|side| side.name.as_str()).collect();
        if names.is_empty() || names.len() != self.sides.len() || names.len() > MOST_SIDES {
            let wanted = format!("from 1 to {MOST_SIDES}, each once");
            return Err(wrong("sides", names_of(&self.sides), wanted));
        }
        Ok(())
    }

    /// Memory for all that belongs to a side.
    #[must_use]
    pub fn budget(&self) -> PageCount {
        checked(&self.budget)
    }

    /// The same in bytes.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.budget().bytes()
    }

    /// The size of each VM.
    #[must_use]
    pub fn vm(&self) -> PageCount {
        checked(&self.vm)
    }

    /// The size of each disk.
    #[must_use]
    pub fn disk(&self) -> PageCount {
        checked(&self.disk)
    }

    /// What its guests are to do in a second: transactions, and operations on files; 0 for as much as they can.
    #[must_use]
    pub fn rates(&self) -> (u32, u32) {
        match Spec::parse(&self.workload).map(|spec| spec.action) {
            Ok(Action::Tile(tile)) => (tile.rate, tile.ops),
            _ => (0, 0),
        }
    }

    /// About how long it takes, in seconds: each side alone, two numbers looked at and two confirmed.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        let side = self.solo_s + 2 * self.short_s + 2 * self.long_s + 5 * (self.warm_s + 5);
        self.sides.len() as u64 * u64::from(side)
    }
}

fn names_of(sides: &[Side]) -> String {
    let names: Vec<&str> = sides.iter().map(|side| side.name.as_str()).collect();
    names.join(", ")
}

fn wrong(key: &'static str, value: impl fmt::Display, wanted: String) -> DensityError {
    DensityError::Value {
        key,
        value: value.to_string(),
        wanted,
    }
}

fn size(key: &'static str, value: &str) -> Result<PageCount, DensityError> {
    let size: Result<Size, _> = value.parse();
    let Ok(Size(pages)) = size else {
        return Err(wrong(key, value, "a size, as in 512M".into()));
    };
    Ok(pages)
}

/// Of a size that was checked.
fn checked(value: &str) -> PageCount {
    size("", value).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::builtin::DENSITY;

    pub(in crate::density) fn density() -> Density {
        Density::parse(DENSITY.text, false, &[]).unwrap()
    }

    #[test]
    fn the_one_that_is_built_in_is_understood_and_takes_an_hour_at_most() {
        assert!(Density::is_meant(DENSITY.text));
        let density = density();
        assert_eq!(density.name, DENSITY.name);
        assert!(density.seconds() <= 3600, "{} s", density.seconds());
        let quick = Density::parse(DENSITY.text, true, &[]).unwrap();
        assert_eq!(names_of(&quick.sides), "ballonet, qemu");
        assert!(quick.seconds() <= 180, "{} s", quick.seconds());
    }

    #[test]
    fn its_guests_are_tiles_that_fit_their_vm_and_sleep_as_the_same_tiles() {
        let density = density();
        let [awake, asleep] = [&density.workload, &density.asleep].map(|text| {
            let spec = Spec::parse(text).unwrap();
            assert!(matches!(spec.action, Action::Tile(_)), "{text}");
            spec
        });
        assert_eq!(awake.size, asleep.size);
        assert_eq!(awake.action.files(), asleep.action.files());
        assert!(density.vm() < density.budget());
    }

    #[test]
    fn sides_are_chosen_by_name_and_others_are_refused() {
        let chosen = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            Density::parse(DENSITY.text, true, &names)
        };
        assert_eq!(names_of(&chosen(&["qemu"]).unwrap().sides), "qemu");
        let refused = chosen(&["xen"]).unwrap_err().to_string();
        assert!(
            refused.starts_with("there is no side 'xen': there are "),
            "{refused}"
        );
        assert!(chosen(&["qemu", "qemu"]).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_key() {
        for (from, to, key) in [
            ("budget = \"", "budget = \"x", "budget = "),
            ("keep_percent = 95", "keep_percent = 0", "keep_percent = 0"),
            ("most = ", "most = 9", "most = "),
            ("workload = \"tile", "workload = \"clone", "workload = "),
            ("free_page_reporting", "free_pages", ""),
        ] {
            let text = DENSITY.text.replacen(from, to, 1);
            let refused = Density::parse(&text, false, &[]).unwrap_err().to_string();
            assert!(refused.starts_with(key), "{refused}");
        }
    }
}
