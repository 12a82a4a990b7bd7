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
    let mut sets = small_rl(trained);
    sets.extend(["before", "after"].iter().flat_map(|stage| small_eval(stage)));
    sets.extend(more.iter().map(|&set| set.to_owned()));
    run_with(name, MODEL, &sets)
}

fn small_rl(stage: &str) -> Vec<String> {
    let small = ["steps=2", "prompts_per_step=4", "group_size=4", "sampling.max_tokens=8"];
    small.map(|set| format!("stage.{stage}.{set}")).to_vec()
}

fn small_eval(stage: &str) -> Vec<String> {
    vec![format!("stage.{stage}.k=2"), format!("stage.{stage}.max_tokens=8")]
}

/// A stage of fine-tuning with few steps of few short examples.
fn small_sft(stage: &str) -> Vec<String> {
    let small = ["max_steps=2", "batch_size=4", "max_tokens=768"];
    small.map(|set| format!("stage.{stage}.{set}")).to_vec()
}

/// A few problems, their solutions, other prompts with answers, and pairs of answers to these.
fn write_tables(dir: &Path) {
    let problem = |n: u32| {
        let split = if n < 8 { "train" } else { "test" };
        json!({"id": format!("p{n}"), "prompt": format!("{n}+1="), "answer": format!("{}", n + 1), "split": split})
    };
    let worked = |n: u32| {
        let completion = format!("<think>so</think><answer>{}</answer>", n + 1);
        json!({"id": format!("c{n}"), "prompt": format!("{n}+1="), "completion": completion})
    };
    let solved = |n: u32| {
        let (prompt, equation) = (format!("{n}+1="), format!("( {n}.0 + 1.0 ) = {}", n + 1));
        json!({"id": format!("w{n}"), "prompt": prompt, "solution": equation, "answer": format!("{}", n + 1),
               "split": "train"})
    };
    let said = |n: u32| json!({"id": format!("g{n}"), "prompt": format!("Say {n}."), "completion": format!("{n}!")});
    let pair = |n: u32| {
        json!({"id": format!("q{n}"), "prompt": format!("Say {n}."),
               "chosen": format!("{n}!"), "rejected": "no"})
    };
    let write = |name: &str, row: &dyn Fn(u32) -> Value| {
        let rows: String = (0..12).map(|n| format!("{}\n", row(n))).collect();
        fs_err::write(dir.join(name), rows).unwrap();
    };
    write("problems.jsonl", &problem);
    write("cold-start.jsonl", &worked);
    write("solved.jsonl", &solved);
    write("general.jsonl", &said);
    write("preferences.jsonl", &pair);
}

/// Runs a recipe with a model and overrides.
fn run_with(name: &str, model: &str, more: &[String]) -> impl Fn(&str) -> Value + use<> {
    let temp = tempfile::tempdir().unwrap();
    write_tables(temp.path());
    let mut sets = vec![
        model.to_owned(),
        "tables.problems=problems.jsonl".to_owned(),
        "run.threads=1".to_owned(),
        "run.kv_cache=8MiB".to_owned(),
    ];
    sets.extend(more.iter().cloned());
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

/// The cold start's examples are equations without the zeros behind their points.
#[test]
fn word_problems_are_thought_of_in_equations() {
    let mut sets = small_rl("grpo");
    sets.extend(small_sft("cold"));
    sets.extend(["before", "after"].iter().flat_map(|stage| small_eval(stage)));
    sets.push("tables.worked=solved.jsonl".to_owned());
    let model = MODEL.replace("models.base", "models.smollm2");
    let query = run_with("smollm2-word-problems.toml", &model, &sets);
    let examples = "SELECT DISTINCT completion = '<think>( ' || substr(example_id, 2) || ' + 1 ) = ' || n || '</think> \
                    <answer>' || n || '</answer>' AS as_told \
                    FROM (SELECT *, CAST(substr(example_id, 2) AS INT) + 1 AS n FROM cold)";
    assert_eq!(query(examples), json!([{"as_told": true}]));
    let evals = "SELECT model, problem_count FROM evals ORDER BY stage DESC";
    let row = |model: &str| json!({"model": model, "problem_count": 4});
    assert_eq!(query(evals), json!([row("cold"), row("grpo")]));
    assert_eq!(query("SELECT count(*) AS n FROM grpo"), json!([{"n": 32}]));
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
    let step = |step: u64, trained: u64| {
        let warming = 4 - trained;
        json!({"step": step, "n": 4, "trained": trained, "warming": warming, "appraised": 4})
    };
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

/// What was kept of the candidates, which are all wrong, is nothing: general data fill their place.
fn r1_story(name: &str, more: &[&str]) -> impl Fn(&str) -> Value + use<> {
    let mut sets: Vec<String> = ["cold_start=cold-start.jsonl", "general=general.jsonl"]
        .map(|set| format!("tables.{set}"))
        .to_vec();
    sets.extend(["cold", "tuned"].iter().flat_map(|stage| small_sft(stage)));
    sets.extend(["reasoning", "r1"].iter().flat_map(|stage| small_rl(stage)));
    sets.extend(small_eval("scores"));
    sets.extend(
        ["stage.candidates.n=2", "stage.candidates.sampling.max_tokens=8"].map(str::to_owned),
    );
    sets.extend(more.iter().map(|&set| set.to_owned()));
    run_with(name, MODEL, &sets)
}

const STORY: &str = "SELECT model FROM evals ORDER BY \
                     array_position(['base', 'cold', 'reasoning', 'tuned', 'r1'], model)";

fn models(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"model": name})).collect()
}

