//! A tiny model made from nothing learns from a few rows: what is in the loss, what is watched, what is kept.

use std::sync::{Arc, Mutex};

use aha_rollout::{col, read};
use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, UInt32Type};
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema;
use serde_json::{Value, json};

use super::Sft;
use crate::error::{Error, Result};
use crate::models::Loaded;
use crate::pipeline::{LossOn, Optimizer, Overlong, SftStage, SftWatchdogs, Sql, Template, Watch};
use crate::progress::Event;
use crate::rundir::RunDir;
use crate::stages::Context;
use crate::stages::testing::{Bench, Outcome, Tiny};
use crate::stop::Stop;

/// The end-of-turn token stands behind what the model has to write.
const END_OUTSIDE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {% generation %}{{ m.content }}{% endgeneration %}<|end|>{% else %}{{ m.content }}{% endif %}\
    {% endfor %}";
/// The same with the end-of-turn token where it belongs.
const END_INSIDE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\
    {% endfor %}";
/// The model is asked in another way than it has learned to answer.
const PROMPTS_OTHERWISE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    A:{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}B:{% endif %}";
/// No part is marked as the assistant's.
const MARKS_NOTHING: &str = "{% for m in messages %}{{ m.content }}{% if m.role == 'robot' %}\
    {% generation %}{% endgeneration %}{% endif %}{% endfor %}";

/// One line a turn, and thoughts of earlier turns left out.
const TURNS: &str = "{% for m in messages %}{{ m.role[0] }}:{% if m.role == 'assistant' and not loop.last %}\
    {{ m.content.split('!')[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}\
    {% if add_generation_prompt %}a:{% endif %}";

struct World {
    bench: Bench,
    settings: SftStage,
    chat_template: Option<String>,
}

impl World {
    /// Sums with their answers, two a step.
    fn new() -> World {
        let prompts = ["1+1=", "1+2=", "2+2=", "2+3="].map(Some);
        World::with("completion", &prompts, &["2", "3", "4", "5"].map(Some))
    }

    /// A conversation in the model's own template, which is this one.
    fn chat(template: &str, watchdogs: SftWatchdogs) -> World {
        let mut world = World::new();
        world.chat_template = Some(template.to_owned());
        world.settings.template = Template::Chat;
        world.settings.watchdogs = watchdogs;
        world
    }

    fn with(second: &str, prompts: &[Option<&str>], completions: &[Option<&str>]) -> World {
        let column = |texts: &[Option<&str>]| Arc::new(StringArray::from(texts.to_vec())) as _;
        let rows = [("prompt", column(prompts)), (second, column(completions))];
        let rows = RecordBatch::try_from_iter_with_nullable(
            rows.into_iter().map(|(name, column)| (name, column, true)),
        )
        .unwrap();
        World {
            bench: Bench::new("tuned", rows),
            settings: SftStage {
                data: Sql("SELECT * FROM data".to_owned()),
                batch_size: 2,
                epochs: 2,
                checkpoint_every: 100,
                optimizer: Optimizer { lr: 1e-3, ..Optimizer::default() },
                ..SftStage::default()
            },
            chat_template: None,
        }
    }

    /// Conversations in the model's own template, which is `TURNS`; one of JSON for each row.
    fn conversations(rows: &[Value]) -> World {
        let lines: String =
            rows.iter().map(|row| format!("{}\n", json!({"messages": row}))).collect();
        let schema = infer_json_schema(lines.as_bytes(), None).unwrap().0;
        let reader = ReaderBuilder::new(Arc::new(schema)).build(lines.as_bytes()).unwrap();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        let mut world = World::chat(TURNS, SftWatchdogs::default());
        world.bench.session.register_batches("chats", batches[0].schema(), batches).unwrap();
        world.settings.data = Sql("SELECT messages FROM chats".to_owned());
        world
    }

    /// What the model learns to write in each example, an end token shown as `.`.
    fn learned(&self, dir: &str) -> Vec<String> {
        let tokenizer = self.base().tokenizer;
        let text = |(ids, mask): (Vec<u32>, Vec<bool>)| {
            let learned = ids.iter().zip(mask).filter(|(_, is_learned)| *is_learned);
            let ids: Vec<u32> = learned.map(|(id, _)| *id).collect();
            tokenizer.decode(&ids, false).unwrap().replace("<|end|>", ".")
        };
        self.examples(dir).into_iter().map(text).collect()
    }

