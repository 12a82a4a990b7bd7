//! A reward as a pipeline file has it, and what the program makes of it.
//!
//! [`Spec`] is what the file says: `{ kind = "format", weight = 0.2 }`. It has the keys that every kind has
//! ([`Common`]) and those of its kind ([`Settings`]), which are declared next to the verifier that reads them.
//! [`Spec::resolve`] makes a [`Verifier`] of it and reports every problem at once.
//!
//! To add a kind: a module with its settings and its verifier, and a line in [`Settings`].

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::backend::Backends;
use crate::composite::OnNull;
use crate::extract::{self, LENIENT};
use crate::verifier::{Kind, Verifier};
use crate::{
    choice, code, command, countdown, exact, format, http, json_schema, judge, language, length,
    math, model, numeric, overlong, pattern, repetition,
};

/// The keys that a reward of any kind has.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Common {
    /// The column is `reward_NAME`. Letters, digits and `_`; default: the kind's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Factor of the score in the sum; finite, negative for a penalty. Default 1.
    pub weight: f32,
    /// Least and greatest score that counts, such as `[0.0, 1.0]`: a score outside is taken as the bound.
    /// Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<[f32; 2]>,
    /// Least score at which rewards without a gate count: below it they count as 0 where they would add
    /// something; penalties stay, and so do the scores in their columns. `gate = 1.0` on `format` makes accuracy
    /// count in well-formed completions only. Default: no gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<f32>,
    /// What happens to a completion that this reward can't score: `drop`, `zero` or `stop`. Default: what
    /// `reward_null` of the stage says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_null: Option<OnNull>,
    /// The sources that it is for, by the column `source` of the prompts: to completions of others it isn't applied,
    /// its column is null there, and it counts as nothing. A reward that is built on another (`of`) is applied
    /// where that one is as well. Default: every completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<String>>,
}

impl Default for Common {
    fn default() -> Self {
        Self { name: None, weight: 1.0, clip: None, gate: None, on_null: None, sources: None }
    }
}

impl Common {
    /// Whether it is for completions of prompts from `source`.
    pub fn is_for(&self, source: Option<&str>) -> bool {
        match (&self.sources, source) {
            (None, _) => true,
            (Some(sources), Some(source)) => sources.iter().any(|name| name == source),
            (Some(_), None) => false,
        }
    }
}

/// A reward in a pipeline file. A key that its kind doesn't read is an error, not ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What every kind has.
    pub common: Common,
    /// What its kind has.
    pub settings: Settings,
}

/// The settings of one kind, declared next to its verifier.
pub trait Resolve: Clone + Default + PartialEq + DeserializeOwned + Serialize {
    /// The verifier, or everything that is wrong with the settings.
    fn resolve(&self, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>>;

    /// Where the final answer is looked for, for a kind that reads it.
    fn answer_place(&mut self) -> Option<&mut extract::Settings> {
        None
    }

    /// The name of the reward, one before it in the list, whose score it is built on.
    fn of(&self) -> Option<&str> {
        None
    }

    /// The model of the pipeline that it borrows, by name.
    fn model(&self) -> Option<&str> {
        None
    }

    /// The environment variable that holds its secret, by name.
    fn variable(&self) -> Option<&str> {
        None
    }
}

/// Declares [`Settings`], a variant for each kind.
macro_rules! settings {
    ($($kind:ident($module:ident),)*) => {
        /// The settings of a reward, by its kind.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "a variant is a kind; the settings in it are documented")]
        pub enum Settings { $($kind($module::Settings),)* }

        impl Settings {
            /// Those of that kind with every default.
            pub fn new(kind: Kind) -> Self {
                match kind { $(Kind::$kind => Self::$kind($module::Settings::default()),)* }
            }

            /// Their kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            fn from_json(kind: Kind, json: Value) -> serde_json::Result<Self> {
                match kind { $(Kind::$kind => serde_json::from_value(json).map(Self::$kind),)* }
            }

            fn to_json(&self) -> serde_json::Result<Value> {
                match self { $(Self::$kind(settings) => serde_json::to_value(settings),)* }
            }

            fn resolve(&self, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
                match self { $(Self::$kind(settings) => settings.resolve(backends),)* }
            }

            /// Where the final answer is looked for, for a kind that reads it.
            pub fn answer_place(&mut self) -> Option<&mut extract::Settings> {
                match self { $(Self::$kind(settings) => settings.answer_place(),)* }
            }

            /// The name of the reward, one before it in the list, whose score it is built on.
            pub fn of(&self) -> Option<&str> {
                match self { $(Self::$kind(settings) => settings.of(),)* }
            }

            /// The model of the pipeline that it borrows, by name.
            pub fn model(&self) -> Option<&str> {
                match self { $(Self::$kind(settings) => settings.model(),)* }
            }

            /// The environment variable that holds its secret, by name.
            pub fn variable(&self) -> Option<&str> {
                match self { $(Self::$kind(settings) => settings.variable(),)* }
            }
        }
    };
}

