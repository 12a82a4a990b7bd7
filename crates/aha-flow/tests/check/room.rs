//! What a pipeline leaves open is chosen by the memory that there is, written down, and kept.

use aha_flow::pipeline::{Auto, Pipeline, Plan, Problems, Room, StageKind, Text, parse};

use crate::world::check_room;

/// A training stage that leaves both choices to us.
const OPEN: &str = r#"
[models]
base = "models/base"

[tables]
problems = "datasets/problems.parquet"

[[stage]]
name = "tuned"
kind = "sft"
model = "base"
max_tokens = 512
data = "SELECT prompt, answer AS completion FROM problems"
"#;

fn check(sets: &[&str], room: Room<'_>) -> Result<Plan, Problems> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    check_room(OPEN, &sets, room)
}

/// Tokens of a micro-batch, whether activations are computed again, and the memory of the stage.
fn chosen(plan: &Plan) -> (u32, bool, u64) {
    let StageKind::Sft(sft) = &plan.pipeline.stages[0].kind else { panic!("sft") };
    let (Auto::Given(tokens), Auto::Given(is_on)) =
        (sft.micro_batch_tokens, sft.activation_checkpointing)
    else {
        panic!("nothing was chosen: {sft:?}")
    };
    (tokens, is_on, plan.memory[0].total_bytes())
}

/// What a plan with these values, given in the file, needs.
fn need(tokens: u32, is_on: bool) -> u64 {
    let sets = [
        format!("stage.tuned.micro_batch_tokens={tokens}"),
        format!("stage.tuned.activation_checkpointing={is_on}"),
    ];
    chosen(&check(&[&sets[0], &sets[1]], Room::default()).unwrap()).2
}

fn free(bytes: u64) -> Room<'static> {
    Room { free_bytes: Some(bytes), ..Room::default() }
}

#[test]
fn the_largest_micro_batch_that_fits_is_chosen_and_written_down() {
    assert_eq!(chosen(&check(&[], Room::default()).unwrap()).0, 4096);
    assert_eq!(
        chosen(&check(&[], free(need(4096, false))).unwrap()),
        (4096, false, need(4096, false))
    );
    let plan = check(&[], free(need(2048, false))).unwrap();
    assert_eq!(chosen(&plan), (2048, false, need(2048, false)));
    assert!(plan.to_text().contains("passes    of at most 2,048 tokens\n"), "{}", plan.to_text());
    assert_eq!(plan.to_json()["stages"][0]["micro_batch_tokens"], 2048);
    let written = plan.pipeline.to_toml();
    assert!(written.contains("micro_batch_tokens = 2048\n"), "{written}");
    assert!(written.contains("activation_checkpointing = false\n"), "{written}");
}

#[test]
fn activations_are_computed_again_only_if_nothing_fits_otherwise() {
    assert!(!chosen(&check(&[], free(need(512, false))).unwrap()).1);
    let plan = check(&[], free(need(512, false) - 1)).unwrap();
    let (tokens, is_on, bytes) = chosen(&plan);
    assert!(tokens > 512 && is_on && bytes < need(512, false), "{tokens} {is_on} {bytes}");
    assert!(plan.to_text().contains("tokens, activations computed again\n"));
}

#[test]
fn the_pipelines_own_limit_comes_before_what_the_machine_has() {
    let set = format!("run.memory={}", need(1024, false));
    assert_eq!(chosen(&check(&[&set], free(1)).unwrap()).0, 1024);
    let little = format!("run.memory={}", need(512, true) - 1);
    let problems = check(&[&little], free(u64::MAX)).unwrap_err().to_string();
    assert!(problems.contains("more than `run.memory`"), "{problems}");
    assert!(problems.contains("lower `max_tokens`"), "{problems}");
}

#[test]
fn what_no_machine_of_this_size_can_do_is_refused() {
    assert!(check(&[], free(need(512, true))).is_ok());
    let problems = check(&[], free(need(512, true) - 1)).unwrap_err().to_string();
    assert!(problems.contains("stage `tuned` will want more than the"), "{problems}");
    assert!(problems.contains("allow more memory by `run.memory`"), "{problems}");
    // What is given is given; the machine may be another one.
    let given = ["stage.tuned.micro_batch_tokens=512", "stage.tuned.activation_checkpointing=true"];
    assert!(check(&given, free(1)).is_ok());
}

#[test]
fn a_run_that_goes_on_keeps_what_was_chosen() {
    let began = check(&[], free(need(1024, false))).unwrap();
    let written = began.pipeline.to_toml();
    let earlier: Pipeline =
        parse(Text { path: "pipeline.toml", text: &written, sets: &[] }).unwrap();
    for free_bytes in [None, Some(1), Some(u64::MAX)] {
        let plan =
            check(&[], Room { free_bytes, earlier: Some(&earlier), ..Room::default() }).unwrap();
        assert_eq!(plan.pipeline, began.pipeline);
    }
    let sets = ["stage.tuned.micro_batch_tokens=600"];
    let plan = check(&sets, Room { earlier: Some(&earlier), ..Room::default() }).unwrap();
    assert_eq!(chosen(&plan).0, 600);
}
