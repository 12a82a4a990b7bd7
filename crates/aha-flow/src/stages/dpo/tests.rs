//! A tiny model made from nothing learns what was chosen: what is measured, what each option changes, how a stage
//! goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use aha_learn::dpo::{LossKind, Objective};
use aha_model::{Model, Target};
use aha_rollout::{col, read};
use arrow::array::{AsArray, RecordBatch};

use super::{Dpo, objective};
use crate::error::Error;
use crate::models::Loaded;
use crate::pipeline::{
    Auto, DpoStage, Lora, Optimizer, PairLoss, SftWatchdogs, Sql, Targets, Template, Watch,
};
use crate::progress::Event;
use crate::rundir::RunDir;
use crate::stages::Context;
use crate::stages::testing::{Bench, Outcome, Tiny, pairs};
use crate::stop::Stop;

struct World {
    bench: Bench,
    settings: DpoStage,
}

impl World {
    fn new() -> World {
        let rows = pairs(|i| format!("{}{i}", i / 4 + 6));
        World {
            bench: Bench::new("prefers", RecordBatch::try_from_iter(rows).unwrap()),
            settings: DpoStage {
                data: Sql("SELECT * FROM data".to_owned()),
                held_out_share: 0.25,
                held_out_every: 2,
                batch_size: 3,
                epochs: 2,
                template: Template::Text("Q {prompt} A ".to_owned()),
                optimizer: Optimizer { lr: 3e-3, ..Optimizer::default() },
                ..DpoStage::default()
            },
        }
    }

    fn loaded(&self, seed: u64, positions: u32) -> Loaded {
        self.bench.load(&Tiny { seed, positions, ..Tiny::of(["Q 1+1= A 2", "Q 2+2= A 4"]) })
    }

    fn dir(&self, name: &str) -> RunDir {
        self.bench.dir(name)
    }

    async fn run_beside(
        &self,
        dir: &str,
        reference: Option<Arc<Model>>,
        stop: &Stop,
        watch: impl Fn(&Event) + Send + Sync + 'static,
    ) -> Outcome {
        let base = self.loaded(1, 64);
        let settings = &self.settings;
        let stage =
            async |context: Context<'_>| Dpo { context, settings }.run(base, reference).await;
        self.bench.run(dir, stop, watch, stage).await
    }

    async fn finish(&self, dir: &str) -> Outcome {
        let outcome = self.run_beside(dir, None, &Stop::default(), |_| ()).await;
        outcome.result.as_ref().unwrap();
        outcome
    }

    async fn fail(&self, dir: &str) -> Error {
        self.run_beside(dir, None, &Stop::default(), |_| ()).await.result.unwrap_err()
    }

    /// The weights of the stage's adapter.
    fn adapter(&self, dir: &str) -> Option<Vec<u8>> {
        fs_err::read(self.dir(dir).adapter("prefers").join("adapter_model.safetensors")).ok()
    }

    fn files(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        self.bench.files(dir)
    }
}

#[tokio::test]
async fn a_policy_begins_as_its_reference_and_comes_to_prefer_what_was_chosen() {
    let mut world = World::new();
    world.settings.epochs = 10;
    let metrics = world.finish("run").await.metrics();
    let first = &metrics[0];
    assert!((first["loss"] - 2.0_f64.ln()).abs() < 1e-12, "{first:?}");
    for name in ["margin", "accuracy", "reward_chosen", "reward_rejected"] {
        assert_eq!(first[name], 0.0, "{name}");
    }
    assert!(first["logp_chosen"] < 0.0 && first["nll"] > 0.0, "{first:?}");
    let last = metrics.last().unwrap();
    assert!(last["held_out_accuracy"] > 0.5 && last["held_out_margin"] > 0.0, "{last:?}");
    assert!(last["held_out_loss"] < 2.0_f64.ln() && last["accuracy"] == 1.0, "{last:?}");
    // Of the held-out prompt's three pairs two come to be told apart; no answer of its own was ever shown.
    let of_held_out =
        |name: &str| -> Vec<f64> { metrics.iter().filter_map(|m| m.get(name)).copied().collect() };
    let (losses, margins) = (of_held_out("held_out_loss"), of_held_out("held_out_margin"));
    assert!(
        losses.last() < losses.first() && margins.last() > margins.first(),
        "{losses:?} {margins:?}"
    );
    assert!((last["margin"] - (last["reward_chosen"] - last["reward_rejected"])).abs() < 1e-12);
    let measured: Vec<bool> = metrics.iter().map(|m| m.contains_key("held_out_loss")).collect();
    let every_second: Vec<bool> = (1..=metrics.len()).map(|step| step % 2 == 0).collect();
    assert_eq!(measured, every_second);
    // The pairs of one prompt of four.
    let rows = &read::read_table(&world.dir("run").table("prefers")).unwrap()[0];
    let held_out = rows.column_by_name(col::IS_HELD_OUT).unwrap().as_boolean();
    assert_eq!(held_out.true_count(), 3);
}

