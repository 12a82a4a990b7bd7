//! Every key that results depend on does something: a tiny run with another value of it gives something else.
//!
//! # Map
//! - Here: [`Case`]s, what they are compared in, and that every key and every word of one has a case. So a key that
//!   nobody reads any more fails, and so does a new one that nobody has a case for.
//! - [`learning`]: `rl`; [`formulas`]: what its formulas give. [`imitating`]: `sft`, `reward-model`, `dpo`, `[run]` and
//!   `[models]`. [`drawing`]: `sample` and `eval`.
//!
//! What a value does is checked where its formula is; keys that are marked neutral must do nothing, which the tests of
//! bits look at.

mod drawing;
mod formulas;
mod imitating;
mod learning;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aha_flow::pipeline::{Key, reference};
use aha_rollout::time;
use arrow::array::RecordBatch;

use crate::world::{How, World, files, metrics, rows};

/// Where a value shows.
#[derive(Clone, Debug)]
enum Shows {
    /// In the files of the stage's model.
    Model,
    /// In the rows of a table.
    Rows(&'static str),
    /// In what is measured.
    Measures,
    /// The run is refused, or stops, with a message that has this in it.
    Error(&'static str),
}

/// A key with a value that isn't its default, and what else is set with it.
#[derive(Clone, Debug)]
struct Case {
    key: &'static str,
    value: String,
    within: Vec<String>,
    shows: Shows,
}

impl Case {
    fn new(key: &'static str, value: &str, within: &[&str], shows: Shows) -> Case {
        let within = within.iter().map(|&set| set.to_owned()).collect();
        Case { key, value: value.to_owned(), within, shows }
    }

    /// The key and, for a word that it chooses from, the word.
    fn names(&self) -> [String; 2] {
        [self.key.to_owned(), format!("{}={}", self.key, self.value)]
    }
}

fn model(key: &'static str, value: &str, within: &[&str]) -> Case {
    Case::new(key, value, within, Shows::Model)
}

fn table(name: &'static str, key: &'static str, value: &str, within: &[&str]) -> Case {
    Case::new(key, value, within, Shows::Rows(name))
}

fn measures(key: &'static str, value: &str, within: &[&str]) -> Case {
    Case::new(key, value, within, Shows::Measures)
}

fn error(message: &'static str, key: &'static str, value: &str, within: &[&str]) -> Case {
    Case::new(key, value, within, Shows::Error(message))
}

/// A stage, and where its keys are.
struct Kind {
    name: &'static str,
    heading: &'static str,
    text: String,
    /// Keys that have no case here, and why.
    left_out: &'static [(&'static str, &'static str)],
}

/// Sums of two sources, and a prompt that no tokenizer here can encode.
fn problems() -> String {
    let sum = |i: usize| {
        let source = if i < 8 { "sums" } else { "chat" };
        format!(
            "{{\"id\":\"p{i}\",\"prompt\":\"{i}+1=\",\"answer\":\"{}\",\"source\":\"{source}\"}}\n",
            i + 1
        )
    };
    let bad = "{\"id\":\"bad\",\"prompt\":\"what?\",\"answer\":\"2\",\"source\":\"sums\"}\n";
    (0..12).map(sum).chain([bad.to_owned()]).collect()
}

/// Three models of one tokenizer.
const MODELS: &str = r#"
[run]
seed = 5
threads = 2

[models]
blank = { init = "random", hidden_size = 32, intermediate_size = 48, layers = 1, heads = 2, kv_heads = 1, head_dim = 16, max_position_embeddings = 64, init_std = 0.3, tokenizer = { train = "SELECT prompt || answer AS text FROM problems WHERE id <> 'bad'", vocab_size = 24, alphabet = "seen" } }
sage = { init = "random", hidden_size = 32, intermediate_size = 32, layers = 2, heads = 2, kv_heads = 2, head_dim = 16, max_position_embeddings = 64, init_std = 0.4, tokenizer = "blank" }
seer = { init = "random", hidden_size = 48, intermediate_size = 32, layers = 1, heads = 1, kv_heads = 1, head_dim = 16, max_position_embeddings = 64, init_std = 0.4, tokenizer = "blank" }
"#;

/// The model can read any text, and longer ones.
const WIDE: [&str; 3] = [
    "models.blank.tokenizer.alphabet=bytes",
    "models.blank.tokenizer.vocab_size=300",
    "models.blank.max_position_embeddings=1024",
];

/// [`WIDE`] with other sets.
fn wide<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&WIDE[..], more].concat()
}

