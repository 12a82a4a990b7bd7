//! Every key of an `objective` table reaches the constant that it is named for and no other, and every constant is
//! among the variants that loss and gradients are checked with. A key, or a word of one, without a case fails.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::reference::{loss_variants, variants};
use super::{
    Aggregation, EntropyMean, ImportanceMode, KlEstimator, Objective, ObjectiveFile, RatioLevel,
    Surrogate,
};
use crate::advantage::{Baseline, Scale, SingleRule, StdEstimator};
use crate::preset::Preset;

/// A key with a value, in a table with others, and what it changes.
struct Case {
    key: &'static str,
    value: Value,
    others: Value,
    change: Box<dyn Fn(&mut Objective)>,
}

/// A case in a table that says nothing else.
fn alone(
    key: &'static str,
    value: impl Into<Value>,
    change: impl Fn(&mut Objective) + 'static,
) -> Case {
    among(json!({}), key, value, change)
}

fn among(
    others: Value,
    key: &'static str,
    value: impl Into<Value>,
    change: impl Fn(&mut Objective) + 'static,
) -> Case {
    Case { key, value: value.into(), others, change: Box::new(change) }
}

fn cases() -> Vec<Case> {
    let presets = Preset::ALL.into_iter().map(|preset| {
        // In place of one that none of them is.
        let others = json!({"preset": if preset == Preset::Dapo { "gspo" } else { "dapo" }});
        among(others, "preset", preset.name(), move |o| *o = preset.objective(LEN_MAX))
    });
    let parts = [presets.collect(), clips(), ratios(), kl_and_more(), sums(), advantages()];
    parts.into_iter().flatten().collect()
}

fn clips() -> Vec<Case> {
    vec![
        alone("kind", "grpo", |_| ()),
        alone("clip", 0.3, |o| (o.clip_low, o.clip_high) = (0.3, 0.3)),
        alone("clip_low", 0.1, |o| o.clip_low = 0.1),
        alone("clip_high", 0.28, |o| o.clip_high = 0.28),
        among(json!({"clip": 0.3}), "clip_low", 0.1, |o| o.clip_low = 0.1),
        among(json!({"clip": 0.3}), "clip_high", 0.1, |o| o.clip_high = 0.1),
        alone("dual_clip", 3.0, |o| o.dual_clip = Some(3.0)),
        among(json!({"preset": "verl-0.9"}), "dual_clip", false, |o| o.dual_clip = None),
        alone("delta", 2.0, |o| o.delta = Some(2.0)),
        among(json!({"delta": 2.0}), "delta", false, |o| o.delta = None),
        alone("surrogate", "cispo", |o| o.surrogate = Surrogate::Cispo),
        among(json!({"preset": "cispo"}), "surrogate", "clip", |o| o.surrogate = Surrogate::Clip),
    ]
}

fn ratios() -> Vec<Case> {
    let verl = || json!({"preset": "verl-0.9"});
    let sequence = || json!({"importance_level": "sequence"});
    vec![
        alone("ratio", "sequence", |o| o.ratio = RatioLevel::Sequence),
        among(json!({"preset": "gspo"}), "ratio", "token", |o| o.ratio = RatioLevel::Token),
        alone("log_ratio_clamp", 10.0, |o| o.log_ratio_clamp = Some(10.0)),
        among(verl(), "log_ratio_clamp", false, |o| o.log_ratio_clamp = None),
        alone("importance_cap", 3.0, |o| o.importance_cap = 3.0),
        alone("importance_floor", 0.5, |o| o.importance_floor = 0.5),
        alone("importance_mode", "mask", |o| o.importance_mode = ImportanceMode::Mask),
        among(json!({"importance_mode": "mask"}), "importance_mode", "truncate", |o| {
            o.importance_mode = ImportanceMode::Truncate;
        }),
        alone("importance_level", "sequence", |o| o.importance_level = RatioLevel::Sequence),
        among(sequence(), "importance_level", "token", |o| o.importance_level = RatioLevel::Token),
    ]
}

