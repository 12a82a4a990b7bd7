//! Run directories as tables: one and several, finished, broken off and still running.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_data::{Format, Session, SessionOptions, write_result};
use aha_rollout::rows::{self, EvalRow, MetricRow, RolloutRow};
use aha_rollout::table::{TableWriter, part_name};
use aha_rollout::{schema, steps};
use arrow::array::RecordBatch;

fn rollouts(stage: &str, step: u64, rows_count: u32, rewards: &[&str]) -> RecordBatch {
    let row = |sample_idx: u32| RolloutRow {
        stage,
        step,
        prompt_id: "p",
        source: None,
        sample_idx,
        policy_version: step - 1,
        prompt: "1+1?",
        completion: r"\boxed{2}",
        answer: Some("2"),
        tests: None,
        prompt_token_ids: &[1, 2],
        completion_token_ids: &[3, 4, 5],
        completion_logprobs: &[-0.5, -0.25, 0.0],
        completion_forced_mask: None,
        completion_policy_versions: None,
        finish_reason: "stop",
        finished_at_us: 1,
    };
    let sampled = rows::rollouts(&(0..rows_count).map(row).collect::<Vec<_>>()).unwrap();
    let parts = rewards.iter().map(|_| Some(1.0)).collect();
    let scores = steps::Scores { parts, reward: Some(1.0), error: None };
    let scores = vec![scores; rows_count as usize];
    let scored = steps::add_scores(&sampled, &names(rewards), &scores).unwrap();
    steps::add_untrained(&scored, "sample_only").unwrap()
}

fn names(rewards: &[&str]) -> Vec<String> {
    rewards.iter().map(|name| (*name).to_owned()).collect()
}

fn stage(run: &Path, name: &str, rewards: &[&str], steps_count: u64) -> TableWriter {
    let columns = schema::rollouts(&names(rewards)).unwrap();
    let table = TableWriter::open(&run.join("tables").join(name), columns).unwrap();
    for step in 1..=steps_count {
        table.write(&part_name(step), &[rollouts(name, step, 2, rewards)]).unwrap();
    }
    table
}

fn metric(run: &Path, step: u64) {
    let table = TableWriter::open(&run.join("metrics"), schema::metrics()).unwrap();
    let row = MetricRow { stage: "zero", step, name: "loss", value: 0.5, at_us: 0 };
    table.write(&part_name(step), &[rows::metrics(&[row])]).unwrap();
}

fn session() -> Session {
    Session::new(&SessionOptions::default()).unwrap()
}

async fn csv(session: &Session, sql: &str) -> String {
    let (schema, batches) = session.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let mut out = Vec::new();
    write_result(&schema, &batches, Format::Csv, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn a_run_that_has_only_begun_has_empty_tables() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pipeline.toml"), "").unwrap();
    let session = session();
    session.register_run(dir.path()).unwrap();
    assert_eq!(session.table_names(), ["evals", "metrics", "rollouts"]);
    for sql in [
        "SELECT step, avg(reward), avg(completion_len_tokens) FROM rollouts GROUP BY step",
        "SELECT step, value FROM metrics WHERE name = 'loss'",
        "SELECT model, pass_at_1 FROM evals",
    ] {
        assert_eq!(csv(&session, sql).await.lines().count(), 1, "{sql}");
    }
}

#[tokio::test]
async fn stages_are_tables_and_their_rollouts_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    stage(dir.path(), "zero", &["math", "format"], 3);
    stage(dir.path(), "sampled", &["exact"], 1);
    stage(dir.path(), "later", &["math"], 0);
    metric(dir.path(), 1);
    // What a writer leaves behind when it is killed is no part of a table.
    std::fs::write(dir.path().join("tables/zero/.step-000004.parquet.tmp"), "half").unwrap();
    std::fs::create_dir(dir.path().join("tables/nothing")).unwrap();
    let session = session();
    session.register_run(dir.path()).unwrap();
    let all = ["evals", "later", "metrics", "nothing", "rollouts", "sampled", "zero"];
    assert_eq!(session.table_names(), all);
    let sql = "SELECT stage, count(*) AS n, count(reward_math) AS m, count(reward_exact) AS e
               FROM rollouts GROUP BY stage ORDER BY stage";
    assert_eq!(csv(&session, sql).await, "stage,n,m,e\nsampled,2,0,2\nzero,6,6,0\n");
    let sql = "SELECT step, avg(reward) AS r, avg(completion_len_tokens) AS l FROM rollouts
               WHERE stage = 'zero' GROUP BY step ORDER BY step";
    assert_eq!(csv(&session, sql).await, "step,r,l\n1,1.0,3.0\n2,1.0,3.0\n3,1.0,3.0\n");
    let sql = "SELECT rollout_id, extract_boxed(completion) AS b, finished_at FROM zero LIMIT 1";
    let expected = "rollout_id,b,finished_at\nzero/1/p/0,2,1970-01-01T00:00:00.000001Z\n";
    assert_eq!(csv(&session, sql).await, expected);
    for empty in ["later", "nothing"] {
        assert_eq!(csv(&session, &format!("SELECT count(*) AS n FROM {empty}")).await, "n\n0\n");
    }
    assert_eq!(csv(&session, "SELECT name, value FROM metrics").await, "name,value\nloss,0.5\n");
}