#[tokio::test]
async fn a_stage_that_was_interrupted_ends_with_the_same_files() {
    for lora in [None, Some(Lora { rank: 3, ..Lora::default() })] {
        let mut world = World::new();
        world.settings.lora = lora;
        world.settings.checkpoint_every = 2;
        world.finish("whole").await;
        let stop = Stop::default();
        let asked = stop.clone();
        let watch = move |event: &Event| {
            if matches!(event, Event::Step { step: 3, .. }) {
                asked.request();
            }
        };
        let outcome = world.run_beside("broken", None, &stop, watch).await;
        assert!(matches!(outcome.result, Err(Error::Interrupted)), "{:?}", outcome.result);
        // As a kill would leave it: what came after the checkpoint of step 2 is made again.
        let checkpoints = world.dir("broken").checkpoints("prefers");
        fs_err::remove_dir_all(checkpoints.join("step-000003")).unwrap();
        let has_adapter = world.settings.lora.is_some();
        assert_eq!(checkpoints.join("step-000002/adapter").exists(), has_adapter);
        assert_eq!(checkpoints.join("step-000002/model").exists(), !has_adapter);
        world.settings.micro_batch_tokens = Auto::Given(30);
        world.settings.activation_checkpointing = Auto::Given(true);
        let outcome = world.finish("broken").await;
        let metrics = outcome.metrics();
        assert_eq!(metrics.len(), 4);
        // The reference is still the model that the stage began with.
        assert!(metrics[0]["reward_chosen"] != 0.0, "{metrics:?}");
        assert!(world.files("broken") == world.files("whole"));
        assert!(world.adapter("broken") == world.adapter("whole"));
        assert_eq!(world.adapter("whole").is_some(), has_adapter);
    }
}

/// Goal: adapters alone learn, from where the reference is, and what the stage leaves is the model with them. Method:
/// the first step's measures are those of a policy that is its reference; afterwards only the targeted weights differ.
#[tokio::test]
async fn adapters_learn_what_was_chosen_and_other_weights_stay() {
    let mut world = World::new();
    world.settings.epochs = 10;
    world.settings.optimizer.lr = 2e-2;
    let targets = Targets(vec![Target::V, Target::Up]);
    world.settings.lora = Some(Lora { rank: 4, targets, ..Lora::default() });
    let metrics = world.finish("run").await.metrics();
    let (first, last) = (&metrics[0], metrics.last().unwrap());
    assert!((first["loss"] - 2.0_f64.ln()).abs() < 1e-12, "{first:?}");
    assert_eq!((first["margin"], first["reward_chosen"]), (0.0, 0.0));
    assert!(last["accuracy"] == 1.0 && last["loss"] < first["loss"], "{last:?}");
    let (base, made) = (
        world.loaded(1, 64).model,
        Model::load(&world.dir("run").model("prefers"), &world.bench.device).unwrap(),
    );
    for id in base.params().ids() {
        let name = base.params().name(id);
        let is_target = name.contains("v_proj") || name.contains("up_proj");
        let [was, is] = [&*base, &made].map(|model| model.params().value(id).as_slice());
        assert_eq!(was != is, is_target, "{name}");
    }
    let dir = world.dir("run");
    let adapted = (*base).clone().with_adapter(&dir.adapter("prefers")).unwrap();
    for id in base.params().ids() {
        let [was, is] = [&adapted, &made].map(|model| model.params().value(id).as_slice());
        assert!(was == is, "{}", base.params().name(id));
    }
}

