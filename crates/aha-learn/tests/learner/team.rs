//! Several devices that learn together.

use std::sync::Arc;

use aha_compute::cuda::meeting::Thing;
use aha_compute::cuda::{Context, Driver};
use aha_compute::peers::{self, Peers};
use aha_compute::{Device, Error, Grads, ParamId};
use aha_emulate::{Emulated, ORDERS};
use aha_learn::learner::{Learner, StepSettings};
use aha_learn::objective::Normaliser;
use aha_model::Model;

use crate::steps::{completion_lens, drawn_groups, objective, preferences, rollouts};
use crate::{critic, dpo, model, settings, steps};

/// A step of each kind; returns what is reported, as text.
type Step = fn(&mut Learner, &StepSettings) -> Result<String, aha_learn::Error>;

fn policy_step(learner: &mut Learner, settings: &StepSettings) -> Result<String, aha_learn::Error> {
    let (drawn, objective) = (drawn_groups(), objective());
    let normaliser = Normaliser::of(&objective, &completion_lens(&drawn));
    let outcome = learner.policy_step(&rollouts(&drawn), &objective, normaliser, 0.9, settings)?;
    Ok(format!("{outcome:?}"))
}

fn sft_step(learner: &mut Learner, settings: &StepSettings) -> Result<String, aha_learn::Error> {
    let drawn = dpo::drawn();
    let examples: Vec<_> = dpo::pairs(&drawn).iter().map(|pair| pair.chosen).collect();
    Ok(format!("{:?}", learner.sft_step(&examples, settings)?))
}

fn dpo_step(learner: &mut Learner, settings: &StepSettings) -> Result<String, aha_learn::Error> {
    let drawn = dpo::drawn();
    Ok(format!("{:?}", learner.dpo_step(&dpo::pairs(&drawn), &dpo::OBJECTIVE, settings)?))
}

fn preference_step(
    learner: &mut Learner,
    settings: &StepSettings,
) -> Result<String, aha_learn::Error> {
    let preferences = preferences();
    let outcome = learner.preference_step(&steps::pairs(&preferences), 0.01, settings)?;
    Ok(format!("{outcome:?}"))
}

fn value_step(learner: &mut Learner, settings: &StepSettings) -> Result<String, aha_learn::Error> {
    let drawn = critic::drawn();
    let (rollouts, targets) = (critic::rollouts(&drawn), critic::targets(&drawn));
    let critic = learner.critic_mut().expect("there is one");
    Ok(format!("{:?}", critic.value_step(&rollouts, &targets, Some(0.2), settings)?))
}

/// With a model of this name, which is its own reference.
fn learner(name: &str, device: &Device) -> Learner {
    let model = model(name, device);
    let mut learner = Learner::new(Arc::clone(&model));
    learner.set_reference(Some(model));
    learner
}

fn processors(count: usize) -> Vec<Device> {
    (0..count).map(|_| Device::cpu(1)).collect()
}

/// Devices in emulation, one with this much memory.
fn emulated(count: usize, memory_bytes: impl Fn(usize) -> usize) -> Vec<Device> {
    let device = |i: usize| {
        let driver: Arc<dyn Driver> = Emulated::new(ORDERS[i % 2], memory_bytes(i));
        Device::cpu(1).with_context(Context::new(driver))
    };
    (0..count).map(device).collect()
}

/// Bits of a model's weights.
fn bits(model: &Model) -> Vec<u32> {
    let params = model.params();
    let of = |id| params.value(id).host().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    params.ids().flat_map(of).collect()
}

/// Two steps on these devices: what the last one reports, the weights of every device, and the mean of gradients.
fn two_steps(
    mut learner: Learner,
    others: &[Device],
    step: Step,
    settings: &StepSettings,
) -> (String, Vec<u32>, Vec<f32>) {
    learner.spread_to(others).unwrap();
    step(&mut learner, settings).unwrap();
    let means = means(&learner);
    let reported = step(&mut learner, settings).unwrap();
    let trained: Vec<&Learner> = learner.critic().unwrap_or(&learner).on_all_devices().collect();
    assert_eq!(trained.len(), 1 + others.len());
    let weights = bits(trained[0].model());
    for one in &trained[1..] {
        assert!(bits(one.model()) == weights, "all devices have the same weights");
        assert_eq!(one.version(), trained[0].version());
    }
    (reported, weights, means)
}

