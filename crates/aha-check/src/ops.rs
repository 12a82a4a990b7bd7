//! Each op forward and backward against the processor's.
//!
//! A case is a function of a device: it makes its inputs there, which are the same everywhere, and gives all that it
//! computed by name. It is called on both.

mod attention;
mod elements;
mod fp8;
mod head;
mod products;

use aha_compute::{Device, Dtype, Tensor};

use crate::compare::{Bound, Distance};
use crate::finding::Outcome;
use crate::inputs::{DTYPES, host};
use crate::{Error, Findings, Part, Size, Subject};

/// What a case computed, by name.
#[derive(Default)]
struct Outputs(Vec<(&'static str, Vec<f32>)>);

impl Outputs {
    fn add(&mut self, name: &'static str, tensor: &Tensor) {
        self.0.push((name, host(tensor)));
    }

    fn of<const N: usize>(tensors: [(&'static str, &Tensor); N]) -> Outputs {
        let mut outputs = Outputs::default();
        tensors.into_iter().for_each(|(name, tensor)| outputs.add(name, tensor));
        outputs
    }
}

type Run = Box<dyn Fn(&Device, Dtype) -> Outputs>;

/// An op on one shape.
struct Case {
    name: String,
    run: Run,
}

impl Case {
    fn new(name: impl Into<String>, run: impl Fn(&Device, Dtype) -> Outputs + 'static) -> Case {
        Case { name: name.into(), run: Box::new(run) }
    }
}

pub(crate) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    let cases =
        [elements::cases(size), products::cases(size), attention::cases(size), head::cases(size)];
    for case in cases.iter().flatten() {
        for dtype in DTYPES {
            let name = format!("{}, {dtype}", case.name);
            findings.case(Part::Ops, name, || compare(subject, case, dtype));
        }
    }
    fp8::check(subject, size, findings);
}

fn compare(subject: &Subject, case: &Case, dtype: Dtype) -> Result<Outcome, Error> {
    let want = (case.run)(&subject.host(dtype), dtype);
    let device = subject.device(dtype);
    let got = (case.run)(&device, dtype);
    device.check()?;
    Ok(worst(&got, &want, Bound::of(dtype)))
}

/// The output that uses most of its bound.
fn worst(got: &Outputs, want: &Outputs, bound: Bound) -> Outcome {
    let mut worst = Outcome::new(0.0, 1.0, "equal");
    for ((name, got), (_, want)) in got.0.iter().zip(&want.0) {
        let distance = Distance::of(got, want);
        let share = distance.share_of(bound);
        if share > worst.figure || share.is_nan() {
            worst.figure = share;
            worst.what = format!(
                "of the bound, by {name}: off by {:.1e} in norm (at most {:.1e}), by {:.1e} of the greatest (at most \
                 {:.1e})",
                distance.norm, bound.norm, distance.max, bound.max
            );
        }
    }
    worst
}
