//! What SQL can ask about a text. Each function takes text of any kind, columns or literals, and
//! gives null where an argument is null, but for those whose reference says otherwise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aha_reward::{Kind, NoBackends, Sample, Verifier, Written};
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, StringBuilder,
};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_array;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

use crate::curation;
use crate::error::HINT;

/// Counts the tokens of a text. The error is a message for people.
pub type Tokenizer = Arc<dyn Fn(&str) -> Result<usize, String> + Send + Sync>;

/// A function as a query calls it, and what its reference says. Its arguments are text of any kind.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// The names of its arguments.
    pub arguments: &'static [&'static str],
    /// The type of what it gives.
    pub output: DataType,
    /// What it gives.
    pub doc: &'static str,
}

const TOKEN_COUNT: Function = Function {
    name: "token_count",
    arguments: &["text"],
    output: DataType::Int64,
    doc: "Number of tokens of the text. In a pipeline they are those of the newest training stage's \
          model, in `aha query` those of a model that the run has made.",
};
const EXTRACT_BOXED: Function = Function {
    name: "extract_boxed",
    arguments: &["text"],
    output: DataType::Utf8,
    doc: "The content of the last balanced `\\boxed{…}` or `\\fbox{…}`; of nested ones, the outermost. \
          Null where there is none.",
};
const EXTRACT_TAG: Function = Function {
    name: "extract_tag",
    arguments: &["text", "tag"],
    output: DataType::Utf8,
    doc: "The text between `<tag>` and `</tag>` if each occurs exactly once and in this order, else null.",
};
const MATH_EQUAL: Function = Function {
    name: "math_equal",
    arguments: &["gold", "pred"],
    output: DataType::Boolean,
    doc: "Whether `pred` is the answer `gold`, both bare answers such as `\\frac{1}{2}` or `x = 5`: what \
          the reward `math` decides by.",
};
const LANGUAGE_SHARE: Function = Function {
    name: "language_share",
    arguments: &["text", "language"],
    output: DataType::Float64,
    doc: "The share of the text's words that are in the language, an ISO 639-1 code such as `en` or `zh`: what \
          the reward `language` counts. Code, formulas, tags and single letters are no words. Null where the \
          text has no words or the language is unknown.",
};
const WORD_COUNT: Function = Function {
    name: "word_count",
    arguments: &["text"],
    output: DataType::Int64,
    doc: "Number of words: runs of letters and digits, and each Chinese character, kana or Thai letter.",
};
const REPETITION_SHARE: Function = Function {
    name: "repetition_share",
    arguments: &["text", "n"],
    output: DataType::Float64,
    doc: "The share of the text's n-grams of `n` words that occur again: what the reward `repetition` counts. \
          Null where the text has fewer words, or `n` is not from 1 to 100.",
};
const HAS_FORMAT: Function = Function {
    name: "has_format",
    arguments: &["prompt", "completion"],
    output: DataType::Boolean,
    doc: "Whether the completion is `<think> … </think> <answer> … </answer>`, after a prompt that may end with \
          `<think>`: what the reward `format` decides by default.",
};
const NUMERIC_EQUAL: Function = Function {
    name: "numeric_equal",
    arguments: &["gold", "pred"],
    output: DataType::Boolean,
    doc: "Whether `pred` is the number `gold` but for rounding, both bare answers such as `1,200` or `1.2e3`: what \
          the reward `numeric` decides by default. Null where `gold` is no number.",
};
const CHOICE_LETTER: Function = Function {
    name: "choice_letter",
    arguments: &["text"],
    output: DataType::Utf8,
    doc: "The letter of the option that the text names as its final answer, as in `(C)`, `\\boxed{C}` or \
          `The answer is C.`. Null where it names none or several.",
};
const REFLECTION_COUNT: Function = Function {
    name: "reflection_count",
    arguments: &["text"],
    output: DataType::Int64,
    doc: "How often the text looks back at itself: \"wait\", \"let me check\", \"on second thought\" and \
          their like, as whole words.",
};

const GRADE: Function = Function {
    name: "grade",
    arguments: &["reward", "prompt", "completion", "gold"],
    output: DataType::Float64,
    doc: "The score that a reward gives: `'math'`, or a table of its keys as in a pipeline, \
          `'{ kind = \"code\", score = \"share\" }'`, with the same defaults: an answer has to be marked as one. \
          `gold` is the reference answer, or the tests as JSON for kinds that read tests. `prompt` and `gold` may \
          be null. Null where there is no score. Not for kinds that ask others (`judge`, `http`, `command`, \
          `model`) or count tokens (`length`, `overlong`). Scores of `code` aren't kept: a program that goes by \
          chance or the clock may get another one when it is asked again.",
};

