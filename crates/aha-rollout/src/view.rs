//! Typed reading of a batch's columns. A view checks names, types and nulls once, when it is
//! made; after that, reading a row can't fail. [`SizesView`] and [`TextsView`] need few of a table's columns.

mod narrow;

use arrow::array::{
    Array, BooleanArray, Float32Array, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{Field, SchemaRef};

use crate::extend::{missing_column, refuse_nulls};
use crate::schema::{self, Progress};
use crate::{Error, Result, col};
pub use narrow::{MetricsView, SizesView, TextsView};

/// Prompts on their way to the sampler: rows of [`schema::prompts`].
pub struct PromptsView<'a> {
    batch: &'a RecordBatch,
    stage: &'a StringArray,
    step: &'a Int64Array,
    prompt_id: &'a StringArray,
    source: &'a StringArray,
    prompt: &'a StringArray,
    answer: &'a StringArray,
    tests: &'a StringArray,
    prompt_token_ids: Lists<'a, UInt32Array>,
}

impl<'a> PromptsView<'a> {
    /// A view of `batch`, which must have the columns of [`schema::prompts`].
    pub fn new(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns { batch, schema: schema::prompts(), table: "prompts" };
        Ok(Self {
            batch,
            stage: columns.get(col::STAGE)?,
            step: columns.counts(col::STEP)?,
            prompt_id: columns.get(col::PROMPT_ID)?,
            source: columns.get(col::SOURCE)?,
            prompt: columns.get(col::PROMPT)?,
            answer: columns.get(col::ANSWER)?,
            tests: columns.get(col::TESTS)?,
            prompt_token_ids: columns.lists(col::PROMPT_TOKEN_IDS)?,
        })
    }

    /// Number of rows.
    pub fn rows_count(&self) -> usize {
        self.batch.num_rows()
    }

    /// Stage that asks.
    pub fn stage(&self, row: usize) -> &'a str {
        self.stage.value(row)
    }

    /// Step that asks.
    pub fn step(&self, row: usize) -> u64 {
        self.step.value(row) as u64
    }

    /// Identity of the prompt.
    pub fn prompt_id(&self, row: usize) -> &'a str {
        self.prompt_id.value(row)
    }

    /// Where the problem is from.
    pub fn source(&self, row: usize) -> Option<&'a str> {
        optional(self.source, row)
    }

    /// The problem's text.
    pub fn prompt(&self, row: usize) -> &'a str {
        self.prompt.value(row)
    }

    /// Reference answer.
    pub fn answer(&self, row: usize) -> Option<&'a str> {
        optional(self.answer, row)
    }

    /// Tests as JSON.
    pub fn tests(&self, row: usize) -> Option<&'a str> {
        optional(self.tests, row)
    }

    /// Tokens that go in.
    pub fn prompt_token_ids(&self, row: usize) -> &'a [u32] {
        self.prompt_token_ids.get(row)
    }
}

/// Rollouts, from the sampler's rows to the learner's.
pub struct RolloutsView<'a> {
    batch: &'a RecordBatch,
    rollout_id: &'a StringArray,
    stage: &'a StringArray,
    step: &'a Int64Array,
    prompt_id: &'a StringArray,
    source: &'a StringArray,
    sample_idx: &'a Int64Array,
    policy_version: &'a Int64Array,
    prompt: &'a StringArray,
    completion: &'a StringArray,
    answer: &'a StringArray,
    tests: &'a StringArray,
    prompt_token_ids: Lists<'a, UInt32Array>,
    completion_token_ids: Lists<'a, UInt32Array>,
    completion_logprobs: Lists<'a, Float32Array>,
    completion_policy_versions: Lists<'a, Int64Array>,
    completion_len_tokens: &'a Int64Array,
    finish_reason: &'a StringArray,
    finished_at: &'a TimestampMicrosecondArray,
    scored: Option<ScoredColumns<'a>>,
    grouped: Option<GroupedColumns<'a>>,
    trained: Option<(&'a BooleanArray, &'a StringArray)>,
}

struct GroupedColumns<'a> {
    advantage: &'a Float64Array,
    advantages: Lists<'a, Float32Array>,
    values: Lists<'a, Float32Array>,
}

struct ScoredColumns<'a> {
    names: Vec<String>,
    parts: Vec<&'a Float64Array>,
    error: &'a StringArray,
    reward: &'a Float64Array,
}