fn kl_and_more() -> Vec<Case> {
    let verl = || json!({"preset": "verl-0.9"});
    let ppo = || json!({"preset": "ppo"});
    vec![
        alone("kl", 0.5, |o| o.kl_coef = 0.5),
        alone("kl_in_reward", true, |o| o.kl_in_reward = true),
        among(ppo(), "kl_in_reward", false, |o| o.kl_in_reward = false),
        alone("kl_estimator", "k1", |o| o.kl_estimator = KlEstimator::K1),
        alone("kl_estimator", "k2", |o| o.kl_estimator = KlEstimator::K2),
        among(ppo(), "kl_estimator", "k3", |o| o.kl_estimator = KlEstimator::K3),
        alone("kl_times_ratio", true, |o| o.kl_times_ratio = true),
        among(json!({"preset": "trl-1.16"}), "kl_times_ratio", false, |o| o.kl_times_ratio = false),
        alone("kl_log_ratio_clamp", 5.0, |o| o.kl_log_ratio_clamp = Some(5.0)),
        among(verl(), "kl_log_ratio_clamp", false, |o| o.kl_log_ratio_clamp = None),
        alone("kl_value_clamp", 5.0, |o| o.kl_value_clamp = Some(5.0)),
        among(verl(), "kl_value_clamp", false, |o| o.kl_value_clamp = None),
        alone("distill", 0.7, |o| o.distill_coef = 0.7),
        alone("entropy", 0.01, |o| o.entropy_coef = 0.01),
        alone("entropy_mean", "as_loss", |o| o.entropy_mean = EntropyMean::AsLoss),
        among(verl(), "entropy_mean", "tokens", |o| o.entropy_mean = EntropyMean::Tokens),
    ]
}

fn sums() -> Vec<Case> {
    let constant = |length_tokens| Aggregation::Constant { length_tokens };
    let verl = || json!({"preset": "verl-0.9"});
    vec![
        alone("aggregation", "token_mean", |o| o.aggregation = Aggregation::TokenMean),
        alone("aggregation", "rollout_token_mean", |o| {
            o.aggregation = Aggregation::RolloutTokenMean;
        }),
        alone("aggregation", "constant", move |o| o.aggregation = constant(LEN_MAX)),
        among(verl(), "aggregation", "sequence_mean", |o| {
            o.aggregation = Aggregation::SequenceMean;
        }),
        among(json!({"aggregation": "constant"}), "aggregation_length_tokens", 7, move |o| {
            o.aggregation = constant(7)
        }),
        alone("count_empty_sequences", false, |o| o.count_empty_sequences = false),
        among(verl(), "count_empty_sequences", true, |o| o.count_empty_sequences = true),
    ]
}

fn advantages() -> Vec<Case> {
    let unscaled = || json!({"advantage_scale": "none"});
    let ppo = || json!({"preset": "ppo"});
    let baseline = |value: &'static str, baseline| {
        among(unscaled(), "advantage_baseline", value, move |o| o.advantage.baseline = baseline)
    };
    vec![
        baseline("leave_one_out", Baseline::LeaveOneOut),
        baseline("batch", Baseline::Batch),
        baseline("none", Baseline::None),
        baseline("value", Baseline::Value),
        among(json!({"preset": "rloo"}), "advantage_baseline", "group", |o| {
            o.advantage.baseline = Baseline::Group;
        }),
        alone("advantage_scale", "batch", |o| o.advantage.scale = Scale::Batch),
        alone("advantage_scale", "whiten", |o| o.advantage.scale = Scale::Whiten),
        alone("advantage_scale", "none", |o| o.advantage.scale = Scale::None),
        among(unscaled(), "advantage_scale", "group", |o| o.advantage.scale = Scale::Group),
        alone("advantage_std", "sample", |o| o.advantage.std = StdEstimator::Sample),
        among(ppo(), "advantage_std", "population", |o| o.advantage.std = StdEstimator::Population),
        alone("advantage_eps", 0.5, |o| o.advantage.eps = 0.5),
        alone("advantage_no_signal_std_max", 0.25, |o| o.advantage.no_signal_std_max = 0.25),
        alone("advantage_single", "reward", |o| o.advantage.single = SingleRule::Reward),
        among(json!({"preset": "verl-0.9"}), "advantage_single", "zero", |o| {
            o.advantage.single = SingleRule::Zero;
        }),
        among(ppo(), "gamma", 0.9, |o| o.value.gamma = 0.9),
        among(ppo(), "lambda", 0.5, |o| o.value.lambda = 0.5),
        among(ppo(), "value_clip", 0.5, |o| o.value.clip = Some(0.5)),
        among(ppo(), "value_clip", false, |o| o.value.clip = None),
    ]
}

