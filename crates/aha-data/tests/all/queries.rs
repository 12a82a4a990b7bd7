//! Queries over input tables: what they answer, and what they say when they can't.

use std::path::Path;
use std::sync::Arc;

use aha_data::{Format, Session, SessionOptions, TableSource, write_result};
use arrow::array::{ArrayRef, DictionaryArray, LargeStringArray, RecordBatch, StringArray};
use arrow::array::{Int64Array, StringViewArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use expect_test::{Expect, expect};

fn session() -> Session {
    Session::new(&SessionOptions::default()).unwrap()
}

pub async fn csv(session: &Session, sql: &str) -> String {
    let (schema, batches) = session.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let mut out = Vec::new();
    write_result(&schema, &batches, Format::Csv, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The error of `sql` and its hint.
pub async fn error(session: &Session, sql: &str) -> String {
    let error = session.collect(sql).await.expect_err(sql);
    format!("{error}\nhint: {}", error.hint().unwrap_or("none"))
}

fn problems() -> RecordBatch {
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
        ("prompt", Arc::new(StringArray::from(vec!["1+1?", "2+2?", "3+3?"]))),
        ("answer", Arc::new(Int64Array::from(vec![2, 4, 6]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn with_problems() -> Session {
    let session = session();
    let batch = problems();
    session.register_batches("problems", batch.schema(), vec![batch]).unwrap();
    session
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

async fn registered(dir: &Path, address: &str) -> aha_data::Result<Session> {
    let session = session();
    session.register("t", &TableSource::new(address, dir)?).await?;
    Ok(session)
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_a_row() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "t.jsonl", "\u{feff}{\"id\":\"a\"}\n{\"id\":\"b\"}\n");
    let session = registered(dir.path(), "t.jsonl").await.unwrap();
    assert_eq!(csv(&session, "SELECT id FROM t").await, "id\na\nb\n");
    write(dir.path(), "empty.jsonl", "{}\n");
    let error = registered(dir.path(), "empty.jsonl").await.err().unwrap();
    assert!(error.to_string().contains("holds no object with a key"), "{error}");
}

#[tokio::test]
async fn functions_answer_for_columns_literals_and_nulls() {
    let session = with_problems().await;
    session.set_tokenizer(Arc::new(|text| Ok(text.split(' ').count())));
    let cases = [
        (r"extract_boxed('so \boxed{\frac{1}{2}}')", r"\frac{1}{2}"),
        ("extract_boxed('none')", "NULL"),
        ("extract_boxed(NULL)", "NULL"),
        ("extract_tag('<answer> 42 </answer>', 'answer')", "*42*"),
        ("extract_tag('<answer>42</answer>', 'think')", "NULL"),
        ("extract_tag('<answer>42</answer>', NULL)", "NULL"),
        (r"math_equal('\frac{1}{2}', '0.5')", "true"),
        ("math_equal('5', '6')", "false"),
        ("math_equal(5, '5')", "true"),
        ("math_equal(NULL, '5')", "NULL"),
        ("language_share('this is a plain English sentence', 'en') > 0.9", "true"),
        ("language_share('dies ist ein einfacher deutscher Satz ohne jede Formel', 'en')", "0.0"),
        ("language_share(NULL, 'en')", "NULL"),
        ("word_count('one two 三四')", "4"),
        ("word_count(NULL)", "NULL"),
        ("repetition_share('a b a b', 1)", "0.5"),
        ("repetition_share('a b', 3)", "NULL"),
        ("repetition_share('a b', 'x')", "NULL"),
        ("repetition_share('a b', NULL)", "NULL"),
        ("has_format('', '<think>a</think> <answer>5</answer>')", "true"),
        ("has_format('', 'a</think> <answer>5</answer>')", "false"),
        ("has_format('<think>', 'a</think> <answer>5</answer>')", "true"),
        ("numeric_equal('1,200', '1.2e3')", "true"),
        ("numeric_equal(5, 5.5)", "false"),
        ("numeric_equal('five', '5')", "NULL"),
        (r"choice_letter('so \boxed{(C)}')", "C"),
        ("choice_letter('A or C')", "NULL"),
        ("reflection_count('Wait, let me check. Wait.') >= 2", "true"),
        ("reflection_count('')", "0"),
        ("reflection_count(NULL)", "NULL"),
        (r"grade('math', NULL, 'so \boxed{5}', '5')", "1.0"),
        ("grade('math', NULL, '5', '5')", "0.0"),
        (r#"grade('{ kind = "math", extract = ["whole"] }', NULL, '5', '5')"#, "1.0"),
        ("grade('math', NULL, NULL, '5')", "NULL"),
        ("grade('math', NULL, '5', NULL)", "NULL"),
        ("grade(NULL, NULL, '5', '5')", "NULL"),
        (r"grade('exact', '', '\boxed{yes}', 'yes')", "1.0"),
        ("grade('format', '<think>', 'a</think> <answer>5</answer>', NULL)", "1.0"),
        (
            r#"grade('{ kind = "json_schema", schema = { type = "object" } }', NULL, '{}', NULL)"#,
            "1.0",
        ),
        (
            r#"grade('countdown', NULL, '<answer>2 * 3</answer>', '{"kind":"countdown","numbers":[2,3],"target":6}')"#,
            "1.0",
        ),
        ("token_count('a b c')", "3"),
        ("token_count(NULL)", "NULL"),
    ];
    for (expression, expected) in cases {
        let answer =
            csv(&session, &format!("SELECT coalesce(({expression})::string, 'NULL') AS x")).await;
        let answer = answer.strip_prefix("x\n").unwrap().trim_end();
        match expected.strip_prefix('*').and_then(|e| e.strip_suffix('*')) {
            Some(inside) => assert!(answer.contains(inside), "{expression}: {answer}"),
            None => assert_eq!(answer, expected, "{expression}"),
        }
    }
    let sql = "SELECT id, token_count(prompt) AS n, math_equal(answer, '4') AS eq FROM problems";
    assert_eq!(csv(&session, sql).await, "id,n,eq\na,1,false\nb,1,true\nc,1,false\n");
}

#[tokio::test]
async fn each_row_is_graded_by_its_own_reward() {
    let session = with_problems().await;
    let sql = "SELECT id, grade(CASE id WHEN 'b' THEN 'exact' WHEN 'c' THEN NULL ELSE 'math' END, prompt, '\\boxed{4}', \
               answer) AS score FROM problems ORDER BY id";
    assert_eq!(csv(&session, sql).await, "id,score\na,0.0\nb,1.0\nc,\n");
    for (reward, said) in [
        ("maths", "expected one of math, format"),
        ("judge", "`judge` asks others"),
        ("command", "`command` asks others"),
        ("overlong", "`overlong` counts tokens"),
        ("{ kind = \"math\", wieght = 1 }", "wieght"),
        ("regex", "`pattern` must be given"),
    ] {
        let sql = format!("SELECT grade('{reward}', prompt, '4', answer) AS score FROM problems");
        let error = session.collect(&sql).await.unwrap_err();
        assert!(error.to_string().contains(said), "{reward}: {error}");
        assert!(error.hint().is_some(), "{reward}");
    }
}

#[tokio::test]
async fn functions_take_every_encoding_of_text() {
    let texts = vec![Some(r"\boxed{7}"), None, Some("no")];
    let dictionary: DictionaryArray<Int32Type> = texts.iter().copied().collect();
    let arrays: [ArrayRef; 4] = [
        Arc::new(StringArray::from(texts.clone())),
        Arc::new(LargeStringArray::from(texts.clone())),
        Arc::new(StringViewArray::from(texts)),
        Arc::new(dictionary),
    ];
    for array in arrays {
        let session = session();
        let batch = RecordBatch::try_from_iter_with_nullable([("x", array.clone(), true)]).unwrap();
        session.register_batches("t", batch.schema(), vec![batch]).unwrap();
        let answer = csv(&session, "SELECT extract_boxed(x) AS b, x FROM t").await;
        assert_eq!(answer, "b,x\n7,\\boxed{7}\n,\n,no\n", "{}", array.data_type());
        let plain = session.schema_of("SELECT x FROM t").await.unwrap();
        assert_eq!(plain.field(0).data_type(), &DataType::Utf8);
        assert_eq!(session.collect("SELECT x FROM t").await.unwrap()[0].schema(), plain);
    }
}

#[tokio::test]
async fn bad_queries_say_what_is_wrong_where_and_what_to_do() {
    let session = with_problems().await;
    let cases: [(&str, Expect); 13] = [
        (
            "SELECT anwser FROM problems",
            expect![[r#"
            no column `anwser` (line 1, column 8 of the query)
            hint: did you mean `answer`? there are: id, prompt, answer"#]],
        ),
        (
            "SELECT p.x\nFROM problems p",
            expect![[r#"
            no column `x` in `p` (line 1, column 8 of the query)
            hint: there are: id, prompt, answer"#]],
        ),
        (
            "SELECT 1 FROM problem",
            expect![[r#"
            no table `problem` (line 1, column 15 of the query)
            hint: did you mean `problems`? there are: problems"#]],
        ),
        (
            "SELEC 1",
            expect![[r#"
            not valid SQL: Expected: an SQL statement, found: SELEC (line 1, column 1 of the query)
            hint: none"#]],
        ),
        (
            "SELECT id,\n FROM problems WHERE",
            expect![[r#"
            not valid SQL: Expected: an expression, found: EOF
            hint: none"#]],
        ),
        (
            "SELECT extract_boxd(prompt) FROM problems",
            expect![[r#"
            Invalid function 'extract_boxd' (line 1, column 8 of the query)
            hint: did you mean 'extract_boxed'?"#]],
        ),
        (
            "SELECT token_count(prompt) FROM problems",
            expect![[r#"
            token_count: no tokenizer is set
            hint: ask a run that has made a model, or put the query after a stage that has one; length(text) counts characters"#]],
        ),
        (
            "SELECT id FROM problems GROUP BY prompt",
            expect![[r#"
            Column in SELECT must be in GROUP BY or an aggregate function: While expanding wildcard, column "problems.id" must appear in the GROUP BY clause or must be part of an aggregate function, currently only "problems.prompt" appears in the SELECT clause satisfies this requirement (line 1, column 8 of the query)
            hint: none"#]],
        ),
        (
            "SELECT id FROM problems p JOIN problems q ON p.id = q.id",
            expect![[r#"
            column `id` is in more than one table (line 1, column 8 of the query)
            hint: write the table's name before it: `table.id`"#]],
        ),
        (
            "SELECT p.*, q.id FROM problems p JOIN problems q ON p.id = q.id",
            expect![[r#"
            the answer has two columns called `id`
            hint: select the columns that you need, and name one of the two with `AS`"#]],
        ),
        (
            "SELECT Total FROM (SELECT 1 AS \"Total\")",
            expect![[r#"
            no column `total` (line 1, column 8 of the query)
            hint: did you mean `"Total"`? there are: "Total""#]],
        ),
        (
            "SELECT 1; SELECT 2",
            expect![[r#"
            The context currently only supports a single SQL statement
            hint: none"#]],
        ),
        (
            "SELECT 'x'::int",
            expect![[r#"
            Cannot cast string 'x' to value of Int32 type
            hint: none"#]],
        ),
    ];
    for (sql, expected) in cases {
        expected.assert_eq(&error(&session, sql).await);
    }
}

#[tokio::test]
async fn planning_finds_what_running_would() {
    let session = with_problems().await;
    for sql in ["SELECT anwser FROM problems", "SELECT extract_boxed(prompt, 1) FROM problems"] {
        assert!(session.schema_of(sql).await.is_err(), "{sql}");
    }
    let sql = "SELECT id, answer * 2 AS twice, extract_boxed(prompt) AS b FROM problems";
    let columns = session.schema_of(sql).await.unwrap();
    let columns: Vec<_> = columns.fields().iter().map(|f| (f.name(), f.data_type())).collect();
    let names = ["id", "twice", "b"].map(str::to_owned);
    let types = [DataType::Utf8, DataType::Int64, DataType::Utf8];
    assert_eq!(columns, names.iter().zip(&types).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_query_can_change_nothing() {
    let session = with_problems().await;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.csv");
    let statements = [
        "CREATE TABLE x AS SELECT 1".to_owned(),
        "CREATE VIEW x AS SELECT 1".to_owned(),
        "DROP TABLE problems".to_owned(),
        "INSERT INTO problems VALUES ('d', 'x', 1)".to_owned(),
        "DELETE FROM problems".to_owned(),
        format!("COPY problems TO '{}'", out.display()),
        format!("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '{}'", out.display()),
        "SET datafusion.execution.batch_size = 1".to_owned(),
    ];
    for sql in statements {
        let error = session.collect(&sql).await.expect_err(&sql);
        assert!(error.to_string().starts_with("only queries are allowed here"), "{sql}: {error}");
        assert!(session.schema_of(&sql).await.is_err(), "{sql}");
    }
    assert!(!out.exists());
    assert_eq!(csv(&session, "SELECT count(*) AS n FROM problems").await, "n\n3\n");
}

#[tokio::test]
async fn the_catalogue_can_be_asked_and_changed() {
    let session = with_problems().await;
    let schema = Arc::new(Schema::new(vec![Field::new("later", DataType::Utf8, true)]));
    session.register_schema("zero", schema.clone()).unwrap();
    assert_eq!(session.table_names(), ["problems", "zero"]);
    assert_eq!(session.schema_of("SELECT * FROM zero").await.unwrap(), schema);
    assert_eq!(csv(&session, "SELECT * FROM zero").await, "later\n");
    let sql = "SELECT column_name FROM information_schema.columns WHERE table_name = 'problems'";
    assert_eq!(csv(&session, sql).await, "column_name\nid\nprompt\nanswer\n");
    let batch = problems();
    session.register_batches("zero", batch.schema(), vec![batch]).unwrap();
    assert_eq!(csv(&session, "SELECT count(*) AS n FROM zero").await, "n\n3\n");
    assert!(session.deregister("zero").unwrap());
    assert!(!session.deregister("zero").unwrap());
}

#[tokio::test]
async fn json_lines_are_read_whatever_their_types() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.jsonl", "{\"id\":1,\"answer\":2}\n\n{\"id\":2,\"answer\":\"x+1\"}\n");
    write(dir.path(), "b.jsonl", "{\"answer\":2.5,\"id\":3,\"tags\":[\"late\"]}\n");
    let session = registered(dir.path(), ".").await.unwrap();
    let expected = "id,answer,tags\n1,2,\n2,x+1,\n3,2.5,[late]\n";
    assert_eq!(csv(&session, "SELECT id, answer, tags FROM t").await, expected);
    let only = "SELECT count(*) AS n, max(id) AS m FROM t WHERE tags IS NULL";
    assert_eq!(csv(&session, only).await, "n,m\n2,2\n");
    assert_eq!(csv(&session, "SELECT count(*) AS n FROM t").await, "n\n3\n");
}

#[tokio::test]
async fn csv_is_read_with_its_header_and_quoted_lines() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.csv", "id,prompt,n\n1,\"two\nlines, \"\"quoted\"\"\",1\n");
    write(dir.path(), "b.csv", "id,prompt,n\nx2,plain,2.5\n");
    let session = registered(dir.path(), "*.csv").await.unwrap();
    let expected = "id,prompt,n\n1,\"two\nlines, \"\"quoted\"\"\",1.0\nx2,plain,2.5\n";
    assert_eq!(csv(&session, "SELECT * FROM t").await, expected);
}

#[tokio::test]
async fn parquet_files_are_joined_by_name_and_written_back() {
    let dir = tempfile::tempdir().unwrap();
    let session = with_problems().await;
    let a = dir.path().join("in/a.parquet");
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let size = session.write_parquet("SELECT id, answer FROM problems LIMIT 1", &a).await.unwrap();
    assert_eq!(size.rows_count, 1);
    let b = dir.path().join("in/b.parquet");
    session.write_parquet("SELECT 'late' AS extra, id FROM problems", &b).await.unwrap();
    let session = registered(dir.path(), "in").await.unwrap();
    let expected = "id,answer,extra\na,2,\na,,late\nb,,late\nc,,late\n";
    assert_eq!(csv(&session, "SELECT * FROM t").await, expected);
    let again = dir.path().join("again.parquet");
    let same = dir.path().join("same.parquet");
    session.write_parquet("SELECT * FROM t", &again).await.unwrap();
    session.write_parquet("SELECT * FROM t", &same).await.unwrap();
    assert_eq!(std::fs::read(again).unwrap(), std::fs::read(same).unwrap());
    assert!(
        session.write_parquet("SELECT 'x'::int", &dir.path().join("no.parquet")).await.is_err()
    );
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 3, "in/, again.parquet and same.parquet");
}

#[tokio::test]
async fn bad_files_are_named_with_their_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write(path, "broken.parquet", "PAR1 this is no Parquet file PAR1");
    write(path, "broken.jsonl", "{\"a\":1}\n{\"a\":\n");
    write(path, "array.json", "[{\"a\":1}]\n");
    write(path, "conflict.jsonl", "{\"a\":1}\n{\"a\":{\"b\":2}}\n");
    std::fs::write(path.join("latin1.jsonl"), b"{\"a\":1}\n{\"a\":\"\xe9\"}\n").unwrap();
    write(path, "empty.jsonl", "");
    write(path, "empty.csv", "");
    write(path, "ragged.csv", "a,b\n1,2\n3,4,5\n");
    std::fs::create_dir(path.join("two")).unwrap();
    write(path, "two/a.csv", "a,b\n1,2\n");
    write(path, "two/b.csv", "b,a\n1,2\n");
    let cases = [
        ("broken.parquet", "broken.parquet` is not a readable Parquet file", "restore the file"),
        ("broken.jsonl", "broken.jsonl`, line 2: not valid JSON", "one JSON object on each line"),
        ("array.json", "array.json`, line 1: expected an object", "jq -c"),
        ("conflict.jsonl", "conflict.jsonl` don't fit together", "same kind of value"),
        ("latin1.jsonl", "latin1.jsonl`, line 2: not valid UTF-8", "as UTF-8"),
        ("empty.jsonl", "holds no rows", "put one JSON object"),
        ("empty.csv", "empty.csv` is empty", "names its columns"),
        ("ragged.csv", "ragged.csv` is not a readable CSV file", "as many fields as the header"),
        ("two", "has the columns a, b", "same columns in the same order"),
        ("missing.parquet", "no file or folder at", "check the path"),
    ];
    for (address, message, hint) in cases {
        let error = registered(path, address).await.err().expect(address);
        assert!(error.to_string().contains(message), "{address}: {error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{address}: {error:?}");
    }
}

#[tokio::test]
async fn rows_come_in_the_same_order_every_time() {
    let dir = tempfile::tempdir().unwrap();
    for part in 0..7 {
        let lines: Vec<String> =
            (0..300).map(|i| format!("{{\"k\":{},\"v\":{i}}}", (i * 7 + part) % 50)).collect();
        write(dir.path(), &format!("{part}.jsonl"), &lines.join("\n"));
    }
    let sql =
        "SELECT a.k, count(*) AS n, sum(a.v) AS s FROM t a JOIN t b ON a.k = b.v GROUP BY a.k";
    let first = csv(&registered(dir.path(), ".").await.unwrap(), sql).await;
    assert_eq!(first.lines().count(), 51);
    for _ in 0..3 {
        assert_eq!(csv(&registered(dir.path(), ".").await.unwrap(), sql).await, first);
    }
}

#[tokio::test]
async fn a_memory_limit_is_an_error_that_says_so() {
    let options = SessionOptions { memory_limit_bytes: Some(100_000), ..SessionOptions::default() };
    let session = Session::new(&options).unwrap();
    for condition in ["a.value = b.value", "a.value < b.value"] {
        let sql = format!(
            "SELECT count(*) FROM generate_series(1, 100000) a JOIN generate_series(1, 100000) b ON {condition}"
        );
        let message = error(&session, &sql).await;
        assert!(message.contains("needs more memory"), "{message}");
        assert!(message.contains("raise the memory limit"), "{message}");
    }
}

/// Goal: a limit makes a sort spill, it doesn't make it fail. Method: rows three times as large as the limit,
/// in order and counted.
#[tokio::test]
async fn a_sort_beyond_the_memory_limit_spills() {
    let dir = tempfile::tempdir().unwrap();
    let spill_dir = dir.path().join("spill");
    let options = SessionOptions {
        memory_limit_bytes: Some(32 << 20),
        spill_dir: Some(spill_dir.clone()),
        ..SessionOptions::default()
    };
    let session = Session::new(&options).unwrap();
    let path = dir.path().join("sorted.parquet");
    let sql = "SELECT (value * 7919) % 300007 AS k, repeat('x', 1000) AS text
               FROM generate_series(1, 100000) ORDER BY k";
    let size = session.write_parquet(sql, &path).await.unwrap();
    assert_eq!(size.rows_count, 100_000);
    session.register("t", &TableSource::new("sorted.parquet", dir.path()).unwrap()).await.unwrap();
    let sql = "SELECT count(*) FROM (SELECT k, lag(k) OVER () AS before FROM t) WHERE k < before";
    assert!(csv(&session, sql).await.ends_with("\n0\n"));
    assert!(spill_dir.is_dir());
    drop(session);
    assert_eq!(std::fs::read_dir(&spill_dir).unwrap().count(), 0, "spilled files are removed");
}
