//! What a pipeline's own text can get wrong beyond types and ranges: names, arithmetic, what this
//! version does not do. Needs no file and no table.

use super::asking;
use super::models::{ModelSource, RandomModel, TokenizerSource};
use super::problem::suggest;
use super::reader::Reader;
use super::rewards::Reward;
use super::sampling::{OnStale, Thinking};
use super::stages::{
    DpoStage, EvalStage, OnNull, PairLoss, Pipeline, RlStage, SampleStage, SftStage, Stage,
    StageKind,
};
use super::values::Sql;

/// Tables that every query sees; no stage and no table may take their names.
pub(crate) const TABLES_OF_THE_RUN: [&str; 3] = ["rollouts", "metrics", "evals"];

/// Words that an SQL parser would not take for a table's name.
const SQL_WORDS: [&str; 40] = [
    "all",
    "and",
    "as",
    "between",
    "by",
    "case",
    "cross",
    "delete",
    "distinct",
    "else",
    "end",
    "except",
    "false",
    "from",
    "full",
    "group",
    "having",
    "in",
    "inner",
    "insert",
    "intersect",
    "is",
    "join",
    "left",
    "like",
    "limit",
    "natural",
    "not",
    "null",
    "on",
    "or",
    "order",
    "outer",
    "right",
    "select",
    "table",
    "true",
    "union",
    "where",
    "with",
];

/// The path of a stage's keys. Mirrors what the reader gave it.
pub(crate) fn stage_path(pipeline: &Pipeline, idx: usize, reader: &Reader<'_>) -> String {
    let name = &pipeline.stages[idx].name;
    let is_first = !pipeline.stages[..idx].iter().any(|stage| stage.name == *name);
    let path = format!("stage.{name}");
    if is_first && reader.has(&path) { path } else { format!("stage[{idx}]") }
}

/// Checks everything that the file alone decides.
pub(crate) fn check(pipeline: &Pipeline, reader: &mut Reader<'_>) {
    check_names(pipeline, reader);
    asking::check_names(pipeline, reader);
    for (name, source) in &pipeline.models {
        if let ModelSource::Random(model) = source {
            check_random_model(name, model, reader);
        }
    }
    for (idx, stage) in pipeline.stages.iter().enumerate() {
        let path = stage_path(pipeline, idx, reader);
        check_stage(stage, &path, reader);
    }
}

/// Every name is an SQL identifier and stands for one thing.
fn check_names(pipeline: &Pipeline, reader: &mut Reader<'_>) {
    let mut taken: Vec<(&str, String)> = Vec::new();
    let models = pipeline.models.iter().map(|(name, _)| (name, format!("models.{name}")));
    let tables = pipeline.tables.iter().map(|(name, _)| (name, format!("tables.{name}")));
    let stages: Vec<_> = pipeline
        .stages
        .iter()
        .enumerate()
        .map(|(idx, stage)| (&stage.name, format!("{}.name", stage_path(pipeline, idx, reader))))
        .collect();
    for (name, path) in models.chain(tables).chain(stages) {
        if !reader.is_good(&path) {
            continue;
        }
        if let Some(why) = bad_name(name) {
            let hint = "a name is lower-case letters, digits and `_`, and starts with a letter";
            let message = format!("`{name}` can't be a name: {why}");
            reader.report_at(&path, message, Some(hint.into()));
            continue;
        }
        match taken.iter().find(|(other, _)| *other == name.as_str()) {
            Some((_, first)) => {
                let what = first.split('.').next().unwrap_or_default().trim_end_matches('s');
                let message = format!("the name `{name}` is taken by a {what} above");
                let hint = "models, tables and stages share one set of names".to_owned();
                reader.report_at(&path, message, Some(hint));
            }
            None => taken.push((name, path)),
        }
    }
    let taken: Vec<String> = taken.into_iter().map(|(name, _)| name.to_owned()).collect();
    check_side_tables(pipeline, taken, reader);
}