impl<'a> RolloutsView<'a> {
    /// A view of `batch`, which must have come at least as far as `progress`. Columns of steps
    /// further right can't be read through it, whether they are there or not.
    pub fn new(batch: &'a RecordBatch, progress: Progress) -> Result<Self> {
        let names = schema::reward_names(&batch.schema());
        let schema = schema::rollouts_until(progress, &names)?;
        let columns = Columns { batch, schema, table: "rollouts" };
        let scored = if progress >= Progress::Scored {
            let parts =
                names.iter().map(|n| columns.get(&col::reward(n))).collect::<Result<_>>()?;
            let (error, reward) = (columns.get(col::REWARD_ERROR)?, columns.get(col::REWARD)?);
            Some(ScoredColumns { names, parts, error, reward })
        } else {
            None
        };
        let grouped = if progress >= Progress::Grouped {
            Some(GroupedColumns {
                advantage: columns.get(col::ADVANTAGE)?,
                advantages: columns.lists(col::COMPLETION_ADVANTAGES)?,
                values: columns.lists(col::COMPLETION_VALUES)?,
            })
        } else {
            None
        };
        let trained = if progress >= Progress::Trained {
            Some((columns.get(col::IS_TRAINED)?, columns.get(col::SKIP_REASON)?))
        } else {
            None
        };
        let view = Self {
            batch,
            rollout_id: columns.get(col::ROLLOUT_ID)?,
            stage: columns.get(col::STAGE)?,
            step: columns.counts(col::STEP)?,
            prompt_id: columns.get(col::PROMPT_ID)?,
            source: columns.get(col::SOURCE)?,
            sample_idx: columns.counts(col::SAMPLE_IDX)?,
            policy_version: columns.counts(col::POLICY_VERSION)?,
            prompt: columns.get(col::PROMPT)?,
            completion: columns.get(col::COMPLETION)?,
            answer: columns.get(col::ANSWER)?,
            tests: columns.get(col::TESTS)?,
            prompt_token_ids: columns.lists(col::PROMPT_TOKEN_IDS)?,
            completion_token_ids: columns.lists(col::COMPLETION_TOKEN_IDS)?,
            completion_logprobs: columns.lists(col::COMPLETION_LOGPROBS)?,
            completion_policy_versions: columns.lists(col::COMPLETION_POLICY_VERSIONS)?,
            completion_len_tokens: columns.counts(col::COMPLETION_LEN_TOKENS)?,
            finish_reason: columns.get(col::FINISH_REASON)?,
            finished_at: columns.get(col::FINISHED_AT)?,
            scored,
            grouped,
            trained,
        };
        view.check_lengths()?;
        Ok(view)
    }

    fn check_lengths(&self) -> Result<()> {
        for row in 0..self.rows_count() {
            let tokens = self.completion_token_ids(row).len();
            let logprobs = self.completion_logprobs(row).len();
            if tokens != logprobs {
                return Err(Error::input(
                    format!(
                        "rollout `{}` has {tokens} completion tokens and {logprobs} log-probs",
                        self.rollout_id(row)
                    ),
                    "read rollouts as a stage wrote them, without changing their lists",
                ));
            }
            let versions = &self.completion_policy_versions;
            let versions = versions.lists.is_valid(row).then(|| versions.range(row).len());
            let lists = self.grouped.as_ref().map(|grouped| {
                let len = |list: &Lists<'_, Float32Array>| list.maybe(row).map(<[f32]>::len);
                (len(&grouped.advantages), len(&grouped.values))
            });
            let (advantages, values) = lists.unwrap_or_default();
            for (name, found) in [
                (col::COMPLETION_POLICY_VERSIONS, versions),
                (col::COMPLETION_ADVANTAGES, advantages),
                (col::COMPLETION_VALUES, values),
            ] {
                if let Some(found) = found.filter(|&found| found != tokens) {
                    let id = self.rollout_id(row);
                    return Err(Error::input(
                        format!(
                            "rollout `{id}` has {tokens} completion tokens and {found} in `{name}`"
                        ),
                        "read rollouts as a stage wrote them, without changing their lists",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows_count(&self) -> usize {
        self.batch.num_rows()
    }

    /// Identity of the rollout.
    pub fn rollout_id(&self, row: usize) -> &'a str {
        self.rollout_id.value(row)
    }

    /// Stage that sampled it.
    pub fn stage(&self, row: usize) -> &'a str {
        self.stage.value(row)
    }

    /// Step it was sampled for.
    pub fn step(&self, row: usize) -> u64 {
        self.step.value(row) as u64
    }

    /// Identity of the prompt.
    pub fn prompt_id(&self, row: usize) -> &'a str {
        self.prompt_id.value(row)
    }

    /// Where the problem is from.
    pub fn source(&self, row: usize) -> Option<&'a str> {
        optional(self.source, row)
    }

    /// Which of its group it is.
    pub fn sample_idx(&self, row: usize) -> u32 {
        self.sample_idx.value(row) as u32
    }

    /// Optimizer steps that its weights had seen.
    pub fn policy_version(&self, row: usize) -> u64 {
        self.policy_version.value(row) as u64
    }

    /// The problem's text.
    pub fn prompt(&self, row: usize) -> &'a str {
        self.prompt.value(row)
    }

    /// What the model wrote.
    pub fn completion(&self, row: usize) -> &'a str {
        self.completion.value(row)
    }

