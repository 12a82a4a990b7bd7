//! Keys that results don't depend on, but what a run says and leaves does: those of watchdogs, of `query` and of
//! `export`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aha_flow::Error;
use aha_flow::pipeline::{Key, reference};
use aha_flow::progress::Event;

use super::imitating::{PAIRS, TUNED};
use super::learning::STAGE;
use super::{MODELS, WIDE, problems};
use crate::world::{HOPELESS, How, World, files, rows};

/// What a run says of a watchdog's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Nothing,
    Warns,
    Stops,
}

use Says::{Nothing, Stops, Warns};

/// A watchdog's key with a value that isn't its default.
struct Case<'a> {
    key: &'static str,
    value: &'static str,
    /// What goes wrong in the run, with and without the key.
    within: &'a [&'a str],
    message: &'static str,
    without: Says,
    with: Says,
}

/// The keys of a table of the reference, each word that isn't the default by itself.
fn names(keys: &[Key]) -> BTreeSet<String> {
    let of_key = |key: &Key| -> Vec<String> {
        let words = key.words.iter().filter(|(word, _)| key.default != Some(format!("{word:?}")));
        let words = words.map(|(word, _)| format!("{}={word}", key.name));
        if key.words.is_empty() { vec![key.name.clone()] } else { words.collect() }
    };
    keys.iter().flat_map(of_key).collect()
}

/// The keys of a kind of stage.
fn keys_of(kind: &str) -> Vec<Key> {
    let heading = format!("kind = {kind:?}");
    let table = reference().into_iter().find(|table| table.heading == heading);
    table.unwrap().keys
}

fn watchdogs_of(kind: &str) -> BTreeSet<String> {
    let keys = keys_of(kind);
    names(&keys.iter().find(|key| key.name == "watchdogs").unwrap().keys)
}

