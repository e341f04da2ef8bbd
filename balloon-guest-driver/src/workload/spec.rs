//! What workload to run, as a person writes it: `name` or `name:key=value,key=value`.

use core::fmt;

use crate::disk::REQUESTS_MAX;
use crate::{PAGE_SIZE, size};

/// Clients of a `dbench` at most.
pub(super) const CLIENTS_MAX: usize = 128;

const _: () = assert!(
    CLIENTS_MAX == 128 && REQUESTS_MAX == 7,
    "texts below say so"
);

/// How much memory a workload holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Size {
    /// All there is, but for a small reserve; follows what the balloon leaves.
    Max,
    /// So many pages.
    Pages(u32),
}

/// Which pages are touched how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// All the same.
    Uniform,
    /// The n-th page in proportion to 1 / n to the power of theta.
    Zipf {
        /// The exponent; 0.99 is what YCSB uses.
        theta: f64,
    },
}

/// A `toucher`: touches pages of a working set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToucherSpec {
    /// How much of what it holds it touches; the rest it holds and leaves alone.
    pub active: Size,
    /// Percent of touches that write.
    pub write: u8,
    /// Which pages.
    pub distribution: Distribution,
    /// Touches a second; 0 for as many as possible.
    pub rate: u32,
}

/// A `clone`: memory that is partly equal across VMs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CloneSpec {
    /// Percent of pages that are zero.
    pub zero: u8,
    /// Percent of pages that are equal in all guests with the same seed.
    pub common: u8,
    /// Percent of the pages rewritten a second.
    pub rewrite: u8,
    /// What the common pages' contents come from.
    pub seed: u32,
    /// Whether each guest has its common pages at other addresses.
    pub shuffle: bool,
}

/// A `verify`: pages that say whose they are, checked at each read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VerifySpec {
    /// Checks a second; 0 for as many as possible.
    pub rate: u32,
    /// Percent of checks after which the page is rewritten.
    pub write: u8,
    /// Percent of writings that make the page equal to others, in all guests.
    pub common: u8,
}

/// A `breaker`: pages equal in all guests, until it writes to each of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BreakerSpec {
    /// What the pages' contents come from.
    pub seed: u32,
    /// Whether it breaks and restores them for ever, without being told (`loop`).
    pub repeat: bool,
}

/// A `dbench`: file clients over the buffer cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DbenchSpec {
    /// Clients, each with files of its own.
    pub clients: u8,
    /// Room for all files; [`Size::Max`] for all of the disk, but four times the memory at most.
    pub files: Size,
    /// Percent of what clients do that writes.
    pub write: u8,
    /// Which of its files a client takes.
    pub distribution: Distribution,
    /// Operations a second; 0 for as many as possible.
    pub rate: u32,
    /// What the clients' choices come from, beside the guest's identity.
    pub seed: u32,
    /// What a request to the disk takes at least, in microseconds; 0 for as long as it takes.
    pub seek_us: u32,
    /// Requests that the disk serves at a time.
    pub depth: u8,
}

/// A `tile`: a small server with memory of its own, which grows and shrinks, and with files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TileSpec {
    /// How much memory of its own it has for half of each period; for the other half it has all.
    pub low: Size,
    /// How much of that it uses then.
    pub active: Size,
    /// Percent of its own memory that is equal in all guests with the same seed.
    pub common: u8,
    /// How long a period is, in seconds.
    pub period_s: u32,
    /// Transactions a second; 0 for as many as possible.
    pub rate: u32,
    /// Percent of a transaction's pages that are written.
    pub write: u8,
    /// Exponent of the law by which they are drawn.
    pub theta: f64,
    /// What the common pages' contents and the choices come from.
    pub seed: u32,
    /// Room for files on a disk.
    pub files: Size,
    /// Operations on files in a second; 0 for no files.
    pub ops: u32,
    /// Clients of these files.
    pub clients: u8,
    /// What a request to the disk takes at least, in microseconds.
    pub seek_us: u32,
}

/// What the workload does with its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Nothing.
    Idle,
    /// Touches it.
    Touch(ToucherSpec),
    /// Fills it with what other guests have, too.
    Clone(CloneSpec),
    /// Checks it.
    Verify(VerifySpec),
    /// Fills it with what other guests have, and breaks that when told to.
    Break(BreakerSpec),
    /// Caches files in it.
    Dbench(DbenchSpec),
    /// Serves from it, and from files.
    Tile(TileSpec),
}

