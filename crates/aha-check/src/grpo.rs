//! Steps of GRPO on the device and on the processor, each drawing its own completions: the same tokens, losses and
//! norms of gradients.

use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::{Device, Dtype};
use aha_learn::advantage::{Sample, advantages};
use aha_learn::learner::{Learner, OldLogps, Rollout, StepSettings};
use aha_learn::objective::{Normaliser, Objective};
use aha_learn::preset::Preset;

use crate::finding::Outcome;
use crate::inputs::Family;
use crate::paths::{requests, sample};
use crate::{Error, Findings, Part, Size, Subject};

/// How far a loss or a gradient's norm may be from the processor's, as a share of it and at least of 1. Two
/// steps in emulation are 7e-8 apart. AdamW divides by the root of squares, so that where a gradient is next to nothing
/// its rounding moves a weight by as much as the learning rate: what a step begins with is farther off than before.
const BOUND: f64 = 1e-4;

/// Settings of a step that moves random weights.
pub(crate) fn settings(micro_batch_tokens: usize) -> StepSettings {
    StepSettings {
        hyper: Hyper { lr: 3e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        grad_norm_max: Some(1.0),
        micro_batch_tokens,
        activation_checkpointing: false,
    }
}

pub(crate) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    let steps = if size == Size::Full { 8 } else { 2 };
    findings.case(Part::Grpo, format!("{steps} steps in f32: the processor's curve"), || {
        let want = curve(&subject.host(Dtype::F32), size, steps)?;
        let got = curve(&subject.device(Dtype::F32), size, steps)?;
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            if got.token_ids != want.token_ids {
                let what = format!("other tokens from step {} of {steps} on", step + 1);
                return Ok(Outcome::none_of(1, what));
            }
        }
        let figures =
            |steps: &[Step]| -> Vec<f64> { steps.iter().flat_map(|s| s.figures).collect() };
        let (got, want) = (figures(&got), figures(&want));
        let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
        let off =
            off.fold(0.0, |most, off| if off.is_nan() { f64::INFINITY } else { most.max(off) });
        let last = |figures: &[f64]| format!("{:.6}", figures[figures.len() - 2]);
        let what = format!(
            "of a loss or a norm; the same tokens; the last loss is {}, the processor's {}",
            last(&got),
            last(&want)
        );
        Ok(Outcome::new(off, BOUND, what))
    });
}

/// What a step drew, and its losses and norms: of the first minibatch and of the second.
struct Step {
    token_ids: Vec<Vec<u32>>,
    figures: [f64; 4],
}

/// Each step draws groups and learns from them twice, so that ratios are not all 1; KL is from the first weights.
fn curve(device: &Device, size: Size, steps: usize) -> Result<Vec<Step>, Error> {
    let model = Arc::new(Family::Qwen2.model(size, device)?);
    let mut learner = Learner::new(Arc::clone(&model));
    learner.set_reference(Some(model));
    let max_tokens = 12;
    let objective = Objective { kl_coef: 0.1, ..Preset::default().objective(max_tokens) };
    let mut curve = Vec::new();
    for step in 0..steps {
        let mut requests = requests(size);
        requests.truncate(3);
        for request in &mut requests {
            request.address += 10 * step as u64;
            request.samples = 0..4;
        }
        let completions = sample(learner.model(), &requests, max_tokens as usize, 16, 64)?;
        let rewards: Vec<Sample> = completions
            .iter()
            .map(|c| {
                let even = c.token_ids.iter().filter(|id| **id % 2 == 0).count();
                let reward = Some(even as f32 / c.token_ids.len() as f32);
                Sample { reward, len_tokens: c.token_ids.len() }
            })
            .collect();
        let groups: Vec<&[Sample]> = rewards.chunks(4).collect();
        let groups = advantages(&groups, &objective.advantage)?;
        let values: Vec<f32> = groups.iter().flat_map(|g| &g.rows).map(|row| row.value).collect();
        let rollouts: Vec<Rollout<'_>> = completions
            .iter()
            .zip(&values)
            .map(|(c, &advantage)| Rollout {
                prompt_ids: &requests[c.request_idx].prompt_ids,
                completion_ids: &c.token_ids,
                behaviour_logps: &c.logprobs,
                old: OldLogps::Behaviour,
                advantage,
                token_advantages: None,
                mask: None,
            })
            .collect();
        let lens: Vec<usize> = completions.iter().map(|c| c.token_ids.len()).collect();
        let normaliser = Normaliser::of(&objective, &lens);
        let mut once =
            || learner.policy_step(&rollouts, &objective, normaliser, 1.0, &settings(64));
        let (first, second) = (once()?, once()?);
        let figures = [first.totals.loss, first.grad_norm, second.totals.loss, second.grad_norm];
        let token_ids = completions.into_iter().map(|c| c.token_ids).collect();
        curve.push(Step { token_ids, figures });
    }
    device.check()?;
    Ok(curve)
}
