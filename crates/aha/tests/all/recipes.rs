//! The pipelines that ship, in miniature: a model made from nothing, a few problems, two steps.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::aha;

/// A model with room for the template of R1-Zero in bytes.
const MODEL: &str = "models.base={ init = \"random\", hidden_size = 32, intermediate_size = 48, \
                     layers = 1, heads = 2, kv_heads = 1, head_dim = 16, init_std = 0.2, \
                     max_position_embeddings = 1024, tokenizer = { train = \"SELECT prompt AS text \
                     FROM problems\", vocab_size = 300 } }";

fn recipe(name: &str) -> PathBuf {
    let root =
        Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..");
    root.join("pipelines").join(name)
}

/// Runs a recipe with two steps of its stage `trained`, and gives what it left, by SQL.
fn run(name: &str, trained: &str, more: &[&str]) -> impl Fn(&str) -> Value {
    let temp = tempfile::tempdir().unwrap();
    let problem = |n: u32| {
        let split = if n < 8 { "train" } else { "test" };
        json!({"id": format!("p{n}"), "prompt": format!("{n}+1="), "answer": format!("{}", n + 1), "split": split})
    };
    let problems: String = (0..12).map(|n| format!("{}\n", problem(n))).collect();
    fs_err::write(temp.path().join("problems.jsonl"), problems).unwrap();
    let small = ["steps=2", "prompts_per_step=4", "group_size=4", "sampling.max_tokens=8"];
    let mut sets = vec![
        MODEL.to_owned(),
        "tables.problems=problems.jsonl".to_owned(),
        "run.threads=1".to_owned(),
        "run.kv_cache=8MiB".to_owned(),
    ];
    sets.extend(small.map(|set| format!("stage.{trained}.{set}")));
    for stage in ["before", "after"] {
        sets.extend([format!("stage.{stage}.k=2"), format!("stage.{stage}.max_tokens=8")]);
    }
    sets.extend(more.iter().map(|&set| set.to_owned()));
    let path = recipe(name);
    let mut args = vec!["run", path.to_str().unwrap(), "--dir", "run"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let outcome = aha(temp.path(), &args);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    move |sql| aha(temp.path(), &["query", sql, "--run", "run", "--json"]).json()
}

#[test]
fn r1_zero_evaluates_trains_and_evaluates_again() {
    let query = run("r1-zero.toml", "zero", &[]);
    let rows = "SELECT stage, count(*) AS n FROM rollouts GROUP BY stage ORDER BY stage";
    let eval = |stage: &str| json!({"stage": stage, "n": 8});
    assert_eq!(
        query(rows),
        json!([eval("after_zero"), eval("before_base"), {"stage": "zero", "n": 32}])
    );
    let evals = "SELECT stage, model FROM evals ORDER BY stage DESC";
    let want = json!([{"stage": "before", "model": "base"}, {"stage": "after", "model": "zero"}]);
    assert_eq!(query(evals), want);
}

/// One completion a prompt; the critic learns in each step, and the policy from the second on.
#[test]
fn ppo_trains_a_critic_and_then_the_policy() {
    let sets =
        ["stage.ppo.group_size=1", "stage.ppo.minibatches=2", "stage.ppo.critic.warmup_steps=1"];
    let query = run("ppo.toml", "ppo", &sets);
    let rows = "SELECT step, count(*) AS n, count(*) FILTER (WHERE is_trained) AS trained, \
                count(*) FILTER (WHERE skip_reason = 'critic_warmup') AS warming, \
                count(completion_values) AS appraised FROM ppo GROUP BY step ORDER BY step";
    let step = |step: u64, trained: u64| json!({"step": step, "n": 4, "trained": trained, "warming": 4 - trained, "appraised": 4});
    assert_eq!(query(rows), json!([step(1, 0), step(2, 4)]));
    let losses = "SELECT count(*) AS n FROM metrics WHERE name = 'value_loss'";
    assert_eq!(query(losses), json!([{"n": 2}]));
}

/// No completion is right, so every group is replaced as often as the eight problems allow.
#[test]
fn dapo_replaces_groups_without_signal() {
    let query = run("dapo.toml", "dapo", &["stage.dapo.minibatches=2"]);
    let rows = "SELECT step, count(DISTINCT prompt_id) AS prompts, count(*) AS n, \
                count(*) FILTER (WHERE skip_reason = 'no_signal') AS replaced \
                FROM dapo GROUP BY step ORDER BY step";
    let step = |step: u64| json!({"step": step, "prompts": 8, "n": 32, "replaced": 32});
    assert_eq!(query(rows), json!([step(1), step(2)]));
}
