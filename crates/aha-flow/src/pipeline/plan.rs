//! The plan of a pipeline, as `aha check` prints it: what runs, on what, with which formula, and how
//! much memory it will want.

use std::fmt::Write as _;

use aha_learn::objective::formula;
use aha_reward::Settings;
use aha_reward::code::Isolation;
use serde_json::{Value as Json, json};

use super::auto::Knobs;
use super::device::{Device, Found};
use super::lora::Lora;
use super::memory::{Breakdown, Needs, memory_of, shown};
use super::models::{ModelSource, TokenizerSource};
use super::resolve::Facts;
use super::rewards::Reward;
use super::sampling::{Optimizer, SamplingWeights, ScheduleKind, Template, Thinking};
use super::stages::{
    DpoStage, EvalStage, Format, LossOn, PairLoss, Pipeline, RewardModelStage, RlStage, SftForm,
    SftStage, Stage, StageKind,
};
use super::values::Sql;

/// A pipeline with what was found out about it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The pipeline as it runs.
    pub pipeline: Pipeline,
    /// What was learned of tables and models.
    pub facts: Facts,
    /// The host's memory of each stage, in their order.
    pub memory: Vec<Breakdown>,
    /// Where it computes.
    pub device: Found,
    /// The CUDA device's memory of each stage, in their order; nothing where the processor computes.
    pub device_memory: Vec<Breakdown>,
}

impl Plan {
    pub(crate) fn new(pipeline: Pipeline, facts: Facts, device: Found) -> Self {
        let needs = pipeline.stages.iter().map(|stage| memory_of(&pipeline, stage, &facts));
        let needs = needs.map(|Needs { host, device }| (host, device));
        let (memory, device_memory) = needs.unzip();
        Self { pipeline, facts, memory, device, device_memory }
    }

    /// The stage that wants most of the host's memory, with what it wants.
    pub fn peak(&self) -> Option<(&Stage, &Breakdown)> {
        self.largest(&self.memory)
    }

    /// The stage that wants most of the CUDA device's memory, with what it wants; none where the processor computes.
    pub fn device_peak(&self) -> Option<(&Stage, &Breakdown)> {
        self.largest(&self.device_memory).filter(|(_, memory)| memory.total_bytes() > 0)
    }

