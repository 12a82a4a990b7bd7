//! Which columns a table has, and what each of them means.
//!
//! Numbers that are counted or indexed are `Int64`, although none is negative: people subtract
//! them in SQL, and unsigned columns wrap. Rewards and advantages are `Float64`, because they are
//! summed and compared; log-probs are `Float32`, the bits that the sampler computed.
//! Columns of the wall clock carry the metadata `wall_clock = true`: a run that was killed and
//! resumed equals an uninterrupted one in every other column (see [`crate::time`]).

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};

use crate::{Error, Result, col};

/// Metadata key of a column's documentation.
pub const DOC: &str = "doc";
/// Metadata key of columns that hold wall-clock time, or depend on it.
pub const WALL_CLOCK: &str = "wall_clock";

/// How far along the dataflow a rollout is. Each includes the columns of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Written by the sampler.
    Sampled,
    /// With its rewards.
    Scored,
    /// With its advantage over its group.
    Grouped,
    /// With what the learner did with it: the whole row of the table `rollouts`.
    Trained,
}

/// What crosses from the feeder to the sampler: one row per prompt of a step.
pub fn prompts() -> SchemaRef {
    schema(vec![
        text(col::STAGE, "stage that asks for completions"),
        whole(col::STEP, "step that asks for completions, from 1"),
        text(col::PROMPT_ID, "identity of the prompt in its data set"),
        maybe_text(
            col::SOURCE,
            "data set or topic the problem is from; null where the data names none",
        ),
        text(col::PROMPT, "problem as the data set states it, before any template"),
        maybe_text(col::ANSWER, "reference answer; null where there is none to compare with"),
        maybe_text(col::TESTS, "tests as a JSON object; null where tests don't decide"),
        list(col::PROMPT_TOKEN_IDS, DataType::UInt32, "tokens that go in, template applied"),
    ])
}

/// One row per completion, as the sampler hands it on.
pub fn sampled() -> SchemaRef {
    schema(sampled_fields())
}

/// [`sampled`] and the rewards: one column per part, the reason for a missing part, the sum.
pub fn scored(reward_names: &[String]) -> Result<SchemaRef> {
    rollouts_until(Progress::Scored, reward_names)
}

/// [`scored`] and the advantages.
pub fn grouped(reward_names: &[String]) -> Result<SchemaRef> {
    rollouts_until(Progress::Grouped, reward_names)
}

/// The whole row of the table `rollouts`: [`grouped`] and what the learner did with it.
pub fn rollouts(reward_names: &[String]) -> Result<SchemaRef> {
    rollouts_until(Progress::Trained, reward_names)
}

/// The columns of a rollout that has come as far as `progress`.
pub fn rollouts_until(progress: Progress, reward_names: &[String]) -> Result<SchemaRef> {
    check_reward_names(reward_names)?;
    let mut fields = sampled_fields();
    if progress >= Progress::Scored {
        fields.extend(scored_fields(reward_names));
    }
    if progress >= Progress::Grouped {
        fields.extend(advantage_fields());
    }
    if progress >= Progress::Trained {
        fields.extend(trained_fields());
    }
    Ok(schema(fields))
}

/// The names of the reward parts that `schema` has columns for, in order.
pub fn reward_names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().filter_map(|f| col::reward_name(f.name())).map(str::to_owned).collect()
}

/// Whether rows of `schema` are rollouts: it has every column that the sampler writes.
pub fn is_rollouts(schema: &Schema) -> bool {
    sampled_fields().iter().all(|field| schema.column_with_name(field.name()).is_some())
}

/// One row per step and metric.
pub fn metrics() -> SchemaRef {
    schema(vec![
        text(col::STAGE, "stage that measured it"),
        whole(col::STEP, "step that it was measured in, from 1"),
        text(col::NAME, "what was measured"),
        number(col::VALUE, "the measured value; NaN where the computation gave that"),
        wall_clock(col::AT, "when it was written; UTC"),
    ])
}