settings! {
    Math(math),
    Format(format),
    Code(code),
    Countdown(countdown),
    Language(language),
    Length(length),
    Overlong(overlong),
    Repetition(repetition),
    Regex(pattern),
    Exact(exact),
    Numeric(numeric),
    Choice(choice),
    JsonSchema(json_schema),
    Judge(judge),
    Model(model),
    Command(command),
    Http(http),
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
    /// A key that must be something else.
    pub fn new(key: &str, must: impl Into<String>, got: impl Into<String>) -> Self {
        Self { key: key.to_owned(), must: must.into(), got: got.into() }
    }

    /// A key that has no default.
    pub fn missing(key: &str) -> Self {
        Self::new(key, "given", "absent")
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
        Self { common: Common::default(), settings: Settings::new(kind) }
    }

    /// With the answer looked for where text may be nothing but the answer, as `aha grade` reads it.
    pub fn for_grading(mut self) -> Self {
        if let Some(place) = self.settings.answer_place() {
            place.extract = LENIENT.to_vec();
        }
        self
    }

    /// Which verifier.
    pub fn kind(&self) -> Kind {
        self.settings.kind()
    }

    /// The name of its column without `reward_`.
    pub fn column_name(&self) -> &str {
        self.common.name.as_deref().unwrap_or(self.kind().name())
    }

    /// The place among the rewards before it, by their names, of the one that it is built on; none if it is built
    /// on none.
    pub fn base_among<'a>(
        &self,
        mut before: impl Iterator<Item = &'a str>,
    ) -> Result<Option<usize>, Problem> {
        let Some(name) = self.settings.of() else { return Ok(None) };
        let must = "the name of a reward before this one";
        let base_idx = before.position(|other| other == name);
        base_idx.map(Some).ok_or_else(|| Problem::new("of", must, format!("`{name}`")))
    }

    /// With its name written out.
    pub fn named(mut self) -> Self {
        self.common.name = Some(self.column_name().to_owned());
        self
    }

    /// The keys that a reward of that kind takes, in the order of the documentation.
    pub fn key_names(kind: Kind) -> Vec<String> {
        let common =
            ["kind", "name", "weight", "clip", "gate", "on_null", "sources"].map(str::to_owned);
        let own = Settings::new(kind).to_json().ok();
        let own = own.as_ref().and_then(Value::as_object).into_iter().flat_map(Map::keys);
        common.into_iter().chain(own.cloned()).collect()
    }

    /// The verifier, or every problem of this reward.
    pub fn resolve(&self, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = self.common.problems();
        match self.settings.resolve(backends) {
            Ok(verifier) if problems.is_empty() => return Ok(verifier),
            Ok(_) => {}
            Err(more) => problems.extend(more),
        }
        Err(problems)
    }
}