    fn base(&self) -> Loaded {
        let chat_template = self.chat_template.clone();
        self.bench.load(&Tiny { chat_template, ..Tiny::of(["1+1=2", "2+2=4"]) })
    }

    fn dir(&self, name: &str) -> RunDir {
        self.bench.dir(name)
    }

    /// Runs the stage `tuned` in the run directory of that name. `watch` hears of every event first.
    async fn run(
        &self,
        dir: &str,
        stop: &Stop,
        watch: impl Fn(&Event) + Send + Sync + 'static,
    ) -> Outcome {
        self.run_on(self.base(), dir, stop, watch).await
    }

    async fn run_on(
        &self,
        base: Loaded,
        dir: &str,
        stop: &Stop,
        watch: impl Fn(&Event) + Send + Sync + 'static,
    ) -> Outcome {
        let settings = &self.settings;
        let stage = async |context: Context<'_>| Sft { context, settings }.run(base).await;
        self.bench.run(dir, stop, watch, stage).await
    }

    /// Runs the stage to its end.
    async fn finish(&self, dir: &str) -> Outcome {
        let outcome = self.run(dir, &Stop::default(), |_| ()).await;
        outcome.result.as_ref().unwrap();
        outcome
    }

    /// Runs the stage, which fails.
    async fn fail(&self, dir: &str) -> Error {
        self.run(dir, &Stop::default(), |_| ()).await.result.unwrap_err()
    }

    /// Tokens and masks of the examples.
    fn examples(&self, dir: &str) -> Vec<(Vec<u32>, Vec<bool>)> {
        let rows = &read::read_table(&self.dir(dir).table("tuned")).unwrap()[0];
        let ids = rows.column_by_name(col::TOKEN_IDS).unwrap().as_list::<i32>();
        let masks = rows.column_by_name(col::LOSS_MASK).unwrap().as_list::<i32>();
        let ids = ids.iter().flatten().map(|x| x.as_primitive::<UInt32Type>().values().to_vec());
        let masks = masks.iter().flatten().map(|x| x.as_boolean().values().iter().collect());
        ids.zip(masks).collect()
    }

    fn weights(&self, dir: &str) -> Vec<u8> {
        fs_err::read(self.dir(dir).model("tuned").join("model.safetensors")).unwrap()
    }

    /// Steps and identities of what was set aside.
    fn set_aside(&self, dir: &str) -> Vec<(i64, String)> {
        let mut found = Vec::new();
        for rows in read::read_table(&self.dir(dir).table("tuned_set_aside")).unwrap() {
            let steps = rows.column_by_name(col::STEP).unwrap().as_primitive::<Int64Type>();
            let ids = rows.column_by_name(col::PROMPT_ID).unwrap().as_string::<i32>();
            found.extend(
                steps.values().iter().copied().zip(ids.iter().flatten().map(str::to_owned)),
            );
        }
        found
    }
}

fn watchdogs(watch: Watch) -> SftWatchdogs {
    SftWatchdogs {
        stop_token_masked: watch,
        template_breaks_mask: watch,
        ..SftWatchdogs::default()
    }
}

fn ends(world: &World, ids: &[u32]) -> usize {
    let end = world.base().tokenizer.eos_ids()[0];
    ids.iter().filter(|&&id| id == end).count()
}

