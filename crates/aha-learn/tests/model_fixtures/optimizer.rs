//! Steps of AdamW.

use std::sync::Arc;

use aha_compute::ParamId;
use aha_compute::ops::adamw::Hyper;
use aha_learn::learner::{Example, Learner, StepSettings};
use aha_model::Model;
use serde_json::Value;

use super::support::{Comparison, NAMES, Setup, fixture, floats, ids, norm};

fn settings(trajectory: &Value) -> StepSettings {
    let number = |key: &str| trajectory[key].as_f64().unwrap();
    let betas = floats(&trajectory["betas"]);
    StepSettings {
        hyper: Hyper {
            lr: number("lr"),
            beta1: betas[0],
            beta2: betas[1],
            eps: number("eps"),
            weight_decay: number("weight_decay"),
        },
        grad_norm_max: Some(number("clip")),
        micro_batch_tokens: 64,
        activation_checkpointing: false,
    }
}

/// The learner with its norms and biases decayed as well, of which `before` are the values before the step:
/// torch's optimizer was told to decay all weights, and ours spares these.
fn with_vectors_decayed(learner: &Learner, before: &Model, hyper: &Hyper) -> Learner {
    let mut model = Model::clone(learner.model());
    let is_vector = |id: &ParamId| before.params().value(*id).shape().len() == 1;
    for id in before.params().ids().filter(is_vector) {
        let old = before.params().value(id).host();
        let decayed = |(new, old): (&f32, &f32)| new - (hyper.lr * hyper.weight_decay) as f32 * old;
        let new: Vec<f32> =
            model.params().value(id).host().iter().zip(&*old).map(decayed).collect();
        model.params_mut().value_mut(id).write(&new);
    }
    Learner::resume(Arc::new(model), learner.optimizer().clone(), learner.version())
}

#[test]
fn six_optimizer_steps_are_those_of_torch() {
    let mut comparison = Comparison::default();
    for name in NAMES {
        let fixture = fixture(name);
        let trajectory = &fixture["adamw_trajectory"];
        let long = ids(&fixture["sequences"]["len200"]["ids"]);
        let batch = [ids(&fixture["sequences"]["len64"]["ids"]), long[..64].to_vec()];
        let mask = [true; 64];
        let examples: Vec<Example<'_>> =
            batch.iter().map(|ids| Example { ids, loss_mask: &mask }).collect();
        let settings = settings(trajectory);
        let steps = trajectory["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 6, "{name}");
        for setup in Setup::all(name) {
            let (device, bounds) = (&setup.device, setup.bounds);
            let mut learner = Learner::new(Arc::new(setup.load(name)));
            for (i, step) in steps.iter().enumerate() {
                let before = Model::clone(learner.model());
                let outcome = learner.sft_step(&examples, &settings).unwrap();
                learner = with_vectors_decayed(&learner, &before, &settings.hyper);
                let what = format!("{name} step {i}");
                let distance = |got: f64, key: &str| {
                    let want = step[key].as_f64().unwrap();
                    (got - want).abs() / want
                };
                let off = distance(outcome.totals.loss, "loss");
                comparison.near(device, "loss", &what, off, bounds.loss);
                let off = distance(outcome.grad_norm, "grad_norm");
                comparison.near(device, "norm of the gradient", &what, off, bounds.norm);
            }
            let params = learner.model().params();
            for id in params.ids() {
                let what = format!("{name} {}", params.name(id));
                let want = trajectory["final_param_l2"][params.name(id)].as_f64().unwrap();
                let off = (norm(params.value(id)) - want).abs() / want;
                comparison.near(device, "norm of the weight", &what, off, bounds.weight);
                comparison.same_bits(device, &what, &params.value(id).host());
            }
        }
    }
    comparison.show();
}
