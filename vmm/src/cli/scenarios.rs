//! The scenarios that every `ballonet` brings along for `simulate`: files like any other, whose first line says what
//! happens and whose comment says why it is looked at.

/// A scenario that is built in.
#[derive(Clone, Copy, Debug)]
pub(super) struct BuiltIn {
    /// What it is called.
    pub(super) name: &'static str,
    /// Its file.
    pub(super) text: &'static str,
}

impl BuiltIn {
    /// Its first line.
    pub(super) fn title(&self) -> &'static str {
        let line = self.text.lines().next().unwrap_or_default();
        line.trim_start_matches("# ")
    }
}

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(BuiltIn {
            name: $name,
            text: include_str!(concat!("../../scenarios/", $name, ".toml")),
        }),*]
    };
}

/// All of them.
pub(super) const BUILT_IN: &[BuiltIn] = built_in![
    "one-busy",
    "one-wakes",
    "one-wakes-freed",
    "in-turn",
    "no-driver",
    "tight",
    "plenty",
];

#[cfg(test)]
mod tests {
    use super::*;
    use policy::simulate::Scenario;

    #[test]
    fn each_is_understood_and_says_what_happens_and_why() {
        for built_in in BUILT_IN {
            let name = built_in.name;
            let scenario: Scenario =
                toml::from_str(built_in.text).unwrap_or_else(|error| panic!("{name}: {error}"));
            scenario
                .check()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(built_in.title().ends_with(['.', ':']), "{name}");
            let comment = built_in.text.lines().filter(|line| line.starts_with('#'));
            assert!(comment.count() >= 3, "{name} says no reason");
        }
    }
}
