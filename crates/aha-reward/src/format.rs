//! `kind = "format"`: is the completion `<think> … </think> <answer> … </answer>`?

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::spec::{Problem, Resolve, is_word};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// Whether the prompt ends with the opening think tag, so that the completion begins inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkInPrompt {
    /// If the prompt ends with the tag, blanks aside.
    #[default]
    Auto,
    /// Always: the completion must not open it again.
    Yes,
    /// Never: the completion must open it.
    No,
}

/// What may stand outside of the tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// Blanks only.
    #[default]
    Whitespace,
    /// Any text.
    Any,
}

/// 1 if the four tags occur once each and in order, with nothing forbidden outside; else 0.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Name of the tag around the chain of thought. Default `think`.
    pub think_tag: String,
    /// Name of the tag around the answer. Default `answer`.
    pub answer_tag: String,
    /// What may stand outside of the tags, `whitespace` or `any`. Default `whitespace`.
    pub outside: Outside,
    /// Whether the think tag is open when the completion begins, `auto`, `yes` or `no`. Default `auto`: if the
    /// prompt, as the data has it, ends with the tag. Set `yes` where the template opens it.
    pub think_in_prompt: ThinkInPrompt,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            think_tag: "think".to_owned(),
            answer_tag: "answer".to_owned(),
            outside: Outside::default(),
            think_in_prompt: ThinkInPrompt::default(),
        }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let Settings { think_tag, answer_tag, outside, think_in_prompt } = self.clone();
        let tags = [("think_tag", &think_tag), ("answer_tag", &answer_tag)];
        let problems: Vec<Problem> = tags
            .into_iter()
            .filter(|(_, tag)| !is_word(tag))
            .map(|(key, tag)| Problem::new(key, "letters, digits and `_`", format!("`{tag}`")))
            .collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Box::new(Format { think_tag, answer_tag, outside, think_in_prompt }))
    }
}

/// See [`Settings`].
pub struct Format {
    /// Name of the tag around the chain of thought.
    pub think_tag: String,
    /// Name of the tag around the answer.
    pub answer_tag: String,
    /// What may stand before, between and after the two pairs.
    pub outside: Outside,
    /// Whether the completion begins inside the think tag.
    pub think_in_prompt: ThinkInPrompt,
}

impl Verifier for Format {
    fn kind(&self) -> Kind {
        Kind::Format
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        match self.fault(sample.prompt, sample.completion) {
            None => Verdict::scored(1.0, "as asked"),
            Some(fault) => Verdict::scored(0.0, fault),
        }
    }
}

/// Whether a completion is `<think> … </think> <answer> … </answer>` as the reward `format` asks for it by default,
/// after a prompt that may end with `<think>`.
///
/// ```
/// assert!(aha_reward::has_format("2 + 3? <think>", "5</think> <answer>5</answer>"));
/// ```
pub fn has_format(prompt: &str, completion: &str) -> bool {
    let Settings { think_tag, answer_tag, outside, think_in_prompt } = Settings::default();
    let format = Format { think_tag, answer_tag, outside, think_in_prompt };
    format.fault(prompt, completion).is_none()
}

impl Format {
    fn fault(&self, prompt: &str, completion: &str) -> Option<String> {
        let open_think = format!("<{}>", self.think_tag);
        let is_open_in_prompt = match self.think_in_prompt {
            ThinkInPrompt::Auto => prompt.trim_end().ends_with(&open_think),
            ThinkInPrompt::Yes => true,
            ThinkInPrompt::No => false,
        };
        let tags = [
            (open_think, usize::from(!is_open_in_prompt)),
            (format!("</{}>", self.think_tag), 1),
            (format!("<{}>", self.answer_tag), 1),
            (format!("</{}>", self.answer_tag), 1),
        ];
        let mut spans = Vec::new();
        for (tag, count_wanted) in &tags {
            let mut places = completion.match_indices(tag.as_str());
            let first = places.next();
            let count = places.count() + usize::from(first.is_some());
            if count != *count_wanted {
                return Some(format!("{tag} occurs {count} times, not {count_wanted}"));
            }
            spans.extend(first.map(|(start, _)| (start, start + tag.len())));
        }
        if spans.windows(2).any(|pair| pair[1].0 < pair[0].1) {
            return Some("the tags are out of order".to_owned());
        }
        let is_text_outside = self.outside == Outside::Whitespace
            && outside(completion, &spans, is_open_in_prompt).any(|text| !text.trim().is_empty());
        is_text_outside.then(|| "text outside of the tags".to_owned())
    }
}

