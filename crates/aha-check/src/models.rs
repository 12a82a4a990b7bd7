//! Log-probs and gradients of a model of each family against the processor's, and what changes neither.

use aha_compute::ops::attention::Layout;
use aha_compute::{Device, Dtype, Grads, Tape, Tensor};
use aha_model::Model;
use aha_model::model::Batch;

use crate::compare::{Distance, differing, greatest};
use crate::finding::Outcome;
use crate::inputs::{DTYPES, Family, host, ids, noise};
use crate::{Error, Findings, Part, Size, Subject};

/// How far a model's results may be from the processor's.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Of a log-prob or an entropy.
    nats: f64,
    /// Of a weight's gradient, as a share of its norm.
    gradient: f64,
}

impl Bounds {
    /// Five times what the emulated device is off by in f32 (8.1e-6 nats, 3.3e-6). In bf16 (0.056 nats, 0.026) what
    /// both devices keep to PyTorch's f32 (`aha-learn/tests/model_fixtures/support.rs`), from which its own bf16 is up
    /// to 0.113 nats away. Products in TF32, whose factors have 11 bits, would be off by a hundred times the bounds of
    /// f32.
    fn of(dtype: Dtype) -> Bounds {
        match dtype {
            Dtype::F32 => Bounds { nats: 4e-5, gradient: 2e-5 },
            Dtype::Bf16 => Bounds { nats: 0.15, gradient: 0.08 },
        }
    }
}

pub(crate) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    for family in Family::ALL {
        for dtype in DTYPES {
            let name = format!("{}, {dtype}: log-probs and gradients", family.name());
            findings.case(Part::Models, name, || compare(subject, family, size, dtype));
        }
    }
    for dtype in DTYPES {
        let name = format!("{dtype}: checkpointing changes no bit");
        findings.case(Part::Models, name, || {
            let device = subject.device(dtype);
            let model = Family::Qwen3.model(size, &device)?;
            let [plain, again] = [false, true].map(|checkpointing| Pass::of(&model, checkpointing));
            device.check()?;
            let changed = plain.gradients.iter().zip(&again.gradients);
            let changed = changed.map(|((_, a), (_, b))| differing(a, b)).sum::<usize>();
            let values = differing(&plain.log_probs, &again.log_probs);
            Ok(Outcome::none_of(changed + values, "values with other bits"))
        });
    }
}

/// What a pass computes.
pub(crate) struct Pass {
    pub log_probs: Vec<f32>,
    pub entropies: Vec<f32>,
    /// By name.
    pub gradients: Vec<(String, Vec<f32>)>,
}

/// What is added to the loss for a token's log-prob and for its entropy.
pub(crate) fn slopes(count: usize) -> [Vec<f32>; 2] {
    [noise(31, count), noise(32, count).into_iter().map(|x| 0.1 * x).collect()]
}

impl Pass {
    /// Forward and backward of a group with its prompt and of a sequence beside it.
    pub(crate) fn of(model: &Model, checkpointing: bool) -> Pass {
        let device = model.device();
        let mut tape = Tape::recording(device, model.params());
        let (log_probs, entropies) = record(model, &mut tape, checkpointing);
        let values = [&log_probs, &entropies].map(|var| host(var.value()));
        let seed = |values: &[f32]| Tensor::from_slice(device, &[values.len()], values);
        let [for_log_probs, for_entropies] = slopes(values[0].len());
        let mut grads = Grads::zeros(device, model.params());
        let seeds = vec![(log_probs, seed(&for_log_probs)), (entropies, seed(&for_entropies))];
        tape.backward(seeds, &mut grads);
        grads.finish();
        let params = model.params();
        let gradient = |id| (params.name(id).to_owned(), host(grads.get(id)));
        let gradients = params.ids().map(gradient).collect();
        let [log_probs, entropies] = values;
        Pass { log_probs, entropies, gradients }
    }

    /// The loss of which [`Pass::of`] gives the gradients, summed in f64.
    pub(crate) fn loss(model: &Model) -> f64 {
        let mut tape = Tape::inference(model.device(), model.params());
        let (log_probs, entropies) = record(model, &mut tape, false);
        let values = [host(log_probs.value()), host(entropies.value())];
        let slopes = slopes(values[0].len());
        let pairs = values.iter().flatten().zip(slopes.iter().flatten());
        pairs.map(|(x, slope)| f64::from(*x) * f64::from(*slope)).sum()
    }
}

/// Two completions of a prompt, which is there once, and another sequence.
fn record<'m>(
    model: &'m Model,
    tape: &mut Tape<'m>,
    checkpointing: bool,
) -> (aha_compute::Var, aha_compute::Var) {
    // Each is before what it goes on from.
    let layout = Layout::new([(9, Some(2)), (34, Some(2)), (21, None), (18, None)]);
    let ids = ids(1, layout.row_count());
    let hidden = model.hidden(tape, Batch::laid_out(&ids, layout), checkpointing);
    let rows: Vec<usize> = (0..ids.len()).filter(|row| row % 5 != 4).collect();
    let targets: Vec<u32> = rows.iter().map(|row| ids[(row + 1) % ids.len()]).collect();
    let hidden = tape.select_rows(&hidden, &rows.into());
    tape.log_probs(&hidden, model.head(), &targets.into(), 1.25)
}

fn pass(device: &Device, family: Family, size: Size) -> Result<Pass, Error> {
    let model = family.model(size, device)?;
    let pass = Pass::of(&model, false);
    device.check()?;
    Ok(pass)
}

fn compare(subject: &Subject, family: Family, size: Size, dtype: Dtype) -> Result<Outcome, Error> {
    let want = pass(&subject.host(dtype), family, size)?;
    let got = pass(&subject.device(dtype), family, size)?;
    let bounds = Bounds::of(dtype);
    let nats =
        greatest(&got.log_probs, &want.log_probs).max(greatest(&got.entropies, &want.entropies));
    let mut worst = (0.0, "none");
    for ((name, got), (_, want)) in got.gradients.iter().zip(&want.gradients) {
        let norm = Distance::of(got, want).norm;
        if norm > worst.0 {
            worst = (norm, name);
        }
    }
    let (off, name) = worst;
    let share = (nats / bounds.nats).max(off / bounds.gradient);
    let what = format!(
        "of the bound: log-probs and entropies off by {nats:.1e} nats (at most {:.0e}), the gradient of {name} by \
         {off:.1e} of its norm (at most {:.0e})",
        bounds.nats, bounds.gradient
    );
    Ok(Outcome::new(share, 1.0, what))
}
