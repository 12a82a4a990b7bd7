//! A reward as a pipeline file has it, and what the program makes of it.
//!
//! [`Spec`] is what the file says: `{ kind = "format", weight = 0.2 }`. [`Spec::resolve`] turns it
//! into a [`Verifier`] and reports every problem at once.

use regex::RegexBuilder;
use serde::{Deserialize, Serialize};

use crate::exact::Exact;
use crate::extract::{Extraction, LENIENT, STRICT, Strategy};
use crate::format::{Format, Outside, ThinkInPrompt};
use crate::length::Length;
use crate::math::{self, Math};
use crate::pattern::{PATTERN_BYTES_MAX, Pattern, Place};
use crate::verifier::{Kind, Verifier};

/// A reward in a pipeline file. A key that its kind doesn't read is a problem, not ignored.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Which verifier.
    pub kind: Kind,
    /// The column is `reward_NAME`. Letters, digits and `_`; default: the kind's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Factor of the score in the sum; finite, negative for a penalty. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f32>,
    /// math, exact: where the final answer is looked for, in this order, out of `answer_tag`,
    /// `boxed`, `hashes`, `answer_is`, `whole`. Default `["answer_tag", "boxed"]`: an answer that is
    /// not marked as one doesn't count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extract: Option<Vec<Strategy>>,
    /// math, exact, format: name of the tag around the chain of thought. Default `think`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub think_tag: Option<String>,
    /// math, exact, format, regex: name of the tag around the answer. Default `answer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tag: Option<String>,
    /// math: a decimal with at least as many digits after the point, 0 to 64, may be the answer
    /// rounded; 0 for never. Default 6, as Math-Verify rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding_places: Option<u32>,
    /// format: what may stand outside of the tags, `whitespace` or `any`. Default `whitespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
    /// format: whether the prompt has opened the think tag, `auto`, `yes` or `no`. Default `auto`:
    /// if the prompt ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub think_in_prompt: Option<ThinkInPrompt>,
    /// length: fewest tokens with score 1. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<usize>,
    /// length: most tokens with score 1, at least `min_tokens`. No default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// length: tokens past a bound at which the score has fallen to 0. Default 0: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp_tokens: Option<usize>,
    /// regex: the pattern, in the syntax of Rust's `regex`. No default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// regex: where it must occur, `completion` or `answer_tag`. Default `completion`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// exact, regex: whether letter case matters. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_case_sensitive: Option<bool>,
}

/// Something wrong with a [`Spec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key in the reward's table.
    pub key: String,
    /// What it must be.
    pub must: String,
    /// What it is.
    pub got: String,
}

