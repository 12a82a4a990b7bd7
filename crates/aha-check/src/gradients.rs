//! The backward pass against central differences of the device's own forward pass, in f32.
//!
//! One direction for each weight: up the processor's gradient by signs, each element with a random factor. So every
//! element counts, none is lost in the rounding of the others, and what the device's backward pass leaves out shows,
//! since the direction isn't its own.

use aha_compute::{Dtype, ParamId};
use aha_model::Model;

use crate::finding::Outcome;
use crate::inputs::{Family, noise};
use crate::models::Pass;
use crate::{Error, Findings, Part, Size, Subject};

/// By how much the loss is moved, about: much more than the rounding of its log-probs, of which 70 with an error of
/// 1e-6 make 1e-5, and little enough that the fourth power of the step is nothing.
const LOSS_STEP: f64 = 0.05;
/// Rounding is 2e-4 of the step, and a bit more after extrapolation; what a wrong op does is beyond ten times this.
const BOUND: f64 = 5e-3;

pub(crate) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    // Forward passes by the dozen take their time in emulation.
    let families = [Family::Qwen3, Family::Qwen2, Family::Llama];
    for &family in &families[..if size == Size::Full { 3 } else { 1 }] {
        let name = format!("{}: central differences", family.name());
        findings.case(Part::Gradients, name, || differences(subject, family));
    }
}

/// The weight whose slope is farthest from the differences.
fn differences(subject: &Subject, family: Family) -> Result<Outcome, Error> {
    let want = Pass::of(&family.model(Size::Small, &subject.host(Dtype::F32))?, false);
    let device = subject.device(Dtype::F32);
    let mut model = family.model(Size::Small, &device)?;
    let got = Pass::of(&model, false);
    let mut worst = Outcome::new(0.0, BOUND, "equal");
    let ids: Vec<ParamId> = model.params().ids().collect();
    for (seed, (id, ((name, got), (_, want)))) in
        (50..).zip(ids.into_iter().zip(got.gradients.iter().zip(&want.gradients)))
    {
        let factors = noise(seed, want.len());
        let direction: Vec<f64> = want
            .iter()
            .zip(&factors)
            .map(|(slope, factor)| f64::from(slope.signum()) * f64::from(1.0 + 0.5 * factor))
            .collect();
        let dot = |slopes: &[f32]| {
            slopes.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum::<f64>()
        };
        let (slope, expected) = (dot(got), dot(want));
        let measured = derivative(&mut model, id, &direction, LOSS_STEP / expected);
        let off = (slope - measured).abs() / measured.abs();
        if off > worst.figure || off.is_nan() {
            worst.figure = off;
            worst.what = format!(
                "off by so much of the slope, along {name}: {slope:.6}, by differences {measured:.6}"
            );
        }
    }
    device.check()?;
    Ok(worst)
}

/// Central differences with two steps, extrapolated to none (Richardson): off by the fourth power of the step.
fn derivative(model: &mut Model, id: ParamId, direction: &[f64], step: f64) -> f64 {
    let at: Vec<f32> = model.params().value(id).host().into_owned();
    let mut loss = |step: f64| {
        let moved: Vec<f32> =
            at.iter().zip(direction).map(|(x, d)| (f64::from(*x) + step * d) as f32).collect();
        model.params_mut().value_mut(id).write(&moved);
        Pass::loss(model)
    };
    let mut slope = |step: f64| (loss(step) - loss(-step)) / (2.0 * step);
    let (wide, narrow) = (slope(step), slope(step / 2.0));
    model.params_mut().value_mut(id).write(&at);
    (4.0 * narrow - wide) / 3.0
}