impl Action {
    /// What it does with files, if anything.
    #[must_use]
    pub const fn files(&self) -> Option<DbenchSpec> {
        match *self {
            Self::Dbench(spec) => Some(spec),
            Self::Tile(tile) if tile.ops > 0 => Some(DbenchSpec {
                clients: tile.clients,
                files: tile.files,
                write: 20,
                distribution: Distribution::Zipf { theta: tile.theta },
                rate: tile.ops,
                seed: tile.seed,
                seek_us: tile.seek_us,
                depth: 1,
            }),
            _ => None,
        }
    }
}

/// A workload, as asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// How much memory it holds.
    pub size: Size,
    /// What it does with it.
    pub action: Action,
}

/// What is wrong with a text that should be a [`Spec`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SpecError<'a> {
    /// There is no such workload.
    Name(&'a str),
    /// The workload has no such key.
    Key {
        /// The workload.
        name: &'a str,
        /// What was given.
        key: &'a str,
        /// The keys that it has.
        keys: &'static str,
    },
    /// The key cannot have this value.
    Value {
        /// The key.
        key: &'a str,
        /// What was given.
        value: &'a str,
        /// What would be right.
        wanted: &'static str,
    },
}

impl fmt::Display for SpecError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => {
                write!(
                    f,
                    "no workload `{name}`; there are idle, toucher, clone, verify, breaker, dbench and tile"
                )
            }
            Self::Key { name, keys: "", .. } => write!(f, "workload {name} takes no keys"),
            Self::Key { name, key, keys } => {
                write!(f, "workload {name} has no key `{key}`; it has {keys}")
            }
            Self::Value { key, value, wanted } => {
                write!(f, "{key}={value}: must be {wanted}")
            }
        }
    }
}

const SIZE_WANTED: &str = "a size from 4K up, like 64M or 1G, or max";
const PERCENT_WANTED: &str = "a number from 0 to 100";
const COUNT_WANTED: &str = "a number from 0 to 4294967295";
const DISTRIBUTION_WANTED: &str = "uniform or zipf";
const PERIOD_WANTED: &str = "seconds from 2 to 86400";
const THETA_WANTED: &str = "a number from 0.01 to 5, like 0.99";
const CLIENTS_WANTED: &str = "a number from 1 to 128";
const DEPTH_WANTED: &str = "a number from 1 to 7";
/// Ten seconds: more is a mistake.
const SEEK_US_MAX: u32 = 10_000_000;
const SEEK_WANTED: &str = "microseconds from 0 to 10000000";

impl Spec {
    /// A workload that holds nothing and does nothing.
    pub const IDLE: Self = Self {
        size: Size::Pages(0),
        action: Action::Idle,
    };

