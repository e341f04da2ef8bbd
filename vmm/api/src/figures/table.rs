//! Each figure once: what it is, where it comes from, and under which names it is shown. `top` and its batch
//! mode, the metrics and the histories are loops over these tables.

use policy::MemoryState;
use std::time::Duration;

/// A figure's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// A word.
    Text(String),
    /// Whether it is so.
    Flag(bool),
    /// Bytes.
    Size(u64),
    /// Bytes, more or fewer.
    Difference(i64),
    /// So many.
    Number(u64),
    /// Seconds.
    Seconds(f64),
    /// Of a hundred.
    Percent(f64),
    /// Of a thousand.
    Permille(u64),
    /// A ratio, such as that of overcommitment.
    Ratio(f64),
    /// How short memory is.
    State(MemoryState),
    /// Not known now.
    Unknown,
}

/// A figure. A name is empty where the figure is not shown.
#[derive(Debug)]
pub struct Figure<T: 'static> {
    /// What it is.
    pub help: &'static str,
    /// Its column in `top`, under esxtop's name if it has one.
    pub column: &'static str,
    /// Whether it has none while it is zero, or not known, of all.
    pub is_rare: bool,
    /// Its counter in batch mode, under esxtop's name if it has one.
    pub counter: &'static str,
    /// Its metric, without the program's name and the unit.
    pub metric: &'static str,
    /// Whether that only ever rises.
    pub is_total: bool,
    /// Its column in the history.
    pub history: &'static str,
    /// Whether of a minute the highest is remembered, and not the mean.
    pub is_degree: bool,
    /// Its value.
    pub read: fn(&T) -> Reading,
}

impl<T> Figure<T> {
    /// One that is shown nowhere yet.
    #[must_use]
    pub const fn new(help: &'static str, read: fn(&T) -> Reading) -> Self {
        Self {
            help: help.trim_ascii_start(),
            column: "",
            is_rare: false,
            counter: "",
            metric: "",
            is_total: false,
            history: "",
            is_degree: false,
            read,
        }
    }
}

impl<T> Clone for Figure<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Figure<T> {}

impl Reading {
    /// As a whole number, where it is one. That of a state grows as memory gets shorter.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match *self {
            Self::Size(number) | Self::Number(number) => Some(number),
            Self::Flag(flag) => Some(flag.into()),
            Self::State(state) => {
                let longer = MemoryState::ALL.iter().take_while(|other| **other < state);
                Some(longer.count() as u64)
            }
            _ => None,
        }
    }

    /// Whether it says nothing: zero, or not known.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::Unknown || self.number() == Some(0)
    }
}

pub(super) fn size(bytes: &(impl Copy + Into<Option<u64>>)) -> Reading {
    (*bytes).into().map_or(Reading::Unknown, Reading::Size)
}

pub(super) fn number(count: &u64) -> Reading {
    Reading::Number(*count)
}

pub(super) fn percent(percent: &Option<f64>) -> Reading {
    percent.map_or(Reading::Unknown, Reading::Percent)
}

pub(super) fn ratio(ratio: &Option<f64>) -> Reading {
    ratio.map_or(Reading::Unknown, Reading::Ratio)
}

pub(super) fn permille(count: &u64) -> Reading {
    Reading::Permille(*count)
}

pub(super) fn difference(bytes: &i64) -> Reading {
    Reading::Difference(*bytes)
}

pub(super) fn seconds(seconds: &f64) -> Reading {
    Reading::Seconds(*seconds)
}

pub(super) fn whole_seconds(count: &u64) -> Reading {
    Reading::Seconds(Duration::from_secs(*count).as_secs_f64())
}

pub(super) fn microseconds(count: &u64) -> Reading {
    Reading::Seconds(Duration::from_micros(*count).as_secs_f64())
}

pub(super) fn state(state: &Option<MemoryState>) -> Reading {
    state.map_or(Reading::Unknown, Reading::State)
}

pub(super) fn flag(flag: &bool) -> Reading {
    Reading::Flag(*flag)
}

/// A struct of figures, how they follow from what is known, and the table of those that are shown: a list of
/// `what it is, field: type = value => how it is read, its names;`. What it is may have a second line, in which
/// units the interface tells it.
macro_rules! figures {
    (
        $(#[$about:meta])+
        pub struct $of:ident, $table:ident, from($($known:ident: $from:ty),+) { $($given:tt)* }
        $(
            #[doc = $help:tt]
            $(#[doc = $more:tt])?
            $(#[serde $serde:tt])?
            $field:ident: $type:ty = $value:expr
            $(=> $read:tt $(, $place:ident: $name:expr)*)*;
        )+
    ) => {
        $(#[$about])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $of {
            $(#[doc = $help] $(#[doc = $more])? $(#[serde $serde])? pub $field: $type,)+
        }

        impl $of {
            /// The figures of what is known.
            #[must_use]
            pub fn new($($known: $from),+) -> Self {
                $($given)*
                Self { $($field: $value,)+ }
            }
        }

        /// The figures that are shown, those that are wanted most first.
        pub const $table: &[Figure<$of>] = &[$($(
            Figure {
                $($place: $name,)*
                ..Figure::new($help, figures!(@read $of $field $read))
            },
        )*)+];
    };
    (@read $of:ident $field:ident ($read:expr)) => { $read };
    (@read $of:ident $field:ident $read:ident) => { |figures: &$of| table::$read(&figures.$field) };
}

/// Those of a table that have a name of some kind.
#[macro_export]
macro_rules! shown {
    ($table:ident: $of:ty, $place:ident) => {{
        const COUNT: usize = {
            let (mut count, mut at) = (0, 0);
            while at < $table.len() {
                count += !$table[at].$place.is_empty() as usize;
                at += 1;
            }
            count
        };
        const SHOWN: [$crate::Figure<$of>; COUNT] = {
            let (mut shown, mut count, mut at) = ([$table[0]; COUNT], 0, 0);
            while at < $table.len() {
                if !$table[at].$place.is_empty() {
                    shown[count] = $table[at];
                    count += 1;
                }
                at += 1;
            }
            shown
        };
        &SHOWN
    }};
}

pub(super) use figures;
