//! Curation: functions and calls on small tables, and what they say when they are called wrongly.

use std::sync::Arc;

use aha_data::{Session, SessionOptions};
use arrow::array::{
    ArrayRef, DictionaryArray, Float64Array, Int64Array, LargeStringArray, RecordBatch,
    StringArray, StringViewArray,
};
use arrow::datatypes::Int32Type;
use expect_test::{Expect, expect};

use crate::queries::{csv, error};

fn session() -> Session {
    Session::new(&SessionOptions::default()).unwrap()
}

fn register(session: &Session, name: &str, columns: Vec<(&str, ArrayRef)>) {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    session.register_batches(name, batch.schema(), vec![batch]).unwrap();
}

const PROMPTS: [Option<&str>; 8] = [
    Some("If a train leaves at noon and goes 60 miles an hour, when is it 90 miles away?"),
    Some("if a train leaves at noon and goes 60 miles an hour when is it 90 miles away"),
    Some("If a train leaves at noon and goes 60 miles an hour, when is it 120 miles away?"),
    Some("What is 7 - 6 + 4 + 4 - 4?"),
    Some("What is 7 + 6 + 4 + 4 - 4?"),
    None,
    Some(""),
    Some("?!"),
];

fn with_pool() -> Session {
    with_pool_in(1)
}

fn with_pool_in(partitions: usize) -> Session {
    let options = SessionOptions { partitions, ..SessionOptions::default() };
    let session = Session::new(&options).unwrap();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..8));
    let scores: ArrayRef = Arc::new(Float64Array::from_iter_values((0..8).map(f64::from)));
    let prompts: ArrayRef = Arc::new(StringArray::from_iter(PROMPTS));
    register(&session, "pool", vec![("id", ids), ("prompt", prompts), ("score", scores)]);
    session
}

#[tokio::test]
async fn functions_answer_for_columns_literals_and_nulls() {
    let session = session();
    let cases = [
        ("normalised('The ANSWER: 3-4!')", "the answer 3 - 4"),
        ("normalised('')", ""),
        ("normalised(NULL)", "NULL"),
        // Values of XXH64: they never change.
        ("text_hash('')", "-1205034819632174695"),
        ("text_hash('abc')", "4952883123889572249"),
        ("text_hash('What is 1 + 1?')", "-5450150916817302893"),
        ("text_hash('答案')", "8411463422622176314"),
        ("text_hash(NULL)", "NULL"),
        ("text_hash(normalised('What IS 1+1')) = text_hash(normalised('what is 1 + 1?'))", "true"),
        ("hash_share('problem-7', 'split')", "0.40216111960446554"),
        ("hash_share(1, 'split')", "0.5836519667440331"),
        ("hash_share(1, 'mixture')", "0.48641546553357295"),
        ("hash_share('', '')", "0.6341680838083542"),
        ("hash_share(NULL, 'split')", "NULL"),
        ("hash_share('a', NULL)", "NULL"),
        ("ngram_jaccard('a b c d', 'A, b, c e', 1)", "0.6"),
        ("ngram_jaccard('a b c d', 'a b c d', 3)", "1.0"),
        ("ngram_jaccard('a', '', 3)", "NULL"),
        ("ngram_jaccard('a', NULL, 3)", "NULL"),
        ("letter_share('ab 12')", "0.5"),
        ("letter_share('答案')", "1.0"),
        ("letter_share('  ')", "NULL"),
        ("letter_share(NULL)", "NULL"),
        ("mean_word_len('to be or not')", "2.25"),
        ("mean_word_len('?')", "NULL"),
        ("mean_word_len(NULL)", "NULL"),
    ];
    for (expression, expected) in cases {
        let sql = format!("SELECT coalesce(({expression})::string, 'NULL') AS x");
        let answer = csv(&session, &sql).await;
        let answer = answer.strip_prefix("x\n").unwrap().trim_end().trim_matches('"');
        assert_eq!(answer, expected, "{expression}");
    }
}

