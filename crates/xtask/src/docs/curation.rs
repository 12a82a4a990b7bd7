//! The page of curation: the recipes in `datasets/`, each with what its comment says.

use std::path::Path;

use anyhow::{Context, Result};

use super::NOTE;
use super::markdown::{paragraph, section_link};

/// The recipes, in the order in which one would use them.
pub const RECIPES: [&str; 8] = [
    "exact-duplicates",
    "near-duplicates",
    "decontaminate",
    "readable",
    "difficulty",
    "caps",
    "mixture",
    "split",
];

const INTRODUCTION: &str = "\
The queries in `datasets/` make a data set out of a heap of rows, a step each. They are starting points: copy one, and \
change its columns, bounds and names of tables. Each is a query of `aha query` or of a stage of kind `query`; one reads \
what the one before has written:";

const COMMANDS: &str = "    \
aha query --table pool=pool.parquet --memory 1GiB --file datasets/near-duplicates.sql \\
        --format parquet --out unlike.parquet
    aha query --table pool=unlike.parquet --table evaluation=math500.jsonl --memory 1GiB \\
        --file datasets/decontaminate.sql --format parquet --out clean.parquet
";

const MEMORY: &str = "\
Rows stream. What sorts and groups can't hold within `--memory` (of a pipeline: `run.query_memory`) goes to temporary \
files, and so do the rows of `mark_duplicates`, which holds four bytes for each in memory, and about as much as the \
table itself on the disk. `mark_contaminated` holds the n-grams of the evaluation set. A table larger than memory is \
written with `--format parquet`, which holds a thousand rows; other formats hold the whole answer.";

const SAME: &str = "\
The same rows give the same answer, whatever their order in the files and however many parts a query runs in. \
`text_hash` and `hash_share` are the same in every version, so a split that was stored stays as it is. The functions \
are described under [SQL functions](tables.md#sql-functions) and [calls after FROM](tables.md#calls-after-from).";

/// The page.
pub fn page(datasets: &Path) -> Result<String> {
    let mut text = format!("# Curation\n\n{NOTE}\n\n{}\n{COMMANDS}", paragraph(INTRODUCTION));
    text.push_str(&format!("\n{}\n{}\n## Contents\n\n", paragraph(MEMORY), paragraph(SAME)));
    let mut sections = String::new();
    for name in RECIPES {
        let sql = fs_err::read_to_string(datasets.join(format!("{name}.sql")))?;
        let (title, comment, query) =
            parts(&sql).with_context(|| format!("{name}.sql has no comment"))?;
        text.push_str(&format!("- {}\n", section_link(title, title)));
        sections.push_str(&format!(
            "\n## {title}\n\n{comment}\n`datasets/{name}.sql`:\n\n```sql\n{query}```\n"
        ));
    }
    Ok(text + &sections)
}

/// A recipe's title, what its comment says, and the query.
fn parts(sql: &str) -> Option<(&str, String, &str)> {
    let (title, rest) = sql.strip_prefix("-- ")?.split_once('\n')?;
    let comment_len =
        rest.split_inclusive('\n').take_while(|line| line.starts_with("--")).map(str::len).sum();
    let (comment, query) = rest.split_at(comment_len);
    let lines: Vec<&str> =
        comment.lines().map(|line| line.trim_start_matches("--").trim()).collect();
    let paragraphs: Vec<String> = lines
        .split(|line| line.is_empty())
        .filter(|lines| !lines.is_empty())
        .map(|lines| paragraph(&lines.join(" ")))
        .collect();
    Some((title, paragraphs.join("\n"), query))
}

#[cfg(test)]
mod tests {
    use aha_data::{Format, Session, SessionOptions, write_result};

    use super::super::datasets;
    use super::*;