impl Problem {
    fn new(key: &str, must: impl Into<String>, got: impl Into<String>) -> Self {
        Self { key: key.to_owned(), must: must.into(), got: got.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` must be {}, not {}", self.key, self.must, self.got)
    }
}

impl Spec {
    /// That kind with every default.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            name: None,
            weight: None,
            extract: None,
            think_tag: None,
            answer_tag: None,
            rounding_places: None,
            outside: None,
            think_in_prompt: None,
            min_tokens: None,
            max_tokens: None,
            ramp_tokens: None,
            pattern: None,
            place: None,
            is_case_sensitive: None,
        }
    }

    /// That kind for text that may be nothing but the answer, as `aha grade` reads it.
    pub fn for_grading(kind: Kind) -> Self {
        let extract = matches!(kind, Kind::Math | Kind::Exact).then(|| LENIENT.to_vec());
        Self { extract, ..Self::new(kind) }
    }

    /// The name of its column without `reward_`.
    pub fn column_name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.name())
    }

    /// With every default that its kind reads written out.
    pub fn with_defaults(mut self) -> Self {
        let kind = self.kind;
        self.name = Some(self.column_name().to_owned());
        self.weight.get_or_insert(1.0);
        let is = |kinds: &[Kind]| kinds.contains(&kind);
        if is(EXTRACT) {
            self.extract.get_or_insert_with(|| STRICT.to_vec());
        }
        if is(THINK_TAG) {
            self.think_tag.get_or_insert_with(|| "think".to_owned());
        }
        if is(ANSWER_TAG) {
            self.answer_tag.get_or_insert_with(|| "answer".to_owned());
        }
        if is(CASE) {
            self.is_case_sensitive.get_or_insert(true);
        }
        match kind {
            Kind::Math => {
                self.rounding_places.get_or_insert(math::ROUNDING_PLACES);
            }
            Kind::Format => {
                self.outside.get_or_insert_default();
                self.think_in_prompt.get_or_insert_default();
            }
            Kind::Length => {
                self.min_tokens.get_or_insert(0);
                self.ramp_tokens.get_or_insert(0);
            }
            Kind::Regex => {
                self.place.get_or_insert_default();
            }
            _ => {}
        }
        self
    }

    /// The verifier, or every problem of this reward.
    pub fn resolve(&self) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = self.common_problems();
        if !self.kind.is_built() {
            let built: Vec<&str> = Kind::BUILT.iter().map(|kind| kind.name()).collect();
            let must = format!("one that this version has: {}", built.join(", "));
            problems.push(Problem::new("kind", must, format!("`{}`", self.kind)));
            return Err(problems);
        }
        let full = self.clone().with_defaults();
        let verifier = full.verifier(&mut problems);
        match verifier {
            Some(verifier) if problems.is_empty() => Ok(verifier),
            _ => Err(problems),
        }
    }

    /// The verifier of a spec whose defaults are written out; none where a problem prevents it.
    fn verifier(self, problems: &mut Vec<Problem>) -> Option<Box<dyn Verifier>> {
        let extraction = Extraction {
            strategies: self.extract.unwrap_or_default(),
            answer_tag: self.answer_tag.clone().unwrap_or_default(),
            think_tag: self.think_tag.clone().unwrap_or_default(),
        };
        let is_case_sensitive = self.is_case_sensitive.unwrap_or(true);
        match self.kind {
            Kind::Math => {
                let rounding_places = self.rounding_places.unwrap_or_default();
                if rounding_places > 64 {
                    problems.push(Problem::new(
                        "rounding_places",
                        "at most 64",
                        rounding_places.to_string(),
                    ));
                }
                Some(Box::new(Math { extraction, rounding_places }))
            }
            Kind::Format => Some(Box::new(Format {
                think_tag: extraction.think_tag,
                answer_tag: extraction.answer_tag,
                outside: self.outside.unwrap_or_default(),
                think_in_prompt: self.think_in_prompt.unwrap_or_default(),
            })),
            Kind::Length => {
                let min_tokens = self.min_tokens.unwrap_or_default();
                let Some(max_tokens) = self.max_tokens else {
                    problems.push(Problem::new("max_tokens", "given", "absent"));
                    return None;
                };
                if max_tokens < min_tokens {
                    let must = format!("at least `min_tokens`, {min_tokens}");
                    problems.push(Problem::new("max_tokens", must, max_tokens.to_string()));
                }
                let ramp_tokens = self.ramp_tokens.unwrap_or_default();
                Some(Box::new(Length { min_tokens, max_tokens, ramp_tokens }))
            }
            Kind::Regex => {
                let Some(pattern) = self.pattern else {
                    problems.push(Problem::new("pattern", "given", "absent"));
                    return None;
                };
                let regex = RegexBuilder::new(&pattern)
                    .case_insensitive(!is_case_sensitive)
                    .size_limit(PATTERN_BYTES_MAX)
                    .build();
                match regex {
                    Ok(regex) => Some(Box::new(Pattern {
                        regex,
                        place: self.place.unwrap_or_default(),
                        answer_tag: extraction.answer_tag,
                    })),
                    Err(error) => {
                        let must = "a regular expression that compiles to at most 1 MiB";
                        let got = format!("`{pattern}`: {error}");
                        problems.push(Problem::new("pattern", must, got));
                        None
                    }
                }
            }
            Kind::Exact => Some(Box::new(Exact { extraction, is_case_sensitive })),
            _ => None,
        }
    }

    /// Problems that any kind can have.
    fn common_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(weight) = self.weight.filter(|weight| !weight.is_finite()) {
            problems.push(Problem::new("weight", "a finite number", weight.to_string()));
        }
        let is_word = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        for (key, value) in
            [("name", &self.name), ("think_tag", &self.think_tag), ("answer_tag", &self.answer_tag)]
        {
            if let Some(value) = value.as_deref().filter(|value| !is_word(value)) {
                problems.push(Problem::new(key, "letters, digits and `_`", format!("`{value}`")));
            }
        }
        if self.extract.as_ref().is_some_and(Vec::is_empty) {
            problems.push(Problem::new("extract", "at least one strategy", "empty"));
        }
        for (key, is_given, kinds) in self.keys() {
            if is_given && !kinds.contains(&self.kind) {
                let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                let must = format!("absent: only {} has it", names.join(", "));
                problems.push(Problem::new(key, must, format!("given for `{}`", self.kind)));
            }
        }
        problems
    }

    /// Each key that not every kind reads, whether it is given, and the kinds that read it.
    fn keys(&self) -> [(&'static str, bool, &'static [Kind]); 12] {
        [
            ("extract", self.extract.is_some(), EXTRACT),
            ("think_tag", self.think_tag.is_some(), THINK_TAG),
            ("answer_tag", self.answer_tag.is_some(), ANSWER_TAG),
            ("rounding_places", self.rounding_places.is_some(), &[Kind::Math]),
            ("outside", self.outside.is_some(), &[Kind::Format]),
            ("think_in_prompt", self.think_in_prompt.is_some(), &[Kind::Format]),
            ("min_tokens", self.min_tokens.is_some(), &[Kind::Length]),
            ("max_tokens", self.max_tokens.is_some(), &[Kind::Length]),
            ("ramp_tokens", self.ramp_tokens.is_some(), &[Kind::Length]),
            ("pattern", self.pattern.is_some(), &[Kind::Regex]),
            ("place", self.place.is_some(), &[Kind::Regex]),
            ("is_case_sensitive", self.is_case_sensitive.is_some(), CASE),
        ]
    }
}

const EXTRACT: &[Kind] = &[Kind::Math, Kind::Exact];
const THINK_TAG: &[Kind] = &[Kind::Math, Kind::Exact, Kind::Format];
const ANSWER_TAG: &[Kind] = &[Kind::Math, Kind::Exact, Kind::Format, Kind::Regex];
const CASE: &[Kind] = &[Kind::Exact, Kind::Regex];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::Sample;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn problems(json: &str) -> Vec<String> {
        spec(json).resolve().err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_built_kind_resolves_and_says_its_kind() {
        for json in [
            r#"{"kind":"math"}"#,
            r#"{"kind":"format","weight":0.2}"#,
            r#"{"kind":"length","max_tokens":10}"#,
            r#"{"kind":"regex","pattern":"a+"}"#,
            r#"{"kind":"exact","extract":["hashes","whole"]}"#,
        ] {
            let spec = spec(json);
            assert_eq!(spec.resolve().unwrap().kind(), spec.kind);
            assert_eq!(spec.clone().with_defaults().resolve().unwrap().kind(), spec.kind);
        }
    }

    #[test]
    fn every_other_kind_is_refused_with_the_list_of_those_built() {
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_built()) {
            let problems = Spec::new(kind).resolve().err().unwrap();
            assert_eq!(
                problems[0].to_string(),
                format!(
                    "`kind` must be one that this version has: math, format, length, regex, exact, \
                     not `{kind}`"
                )
            );
        }
    }

    #[test]
    fn unknown_keys_and_kinds_are_refused() {
        assert!(serde_json::from_str::<Spec>(r#"{"kind":"math","wieght":1}"#).is_err());
        assert!(serde_json::from_str::<Spec>(r#"{"kind":"maths"}"#).is_err());
        assert!(serde_json::from_str::<Spec>(r#"{"weight":1}"#).is_err());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let got = problems(
            r#"{"kind":"length","name":"a b","min_tokens":9,"max_tokens":3,"pattern":"x","extract":[]}"#,
        );
        assert_eq!(
            got,
            [
                "`name` must be letters, digits and `_`, not `a b`",
                "`extract` must be at least one strategy, not empty",
                "`extract` must be absent: only math, exact has it, not given for `length`",
                "`pattern` must be absent: only regex has it, not given for `length`",
                "`max_tokens` must be at least `min_tokens`, 9, not 3",
            ]
        );
        assert_eq!(problems(r#"{"kind":"length"}"#), ["`max_tokens` must be given, not absent"]);
        assert_eq!(problems(r#"{"kind":"regex"}"#), ["`pattern` must be given, not absent"]);
        assert!(problems(r#"{"kind":"regex","pattern":"("}"#)[0].contains("unclosed group"));
        assert_eq!(problems(r#"{"kind":"regex","pattern":"(a{999}){999}"}"#).len(), 1);
        assert_eq!(problems(r#"{"kind":"math","rounding_places":65}"#).len(), 1);
        let endless = Spec { weight: Some(f32::INFINITY), ..Spec::new(Kind::Math) };
        assert_eq!(endless.resolve().err().unwrap()[0].key, "weight");
    }

    #[test]
    fn a_pattern_is_looked_for_in_its_place() {
        let cases = [
            (r#"{"kind":"regex","pattern":"b+"}"#, "abc", 1.0),
            (r#"{"kind":"regex","pattern":"^b+$"}"#, "abc", 0.0),
            (r#"{"kind":"regex","pattern":"B","is_case_sensitive":false}"#, "abc", 1.0),
            (r#"{"kind":"regex","pattern":"B"}"#, "abc", 0.0),
            (
                r#"{"kind":"regex","pattern":"^\\d$","place":"answer_tag"}"#,
                "<answer>5</answer>",
                1.0,
            ),
            (r#"{"kind":"regex","pattern":"5","place":"answer_tag"}"#, "5", 0.0),
        ];
        for (json, completion, want) in cases {
            let sample = Sample { completion, ..Sample::default() };
            assert_eq!(spec(json).resolve().unwrap().score(&sample).score, Some(want), "{json}");
        }
    }

    #[test]
    fn exact_compares_the_extracted_answer() {
        let cases = [
            (r#"{"kind":"exact"}"#, "<answer> Yes </answer>", Some(" Yes"), Some(1.0)),
            (r#"{"kind":"exact"}"#, "<answer>yes</answer>", Some("Yes"), Some(0.0)),
            (
                r#"{"kind":"exact","is_case_sensitive":false}"#,
                "<answer>yes</answer>",
                Some("Yes"),
                Some(1.0),
            ),
            (r#"{"kind":"exact"}"#, "0.50", Some("0.50"), Some(0.0)),
            (r#"{"kind":"exact","extract":["whole"]}"#, "0.50", Some("0.50"), Some(1.0)),
            (r#"{"kind":"exact","extract":["whole"]}"#, "0.5", Some("0.50"), Some(0.0)),
            (r#"{"kind":"exact"}"#, "<answer>5</answer>", None, None),
        ];
        for (json, completion, answer, want) in cases {
            let sample = Sample { completion, answer, ..Sample::default() };
            assert_eq!(spec(json).resolve().unwrap().score(&sample).score, want, "{json}");
        }
    }
}
