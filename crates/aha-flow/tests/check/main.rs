//! `aha check` on pipelines: broken ones and a good one, word for word.
//!
//! Each `NAME.toml` here is checked, and what comes out must be `NAME.expected`. After a change that
//! is meant, `UPDATE_EXPECT=1 cargo test --release -p aha-flow --test check` writes the files anew.
//! The pipelines that ship are checked in `shipped`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod room;
mod shipped;
mod world;

use std::path::{Path, PathBuf};

use aha_flow::pipeline::{Key, Problem, Text, parse, reference};
use world::{check_text, shown};

fn folder() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("tests/check")
}

fn outcome(name: &str) -> String {
    let text = fs_err::read_to_string(folder().join(format!("{name}.toml"))).unwrap();
    shown(&format!("{name}.toml"), &text)
}

fn expect(name: &str) {
    let path = folder().join(format!("{name}.expected"));
    let found = outcome(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs_err::write(&path, &found).unwrap();
    }
    let expected = fs_err::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{name}: expected\n{expected}\nbut found\n{found}");
}

macro_rules! golden {
    ($($test:ident: $name:literal),+ $(,)?) => { $(
        #[test]
        fn $test() {
            expect($name);
        }
    )+ };
}

golden! {
    an_unknown_key_is_refused: "unknown_key",
    a_wrong_type_is_refused: "wrong_type",
    a_missing_column_is_refused: "missing_column",
    an_unknown_table_is_refused: "unknown_table",
    stages_in_a_circle_are_refused: "cyclic_stages",
    bad_sql_is_refused: "bad_sql",
    a_group_of_one_is_refused: "group_size_1",
    a_missing_model_is_refused: "missing_model",
    what_int8_weights_break_is_said: "good_int8",
    what_a_sampler_that_runs_ahead_costs_is_said: "good_ahead",
    adapters_are_planned: "good_lora",
    adapters_that_can_not_be_are_refused: "bad_lora",
    temperatures_out_of_range_are_refused: "temperatures",
    a_tokenizer_that_does_not_fit_is_refused: "tokenizer_mismatch",
    a_vocabulary_without_room_is_refused: "vocab_too_small",
    a_model_that_no_loader_would_take_is_refused: "model_ranges",
    an_evaluation_that_can_not_be_is_refused: "bad_eval",
    thinking_and_ranks_that_can_not_be_are_refused: "bad_thinking",
    models_in_the_wrong_role_are_refused: "reward_models",
    a_critic_that_can_not_be_is_refused: "critic",
    a_critic_is_in_the_plan: "good_critic",
    references_and_teachers_that_do_not_fit_are_refused: "teachers",
    a_cache_and_places_without_room_are_refused: "no_room",
    everything_wrong_is_reported_at_once: "everything",
    rewards_that_can_not_be_are_refused: "rewards",
    rewards_that_wait_are_checked: "rewards_that_wait",
    mixtures_and_endpoints_that_can_not_be_are_refused: "mixture",
    a_mixture_and_an_endpoint_give_a_plan: "good_mixture",
    a_good_pipeline_gives_a_plan: "good",
    every_reward_that_reads_text_gives_a_plan: "good_rewards",
    pairs_and_teachers_give_a_plan: "good_teachers",
    how_long_a_model_thinks_is_in_the_plan: "good_thinking",
    a_secret_that_is_not_set_is_a_warning: "good_judge",
}

fn good() -> String {
    fs_err::read_to_string(folder().join("good.toml")).unwrap()
}

#[test]
fn a_problem_names_file_line_and_remedy() {
    for entry in fs_err::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".toml") || name.starts_with("good") {
            continue;
        }
        let text = fs_err::read_to_string(&path).unwrap();
        let problems = check_text(&name, &text, &[]).expect_err(&name);
        for problem in problems.iter() {
            assert_eq!(problem.file, name);
            let line = text.lines().nth(problem.line as usize - 1).unwrap();
            assert_eq!(line, problem.source_line);
            assert!(problem.column as usize <= line.chars().count(), "{problem}");
            assert!(problem.hint.is_some(), "{problem}");
        }
        let count = problems.to_json().as_array().map_or(0, Vec::len);
        assert_eq!(count, problems.iter().count());
    }
}

