//! Rows with duplicates and contamination that are known, to measure how much of it curation finds.
//!
//! Texts are made-up words, drawn as words of a language are: the first of the vocabulary is the most frequent. A row
//! is a function of its number, so that a table of any size is written without being in memory.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

const VOCABULARY_COUNT: f64 = 20_000.0;
/// Words of a row.
const LEN_WORDS: (u64, u64) = (40, 81);
/// Words of an n-gram that contaminates.
const NGRAM_WORDS: u64 = 13;
const BATCH_ROWS: u64 = 8192;
const ROW_GROUP_ROWS: usize = 65_536;

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A text of its own.
    Original,
    /// The words of an original, perhaps with other capitals and punctuation.
    Exact,
    /// An original of which one or two words were changed.
    Near,
    /// A text of its own with 13 or more words in a row of an evaluation text, or a short one as a whole.
    Overlap,
    /// A text of its own with 12 words in a row of an evaluation text.
    Miss,
    /// A text that shares its first half with an original.
    Half,
}

impl Kind {
    fn of(row: u64) -> Kind {
        match Draw::new(row, "kind").below(100) {
            _ if row < 16 => Kind::Original,
            0..5 => Kind::Exact,
            5..10 => Kind::Near,
            10..12 => Kind::Overlap,
            12..13 => Kind::Miss,
            13..15 => Kind::Half,
            _ => Kind::Original,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Original => "original",
            Kind::Exact => "exact",
            Kind::Near => "near",
            Kind::Overlap => "overlap",
            Kind::Miss => "miss",
            Kind::Half => "half",
        }
    }
}

/// Draws for one purpose of one row: SplitMix64.
struct Draw(u64);

impl Draw {
    fn new(row: u64, purpose: &str) -> Draw {
        let join = |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte));
        let purpose = purpose.bytes().fold(0, join);
        let mut draw = Draw(row.wrapping_mul(0xd134_2543_de82_ef95) ^ purpose);
        draw.next();
        draw
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A word, the more seldom the later it is in the vocabulary.
    fn word(&mut self) -> String {
        let share = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        let (mut rest, mut word) = (VOCABULARY_COUNT.powf(share) as usize, String::new());
        while rest > 0 {
            let syllables =
                ["ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "ze"];
            word.push_str(syllables[rest % syllables.len()]);
            rest /= syllables.len();
        }
        word
    }

    fn words(&mut self, len: u64) -> Vec<String> {
        (0..len).map(|_| self.word()).collect()
    }
}

/// The table of a given size and the evaluation set that it is contaminated with.
pub struct Planted {
    rows_count: u64,
    evaluation_count: u64,
}

impl Planted {
    /// So many rows, and an evaluation text for every hundred, at most 5,000.
    pub fn new(rows_count: u64) -> Planted {
        Planted { rows_count, evaluation_count: (rows_count / 100).clamp(20, 5_000) }
    }