    /// Reads a workload from its text. Keys that are not given have their defaults.
    ///
    /// # Errors
    /// Names what cannot be understood, and what would be right.
    pub fn parse(text: &str) -> Result<Spec, SpecError<'_>> {
        let (name, keys) = text.trim().split_once(':').unwrap_or((text.trim(), ""));
        let mut spec = Self::defaults(name).ok_or(SpecError::Name(name))?;
        for pair in keys
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            spec.set(name, key, value)?;
        }
        spec.check()?;
        Ok(spec)
    }

    fn defaults(name: &str) -> Option<Self> {
        let (size, action) = match name {
            "idle" => return Some(Self::IDLE),
            "toucher" => (
                Size::Pages(16_384),
                Action::Touch(ToucherSpec {
                    active: Size::Max,
                    write: 50,
                    distribution: Distribution::Uniform,
                    rate: 0,
                }),
            ),
            "clone" => (
                Size::Max,
                Action::Clone(CloneSpec {
                    zero: 25,
                    common: 35,
                    rewrite: 1,
                    seed: 1,
                    shuffle: false,
                }),
            ),
            "verify" => (
                Size::Max,
                Action::Verify(VerifySpec {
                    rate: 20_000,
                    write: 50,
                    common: 0,
                }),
            ),
            "breaker" => (
                Size::Pages(16_384),
                Action::Break(BreakerSpec {
                    seed: 1,
                    repeat: false,
                }),
            ),
            "dbench" => (
                Size::Max,
                Action::Dbench(DbenchSpec {
                    clients: 40,
                    files: Size::Max,
                    write: 20,
                    distribution: Distribution::Uniform,
                    rate: 0,
                    seed: 1,
                    seek_us: 1000,
                    depth: 1,
                }),
            ),
            "tile" => (
                Size::Pages(16_384),
                Action::Tile(TileSpec {
                    low: Size::Pages(12_288),
                    active: Size::Pages(8192),
                    common: 25,
                    period_s: 30,
                    rate: 100,
                    write: 30,
                    theta: 0.7,
                    seed: 1,
                    files: Size::Pages(6144),
                    ops: 0,
                    clients: 4,
                    seek_us: 1000,
                }),
            ),
            _ => return None,
        };
        Some(Self { size, action })
    }

    fn set<'a>(
        &mut self,
        name: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> Result<(), SpecError<'a>> {
        let bad = |wanted| SpecError::Value { key, value, wanted };
        let percent = || percent(value).ok_or(bad(PERCENT_WANTED));
        let count = || count(value).ok_or(bad(COUNT_WANTED));
        let flag = || flag(value).ok_or(bad("0 or 1"));
        if key == "size" && self.action != Action::Idle {
            self.size = parse_size(value).ok_or(bad(SIZE_WANTED))?;
            return Ok(());
        }
        match (&mut self.action, key) {
            (Action::Touch(touch), "active") => {
                touch.active = parse_size(value).ok_or(bad(SIZE_WANTED))?;
            }
            (Action::Tile(tile), "low") => {
                tile.low = parse_size(value).ok_or(bad(SIZE_WANTED))?;
            }
            (Action::Tile(tile), "active") => {
                tile.active = parse_size(value).ok_or(bad(SIZE_WANTED))?;
            }
            (Action::Tile(tile), "common") => tile.common = percent()?,
            (Action::Tile(tile), "period_s") => {
                let period_s = count().ok().filter(|period| (2..=86_400).contains(period));
                tile.period_s = period_s.ok_or(bad(PERIOD_WANTED))?;
            }
            (Action::Tile(tile), "rate") => tile.rate = count()?,
            (Action::Tile(tile), "write") => tile.write = percent()?,
            (Action::Tile(tile), "theta") => {
                tile.theta = theta(value).ok_or(bad(THETA_WANTED))?;
            }
            (Action::Tile(tile), "seed") => tile.seed = count()?,
            (Action::Tile(tile), "ops") => tile.ops = count()?,
            (Action::Touch(touch), "write") => touch.write = percent()?,
            (Action::Touch(touch), "rate") => touch.rate = count()?,
            (
                Action::Touch(ToucherSpec { distribution, .. })
                | Action::Dbench(DbenchSpec { distribution, .. }),
                "dist",
            ) => {
                *distribution = match (value, *distribution) {
                    ("uniform", _) => Distribution::Uniform,
                    ("zipf", zipf @ Distribution::Zipf { .. }) => zipf,
                    ("zipf", Distribution::Uniform) => Distribution::Zipf { theta: 0.99 },
                    _ => return Err(bad(DISTRIBUTION_WANTED)),
                };
            }
            (
                Action::Touch(ToucherSpec { distribution, .. })
                | Action::Dbench(DbenchSpec { distribution, .. }),
                "theta",
            ) => {
                let theta = theta(value).ok_or(bad(THETA_WANTED))?;
                *distribution = Distribution::Zipf { theta };
            }
            (Action::Clone(clone), "zero") => clone.zero = percent()?,
            (Action::Clone(clone), "common") => clone.common = percent()?,
            (Action::Clone(clone), "rewrite") => clone.rewrite = percent()?,
            (Action::Clone(clone), "seed") => clone.seed = count()?,
            (Action::Clone(clone), "shuffle") => clone.shuffle = flag()?,
            (Action::Verify(verify), "rate") => verify.rate = count()?,
            (Action::Verify(verify), "write") => verify.write = percent()?,
            (Action::Verify(verify), "common") => verify.common = percent()?,
            (Action::Break(breaker), "seed") => breaker.seed = count()?,
            (Action::Break(breaker), "loop") => breaker.repeat = flag()?,
            (
                Action::Dbench(DbenchSpec { clients, .. }) | Action::Tile(TileSpec { clients, .. }),
                "clients",
            ) => *clients = small(value, CLIENTS_MAX).ok_or(bad(CLIENTS_WANTED))?,
            (
                Action::Dbench(DbenchSpec { files, .. }) | Action::Tile(TileSpec { files, .. }),
                "files",
            ) => *files = parse_size(value).ok_or(bad(SIZE_WANTED))?,
            (Action::Dbench(dbench), "write") => dbench.write = percent()?,
            (Action::Dbench(dbench), "rate") => dbench.rate = count()?,
            (Action::Dbench(dbench), "seed") => dbench.seed = count()?,
            (
                Action::Dbench(DbenchSpec { seek_us, .. }) | Action::Tile(TileSpec { seek_us, .. }),
                "seek_us",
            ) => {
                let given = count().ok().filter(|&given| given <= SEEK_US_MAX);
                *seek_us = given.ok_or(bad(SEEK_WANTED))?;
            }
            (Action::Dbench(dbench), "depth") => {
                dbench.depth = small(value, REQUESTS_MAX).ok_or(bad(DEPTH_WANTED))?;
            }
            _ => {
                return Err(SpecError::Key {
                    name,
                    key,
                    keys: self.keys(),
                });
            }
        }
        Ok(())
    }

    fn keys(&self) -> &'static str {
        match self.action {
            Action::Idle => "",
            Action::Touch(_) => "size, active, write, dist, theta and rate",
            Action::Clone(_) => "size, zero, common, rewrite, seed and shuffle",
            Action::Verify(_) => "size, rate, write and common",
            Action::Break(_) => "size, seed and loop",
            Action::Dbench(_) => {
                "size, clients, files, write, dist, theta, rate, seed, seek_us and depth"
            }
            Action::Tile(_) => {
                "size, low, active, common, period_s, rate, write, theta, seed, files, ops, clients \
                 and seek_us"
            }
        }
    }

    fn check(&self) -> Result<(), SpecError<'static>> {
        match self.action {
            Action::Clone(clone) if clone.zero + clone.common > 100 => Err(SpecError::Value {
                key: "zero plus common",
                value: "over 100",
                wanted: "100 percent at most",
            }),
            _ => Ok(()),
        }
    }
}

