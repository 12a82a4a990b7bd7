//! The checks on the emulated device: all pass, and each kind of fault is found by the part that is there for it.

mod spoilt;

use std::sync::Arc;

use aha_check::{Finding, Part, Size, Subject, run};
use aha_emulate::{Emulated, Order};
use spoilt::{Fault, Spoilt};

fn emulated() -> Arc<Emulated> {
    // Other tests run threads in both orders; this one is less usual.
    Emulated::new(Order::Backward, 4 << 30)
}

#[test]
fn every_check_passes_on_the_emulated_device() {
    let subject = Subject::new(emulated(), 1);
    let findings = run(&subject, &Part::ALL, Size::Small, &mut |finding| println!("{finding:?}"));
    let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for part in Part::ALL {
        assert!(findings.iter().any(|finding| finding.part == part), "{part} has a case");
    }
}

/// What `parts` say of an emulated device with a fault: the names of the cases that fail.
fn failing(fault: Fault, parts: &[Part]) -> Vec<String> {
    let subject = Subject::new(Arc::new(Spoilt::new(emulated(), fault)), 1);
    let findings = run(&subject, parts, Size::Small, &mut |_| {});
    assert!(!findings.is_empty());
    findings.into_iter().filter(|f| !f.passed).map(|f| f.name).collect()
}

/// Goal: a check that can't fail shows nothing. Method: a device with one fault each; the part that is there for such a
/// fault has a failing case with this in its name.
#[test]
fn every_fault_is_found() {
    let cases = [
        (Fault::Lost("rms_norm_backward"), Part::Ops, "rms_norm 5x37, f32"),
        (Fault::Lost("scatter_add"), Part::Ops, "embedding 5x37, bf16"),
        (Fault::Lost("attention_plain_backward_keys"), Part::Ops, "attention 4/2x64"),
        (Fault::Rounded, Part::Ops, "linear 33x64->136, f32"),
        (Fault::OtherKey, Part::Draws, "9 of 1000, temperature 1, top-k 0"),
        (Fault::Lost("fp8_product_small_f32_true"), Part::Ops, "linear 33x64->136, FP8"),
        (Fault::Lost("rotate"), Part::Models, "qwen3, f32"),
        (Fault::Lost("swiglu_backward"), Part::Gradients, "qwen3"),
        (Fault::Unsteady, Part::Determinism, "f32: a training step twice"),
        (Fault::ByRows, Part::Determinism, "f32: a completion alone and in company"),
        (Fault::ByRowsMuch, Part::Paths, "qwen2, f32"),
        (Fault::Lost("adamw"), Part::Grpo, "2 steps"),
        (Fault::NoReplay, Part::Driver, "captured work"),
        (Fault::NoLimit, Part::Driver, "out of memory"),
        (Fault::LostCopies, Part::Driver, "copies to the device"),
    ];
    let missed: Vec<String> = cases
        .into_iter()
        .filter_map(|(fault, part, name)| {
            let failing = failing(fault, &[part]);
            let is_found = failing.iter().any(|failing| failing.contains(name));
            (!is_found).then(|| format!("{fault:?} in {part}: failing are {failing:?}"))
        })
        .collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Goal: one part's trouble is its own. Method: a device that is out of memory at once.
#[test]
fn a_device_that_gives_no_memory_is_findings_and_no_panic() {
    let subject = Subject::new(Emulated::new(Order::Forward, 1 << 10), 1);
    let findings = run(&subject, &[Part::Grpo, Part::Paths], Size::Small, &mut |_| {});
    assert!(findings.iter().all(|finding| !finding.passed));
    let first = findings.first().unwrap();
    assert!(first.what.contains("out of memory on the device"), "{}", first.what);
}