/// The tables that a stage writes besides its own must not take a name either.
fn check_side_tables(pipeline: &Pipeline, mut taken: Vec<String>, reader: &mut Reader<'_>) {
    for (idx, stage) in pipeline.stages.iter().enumerate() {
        let path = stage_path(pipeline, idx, reader);
        let mut models: Vec<&String> = stage.kind.models().iter().collect();
        models.sort_unstable();
        models.dedup();
        if models.len() < stage.kind.models().len() {
            // A model that is named twice has been reported.
            continue;
        }
        let path = format!("{path}.name");
        for (table, _) in stage.side_tables() {
            if taken.contains(&table) && reader.is_good(&path) {
                let message =
                    format!("stage `{}` would write `{table}`, a name that is taken", stage.name);
                let hint = "rename the stage, or what has that name";
                reader.report_at(&path, message, Some(hint.to_owned()));
            }
            taken.push(table);
        }
    }
}

fn bad_name(name: &str) -> Option<&'static str> {
    let is_word = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !is_word {
        Some("queries could not name it without quotes")
    } else if TABLES_OF_THE_RUN.contains(&name) {
        Some("it is a table of every run")
    } else if SQL_WORDS.contains(&name) {
        Some("it is a word of SQL")
    } else {
        None
    }
}

/// A name made of what a file or folder is called.
pub fn name_of(text: &str) -> String {
    let is_word = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let text = text.to_ascii_lowercase();
    let words = text.split(|c: char| !is_word(&c)).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("_");
    if bad_name(&name).is_some() { format!("the_{name}") } else { name }
}

fn check_random_model(name: &str, model: &RandomModel, reader: &mut Reader<'_>) {
    let path = format!("models.{name}");
    if !reader.is_good(&path) {
        return;
    }
    for (key, message, hint) in model.mismatches() {
        reader.report_at(
            &format!("{path}.{key}"),
            format!("model `{name}`: {message}"),
            Some(hint),
        );
    }
    if let TokenizerSource::Train(training) = &model.tokenizer {
        let tokenizer_size = training.vocab_size;
        if model.vocab_size != 0 && model.vocab_size < tokenizer_size {
            report_mismatch(name, model.vocab_size, tokenizer_size, reader);
        }
    }
}

/// Reports a model with fewer rows than its tokenizer has tokens.
pub(crate) fn report_mismatch(
    name: &str,
    vocab_size: u32,
    tokenizer_vocab_size: u32,
    reader: &mut Reader<'_>,
) {
    let path = format!("models.{name}.vocab_size");
    let message = format!(
        "model `{name}` embeds {vocab_size} tokens, but its tokenizer has {tokenizer_vocab_size}"
    );
    let hint = if reader.has(&path) {
        format!("set `vocab_size = {tokenizer_vocab_size}`, or leave it out")
    } else {
        "use the tokenizer that the model was trained with".to_owned()
    };
    reader.report_at(&path, message, Some(hint));
}

fn check_stage(stage: &Stage, path: &str, reader: &mut Reader<'_>) {
    match &stage.kind {
        StageKind::Sft(sft) => check_sft(sft, path, reader),
        StageKind::RewardModel(stage) => {
            let micro_batch_tokens = stage.micro_batch_tokens.given();
            check_pair_tokens(micro_batch_tokens, stage.max_tokens, path, reader);
            let held_out = HeldOut {
                sql: stage.held_out.as_ref(),
                share: stage.held_out_share,
                every: stage.held_out_every,
            };
            held_out.check(path, reader);
        }
        StageKind::Dpo(stage) => check_dpo(stage, path, reader),
        StageKind::Rl(rl) => check_rl(rl, path, reader),
        StageKind::Sample(sample) => check_sample(sample, path, reader),
        StageKind::Eval(eval) => check_eval(eval, path, reader),
        StageKind::Query(_) | StageKind::Export(_) => {}
    }
}

fn check_eval(eval: &EvalStage, path: &str, reader: &mut Reader<'_>) {
    check_base(&eval.reward, &[], &format!("{path}.reward"), reader);
    check_rank_by(eval, path, reader);
    check_thinking(&eval.thinking, ("max_tokens", eval.max_tokens), path, reader);
    asking::check_eval(eval, path, reader);
    let names = eval.models();
    for (idx, name) in names.iter().enumerate().filter(|(idx, name)| names[..*idx].contains(name)) {
        let path = format!("{path}.model[{idx}]");
        if reader.is_good(&path) {
            let message = format!("`{name}` is named twice among the models to evaluate");
            reader.report_at(&path, message, Some("name each model once".to_owned()));
        }
    }
    for (idx, k) in eval.ks.iter().enumerate() {
        let path = format!("{path}.ks[{idx}]");
        if *k > eval.k && reader.is_good(&path) {
            let message = format!("`{path}` must be at most `k` = {}, got {k}", eval.k);
            let hint = "of k completions no more than k can be looked at".to_owned();
            reader.report_at(&path, message, Some(hint));
        }
    }
}