    async fn csv(session: &Session, sql: &str) -> String {
        let (schema, batches) = session.query(sql).await.unwrap();
        let mut text = Vec::new();
        write_result(&schema, &batches, Format::Csv, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    /// The answer of a recipe over tables that are queries themselves.
    async fn answer(recipe: &str, select: &str, tables: &[(&str, &str)]) -> String {
        let session = Session::new(&SessionOptions::default()).unwrap();
        for (name, sql) in tables {
            let (schema, batches) = session.query(sql).await.unwrap();
            session.register_batches(name, schema, batches).unwrap();
        }
        let recipe = fs_err::read_to_string(datasets().join(format!("{recipe}.sql"))).unwrap();
        csv(&session, &format!("WITH answer AS ({recipe}) {select}")).await
    }

    #[test]
    fn every_query_that_ships_is_on_the_page() {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(datasets()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.extend(name.strip_suffix(".sql").map(str::to_owned));
        }
        found.sort();
        let mut known = RECIPES.map(str::to_owned);
        known.sort();
        assert_eq!(found, known);
    }

    #[tokio::test]
    async fn the_smallest_id_of_each_prompt_is_kept() {
        let pool = "SELECT column1 AS id, column2 AS prompt FROM (VALUES (5, 'One, two'), (3, 'one two!'), \
                    (4, 'two one'), (1, NULL), (2, NULL), (6, '3 - 4'), (7, '3 + 4'), (8, 'one  TWO'))";
        let kept =
            answer("exact-duplicates", "SELECT id FROM answer ORDER BY id", &[("pool", pool)])
                .await;
        assert_eq!(kept, "id\n1\n2\n3\n4\n6\n7\n");
        let none = "SELECT value AS id, NULL::string AS prompt FROM generate_series(1, 3)";
        let kept =
            answer("exact-duplicates", "SELECT count(*) AS n FROM answer", &[("pool", none)]).await;
        assert_eq!(kept, "n\n3\n");
    }

    #[tokio::test]
    async fn difficulty_is_the_measured_pass_rate() {
        let rollouts = "SELECT column1 AS prompt_id, column2 AS reward_math FROM (VALUES \
                        ('often', 1.0), ('often', 1.0), ('often', 1.0), ('often', 0.0), ('often', NULL), \
                        ('seldom', 0.0), ('seldom', 0.0), ('seldom', 1.0), ('seldom', 0.0), ('seldom', 0.0), \
                        ('half', 0.0), ('half', 1.0), ('half', 1.0), ('half', 0.0), \
                        ('always', 1.0), ('always', 1.0), ('always', 1.0), ('always', 1.0), \
                        ('never', 0.0), ('never', 0.0), ('never', 0.0), ('never', 0.0), \
                        ('few', 1.0), ('few', 0.0), ('few', NULL), ('few', NULL), ('gone', 1.0))";
        let pool = "SELECT column1 AS id, 'x' AS prompt FROM \
                    (VALUES ('often'), ('seldom'), ('half'), ('always'), ('never'), ('few'), ('unsampled'))";
        let tables = [("pool", pool), ("rollouts", rollouts)];
        let found = answer("difficulty", "SELECT * FROM answer ORDER BY id", &tables).await;
        let expected = "id,prompt,pass_rate,difficulty\nhalf,x,0.5,medium\noften,x,0.75,easy\nseldom,x,0.2,hard\n";
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn caps_keep_the_best_of_each_prompt_and_as_many_of_a_source() {
        let candidates = "SELECT 'c' || value AS id, 'p' || (value % 30000) AS prompt_id, \
                          CASE WHEN value % 30000 < 100 THEN 'small' ELSE 'large' END AS source, \
                          (value / 30000)::double AS reward FROM generate_series(0, 179999)";
        let select = "SELECT source, count(*) AS n, count(DISTINCT prompt_id) AS prompts, min(reward) AS least \
                      FROM answer GROUP BY source ORDER BY source";
        let found = answer("caps", select, &[("candidates", candidates)]).await;
        // Of six rewards of each prompt, 0 to 5, the large source has room for the best and some of the next.
        assert_eq!(found, "source,n,prompts,least\nlarge,50000,29900,4.0\nsmall,400,100,2.0\n");
    }

    /// Goal: a source has as many rows as its weight says. Method: 30,000 rows; the bounds are five standard deviations
    /// of what is left to chance.
    #[tokio::test]
    async fn a_mixture_has_sources_by_their_weights() {
        let pool = "SELECT 'r' || value AS id, CASE value % 4 WHEN 0 THEN 'math' WHEN 1 THEN 'code' WHEN 2 THEN \
                    'general' ELSE 'none' END AS source, value AS more FROM generate_series(0, 39999)";
        let select = "SELECT source, count(*) AS n, count(DISTINCT id) AS ids, count(DISTINCT more) AS rows FROM \
                      answer GROUP BY source ORDER BY source";
        let found = answer("mixture", select, &[("pool", pool)]).await;
        let rows: Vec<Vec<&str>> =
            found.lines().skip(1).map(|line| line.split(',').collect()).collect();
        let expected = [("code", 25_000, 10_000), ("general", 2_500, 0), ("math", 10_000, 10_000)];
        assert_eq!(rows.len(), expected.len(), "{found}");
        for (row, (source, count, rows_count)) in rows.iter().zip(expected) {
            let number = |idx: usize| row[idx].parse::<i64>().unwrap();
            assert_eq!((row[0], number(1)), (source, number(2)), "each copy has its own id");
            assert!((number(1) - count).abs() <= if source == "math" { 0 } else { 250 }, "{found}");
            assert!(number(3) >= rows_count, "{found}");
        }
        let select = "SELECT id, source, more FROM answer WHERE more = 1 ORDER BY id LIMIT 2";
        let found = answer("mixture", select, &[("pool", pool)]).await;
        assert_eq!(found, "id,source,more\nr1,code,1\nr1#1,code,1\n");
    }

    #[tokio::test]
    async fn what_is_no_readable_english_is_left_out() {
        let pool = "SELECT column1 AS id, column2 AS prompt FROM (VALUES \
                    (1, 'A farmer has seven sheep and buys five more. How many sheep does the farmer have now?'), \
                    (2, 'Ein Bauer hat sieben Schafe und kauft noch fünf dazu. Wie viele Schafe hat er jetzt?'), \
                    (3, '17 | 23 | 99 | 0.5 || 4 == 4 ## 12 12 13'), \
                    (4, 'Afarmerhassevensheepandbuysfivemoreofthemtoday how many'), \
                    (5, 'the sheep and the sheep and the sheep and the sheep and the sheep and the sheep'), \
                    (6, NULL), (7, ''))";
        assert_eq!(answer("readable", "SELECT id FROM answer", &[("pool", pool)]).await, "id\n1\n");
    }

    #[tokio::test]
    async fn a_split_is_by_what_a_prompt_says() {
        let pool = "SELECT value AS id, 'What is ' || (value / 2) || ' + 1' || CASE value % 2 WHEN 0 THEN '' ELSE '?' END \
                    AS prompt FROM generate_series(0, 19999)";
        let select = "SELECT split, count(*) AS n, count(DISTINCT CAST(id AS BIGINT) / 2) AS prompts FROM answer GROUP BY split \
                      ORDER BY split";
        let found = answer("split", select, &[("pool", pool)]).await;
        // What it is today it has to be for ever.
        assert_eq!(found, "split,n,prompts\ntest,1006,503\ntrain,18994,9497\n");
    }

    #[test]
    fn a_comment_is_a_title_and_paragraphs() {
        let sql =
            "-- A title\n--\n-- One\n-- paragraph.\n--\n-- Another.\nSELECT 1 -- one\nFROM t\n";
        let (title, comment, query) = parts(sql).unwrap();
        assert_eq!(title, "A title");
        assert_eq!(comment, "One paragraph.\n\nAnother.\n");
        assert_eq!(query, "SELECT 1 -- one\nFROM t\n");
        assert_eq!(parts("SELECT 1"), None);
    }
}
