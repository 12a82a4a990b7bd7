//! Views of tables of which only some columns are read: whoever looks through a whole run needs few of them.

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};

use super::{Columns, number, optional};
use crate::schema::{self, Progress};
use crate::{Result, col};

/// How large completions are: rows with [`SizesView::COLUMNS`].
pub struct SizesView<'a> {
    batch: &'a RecordBatch,
    step: &'a Int64Array,
    prompt_id: &'a StringArray,
    completion_len_tokens: &'a Int64Array,
    finished_at: &'a TimestampMicrosecondArray,
}

impl<'a> SizesView<'a> {
    /// The columns that it needs.
    pub const COLUMNS: [&'static str; 4] =
        [col::STEP, col::PROMPT_ID, col::COMPLETION_LEN_TOKENS, col::FINISHED_AT];

    /// A view of `batch`, which must have its columns.
    pub fn new(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns { batch, schema: schema::sampled(), table: "rollouts" };
        Ok(Self {
            batch,
            step: columns.counts(col::STEP)?,
            prompt_id: columns.get(col::PROMPT_ID)?,
            completion_len_tokens: columns.counts(col::COMPLETION_LEN_TOKENS)?,
            finished_at: columns.get(col::FINISHED_AT)?,
        })
    }

    /// Number of rows.
    pub fn rows_count(&self) -> usize {
        self.batch.num_rows()
    }

    /// Step that it was sampled for.
    pub fn step(&self, row: usize) -> u64 {
        self.step.value(row) as u64
    }

    /// Identity of the prompt.
    pub fn prompt_id(&self, row: usize) -> &'a str {
        self.prompt_id.value(row)
    }

    /// Number of its tokens.
    pub fn completion_len_tokens(&self, row: usize) -> u64 {
        self.completion_len_tokens.value(row) as u64
    }

    /// When its last token was drawn, in µs since 1970, UTC.
    pub fn finished_at_us(&self, row: usize) -> i64 {
        self.finished_at.value(row)
    }
}

/// What completions say and how parts of the reward scored them: rows with [`TextsView::columns`].
pub struct TextsView<'a> {
    source: &'a StringArray,
    sample_idx: &'a Int64Array,
    completion: &'a StringArray,
    parts: Vec<&'a Float64Array>,
}

impl<'a> TextsView<'a> {
    /// The columns that it needs to read these parts of the reward.
    pub fn columns(reward_names: &[String]) -> Vec<String> {
        let own = [col::SOURCE, col::SAMPLE_IDX, col::COMPLETION].map(str::to_owned);
        own.into_iter().chain(reward_names.iter().map(|name| col::reward(name))).collect()
    }

    /// A view of `batch`, which must have its columns.
    pub fn new(batch: &'a RecordBatch, reward_names: &[String]) -> Result<Self> {
        let schema = schema::rollouts_until(Progress::Scored, reward_names)?;
        let columns = Columns { batch, schema, table: "rollouts" };
        let parts = reward_names.iter().map(|name| columns.get(&col::reward(name)));
        Ok(Self {
            source: columns.get(col::SOURCE)?,
            sample_idx: columns.counts(col::SAMPLE_IDX)?,
            completion: columns.get(col::COMPLETION)?,
            parts: parts.collect::<Result<_>>()?,
        })
    }

    /// Where the problem is from.
    pub fn source(&self, row: usize) -> Option<&'a str> {
        optional(self.source, row)
    }

    /// Which of its group it is.
    pub fn sample_idx(&self, row: usize) -> u64 {
        self.sample_idx.value(row) as u64
    }

    /// What the model wrote.
    pub fn completion(&self, row: usize) -> &'a str {
        self.completion.value(row)
    }

    /// The score of the `part`th of the names that the view was made with.
    pub fn reward_part(&self, part: usize, row: usize) -> Option<f64> {
        number(self.parts[part], row)
    }
}

/// Measures by step: rows of [`schema::metrics`].
pub struct MetricsView<'a> {
    batch: &'a RecordBatch,
    stage: &'a StringArray,
    step: &'a Int64Array,
    name: &'a StringArray,
    value: &'a Float64Array,
    at: &'a TimestampMicrosecondArray,
}

impl<'a> MetricsView<'a> {
    /// A view of `batch`, which must have the columns of [`schema::metrics`].
    pub fn new(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns { batch, schema: schema::metrics(), table: "metrics" };
        Ok(Self {
            batch,
            stage: columns.get(col::STAGE)?,
            step: columns.counts(col::STEP)?,
            name: columns.get(col::NAME)?,
            value: columns.get(col::VALUE)?,
            at: columns.get(col::AT)?,
        })
    }

    /// Number of rows.
    pub fn rows_count(&self) -> usize {
        self.batch.num_rows()
    }

    /// Stage that measured it.
    pub fn stage(&self, row: usize) -> &'a str {
        self.stage.value(row)
    }

    /// Step that it was measured in.
    pub fn step(&self, row: usize) -> u64 {
        self.step.value(row) as u64
    }

    /// What was measured.
    pub fn name(&self, row: usize) -> &'a str {
        self.name.value(row)
    }

    /// The measured value.
    pub fn value(&self, row: usize) -> f64 {
        self.value.value(row)
    }

    /// When it was written, in µs since 1970, UTC.
    pub fn at_us(&self, row: usize) -> i64 {
        self.at.value(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::PartWriter;
    use crate::rows::{self, MetricRow};
    use crate::steps::{self, Scores};
    use crate::{read, table};

    #[test]
    fn a_part_is_read_by_some_of_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(table::part_name(3));
        let names = vec!["math".to_owned(), "format".to_owned()];
        let score = |x| Scores { parts: vec![x, Some(0.5)], reward: x, error: None };
        let scores = [score(Some(1.0)), score(None), score(Some(0.0))];
        let batch = steps::add_scores(&rows::tests::examples(3, 3), &names, &scores).unwrap();
        let mut writer = PartWriter::create(&path, batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();

        let parts = &names[1..];
        let mut columns: Vec<String> = TextsView::columns(parts);
        columns.extend(SizesView::COLUMNS.map(str::to_owned));
        let columns: Vec<&str> = columns.iter().map(String::as_str).chain(["no_such"]).collect();
        let read = read::read_columns(&path, &columns).unwrap();
        assert_eq!((read.len(), read[0].num_columns()), (1, columns.len() - 1));
        let (sizes, texts) =
            (SizesView::new(&read[0]).unwrap(), TextsView::new(&read[0], parts).unwrap());
        assert_eq!((sizes.rows_count(), sizes.step(2), sizes.prompt_id(2)), (3, 3, "p17"));
        assert_eq!((sizes.completion_len_tokens(2), sizes.finished_at_us(0)), (2, 1_000));
        assert_eq!((texts.source(2), texts.sample_idx(2)), (None, 2));
        assert_eq!((texts.completion(0), texts.reward_part(0, 1)), ("<think>x</think>", Some(0.5)));
        let error = TextsView::new(&read[0], &names).err().expect("a column is not read");
        assert!(error.to_string().contains("`reward_math`"), "{error}");
    }

    #[test]
    fn measures_read_back() {
        let row = MetricRow { stage: "zero", step: 7, name: "kl", value: 0.5, at_us: 9 };
        let batch = rows::metrics(&[row]);
        let view = MetricsView::new(&batch).unwrap();
        assert_eq!((view.rows_count(), view.stage(0), view.step(0)), (1, "zero", 7));
        assert_eq!((view.name(0), view.value(0), view.at_us(0)), ("kl", 0.5, 9));
    }
}
