//! A tiny model made from nothing learns to prefer: what is held out, what is saved, how a stage goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use aha_reward::Sample;
use aha_reward::backend::PreferenceModel;
use aha_rollout::{col, read};
use arrow::array::{AsArray, Float64Array, RecordBatch};
use arrow::datatypes::Float64Type;

use super::RewardModel;
use crate::error::Error;
use crate::models::{self, Loaded};
use crate::pipeline::{
    Auto, NanWatchdog, Optimizer, OverlongPair, RewardModelStage, Sql, Template, Watch,
};
use crate::progress::Event;
use crate::reward_model::{self, Card};
use crate::rundir::RunDir;
use crate::stages::Context;
use crate::stages::testing::{Bench, Outcome, Tiny, pairs};
use crate::stop::Stop;

struct World {
    bench: Bench,
    settings: RewardModelStage,
}

impl World {
    fn new() -> World {
        let mut rows = pairs(|i| (i / 4 + 6).to_string());
        rows.push(("margin", Arc::new(Float64Array::from(vec![0.25; 12]))));
        World {
            bench: Bench::new("prefers", RecordBatch::try_from_iter(rows).unwrap()),
            settings: RewardModelStage {
                data: Sql("SELECT * FROM data".to_owned()),
                held_out_share: 0.25,
                held_out_every: 2,
                batch_size: 3,
                epochs: 2,
                centering: 0.01,
                template: Template::Text("Q {prompt} A ".to_owned()),
                optimizer: Optimizer { lr: 3e-3, ..Optimizer::default() },
                ..RewardModelStage::default()
            },
        }
    }

    fn base(&self) -> Loaded {
        self.bench.load(&Tiny::of(["Q 1+1= A 2", "Q 2+2= A 4"]))
    }

    fn dir(&self, name: &str) -> RunDir {
        self.bench.dir(name)
    }

    async fn run(
        &self,
        dir: &str,
        stop: &Stop,
        watch: impl Fn(&Event) + Send + Sync + 'static,
    ) -> Outcome {
        let (base, settings) = (self.base(), &self.settings);
        let stage = async |context: Context<'_>| RewardModel { context, settings }.run(base).await;
        self.bench.run(dir, stop, watch, stage).await
    }

    async fn finish(&self, dir: &str) -> Outcome {
        let outcome = self.run(dir, &Stop::default(), |_| ()).await;
        outcome.result.as_ref().unwrap();
        outcome
    }

    async fn fail(&self, dir: &str) -> Error {
        self.run(dir, &Stop::default(), |_| ()).await.result.unwrap_err()
    }

    fn saved(&self, dir: &str) -> Loaded {
        models::load_any(&self.dir(dir).model("prefers"), &self.bench.device).unwrap()
    }

    fn files(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        self.bench.files(dir)
    }
}

#[tokio::test]
async fn a_prompt_is_trained_on_or_measured_on_and_never_both() {
    let world = World::new();
    let metrics = world.finish("run").await.metrics();
    let rows = &read::read_table(&world.dir("run").table("prefers")).unwrap()[0];
    let prompts = rows.column_by_name(col::PROMPT).unwrap().as_string::<i32>();
    let held_out = rows.column_by_name(col::IS_HELD_OUT).unwrap().as_boolean();
    let held: Vec<&str> =
        (0..12).filter(|&i| held_out.value(i)).map(|i| prompts.value(i)).collect();
    assert_eq!(held.len(), 3, "the three pairs of one prompt: {held:?}");
    assert!(held.iter().all(|prompt| *prompt == held[0]), "{held:?}");
    let margins = rows.column_by_name(col::MARGIN).unwrap().as_primitive::<Float64Type>();
    assert!(margins.values().iter().all(|margin| *margin == 0.25));
    // Nine pairs twice, three a step; measured after every second step, the last among them.
    let measured: Vec<bool> = metrics.iter().map(|m| m.contains_key("held_out_accuracy")).collect();
    assert_eq!(measured, [false, true, false, true, false, true]);
}