/// After the first step, gradients times a factor.
fn means(learner: &Learner) -> Vec<f32> {
    let learner = learner.critic().unwrap_or(learner);
    let params = learner.model().params();
    let mean = |id| learner.optimizer().moments(id).0.host().into_owned();
    params.ids().flat_map(mean).collect()
}

/// L2 distance of two vectors, as a share of the second one's norm.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let (a, b) = (wide(a), wide(b));
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// As a share of the gradient's norm: several roundings of 2^-24. 1.7e-7 was measured.
const GRADIENT_OFF_MAX: f64 = 1e-6;

/// Goal: devices change a step by no more than roundings, all have the same bits, in every run and whatever the
/// micro-batches, and more devices than there are sequences are none too many.
#[test]
fn every_kind_of_step_is_that_of_one_device_but_for_rounding() {
    let kinds: [(&str, Step, bool); 5] = [
        ("policy", policy_step, false),
        ("sft", sft_step, false),
        ("dpo", dpo_step, false),
        ("preference", preference_step, true),
        ("value", value_step, true),
    ];
    for (kind, step, needs_head) in kinds {
        let made = |device: &Device| match needs_head {
            false => learner("tiny_qwen2", device),
            true if kind == "value" => {
                let mut learner = learner("tiny_qwen2", device);
                learner.set_critic(Some(Learner::new(critic::critic("tiny_qwen2", device))));
                learner
            }
            true => Learner::new(critic::critic("tiny_qwen2", device)),
        };
        let alone = two_steps(made(&Device::cpu(1)), &[], step, &settings(64, false));
        for count in [2, 3, 16] {
            let mut first = None;
            for (micro_batch_tokens, checkpointing) in [(64, false), (10_000, true)] {
                let devices = processors(count);
                let settings = settings(micro_batch_tokens, checkpointing);
                let got = two_steps(made(&devices[0]), &devices[1..], step, &settings);
                let off = distance(&got.2, &alone.2);
                assert!(off <= GRADIENT_OFF_MAX, "{kind}, {count} devices: off by {off}");
                let first = first.get_or_insert_with(|| got.clone());
                assert!(*first == got, "{kind}, {count} devices: other bits in another run");
            }
        }
    }
}

/// Goal: a transfer from device to device changes nothing of that. Method: emulated devices, which have the bits of
/// each other whatever carries their gradients.
#[test]
fn devices_that_exchange_have_the_bits_of_those_that_go_through_the_host() {
    let settings = settings(64, false);
    let memory = |_| 1 << 30;
    let alone =
        two_steps(learner("tiny_qwen2", &emulated(1, memory)[0]), &[], policy_step, &settings);
    for count in [2, 3] {
        let devices = emulated(count, memory);
        let learner_of = |devices: &[Device]| learner("tiny_qwen2", &devices[0]);
        let linked = two_steps(learner_of(&devices), &devices[1..], policy_step, &settings);
        let off = distance(&linked.2, &alone.2);
        assert!(off <= GRADIENT_OFF_MAX, "{count} devices: off by {off}");
        let devices = emulated(count, memory);
        let mut by_host = learner_of(&devices);
        by_host.spread(&devices[1..], peers::InHost::connect(count)).unwrap();
        policy_step(&mut by_host, &settings).unwrap();
        let reported = policy_step(&mut by_host, &settings).unwrap();
        assert_eq!(reported, linked.0);
        assert!(by_host.on_all_devices().all(|one| bits(one.model()) == linked.1));
    }
}