/// What ranks has a column and an order of its own.
fn check_rank_by(eval: &EvalStage, path: &str, reader: &mut Reader<'_>) {
    let Some(scorer) = &eval.rank_by else { return };
    let path = format!("{path}.rank_by");
    if !reader.is_good(&path) {
        return;
    }
    if scorer.name() == eval.reward.name() {
        let message = format!("two rewards would write the column `reward_{}`", scorer.name());
        let hint = "give the one that ranks another `name`".to_owned();
        reader.report_at(&path, message, Some(hint));
    }
    if scorer.weight() == 0.0 {
        let message = format!("`{path}.weight` is 0, by which all completions rank alike");
        let hint = "set it above 0, or below where the lowest score is the best".to_owned();
        reader.report_at(&format!("{path}.weight"), message, Some(hint));
    }
    check_base(scorer, std::slice::from_ref(&eval.reward), &path, reader);
}

/// Thinking ends within a completion. `limit` is the key of a completion's tokens, and their number.
fn check_thinking(
    thinking: &Option<Thinking>,
    limit: (&str, u32),
    path: &str,
    reader: &mut Reader<'_>,
) {
    let (key, max_tokens) = limit;
    let Some(thinking) = thinking else { return };
    let is_good = reader.is_good(&format!("{path}.{key}"));
    let max_tokens = if is_good { max_tokens as usize } else { usize::MAX };
    let Some((name, must, got)) = thinking.resolved().problem(max_tokens) else { return };
    let path = format!("{path}.thinking.{name}");
    if reader.is_good(&path) {
        let hint = match name {
            "max_tokens" => format!("lower it, or raise `{key}`"),
            "min_tokens" => format!("lower it, or raise `thinking.max_tokens` or `{key}`"),
            _ => format!("give another `{name}`"),
        };
        reader.report_at(&path, format!("`{path}` must be {must}, got {got}"), Some(hint));
    }
}

fn check_sample(sample: &SampleStage, path: &str, reader: &mut Reader<'_>) {
    check_rewards(&sample.rewards, path, reader);
    let limit = ("sampling.max_tokens", sample.sampling.max_tokens);
    check_thinking(&sample.thinking, limit, path, reader);
    asking::check_sample(sample, path, reader);
}

/// Two rewards of one name would write one column, and one that is built on another comes after it.
fn check_rewards(rewards: &[Reward], path: &str, reader: &mut Reader<'_>) {
    let path = |idx: usize| format!("{path}.rewards[{idx}]");
    // One that couldn't be read stands for another.
    let good: Vec<usize> = (0..rewards.len()).filter(|&idx| reader.is_good(&path(idx))).collect();
    for (nth, &idx) in good.iter().enumerate() {
        let name = rewards[idx].name();
        if good[..nth].iter().any(|&other| rewards[other].name() == name) {
            let message = format!("two rewards would write the column `reward_{name}`");
            let hint = "give one of them another `name`".to_owned();
            reader.report_at(&path(idx), message, Some(hint));
        }
        check_base(&rewards[idx], &rewards[..idx], &path(idx), reader);
    }
}

fn check_base(reward: &Reward, before: &[Reward], path: &str, reader: &mut Reader<'_>) {
    let key = format!("{path}.of");
    if let Err(problem) = reward.0.base_among(before.iter().map(Reward::name))
        && reader.is_good(&key)
    {
        let names: Vec<&str> = before.iter().map(Reward::name).collect();
        let hint = match names[..] {
            [] => {
                "put the reward that it is built on before it, with weight 0 if need be".to_owned()
            }
            _ => suggest(problem.got.trim_matches('`'), &names, "those before it are"),
        };
        let message = format!("`{key}` must be {}, got {}", problem.must, problem.got);
        reader.report_at(&key, message, Some(hint));
    }
}

