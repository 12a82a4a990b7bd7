//! What a pipeline says of a stage's completions: which rewards decide, and in which language they are to be.

use aha_flow::evaluate::Answers;
use aha_flow::pipeline::{Pipeline, Reward};
use aha_reward::{Settings, Spec};

/// What the pipeline says of a stage's completions.
pub struct Rules {
    /// The rewards that compare with answers or tests, in order.
    deciding: Vec<Deciding>,
    /// The language that completions are to be in.
    pub language: String,
}

struct Deciding {
    reward: Reward,
    /// How it reads final answers; none where it reads none.
    answers: Option<Answers>,
}

impl Rules {
    /// Those of a stage.
    pub fn of(stage: &str, pipeline: Option<&Pipeline>) -> Rules {
        let stage = pipeline.and_then(|pipeline| pipeline.stage(stage));
        let rewards = stage.map(|stage| stage.kind.rewards()).unwrap_or_default();
        let language = rewards.iter().find_map(|reward| match &reward.0.settings {
            Settings::Language(language) => Some(language.target.clone()),
            _ => None,
        });
        let specs = rewards.into_iter().map(|reward| reward.0.clone());
        Rules::new(specs, language.unwrap_or_else(|| "en".to_owned()))
    }

    /// Those of a stage with these rewards.
    pub fn new(rewards: impl IntoIterator<Item = Spec>, language: String) -> Rules {
        let rewards = rewards.into_iter().map(Reward);
        let decides = rewards.filter(|reward| reward.needs().is_some());
        let deciding = decides.map(|reward| Deciding { answers: Answers::of(&reward.0), reward });
        Rules { deciding: deciding.collect(), language }
    }

    /// These without rewards that a table has no column for.
    pub fn known(mut self, reward_names: &[String]) -> Rules {
        self.deciding
            .retain(|deciding| reward_names.iter().any(|name| name == deciding.reward.name()));
        self
    }

    /// The parts of the reward that decide, by name; the other methods count them as they are here.
    pub fn names(&self) -> Vec<String> {
        self.deciding.iter().map(|deciding| deciding.reward.name().to_owned()).collect()
    }

    /// The part that says whether a completion from `source` is right; none where none is for it.
    pub fn right(&self, source: Option<&str>) -> Option<usize> {
        self.deciding.iter().position(|deciding| deciding.reward.0.common.is_for(source))
    }

    /// The part that reads final answers from `source`, and how it does.
    pub fn answers(&self, source: Option<&str>) -> Option<(usize, &Answers)> {
        let mut parts = self.deciding.iter().enumerate();
        parts.find_map(|(part, deciding)| {
            let answers = deciding.answers.as_ref()?;
            deciding.reward.0.common.is_for(source).then_some((part, answers))
        })
    }
}

#[cfg(test)]
mod tests {
    use aha_flow::pipeline::{self, Text};

    use super::*;

    const PIPELINE: &str = r#"
[tables]
problems = "problems.jsonl"

[models]
base = "model"

[[stage]]
name = "mixed"
kind = "rl"
model = "base"
prompts = "SELECT id, prompt, answer, tests, source FROM problems"
rewards = [
  { kind = "language", target = "de" },
  { kind = "countdown", sources = ["targets"] },
  { kind = "math", sources = ["sums"] },
]
"#;

    #[test]
    fn a_source_has_the_reward_that_is_for_it() {
        let path = "pipeline.toml";
        let parsed = pipeline::parse(Text { path, text: PIPELINE, sets: &[] }).unwrap();
        let rules = Rules::of("mixed", Some(&parsed));
        assert_eq!(
            (rules.names(), rules.language.as_str()),
            (vec!["countdown".into(), "math".into()], "de")
        );
        assert_eq!((rules.right(Some("targets")), rules.right(Some("sums"))), (Some(0), Some(1)));
        assert_eq!((rules.right(Some("chat")), rules.right(None)), (None, None));
        assert!(rules.answers(Some("targets")).is_none(), "a way to a target is no answer");
        assert_eq!(rules.answers(Some("sums")).map(|(part, _)| part), Some(1));
        let unknown = Rules::of("mixed", None);
        assert_eq!((unknown.names().len(), unknown.right(None)), (0, None));
        let rules = rules.known(&["math".into(), "language".into()]);
        assert_eq!((rules.right(Some("targets")), rules.right(Some("sums"))), (None, Some(0)));
    }
}