#[tokio::test]
async fn what_is_saved_scores_with_its_template_and_knows_its_moments() {
    let world = World::new();
    world.finish("run").await;
    let saved = world.saved("run");
    let card = Card::of(saved.model.config());
    assert_eq!(card.template.as_deref(), Some("Q {prompt} A "));
    let ends = saved.tokenizer.eos_ids().to_vec();
    let pad = saved.model.config().pad_id.unwrap();
    assert!(!ends.contains(&pad), "transformers would look past the end token");
    // Every score that the moments are of, from the tokens of the table.
    let rows = &read::read_table(&world.dir("run").table("prefers")).unwrap()[0];
    let held_out = rows.column_by_name(col::IS_HELD_OUT).unwrap().as_boolean();
    let mut scores = Vec::new();
    for name in [col::CHOSEN_TOKEN_IDS, col::REJECTED_TOKEN_IDS] {
        for (row, ids) in rows.column_by_name(name).unwrap().as_list::<i32>().iter().enumerate() {
            let ids = ids.unwrap();
            let ids = ids.as_primitive::<arrow::datatypes::UInt32Type>().values();
            assert_eq!(ids.last(), ends.first(), "the end token is scored");
            if !held_out.value(row) {
                scores.push(f64::from(saved.model.scores(&[ids]).unwrap()[0]));
            }
        }
    }
    let mean = scores.iter().sum::<f64>() / 18.0;
    let std = (scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / 18.0).sqrt();
    let [found_mean, found_std] = card.moments.unwrap().map(f64::from);
    assert!(
        (found_mean - mean).abs() < 1e-6 && (found_std - std).abs() < 1e-5,
        "{card:?} {mean} {std}"
    );
    // The model at work makes the same tokens of the text.
    let tokens = saved.model.scores(&[&{
        let prompter = crate::prompts::Prompter::new(&saved.tokenizer, &world.settings.template);
        prompter.unwrap().example("1+1=", "2").unwrap().ids
    }]);
    let at_work = reward_model::RewardModel::new(saved.clone()).unwrap();
    let sample = Sample { prompt: "1+1=", completion: "2", ..Sample::default() };
    assert_eq!(at_work.scores(&[sample]), [Ok(tokens.unwrap()[0])]);
    assert_eq!(at_work.moments(), card.moments);
}

#[tokio::test]
async fn a_score_depends_on_nothing_beside_it_and_what_has_none_says_why() {
    let world = World::new();
    world.finish("run").await;
    let model = reward_model::RewardModel::new(world.saved("run")).unwrap();
    let texts: Vec<String> = (0..150).map(|i| "3".repeat(1 + i * 7 % 60)).collect();
    let samples: Vec<Sample<'_>> = texts
        .iter()
        .map(|text| Sample { prompt: "1+2=", completion: text, ..Sample::default() })
        .collect();
    let together = model.scores(&samples);
    let alone: Vec<_> = samples.iter().flat_map(|s| model.scores(&[*s])).collect();
    assert_eq!(together, alone);
    let reasons: Vec<&String> = together.iter().filter_map(|score| score.as_ref().err()).collect();
    assert!(!reasons.is_empty() && reasons.len() < 150);
    assert!(reasons.iter().all(|why| why.ends_with("the reward model has 64 positions")));
}

#[tokio::test]
async fn a_stage_that_was_interrupted_ends_with_the_same_files() {
    let mut world = World::new();
    world.settings.checkpoint_every = 2;
    world.finish("whole").await;
    let stop = Stop::default();
    let asked = stop.clone();
    let watch = move |event: &Event| {
        if matches!(event, Event::Step { step: 3, .. }) {
            asked.request();
        }
    };
    let outcome = world.run("broken", &stop, watch).await;
    assert!(matches!(outcome.result, Err(Error::Interrupted)), "{:?}", outcome.result);
    // As a kill would leave it: what came after the checkpoint of step 2 is made again.
    let newest = world.dir("broken").checkpoints("prefers").join("step-000003");
    fs_err::remove_dir_all(newest).unwrap();
    world.settings.micro_batch_tokens = Auto::Given(30);
    world.settings.activation_checkpointing = Auto::Given(true);
    let outcome = world.finish("broken").await;
    assert_eq!(outcome.metrics().len(), 4);
    assert!(world.files("broken") == world.files("whole"));
}

#[tokio::test]
async fn pairs_that_cannot_be_used_are_told_of() {
    let mut world = World::new();
    world.settings.data = Sql("SELECT prompt, chosen, NULL AS rejected FROM data".to_owned());
    let error = world.fail("a").await;
    assert!(error.to_string().contains("row 0 of the pairs has no `rejected`"), "{error}");
    world.settings.data = Sql("SELECT * FROM data".to_owned());
    world.settings.max_tokens = 3;
    let error = world.fail("b").await;
    assert!(error.to_string().contains("0 pairs are left to train on"), "{error}");
    world.settings.overlong = OverlongPair::Error;
    let error = world.fail("c").await;
    assert!(error.to_string().contains("pair `0` has"), "{error}");
}

#[tokio::test]
async fn a_batch_that_gives_no_number_is_set_aside_and_stops_as_set() {
    let mut world = World::new();
    world.settings.optimizer.lr = 1e30;
    world.settings.watchdogs = NanWatchdog { nan: Watch::Stop, nan_batches_max: 3 };
    let error = world.fail("run").await;
    assert!(matches!(error, Error::Watchdog { .. }), "{error}");
    assert!(error.to_string().contains("gave no number"), "{error}");
    let rows = &read::read_table(&world.dir("run").table("prefers_set_aside")).unwrap()[0];
    assert_eq!(rows.num_rows(), 3);
    assert!(!world.dir("run").model("prefers").exists());
}