/// Goal: a device that is full ends the step of all with its own error. Method: the second of three has no room for
/// activations, whatever the others wait for meanwhile.
#[test]
fn a_device_that_is_full_ends_the_step_with_its_error() {
    let weights_bytes = 4 * model("tiny_qwen2", &Device::cpu(1)).params().element_count();
    // Weights, gradients and two moments, rounded up, and little more.
    let devices = emulated(3, |rank| if rank == 1 { 5 * weights_bytes } else { 1 << 30 });
    let mut learner = learner("tiny_qwen2", &devices[0]);
    learner.spread_to(&devices[1..]).unwrap();
    let before = bits(learner.model());
    let error = policy_step(&mut learner, &settings(10_000, false)).unwrap_err().to_string();
    assert!(error.contains("out of memory"), "{error}");
    assert!(bits(learner.model()) == before, "no device makes a step that another can't make");
    let again = policy_step(&mut learner, &settings(10_000, false)).unwrap_err().to_string();
    assert!(again.contains("out of memory"), "{again}");
}

/// Peers of which one does something else when gradients are added.
#[derive(Debug)]
struct Broken {
    peers: Arc<dyn Peers>,
    fault: Fault,
    weight: ParamId,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Error,
    Panic,
    /// One number of the sum has another bit.
    Bit,
}

impl Peers for Broken {
    fn rank(&self) -> usize {
        self.peers.rank()
    }

    fn count(&self) -> usize {
        self.peers.count()
    }

    fn meet(&self, thing: Thing) -> Result<Vec<Thing>, Error> {
        self.peers.meet(thing)
    }

    fn sum(&self, grads: &mut Grads) -> Result<(), Error> {
        match self.fault {
            Fault::Error => Err(Error::Environment { what: "a cable fell out".into() }),
            Fault::Panic => panic!("a cable fell out"),
            Fault::Bit => {
                self.peers.sum(grads)?;
                let x = &mut grads.get_mut(self.weight).as_mut_slice()[0];
                *x = f32::from_bits(x.to_bits() ^ 1);
                Ok(())
            }
        }
    }

    fn leave(&self, why: &str) {
        self.peers.leave(why);
    }

    fn left(&self) -> Option<usize> {
        self.peers.left()
    }
}

/// Goal: whatever goes wrong on one device, no other waits without an end, and it is said. Method: the last of three.
#[test]
fn a_fault_of_one_device_ends_the_step_of_all() {
    let step_with = |fault| {
        let devices = processors(3);
        let mut learner = learner("tiny_qwen2", &devices[0]);
        let weight = learner.model().params().trained().last().unwrap();
        let mut all = peers::InHost::connect(3);
        all[2] = Arc::new(Broken { peers: Arc::clone(&all[2]), fault, weight });
        learner.spread(&devices[1..], all).unwrap();
        policy_step(&mut learner, &settings(10_000, false))
    };
    let said = |fault| step_with(fault).unwrap_err().to_string();
    assert_eq!(said(Fault::Error), "a cable fell out");
    let bit = said(Fault::Bit);
    assert!(bit.contains("norm of the gradient") && bit.contains("device 2"), "{bit}");
    let panicked = std::panic::catch_unwind(|| said(Fault::Panic)).unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"a cable fell out"));
}

/// Goal: what is set after the devices are known reaches all of them, and copies of the weights aren't made where the
/// weights themselves are meant. Method: a reference of a step before, set before and after.
#[test]
fn what_is_set_later_is_set_on_all_devices() {
    let settings = settings(10_000, false);
    let run = |is_set_first: bool| {
        let devices = processors(2);
        let mut learner = learner("tiny_qwen2", &devices[0]);
        sft_step(&mut learner, &settings).unwrap();
        let reference = model("tiny_qwen2", &devices[0]);
        if is_set_first {
            learner.set_reference(Some(Arc::clone(&reference)));
        }
        learner.spread_to(&devices[1..]).unwrap();
        if !is_set_first {
            learner.set_reference(None);
            learner.set_reference(Some(reference));
        }
        policy_step(&mut learner, &settings).unwrap();
        learner.set_reference(Some(Arc::clone(learner.model())));
        for one in learner.on_all_devices() {
            assert!(one.reference().is_some_and(|reference| Arc::ptr_eq(reference, one.model())));
        }
        (policy_step(&mut learner, &settings).unwrap(), bits(learner.model()))
    };
    assert!(run(true) == run(false));
}