#[test]
fn what_is_written_reads_back_as_the_same_pipeline() {
    let rewards = fs_err::read_to_string(folder().join("good_rewards.toml")).unwrap();
    let thinking = fs_err::read_to_string(folder().join("good_thinking.toml")).unwrap();
    let mut written = String::new();
    let critic = fs_err::read_to_string(folder().join("good_critic.toml")).unwrap();
    let teachers = fs_err::read_to_string(folder().join("good_teachers.toml")).unwrap();
    let lora = fs_err::read_to_string(folder().join("good_lora.toml")).unwrap();
    let mixture = fs_err::read_to_string(folder().join("good_mixture.toml")).unwrap();
    for text in [rewards, thinking, critic, teachers, lora, mixture, good()] {
        let plan = check_text("good.toml", &text, &[]).unwrap();
        written = plan.pipeline.to_toml();
        let again = parse(Text { path: "pipeline.toml", text: &written, sets: &[] })
            .unwrap_or_else(|problems| panic!("{problems}\n{written}"));
        assert_eq!(again, plan.pipeline);
        assert_eq!(again.to_toml(), written);
    }
    for key in ["kv_cache", "checkpoint_keep", "no_signal_share_max", "advantage_eps", "betas"] {
        assert!(written.contains(&format!("{key} = ")), "{key} in\n{written}");
    }
}