    fn largest<'a>(&'a self, memory: &'a [Breakdown]) -> Option<(&'a Stage, &'a Breakdown)> {
        // The first of several equal ones, so that the text doesn't depend on the search.
        self.pipeline.stages.iter().zip(memory).rev().max_by_key(|(_, m)| m.total_bytes())
    }

    /// Where it computes: "cuda:0 (NVIDIA H200)".
    pub fn device_text(&self) -> String {
        let device = &self.pipeline.run.device;
        match &self.device.facts {
            Some(facts) => format!("{device} ({})", facts.name),
            None => device.to_string(),
        }
    }

    /// The plan for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let run = &self.pipeline.run;
        let threads = match run.threads {
            0 => "all threads".to_owned(),
            1 => "1 thread".to_owned(),
            n => format!("{n} threads"),
        };
        let _ = writeln!(
            text,
            "run: seed {}, {threads}, device {}, queries spill beyond {}",
            run.seed,
            self.device_text(),
            shown(run.query_memory.0)
        );
        for reason in &self.device.reasons {
            let _ = writeln!(text, "     {reason}");
        }
        self.write_models(&mut text);
        self.write_tables(&mut text);
        text.push_str("stages:\n");
        for (idx, stage) in self.pipeline.stages.iter().enumerate() {
            let _ = writeln!(text, "  {}. {}: {}", idx + 1, stage.name, headline(stage));
            if !stage.description.is_empty() {
                let _ = writeln!(text, "     {}", stage.description);
            }
            for line in details(stage, &self.facts).into_iter().chain(passes(&stage.kind)) {
                let _ = writeln!(text, "     {line}");
            }
            for (who, name) in stage.kind.unset_variables() {
                let _ = writeln!(
                    text,
                    "     warning   {who} needs the environment variable {name}, which is not set"
                );
            }
            let _ = writeln!(text, "     memory {}", self.memory[idx].describe());
            if run.device.is_cuda() {
                text.push_str(&table(&run.device, &self.device_memory[idx]));
            }
        }
        if let Some((stage, memory)) = self.peak() {
            let total = shown(memory.total_bytes());
            let limit =
                run.memory.map(|limit| format!(" of {}", shown(limit.0))).unwrap_or_default();
            let _ = writeln!(text, "peak memory: {total}{limit}, in stage `{}`", stage.name);
        }
        text.push_str(&self.device_peak_text().map(|line| line + "\n").unwrap_or_default());
        text
    }

    /// "peak memory of cuda:0: 12 GiB of 140 GiB, of which 138 GiB are free, in stage `zero`"; none for a processor.
    pub fn device_peak_text(&self) -> Option<String> {
        let (stage, memory) = self.device_peak()?;
        let of = self.device.facts.as_ref().map(|facts| {
            let (total, free) = (shown(facts.total_bytes), shown(facts.free_bytes));
            format!(" of {total}, of which {free} are free")
        });
        Some(format!(
            "peak memory of {}: {}{}, in stage `{}`",
            self.pipeline.run.device,
            shown(memory.total_bytes()),
            of.unwrap_or_default(),
            stage.name
        ))
    }

    fn write_models(&self, text: &mut String) {
        if self.pipeline.models.is_empty() {
            return;
        }
        text.push_str("models:\n");
        for (name, source) in &self.pipeline.models {
            let from = match source {
                ModelSource::Path(path) => path.clone(),
                ModelSource::Adapted(model) => format!("{} with {}", model.base, model.adapter),
                ModelSource::Random(model) => match &model.tokenizer {
                    TokenizerSource::Of(other) => {
                        format!("made from nothing, tokenizer of {other}")
                    }
                    TokenizerSource::Train(_) => "made from nothing, tokenizer trained".to_owned(),
                },
            };
            let what = self.facts.models.get(name).map(|model| {
                format!(
                    "; {}, {} layers, width {}, {} parameters, {} tokens",
                    model.architecture,
                    model.layers,
                    model.hidden_size,
                    grouped(model.param_count),
                    grouped(u64::from(model.vocab_size))
                )
            });
            let _ = writeln!(text, "  {name}: {from}{}", what.unwrap_or_default());
        }
    }

    fn write_tables(&self, text: &mut String) {
        if self.pipeline.tables.is_empty() {
            return;
        }
        text.push_str("tables:\n");
        for (name, path) in &self.pipeline.tables {
            let table = self.facts.tables.get(name);
            let rows = table.and_then(|table| table.row_count);
            let rows = rows.map(|n| format!("; {} rows", grouped(n))).unwrap_or_default();
            let columns: Vec<&str> = table
                .map(|table| table.columns.iter().map(|column| column.name.as_str()).collect())
                .unwrap_or_default();
            let _ = writeln!(text, "  {name}: {path}{rows} ({})", columns.join(", "));
        }
    }

    /// The plan for programs.
    pub fn to_json(&self) -> Json {
        let tables: serde_json::Map<String, Json> = self
            .pipeline
            .tables
            .iter()
            .map(|(name, path)| {
                let table = self.facts.tables.get(name);
                let columns = table.map(|t| {
                    t.columns.iter().map(|c| json!({"name": c.name, "type": c.type_name})).collect()
                });
                let columns: Vec<Json> = columns.unwrap_or_default();
                let row_count = table.and_then(|table| table.row_count);
                (name.clone(), json!({"path": path, "row_count": row_count, "columns": columns}))
            })
            .collect();
        let models: serde_json::Map<String, Json> = self
            .facts
            .models
            .iter()
            .map(|(name, model)| {
                let value = json!({
                    "architecture": model.architecture,
                    "param_count": model.param_count,
                    "vocab_size": model.vocab_size,
                    "layers": model.layers,
                    "hidden_size": model.hidden_size,
                });
                (name.clone(), value)
            })
            .collect();
        let memory = self.memory.iter().zip(&self.device_memory);
        let stages = self.pipeline.stages.iter().zip(memory).map(|(stage, (memory, device))| {
            let formula = match &stage.kind {
                StageKind::Rl(rl) => Some(formula(&rl.objective)),
                _ => None,
            };
            json!({
                "name": stage.name,
                "kind": stage.kind.word(),
                "models": stage.kind.models(),
                "reads": self.facts.reads.get(&stage.name),
                "unset_variables":
                    stage.kind.unset_variables().iter().map(|(_, name)| name).collect::<Vec<_>>(),
                "formula": formula,
                "micro_batch_tokens": Knobs::of(&stage.kind).map(|knobs| knobs.tokens.tokens()),
                "activation_checkpointing":
                    Knobs::of(&stage.kind).map(|knobs| knobs.checkpointing.is_on()),
                "memory_bytes": memory.total_bytes(),
                "memory": memory.parts,
                "device_memory_bytes": device.total_bytes(),
                "device_memory": device.parts,
            })
        });
        json!({
            "seed": self.pipeline.run.seed,
            "models": models,
            "tables": tables,
            "stages": stages.collect::<Vec<_>>(),
            "memory_bytes": self.peak().map(|(_, memory)| memory.total_bytes()),
            "device": self.pipeline.run.device.to_string(),
            "device_name": self.device.facts.as_ref().map(|facts| &facts.name),
            "device_free_bytes": self.device.facts.as_ref().map(|facts| facts.free_bytes),
            "device_memory_bytes": self.device_peak().map(|(_, memory)| memory.total_bytes()),
        })
    }
}