/// One row per evaluation of a model on a data set.
pub fn evals() -> SchemaRef {
    let mut fields = evals_figures();
    fields.extend(evals_details());
    schema(fields)
}

/// What every evaluation has had from the first.
fn evals_figures() -> Vec<Field> {
    vec![
        text(col::STAGE, "stage that evaluated; `eval` for the command of that name"),
        text(col::MODEL, "model that was evaluated"),
        text(col::DATASET, "data set it was evaluated on"),
        whole(
            col::PROBLEM_COUNT,
            "problems that have all k completions, each of which could be scored",
        ),
        whole(col::K, "samples per problem"),
        number(col::PASS_AT_1, "share of right samples, mean over problems"),
        maybe_number(
            col::PASS_AT_1_SE,
            "standard error of pass_at_1, by bootstrap over problems; null with fewer than two",
        ),
        number(col::PASS_AT_K, "share of problems with at least one right among k samples"),
        maybe_number(
            col::CONS_AT_K,
            "share of problems whose most frequent answer is right; null where answers can't be \
             compared with each other",
        ),
        maybe_number(
            col::CONS_AT_K_SE,
            "standard error of cons_at_k, by bootstrap over problems; null where cons_at_k is, and \
             with fewer than two problems",
        ),
        number(col::COMPLETION_LEN_TOKENS_MEAN, "mean number of tokens per completion"),
    ]
}

fn maybe_numbers(name: &str, text: &str) -> Field {
    doc(Field::new(name, list_of(DataType::Float64), true), text)
}

fn evals_details() -> Vec<Field> {
    let mut fields = vec![
        maybe_text(
            col::BENCHMARK,
            "benchmark whose layout, prompt and verifier were used; null where the stage names none",
        ),
        maybe_number(
            col::PASS_AT_K_SE,
            "standard error of pass_at_k, by bootstrap over problems; null with fewer than two",
        ),
        list(col::KS, DataType::Int64, "numbers of samples that the next four columns are for"),
        list(
            col::PASS_AT_KS,
            DataType::Float64,
            "per number of ks, the unbiased estimate of pass@ that number",
        ),
        maybe_numbers(
            col::PASS_AT_KS_SE,
            "standard errors of pass_at_ks; null with fewer than two problems",
        ),
        maybe_numbers(
            col::CONS_AT_KS,
            "per number of ks, cons@ that number, mean over the blocks of so many samples; null \
             where cons_at_k is",
        ),
        maybe_numbers(
            col::CONS_AT_KS_SE,
            "standard errors of cons_at_ks; null where cons_at_k_se is",
        ),
        whole(
            col::COMPLETION_LEN_TOKENS_MEDIAN,
            "fewest tokens that at least half of the completions don't exceed",
        ),
        whole(
            col::COMPLETION_LEN_TOKENS_P95,
            "fewest tokens that at least 95 % of the completions don't exceed",
        ),
        number(col::TRUNCATED_SHARE, "share of completions that were cut off at their limit"),
        maybe_number(
            col::ANSWERED_SHARE,
            "share of completions with an answer to compare; null where cons_at_k is",
        ),
        maybe_number(
            col::RATING,
            "Elo rating of the model against the problems' ratings, bounded as if at least half a \
             problem had been solved and half a problem missed; null where no problem has a rating",
        ),
        maybe_number(
            col::RATING_SE,
            "standard error of rating, a problem counted as one game; null where rating is",
        ),
        measured(
            col::TOKENS_PER_SECOND,
            "tokens drawn per second of sampling, by the process that ended the evaluation; null \
             where it drew none, and with a stopped clock",
        ),
        maybe_text(
            col::DTYPE,
            "what the model computed with: `f32` or `bf16`; null where an endpoint did",
        ),
        maybe_text(
            col::WEIGHTS,
            "what weights were multiplied as: `same` as the model computes with, or `int8`; null where an \
             endpoint's model was asked",
        ),
    ];
    fields.extend(evals_by_rank());
    fields
}

