//! `kind = "json_schema"`: is the answer JSON of the shape that was asked for?

mod cost;

use boon::{CompileError, Compiler, SchemaIndex, Schemas, UrlLoader, ValidationError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::Backends;
use crate::extract::{self, Extraction};
use crate::spec::{Problem, Resolve, is_word};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};
use cost::{Cost, Counter};

/// Longest answer that is read as JSON.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How often parts of the schema are looked at again for the same part of an answer, at most: some tenths of a
/// second.
const LOOKS_AGAIN_MAX: f64 = 300_000.0;
/// What a schema that refers to itself has in it.
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// 1 if the answer is JSON that the schema allows, else 0; `json_score` if it is other JSON.
///
/// The answer is what the answer tag holds, or all after `</think>` where there is none; if a fenced block is in
/// it, what that holds, and two of them are wrong. Schemas are of draft 2020-12 unless `$schema` names another.
/// They may refer to their own parts only: nothing is fetched. Patterns take time linear in the text, so they have
/// no look-around and no back-references. An answer scores 0 if a schema that refers to itself would be looked at
/// again more than 300,000 times for parts of it that were looked at before.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// The schema, a table or JSON text. No default.
    pub schema: Option<Value>,
    /// Score of JSON that breaks the schema, finite. Default 0.
    pub json_score: f32,
    /// Name of the tag around the chain of thought. Default `think`.
    pub think_tag: String,
    /// Name of the tag around the answer. Default `answer`.
    pub answer_tag: String,
}

impl Default for Settings {
    fn default() -> Self {
        let extract::Settings { think_tag, answer_tag, .. } = extract::Settings::default();
        Self { schema: None, json_score: 0.0, think_tag, answer_tag }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        let schema = self.compiled().map_err(|problem| problems.push(problem));
        let Settings { json_score, think_tag, answer_tag, .. } = self.clone();
        if !json_score.is_finite() {
            problems.push(Problem::new("json_score", "finite", json_score.to_string()));
        }
        for (key, tag) in [("think_tag", &think_tag), ("answer_tag", &answer_tag)] {
            if !is_word(tag) {
                problems.push(Problem::new(key, "letters, digits and `_`", format!("`{tag}`")));
            }
        }
        match schema {
            Ok((referring, schemas, idx)) if problems.is_empty() => {
                let extraction = Extraction { think_tag, answer_tag, ..Extraction::default() };
                Ok(Box::new(JsonSchema { referring, schemas, idx, json_score, extraction }))
            }
            _ => Err(problems),
        }
    }
}

impl Settings {
    fn compiled(&self) -> Result<(Option<Value>, Schemas, SchemaIndex), Problem> {
        let wrong = |got: String| Problem::new("schema", "a JSON schema", got);
        let schema = match &self.schema {
            None => return Err(Problem::missing("schema")),
            Some(Value::String(text)) => serde_json::from_str(text)
                .map_err(|error| wrong(format!("text that is no JSON: {error}")))?,
            Some(schema) => schema.clone(),
        };
        if !schema.is_object() && !schema.is_boolean() {
            return Err(wrong(format!("`{}`", excerpt(&schema.to_string()))));
        }
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.use_loader(Box::new(Elsewhere));
        let refused = |error: CompileError| wrong(format!("one with an error: {}", told(&error)));
        compiler.add_resource(ADDRESS, schema.clone()).map_err(refused)?;
        let idx = compiler.compile(ADDRESS, &mut schemas).map_err(refused)?;
        if Counter::new(&schema).cost(&Value::Null) == Cost::Endless {
            return Err(wrong("one that refers to itself on the spot, without end".to_owned()));
        }
        let text = schema.to_string();
        let referring = REFERENCES.iter().any(|key| text.contains(key)).then_some(schema);
        Ok((referring, schemas, idx))
    }
}