#[tokio::test]
async fn shares_are_spread_evenly() {
    let session = session();
    let sql = "SELECT count(*) AS n FROM generate_series(1, 100000) AS t(id) WHERE hash_share(id, 'split') < 0.9";
    let answer = csv(&session, sql).await;
    let count: f64 = answer.trim_start_matches("n\n").trim().parse().unwrap();
    // Five standard deviations of a binomial count.
    assert!((count - 90_000.0).abs() < 5.0 * (100_000.0_f64 * 0.9 * 0.1).sqrt(), "{count}");
}

#[tokio::test]
async fn duplicates_are_marked_with_the_first_of_their_cluster() {
    let session = with_pool();
    let marked = "SELECT id, duplicate_of, (100 * similarity)::int AS percent FROM \
                  mark_duplicates((SELECT * FROM pool), id, prompt, 0.6) WHERE duplicate_of IS NOT NULL";
    assert_eq!(csv(&session, marked).await, "id,duplicate_of,percent\n1,0,100\n2,0,68\n");
    // What is best is kept.
    let kept = marked.replace("0.6)", "0.6, keep => score)");
    assert_eq!(csv(&session, &kept).await, "id,duplicate_of,percent\n1,2,68\n0,2,68\n");
    // Single words say less than runs of them.
    let words = marked.replace("0.6)", "0.8, n => 1)");
    let expected = "id,duplicate_of,percent\n1,0,100\n2,0,88\n4,3,100\n";
    assert_eq!(csv(&session, &words).await, expected);
}

#[tokio::test]
async fn rows_come_back_whole_and_in_order() {
    let session = with_pool();
    let sql = "SELECT d.*, d.id + 1 AS next FROM mark_duplicates((SELECT score, id, prompt FROM pool WHERE id > 4), \
               id, prompt, 0.5, n => 2) AS d";
    let expected =
        "score,id,prompt,duplicate_of,similarity,next\n5.0,5,,,,6\n6.0,6,,,,7\n7.0,7,?!,,,8\n";
    assert_eq!(csv(&session, sql).await, expected);
    // A query that finds nothing.
    let sql = "SELECT id, duplicate_of FROM mark_duplicates((SELECT * FROM pool WHERE id > 9), id, prompt, 1)";
    assert_eq!(csv(&session, sql).await, "id,duplicate_of\n");
    // What isn't asked for isn't kept.
    let plan = csv(
        &session,
        "EXPLAIN SELECT id FROM mark_duplicates((SELECT * FROM pool), id, prompt, 1)",
    )
    .await;
    assert!(plan.contains("MarkDuplicates") && !plan.contains("score"), "{plan}");
    // They are in the order that is asked for, whether the call has another or the same.
    for (order, expected) in [("score DESC", "7,6,5,"), ("id", "0,1,2,"), ("prompt, id", "6,7,2,")]
    {
        for partitions in [1, 3] {
            let session = with_pool_in(partitions);
            let sql = format!(
                "SELECT id FROM mark_contaminated((SELECT * FROM mark_duplicates((SELECT * FROM pool), \
                               id, prompt, 1)), prompt, (SELECT id, prompt FROM pool WHERE id > 9)) ORDER BY {order}"
            );
            let ids = csv(&session, &sql).await.replace('\n', ",");
            assert!(ids.starts_with(&format!("id,{expected}")), "{order} {partitions}: {ids}");
        }
    }
    // Tables of a WITH are seen, and calls in calls.
    let sql = "WITH few AS (SELECT id, prompt FROM pool WHERE id < 3), \
               marked AS (SELECT * FROM mark_duplicates((SELECT * FROM few), id, prompt, 0.5)) \
               SELECT count(*) AS n, count(duplicate_of) AS marked, count(contaminated_by) AS clean FROM \
               mark_contaminated((SELECT * FROM marked), prompt, (SELECT id, prompt FROM few WHERE id = 9))";
    assert_eq!(csv(&session, sql).await, "n,marked,clean\n3,2,0\n");
}