fn check_sft(sft: &SftStage, path: &str, reader: &mut Reader<'_>) {
    let key = format!("{path}.micro_batch_tokens");
    if let Some(tokens) = sft.micro_batch_tokens.given()
        && tokens < sft.max_tokens
        && reader.is_good(&key)
        && reader.is_good(&format!("{path}.max_tokens"))
    {
        let message = format!(
            "a sequence of `max_tokens` = {} tokens does not fit into a micro-batch of {}",
            sft.max_tokens, tokens
        );
        let hint =
            format!("raise `micro_batch_tokens` to {} or lower `max_tokens`", sft.max_tokens);
        reader.report_at(&key, message, Some(hint));
    }
}

fn check_pair_tokens(
    micro_batch_tokens: Option<u32>,
    max_tokens: u32,
    path: &str,
    reader: &mut Reader<'_>,
) {
    let key = format!("{path}.micro_batch_tokens");
    let pair_tokens = max_tokens.saturating_mul(2);
    if let Some(tokens) = micro_batch_tokens
        && tokens < pair_tokens
        && reader.is_good(&key)
        && reader.is_good(&format!("{path}.max_tokens"))
    {
        let message = format!(
            "a pair of sequences of `max_tokens` = {max_tokens} tokens does not fit into a \
             micro-batch of {tokens}"
        );
        let hint = format!("raise `micro_batch_tokens` to {pair_tokens} or lower `max_tokens`");
        reader.report_at(&key, message, Some(hint));
    }
}

/// What a stage says of the pairs that it measures on.
struct HeldOut<'a> {
    sql: Option<&'a Sql>,
    share: f64,
    every: u64,
}

impl HeldOut<'_> {
    fn check(&self, path: &str, reader: &mut Reader<'_>) {
        let share = format!("{path}.held_out_share");
        if self.sql.is_some() && self.share > 0.0 && reader.is_good(&share) {
            let message = format!("`{share}` takes pairs from `data`, but `held_out` gives others");
            reader.report_at(&share, message, Some("keep one of the two".to_owned()));
        }
        let every = format!("{path}.held_out_every");
        let is_empty = self.sql.is_none() && self.share == 0.0;
        if self.every > 0 && is_empty && reader.is_good(&every) {
            let message = format!("`{every}` measures on held-out pairs, but there are none");
            let hint = "set `held_out_share`, such as 0.1, or give a query `held_out`".to_owned();
            reader.report_at(&every, message, Some(hint));
        }
    }
}

fn check_dpo(stage: &DpoStage, path: &str, reader: &mut Reader<'_>) {
    check_pair_tokens(stage.micro_batch_tokens.given(), stage.max_tokens, path, reader);
    let held_out = HeldOut {
        sql: stage.held_out.as_ref(),
        share: stage.held_out_share,
        every: stage.held_out_every,
    };
    held_out.check(path, reader);
    let smoothing = format!("{path}.label_smoothing");
    let is_read = stage.loss == PairLoss::Sigmoid || stage.label_smoothing == 0.0;
    if !is_read && reader.is_good(&smoothing) && reader.is_good(&format!("{path}.loss")) {
        let message = format!(
            "`{smoothing}` is {:?}, but the loss \"{}\" knows no wrong pairs",
            stage.label_smoothing,
            stage.loss.word()
        );
        let hint = "leave it out, or set `loss` to \"sigmoid\"".to_owned();
        reader.report_at(&smoothing, message, Some(hint));
    }
}

/// What a reward is compared with decides how many completions a prompt needs, and whether there is a critic.
fn check_baseline(rl: &RlStage, path: &str, reader: &mut Reader<'_>) {
    if !reader.is_good(&format!("{path}.objective")) {
        return;
    }
    let mut report = |key: &str, is_wrong: bool, message: &str, hint: &str| {
        let key = format!("{path}.{key}");
        if is_wrong && reader.is_good(&key) {
            reader.report_at(&key, message.replace("KEY", &key), Some(hint.to_owned()));
        }
    };
    let is_of_group = rl.objective.advantage.baseline.is_of_group();
    report(
        "group_size",
        rl.group_size == 1 && is_of_group,
        "`KEY` is 1, but advantages are relative to a prompt's other completions",
        "set it to 2 or more, or compare with something else: `objective = { preset = \"ppo\" }` has a critic",
    );
    report(
        "resample_rounds",
        rl.group_size == 1 && !is_of_group && rl.resample_rounds > 0,
        "`KEY` replaces groups whose rewards are all equal, and a group of one is always such a group",
        "set it to 0, or `group_size` to 2 or more",
    );
    let has_critic = rl.objective.critic().is_some();
    report(
        "critic",
        rl.critic.is_some() && !has_critic,
        "`KEY` says what a critic is, but advantages are measured without one",
        "set `objective.advantage_baseline = \"value\"`, as `preset = \"ppo\"` does, or leave `critic` out",
    );
    let warmup_steps = rl.critic.as_ref().map_or(0, |critic| critic.warmup_steps);
    report(
        "critic.warmup_steps",
        has_critic && warmup_steps >= rl.steps,
        &format!("`KEY` is {warmup_steps} of {} steps: the policy would never move", rl.steps),
        "lower it below `steps`",
    );
}