/// What a scorer that ranks completions leads to.
fn evals_by_rank() -> Vec<Field> {
    vec![
        maybe_text(
            col::RANK_BY,
            "scorer that ranked completions, by the name of its reward; null where the stage has none",
        ),
        maybe_number(
            col::BON_AT_K,
            "share of problems whose completion of the highest rank among k is right, ties drawn by lot; null \
             where rank_by is",
        ),
        maybe_number(
            col::BON_AT_K_SE,
            "standard error of bon_at_k, by bootstrap over problems; null where bon_at_k is, and with fewer \
             than two problems",
        ),
        maybe_numbers(
            col::BON_AT_KS,
            "per number of ks, the unbiased estimate of best-of-n for that number; null where bon_at_k is",
        ),
        maybe_numbers(col::BON_AT_KS_SE, "standard errors of bon_at_ks; null where bon_at_k_se is"),
        maybe_number(
            col::WEIGHTED_CONS_AT_K,
            "as cons_at_k, with votes that weigh what the scorer gives their completions; null where cons_at_k \
             or rank_by is",
        ),
        maybe_number(
            col::WEIGHTED_CONS_AT_K_SE,
            "standard error of weighted_cons_at_k, by bootstrap over problems; null where that is, and with \
             fewer than two problems",
        ),
        maybe_numbers(
            col::WEIGHTED_CONS_AT_KS,
            "as cons_at_ks, with weighted votes; null where weighted_cons_at_k is",
        ),
        maybe_numbers(
            col::WEIGHTED_CONS_AT_KS_SE,
            "standard errors of weighted_cons_at_ks; null where weighted_cons_at_k_se is",
        ),
    ]
}

/// What a supervised stage trains on: one row per example.
pub fn sft_examples() -> SchemaRef {
    schema(vec![
        text(col::STAGE, "stage that trains on it"),
        text(col::EXAMPLE_ID, "identity of the example in its table"),
        maybe_text(col::SOURCE, "data set or topic it is from; null where the data names none"),
        maybe_text(
            col::PROMPT,
            "problem as the data set states it; null for plain text and for conversations",
        ),
        text(
            col::COMPLETION,
            "text to learn; of a conversation the turns that the loss is over, an empty line between them",
        ),
        maybe_text(
            col::MESSAGES,
            "conversation as JSON, a list of messages with role and content; null for other examples",
        ),
        list(col::TOKEN_IDS, DataType::UInt32, "tokens of prompt and completion, template applied"),
        list(
            col::LOSS_MASK,
            DataType::Boolean,
            "per token of token_ids, whether predicting it counts in the loss",
        ),
        whole(col::EXAMPLE_LEN_TOKENS, "number of tokens in token_ids"),
    ])
}

/// What a reward model is trained and measured on: one row per pair of completions.
pub fn preferences() -> SchemaRef {
    let tokens = "tokens of prompt and completion, template applied, end token included";
    schema(vec![
        text(col::STAGE, "stage that trains on it"),
        text(col::EXAMPLE_ID, "identity of the pair in its table"),
        maybe_text(col::SOURCE, "data set or topic it is from; null where the data names none"),
        text(col::PROMPT, "problem as the data set states it, before any template"),
        text(col::CHOSEN, "completion that was preferred"),
        text(col::REJECTED, "completion that was not"),
        number(
            col::MARGIN,
            "by how much the chosen score, or implicit reward, ought to be ahead; 0 where the data has none",
        ),
        doc(
            Field::new(col::IS_HELD_OUT, DataType::Boolean, false),
            "whether it is measured on and not trained on",
        ),
        list(col::CHOSEN_TOKEN_IDS, DataType::UInt32, tokens),
        list(col::REJECTED_TOKEN_IDS, DataType::UInt32, tokens),
    ])
}

