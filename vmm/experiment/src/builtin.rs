//! The experiments that every `ballonet` brings along: files like any other.

/// An experiment that is built in.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    /// What it is called.
    pub name: &'static str,
    /// Its file.
    pub text: &'static str,
}

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(BuiltIn {
            name: $name,
            text: include_str!(concat!("../built-in/", $name, ".toml")),
        }),*]
    };
}

/// All of them.
pub const BUILT_IN: &[BuiltIn] = built_in![
    "active-sampling",
    "balloon-overhead",
    "idle-tax",
    "reallocation",
    "sharing-best-case",
];

/// The comparison that is built in besides; see [`density`](crate::density).
pub const DENSITY: BuiltIn = BuiltIn {
    name: "density",
    text: include_str!("../built-in/density.toml"),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;
    use crate::scenario::Scenario;

    /// What each may take.
    const MOST_SECONDS: u64 = 180;

    #[test]
    fn each_is_understood_bears_its_name_and_takes_three_minutes_at_most() {
        for built_in in BUILT_IN {
            let name = built_in.name;
            let scenario =
                Scenario::parse(built_in.text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(scenario.name, name);
            let runs = plan(&scenario, built_in.text).unwrap().len() as u64;
            let seconds = runs * u64::from(scenario.seconds);
            assert!(seconds <= MOST_SECONDS, "{name} takes {seconds} s");
            assert!(scenario.paper.is_some(), "{name} names no paper");
        }
    }
}