/// Fails for a watchdog's key without a case, but for those in `elsewhere`.
fn check_names(kind: &str, cases: &[Case<'_>], elsewhere: &[&str]) {
    let wanted = watchdogs_of(kind);
    let cased =
        cases.iter().flat_map(|case| [case.key.to_owned(), format!("{}={}", case.key, case.value)]);
    let elsewhere = elsewhere.iter().map(|name| (*name).to_owned());
    let known: BTreeSet<String> = cased.chain(elsewhere).collect();
    assert!(wanted.is_subset(&known), "{kind}: no case for {:?}", wanted.difference(&known));
}

async fn says(world: &World, name: &str, sets: &[&str], message: &str) -> Says {
    let outcome = world.run(name, How { sets, ..How::default() }).await;
    let is_warned = outcome.warnings().iter().any(|(text, _)| text.contains(message));
    if outcome.result.is_ok() {
        return if is_warned { Warns } else { Nothing };
    }
    let error = outcome.error();
    assert!(matches!(error, Error::Watchdog { .. }), "{sets:?}: {error}");
    assert!(error.to_string().contains(message), "{sets:?}: {error}");
    Stops
}

/// Runs each case beside the same run without it.
async fn check(world: &World, stage: &str, cases: &[Case<'_>]) {
    let mut complaints = Vec::new();
    for (idx, case) in cases.iter().enumerate() {
        let key = format!("stage.{stage}.watchdogs.{}={}", case.key, case.value);
        let with = [case.within, &[&key]].concat();
        for (name, sets, want) in
            [("without", case.within, case.without), ("with", &with[..], case.with)]
        {
            let found = says(world, &format!("{name}-{idx}"), sets, case.message).await;
            if found != want {
                complaints.push(format!("{sets:?}: {found:?}, expected {want:?}"));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// A watchdog that warns of what goes wrong: off, and set to stop.
fn of_words<'a>(key: &'static str, within: &'a [&'a str], message: &'static str) -> [Case<'a>; 2] {
    [("off", Nothing), ("stop", Stops)].map(|(value, with)| Case {
        key,
        value,
        within,
        message,
        without: Warns,
        with,
    })
}

/// One that stops, of an offence against the model's chat template.
fn of_template<'a>(
    key: &'static str,
    within: &'a [&'a str],
    message: &'static str,
) -> [Case<'a>; 2] {
    [("off", Nothing), ("warn", Warns)].map(|(value, with)| Case {
        key,
        value,
        within,
        message,
        without: Stops,
        with,
    })
}

const NO_NUMBER: &str = "gave no number";

/// What optimizer steps without a number lead to.
fn of_nan<'a>(within: &'a [&'a str]) -> Vec<Case<'a>> {
    let (key, value) = ("nan_batches_max", "0");
    let most = Case { key, value, within, message: NO_NUMBER, without: Warns, with: Stops };
    of_words("nan", within, NO_NUMBER).into_iter().chain([most]).collect()
}

/// The end-of-turn token stands behind what the model has to write.
const END_OUTSIDE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {% generation %}{{ m.content }}{% endgeneration %}<|end|>{% else %}{{ m.content }}{% endif %}\
    {% endfor %}";
/// The model is asked in another way than it has learned to answer.
const PROMPTS_OTHERWISE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    A:{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}B:{% endif %}";

/// Models that read any text, each with a chat template, in directories of the world's folder.
async fn chatting(world: &World) -> [String; 2] {
    let stage = "\n[[stage]]\nname = \"shipped\"\nkind = \"export\"\nmodel = \"blank\"\n";
    world.write_pipeline(&format!("{MODELS}{stage}"));
    let mut models = Vec::new();
    for (name, template) in [("outside", END_OUTSIDE), ("otherwise", PROMPTS_OTHERWISE)] {
        world.finish(name, &WIDE).await;
        let model = world.dir(name).model("shipped");
        fs_err::write(model.join("chat_template.jinja"), template).unwrap();
        models.push(format!("models.{name}={:?}", model.to_str().unwrap()));
    }
    models.try_into().unwrap()
}

/// Sets by which a stage has a model of [`chatting`].
fn with_model<'a>(model: &'a str, stage: &str) -> Vec<std::borrow::Cow<'a, str>> {
    let name = model.trim_start_matches("models.").split('=').next().unwrap_or_default();
    let sets = [format!("stage.{stage}.model={name}"), format!("stage.{stage}.template=chat")];
    [model.into()].into_iter().chain(sets.map(Into::into)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_the_watchdogs_of_rl_does_something() {
    let world = World::with(&problems());
    let [_, otherwise] = chatting(&world).await;
    let otherwise = with_model(&otherwise, "zero");
    let any_text = "stage.zero.rewards=[{ kind = 'regex', pattern = '^[a-z0-9]' }]";
    let breaks: Vec<&str> = otherwise.iter().map(AsRef::as_ref).chain([any_text]).collect();
    let cut = ["stage.zero.sampling.max_tokens=1"];
    let hopeless = [HOPELESS];
    let idle = [HOPELESS, "stage.zero.objective.kl=0"];
    let explodes = [
        "stage.zero.optimizer.lr=1e30",
        "stage.zero.steps=2",
        "stage.zero.inner_epochs=1",
        "stage.zero.minibatches=1",
    ];
    let share = |key, within, message| Case {
        key,
        value: "1.0",
        within,
        message,
        without: Warns,
        with: Nothing,
    };
    let (cut_off, equal) = ("cut at the token limit", "teach nothing");
    let (unread, nothing) = ("no answer that", "nothing to train on");
    let steps_max = Case {
        key: "trains_on_nothing_steps_max",
        value: "2",
        within: &idle,
        message: nothing,
        without: Warns,
        with: Stops,
    };
    let cases: Vec<Case<'_>> = [
        of_words("truncated", &cut, cut_off),
        of_words("no_signal", &hopeless, equal),
        of_words("unparsed", &hopeless, unread),
        of_words("trains_on_nothing", &idle, nothing),
        of_template("template_breaks_mask", &breaks, "prompt"),
    ]
    .into_iter()
    .flatten()
    .chain(of_nan(&explodes))
    .chain([
        share("truncated_share_max", &cut, cut_off),
        share("no_signal_share_max", &hopeless, equal),
        share("unparsed_share_max", &hopeless, unread),
        steps_max,
    ])
    .collect();
    // No pipeline brings these about: a sampler would have to lose a token, or weights to change while shared.
    let elsewhere = [
        "stop_token_masked=off",
        "stop_token_masked=warn",
        "weights_differ=off",
        "weights_differ=warn",
    ];
    check_names("rl", &cases, &elsewhere);
    world.write_pipeline(&format!("{MODELS}{STAGE}"));
    check(&world, "zero", &cases).await;
}

/// Those of `sft` and `dpo`, on these rows.
async fn check_imitating(kind: &str, data: &str) {
    let world = World::with(&problems());
    let [outside, otherwise] = chatting(&world).await;
    let chats = [outside, otherwise];
    let sets = chats.each_ref().map(|model| with_model(model, "tuned"));
    let [outside, otherwise] = sets.each_ref().map(|sets| {
        sets.iter().map(AsRef::as_ref).chain(["stage.tuned.max_tokens=1000"]).collect::<Vec<&str>>()
    });
    let explodes = ["stage.tuned.optimizer.lr=1e30", "stage.tuned.epochs=1"];
    let cases: Vec<Case<'_>> = [
        of_template("stop_token_masked", &outside, "outside the loss mask"),
        of_template("template_breaks_mask", &otherwise, "breaks the loss mask"),
    ]
    .into_iter()
    .flatten()
    .chain(of_nan(&explodes))
    .collect();
    check_names(kind, &cases, &[]);
    let data = format!("data = {data:?}");
    let stage = TUNED.replace("\"sft\"", &format!("{kind:?}")).replace(
        "data = \"SELECT id, prompt, answer AS completion FROM problems WHERE id <> 'bad'\"",
        &data,
    );
    assert!(stage.contains(&data));
    world.write_pipeline(&format!("{MODELS}{stage}"));
    check(&world, "tuned", &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_the_watchdogs_of_sft_does_something() {
    let data =
        "SELECT id, prompt, answer AS completion FROM problems WHERE id NOT IN ('bad', 'p1')";
    check_imitating("sft", data).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_the_watchdogs_of_dpo_does_something() {
    check_imitating("dpo", PAIRS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_the_watchdogs_of_reward_model_does_something() {
    let world = World::with(&problems());
    let explodes = ["stage.tuned.optimizer.lr=1e30", "stage.tuned.epochs=1"];
    let cases = of_nan(&explodes);
    check_names("reward-model", &cases, &[]);
    let stage = TUNED
        .replace("\"sft\"", "\"reward-model\"")
        .replace("SELECT id, prompt, answer AS completion FROM problems WHERE id <> 'bad'", PAIRS);
    world.write_pipeline(&format!("{MODELS}{stage}"));
    check(&world, "tuned", &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_query_does_something() {
    let wanted = ["expect=no-rows", "expect=rows", "print", "sql"];
    assert!(names(&keys_of("query")).into_iter().eq(wanted), "a key without a case");
    let stage = "\n[[stage]]\nname = \"asked\"\nkind = \"query\"\ndescription = \"All sums\"\n\
                 sql = \"SELECT id FROM problems WHERE id <> 'bad'\"\n";
    let world = World::with(&problems());
    world.write_pipeline(&format!("{MODELS}{stage}"));
    let count = |name: &str| -> usize {
        rows(&world.dir(name), "asked").iter().map(|batch| batch.num_rows()).sum()
    };
    let none = "stage.asked.sql=SELECT id FROM problems WHERE false";
    let quiet = world.finish("plain", &[]).await;
    world.finish("none", &[none]).await;
    assert_eq!((count("plain"), count("none")), (12, 0));
    for (name, sets, message) in [
        ("rows", vec![none, "stage.asked.expect=rows"], "has to find rows, but finds none"),
        ("no-rows", vec!["stage.asked.expect=no-rows"], "must find no rows, but finds 12"),
    ] {
        let outcome = world.run(name, How { sets: &sets, ..How::default() }).await;
        assert!(outcome.error().to_string().contains(message), "{}", outcome.error());
    }
    world.finish("met", &[none, "stage.asked.expect=no-rows"]).await;
    world.finish("found", &["stage.asked.expect=rows"]).await;
    let printed = |events: &[Event]| -> Vec<(String, String)> {
        let print = |event: &Event| match event {
            Event::Print { description, text, .. } => Some((description.clone(), text.clone())),
            _ => None,
        };
        events.iter().filter_map(print).collect()
    };
    assert_eq!(printed(&quiet.events), []);
    let told = printed(&world.finish("printed", &["stage.asked.print=true"]).await.events);
    assert!(told.len() == 1 && told[0].0 == "All sums" && told[0].1.contains("p11"), "{told:?}");
}

/// The bytes of a directory's weights, and whether they are in several files.
fn weights(dir: &Path) -> (usize, bool) {
    let files = files(dir);
    let is_weights = |path: &&PathBuf| path.extension().is_some_and(|end| end == "safetensors");
    let names: Vec<&PathBuf> = files.keys().filter(is_weights).collect();
    (names.iter().map(|name| files[*name].len()).sum(), names.len() > 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_export_does_something() {
    let wanted = ["dtype=bf16", "format=peft", "model", "out", "shard_size"];
    assert!(names(&keys_of("export")).into_iter().eq(wanted), "a key without a case");
    let world = World::with(&problems());
    let stage = "\n[[stage]]\nname = \"shipped\"\nkind = \"export\"\nmodel = \"blank\"\n";
    let tuned = format!("{TUNED}lora = {{ rank = 4, alpha = 8 }}\nmax_steps = 1\n");
    world.write_pipeline(&format!("{MODELS}{tuned}{stage}"));
    let shipped = |name: &str| world.dir(name).model("shipped");
    world.finish("plain", &[]).await;
    let (plain, (bytes, is_split)) = (files(&shipped("plain")), weights(&shipped("plain")));
    assert!(!is_split && plain.contains_key(Path::new("config.json")));

    world.finish("sage", &["stage.shipped.model=sage"]).await;
    assert_ne!(files(&shipped("sage")), plain);
    let out = world.folder().join("elsewhere");
    let set = format!("stage.shipped.out={:?}", out.to_str().unwrap());
    world.finish("out", &[&set]).await;
    assert!(files(&out) == plain && !shipped("out").exists());
    world.finish("half", &["stage.shipped.dtype=bf16"]).await;
    let (half, _) = weights(&shipped("half"));
    assert!(half < bytes * 2 / 3, "{half} of {bytes} bytes");
    world.finish("split", &["stage.shipped.shard_size=\"8KiB\""]).await;
    let (all, is_split) = weights(&shipped("split"));
    assert!(is_split && all > half, "{all} of {bytes} bytes");

    let adapter = ["stage.shipped.model=tuned", "stage.shipped.format=peft"];
    world.finish("adapter", &adapter).await;
    let (whole, _) = weights(&world.dir("adapter").adapter("shipped"));
    let narrow = [&adapter[..], &["stage.shipped.dtype=bf16"]].concat();
    world.finish("narrow", &narrow).await;
    let (narrow, _) = weights(&world.dir("narrow").adapter("shipped"));
    assert!(0 < narrow && narrow < whole && whole < bytes, "{narrow} {whole} {bytes}");
    assert!(!shipped("adapter").exists());
}