/// What is wrong with a schema, on one line as problems are.
fn told(error: &CompileError) -> String {
    let text = match error {
        CompileError::LoadUrlError { src, .. } => src.to_string(),
        CompileError::ValidationError { src, .. } => {
            let cause = innermost(src);
            format!("`{}`: {}", cause.instance_location, cause.kind)
        }
        other => other.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a schema is called while it is compiled: addresses in it that are no whole ones start here.
const ADDRESS: &str = "aha:///schema";

/// Fetches nothing.
struct Elsewhere;

impl UrlLoader for Elsewhere {
    fn load(&self, url: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Err(format!("`{url}` is elsewhere, and nothing is fetched").into())
    }
}

/// See [`Settings`].
struct JsonSchema {
    /// The schema, if it may refer to itself.
    referring: Option<Value>,
    schemas: Schemas,
    idx: SchemaIndex,
    json_score: f32,
    /// The names of the tags.
    extraction: Extraction,
}

impl Verifier for JsonSchema {
    fn kind(&self) -> Kind {
        Kind::JsonSchema
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let answer = self.extraction.find_text(sample.completion);
        let text = match answer.and_then(|text| block(text.trim())) {
            Ok(text) => text,
            Err(reason) => return Verdict::scored(0.0, reason),
        };
        if text.len() > ANSWER_BYTES_MAX {
            return Verdict::scored(0.0, format!("longer than {ANSWER_BYTES_MAX} bytes"));
        }
        // serde_json refuses what is nested deeper than 128.
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return Verdict::scored(0.0, format!("no JSON: {error}")),
        };
        match self.referring.as_ref().map(|schema| Counter::new(schema).cost(&value)) {
            Some(Cost::Endless) => {
                return Verdict::unscored("the schema refers to itself on the spot, without end");
            }
            Some(Cost::Again(again)) if again > LOOKS_AGAIN_MAX => {
                return Verdict::scored(
                    0.0,
                    "takes too many looks at a schema that refers to itself",
                );
            }
            Some(Cost::Again(_)) | None => {}
        }
        match self.schemas.validate(&value, self.idx) {
            Ok(()) => Verdict::scored(1.0, "as the schema asks"),
            Err(error) => {
                let cause = innermost(&error);
                let place = cause.instance_location.to_string();
                let place = if place.is_empty() { "the whole".to_owned() } else { excerpt(&place) };
                let what = excerpt(&cause.kind.to_string());
                Verdict::scored(self.json_score, format!("{place}: {what}"))
            }
        }
    }
}

/// The first error that has no other as its cause.
fn innermost<'e, 's, 'v>(error: &'e ValidationError<'s, 'v>) -> &'e ValidationError<'s, 'v> {
    let mut error = error;
    while let Some(cause) = error.causes.first() {
        error = cause;
    }
    error
}