/// What a stage needs of a device, a line for each part.
fn table(device: &Device, memory: &Breakdown) -> String {
    let mut lines = format!("     memory of {device} {}\n", shown(memory.total_bytes()));
    let mut parts: Vec<_> = memory.parts.iter().collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    for part in parts {
        let _ = writeln!(lines, "         {:<22}{:>9}", part.name, shown(part.bytes));
    }
    lines
}

fn headline(stage: &Stage) -> String {
    let models = stage.kind.models().iter().map(|name| format!("`{name}`"));
    let endpoint = stage
        .kind
        .endpoint()
        .map(|endpoint| format!("`{}` at {}{}", endpoint.model, endpoint.url, endpoint.path()));
    let from: Vec<String> = models.chain(endpoint).collect();
    let from = if from.is_empty() { String::new() } else { format!(" of {}", from.join(", ")) };
    format!("{}{from}", stage.kind.word())
}

/// The lines of a stage's settings.
fn details(stage: &Stage, facts: &Facts) -> Vec<String> {
    let mut lines = details_of_kind(stage, facts);
    lines.extend(stage.kind.lora().map(|lora| format!("lora      {}", adapters(lora))));
    lines
}

/// The adapters that are trained.
fn adapters(lora: &Lora) -> String {
    let divisor = if lora.rslora { "sqrt(rank)" } else { "rank" };
    let names: Vec<&str> = lora.targets.0.iter().map(|target| target.name()).collect();
    format!(
        "the weights are frozen; adapters of rank {} on {}, scaled by {:?} / {divisor}",
        lora.rank,
        names.join(", "),
        lora.alpha
    )
}

fn details_of_kind(stage: &Stage, facts: &Facts) -> Vec<String> {
    match &stage.kind {
        StageKind::Sft(sft) => {
            let columns = facts.queries.get(&format!("stage.{}.data", stage.name));
            let form = columns.map_or(SftForm::Pairs, |columns| {
                SftForm::of(columns.iter().map(|column| column.name.as_str()))
            });
            details_of_sft(sft, form)
        }
        StageKind::RewardModel(stage) => details_of_reward_model(stage),
        StageKind::Dpo(dpo) => details_of_dpo(dpo),
        StageKind::Rl(rl) => details_of_rl(rl),
        StageKind::Sample(sample) => {
            let mut lines = vec![
                format!("prompts   {}", one_line(&sample.prompts.0)),
                format!("template  {}", template(&sample.template)),
                format!(
                    "{} completions a prompt, temperature {:?}, at most {} tokens{}",
                    sample.n,
                    sample.sampling.temperature,
                    sample.sampling.max_tokens,
                    rounded(sample.sampling.weights)
                ),
            ];
            lines.extend(sample.thinking.as_ref().map(thinking));
            lines.push(format!("rewards   {}", rewards(&sample.rewards)));
            lines
        }
        StageKind::Query(query) => vec![format!("sql       {}", one_line(&query.sql.0))],
        StageKind::Eval(eval) => details_of_eval(eval),
        StageKind::Export(export) => {
            let (folder, what) = match export.format {
                Format::Hf => ("models", ""),
                Format::Peft => ("adapters", "the adapter alone, "),
            };
            let out = export.out.clone().unwrap_or_else(|| format!("{folder}/{}", stage.name));
            vec![format!("out       {out} ({what}{})", export.dtype.word())]
        }
    }
}