/// Every function that queries have besides DataFusion's own.
pub fn reference() -> Vec<Function> {
    let texts = [
        TOKEN_COUNT,
        WORD_COUNT,
        EXTRACT_BOXED,
        EXTRACT_TAG,
        CHOICE_LETTER,
        MATH_EQUAL,
        NUMERIC_EQUAL,
        HAS_FORMAT,
        LANGUAGE_SHARE,
        REPETITION_SHARE,
        REFLECTION_COUNT,
        GRADE,
    ];
    texts.into_iter().chain(curation::functions::REFERENCE).collect()
}

/// The functions that need nothing but their arguments.
pub(crate) fn all() -> Vec<ScalarUDF> {
    let mut all = vec![
        function(EXTRACT_BOXED, |texts| {
            strings(texts[0].iter().map(|text| aha_reward::extract_boxed(text?)))
        }),
        function(EXTRACT_TAG, |texts| {
            strings(pairs(texts).map(|pair| {
                let (text, tag) = pair?;
                aha_reward::extract_tag(text, tag)
            }))
        }),
        function(MATH_EQUAL, |texts| {
            let equal = pairs(texts).map(|pair| pair.map(|(a, b)| aha_reward::math_equal(a, b)));
            Ok(Arc::new(BooleanArray::from_iter(equal)))
        }),
        function(LANGUAGE_SHARE, |texts| {
            let shares = pairs(texts).map(|pair| {
                let (text, language) = pair?;
                aha_reward::language_share(text, language)
            });
            Ok(Arc::new(Float64Array::from_iter(shares)))
        }),
        function(REPETITION_SHARE, |texts| {
            let shares = pairs(texts).map(|pair| {
                let (text, len_words) = pair?;
                aha_reward::repetition_share(text, len_words.trim().parse().ok()?)
            });
            Ok(Arc::new(Float64Array::from_iter(shares)))
        }),
        function(HAS_FORMAT, |texts| {
            let has = pairs(texts).map(|pair| pair.map(|(a, b)| aha_reward::has_format(a, b)));
            Ok(Arc::new(BooleanArray::from_iter(has)))
        }),
        function(NUMERIC_EQUAL, |texts| {
            let equal = pairs(texts).map(|pair| {
                let (gold, pred) = pair?;
                aha_reward::numeric_equal(gold, pred)
            });
            Ok(Arc::new(BooleanArray::from_iter(equal)))
        }),
        function(CHOICE_LETTER, |texts| {
            let letters = texts[0].iter().map(|text| aha_reward::choice_letter(text?));
            let letters = letters.map(|letter| letter.map(String::from));
            Ok(Arc::new(StringArray::from_iter(letters)))
        }),
        function(WORD_COUNT, |texts| Ok(counts(&texts[0], aha_reward::word_count))),
        function(REFLECTION_COUNT, |texts| Ok(counts(&texts[0], aha_reward::reflection_count))),
        grade(),
    ];
    all.extend(curation::functions::all());
    all
}

/// `token_count(text)`. Without a tokenizer, calling it is an error that says what to do.
pub(crate) fn token_count(tokenizer: Option<Tokenizer>) -> ScalarUDF {
    function(TOKEN_COUNT, move |texts| {
        let Some(tokenizer) = &tokenizer else {
            return Err(DataFusionError::Execution(format!(
                "token_count: no tokenizer is set{HINT}ask a run that has made a model, or put the \
                 query after a stage that has one; length(text) counts characters"
            )));
        };
        let counts = texts[0].iter().map(|text| {
            let Some(text) = text else { return Ok(None) };
            let count = tokenizer(text)
                .map_err(|why| DataFusionError::Execution(format!("token_count: {why}")))?;
            Ok(Some(count as i64))
        });
        let counts: Int64Array = counts.collect::<DataFusionResult<Vec<_>>>()?.into();
        Ok(Arc::new(counts))
    })
}

/// Most rewards whose verifiers are kept: a query has one or two.
const GRADERS_MAX: usize = 16;