fn parse_size(value: &str) -> Option<Size> {
    if value == "max" {
        return Some(Size::Max);
    }
    let pages = u32::try_from(size::parse(value)? / PAGE_SIZE).ok()?;
    (pages > 0).then_some(Size::Pages(pages))
}

fn percent(value: &str) -> Option<u8> {
    count(value)?
        .try_into()
        .ok()
        .filter(|&percent: &u8| percent <= 100)
}

fn count(value: &str) -> Option<u32> {
    size::number(value)?.try_into().ok()
}

/// A number from 1 to `most`.
fn small(value: &str, most: usize) -> Option<u8> {
    let number: u8 = count(value)?.try_into().ok()?;
    (1..=most).contains(&usize::from(number)).then_some(number)
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn theta(value: &str) -> Option<f64> {
    value
        .parse()
        .ok()
        .filter(|theta| (0.01..=5.0).contains(theta))
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Max => f.write_str("max"),
            Self::Pages(pages) if pages % 256 == 0 => write!(f, "{}M", pages / 256),
            Self::Pages(pages) => write!(f, "{}K", u64::from(pages) * 4),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("dist=uniform"),
            Self::Zipf { theta } => write!(f, "dist=zipf,theta={theta}"),
        }
    }
}

/// The text that [`Spec::parse`] reads the same workload from, every key given.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size;
        match self.action {
            Action::Idle => f.write_str("idle"),
            Action::Touch(ToucherSpec {
                active,
                write,
                distribution,
                rate,
            }) => {
                write!(
                    f,
                    "toucher:size={size},active={active},write={write},{distribution},rate={rate}"
                )
            }
            Action::Clone(CloneSpec {
                zero,
                common,
                rewrite,
                seed,
                shuffle,
            }) => write!(
                f,
                "clone:size={size},zero={zero},common={common},rewrite={rewrite},seed={seed},\
                 shuffle={}",
                u8::from(shuffle)
            ),
            Action::Verify(VerifySpec {
                rate,
                write,
                common,
            }) => write!(
                f,
                "verify:size={size},rate={rate},write={write},common={common}"
            ),
            Action::Break(BreakerSpec { seed, repeat }) => {
                write!(
                    f,
                    "breaker:size={size},seed={seed},loop={}",
                    u8::from(repeat)
                )
            }
            Action::Dbench(DbenchSpec {
                clients,
                files,
                write,
                distribution,
                rate,
                seed,
                seek_us,
                depth,
            }) => write!(
                f,
                "dbench:size={size},clients={clients},files={files},write={write},{distribution},\
                 rate={rate},seed={seed},seek_us={seek_us},depth={depth}"
            ),
            Action::Tile(TileSpec {
                low,
                active,
                common,
                period_s,
                rate,
                write,
                theta,
                seed,
                files,
                ops,
                clients,
                seek_us,
            }) => write!(
                f,
                "tile:size={size},low={low},active={active},common={common},period_s={period_s},\
                 rate={rate},write={write},theta={theta},seed={seed},files={files},ops={ops},\
                 clients={clients},seek_us={seek_us}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_alone_means_its_defaults() {
        for (text, full) in [
            ("idle", "idle"),
            (
                "toucher",
                "toucher:size=64M,active=max,write=50,dist=uniform,rate=0",
            ),
            (
                "clone",
                "clone:size=max,zero=25,common=35,rewrite=1,seed=1,shuffle=0",
            ),
            ("verify", "verify:size=max,rate=20000,write=50,common=0"),
            ("breaker", "breaker:size=64M,seed=1,loop=0"),
            (
                "dbench",
                "dbench:size=max,clients=40,files=max,write=20,dist=uniform,rate=0,seed=1,\
                 seek_us=1000,depth=1",
            ),
            (
                "tile",
                "tile:size=64M,low=48M,active=32M,common=25,period_s=30,rate=100,write=30,theta=0.7,\
                 seed=1,files=24M,ops=0,clients=4,seek_us=1000",
            ),
            (
                "toucher:dist=zipf",
                "toucher:size=64M,active=max,write=50,dist=zipf,theta=0.99,rate=0",
            ),
        ] {
            assert_eq!(Spec::parse(text).unwrap().to_string(), full);
        }
    }

    #[test]
    fn a_spec_reads_back_what_it_shows() {
        for text in [
            "toucher:size=12K,active=8K,write=0,dist=zipf,theta=0.5,rate=1000",
            "clone:size=1G,zero=0,common=100,rewrite=0,seed=7,shuffle=1",
            "verify:size=8M,rate=0,write=100,common=30",
            "breaker:size=max,seed=9,loop=1",
            "dbench:size=32M,clients=128,files=1G,write=0,theta=1.5,rate=5,seed=7,seek_us=0,depth=7",
            "tile:size=32M,low=max,active=8K,common=0,period_s=2,rate=0,write=0,theta=0.5,seed=9,files=max,ops=5",
        ] {
            let spec = Spec::parse(text).unwrap();
            assert_eq!(Spec::parse(&spec.to_string()).unwrap(), spec);
        }
    }

    #[test]
    fn errors_name_the_key_the_value_and_the_remedy() {
        for (text, error) in [
            (
                "touch",
                "no workload `touch`; there are idle, toucher, clone, verify, breaker, dbench and tile",
            ),
            ("idle:size=1M", "workload idle takes no keys"),
            (
                "verify:zero=3",
                "workload verify has no key `zero`; it has size, rate, write and common",
            ),
            (
                "breaker:rate=1",
                "workload breaker has no key `rate`; it has size, seed and loop",
            ),
            ("breaker:loop=2", "loop=2: must be 0 or 1"),
            (
                "dbench:clients=0",
                "clients=0: must be a number from 1 to 128",
            ),
            (
                "dbench:clients=129",
                "clients=129: must be a number from 1 to 128",
            ),
            (
                "tile:period_s=1",
                "period_s=1: must be seconds from 2 to 86400",
            ),
            ("dbench:depth=8", "depth=8: must be a number from 1 to 7"),
            (
                "dbench:seek_us=4ms",
                "seek_us=4ms: must be microseconds from 0 to 10000000",
            ),
            (
                "verify:size=0",
                "size=0: must be a size from 4K up, like 64M or 1G, or max",
            ),
            (
                "toucher:write=101",
                "write=101: must be a number from 0 to 100",
            ),
            ("toucher:dist=x", "dist=x: must be uniform or zipf"),
            (
                "clone:zero=60,common=60",
                "zero plus common=over 100: must be 100 percent at most",
            ),
            (
                "toucher:rate",
                "rate=: must be a number from 0 to 4294967295",
            ),
        ] {
            assert_eq!(Spec::parse(text).unwrap_err().to_string(), error);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z:=,0-9.]{0,40}|\\PC{0,20}") {
            if let Ok(spec) = Spec::parse(&text) {
                let shown = spec.to_string();
                prop_assert_eq!(Spec::parse(&shown), Ok(spec));
            }
        }
    }
}
