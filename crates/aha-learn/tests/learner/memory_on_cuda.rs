//! What a step on a CUDA device may cost, in emulation: settings that change memory, and no result.

use std::sync::Arc;

use aha_compute::Device;
use aha_compute::cuda::Context;
use aha_compute::ops::adamw::StatePlace;
use aha_emulate::{Emulated, Order};
use aha_learn::learner::{Learner, StepOutcome};
use aha_learn::objective::Normaliser;

use crate::steps::{completion_lens, drawn_groups, objective, rollouts};
use crate::{model, settings};

/// What two steps leave, and the most bytes of the device that were in use at once.
struct Run {
    outcome: StepOutcome,
    /// Bits of weights and moments.
    state: Vec<u32>,
    in_use_bytes_max: usize,
    moments_bytes: usize,
}

fn run(place: StatePlace, activation_checkpointing: bool) -> Run {
    let cx = Context::new(Emulated::new(Order::Forward, 1 << 30));
    let device = Device::cpu(1).with_context(cx.clone());
    let model = model("tiny_qwen2", &device);
    let mut learner = Learner::placed(Arc::clone(&model), place);
    learner.set_reference(Some(model));
    let (drawn, objective) = (drawn_groups(), objective());
    let normaliser = Normaliser::of(&objective, &completion_lens(&drawn));
    let settings = settings(100_000, activation_checkpointing);
    let mut step =
        || learner.policy_step(&rollouts(&drawn), &objective, normaliser, 0.9, &settings).unwrap();
    step();
    let outcome = step();
    assert!(outcome.applied);
    let (params, adamw) = (learner.model().params(), learner.optimizer());
    let bits = |id| {
        let (m, v) = adamw.moments(id);
        let all = [params.value(id), m, v].map(|tensor| tensor.host().into_owned());
        all.concat().into_iter().map(f32::to_bits)
    };
    Run {
        outcome,
        state: params.ids().flat_map(bits).collect(),
        in_use_bytes_max: cx.stats().in_use_bytes_max,
        moments_bytes: 2 * 4 * params.trained_element_count(),
    }
}

/// Goal: each setting has the same bits, and takes less memory. Method: two steps each way. Moments in the host's
/// memory are less by what they are, but for two slices, which hold all of so small a model's, at a time when
/// activations are gone; checkpointed activations by most of those of a layer.
#[test]
fn settings_that_take_less_memory_change_no_bit() {
    let plain = run(StatePlace::Device, false);
    for (place, checkpointing) in
        [(StatePlace::Host, false), (StatePlace::Device, true), (StatePlace::Host, true)]
    {
        let other = run(place, checkpointing);
        assert_eq!(other.outcome, plain.outcome, "{place} {checkpointing}");
        assert!(other.state == plain.state, "{place} {checkpointing}: other weights or moments");
        let less = plain.in_use_bytes_max.saturating_sub(other.in_use_bytes_max);
        let at_least = match place {
            StatePlace::Host => plain.moments_bytes,
            StatePlace::Device => plain.in_use_bytes_max / 10,
        };
        let [before, after] = [&plain, &other].map(|run| run.in_use_bytes_max);
        assert!(less >= at_least, "{place} {checkpointing}: {before} bytes, then {after}");
    }
}