#[tokio::test]
async fn a_stop_token_outside_the_mask_stops_warns_or_passes_as_set() {
    let message = "4 of 4 examples (100 %) have their stop token outside the loss mask";
    let error = World::chat(END_OUTSIDE, watchdogs(Watch::Stop)).fail("run").await;
    assert!(matches!(error, Error::Watchdog { .. }), "{error}");
    assert!(error.to_string().contains(message), "{error}");
    assert!(error.hint().unwrap().contains("{% generation %}"), "{:?}", error.hint());

    let world = World::chat(END_OUTSIDE, watchdogs(Watch::Warn));
    let outcome = world.finish("run").await;
    assert!(outcome.warnings()[0].contains(message), "{:?}", outcome.warnings());
    for (ids, mask) in world.examples("run") {
        assert_eq!(ends(&world, &ids), 1, "the template's own, and no other behind it: {ids:?}");
        assert_eq!(mask.last(), Some(&false), "what is trained on is not changed");
    }

    let outcome = World::chat(END_OUTSIDE, watchdogs(Watch::Off)).finish("run").await;
    assert_eq!(outcome.warnings(), [""; 0]);

    // Where every token counts, so does this one.
    let mut world = World::chat(END_OUTSIDE, watchdogs(Watch::Stop));
    world.settings.loss_on = LossOn::All;
    assert_eq!(world.finish("run").await.warnings(), [""; 0]);
}

#[tokio::test]
async fn a_stop_token_that_is_learned_is_no_finding() {
    let world = World::chat(END_INSIDE, watchdogs(Watch::Stop));
    assert_eq!(world.finish("run").await.warnings(), [""; 0]);
    for (ids, mask) in world.examples("run") {
        assert_eq!((ends(&world, &ids), mask.last()), (1, Some(&true)));
    }
    // Prompt and completion as they are have no end token: it is put there, and learned.
    let world = World::new();
    assert_eq!(world.finish("run").await.warnings(), [""; 0]);
    for (ids, mask) in world.examples("run") {
        assert_eq!((ends(&world, &ids), mask.last()), (1, Some(&true)));
    }
}

#[tokio::test]
async fn an_example_whose_end_is_cut_off_is_no_finding() {
    for template in [END_INSIDE, END_OUTSIDE] {
        let mut world = World::chat(template, watchdogs(Watch::Stop));
        world.settings.max_tokens = 5;
        world.settings.overlong = Overlong::Truncate;
        assert_eq!(world.finish("run").await.warnings(), [""; 0]);
        assert!(world.examples("run").iter().all(|(ids, _)| ends(&world, ids) == 0));
    }
}

#[tokio::test]
async fn a_template_that_breaks_the_mask_stops_warns_or_passes_as_set() {
    let message = "breaks the loss mask of 4 of 4 examples (100 %)";
    for template in [PROMPTS_OTHERWISE, MARKS_NOTHING] {
        let error = World::chat(template, watchdogs(Watch::Stop)).fail("run").await;
        assert!(matches!(error, Error::Watchdog { .. }), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().unwrap().contains("template"), "{:?}", error.hint());
    }
    let outcome = World::chat(PROMPTS_OTHERWISE, watchdogs(Watch::Warn)).finish("run").await;
    assert!(outcome.warnings()[0].contains(message), "{:?}", outcome.warnings());
    let outcome = World::chat(PROMPTS_OTHERWISE, watchdogs(Watch::Off)).finish("run").await;
    assert_eq!(outcome.warnings(), [""; 0]);
    // Without an assistant's part there is nothing to learn, whatever the watchdogs let pass.
    let error = World::chat(MARKS_NOTHING, watchdogs(Watch::Off)).fail("run").await;
    assert!(error.to_string().contains("nothing to train on"), "{error}");
}

#[tokio::test]
async fn a_text_that_is_null_is_an_error_and_not_an_empty_text() {
    let (some, none) = ([Some("1"), Some("2")], [Some("1"), None]);
    let cases = [
        ("prompt", World::with("completion", &none, &some)),
        ("completion", World::with("completion", &some, &none)),
        ("text", World::with("text", &some, &none)),
    ];
    for (name, world) in cases {
        let error = world.fail("run").await;
        assert!(matches!(error, Error::Input { .. }), "{error}");
        assert!(error.to_string().contains(&format!("row 1 of the examples has no `{name}`")));
        assert!(error.hint().unwrap().contains(&format!("WHERE {name} IS NOT NULL")));
    }
}