    /// Reference answer.
    pub fn answer(&self, row: usize) -> Option<&'a str> {
        optional(self.answer, row)
    }

    /// Tests as JSON.
    pub fn tests(&self, row: usize) -> Option<&'a str> {
        optional(self.tests, row)
    }

    /// Tokens that went in.
    pub fn prompt_token_ids(&self, row: usize) -> &'a [u32] {
        self.prompt_token_ids.get(row)
    }

    /// Tokens that came out.
    pub fn completion_token_ids(&self, row: usize) -> &'a [u32] {
        self.completion_token_ids.get(row)
    }

    /// Their log-probs under the weights that sampled them; as many.
    pub fn completion_logprobs(&self, row: usize) -> &'a [f32] {
        self.completion_logprobs.get(row)
    }

    /// Optimizer steps that the weights which drew each of them had seen; as many, or none where that is
    /// [`RolloutsView::policy_version`] for all.
    pub fn completion_policy_versions(&self, row: usize) -> Option<impl Iterator<Item = u64> + 'a> {
        let versions = &self.completion_policy_versions;
        let list =
            versions.lists.is_valid(row).then(|| &versions.values.values()[versions.range(row)]);
        list.map(|list| list.iter().map(|&version| version as u64))
    }

    /// Its tokens' number, also where they themselves aren't known.
    pub fn completion_len_tokens(&self, row: usize) -> u64 {
        self.completion_len_tokens.value(row) as u64
    }

    /// Why it ended.
    pub fn finish_reason(&self, row: usize) -> &'a str {
        self.finish_reason.value(row)
    }

    /// When, in µs since 1970, UTC.
    pub fn finished_at_us(&self, row: usize) -> i64 {
        self.finished_at.value(row)
    }

    /// Names of the reward's parts, in the order of their columns. From [`Progress::Scored`] on.
    pub fn reward_names(&self) -> &[String] {
        &self.scored().names
    }

    /// Score of the `part`-th reward. From [`Progress::Scored`] on.
    pub fn reward_part(&self, part: usize, row: usize) -> Option<f64> {
        number(self.scored().parts[part], row)
    }

    /// Why a part is missing. From [`Progress::Scored`] on.
    pub fn reward_error(&self, row: usize) -> Option<&'a str> {
        optional(self.scored().error, row)
    }

    /// The whole reward. From [`Progress::Scored`] on.
    pub fn reward(&self, row: usize) -> Option<f64> {
        number(self.scored().reward, row)
    }

    /// Its advantage, or the mean of its tokens'. From [`Progress::Grouped`] on.
    pub fn advantage(&self, row: usize) -> Option<f64> {
        number(self.grouped().advantage, row)
    }

    /// Whether the learner used it. From [`Progress::Trained`] on.
    pub fn is_trained(&self, row: usize) -> bool {
        self.trained().0.value(row)
    }

    /// Why the learner left it out. From [`Progress::Trained`] on.
    pub fn skip_reason(&self, row: usize) -> Option<&'a str> {
        optional(self.trained().1, row)
    }

    /// Advantages of its tokens, where they have their own. From [`Progress::Grouped`] on.
    pub fn completion_advantages(&self, row: usize) -> Option<&'a [f32]> {
        self.grouped().advantages.maybe(row)
    }

    /// What a critic expected before its tokens, where one was asked. From [`Progress::Grouped`] on.
    pub fn completion_values(&self, row: usize) -> Option<&'a [f32]> {
        self.grouped().values.maybe(row)
    }

    fn grouped(&self) -> &GroupedColumns<'a> {
        self.grouped.as_ref().expect("the view is of grouped rows")
    }

    fn scored(&self) -> &ScoredColumns<'a> {
        self.scored.as_ref().expect("the view is of scored rows")
    }

    fn trained(&self) -> (&'a BooleanArray, &'a StringArray) {
        self.trained.expect("the view is of trained rows")
    }
}