/// Every source with a weight has a reward, every source of a reward a weight, and a curriculum its rewards.
fn check_draws(rl: &RlStage, path: &str, reader: &mut Reader<'_>) {
    let weights = &rl.source_weights.0;
    let are_rewards_good =
        (0..rl.rewards.len()).all(|idx| reader.is_good(&format!("{path}.rewards[{idx}]")));
    for source in weights.keys().filter(|_| are_rewards_good) {
        let key = format!("{path}.source_weights.{source}");
        // A stage without any learns from a teacher.
        let is_rewarded = rl.rewards.is_empty()
            || rl.rewards.iter().any(|reward| reward.0.common.is_for(Some(source)));
        if !is_rewarded && reader.is_good(&key) {
            let hint = "add it to the `sources` of a reward, or take its weight out".to_owned();
            reader.report_at(&key, format!("no reward is for the source `{source}`"), Some(hint));
        }
    }
    let known: Vec<&str> = weights.keys().map(String::as_str).collect();
    for (idx, reward) in rl.rewards.iter().enumerate().filter(|_| !known.is_empty()) {
        for source in reward.0.common.sources.iter().flatten() {
            let key = format!("{path}.rewards[{idx}].sources");
            if !weights.contains_key(source) && reader.is_good(&key) {
                let message = format!("`{key}` names `{source}`, which has no weight");
                let hint = suggest(source, &known, "`source_weights` has");
                reader.report_at(&key, message, Some(hint));
            }
        }
    }
    let Some(curriculum) = &rl.curriculum else { return };
    let names: Vec<&str> = rl.rewards.iter().map(Reward::name).collect();
    let key = format!("{path}.curriculum.rewards");
    for name in curriculum.rewards.iter().filter(|name| !names.contains(&name.as_str())) {
        if are_rewards_good && reader.is_good(&key) {
            let message = format!("`{key}` names `{name}`, which is none of the stage's rewards");
            reader.report_at(&key, message, Some(suggest(name, &names, "the rewards are")));
        }
    }
    let verifies = rl.rewards.iter().any(|reward| reward.needs().is_some());
    if curriculum.rewards.is_empty() && !verifies && are_rewards_good && reader.is_good(&key) {
        let message =
            "no reward compares with an answer or runs tests, so a curriculum can't tell which \
                       completions passed"
                .to_owned();
        let hint = format!(
            "name those that say it in `curriculum.rewards`, and set `curriculum.pass_score`; the rewards are: {}",
            names.join(", ")
        );
        reader.report_at(&key, message, Some(hint));
    }
}

