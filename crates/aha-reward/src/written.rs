//! A reward as people write it outside of a pipeline: on a command line, in a query.

use serde::Deserialize;

use crate::spec::Spec;
use crate::verifier::Kind;

/// A reward that was written as the name of a kind, `math`, or as a table of keys as a pipeline has it,
/// `{ kind = "length", max_tokens = 99 }`.
#[derive(Clone, Debug)]
pub struct Written {
    /// As it was given.
    pub spec: Spec,
    /// Whether it says where the answer is.
    pub has_extract: bool,
}

#[derive(Deserialize)]
struct File {
    reward: toml::Table,
}

impl Written {
    /// Reads it, or says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('{') {
            let text = format!("reward = {text}");
            let failed = |error: toml::de::Error| error.message().to_owned();
            let File { reward } = toml::from_str(&text).map_err(failed)?;
            let has_extract = reward.contains_key("extract");
            let spec = Spec::deserialize(reward).map_err(failed)?;
            return Ok(Self { spec, has_extract });
        }
        let kind = Kind::from_name(text.trim()).ok_or_else(|| {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            format!(
                "expected one of {}, or a table such as {{ kind = \"length\", max_tokens = 99 }}",
                known.join(", ")
            )
        })?;
        Ok(Self { spec: Spec::new(kind), has_extract: false })
    }

    /// For texts that may be nothing but the answer: where it doesn't say "extract", the answer is looked for as
    /// `aha grade` does.
    pub fn for_grading(self) -> Spec {
        if self.has_extract { self.spec } else { self.spec.for_grading() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NoBackends;

    #[test]
    fn a_reward_is_a_kind_or_a_table_of_its_keys() {
        let parse = |text: &str| Written::parse(text).unwrap();
        parse("math").spec.resolve(&NoBackends).ok().unwrap();
        let length = parse("{ kind = \"length\", max_tokens = 5 }");
        assert_eq!(length.spec.kind(), Kind::Length);
        length.spec.resolve(&NoBackends).ok().unwrap();
        assert!(parse("{ kind = \"math\", extract = [\"boxed\"] }").has_extract);
        assert!(!parse("{ kind = \"math\", weight = 0.5 }").has_extract);
        let refused = |text: &str| Written::parse(text).unwrap_err();
        assert!(refused("maths").contains("math, format"));
        assert!(refused("{ kind = \"math\", wieght = 1 }").contains("wieght"));
        assert!(Written::parse("{ kind = ").is_err());
    }
}