/// A batch's columns, each checked against `schema` when it is asked for.
struct Columns<'a> {
    batch: &'a RecordBatch,
    schema: SchemaRef,
    table: &'static str,
}

impl<'a> Columns<'a> {
    fn field(&self, name: &str) -> &Field {
        self.schema.field_with_name(name).expect("views ask for columns of their own schema")
    }

    fn get<T: Array + 'static>(&self, name: &str) -> Result<&'a T> {
        let field = self.field(name);
        let column = self
            .batch
            .column_by_name(name)
            .ok_or_else(|| missing_column(self.table, field, &self.batch.schema()))?;
        if column.data_type() != field.data_type() {
            return Err(Error::input(
                format!(
                    "column `{name}` of `{}`: expected {}, found {}",
                    self.table,
                    field.data_type(),
                    column.data_type()
                ),
                format!("cast it to {} where the table is made", field.data_type()),
            ));
        }
        refuse_nulls(self.table, field, column)?;
        let typed = column.as_any().downcast_ref::<T>();
        Ok(typed.expect("the field's type is the one that the view asks for"))
    }

    /// A column of counts or indices: none is negative.
    fn counts(&self, name: &str) -> Result<&'a Int64Array> {
        let column: &Int64Array = self.get(name)?;
        match column.values().iter().position(|&value| value < 0) {
            None => Ok(column),
            Some(row) => Err(Error::input(
                format!(
                    "column `{name}` of `{}`: expected 0 or more, found {} in row {row}",
                    self.table,
                    column.value(row)
                ),
                "read rows as a stage wrote them",
            )),
        }
    }

    fn lists<T: Array + 'static>(&self, name: &str) -> Result<Lists<'a, T>> {
        let lists: &ListArray = self.get(name)?;
        let values = lists.values().as_any().downcast_ref::<T>();
        Ok(Lists { lists, values: values.expect("the field's item type is the view's") })
    }
}

struct Lists<'a, T> {
    lists: &'a ListArray,
    values: &'a T,
}

impl<T> Lists<'_, T> {
    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let offsets = self.lists.value_offsets();
        offsets[row] as usize..offsets[row + 1] as usize
    }
}

impl<'a> Lists<'a, UInt32Array> {
    fn get(&self, row: usize) -> &'a [u32] {
        &self.values.values()[self.range(row)]
    }
}

impl<'a> Lists<'a, Float32Array> {
    fn get(&self, row: usize) -> &'a [f32] {
        &self.values.values()[self.range(row)]
    }

    fn maybe(&self, row: usize) -> Option<&'a [f32]> {
        self.lists.is_valid(row).then(|| self.get(row))
    }
}

fn optional(column: &StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}