fn details_of_eval(eval: &EvalStage) -> Vec<String> {
    let mut lines = vec![
        format!("data      {}", one_line(&eval.data.0)),
        format!("template  {}", template(&eval.template)),
        format!(
            "{} completions a problem, temperature {:?}, top_p {:?}, at most {} tokens{}",
            eval.k,
            eval.temperature,
            eval.top_p,
            eval.max_tokens,
            rounded(eval.weights)
        ),
    ];
    lines.extend(eval.thinking.as_ref().map(thinking));
    lines.push(match eval.benchmark {
        Some(benchmark) => {
            format!("reward    {}, as `{}` has it", eval.reward.name(), benchmark.word())
        }
        None => format!("reward    {}{}", eval.reward.name(), asked(&eval.reward)),
    });
    let rank_by = eval.rank_by.as_ref();
    lines.extend(rank_by.map(|scorer| format!("rank_by   {}{}", scorer.name(), asked(scorer))));
    lines
}

/// How long a model thinks.
fn thinking(thinking: &Thinking) -> String {
    let mut terms = vec![format!("up to {:?}", thinking.end)];
    if thinking.min_tokens > 0 {
        terms.push(format!("at least {} tokens", thinking.min_tokens));
    }
    terms.extend(thinking.max_tokens.map(|most| format!("at most {most} tokens")));
    if thinking.waits > 0 {
        terms.push(format!("{} times {:?} in place of the end", thinking.waits, thinking.wait));
    }
    format!("thinking  {}", terms.join(", "))
}

/// What is drawn from, where that isn't the model itself.
fn rounded(weights: SamplingWeights) -> &'static str {
    match weights {
        SamplingWeights::Same => "",
        SamplingWeights::Int8 => ", from weights rounded to int8",
    }
}

/// Plain text takes no template, and all its tokens count.
fn details_of_sft(sft: &SftStage, form: SftForm) -> Vec<String> {
    let is_plain = form == SftForm::Text;
    let limit = sft.max_steps.map(|n| format!(", at most {n} steps")).unwrap_or_default();
    let template = if is_plain { "none, plain text" } else { template(&sft.template) };
    let counted = match (form, sft.loss_on) {
        (SftForm::Text, _) | (_, LossOn::All) => "all tokens",
        (SftForm::Pairs, _) => "the completion tokens",
        (SftForm::Conversations, LossOn::Completion) => "the tokens of all the assistant's turns",
        (SftForm::Conversations, LossOn::Last) => "the tokens of the assistant's last turns",
        (SftForm::Conversations, LossOn::Flagged) => "the tokens of the turns that are flagged",
    };
    vec![
        format!("data      {}", one_line(&sft.data.0)),
        format!("template  {template}"),
        format!("{} epochs of batches of {}{limit}", sft.epochs, sft.batch_size),
        format!("loss      mean over {counted} of a batch"),
        format!("optimizer {}", optimizer(&sft.optimizer, sft.grad_clip)),
    ]
}

fn details_of_reward_model(stage: &RewardModelStage) -> Vec<String> {
    let limit = stage.max_steps.map(|n| format!(", at most {n} steps")).unwrap_or_default();
    let held_out = held_out(stage.held_out.as_ref(), stage.held_out_share);
    let centering = match stage.centering {
        0.0 => String::new(),
        factor => format!(" + {factor:?} (chosen + rejected)^2"),
    };
    vec![
        format!("data      {}", one_line(&stage.data.0)),
        format!("held out  {held_out}"),
        format!("template  {}", template(&stage.template)),
        format!("{} epochs of batches of {} pairs{limit}", stage.epochs, stage.batch_size),
        format!(
            "loss      mean of -log sigmoid(chosen - rejected - margin){centering} over a batch"
        ),
        format!("optimizer {}", optimizer(&stage.optimizer, stage.grad_clip)),
    ]
}