/// Prompts that kept failing, and examples whose batch gave no number: the run went on without.
pub fn set_aside() -> SchemaRef {
    schema(vec![
        text(col::STAGE, "stage that asked for completions, or trains on the example"),
        whole(col::STEP, "step that asked for completions, or trained on the example"),
        text(
            col::PROMPT_ID,
            "prompt that was set aside; of an `sft` stage, the example; of a `reward-model` or `dpo` stage, the pair",
        ),
        whole(col::FAILURES_COUNT, "how often it failed before it was set aside"),
        text(col::ERROR, "error of the last failure"),
        wall_clock(col::AT, "when it was set aside; UTC"),
    ])
}

/// The type of every point in time: microseconds, UTC.
pub fn timestamp_us_utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The type of token lists and the like: a list, none of whose items is null.
pub fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, false)))
}

/// Refuses names that can't be a column's, or that would name the same column.
pub fn check_reward_names(reward_names: &[String]) -> Result<()> {
    for (idx, name) in reward_names.iter().enumerate() {
        let is_word = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !is_word || col::reward_name(&col::reward(name)).is_none() {
            return Err(Error::input(
                format!("reward name `{name}`: expected lower-case letters, digits and `_`"),
                "name it like `math`; `error` is taken by the column `reward_error`",
            ));
        }
        if reward_names[..idx].contains(name) {
            return Err(Error::input(
                format!("reward name `{name}` is given twice"),
                "give each reward of a stage its own name",
            ));
        }
    }
    Ok(())
}

fn sampled_fields() -> Vec<Field> {
    vec![
        text(
            col::ROLLOUT_ID,
            "stage/round/prompt_id/sample_idx, the round being the step that its prompt was asked for; unique in a run",
        ),
        text(col::STAGE, "stage that sampled it"),
        whole(
            col::STEP,
            "step that took it, from 1; with `max_staleness` above 0 that may be another than the one that its \
             prompt was asked for",
        ),
        text(col::PROMPT_ID, "identity of the prompt in its data set"),
        maybe_text(
            col::SOURCE,
            "data set or topic the problem is from; null where the data names none",
        ),
        whole(col::SAMPLE_IDX, "which of its group it is, from 0"),
        whole(
            col::POLICY_VERSION,
            "optimizer steps that the weights that sampled it had seen, in its stage; of a completion whose \
             weights changed while it was sampled those that drew its first token",
        ),
        text(col::PROMPT, "problem as the data set states it, before any template"),
        text(col::COMPLETION, "text that the model wrote, without special tokens"),
        maybe_text(col::ANSWER, "reference answer; null where there is none to compare with"),
        maybe_text(col::TESTS, "tests as a JSON object; null where tests don't decide"),
        list(
            col::PROMPT_TOKEN_IDS,
            DataType::UInt32,
            "tokens that went in, template applied; empty where an endpoint gave none",
        ),
        list(
            col::COMPLETION_TOKEN_IDS,
            DataType::UInt32,
            "tokens that came out, stop token too; empty where an endpoint gave none",
        ),
        list(
            col::COMPLETION_LOGPROBS,
            DataType::Float32,
            "per token of completion_token_ids, its log-prob under the weights that sampled it; of an endpoint \
             as that gives it",
        ),
        doc(
            Field::new(col::COMPLETION_FORCED_MASK, list_of(DataType::Boolean), true),
            "per token of completion_token_ids, whether `thinking` of the stage put it there and it was not \
             drawn; null where the stage has none",
        ),
        doc(
            Field::new(col::COMPLETION_POLICY_VERSIONS, list_of(DataType::Int64), true),
            "per token of completion_token_ids, optimizer steps that the weights that drew it had seen; null with \
             `max_staleness = 0`, where that is policy_version for all",
        ),
        whole(
            col::COMPLETION_LEN_TOKENS,
            "number of tokens in completion_token_ids; where an endpoint gave none, what its `usage` says, or 0",
        ),
        text(
            col::FINISH_REASON,
            "why it ended: `stop` (stop token), `stop_string`, or `length` (cut at the limit); of an endpoint \
             also another word of its own",
        ),
        wall_clock(col::FINISHED_AT, "when its last token was drawn; UTC"),
    ]
}