#[tokio::test]
async fn shared_ngrams_are_shown_as_the_row_has_them() {
    let session = with_pool();
    let exam: ArrayRef = Arc::new(StringArray::from_iter([
        Some("When IS it 90 miles away, then"),
        Some("goes 60 miles an hour"),
        Some("what is 7 - 6 + 4 + 4 - 4"),
        None,
        Some(""),
    ]));
    let names: ArrayRef = Arc::new(StringArray::from(vec!["e1", "e0", "e2", "e3", "e4"]));
    register(&session, "exam", vec![("name", names), ("text", exam)]);
    let sql = "SELECT id, contaminated_by AS of, shared_ngram AS shared FROM \
               mark_contaminated((SELECT * FROM pool), prompt, (SELECT name, text FROM exam), n => 5) \
               WHERE contaminated_by IS NOT NULL";
    let expected = expect![[r#"
        id,of,shared
        0,e0,goes 60 miles an hour
        1,e0,goes 60 miles an hour
        2,e0,goes 60 miles an hour
        3,e2,What is 7 - 6 + 4
        4,e2,What is 7 + 6 + 4
    "#]];
    expected.assert_eq(&csv(&session, sql).await);
    // Of fewer words than an n-gram has, only the same text is; signs tell problems apart.
    let sql = sql
        .replace("n => 5", "n => 13")
        .replace("SELECT name, text FROM exam", "SELECT name, text FROM exam WHERE name <> 'e0'");
    let expected = expect![[r#"
        id,of,shared
        3,e2,What is 7 - 6 + 4 + 4 - 4?
    "#]];
    expected.assert_eq(&csv(&session, &sql).await);
}

#[tokio::test]
async fn calls_take_every_encoding_of_text() {
    let texts = ["the same text", "The same text!", "another one"];
    let arrays: [ArrayRef; 4] = [
        Arc::new(StringArray::from_iter_values(texts)),
        Arc::new(LargeStringArray::from_iter_values(texts)),
        Arc::new(StringViewArray::from_iter_values(texts)),
        Arc::new(DictionaryArray::<Int32Type>::from_iter(texts)),
    ];
    for array in arrays {
        let session = session();
        let ids: ArrayRef = Arc::clone(&array);
        register(&session, "t", vec![("id", ids), ("text", array)]);
        let sql = "SELECT id, duplicate_of, contaminated_by FROM mark_contaminated((SELECT * FROM \
                   mark_duplicates((SELECT * FROM t), id, text, 0.9)), text, (SELECT id, text FROM t \
                   WHERE text LIKE 'another%')) ORDER BY id";
        let expected = "id,duplicate_of,contaminated_by\nThe same text!,,\nanother one,,another one\n\
                        the same text,The same text!,\n";
        assert_eq!(csv(&session, sql).await, expected);
    }
}

#[tokio::test]
async fn calls_that_are_wrong_say_how_they_are_written() {
    let session = with_pool();
    let cases: [(&str, Expect); 10] = [
        (
            "mark_duplicates(pool, id, prompt, 0.8)",
            expect![[r#"
            mark_duplicates: expected a query in parentheses for the rows, (SELECT … FROM …), got `pool`
            hint: write mark_duplicates((SELECT …), id, text, threshold, n => 3, keep => column)"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM pool), id, prompt)",
            expect![[r#"
            mark_duplicates: expected the threshold
            hint: write mark_duplicates((SELECT …), id, text, threshold, n => 3, keep => column)"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM pool), id, prompt, 80)",
            expect![[r#"
            mark_duplicates: expected a threshold from 0.2 to 1, got `80`
            hint: write mark_duplicates((SELECT …), id, text, threshold, n => 3, keep => column)"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM pool), id, promt, 0.8)",
            expect![[r#"
            no column `promt` (line 1, column 58 of the query)
            hint: did you mean `prompt`? there are: id, prompt, score"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM pool), id, score, 0.8)",
            expect![[r#"
            mark_duplicates: expected text for the rows' text, but `score` is Float64
            hint: write mark_duplicates((SELECT …), id, text, threshold, n => 3, keep => column)"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM pool), id, lower(prompt), 0.8)",
            expect![[r#"
            mark_duplicates: expected a column of the query for the rows' text, got `lower(prompt)`
            hint: write mark_duplicates((SELECT …), id, text, threshold, n => 3, keep => column)"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM pool), id, prompt, 0.8, n => 0)",
            expect![[r#"
            mark_duplicates: expected a whole number from 1 to 100 for n, got `0`
            hint: write mark_duplicates((SELECT …), id, text, threshold, n => 3, keep => column)"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM pool), id, prompt, 0.8, ngram => 5)",
            expect![[r#"
            mark_duplicates: expected no argument `ngram => …`
            hint: write mark_duplicates((SELECT …), id, text, threshold, n => 3, keep => column)"#]],
        ),
        (
            "mark_duplicates((SELECT * FROM poool), id, prompt, 0.8)",
            expect![[r#"
            no table `poool` (line 1, column 47 of the query)
            hint: did you mean `pool`? there are: pool"#]],
        ),
        (
            "mark_duplicates((SELECT id, prompt, 1 AS similarity FROM pool), id, prompt, 0.8)",
            expect![[r#"
                the query in `mark_duplicates` has a column `similarity`, which the call adds
                hint: select the others, or rename it with AS"#]],
        ),
    ];
    for (call, expected) in cases {
        expected.assert_eq(&error(&session, &format!("SELECT id FROM {call}")).await);
    }
}

#[tokio::test]
async fn other_calls_and_rows_without_names_are_refused() {
    let session = with_pool();
    let cases: [(&str, Expect); 2] = [
        (
            "mark_contaminated((SELECT * FROM pool), prompt, (SELECT prompt FROM pool))",
            expect![[r#"
                mark_contaminated: expected a query of an evaluation set with two columns, what names a text and the text
                hint: write mark_contaminated((SELECT …), text, (SELECT id, text FROM evaluations), n => 13)"#]],
        ),
        (
            "mark_contaminated((SELECT * FROM pool), prompt, (SELECT id, prompt FROM pool), 13)",
            expect![[r#"
                mark_contaminated: expected no argument `13`
                hint: write mark_contaminated((SELECT …), text, (SELECT id, text FROM evaluations), n => 13)"#]],
        ),
    ];
    for (call, expected) in cases {
        expected.assert_eq(&error(&session, &format!("SELECT id FROM {call}")).await);
    }
    let sql = "SELECT * FROM mark_duplicate((SELECT * FROM pool), id, prompt, 1)";
    assert_eq!(
        error(&session, sql).await,
        "nothing called `mark_duplicate` can be called after FROM\n\
         hint: did you mean `mark_duplicates`? there are: mark_duplicates, mark_contaminated, generate_series, range"
    );
    let sql = "SELECT id FROM mark_duplicates((SELECT NULL::int AS id, prompt FROM pool), id, prompt, 0.8)";
    let unnamed = error(&session, sql).await;
    assert!(unnamed.starts_with("mark_duplicates: what names a row is null\nhint: "), "{unnamed}");
    let wrong =
        error(&session, "SELECT ngram_jaccard(prompt, prompt, 'three') AS x FROM pool").await;
    assert_eq!(wrong, "ngram_jaccard: n is `three`\nhint: write a whole number from 1 to 100");
}

#[tokio::test]
async fn wrong_calls_are_found_before_anything_is_read() {
    let session = with_pool();
    let sql =
        "SELECT id FROM mark_duplicates((SELECT * FROM pool), id, prompt, 0.8) WHERE rewrad > 1";
    assert!(session.schema_of(sql).await.unwrap_err().to_string().contains("rewrad"));
    let schema = session
        .schema_of("SELECT * FROM mark_duplicates((SELECT * FROM pool), id, prompt, 1)")
        .await;
    let names: Vec<String> = schema.unwrap().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["id", "prompt", "score", "duplicate_of", "similarity"]);
}