/// The keys of an optimizer and its bound of the gradient, in this order.
fn optimizer(keys: &[&'static str; 8], within: &[&str]) -> Vec<Case> {
    let [lr, betas, eps, weight_decay, kind, warmup_steps, min_lr, grad_clip] = *keys;
    let falling = format!("{kind}=cosine");
    vec![
        model(lr, "2e-2", within),
        model(betas, "[0.5, 0.999]", within),
        model(betas, "[0.9, 0.5]", within),
        model(eps, "1e-1", within),
        model(weight_decay, "0.5", within),
        model(kind, "constant", &[within, &[&format!("{kind}=linear")]].concat()),
        model(kind, "linear", &[within, &[&format!("{kind}=constant")]].concat()),
        model(kind, "cosine", &[within, &[&format!("{kind}=constant")]].concat()),
        model(warmup_steps, "3", within),
        model(min_lr, "5e-3", &[within, &[&falling]].concat()),
        model(grad_clip, "0.001", within),
    ]
}

/// Keys of rewards that verifiers have of their own are theirs to check.
const OF_ALL_REWARDS: [&str; 7] = ["kind", "name", "weight", "clip", "gate", "on_null", "sources"];

/// The keys that results depend on, each word that isn't the default by itself.
fn leaves(keys: &[Key], path: &str, found: &mut BTreeSet<String>) {
    for key in keys.iter().filter(|key| !key.is_neutral) {
        let is_of_verifier = path == "rewards" && !OF_ALL_REWARDS.contains(&key.name.as_str());
        // What a reward is has its cases where there may be several.
        let is_one_reward = ["reward", "rank_by"].contains(&key.name.as_str());
        let path = if path.is_empty() { key.name.clone() } else { format!("{path}.{}", key.name) };
        if is_of_verifier {
            continue;
        }
        if !key.keys.is_empty() && !is_one_reward {
            leaves(&key.keys, &path, found);
        } else if key.words.is_empty() {
            found.insert(path);
        } else {
            let words = key.words.iter().map(|(word, _)| *word);
            let others = words.filter(|word| key.default != Some(format!("{word:?}")));
            found.extend(others.map(|word| format!("{path}={word}")));
        }
    }
}

impl Kind {
    /// Fails for a key of the reference without a case, and for a case of none.
    fn check_cases(&self, cases: &[Case]) {
        let mut wanted = BTreeSet::new();
        let tables = reference();
        let of_kind = tables.iter().find(|table| table.heading == self.heading).unwrap();
        let keys = match &of_kind.keys[..] {
            [named] if named.name == "NAME" => &named.keys[..],
            keys => keys,
        };
        leaves(keys, "", &mut wanted);
        for (key, why) in self.left_out {
            assert!(wanted.remove(*key), "{key} is no key, or has a case: {why}");
        }
        let key_of = |name: &String| name.split('=').next().map(str::to_owned);
        let known: BTreeSet<String> = wanted.iter().filter_map(key_of).collect();
        for case in cases {
            assert!(known.contains(case.key), "{} is no key of {}", case.key, self.heading);
            case.names().iter().for_each(|name| wanted.retain(|wanted| wanted != name));
        }
        assert!(wanted.is_empty(), "{}: no case for {wanted:?}", self.heading);
    }

    /// An override of a key of the stage, or of `[run]` and `[models]`.
    fn set(&self, key_and_value: &str) -> String {
        let is_whole = ["run.", "models."].iter().any(|start| key_and_value.starts_with(start));
        match self.heading {
            "[run]" | "[models]" => format!("{}{key_and_value}", self.prefix()),
            _ if is_whole => key_and_value.to_owned(),
            _ => format!("stage.{}.{key_and_value}", self.name),
        }
    }

    fn prefix(&self) -> &'static str {
        match self.heading {
            "[run]" => "run.",
            _ => "models.blank.",
        }
    }

    async fn check(&self, cases: Vec<Case>) {
        self.check_cases(&cases);
        self.run(cases).await;
    }

    /// Runs each case beside the same run without it.
    async fn run(&self, cases: Vec<Case>) {
        let world = World::with(&problems());
        world.write_pipeline(&format!("{MODELS}{}", self.text));
        let mut plain: BTreeMap<Vec<String>, String> = BTreeMap::new();
        let mut complaints = Vec::new();
        for (idx, case) in cases.iter().enumerate() {
            let without: Vec<String> = case.within.iter().map(|set| self.set(set)).collect();
            // A reward is an item of an array, which is replaced whole.
            let key = case.key.split_once('.').filter(|(table, _)| *table == "rewards");
            let key = key.map_or(case.key, |(table, _)| table);
            let with = [&without[..], &[self.set(&format!("{key}={}", case.value))]].concat();
            let base = match plain.get(&without) {
                Some(base) => base.clone(),
                None => {
                    let name = format!("plain-{idx}");
                    let outcome = run(&world, &name, &without).await;
                    outcome.unwrap_or_else(|error| panic!("{without:?}: {error}"));
                    plain.insert(without, name.clone());
                    name
                }
            };
            let name = format!("run-{idx}");
            let complaint = match (run(&world, &name, &with).await, &case.shows) {
                (Ok(()), Shows::Error(_)) => Some("is no error".to_owned()),
                (Err(found), Shows::Error(message)) if found.contains(message) => None,
                (Err(found), _) => Some(found),
                (Ok(()), shows) => {
                    let differs = self.differs(&world, [&base, &name], shows);
                    (!differs).then(|| "does nothing".to_owned())
                }
            };
            complaints.extend(complaint.map(|complaint| format!("{with:?}: {complaint}")));
            let _ = fs_err::remove_dir_all(world.dir(&name).root()); // One that is refused leaves nothing.
        }
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }

    fn differs(&self, world: &World, [a, b]: [&str; 2], shows: &Shows) -> bool {
        let [a, b] = [world.dir(a), world.dir(b)];
        match shows {
            Shows::Model => {
                let of = |dir: PathBuf| files(&dir);
                let (a, b) = (of(a.model(self.name)), of(b.model(self.name)));
                assert!(!a.is_empty() && a.keys().eq(b.keys()));
                a != b
            }
            Shows::Rows(name) => {
                let of = |dir| rows(dir, name).iter().map(timeless).collect::<Vec<_>>();
                time::equal_but_for_time(&of(&a), &of(&b)).is_err()
            }
            Shows::Measures => metrics(&a) != metrics(&b),
            Shows::Error(_) => unreachable!("looked at before"),
        }
    }
}

/// Rows without what the clock had a part in and isn't marked so.
fn timeless(rows: &RecordBatch) -> RecordBatch {
    let schema = rows.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let kept = names.enumerate().filter(|(_, name)| *name != "tokens_per_second");
    rows.project(&kept.map(|(idx, _)| idx).collect::<Vec<_>>()).unwrap()
}

/// The message of a run that fails.
async fn run(world: &World, name: &str, sets: &[String]) -> Result<(), String> {
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let outcome = world.run(name, How { sets: &sets, ..How::default() }).await;
    outcome.result.map_err(|failure| failure.to_string())
}

#[test]
fn every_table_of_the_reference_is_looked_at() {
    let tables = reference();
    let headings: Vec<&str> = tables.iter().map(|table| table.heading.as_str()).collect();
    let elsewhere = ["[tables]", "[[stage]]", "kind = \"query\"", "kind = \"export\""];
    let here = ["sft", "reward-model", "dpo", "rl", "sample", "eval"];
    let here = here.map(|kind| format!("kind = {kind:?}"));
    for heading in headings {
        let is_here =
            ["[run]", "[models]"].contains(&heading) || here.contains(&heading.to_owned());
        assert!(is_here || elsewhere.contains(&heading), "{heading} has no cases");
    }
}