/// The stage's longest completion.
const LEN_MAX: u32 = 256;

fn read(table: &Value) -> Result<Objective, String> {
    let file: ObjectiveFile =
        serde_json::from_value(table.clone()).map_err(|error| error.to_string())?;
    file.resolve(Some(LEN_MAX)).map_err(|problems| format!("{problems:?}"))
}

/// What a message has between backticks after the first such text.
fn names_in(message: &str) -> Vec<String> {
    message.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

/// The keys of the table, each with its words if it chooses from some.
fn keys() -> BTreeMap<String, Vec<String>> {
    let refused = |key: &str| {
        let file = serde_json::from_value::<ObjectiveFile>(json!({ key: "?" }));
        file.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let words = |key: &String| {
        let message = refused(key);
        let is_choice = message.starts_with("unknown variant");
        if is_choice { names_in(&message) } else { Vec::new() }
    };
    names_in(&refused("?")).into_iter().map(|key| (key.clone(), words(&key))).collect()
}

#[test]
fn every_key_and_word_has_a_case() {
    let mut wanted = BTreeSet::new();
    for (key, words) in keys() {
        if words.is_empty() {
            wanted.insert((key, None));
        } else {
            wanted.extend(words.into_iter().map(|word| (key.clone(), Some(word))));
        }
    }
    let found: BTreeSet<(String, Option<String>)> = cases()
        .iter()
        .map(|case| {
            // A preset is a name, of which the reader has the list.
            let word = case.value.as_str().filter(|_| case.key != "preset");
            (case.key.to_owned(), word.map(str::to_owned))
        })
        .collect();
    assert_eq!(found, wanted);
    assert!(wanted.len() > 40, "{wanted:?}");
}

#[test]
fn a_key_changes_its_constant_and_no_other() {
    for Case { key, value, others, change } in cases() {
        let mut expected = read(&others).unwrap();
        let without = expected.clone();
        change(&mut expected);
        let mut table = others;
        table[key] = value;
        let found = read(&table).unwrap();
        assert_eq!(found, expected, "{table}");
        assert!(key == "kind" || found != without, "{table}: the case shows nothing");
    }
}

/// The written form of an objective.
fn written(objective: &Objective) -> Map<String, Value> {
    match serde_json::to_value(objective).unwrap() {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

/// The keys in which two objectives differ.
fn differing(a: &Objective, b: &Objective) -> Vec<String> {
    let (a, b) = (written(a), written(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().filter(|key| a.get(*key) != b.get(*key)).cloned().collect()
}

/// Goal: what is checked by central differences leaves no constant out. Method: for every key a pair of variants that
/// differ in nothing else, and every word of it among them; those of advantages are checked with advantages.
#[test]
fn every_constant_is_among_the_variants_alone() {
    let mut alone = BTreeSet::new();
    let mut of_loss = BTreeSet::new();
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (all, alone) in [(variants(), &mut alone), (loss_variants(), &mut of_loss)] {
        for (_, with, without) in all {
            if let [key] = &differing(&with, &without)[..] {
                alone.insert(key.clone());
            }
            for (key, value) in written(&with).into_iter().chain(written(&without)) {
                let word = value.as_str().map(str::to_owned);
                values.entry(key).or_default().extend(word);
            }
        }
    }
    for (key, words) in keys() {
        // A family of one, a name for others, and a key for two.
        if ["kind", "preset", "clip"].contains(&key.as_str()) {
            continue;
        }
        let is_of_advantages = key.starts_with("advantage_")
            || ["gamma", "lambda", "value_clip"].contains(&key.as_str());
        assert!(alone.contains(&key), "no variant of `{key}` alone");
        assert!(is_of_advantages || of_loss.contains(&key), "no variant of the loss: `{key}`");
        let of_key = values.get(&key).cloned().unwrap_or_default();
        for word in words {
            assert!(of_key.contains(&word), "no variant has `{key}` = \"{word}\"");
        }
    }
}