fn scored_fields(reward_names: &[String]) -> Vec<Field> {
    let mut fields: Vec<Field> = reward_names
        .iter()
        .map(|name| {
            let doc = format!(
                "score of the part `{name}`; null where it could not be scored, and where it isn't for the source"
            );
            maybe_number(&col::reward(name), &doc)
        })
        .collect();
    fields.push(maybe_text(
        col::REWARD_ERROR,
        "why a part could not be scored; null where all were that had to be",
    ));
    fields.push(maybe_number(
        col::REWARD,
        "weighted sum of the parts; null where a part that it needs could not be scored",
    ));
    fields
}

fn advantage_fields() -> Vec<Field> {
    let maybe_list =
        |name: &str, text: &str| doc(Field::new(name, list_of(DataType::Float32), true), text);
    vec![
        maybe_number(
            col::ADVANTAGE,
            "what the learner multiplies its gradient by, the mean of completion_advantages where \
             tokens have their own; null where it has no reward, and where the stage doesn't train",
        ),
        maybe_list(
            col::COMPLETION_ADVANTAGES,
            "per token of completion_token_ids, what the learner multiplies its gradient by; null \
             where all have that of the completion, as without a critic",
        ),
        maybe_list(
            col::COMPLETION_VALUES,
            "per token of completion_token_ids, what the critic expected before it; null where none \
             was asked",
        ),
    ]
}

fn trained_fields() -> Vec<Field> {
    vec![
        doc(
            Field::new(col::IS_TRAINED, DataType::Boolean, false),
            "whether a gradient of the learner held it",
        ),
        maybe_text(
            col::SKIP_REASON,
            "why the learner left it out, such as `no_signal` or `stale`; null where it is trained on",
        ),
    ]
}

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

fn doc(field: Field, text: &str) -> Field {
    field.with_metadata(HashMap::from([(DOC.to_owned(), text.to_owned())]))
}

fn text(name: &str, text: &str) -> Field {
    doc(Field::new(name, DataType::Utf8, false), text)
}

fn maybe_text(name: &str, text: &str) -> Field {
    doc(Field::new(name, DataType::Utf8, true), text)
}

fn whole(name: &str, text: &str) -> Field {
    doc(Field::new(name, DataType::Int64, false), text)
}

fn number(name: &str, text: &str) -> Field {
    doc(Field::new(name, DataType::Float64, false), text)
}

fn maybe_number(name: &str, text: &str) -> Field {
    doc(Field::new(name, DataType::Float64, true), text)
}

fn list(name: &str, item: DataType, text: &str) -> Field {
    doc(Field::new(name, list_of(item), false), text)
}

fn wall_clock(name: &str, text: &str) -> Field {
    Field::new(name, timestamp_us_utc(), false).with_metadata(HashMap::from([
        (DOC.to_owned(), text.to_owned()),
        (WALL_CLOCK.to_owned(), "true".to_owned()),
    ]))
}

/// A number that depends on how fast the machine was.
fn measured(name: &str, text: &str) -> Field {
    let mut field = maybe_number(name, text);
    field.metadata_mut().insert(WALL_CLOCK.to_owned(), "true".to_owned());
    field
}

