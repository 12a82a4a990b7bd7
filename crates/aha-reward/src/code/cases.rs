//! The tests of a coding problem, as a data set has them.

use serde::Deserialize;

use super::toolchain::Language;

/// What the column `tests` holds.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tests {
    /// As in MBPP: statements that call the program's functions.
    Asserts {
        /// Statements before the first.
        #[serde(default)]
        setup: String,
        tests: Vec<String>,
    },
    /// As in HumanEval: a function `check` that gets the program's.
    Humaneval { entry_point: String, test: String },
    /// As in programming contests: what the program reads, and what it has to print for it.
    Stdio { cases: Vec<Case> },
}

/// One input with its output.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Case {
    pub input: String,
    pub output: String,
}

impl Tests {
    /// Reads the JSON; in a few words why it is no use.
    pub fn parse(json: &str) -> Result<Self, String> {
        let tests: Self = serde_json::from_str(json)
            .map_err(|error| format!("the sample's tests can't be read: {error}"))?;
        let is_empty = match &tests {
            Self::Asserts { tests, .. } => tests.is_empty(),
            Self::Humaneval { test, .. } => test.trim().is_empty(),
            Self::Stdio { cases } => cases.is_empty(),
        };
        if is_empty { Err("the sample has no tests".to_owned()) } else { Ok(tests) }
    }

    /// The language that a program must be in, if the tests say.
    pub fn language(&self) -> Option<Language> {
        match self {
            Self::Asserts { .. } | Self::Humaneval { .. } => Some(Language::Python),
            Self::Stdio { .. } => None,
        }
    }

    /// Names that the program may have to define.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Humaneval { entry_point, .. } => vec![entry_point],
            Self::Asserts { setup, tests } => {
                let texts = tests.iter().chain([setup]);
                let is_part = |c: char| c.is_alphanumeric() || c == '_';
                let words = texts.flat_map(|text| text.split(move |c| !is_part(c)));
                words.filter(|word| !word.is_empty()).collect()
            }
            Self::Stdio { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_others_are_refused() {
        let asserts = Tests::parse(r#"{"kind":"asserts","tests":["assert f(1) == 2"]}"#).unwrap();
        assert!(asserts.names().contains(&"f"));
        assert_eq!(asserts.language(), Some(Language::Python));
        let json = r#"{"kind":"stdio","cases":[{"input":"1","output":"2","more":0}]}"#;
        assert_eq!(Tests::parse(json).unwrap().language(), None);
        for json in [
            "",
            "[]",
            r#"{"kind":"asserts","tests":[]}"#,
            r#"{"kind":"humaneval","test":"def check(f): pass"}"#,
            r#"{"kind":"humaneval","entry_point":"f","test":" "}"#,
            r#"{"kind":"stdio","cases":[]}"#,
            r#"{"kind":"countdown","numbers":[1],"target":1}"#,
        ] {
            assert!(Tests::parse(json).is_err(), "{json}");
        }
    }
}
