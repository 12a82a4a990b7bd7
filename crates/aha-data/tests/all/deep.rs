//! Goal: every query either works or is refused; none overflows a stack.
//! Method: each kind of chain that makes a plan deep, far deeper than the caller's stack would take, is
//! planned and answered.

use aha_data::deep::QUERY_TERMS_MAX;
use aha_data::{Session, SessionOptions};

/// `count` times `text`, joined.
fn chain(text: &str, joint: &str, count: usize) -> String {
    vec![text; count].join(joint)
}

#[tokio::test]
async fn deep_queries_are_answered() {
    let session = Session::new(&SessionOptions::default()).unwrap();
    let steps = (1..=200).map(|i| format!("c{i} AS (SELECT a FROM c{})", i - 1));
    let steps = steps.collect::<Vec<_>>().join(", ");
    let one = "FROM (SELECT 1 AS a)";
    let queries = [
        format!("SELECT {} AS x {one}", chain("a = 1", " OR ", 800)),
        format!("SELECT {} AS x {one}", chain("a", " + ", 800)),
        format!("SELECT {} AS x", chain("1", "+", 800)),
        format!("SELECT a{} AS x {one}", " IS NULL".repeat(800)),
        format!("SELECT a{} AS x {one}", "::bigint::int".repeat(400)),
        chain("SELECT 1 AS a", " UNION ALL ", 300),
        chain("SELECT 1 AS a", " EXCEPT ", 150),
        format!("WITH c0 AS (SELECT 1 AS a), {steps} SELECT a FROM c200"),
    ];
    for sql in queries {
        let begins = sql.chars().take(40).collect::<String>();
        session.schema_of(&sql).await.unwrap_or_else(|error| panic!("{begins}: {error}"));
        session.collect(&sql).await.unwrap_or_else(|error| panic!("{begins}: {error}"));
    }
}

#[tokio::test]
async fn deeper_ones_are_refused_with_a_remedy() {
    let session = Session::new(&SessionOptions::default()).unwrap();
    let sql = format!("SELECT {} AS x", chain("a", " OR ", QUERY_TERMS_MAX));
    for error in [session.schema_of(&sql).await.err(), session.collect(&sql).await.err()] {
        let error = error.expect("it is too deep");
        assert!(error.to_string().contains("words and operators"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("IN (…)")), "{error:?}");
    }
}