fn says(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[tokio::test]
async fn of_a_conversation_the_turns_of_the_setting_are_learned_with_their_end_tokens() {
    let mut masked = says("assistant", "2");
    masked["train"] = json!(false);
    let rows = [
        json!([
            says("system", "s"),
            says("user", "1+1="),
            masked,
            says("tool", "t"),
            says("assistant", "3")
        ]),
        json!([says("user", "1+3="), says("assistant", "4")]),
    ];
    let mut world = World::conversations(&rows);
    let whole = ["s:s.\nu:1+1=.\na:2.\nt:t.\na:3.\n", "u:1+3=.\na:4.\n"];
    for (loss_on, learned) in [
        (LossOn::Completion, ["2.3.", "4."]),
        (LossOn::Last, ["3.", "4."]),
        (LossOn::Flagged, ["3.", "4."]),
        (LossOn::All, whole),
    ] {
        world.settings.loss_on = loss_on;
        let dir = loss_on.word();
        let outcome = world.finish(dir).await;
        assert_eq!(world.learned(dir), learned, "{dir}");
        let is_told =
            outcome.warnings().iter().any(|w| w.contains("1 conversations have turns with"));
        assert_eq!(is_told, loss_on != LossOn::Flagged, "{dir}");
        let rows = &read::read_table(&world.dir(dir).table("tuned")).unwrap()[0];
        let column =
            |name| rows.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
        let messages: Value = serde_json::from_str(&column(col::MESSAGES)).unwrap();
        assert_eq!(messages[4], says("assistant", "3"));
        let text =
            if loss_on == LossOn::Completion || loss_on == LossOn::All { "2\n\n3" } else { "3" };
        assert_eq!(column(col::COMPLETION), text);
    }
    let weights: Vec<_> = ["completion", "last", "all"].map(|dir| world.weights(dir)).into();
    assert!(weights[0] != weights[1] && weights[1] != weights[2]);
    assert!(world.weights("last") == world.weights("flagged"), "they learn the same tokens");
}

#[tokio::test]
async fn a_turn_that_the_template_rewrites_stops_the_stage_unless_it_is_not_learned() {
    let row = |thought: &str| {
        let first = format!("{thought}2");
        json!([
            says("user", "1+1="),
            says("assistant", &first),
            says("user", "+1="),
            says("assistant", "hm!3")
        ])
    };
    let mut world = World::conversations(&[row(""), row("well!")]);
    let error = world.fail("run").await;
    assert!(matches!(error, Error::Watchdog { .. }), "{error}");
    let message = "1 of 2 examples (50 %): example `1`: messages[1]: the template shows the turn in another way";
    assert!(error.to_string().contains(message), "{error}");
    assert!(error.hint().unwrap().contains("`loss_on` = \"last\""), "{:?}", error.hint());
    world.settings.loss_on = LossOn::Last;
    world.finish("last").await;
    assert_eq!(world.learned("last"), ["hm!3.", "hm!3."]);
}

#[tokio::test]
async fn conversations_that_teach_nothing_or_are_none_are_told() {
    let of = |role: &str| json!([says("user", "1"), says(role, "2")]);
    let outcome = World::conversations(&[of("assistant"), of("user")]).finish("run").await;
    let message = "1 conversations have no turn that the loss is over";
    assert!(outcome.warnings().iter().any(|w| w.contains(message)), "{:?}", outcome.warnings());
    let error = World::conversations(&[of("assistant"), json!(null)]).fail("run").await;
    assert!(error.to_string().contains("row 1 of the examples has no `messages`"), "{error}");
    let error =
        World::conversations(&[json!([{"role": "user", "content": null}])]).fail("run").await;
    assert!(
        error.to_string().starts_with("example `0`: messages[0]: a message has no `content`"),
        "{error}"
    );
    // The end-of-turn token is what the template writes, and it is missed where it isn't.
    let mut world = World::conversations(&[of("assistant")]);
    world.chat_template = Some(END_OUTSIDE.to_owned());
    let error = world.fail("outside").await;
    assert!(error.to_string().contains("have their stop token outside the loss mask"), "{error}");
    world.settings.template = Template::Raw;
    let error = world.fail("raw").await;
    assert!(error.hint().unwrap().contains("set `template` to \"chat\""), "{error}");
}

#[tokio::test]
async fn the_model_that_the_stage_starts_from_is_let_go_of() {
    let world = World::new();
    let base = world.base();
    let model = Arc::downgrade(&base.model);
    let is_held: Arc<Mutex<Vec<bool>>> = Arc::default();
    let sink = Arc::clone(&is_held);
    let watch = move |event: &Event| {
        if matches!(event, Event::Step { .. }) {
            sink.lock().unwrap().push(model.upgrade().is_some());
        }
    };
    world.run_on(base, "run", &Stop::default(), watch).await.result.unwrap();
    assert_eq!(*is_held.lock().unwrap(), [false; 4]);
}

/// Every step but the first gives no number: the first makes the weights as large as this.
fn exploding(nan: Watch, nan_batches_max: u32) -> World {
    let mut world = World::new();
    world.settings.optimizer.lr = 1e30;
    world.settings.watchdogs = SftWatchdogs { nan, nan_batches_max, ..SftWatchdogs::default() };
    world
}

#[tokio::test]
async fn a_batch_that_gives_no_number_is_set_aside_and_the_weights_are_kept() {
    let mut world = exploding(Watch::Warn, 3);
    let outcome = world.finish("run").await;
    let warnings = outcome.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[2].contains("gave no number") && warnings[2].contains("(3 so far)"));
    let set_aside = world.set_aside("run");
    assert_eq!(set_aside.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 2, 3, 3, 4, 4]);
    let mut epoch: Vec<&str> = set_aside[2..].iter().map(|(_, id)| id.as_str()).collect();
    epoch.sort_unstable();
    assert_eq!(epoch, ["0", "1", "2", "3"], "the second epoch's");
    // The weights are those that the last step that gave a number left.
    world.settings.max_steps = Some(1);
    world.finish("short").await;
    assert!(world.weights("short") == world.weights("run"));
}

