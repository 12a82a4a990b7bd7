//! What a pipeline leaves open is chosen by the memory that there is, written down, and kept.

use aha_compute::cuda::{Context, Error, Kind};
use aha_emulate::{Emulated, ORDERS};
use aha_flow::devices::{self, Devices, Given};
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

fn given(memory_bytes: u64) -> Given {
    let emulated = Emulated::new(ORDERS[0], usize::try_from(memory_bytes).unwrap());
    Given(vec![Context::new(emulated)])
}

/// Two devices, and no library by which they exchange.
#[derive(Debug)]
struct Apart(Given);

impl Devices for Apart {
    fn count(&self) -> u32 {
        self.0.count()
    }

    fn open(&self, number: u32) -> Result<Context, Error> {
        self.0.open(number)
    }

    fn ask_for_exchange(&self) -> Result<(), Error> {
        let (what, remedy) = ("NCCL was not found".to_owned(), "install NCCL".to_owned());
        Err(Error::Missing { what, remedy })
    }
}

/// Goal: several devices that can't exchange are refused before anything is computed, with what is missing and how to
/// mend it; one of them is used without. Method: devices without the library, for the check and for the start of a run.
#[test]
fn several_devices_need_a_library_to_exchange_by() {
    let devices = || ORDERS.map(|order| Context::new(Emulated::new(order, 1 << 40))).to_vec();
    let apart = Apart(Given(devices()));
    let with = |device: &str, devices: &dyn Devices| {
        let device = format!("run.device='{device}'");
        check(&[&device], Room { devices: Some(devices), ..Room::default() })
    };
    let problems = with("cuda:0,1", &apart).unwrap_err().to_string();
    for says in ["run.device", "can't compute on `cuda:0,1`: NCCL was not found", "install NCCL"] {
        assert!(problems.contains(says), "{problems}");
    }
    let one = with("cuda:0", &apart).unwrap();
    assert!(devices::open_all(&apart, &one.pipeline.run).is_ok());
    let two = with("cuda:0,1", &Given(devices())).unwrap();
    let error = devices::open_all(&apart, &two.pipeline.run).unwrap_err();
    assert!(error.to_string().contains("NCCL was not found"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("install NCCL")), "{error:?}");
}

/// The stage's memory on a device that has so much, with what was chosen by it.
fn on_device(sets: &[&str], memory_bytes: u64, starts: bool) -> Result<(u32, bool, u64), Problems> {
    let devices = given(memory_bytes);
    let room = Room { devices: Some(&devices), starts, ..Room::default() };
    let plan = check(sets, room)?;
    let (tokens, is_on, _) = chosen(&plan);
    Ok((tokens, is_on, plan.device_memory[0].total_bytes()))
}

/// Goal: what a device has decides what it is left to, and a stage that has no room there is refused with what to turn;
/// what the host has counts beside it. Method: devices of sizes that the plan itself names.
#[test]
fn a_devices_memory_decides_what_is_computed_there() {
    let (most, is_on, bytes) = on_device(&[], 1 << 40, false).unwrap();
    assert_eq!((most, is_on), (4096, false));
    let (fewer, is_on, fits) = on_device(&[], bytes - 1, true).unwrap();
    assert!(fewer < 4096 && !is_on && fits < bytes, "{fewer} {is_on} {fits}");
    let least = ["stage.tuned.micro_batch_tokens=512", "stage.tuned.activation_checkpointing=true"];
    let (_, _, bytes) = on_device(&least, 1 << 40, false).unwrap();
    assert!(on_device(&least, bytes, true).is_ok());
    for sets in [&least[..], &[]] {
        for starts in [false, true] {
            let problems = on_device(sets, bytes - 1, starts).unwrap_err().to_string();
            assert!(problems.contains("stage `tuned` will want more than the"), "{problems}");
            assert!(problems.contains("of cuda:0 (emulated): "), "{problems}");
            assert!(problems.contains("lower `micro_batch_tokens`"), "{problems}");
            assert_eq!(problems.matches("error:").count(), 1, "{problems}");
        }
    }
    // Models are not in the host's memory.
    let devices = given(1 << 40);
    let plan = check(&[], Room { devices: Some(&devices), ..Room::default() }).unwrap();
    assert!(plan.memory[0].parts.iter().all(|part| part.name != "weights"), "{:?}", plan.memory);
    let text = plan.to_text();
    assert!(text.contains("device cuda:0 (emulated)"), "{text}");
    assert!(text.contains("\n     memory of cuda:0 "), "{text}");
    assert!(text.contains("\n         optimizer "), "{text}");
    assert!(text.contains("peak memory of cuda:0: "), "{text}");
    assert_eq!(plan.to_json()["device"], "cuda:0");
}

/// Memory that others use is no reason to refuse a pipeline, but one to start no run.
#[test]
fn a_run_starts_only_in_what_is_free_on_its_device() {
    let (_, _, bytes) = on_device(&["stage.tuned.micro_batch_tokens=512"], 1 << 40, false).unwrap();
    let devices = given(bytes + (16 << 20));
    let taken = devices.0[0].buffer(Kind::U32, 8 << 20).unwrap();
    let room = |starts| Room { devices: Some(&devices), starts, ..Room::default() };
    let sets = ["stage.tuned.micro_batch_tokens=512", "stage.tuned.activation_checkpointing=false"];
    assert!(check(&sets, room(false)).is_ok());
    let problems = check(&sets, room(true)).unwrap_err().to_string();
    assert!(problems.contains("that are free of cuda:0"), "{problems}");
    drop(taken);
    assert!(check(&sets, room(true)).is_ok());
}