    /// Batches of `id`, `source`, `prompt`, what the row is and of which row or evaluation text that was made.
    pub fn pool(&self) -> impl Iterator<Item = Result<RecordBatch>> + '_ {
        let starts = (0..self.rows_count).step_by(BATCH_ROWS as usize);
        starts.map(|start| {
            let rows = start..self.rows_count.min(start + BATCH_ROWS);
            let made: Vec<(Kind, String, Option<String>)> =
                rows.clone().map(|row| self.row(row)).collect();
            let sources = rows.clone().map(|row| ["math", "code", "general"][row as usize % 3]);
            let columns: [(&str, ArrayRef); 5] = [
                ("id", Arc::new(StringArray::from_iter_values(rows.map(row_id)))),
                ("source", Arc::new(StringArray::from_iter_values(sources))),
                (
                    "prompt",
                    Arc::new(StringArray::from_iter_values(made.iter().map(|(_, text, _)| text))),
                ),
                (
                    "planted",
                    Arc::new(StringArray::from_iter_values(
                        made.iter().map(|(kind, ..)| kind.name()),
                    )),
                ),
                (
                    "planted_of",
                    Arc::new(StringArray::from_iter(made.iter().map(|(.., of)| of.as_ref()))),
                ),
            ];
            let columns = columns.map(|(name, column)| (name, column, name == "planted_of"));
            Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
        })
    }

    /// The evaluation set: `id` and `prompt`.
    pub fn evaluation(&self) -> Result<RecordBatch> {
        let rows = 0..self.evaluation_count;
        let prompts = rows
            .clone()
            .map(|row| spelled(&evaluation(row), &mut Draw::new(row, "evaluation spelling")));
        let columns: [(&str, ArrayRef); 2] = [
            ("id", Arc::new(StringArray::from_iter_values(rows.map(evaluation_id)))),
            ("prompt", Arc::new(StringArray::from_iter_values(prompts))),
        ];
        Ok(RecordBatch::try_from_iter(columns)?)
    }

    fn row(&self, row: u64) -> (Kind, String, Option<String>) {
        let kind = Kind::of(row);
        let mut draw = Draw::new(row, "row");
        let (words, of) = match kind {
            Kind::Original => (original(row), None),
            Kind::Exact | Kind::Near | Kind::Half => {
                let of = earlier_original(row, &mut draw);
                let mut words = original(of);
                match kind {
                    Kind::Near => change(&mut words, &mut draw),
                    Kind::Half => {
                        words.truncate(words.len() / 2);
                        let len = words.len() as u64;
                        words.extend(draw.words(len));
                    }
                    _ => {}
                }
                (words, Some(row_id(of)))
            }
            Kind::Overlap | Kind::Miss => {
                // Short ones are for overlaps, which have them as a whole.
                let of = match draw.below(self.evaluation_count) {
                    of if kind == Kind::Miss && is_short(of) => of + 1,
                    of => of,
                };
                let source = evaluation(of);
                let words =
                    if is_short(of) { source } else { with_part(&source, kind, row, &mut draw) };
                (words, Some(evaluation_id(of)))
            }
        };
        // An exact duplicate in half the cases has the very bytes.
        let text = match (kind, &of) {
            (Kind::Exact, Some(_)) if draw.below(2) == 0 => {
                let of = earlier_original(row, &mut Draw::new(row, "row"));
                spelled(&words, &mut Draw::new(of, "spelling"))
            }
            _ => spelled(&words, &mut Draw::new(row, "spelling")),
        };
        (kind, text, of)
    }
}

fn row_id(row: u64) -> String {
    format!("p{row:08}")
}

fn evaluation_id(row: u64) -> String {
    format!("e{row:05}")
}

fn original(row: u64) -> Vec<String> {
    let mut draw = Draw::new(row, "words");
    let len = LEN_WORDS.0 + draw.below(LEN_WORDS.1 - LEN_WORDS.0);
    draw.words(len)
}

fn earlier_original(row: u64, draw: &mut Draw) -> u64 {
    loop {
        let of = draw.below(row);
        if Kind::of(of) == Kind::Original {
            return of;
        }
    }
}

fn is_short(evaluation: u64) -> bool {
    evaluation.is_multiple_of(10)
}

fn evaluation(row: u64) -> Vec<String> {
    let mut draw = Draw::new(row, "evaluation");
    let len = if is_short(row) { 7 + draw.below(5) } else { 20 + draw.below(40) };
    draw.words(len)
}

/// Replaces, leaves out or puts in one or two words.
fn change(words: &mut Vec<String>, draw: &mut Draw) {
    for _ in 0..1 + draw.below(2) {
        let at = draw.below(words.len() as u64) as usize;
        match draw.below(3) {
            0 => words[at] = draw.word() + "x",
            1 => drop(words.remove(at)),
            _ => words.insert(at, draw.word() + "x"),
        }
    }
}