fn held_out(sql: Option<&Sql>, share: f64) -> String {
    match (sql, share) {
        (Some(sql), _) => one_line(&sql.0),
        (None, 0.0) => "nothing".to_owned(),
        (None, share) => format!("the pairs of {share:?} of the prompts"),
    }
}

fn details_of_dpo(stage: &DpoStage) -> Vec<String> {
    let limit = stage.max_steps.map(|n| format!(", at most {n} steps")).unwrap_or_default();
    let reference = match &stage.reference {
        Some(name) => format!("`{name}`"),
        None => "the model that the stage starts from".to_owned(),
    };
    let beta = stage.beta;
    let loss = match (stage.loss, stage.label_smoothing) {
        (PairLoss::Sigmoid, 0.0) => "-log sigmoid(d)".to_owned(),
        (PairLoss::Sigmoid, s) => {
            format!("-(1 - {s:?}) log sigmoid(d) - {s:?} log sigmoid(-d)")
        }
        (PairLoss::Hinge, _) => "max(0, 1 - d)".to_owned(),
        (PairLoss::Ipo, _) => format!("(d/{beta:?} - 1/(2 {beta:?}))^2"),
    };
    let nll = match stage.nll {
        0.0 => String::new(),
        factor => format!(" + {factor:?} nll(chosen)"),
    };
    let logps = if stage.length_normalised { "means" } else { "sums" };
    vec![
        format!("data      {}", one_line(&stage.data.0)),
        format!("held out  {}", held_out(stage.held_out.as_ref(), stage.held_out_share)),
        format!("template  {}", template(&stage.template)),
        format!("{} epochs of batches of {} pairs{limit}", stage.epochs, stage.batch_size),
        format!("loss      mean of {loss}{nll} over a batch"),
        format!(
            "          d = {beta:?} ((chosen - ref_chosen) - (rejected - ref_rejected)) - margin"
        ),
        format!("          of log-probs of completions, {logps} over tokens"),
        format!("reference {reference}"),
        format!("optimizer {}", optimizer(&stage.optimizer, stage.grad_clip)),
    ]
}

/// Which prompts are drawn, where not all are drawn alike.
fn draws(rl: &RlStage) -> Vec<String> {
    let total: f64 = rl.source_weights.0.values().sum();
    let shares = rl.source_weights.0.iter();
    let shares: Vec<String> = shares
        .map(|(source, weight)| format!("{:.1} % {source}", 100.0 * weight / total))
        .collect();
    let sources = (!shares.is_empty()).then(|| format!("sources   {}", shares.join(", ")));
    let curriculum = rl.curriculum.as_ref().map(|curriculum| {
        let [least, most] = curriculum.band;
        format!(
            "drawn     prompts with a pass rate from {least:?} to {most:?}, and {:.0} % others",
            100.0 * curriculum.revisit_share
        )
    });
    sources.into_iter().chain(curriculum).collect()
}

fn details_of_rl(rl: &RlStage) -> Vec<String> {
    let rows = u64::from(rl.prompts_per_step) * u64::from(rl.group_size);
    let optimizer_steps = u64::from(rl.minibatches) * u64::from(rl.inner_epochs);
    let mut lines = vec![
        format!("prompts   {}", one_line(&rl.prompts.0)),
        format!("template  {}", template(&rl.template)),
        format!(
            "{} steps of {} prompts x {} completions = {} rollouts, {} optimizer steps each",
            rl.steps,
            rl.prompts_per_step,
            rl.group_size,
            grouped(rows),
            optimizer_steps
        ),
        format!(
            "sampling  temperature {:?}, top_p {:?}, top_k {}, at most {} tokens",
            rl.sampling.temperature, rl.sampling.top_p, rl.sampling.top_k, rl.sampling.max_tokens
        ),
        match rl.rewards[..] {
            [] => "rewards   none: every A_i is 0".to_owned(),
            _ => format!("rewards   {}", rewards(&rl.rewards)),
        },
    ];
    lines.extend(rl.teacher.as_ref().map(|name| format!("teacher   `{name}`")));
    lines.extend(draws(rl));
    if rl.sampling.weights == SamplingWeights::Int8 {
        let cap = rl.objective.importance_cap;
        lines.push(
            "warning   P1 does not hold: the sampler multiplies with int8 weights, the learner with its own, and"
                .to_owned(),
        );
        lines.push(format!(
            "          their log-probs differ; each token's term is weighted by w_t, at most {cap:?}"
        ));
    }
    if rl.max_staleness > 0 {
        lines.push(format!(
            "ahead     the sampler goes on while the learner steps: at most {} x {} groups on their way, no trained",
            rl.max_staleness + 1,
            rl.prompts_per_step
        ));
        lines.push(format!(
            "          token older than {} publications of weights; each token's term has the weight w_t, at most {:?};",
            rl.max_staleness, rl.objective.importance_cap
        ));
        lines.push("          results depend on timing".to_owned());
    }
    lines.push("objective".to_owned());
    lines.extend(formula(&rl.objective).lines().map(|line| format!("    {line}")));
    if rl.objective.kl_coef > 0.0 {
        lines.push(match rl.reference.refresh_every {
            0 => "reference the model that the stage starts from".to_owned(),
            n => format!("reference the policy of every {n} optimizer steps"),
        });
    }
    lines.push(format!("optimizer {}", optimizer(&rl.optimizer, rl.grad_clip)));
    if let Some(critic) = &rl.critic {
        let of = critic.model.as_ref().unwrap_or(&rl.model);
        let alone = match critic.warmup_steps {
            0 => String::new(),
            n => format!(", alone for {n} steps"),
        };
        lines.push(format!(
            "critic    made of `{of}`{alone}; {}",
            optimizer(&critic.optimizer, critic.grad_clip)
        ));
    }
    lines
}