#[test]
fn a_benchmark_brings_its_verifier_unless_the_stage_has_one() {
    let text = r#"
        [models]
        base = "models/base"
        [tables]
        problems = "datasets/problems.parquet"
        [[stage]]
        name = "scores"
        kind = "eval"
        model = "base"
        data = "SELECT id, prompt, level AS answer FROM problems"
        benchmark = "gsm8k"
    "#;
    let written = |sets: &[String]| check_text("p.toml", text, sets).unwrap().pipeline.to_toml();
    let brought = written(&[]);
    assert!(brought.contains(r#"extract = ["answer_tag", "boxed", "hashes"]"#), "{brought}");
    let again = parse(Text { path: "pipeline.toml", text: &brought, sets: &[] }).unwrap();
    assert_eq!(again.to_toml(), brought);
    let own = written(&["stage.scores.reward={ kind = \"exact\" }".to_owned()]);
    assert!(own.contains(r#"kind = "exact""#) && !own.contains("hashes"), "{own}");
}

#[test]
fn overrides_replace_what_the_file_says() {
    let sets = [
        "run.seed=7",
        "run.device=cuda:1",
        "stage.zero.steps=3",
        "stage.zero.sampling.temperature=0.5",
        "stage.zero.objective = { kl = 0 }",
        "stage.zero.rewards=[{ kind = \"exact\" }]",
    ]
    .map(str::to_owned);
    let plan = check_text("good.toml", &good(), &sets).unwrap();
    assert_eq!(plan.pipeline.run.seed, 7);
    assert_eq!(plan.pipeline.run.device, aha_flow::pipeline::Device::Cuda(vec![1]));
    let aha_flow::pipeline::StageKind::Rl(rl) = &plan.pipeline.stage("zero").unwrap().kind else {
        panic!("zero is an rl stage")
    };
    assert_eq!((rl.steps, rl.sampling.temperature, rl.objective.kl_coef), (3, 0.5, 0.0));
    // Tables are merged: what the override doesn't name stays.
    assert_eq!((rl.sampling.max_tokens, rl.objective.clip_high), (128, 0.2));
    assert_eq!(rl.rewards.len(), 1);
}

#[test]
fn the_plan_says_which_tokens_the_loss_is_over() {
    let loss = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let plan = check_text("good.toml", &good(), &sets).unwrap().to_text();
        let lines = plan.lines().filter(|line| line.trim_start().starts_with("loss      "));
        lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let (completion, all) = (
        "loss      mean over the completion tokens of a batch",
        "loss      mean over all tokens of a batch",
    );
    let pairs = "loss      mean of -log sigmoid(chosen - rejected - margin) + \
                 0.01 (chosen + rejected)^2 over a batch";
    assert_eq!(loss(&[]), [completion, pairs, completion]);
    assert_eq!(loss(&["stage.cold.loss_on=all"]), [all, pairs, completion]);
    let text = "stage.cold.data=SELECT prompt AS text FROM problems";
    assert_eq!(loss(&[text]), [all, pairs, completion]);
    let chats = "stage.cold.data=SELECT prompt AS messages FROM problems";
    for (loss_on, over) in [
        ("completion", "the tokens of all the assistant's turns"),
        ("last", "the tokens of the assistant's last turns"),
        ("flagged", "the tokens of the turns that are flagged"),
        ("all", "all tokens"),
    ] {
        let loss_on = format!("stage.cold.loss_on={loss_on}");
        let found = loss(&[chats, "stage.cold.template=r1-zero", &loss_on]);
        assert_eq!(found[0], format!("loss      mean over {over} of a batch"));
    }
}

#[test]
fn conversations_need_a_chat_template_and_only_theirs_have_turns_to_choose_from() {
    let problems = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let problems = check_text("good.toml", &good(), &sets).unwrap_err();
        problems.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>()
    };
    let chats = "stage.cold.data=SELECT prompt AS messages FROM problems";
    for template in ["stage.cold.template=raw", "stage.cold.template=Q: {prompt}"] {
        let found = problems(&[chats, template]);
        assert!(found.len() == 1 && found[0].contains("need a chat template"), "{found:?}");
    }
    for loss_on in ["last", "flagged"] {
        let found = problems(&[&format!("stage.cold.loss_on={loss_on}")]);
        assert!(
            found.len() == 1 && found[0].contains("chooses turns of conversations"),
            "{found:?}"
        );
    }
    let levels = "stage.cold.data=SELECT level AS messages FROM problems";
    let found = problems(&[levels, "stage.cold.template=r1-zero"]);
    assert!(found.len() == 1 && found[0].contains("must be a list of structs"), "{found:?}");
}

#[test]
fn problems_of_overrides_are_shown_like_those_of_the_file() {
    let sets =
        ["stage.zeroo.steps=3", "stage.zero.stepps=3", "stage.zero.steps=many", "run.seed", "x.=1"]
            .map(str::to_owned);
    let problems = check_text("good.toml", &good(), &sets).unwrap_err();
    let shown: Vec<(&str, u32, &str)> =
        problems.iter().map(|p| (p.file.as_str(), p.column, p.message.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("--set", 7, "there is no stage `zeroo`"),
            ("--set", 12, "unknown key `stage.zero.stepps`"),
            ("--set", 18, "`stage.zero.steps` must be a whole number, got the string \"many\""),
            ("--set", 1, "an override is KEY=VALUE, got `run.seed`"),
            ("--set", 1, "the key of the override `x.=1` is not valid TOML"),
        ]
    );
}

#[test]
fn a_number_that_is_too_large_is_not_taken_for_another() {
    let text = good().replace("[run]", "[run]\nsequences_max = 99999999999999999999");
    let problems = check_text("p.toml", &text, &[]).unwrap_err();
    let said = |p: &&Problem| p.message.contains("99999999999999999999 does not fit");
    let hint = problems.iter().find(said).and_then(|problem| problem.hint.clone());
    assert!(hint.is_some_and(|hint| hint.contains(&i64::MAX.to_string())), "{problems}");
    assert!(problems.iter().all(|problem| !problem.message.contains("got 0")), "{problems}");
}

#[test]
fn every_syntax_error_is_reported() {
    let problems = check_text("p.toml", "[run\nseed = = 1\n", &[]).unwrap_err();
    assert!(problems.iter().count() >= 2, "{problems}");
    assert!(problems.iter().all(|p| p.message.starts_with("not valid TOML")), "{problems}");
}

#[test]
fn a_pipeline_that_wants_more_memory_than_allowed_is_refused() {
    let sets = ["run.memory=64MiB".to_owned()];
    let problems = check_text("good.toml", &good(), &sets).unwrap_err();
    let problem = problems.iter().next().unwrap();
    assert!(problem.message.contains("will want more than `run.memory` = 64 MiB"), "{problem}");
}

#[test]
fn every_key_is_documented() {
    fn check(place: &str, keys: &[Key]) {
        for key in keys {
            let place = format!("{place} {}", key.name);
            assert!(!key.doc.trim().is_empty(), "{place}");
            assert!(key.words.iter().all(|(_, doc)| !doc.trim().is_empty()), "{place}");
            // Keys of other crates' tables are documented there.
            if !["objective", "rewards", "reward", "rank_by"].contains(&key.name.as_str()) {
                check(&place, &key.keys);
            }
        }
    }
    for table in reference() {
        assert!(!table.keys.is_empty() && !table.about.trim().is_empty(), "{}", table.heading);
        check(&table.heading, &table.keys);
    }
}

#[test]
fn a_tables_keys_have_the_defaults_of_the_stage_that_it_is_in() {
    let rate = |kind: &str| {
        let tables = reference();
        let table = tables.iter().find(|table| table.heading.contains(kind)).unwrap();
        let optimizer = table.keys.iter().find(|key| key.name == "optimizer").unwrap();
        optimizer.keys.iter().find(|key| key.name == "lr").unwrap().default.clone()
    };
    assert_eq!(rate("\"sft\"").as_deref(), Some("5e-5"));
    assert_eq!(rate("\"rl\"").as_deref(), Some("3e-6"));
}
