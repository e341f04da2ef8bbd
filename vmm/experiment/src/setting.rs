//! A value as a scenario writes it: in full, or with `$name` in it for what varies from run to run.
//!
//! A value in full is checked where it is read, so that an error can show its line; one that varies is
//! checked when runs are planned, before any of them begins.

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use thiserror::Error;

/// What the variables are in one run.
pub(crate) type Values = BTreeMap<String, String>;

/// A `T` as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    text: String,
    meaning: PhantomData<T>,
}

/// Why a value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidSetting {
    #[error("'{text}' names no variation '{variable}': there {}", listed(.known))]
    NoVariable {
        text: String,
        variable: String,
        known: Vec<String>,
    },
    #[error("{0}")]
    Meaning(String),
}

/// What there is, after "there".
pub(super) fn listed(names: &[String]) -> String {
    match names {
        [] => "are none".into(),
        [name] => format!("is {name}"),
        names => format!("are {}", names.join(", ")),
    }
}

impl<T: FromStr<Err: fmt::Display>> Setting<T> {
    /// What it means in a run.
    ///
    /// # Errors
    /// When it names a variable that there is not, or means nothing.
    pub(crate) fn resolve(&self, values: &Values) -> Result<T, InvalidSetting> {
        let text = fill_in(&self.text, values)?;
        text.parse()
            .map_err(|error: T::Err| InvalidSetting::Meaning(error.to_string()))
    }

    /// It written out; it must be one.
    pub(crate) fn in_full(text: &str) -> Self {
        let (text, meaning) = (text.into(), PhantomData);
        Self { text, meaning }
    }

    /// What a variation says.
    pub(crate) fn of_variation(name: &str) -> Self {
        Self::in_full(&format!("${name}"))
    }

    fn checked<E: Error>(text: String) -> Result<Self, E> {
        if !text.contains('$')
            && let Err(error) = text.parse::<T>()
        {
            return Err(E::custom(error));
        }
        Ok(Self {
            text,
            meaning: PhantomData,
        })
    }
}

/// Puts the values of variables in their places.
fn fill_in(text: &str, values: &Values) -> Result<String, InvalidSetting> {
    let mut pieces = text.split('$');
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (variable, rest) = piece.split_at(end.unwrap_or(piece.len()));
        let value = values
            .get(variable)
            .ok_or_else(|| InvalidSetting::NoVariable {
                text: text.into(),
                variable: variable.into(),
                known: values.keys().cloned().collect(),
            })?;
        filled.push_str(value);
        filled.push_str(rest);
    }
    Ok(filled)
}

/// Strings, numbers and truths alike, as text.
struct Text;

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_f64<E>(self, number: f64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_bool<E>(self, truth: bool) -> Result<String, E> {
        Ok(truth.to_string())
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(deserializer.deserialize_any(Text)?)
    }
}

/// A value of a variation, as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Value(pub(crate) String);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Two {
        number: Setting<u32>,
        flag: Setting<bool>,
    }

    fn values() -> Values {
        Values::from([("n".into(), "7".into()), ("many".into(), "x".into())])
    }

    #[test]
    fn a_value_is_written_out_or_named() {
        let two: Two = toml::from_str("number = \"1$n\"\nflag = true").unwrap();
        assert_eq!(two.number.resolve(&values()), Ok(17));
        assert_eq!(two.flag.resolve(&values()), Ok(true));
    }

    #[test]
    fn what_is_wrong_in_full_is_shown_with_its_line() {
        let error = toml::from_str::<Two>("flag = false\nnumber = \"seven\"").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn a_variable_that_there_is_not_is_named() {
        let two: Two = toml::from_str("number = \"$m\"\nflag = true").unwrap();
        let error = two.number.resolve(&values()).unwrap_err().to_string();
        assert_eq!(error, "'$m' names no variation 'm': there are many, n");
        let two: Two = toml::from_str("number = \"$many\"\nflag = true").unwrap();
        let error = two.number.resolve(&values()).unwrap_err().to_string();
        assert!(error.contains("invalid digit"), "{error}");
    }
}