#[tokio::test]
async fn rows_come_in_the_order_of_steps_whenever_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let table = stage(dir.path(), "zero", &["math"], 0);
    for step in (1..=12).rev() {
        table.write(&part_name(step), &[rollouts("zero", step, 2, &["math"])]).unwrap();
    }
    let session = session();
    session.register_run(dir.path()).unwrap();
    let row = |step: u64| format!("{step},0\n{step},1\n");
    let expected: String = (1..=12).map(row).collect();
    for table in ["zero", "rollouts"] {
        let sql = format!("SELECT step, sample_idx FROM {table} WHERE reward = 1");
        assert_eq!(csv(&session, &sql).await, format!("step,sample_idx\n{expected}"));
    }
}

#[tokio::test]
async fn a_completion_that_a_query_stage_kept_is_once_in_rollouts() {
    let dir = tempfile::tempdir().unwrap();
    // Characters that an object store's paths and SQL would each write in another way.
    let run = dir.path().join("run #1 100% [é]");
    stage(&run, "zero", &["math"], 2);
    let curated = run.join("tables/curated");
    std::fs::create_dir(&curated).unwrap();
    let session = session();
    session.register_run(&run).unwrap();
    let kept = "SELECT * FROM zero WHERE step = 2";
    session.write_parquet(kept, &curated.join("part-000000.parquet")).await.unwrap();
    session.register_run(&run).unwrap();
    assert_eq!(csv(&session, "SELECT count(*) AS n FROM curated").await, "n\n2\n");
    assert_eq!(csv(&session, "SELECT count(*) AS n FROM rollouts").await, "n\n4\n");
}

#[tokio::test]
async fn several_runs_are_joined_with_a_column_run() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    stage(&a, "zero", &["math"], 2);
    stage(&b, "zero", &["format"], 1);
    stage(&b, "extra", &["format"], 1);
    metric(&b, 1);
    let session = session();
    session.register_runs(&[a.clone(), b.clone(), a.clone()]).unwrap();
    let sql = "SELECT run, count(*) AS n, count(reward_math) AS m, count(reward_format) AS f
               FROM zero GROUP BY run ORDER BY run";
    assert_eq!(csv(&session, sql).await, "run,n,m,f\na,4,4,0\nb,2,0,2\n");
    let sql = "SELECT run, count(*) AS n FROM rollouts GROUP BY run ORDER BY run";
    assert_eq!(csv(&session, sql).await, "run,n\na,4\nb,4\n");
    assert_eq!(csv(&session, "SELECT run, step FROM metrics").await, "run,step\nb,1\n");
    assert_eq!(csv(&session, "SELECT run FROM extra WHERE run = 'a'").await, "run\n");
    assert_eq!(csv(&session, "SELECT run FROM evals").await, "run\n");
}

#[tokio::test]
async fn evaluations_of_a_run_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let table = TableWriter::open(&dir.path().join("tables/evals"), schema::evals()).unwrap();
    let row = EvalRow {
        stage: "test".to_owned(),
        model: "zero".to_owned(),
        dataset: "held_out".to_owned(),
        problem_count: 1,
        k: 4,
        pass_at_1: 0.25,
        pass_at_1_se: None,
        pass_at_k: 1.0,
        cons_at_k: Some(1.0),
        cons_at_k_se: None,
        completion_len_tokens_mean: 3.5,
        ks: vec![1, 2, 4],
        pass_at_ks: vec![0.25, 0.5, 1.0],
        ..EvalRow::default()
    };
    table.write("part-000000.parquet", &[rows::evals(&[row])]).unwrap();
    let session = session();
    session.register_run(dir.path()).unwrap();
    let sql = "SELECT model, pass_at_1, pass_at_1_se FROM evals";
    assert_eq!(csv(&session, sql).await, "model,pass_at_1,pass_at_1_se\nzero,0.25,\n");
    let sql = "SELECT unnest(ks) AS k, unnest(pass_at_ks) AS pass_at_k FROM evals";
    assert_eq!(csv(&session, sql).await, "k,pass_at_k\n1,0.25\n2,0.5\n4,1.0\n");
}

#[tokio::test]
async fn what_is_no_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (path, message) in [
        (dir.path().to_owned(), "is not a run directory"),
        (dir.path().join("nowhere"), "no run directory at"),
    ] {
        let error = session().register_run(&path).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("pipeline.toml")));
    }
}

/// Goal: a query during a run sees whole steps, and more of them as time goes on.
/// Method: one thread writes steps of two rows each while queries count rows and steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_run_is_read_while_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let table = stage(dir.path(), "zero", &["math"], 0);
    let is_done = AtomicBool::new(false);
    let session = session();
    session.register_run(dir.path()).unwrap();
    let steps_count = 60;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for step in 1..=steps_count {
                table.write(&part_name(step), &[rollouts("zero", step, 2, &["math"])]).unwrap();
            }
            is_done.store(true, Ordering::Release);
        });
        let mut seen = Vec::new();
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                while seen.is_empty() || !is_done.load(Ordering::Acquire) {
                    let sql = "SELECT count(*) AS n, count(DISTINCT step) AS s FROM rollouts";
                    let answer = csv(&session, sql).await;
                    let (n, s) =
                        answer.trim_end().split_once('\n').unwrap().1.split_once(',').unwrap();
                    let (n, s): (u64, u64) = (n.parse().unwrap(), s.parse().unwrap());
                    assert_eq!(n, 2 * s, "a step is seen whole or not at all");
                    seen.push(n);
                }
            });
        });
        assert!(seen.is_sorted(), "rows never vanish: {seen:?}");
    });
    let answer = csv(&session, "SELECT count(*) AS n FROM zero").await;
    assert_eq!(answer, format!("n\n{}\n", 2 * steps_count));
}