#[test]
fn r1_goes_through_its_four_stages() {
    let preference = ["max_steps=2", "batch_size=4", "max_tokens=768"]
        .map(|set| format!("stage.preference.{set}"));
    let preference: Vec<&str> = preference.iter().map(String::as_str).collect();
    let query =
        r1_story("r1.toml", &[&["tables.preferences=preferences.jsonl"], &preference[..]].concat());
    assert_eq!(query(STORY), models(&["base", "cold", "reasoning", "tuned", "r1"]));
    let kept = "SELECT source, count(*) AS n FROM curated GROUP BY source";
    assert_eq!(query(kept), json!([{"source": "general", "n": 1}]));
    // Three of four prompts are scored by the rule, the others by the reward model, and none by both.
    let scored = "SELECT source, count(*) AS n, count(reward_math) AS by_rule, count(reward_model) AS preferred \
                  FROM r1 GROUP BY source ORDER BY source";
    let row = |source: &str, [n, by_rule, preferred]: [u32; 3]| {
        json!({"source": source, "n": n,
               "by_rule": by_rule, "preferred": preferred})
    };
    assert_eq!(query(scored), json!([row("general", [8, 0, 8]), row("reasoning", [24, 24, 0])]));
    let columns = "SELECT count(reward_language) = count(*) AS spoken FROM reasoning";
    assert_eq!(query(columns), json!([{"spoken": true}]));
}

/// The judge is left out, which would be on another machine; so is the size that only such a machine bears.
#[test]
fn r1_for_a_real_model_goes_through_its_stages() {
    let rewards = "stage.r1.rewards=[{ kind = \"math\", sources = [\"reasoning\"] }, \
                   { kind = \"format\", weight = 0.2 }, { kind = \"language\", weight = 0.5 }]";
    let query = r1_story(
        "r1-qwen2.5-1.5b.toml",
        &[
            "stage.tried.sampling.max_tokens=8",
            "stage.tried.n=2",
            "run.sequences_max=8",
            "stage.r1.prompts_per_step=2",
            rewards,
        ],
    );
    assert_eq!(query(STORY), models(&["base", "cold", "reasoning", "tuned", "r1"]));
    // None of the problems is solved: some are kept as not solved yet.
    let kept = "SELECT count(*) > 0 AND max(pass_rate) = 0 AS kept FROM solvable";
    assert_eq!(query(kept), json!([{"kept": true}]));
}

/// The teacher is a model that knows no more than the student: what it writes is taken as it is.
#[test]
fn distill_takes_both_paths_from_one_student() {
    let mut sets = small_rl("student_zero");
    sets.extend(small_sft("distilled"));
    sets.extend(["teacher_scores", "scores"].iter().flat_map(|stage| small_eval(stage)));
    let student = MODEL
        .replace("models.base", "models.student")
        .replace("init_std", "init_seed = 2, init_std");
    sets.push(student);
    sets.extend(
        [
            "stage.samples.n=2",
            "stage.samples.sampling.max_tokens=8",
            "stage.curated.sql=SELECT prompt_id AS id, prompt, completion FROM samples",
        ]
        .map(str::to_owned),
    );
    let query = run_with("distill.toml", &MODEL.replace("models.base", "models.teacher"), &sets);
    let order = "SELECT model FROM evals ORDER BY \
                 array_position(['teacher', 'student', 'student_zero', 'distilled'], model)";
    assert_eq!(query(order), models(&["teacher", "student", "student_zero", "distilled"]));
    assert_eq!(query("SELECT count(*) AS n FROM distilled"), json!([{"n": 16}]));
}

#[test]
fn thinking_budgets_are_kept_and_their_accuracy_is_told() {
    let budgets = [("at_once", 0), ("short", 4), ("as_trained", 12), ("waits", 12)];
    let sets = budgets.iter().flat_map(|(stage, tokens)| {
        // Each byte of what closes is a token; the least of them has 18.
        let keys = [("k", 2), ("max_tokens", 64), ("thinking.max_tokens", *tokens)];
        keys.map(|(key, value)| format!("stage.{stage}.{key}={value}"))
    });
    let query = run_with("thinking-budget.toml", MODEL, &sets.collect::<Vec<_>>());
    // Thinking and its end; a model without sense rarely ends it by itself.
    let most = "SELECT stage, max(array_position(completion_forced_mask, true)) AS first, count(*) AS n, \
                count(*) FILTER (WHERE array_has(completion_forced_mask, true)) AS forced \
                FROM rollouts GROUP BY stage ORDER BY stage";
    let found = query(most);
    let row = |stage: &str, tokens: u64| {
        let rows = found.as_array().unwrap();
        let row = rows.iter().find(|row| row["stage"] == format!("{stage}_base")).unwrap();
        assert_eq!(row["n"], 8, "{found}");
        assert!(row["first"].as_u64().unwrap() <= tokens + 1, "{found}");
        row["forced"].as_u64().unwrap()
    };
    let forced: Vec<u64> = budgets.iter().map(|(stage, tokens)| row(stage, *tokens)).collect();
    assert_eq!(forced[0], 8, "{found}");
    assert!(forced.iter().all(|count| *count > 0), "{found}");
    let evals = query("SELECT rank_by, count(bon_at_k) AS n FROM evals GROUP BY rank_by");
    assert_eq!(evals, json!([{"rank_by": "length", "n": 4}]));
    assert_eq!(query("SELECT count(*) AS n FROM by_budget"), json!([{"n": 4}]));
}