fn check_rl(rl: &RlStage, path: &str, reader: &mut Reader<'_>) {
    check_rewards(&rl.rewards, path, reader);
    check_draws(rl, path, reader);
    let good = |reader: &Reader<'_>, keys: &[&str]| {
        keys.iter().all(|key| reader.is_good(&format!("{path}.{key}")))
    };
    if good(reader, &["minibatches", "prompts_per_step"])
        && !rl.prompts_per_step.is_multiple_of(rl.minibatches.max(1))
    {
        let message = format!(
            "{} groups a step can't be split into {} equal minibatches",
            rl.prompts_per_step, rl.minibatches
        );
        let hint = "`prompts_per_step` must be a multiple of `minibatches`: a group stays whole";
        reader.report_at(&format!("{path}.minibatches"), message, Some(hint.into()));
    }
    check_baseline(rl, path, reader);
    if good(reader, &["sampling", "micro_batch_tokens"])
        && let Some(tokens) = rl.micro_batch_tokens.given()
        && tokens <= rl.sampling.max_tokens
    {
        let message = format!(
            "a completion of `sampling.max_tokens` = {} tokens and its prompt do not fit into a \
             micro-batch of {}",
            rl.sampling.max_tokens, tokens
        );
        let hint = "raise `micro_batch_tokens` or lower `sampling.max_tokens`".to_owned();
        reader.report_at(&format!("{path}.micro_batch_tokens"), message, Some(hint));
    }
    check_teacher(rl, path, reader);
    // The reader has refused what is negative or not a number.
    if good(reader, &["sampling.temperature"]) && rl.sampling.temperature == 0.0 {
        let message = "an `rl` stage can't sample at temperature 0: a group's completions would \
                       all be the same"
            .to_owned();
        let hint = "1.0 samples from the policy itself".to_owned();
        reader.report_at(&format!("{path}.sampling.temperature"), message, Some(hint));
    }
    if good(reader, &["max_staleness", "on_stale"])
        && rl.max_staleness == 0
        && rl.on_stale == OnStale::Wait
    {
        let key = format!("{path}.on_stale");
        let message = format!(
            "`{key}` is about groups that are too old, but with `max_staleness = 0` none ever is"
        );
        let hint = "leave it out, or set `max_staleness` to 1 or more".to_owned();
        reader.report_at(&key, message, Some(hint));
    }
    let shares = [("sampler_threads", rl.sampler_threads), ("learner_threads", rl.learner_threads)];
    for (key, _) in shares.into_iter().filter(|(_, threads)| *threads > 0) {
        let key = format!("{path}.{key}");
        if rl.max_staleness == 0 && good(reader, &["max_staleness"]) && reader.is_good(&key) {
            let message = format!(
                "`{key}` shares the threads, but with `max_staleness = 0` sampler and learner take turns on all of them"
            );
            let hint = "leave it out, or set `max_staleness` to 1 or more".to_owned();
            reader.report_at(&key, message, Some(hint));
        }
    }
}

/// A stage learns from rewards, from a teacher, or from both.
fn check_teacher(rl: &RlStage, path: &str, reader: &mut Reader<'_>) {
    let [teacher, rewards, objective] =
        ["teacher", "rewards", "objective"].map(|key| format!("{path}.{key}"));
    if [&teacher, &rewards, &objective].iter().any(|key| !reader.is_good(key)) {
        return;
    }
    let distill = rl.objective.distill_coef;
    let preset = "objective = { preset = \"distill\" }";
    if let (Some(name), true) = (&rl.teacher, distill == 0.0) {
        let message = format!("nothing is learned from the teacher `{name}`: `distill` is 0");
        let hint = format!("set `{preset}`, or leave `teacher` out");
        reader.report_at(&teacher, message, Some(hint));
    }
    if rl.teacher.is_none() && distill != 0.0 {
        let message = format!("`{objective}.distill` is {distill:?}, but there is no teacher");
        let hint = "name one with `teacher = \"MODEL\"`, or set `distill` to 0".to_owned();
        reader.report_at(&objective, message, Some(hint));
    }
    if !rl.rewards.is_empty() {
        return;
    }
    if rl.teacher.is_none() && distill == 0.0 {
        let message = format!("`{rewards}` must be at least one reward, got none");
        let hint = format!("give one, or a model to learn from: `teacher` with `{preset}`");
        reader.report_at(&rewards, message, Some(hint));
    }
    let idle = [
        ("resample_rounds", rl.resample_rounds > 0),
        ("reward_clip", rl.reward_clip.is_some()),
        ("reward_null", rl.reward_null != OnNull::Drop),
        ("objective.kl_in_reward", rl.objective.kl_reward_coef() != 0.0),
        ("objective.advantage_baseline", rl.objective.critic().is_some()),
    ];
    for (key, _) in idle.into_iter().filter(|(_, is_set)| *is_set) {
        let path = format!("{path}.{key}");
        if reader.is_good(&path) {
            let message = format!("`{path}` is about rewards, but the stage has none");
            reader.report_at(&path, message, Some("leave it out, or give `rewards`".to_owned()));
        }
    }
}