impl Common {
    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(name) = self.name.as_deref().filter(|name| !is_word(name)) {
            problems.push(Problem::new("name", "letters, digits and `_`", format!("`{name}`")));
        }
        if !self.weight.is_finite() {
            problems.push(Problem::new("weight", "a finite number", self.weight.to_string()));
        }
        // Written so that NaN fails.
        if let Some([least, most]) = self.clip
            && !(least <= most && least.is_finite() && most.is_finite())
        {
            let must = "two finite numbers, the lesser first";
            problems.push(Problem::new("clip", must, format!("[{least:?}, {most:?}]")));
        }
        if let Some(gate) = self.gate.filter(|gate| !gate.is_finite()) {
            problems.push(Problem::new("gate", "a finite number", gate.to_string()));
        }
        if self.sources.as_ref().is_some_and(Vec::is_empty) {
            problems.push(Problem::new("sources", "at least one source", "empty"));
        }
        problems
    }
}

/// Whether a text is letters, digits and `_`, and at least one of them.
pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut json = Map::<String, Value>::deserialize(deserializer)?;
        let kind = json.shift_remove("kind").ok_or_else(|| D::Error::missing_field("kind"))?;
        let kind: Kind = serde_json::from_value(kind).map_err(D::Error::custom)?;
        let names = Spec::key_names(kind);
        if let Some(strange) = json.keys().find(|key| !names.contains(key)) {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let names = names.join(", ");
            return Err(D::Error::custom(format!("unknown field `{strange}`, expected {names}")));
        }
        let json = Value::Object(json);
        let common = serde_json::from_value(json.clone()).map_err(D::Error::custom)?;
        let settings = Settings::from_json(kind, json).map_err(D::Error::custom)?;
        Ok(Self { common, settings })
    }
}