#[tokio::test]
async fn batches_without_a_number_stop_the_stage_after_a_checkpoint_as_set() {
    let stops_at = async |world: &World| {
        let error = world.fail("run").await;
        assert!(matches!(error, Error::Watchdog { .. }), "{error}");
        assert!(error.to_string().contains("gave no number"), "{error}");
        assert!(error.hint().unwrap().contains("optimizer.lr"));
        let checkpoints = world.dir("run").checkpoints("tuned");
        let step = |step| checkpoints.join(format!("step-{step:06}/position.json")).is_file();
        assert!(!world.dir("run").model("tuned").exists());
        (1..=4).filter(|&n| step(n)).collect::<Vec<_>>()
    };
    assert_eq!(stops_at(&exploding(Watch::Stop, 3)).await, [2]);
    assert_eq!(stops_at(&exploding(Watch::Warn, 1)).await, [3]);
    let outcome = exploding(Watch::Off, 0).finish("run").await;
    assert_eq!(outcome.warnings(), [""; 0]);
}

#[tokio::test]
async fn a_stage_that_was_interrupted_among_such_batches_counts_on() {
    let mut world = exploding(Watch::Warn, 3);
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
    let newest = world.dir("broken").checkpoints("tuned").join("step-000003");
    fs_err::remove_dir_all(newest).unwrap();
    let outcome = world.finish("broken").await;
    assert!(outcome.warnings().last().unwrap().contains("(3 so far)"), "{:?}", outcome.warnings());
    assert_eq!(world.set_aside("broken"), world.set_aside("whole"));
    assert!(world.weights("broken") == world.weights("whole"));
}

#[tokio::test]
async fn weights_that_are_not_finite_are_never_saved() {
    let mut world = exploding(Watch::Warn, 3);
    world.settings.optimizer.lr = 1e39;
    for (max_steps, checkpoint_every) in [(1, 100), (4, 1), (4, 100)] {
        world.settings.max_steps = Some(max_steps);
        world.settings.checkpoint_every = checkpoint_every;
        let dir = format!("run-{max_steps}-{checkpoint_every}");
        let error = world.fail(&dir).await;
        assert!(error.to_string().contains("the weights are not finite after step"), "{error}");
        assert!(!world.dir(&dir).model("tuned").exists());
        let checkpoints = world.dir(&dir).checkpoints("tuned");
        assert!(!checkpoints.exists() || fs_err::read_dir(checkpoints).unwrap().count() == 0);
    }
}