#[test]
fn the_loss_has_the_constants_of_the_stage() {
    for (loss, kind) in [
        (PairLoss::Sigmoid, LossKind::Sigmoid),
        (PairLoss::Ipo, LossKind::Ipo),
        (PairLoss::Hinge, LossKind::Hinge),
    ] {
        for length_normalised in [false, true] {
            let settings = DpoStage {
                loss,
                beta: 0.3,
                label_smoothing: 0.2,
                length_normalised,
                nll: 0.7,
                ..DpoStage::default()
            };
            let expected = Objective {
                kind,
                beta: 0.3,
                label_smoothing: 0.2,
                is_length_normalised: length_normalised,
                nll_coef: 0.7,
            };
            assert_eq!(objective(&settings), expected);
        }
    }
}

#[tokio::test]
async fn every_option_changes_what_is_learned() {
    let world = World::new();
    world.finish("plain").await;
    let plain = world.files("plain");
    let mut found = vec![plain.clone()];
    let change = |name: &str, change: &dyn Fn(&mut DpoStage)| {
        let mut changed = World::new();
        change(&mut changed.settings);
        (name.to_owned(), changed)
    };
    let changed = [
        change("beta", &|s| s.beta = 0.2),
        change("ipo", &|s| s.loss = PairLoss::Ipo),
        change("hinge", &|s| s.loss = PairLoss::Hinge),
        change("label_smoothing", &|s| s.label_smoothing = 0.2),
        change("length_normalised", &|s| s.length_normalised = true),
        change("nll", &|s| s.nll = 0.5),
        change("margin", &|s| s.data = Sql("SELECT *, 0.5 AS margin FROM data".to_owned())),
        change("shuffle", &|s| s.shuffle = false),
        change("grad_clip", &|s| s.grad_clip = 1e-3),
        change("lora", &|s| s.lora = Some(Lora::default())),
        change("lora_rank", &|s| s.lora = Some(Lora { rank: 2, ..Lora::default() })),
        change("lora_alpha", &|s| s.lora = Some(Lora { alpha: 3.0, ..Lora::default() })),
    ];
    for (name, world) in changed {
        world.finish(&name).await;
        let files = world.files(&name);
        assert!(!found.contains(&files), "{name}");
        found.push(files);
    }
    // Of its own model as reference nothing changes; of another one something does.
    let stop = Stop::default();
    let own = world.loaded(1, 64).model;
    world.run_beside("own", Some(own), &stop, |_| ()).await.result.unwrap();
    assert!(world.files("own") == plain);
    let other = world.loaded(2, 64).model;
    let outcome = world.run_beside("other", Some(other), &stop, |_| ()).await;
    assert!(outcome.metrics()[0]["reward_chosen"] != 0.0);
    assert!(world.files("other") != plain);
}

#[tokio::test]
async fn what_cannot_be_compared_is_told_of() {
    let mut world = World::new();
    let short = world.loaded(1, 4).model;
    let outcome = world.run_beside("a", Some(short), &Stop::default(), |_| ()).await;
    let error = outcome.result.unwrap_err().to_string();
    assert!(error.contains("reference model") && error.contains("4 positions"), "{error}");
    world.settings.max_tokens = 3;
    let error = world.fail("b").await.to_string();
    assert!(error.contains("0 pairs are left to train on"), "{error}");
    world.settings.max_tokens = 64;
    world.settings.optimizer.lr = 1e30;
    let nan = SftWatchdogs { nan: Watch::Stop, nan_batches_max: 3, ..SftWatchdogs::default() };
    world.settings.watchdogs = nan;
    let error = world.fail("c").await;
    assert!(matches!(error, Error::Watchdog { .. }), "{error}");
    assert!(!world.dir("c").model("prefers").exists());
}