/// What the only fenced block of a text holds, or all of a text without one.
fn block(text: &str) -> Result<&str, String> {
    let fences: Vec<usize> = text.match_indices("```").map(|(at, _)| at).take(3).collect();
    match fences[..] {
        [] => Ok(text),
        [open, close] => {
            let block = &text[open + 3..close];
            // After the fence stands the language.
            let first_line_len = block.find('\n').unwrap_or(0);
            let language = block[..first_line_len].trim();
            let is_language = language.bytes().all(|b| b.is_ascii_alphanumeric());
            Ok(block[if is_language { first_line_len } else { 0 }..].trim())
        }
        [_] => Err("a fenced block that is not closed".to_owned()),
        _ => Err("more than one fenced block".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r##"{"type":"object","required":["name","age"],"additionalProperties":false,
        "properties":{"name":{"type":"string","pattern":"^[A-Z]"},"age":{"$ref":"#/$defs/age"}},
        "$defs":{"age":{"type":"integer","minimum":0}}}"##;

    fn verifier(settings: Settings) -> Result<Box<dyn Verifier>, String> {
        settings.resolve(&crate::NoBackends).map_err(|problems| problems[0].to_string())
    }

    fn with_schema(schema: Value) -> Settings {
        Settings { schema: Some(schema), json_score: 0.25, ..Settings::default() }
    }

    #[test]
    fn the_answer_must_be_as_the_schema_asks() {
        let table: Value = serde_json::from_str(SCHEMA).unwrap();
        let texts = [with_schema(Value::from(SCHEMA)), with_schema(table)];
        let good = r#"{"name":"Ada","age":36}"#;
        let cases = [
            (good.to_owned(), 1.0),
            (format!("<think>{{}}</think>\n{good}"), 1.0),
            (format!("<think>x</think> <answer>\n{good}\n</answer>"), 1.0),
            (format!("Here:\n```json\n{good}\n```\nDone."), 1.0),
            (format!("<answer>```{good}```</answer>"), 1.0),
            (format!("```\n{good}\n```\n```\n{good}\n```"), 0.0),
            (format!("```json\n{good}"), 0.0),
            (format!("{good} {good}"), 0.0),
            (format!("The answer: {good}"), 0.0),
            (format!("<think>{good}"), 0.0),
            (r#"{"name":"Ada"}"#.to_owned(), 0.25),
            (r#"{"name":"ada","age":36}"#.to_owned(), 0.25),
            (r#"{"name":"Ada","age":-1}"#.to_owned(), 0.25),
            (r#"{"name":"Ada","age":36,"x":1}"#.to_owned(), 0.25),
            ("[]".to_owned(), 0.25),
            ("{'name':'Ada','age':36}".to_owned(), 0.0),
            ("NaN".to_owned(), 0.0),
            ("[".repeat(100_000), 0.0),
        ];
        for settings in texts {
            let verifier = verifier(settings).ok().unwrap();
            for (completion, want) in &cases {
                let verdict = verifier.score(&Sample { completion, ..Sample::default() });
                assert_eq!(verdict.score, Some(*want), "{completion:.80} {}", verdict.reason);
            }
        }
    }

    #[test]
    fn a_schema_that_is_none_or_points_elsewhere_is_refused() {
        let refused = |schema: Value| verifier(with_schema(schema)).err().unwrap();
        assert_eq!(
            verifier(Settings::default()).err().unwrap(),
            "`schema` must be given, not absent"
        );
        assert!(refused(Value::from("{")).contains("text that is no JSON"));
        assert!(refused(Value::from(5)).ends_with("not `5`"));
        assert!(refused(serde_json::json!({"type": "strng"})).contains("one with an error"));
        for place in ["https://example.org/schema.json", "file:///etc/passwd", "other.json"] {
            let elsewhere = serde_json::json!({"$ref": place});
            assert!(refused(elsewhere).contains("one with an error"), "{place}");
        }
        let circle = serde_json::json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}});
        assert!(refused(circle).contains("without end"));
        let look_behind = serde_json::json!({"pattern": "(?<=a)b"});
        assert!(refused(look_behind).contains("one with an error"));
    }

    #[test]
    fn an_answer_that_is_nested_deep_costs_no_more_than_others() {
        let schema = serde_json::json!({
            "$ref": "#/$defs/expr",
            "$defs": {
                "expr": { "anyOf": [{ "$ref": "#/$defs/sum" }, { "$ref": "#/$defs/neg" }, { "type": "number" }] },
                "sum": { "properties": { "args": { "items": { "$ref": "#/$defs/expr" } }, "op": { "const": "+" } } },
                "neg": { "properties": { "args": { "items": { "$ref": "#/$defs/expr" } }, "op": { "const": "-" } } }
            }
        });
        let verifier = verifier(with_schema(schema)).ok().unwrap();
        let answer = |depth: usize| {
            format!("{}1{}", "{\"args\":[".repeat(depth), "],\"op\":\"-\"}".repeat(depth))
        };
        let score = |depth| {
            let completion = answer(depth);
            verifier.score(&Sample { completion: &completion, ..Sample::default() })
        };
        assert_eq!(score(6).score, Some(1.0));
        let deep = score(60);
        assert_eq!(deep.score, Some(0.0));
        assert!(deep.reason.contains("too many looks"), "{}", deep.reason);
    }

    #[test]
    fn a_large_answer_is_no_deep_one() {
        let list = serde_json::json!({"$ref": "#/$defs/list", "$defs": {"list": {"items": {"type": "integer"}}}});
        let verifier = verifier(with_schema(list)).ok().unwrap();
        let score =
            |completion: &str| verifier.score(&Sample { completion, ..Sample::default() }).score;
        let large = format!("[{}1]", "1,".repeat(400_000));
        assert_eq!(score(&large), Some(1.0));
        assert_eq!(score(&large.replace("1]", "true]")), Some(0.25));
    }
}