/// How a training stage cuts its work, which no result depends on.
fn passes(kind: &StageKind) -> Option<String> {
    let knobs = Knobs::of(kind)?;
    let tokens = grouped(u64::from(knobs.tokens.tokens()));
    let again = if knobs.checkpointing.is_on() { ", activations computed again" } else { "" };
    Some(format!("passes    of at most {tokens} tokens{again}"))
}

fn rewards(rewards: &[Reward]) -> String {
    let parts: Vec<String> = rewards
        .iter()
        .map(|r| format!("{}{} x {:?}{}", r.name(), asked(r), r.weight(), terms(r)))
        .collect();
    if parts.is_empty() { "none".into() } else { parts.join(" + ") }
}

/// What else decides what a reward counts.
fn terms(reward: &Reward) -> String {
    let common = &reward.0.common;
    let terms = [
        common.clip.map(|[least, most]| format!("within {least:?} and {most:?}")),
        common.gate.map(|least| format!("gate at {least:?}")),
        reward.0.settings.of().map(|base| format!("built on `{base}`")),
        is_weak(reward).then(|| "in a weak sandbox".to_owned()),
        common.sources.as_ref().map(|sources| format!("for {}", sources.join(", "))),
    ];
    let terms: Vec<String> = terms.into_iter().flatten().collect();
    if terms.is_empty() { String::new() } else { format!(" ({})", terms.join(", ")) }
}

fn is_weak(reward: &Reward) -> bool {
    matches!(&reward.0.settings, Settings::Code(code) if code.sandbox == Isolation::Weak)
}

/// The model that a reward asks.
fn asked(reward: &Reward) -> String {
    reward.reward_model().map(|(name, _)| format!(" of `{name}`")).unwrap_or_default()
}

fn optimizer(optimizer: &Optimizer, grad_clip: f64) -> String {
    let schedule = &optimizer.schedule;
    let curve = match schedule.kind {
        ScheduleKind::Constant => "constant".to_owned(),
        kind => format!("{} to {:?}", kind.word(), schedule.min_lr),
    };
    let warmup = match schedule.warmup_steps {
        0 => String::new(),
        n => format!(" after {n} steps of warm-up"),
    };
    let clip = if grad_clip > 0.0 {
        format!(", gradient norm at most {grad_clip:?}")
    } else {
        String::new()
    };
    format!(
        "AdamW lr {:?} {curve}{warmup}, betas {:?}, weight decay {:?}{clip}",
        optimizer.lr, optimizer.betas, optimizer.weight_decay
    )
}

fn template(template: &Template) -> &str {
    match template {
        Template::Raw => "the prompt as it is",
        Template::R1Zero => "r1-zero",
        Template::Chat => "the model's chat template",
        Template::Text(_) => "the pipeline's own text",
    }
}

fn one_line(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