/// A text of its own with a part of an evaluation text in its midst.
fn with_part(source: &[String], kind: Kind, row: u64, draw: &mut Draw) -> Vec<String> {
    let len = match kind {
        Kind::Miss => NGRAM_WORDS - 1,
        _ => NGRAM_WORDS + draw.below(source.len() as u64 - NGRAM_WORDS + 1),
    };
    let start = draw.below(source.len() as u64 - len + 1) as usize;
    let part = &source[start..start + len as usize];
    let mut words = original(row);
    let at = draw.below(words.len() as u64 + 1) as usize;
    // Words of no evaluation text on both sides, so that chance doesn't make the part longer.
    let fence = || "fence".to_owned();
    let part = [fence()].into_iter().chain(part.iter().cloned()).chain([fence()]);
    words.splice(at..at, part);
    words
}

/// The words as a text, with capitals and punctuation by chance.
fn spelled(words: &[String], draw: &mut Draw) -> String {
    let mut text = String::new();
    let mut begins = true;
    for (idx, word) in words.iter().enumerate() {
        if idx > 0 {
            text.push(' ');
        }
        let (first, rest) = word.split_at(1);
        text.push_str(&if begins { first.to_uppercase() } else { first.to_owned() });
        text.push_str(rest);
        begins = false;
        match draw.below(12) {
            0 => text.push(','),
            1 => {
                text.push('.');
                begins = true;
            }
            _ => {}
        }
    }
    text
}

/// Writes `pool.parquet` and `evaluation.parquet` into `folder`.
pub fn write(rows_count: u64, folder: &Path) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let planted = Planted::new(rows_count);
    let evaluation = [planted.evaluation()].into_iter();
    write_file(&folder.join("evaluation.parquet"), evaluation)?;
    write_file(&folder.join("pool.parquet"), planted.pool())
}