fn number(column: &Float64Array, row: usize) -> Option<f64> {
    column.is_valid(row).then(|| column.value(row))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::ArrayRef;

    use super::*;
    use crate::rows::{self, PromptRow};
    use crate::steps::{self, Outcome, Scores};

    fn trained() -> RecordBatch {
        let names = vec!["math".to_owned()];
        let score = |x| Scores { parts: vec![x], reward: x, error: None };
        let scores = [score(Some(1.0)), score(None), score(Some(0.0))];
        let batch = rows::tests::examples(3, 3);
        let batch = steps::add_scores(&batch, &names, &scores).unwrap();
        let batch = steps::add_advantages(&batch, &[Some(0.5), None, Some(-0.5)]).unwrap();
        let skipped = Outcome::Skipped("no_reward".into());
        steps::add_outcomes(&batch, &[Outcome::Trained, skipped, Outcome::Trained]).unwrap()
    }

    #[test]
    fn a_view_reads_what_was_built() {
        let batch = trained();
        let view = RolloutsView::new(&batch, Progress::Trained).unwrap();
        assert_eq!(view.rows_count(), 3);
        assert_eq!(view.rollout_id(2), "zero/3/p17/2");
        assert_eq!((view.stage(2), view.step(2), view.policy_version(2)), ("zero", 3, 2));
        assert!(view.completion_policy_versions(2).is_none());
        assert_eq!((view.prompt_id(2), view.sample_idx(2), view.source(2)), ("p17", 2, None));
        assert_eq!((view.prompt(0), view.completion(0)), ("1+1?", "<think>x</think>"));
        assert_eq!((view.answer(0), view.tests(0)), (Some("2"), None));
        assert_eq!(view.prompt_token_ids(1), [1, 2]);
        assert_eq!(view.completion_token_ids(0), [0_u32; 0]);
        assert_eq!(view.completion_token_ids(2), [2, 3]);
        assert_eq!(view.completion_logprobs(2), [-0.5, -1.5]);
        assert_eq!((view.finish_reason(0), view.finished_at_us(0)), ("stop", 1_000));
        assert_eq!(view.reward_names(), ["math"]);
        assert_eq!((view.reward_part(0, 0), view.reward(0)), (Some(1.0), Some(1.0)));
        assert_eq!((view.reward(1), view.reward_error(1)), (None, None));
        assert_eq!((view.advantage(0), view.advantage(1)), (Some(0.5), None));
        assert_eq!((view.is_trained(0), view.skip_reason(0)), (true, None));
        assert_eq!((view.is_trained(1), view.skip_reason(1)), (false, Some("no_reward")));
    }

    #[test]
    fn a_view_of_a_slice_reads_the_slice() {
        let batch = trained().slice(1, 2);
        let view = RolloutsView::new(&batch, Progress::Sampled).unwrap();
        assert_eq!(view.rollout_id(1), "zero/3/p17/2");
        assert_eq!(view.completion_token_ids(1), [2, 3]);
        assert_eq!(view.completion_logprobs(0), [-0.5]);
    }

    #[test]
    fn prompts_read_back() {
        let row = PromptRow {
            stage: "zero",
            step: 7,
            prompt_id: "p",
            source: Some("made"),
            prompt: "1+1?",
            answer: None,
            tests: Some("{}"),
            prompt_token_ids: &[5, 6, 7],
        };
        let batch = rows::prompts(&[row.clone(), row]);
        let view = PromptsView::new(&batch).unwrap();
        assert_eq!((view.rows_count(), view.stage(1), view.step(1)), (2, "zero", 7));
        assert_eq!((view.prompt_id(1), view.source(1)), ("p", Some("made")));
        assert_eq!((view.prompt(1), view.answer(1), view.tests(1)), ("1+1?", None, Some("{}")));
        assert_eq!(view.prompt_token_ids(1), [5, 6, 7]);
    }

    #[test]
    fn a_wrong_batch_is_named_by_column_expected_and_found() {
        let fails = |batch: &RecordBatch, progress| {
            let error = RolloutsView::new(batch, progress).err().expect("it is wrong");
            (error.to_string(), error.hint().unwrap_or_default().to_owned())
        };
        let sampled = rows::tests::examples(1, 2);
        let (message, hint) = fails(&sampled, Progress::Scored);
        assert_eq!(message, "`rollouts` has no column `reward_error` (Utf8)");
        assert!(hint.starts_with("it has: rollout_id, stage"), "{hint}");

        let with = |name: &str, column: ArrayRef| {
            let schema = sampled.schema();
            let columns = schema.fields().iter().zip(sampled.columns()).map(|(f, c)| {
                (f.name().clone(), if f.name() == name { column.clone() } else { c.clone() })
            });
            RecordBatch::try_from_iter(columns.collect::<Vec<_>>()).unwrap()
        };
        let (message, _) =
            fails(&with("step", Arc::new(StringArray::from(vec!["1", "2"]))), Progress::Sampled);
        assert_eq!(message, "column `step` of `rollouts`: expected Int64, found Utf8");
        let (message, _) =
            fails(&with("step", Arc::new(Int64Array::from(vec![1, -2]))), Progress::Sampled);
        assert_eq!(message, "column `step` of `rollouts`: expected 0 or more, found -2 in row 1");
        let shifted = sampled.column_by_name(col::COMPLETION_LOGPROBS).unwrap();
        let shifted = arrow::compute::concat(&[&shifted.slice(1, 1), &shifted.slice(0, 1)]);
        let (message, _) =
            fails(&with(col::COMPLETION_LOGPROBS, shifted.unwrap()), Progress::Sampled);
        assert_eq!(message, "rollout `zero/1/p17/0` has 0 completion tokens and 1 log-probs");
    }
}