/// The text before, between and after the two pairs of tags.
fn outside<'a>(
    completion: &'a str,
    spans: &[(usize, usize)],
    is_open_in_prompt: bool,
) -> impl Iterator<Item = &'a str> {
    // The tags alternate between opening and closing; what stands before an opening tag is outside.
    let mut start = 0;
    let mut pieces = Vec::new();
    for (idx, (tag_start, tag_end)) in spans.iter().enumerate() {
        let is_opening = idx % 2 == usize::from(is_open_in_prompt);
        if is_opening {
            pieces.push(&completion[start..*tag_start]);
        }
        start = *tag_end;
    }
    pieces.push(&completion[start..]);
    pieces.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(verifier: &Format, prompt: &str, completion: &str) -> f32 {
        verifier.score(&Sample { prompt, completion, ..Sample::default() }).score.unwrap()
    }

    fn verifier() -> Format {
        Format {
            think_tag: "think".to_owned(),
            answer_tag: "answer".to_owned(),
            outside: Outside::Whitespace,
            think_in_prompt: ThinkInPrompt::Auto,
        }
    }

    #[test]
    fn both_pairs_stand_once_and_in_order() {
        let cases = [
            ("<think>a</think> <answer>5</answer>", 1.0),
            ("<think>a</think>\n\n<answer>5</answer>\n", 1.0),
            ("<think></think><answer></answer>", 1.0),
            ("<think>a</think> so <answer>5</answer>", 0.0),
            ("Sure. <think>a</think><answer>5</answer>", 0.0),
            ("<think>a</think><answer>5</answer> Done.", 0.0),
            ("<think>a</think><answer>5", 0.0),
            ("<think>a<answer>5</answer>", 0.0),
            ("<think>a<answer>5</answer></think>", 0.0),
            ("<answer>5</answer><think>a</think>", 0.0),
            ("<think>a</think><answer>5</answer><answer>5</answer>", 0.0),
            ("<think>a</think><think>a</think><answer>5</answer>", 0.0),
            ("</think>a<think><answer>5</answer>", 0.0),
            ("a</think><answer>5</answer>", 0.0),
            ("<Think>a</Think><answer>5</answer>", 0.0),
            ("", 0.0),
        ];
        for (completion, want) in cases {
            assert_eq!(score(&verifier(), "Q", completion), want, "{completion}");
        }
    }

    #[test]
    fn the_prompt_may_open_the_chain_of_thought() {
        let whole = "<think>a</think><answer>5</answer>";
        let rest = "a</think> <answer>5</answer>";
        assert_eq!(score(&verifier(), "Q <think>\n", rest), 1.0);
        assert_eq!(score(&verifier(), "Q <think>\n", whole), 0.0);
        assert_eq!(score(&verifier(), "Q <think>\n", "a</think> b <answer>5</answer>"), 0.0);
        let yes = Format { think_in_prompt: ThinkInPrompt::Yes, ..verifier() };
        assert_eq!(score(&yes, "Q", rest), 1.0);
        let no = Format { think_in_prompt: ThinkInPrompt::No, ..verifier() };
        assert_eq!(score(&no, "Q <think>", whole), 1.0);
    }

    #[test]
    fn names_and_text_outside_are_settings() {
        let other = Format {
            think_tag: "reasoning".to_owned(),
            answer_tag: "final".to_owned(),
            outside: Outside::Any,
            ..verifier()
        };
        assert_eq!(score(&other, "", "a<reasoning>b</reasoning>c<final>5</final>d"), 1.0);
        assert_eq!(score(&other, "", "<think>b</think><answer>5</answer>"), 0.0);
    }
}