fn write_file(path: &Path, batches: impl Iterator<Item = Result<RecordBatch>>) -> Result<()> {
    let mut batches = batches.peekable();
    let Some(Ok(first)) = batches.peek() else { anyhow::bail!("a table has at least one row") };
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let file = fs_err::File::create(path)?;
    let mut writer = ArrowWriter::try_new(file, first.schema(), Some(properties))?;
    for batch in batches {
        writer.write(&batch?)?;
    }
    writer.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use aha_data::{Format, Session, SessionOptions, write_result};
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int64Type, SchemaRef};

    use super::*;
    use crate::docs::datasets;

    const ROWS_COUNT: u64 = 6_000;

    fn session(options: &SessionOptions) -> Session {
        let planted = Planted::new(ROWS_COUNT);
        let session = Session::new(options).unwrap();
        let pool: Vec<RecordBatch> = planted.pool().collect::<Result<_>>().unwrap();
        session.register_batches("pool", pool[0].schema(), pool).unwrap();
        let evaluation = planted.evaluation().unwrap();
        session.register_batches("evaluation", evaluation.schema(), vec![evaluation]).unwrap();
        session
    }

    /// How many rows of each kind there are, and how many of them a recipe keeps.
    async fn kept(recipe: &str) -> Vec<(String, i64, i64)> {
        let recipe = fs_err::read_to_string(datasets().join(format!("{recipe}.sql"))).unwrap();
        let sql = format!(
            "WITH kept AS ({recipe}), \
             joined AS (SELECT pool.planted, kept.id FROM pool LEFT JOIN kept ON kept.id = pool.id) \
             SELECT planted, count(*) AS n, count(id) AS k FROM joined GROUP BY planted ORDER BY planted"
        );
        let batches = session(&SessionOptions::default()).collect(&sql).await.unwrap();
        let rows = batches.iter().flat_map(|batch| {
            let counts = [1, 2].map(|idx| batch.column(idx).as_primitive::<Int64Type>().clone());
            let kinds = batch.column(0).as_string::<i32>().clone();
            (0..batch.num_rows()).map(move |row| {
                (kinds.value(row).to_owned(), counts[0].value(row), counts[1].value(row))
            })
        });
        rows.collect()
    }

    /// Fails unless of the kinds in `gone` at least the share is gone, and of all others at most one in a hundred.
    fn assert_gone(recipe: &str, kept: &[(String, i64, i64)], gone: &[(&str, f64)]) {
        assert_eq!(kept.len(), 6, "{kept:?}");
        for (kind, count, kept_count) in kept {
            assert!(*count > 30, "{kind}: {count}");
            let gone_share = 1.0 - *kept_count as f64 / *count as f64;
            match gone.iter().find(|(known, _)| known == kind) {
                Some((_, least)) => assert!(gone_share >= *least, "{recipe}: {kind}: {gone_share}"),
                None => assert!(gone_share <= 0.01, "{recipe}: {kind}: {gone_share}"),
            }
        }
    }

    /// Short evaluation texts are planted as a whole, so those of one are duplicates of one another: overlaps are
    /// left out where duplicates are counted.
    fn without_overlaps(kept: Vec<(String, i64, i64)>) -> Vec<(String, i64, i64)> {
        let whole = |(kind, count, kept): (String, i64, i64)| match &*kind {
            "overlap" => (kind, count, count),
            _ => (kind, count, kept),
        };
        kept.into_iter().map(whole).collect()
    }

    #[tokio::test]
    async fn recipes_find_what_was_planted_and_little_else() {
        let exact = without_overlaps(kept("exact-duplicates").await);
        assert_gone("exact", &exact, &[("exact", 1.0)]);
        let near = without_overlaps(kept("near-duplicates").await);
        assert_gone("near", &near, &[("exact", 1.0), ("near", 0.95)]);
        let clean = kept("decontaminate").await;
        assert_gone("clean", &clean, &[("overlap", 1.0)]);
    }

    /// Goal: what is marked depends on the rows alone. Method: one part and four, rows backwards, and as little memory
    /// as sorts need; both calls, one around the other.
    #[tokio::test]
    async fn marks_depend_on_the_rows_alone() {
        let marks = |order: &str| {
            format!(
                "SELECT id, duplicate_of, similarity, contaminated_by, shared_ngram FROM mark_contaminated(( \
                     SELECT * FROM mark_duplicates((SELECT * FROM {order}), id, prompt, 0.7) \
                 ), prompt, (SELECT * FROM evaluation), n => 13) ORDER BY id"
            )
        };
        let backwards = "(SELECT * FROM pool ORDER BY id DESC LIMIT 1000000)";
        let small =
            SessionOptions { memory_limit_bytes: Some(32 << 20), ..SessionOptions::default() };
        let wide = SessionOptions { partitions: 4, ..SessionOptions::default() };
        let one = session(&SessionOptions::default()).query(&marks("pool")).await.unwrap();
        let count = |column: usize| -> usize {
            one.1.iter().map(|batch| batch.num_rows() - batch.column(column).null_count()).sum()
        };
        assert!(count(1) > 500 && count(3) > 90, "{} {}", count(1), count(3));
        let text = |(schema, batches): &(SchemaRef, Vec<RecordBatch>)| {
            let mut text = Vec::new();
            write_result(schema, batches, Format::Csv, &mut text).unwrap();
            text
        };
        for (options, order) in
            [(&small, "pool"), (&wide, "pool"), (&wide, backwards), (&small, backwards)]
        {
            let other = session(options).query(&marks(order)).await.unwrap();
            assert!(text(&one) == text(&other), "{options:?} {order}");
        }
    }

    #[test]
    fn rows_are_a_function_of_their_numbers() {
        let ids = |count| -> Vec<RecordBatch> {
            Planted::new(count).pool().map(Result::unwrap).collect()
        };
        let (few, many) = (ids(2_000), ids(9_000));
        assert_eq!(
            few[0].column(2).as_string::<i32>().value(1_999),
            many[0].column(2).as_string::<i32>().value(1_999)
        );
        assert_eq!(many.iter().map(RecordBatch::num_rows).sum::<usize>(), 9_000);
    }
}