/// Whether a column holds wall-clock time, or depends on it.
pub fn is_wall_clock(field: &FieldRef) -> bool {
    field.metadata().get(WALL_CLOCK).is_some_and(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["math".to_owned(), "format".to_owned()]
    }

    fn every_schema() -> Vec<(&'static str, SchemaRef)> {
        vec![
            ("prompts", prompts()),
            ("sampled", sampled()),
            ("scored", scored(&names()).unwrap()),
            ("grouped", grouped(&names()).unwrap()),
            ("rollouts", rollouts(&names()).unwrap()),
            ("metrics", metrics()),
            ("evals", evals()),
            ("sft_examples", sft_examples()),
            ("preferences", preferences()),
            ("set_aside", set_aside()),
        ]
    }

    /// What is wrong with how `field` is declared.
    fn problems(field: &Field) -> Vec<&'static str> {
        let doc = field.metadata().get(DOC).map_or("", String::as_str);
        let name = field.name();
        let mut problems = Vec::new();
        if doc.len() < 5 {
            problems.push("has no doc");
        }
        if field.is_nullable() != doc.contains("null") {
            problems.push("is nullable, or says null, without the other");
        }
        if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            problems.push("isn't snake_case");
        }
        if (name == "at" || name.ends_with("_at")) != (*field.data_type() == timestamp_us_utc()) {
            problems.push("ends in `_at` without being a time, or the other way round");
        }
        if name.starts_with("is_") != (*field.data_type() == DataType::Boolean) {
            problems.push("starts with `is_` without being a boolean, or the other way round");
        }
        problems
    }

    #[test]
    fn every_column_is_documented_and_named_by_the_rules() {
        for (table, schema) in every_schema() {
            for field in schema.fields() {
                assert_eq!(problems(field), Vec::<&str>::new(), "{table}.{}", field.name());
            }
        }
    }

    #[test]
    fn an_undocumented_column_is_found() {
        assert!(problems(&Field::new("x", DataType::Int64, false)).contains(&"has no doc"));
        let undocumented_null = doc(Field::new("x", DataType::Int64, true), "a number");
        assert_eq!(problems(&undocumented_null).len(), 1);
    }

    #[test]
    fn one_name_has_one_type_in_every_table() {
        let mut seen: HashMap<String, DataType> = HashMap::new();
        for (table, schema) in every_schema() {
            for field in schema.fields() {
                let before =
                    seen.entry(field.name().clone()).or_insert(field.data_type().clone()).clone();
                assert_eq!(&before, field.data_type(), "{table}.{}", field.name());
            }
        }
    }

    #[test]
    fn each_step_right_only_adds_columns() {
        let all = every_schema();
        for pair in all[1..5].windows(2) {
            let (left, right) = (&pair[0].1, &pair[1].1);
            assert!(left.fields().len() < right.fields().len());
            for (l, r) in left.fields().iter().zip(right.fields()) {
                assert_eq!(l, r);
            }
        }
    }

    #[test]
    fn fixed_columns_are_all_there() {
        let fixed = "rollout_id, stage, step, prompt_id, source, sample_idx, policy_version, \
                     prompt, completion, answer, prompt_token_ids, completion_token_ids, \
                     completion_logprobs, completion_len_tokens, finish_reason, reward, \
                     reward_math, reward_error, advantage, is_trained, skip_reason, finished_at";
        let schema = rollouts(&names()).unwrap();
        for name in fixed.split(", ") {
            assert!(schema.column_with_name(name).is_some(), "{name}");
        }
        let fixed = "stage, model, dataset, problem_count, k, pass_at_1, pass_at_1_se, pass_at_k, \
                     cons_at_k, cons_at_k_se, completion_len_tokens_mean";
        let found: Vec<String> = evals().fields().iter().map(|f| f.name().clone()).collect();
        assert!(found.join(", ").starts_with(&format!("{fixed}, ")), "{found:?}");
        let found: Vec<String> = metrics().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(found.join(", "), "stage, step, name, value, at");
    }

    #[test]
    fn reward_names_round_trip_and_bad_ones_are_refused() {
        assert_eq!(reward_names(&rollouts(&names()).unwrap()), names());
        for bad in ["", "error", "Math", "a b", "1x", "a-b"] {
            assert!(rollouts(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(rollouts(&["math".to_owned(), "math".to_owned()]).is_err());
        assert!(is_rollouts(&sampled()) && !is_rollouts(&prompts()));
    }
}