impl Serialize for Spec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = Map::new();
        json.insert("kind".to_owned(), Value::from(self.kind().name()));
        let common = serde_json::to_value(&self.common).map_err(S::Error::custom)?;
        let settings = self.settings.to_json().map_err(S::Error::custom)?;
        for part in [common, settings] {
            let Value::Object(part) = part else { continue };
            json.extend(part.into_iter().filter(|(_, value)| !value.is_null()));
        }
        json.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NoBackends;
    use crate::verifier::Sample;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn verifier(json: &str) -> Box<dyn Verifier> {
        spec(json).resolve(&NoBackends).ok().unwrap()
    }

    fn problems(json: &str) -> Vec<String> {
        let problems = spec(json).resolve(&NoBackends).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_kind_resolves_says_its_kind_and_is_written_as_it_was_read() {
        for json in [
            r#"{"kind":"math"}"#,
            r#"{"kind":"format","weight":0.2,"gate":1.0}"#,
            r#"{"kind":"countdown","must_use_all":false}"#,
            r#"{"kind":"length","max_tokens":10,"clip":[0.0,0.5]}"#,
            r#"{"kind":"regex","pattern":"a+"}"#,
            r#"{"kind":"exact","extract":["hashes","whole"],"on_null":"zero"}"#,
            r#"{"kind":"language","target":"zh","part":"completion"}"#,
            r#"{"kind":"length","form":"cosine","of":"math","max_tokens":9,"right":[1.5,0.5]}"#,
            r#"{"kind":"overlong","max_tokens":9}"#,
            r#"{"kind":"repetition","penalty":-0.1}"#,
            r#"{"kind":"numeric","rel_tolerance":0.01}"#,
            r#"{"kind":"choice","gold":"index","index_from":1}"#,
            r#"{"kind":"json_schema","schema":{"type":"array"}}"#,
            r#"{"kind":"judge","url":"http://127.0.0.1:1/v1","model":"m","score_min":1,"score_max":5}"#,
            r#"{"kind":"command","command":["cat","-u"],"workers":2}"#,
            r#"{"kind":"http","url":"https://localhost/score","call_seconds_max":5,"batch_max":8}"#,
        ] {
            let read = spec(json);
            assert_eq!(read.resolve(&NoBackends).ok().unwrap().kind(), read.kind());
            let written = serde_json::to_string(&read.clone().named()).unwrap();
            assert_eq!(spec(&written), read.clone().named(), "{written}");
            assert!(written.contains(&format!(r#""name":"{}""#, read.kind())), "{written}");
        }
    }

    #[test]
    fn unknown_keys_and_kinds_are_refused() {
        let refused = |json| serde_json::from_str::<Spec>(json).unwrap_err().to_string();
        let text = refused(r#"{"kind":"math","wieght":1}"#);
        assert!(text.starts_with("unknown field `wieght`, expected `kind`, `name`, "), "{text}");
        assert!(text.ends_with("`rounding_places`"), "{text}");
        assert!(refused(r#"{"kind":"maths"}"#).contains("unknown variant `maths`"));
        assert!(refused(r#"{"weight":1}"#).contains("missing field `kind`"));
        // A key of another kind is as unknown.
        assert!(refused(r#"{"kind":"length","pattern":"x"}"#).contains("unknown field `pattern`"));
        assert!(refused(r#"{"kind":"math","extract":5}"#).contains("expected a sequence"));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let got = problems(
            r#"{"kind":"length","name":"a b","min_tokens":9,"max_tokens":3,"clip":[2.0,1.0]}"#,
        );
        assert_eq!(
            got,
            [
                "`name` must be letters, digits and `_`, not `a b`",
                "`clip` must be two finite numbers, the lesser first, not [2.0, 1.0]",
                "`max_tokens` must be at least `min_tokens`, 9, not 3",
            ]
        );
        assert_eq!(
            problems(r#"{"kind":"exact","extract":[],"think_tag":"<t>"}"#),
            [
                "`extract` must be at least one strategy, not empty",
                "`think_tag` must be letters, digits and `_`, not `<t>`",
            ]
        );
        assert_eq!(problems(r#"{"kind":"length"}"#), ["`max_tokens` must be given, not absent"]);
        assert_eq!(problems(r#"{"kind":"regex"}"#), ["`pattern` must be given, not absent"]);
        assert!(problems(r#"{"kind":"regex","pattern":"("}"#)[0].contains("unclosed group"));
        assert_eq!(problems(r#"{"kind":"regex","pattern":"(a{999}){999}"}"#).len(), 1);
        assert_eq!(problems(r#"{"kind":"math","rounding_places":65}"#).len(), 1);
        let command = problems(
            r#"{"kind":"command","command":["no-such-program"],"workers":0,"sandbox":true}"#,
        );
        assert_eq!(
            command[..2],
            [
                "`command` must be a program that can be run, not `no-such-program`",
                "`workers` must be from 1 to 256, not 0",
            ]
        );
        // Tests can't start a sandbox: their `main` is not ours.
        let layer = "`sandbox` must be false on this machine, for the sandbox's layer `keeper`";
        assert!(command.len() == 3 && command[2].starts_with(layer), "{command:?}");
        assert_eq!(problems(r#"{"kind":"judge"}"#), ["`model` must be given, not absent"]);
        assert_eq!(
            problems(
                r#"{"kind":"judge","model":"m","score_pattern":"x","score_max":0,"max_tokens":0}"#
            ),
            [
                "`score_max` must be finite and above `score_min`, 0, not 0",
                "`score_pattern` must be a regular expression with one group that compiles to at most 1 MiB, \
                 not `x` with 0",
                "`max_tokens` must be at least 1, not 0",
                "`model` must be one of the pipeline's models, or a model of the endpoint at `url`, not `m`, \
                 which only a pipeline can lend",
            ]
        );
        let mut endless = Spec::new(Kind::Math);
        endless.common.weight = f32::INFINITY;
        assert_eq!(endless.resolve(&NoBackends).err().unwrap()[0].key, "weight");
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
            assert_eq!(verifier(json).score(&sample).score, Some(want), "{json}");
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
            assert_eq!(verifier(json).score(&sample).score, want, "{json}");
        }
    }
}