/// `grade(reward, prompt, completion, gold)`. Rows that follow one another with the same reward are scored together.
fn grade() -> ScalarUDF {
    let known: Mutex<HashMap<String, Arc<dyn Verifier>>> = Mutex::default();
    function(GRADE, move |texts| {
        let [rewards, prompts, completions, golds] = texts else {
            return Err(DataFusionError::Internal("grade: four arguments".to_owned()));
        };
        let mut scores = Vec::with_capacity(rewards.len());
        while scores.len() < rewards.len() {
            let start = scores.len();
            let reward = text_at(rewards, start);
            let len =
                (start..rewards.len()).take_while(|row| text_at(rewards, *row) == reward).count();
            let Some(reward) = reward else {
                scores.resize(start + len, None);
                continue;
            };
            let verifier = grader(&known, reward)?;
            let reads_tests = verifier.kind().needs_tests();
            let graded = |row: &usize| completions.is_valid(*row);
            let samples: Vec<Sample<'_>> = (start..start + len)
                .filter(graded)
                .map(|row| Sample {
                    prompt: text_at(prompts, row).unwrap_or_default(),
                    completion: completions.value(row),
                    answer: text_at(golds, row).filter(|_| !reads_tests),
                    tests: text_at(golds, row).filter(|_| reads_tests),
                    ..Sample::default()
                })
                .collect();
            let mut verdicts = verifier.score_all(&samples).into_iter();
            scores.extend((start..start + len).map(|row| {
                let verdict = graded(&row).then(|| verdicts.next()).flatten()?;
                verdict.score.map(f64::from)
            }));
        }
        Ok(Arc::new(Float64Array::from(scores)))
    })
}

fn text_at(texts: &StringArray, row: usize) -> Option<&str> {
    texts.is_valid(row).then(|| texts.value(row))
}

/// The verifier of a reward, from those that are known if it is among them.
fn grader(
    known: &Mutex<HashMap<String, Arc<dyn Verifier>>>,
    reward: &str,
) -> DataFusionResult<Arc<dyn Verifier>> {
    // What is in there is whole at any time.
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(verifier) = known.get(reward) {
        return Ok(Arc::clone(verifier));
    }
    let wrong = |why: String| {
        let hint = "write the name of a kind, 'math', or keys as in a pipeline, '{ kind = \"numeric\", abs_tolerance = 1 }'";
        DataFusionError::Execution(format!("grade: {why}{HINT}{hint}"))
    };
    let spec = Written::parse(reward).map_err(wrong)?.spec;
    let kind = spec.kind();
    // A query starts nothing but programs in the sandbox, and reaches nobody.
    let asks_others = kind == Kind::Model || (kind.waits() && kind != Kind::Code);
    if asks_others || kind.needs_tokens() {
        let does = if asks_others { "asks others" } else { "counts tokens" };
        return Err(DataFusionError::Execution(format!(
            "grade: `{kind}` {does}, which a query doesn't{HINT}give the reward to a stage of kind `sample`, and \
             query its column"
        )));
    }
    let verifier: Arc<dyn Verifier> = match spec.resolve(&NoBackends) {
        Ok(verifier) => verifier.into(),
        Err(problems) => {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return Err(wrong(problems.join("; ")));
        }
    };
    if known.len() == GRADERS_MAX {
        known.clear();
    }
    known.insert(reward.to_owned(), Arc::clone(&verifier));
    Ok(verifier)
}

/// Makes a function. DataFusion casts arguments that aren't `Utf8` before it calls, so that
/// `LargeUtf8`, `Utf8View`, dictionaries and numbers come as text too.
pub(crate) fn function(
    about: Function,
    body: impl Fn(&[StringArray]) -> DataFusionResult<ArrayRef> + Send + Sync + 'static,
) -> ScalarUDF {
    let call = move |args: &[ColumnarValue]| {
        let is_scalar = args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let texts = arrays.iter().map(|array| Ok(as_string_array(array)?.clone()));
        let answer = body(&texts.collect::<DataFusionResult<Vec<_>>>()?)?;
        if is_scalar {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&answer, 0)?));
        }
        Ok(ColumnarValue::Array(answer))
    };
    // Each function is one of its arguments alone; a tokenizer is set before queries are planned.
    let arguments = vec![DataType::Utf8; about.arguments.len()];
    create_udf(about.name, arguments, about.output, Volatility::Immutable, Arc::new(call))
}

/// Rows of two columns; none where either is null.
pub(crate) fn pairs(texts: &[StringArray]) -> impl Iterator<Item = Option<(&str, &str)>> {
    texts[0].iter().zip(texts[1].iter()).map(|(a, b)| a.zip(b))
}

fn counts(texts: &StringArray, count: impl Fn(&str) -> usize) -> ArrayRef {
    let counts = texts.iter().map(|text| text.map(|text| count(text) as i64));
    Arc::new(Int64Array::from_iter(counts))
}

fn strings<'a>(values: impl Iterator<Item = Option<&'a str>>) -> DataFusionResult<ArrayRef> {
    let mut builder = StringBuilder::new();
    values.for_each(|value| builder.append_option(value));
    Ok(Arc::new(builder.finish()) as Arc<dyn Array>)
}
