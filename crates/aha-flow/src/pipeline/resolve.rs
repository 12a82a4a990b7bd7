//! Checks a pipeline against the world: tables, queries, models, memory.

use std::collections::{BTreeMap, BTreeSet};

use super::benchmark::Benchmark;
use super::catalogue::{
    Catalogue, Column, ModelFacts, ModelProbe, SqlProblem, StageOutput, TableFacts,
};
use super::conversations;
use super::local::{TABLES_OF_THE_RUN, report_mismatch, stage_path};
use super::memory::shown;
use super::models::{
    AdaptedModel, Alphabet, ModelSource, Places, RandomModel, TokenizerSource, TokenizerTraining,
};
use super::problem::suggest;
use super::reader::Reader;
use super::references::{self, Read, Reads};
use super::rewards::Reward;
use super::roles::{check_critic, check_guide, check_roles, named_critic};
use super::sampling::Template;
use super::stages::{ExportStage, Format, Pipeline, Stage, StageKind};
use super::values::Sql;
use crate::stages::export::check_place;

/// What was learned of the world while checking.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Input tables by name.
    pub tables: BTreeMap<String, TableFacts>,
    /// Models by name; a training stage has those of the model it starts from.
    pub models: BTreeMap<String, ModelFacts>,
    /// The columns of each stage's query by the path of its key: `stage.zero.prompts`.
    pub queries: BTreeMap<String, Vec<Column>>,
    /// For each stage the stages whose models and rows it reads.
    pub reads: BTreeMap<String, Vec<String>>,
}

/// A query of a stage and the columns it must give.
struct Query<'p> {
    path: String,
    sql: &'p Sql,
    /// Alternatives, the usual one first; no alternative: any columns will do.
    needs: Vec<Vec<&'static str>>,
    /// The benchmark whose layouts `needs` are; it reads numbers as text.
    benchmark: Option<Benchmark>,
}

/// Columns that hold text wherever they are asked for.
const TEXT_COLUMNS: [&str; 6] = ["prompt", "completion", "text", "answer", "chosen", "rejected"];

pub(crate) struct World<'a> {
    pub catalogue: &'a mut dyn Catalogue,
    pub probe: &'a dyn ModelProbe,
    pub places: &'a Places,
}

/// Checks the pipeline against the world; problems are in the reader.
pub(crate) fn resolve(
    pipeline: &Pipeline,
    world: &mut World<'_>,
    reader: &mut Reader<'_>,
) -> Facts {
    let mut facts = Facts::default();
    register_tables(pipeline, world, &mut facts, reader);
    find_models(pipeline, world, &mut facts, reader);
    let queries: Vec<Vec<Query<'_>>> = (0..pipeline.stages.len())
        .map(|idx| queries_of(&pipeline.stages[idx].kind, &stage_path(pipeline, idx, reader)))
        .collect();
    let reads = reads_of(pipeline, &queries, world, reader);
    facts.reads = references::stages_read(pipeline, &reads);
    let broken = references::check(pipeline, &reads, reader);
    plan_queries(pipeline, &queries, broken, world, &mut facts, reader);
    for idx in 0..pipeline.stages.len() {
        check_against_model(pipeline, idx, world, &mut facts, reader);
    }
    facts
}

fn register_tables(
    pipeline: &Pipeline,
    world: &mut World<'_>,
    facts: &mut Facts,
    reader: &mut Reader<'_>,
) {
    for (name, files) in &pipeline.tables {
        let path = format!("tables.{name}");
        if !reader.is_good(&path) {
            continue;
        }
        match world.catalogue.register_table(name, files) {
            Ok(table) => {
                facts.tables.insert(name.clone(), table);
            }
            Err(problem) => {
                let message = format!("table `{name}`: {}", problem.message);
                reader.report_at(&path, message, problem.hint);
            }
        }
    }
    let reward_names: BTreeSet<String> =
        pipeline.stages.iter().flat_map(Stage::reward_names).collect();
    let outputs = [
        StageOutput::Rollouts { reward_names: reward_names.into_iter().collect() },
        StageOutput::Metrics,
        StageOutput::Evals,
    ];
    for (name, output) in TABLES_OF_THE_RUN.iter().zip(outputs) {
        if let Err(problem) = world.catalogue.register_output(name, &output) {
            reader.report_at(
                "tables",
                format!("table `{name}`: {}", problem.message),
                problem.hint,
            );
        }
    }
}

/// The queries of a stage with the columns they must give.
fn queries_of<'p>(kind: &'p StageKind, path: &str) -> Vec<Query<'p>> {
    let query = |key: &str, sql: &'p Sql, needs| Query {
        path: format!("{path}.{key}"),
        sql,
        needs,
        benchmark: None,
    };
    let problems = |rewards: &[&Reward], has_weights: bool| {
        let mut columns = vec!["id", "prompt"];
        if has_weights || rewards.iter().any(|reward| reward.0.common.sources.is_some()) {
            columns.push("source");
        }
        for needed in rewards.iter().filter_map(|reward| reward.needs()) {
            if !columns.contains(&needed) {
                columns.push(needed);
            }
        }
        vec![columns]
    };
    let pairs = |data, held_out: Option<&'p Sql>| {
        let needs = || vec![vec!["prompt", "chosen", "rejected"]];
        let held_out = held_out.map(|sql| query("held_out", sql, needs()));
        std::iter::once(query("data", data, needs())).chain(held_out).collect()
    };
    match kind {
        StageKind::Sft(sft) => {
            let needs = vec![vec!["prompt", "completion"], vec!["text"], vec!["messages"]];
            vec![query("data", &sft.data, needs)]
        }
        StageKind::RewardModel(stage) => pairs(&stage.data, stage.held_out.as_ref()),
        StageKind::Dpo(stage) => pairs(&stage.data, stage.held_out.as_ref()),
        StageKind::Rl(rl) => {
            let rewards: Vec<&Reward> = rl.rewards.iter().collect();
            let has_weights = !rl.source_weights.0.is_empty();
            vec![query("prompts", &rl.prompts, problems(&rewards, has_weights))]
        }
        StageKind::Sample(sample) => {
            let rewards: Vec<&Reward> = sample.rewards.iter().collect();
            vec![query("prompts", &sample.prompts, problems(&rewards, false))]
        }
        StageKind::Eval(eval) => vec![match eval.benchmark {
            Some(benchmark) => {
                let layouts = benchmark.card().layouts.iter();
                let needs = layouts.map(|layout| layout.columns.to_vec()).collect();
                Query { benchmark: Some(benchmark), ..query("data", &eval.data, needs) }
            }
            None => query("data", &eval.data, problems(&kind.rewards(), false)),
        }],
        StageKind::Query(stage) => vec![query("sql", &stage.sql, Vec::new())],
        StageKind::Export(_) => Vec::new(),
    }
}

/// The rewards of a stage, with their paths.
pub(super) fn rewards_of<'p>(kind: &'p StageKind, path: &str) -> Vec<(String, &'p Reward)> {
    let path_of = |idx: usize| match (kind, idx) {
        (StageKind::Eval(_), 0) => format!("{path}.reward"),
        (StageKind::Eval(_), _) => format!("{path}.rank_by"),
        _ => format!("{path}.rewards[{idx}]"),
    };
    kind.rewards().into_iter().enumerate().map(|(idx, reward)| (path_of(idx), reward)).collect()
}

/// Which models and tables each stage reads. A query that is no SQL is reported and reads nothing.
fn reads_of(
    pipeline: &Pipeline,
    queries: &[Vec<Query<'_>>],
    world: &World<'_>,
    reader: &mut Reader<'_>,
) -> Vec<Reads> {
    let mut reads = Vec::new();
    for (idx, stage) in pipeline.stages.iter().enumerate() {
        let path = stage_path(pipeline, idx, reader);
        let mut of_stage = Reads::default();
        let several = stage.kind.models().len() > 1;
        for (model_idx, name) in stage.kind.models().iter().enumerate() {
            let key = format!("{path}.model");
            let path = if several { format!("{key}[{model_idx}]") } else { key };
            if reader.is_good(&path) {
                let span = reader.span_of(&path);
                of_stage.models.push(Read { name: name.clone(), path, span });
            }
        }
        let critic = named_critic(&stage.kind).map(|name| ("critic.model", name));
        for (key, name) in critic.into_iter().chain(stage.kind.guide()) {
            let path = format!("{path}.{key}");
            if reader.is_good(&path) {
                let span = reader.span_of(&path);
                of_stage.models.push(Read { name: name.to_owned(), path, span });
            }
        }
        for (path, reward) in rewards_of(&stage.kind, &path) {
            let path = format!("{path}.model");
            if !reader.is_good(&path) {
                continue;
            }
            let read = |name: &str| {
                let span = reader.span_of(&path);
                Read { name: name.to_owned(), path: path.clone(), span }
            };
            of_stage.models.extend(reward.model().map(read));
            of_stage.reward_models.extend(reward.reward_model().map(|(name, _)| read(name)));
        }
        for query in queries[idx].iter().filter(|query| !query.sql.0.is_empty()) {
            if !reader.is_good(&query.path) {
                continue;
            }
            match world.catalogue.tables_of(&query.sql.0) {
                Ok(names) => {
                    for name in names {
                        let (line, column) = position_of_word(&query.sql.0, &name);
                        let string = reader.span_of(&query.path);
                        let span = reader.sources.span_within(string, line, column, name.len());
                        of_stage.tables.push(Read { name, path: query.path.clone(), span });
                    }
                }
                Err(problem) => report_sql(&query.path, query.sql, problem, reader),
            }
        }
        reads.push(of_stage);
    }
    reads
}

/// Line and column (from 1) of the first whole-word occurrence, case ignored; else of the start.
fn position_of_word(text: &str, word: &str) -> (u32, u32) {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let (text_lower, word) = (text.to_ascii_lowercase(), word.to_ascii_lowercase());
    let found = text_lower.match_indices(&word).find(|(at, _)| {
        let before = text_lower[..*at].chars().next_back();
        let after = text_lower[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    });
    let at = found.map_or(0, |(at, _)| at);
    let line = text[..at].matches('\n').count() + 1;
    let column = text[..at].chars().rev().take_while(|c| *c != '\n').count() + 1;
    (u32::try_from(line).unwrap_or(1), u32::try_from(column).unwrap_or(1))
}

fn report_sql(path: &str, sql: &Sql, problem: SqlProblem, reader: &mut Reader<'_>) {
    let string = reader.span_of(path);
    let (line, column) = match (problem.line, problem.column) {
        (Some(line), column) => (line, column.unwrap_or(1)),
        (None, _) => first_word(&sql.0),
    };
    let word_len = sql
        .0
        .lines()
        .nth(line.saturating_sub(1) as usize)
        .map(|text| text.chars().skip(column.saturating_sub(1) as usize))
        .map_or(1, |rest| rest.take_while(|c| c.is_alphanumeric() || "_.".contains(*c)).count());
    let span = reader.sources.span_within(string, line, column, word_len.max(1));
    reader.report(span, path, format!("bad query in `{path}`: {}", problem.message), problem.hint);
}

/// Where the text of a query begins.
fn first_word(sql: &str) -> (u32, u32) {
    let word: String = sql.trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
    position_of_word(sql, &word)
}

/// Plans every query in the order of the stages and registers what each stage writes.
fn plan_queries(
    pipeline: &Pipeline,
    queries: &[Vec<Query<'_>>],
    mut broken: BTreeSet<String>,
    world: &mut World<'_>,
    facts: &mut Facts,
    reader: &mut Reader<'_>,
) {
    for (name, source) in &pipeline.models {
        if let ModelSource::Random(model) = source
            && let TokenizerSource::Train(training) = &model.tokenizer
        {
            let path = format!("models.{name}.tokenizer.train");
            check_inputs_only(pipeline, &path, &training.train, world, reader);
            let needs = vec![vec!["text"]];
            let query = Query { path, sql: &training.train, needs, benchmark: None };
            plan_query(&query, &broken, world, reader);
        }
    }
    for (idx, stage) in pipeline.stages.iter().enumerate() {
        let mut output = stage.output();
        let mut is_planned = true;
        for query in &queries[idx] {
            let columns = plan_query(query, &broken, world, reader);
            is_planned &= columns.is_some();
            if let (StageKind::Query(_), Some(columns)) = (&stage.kind, &columns) {
                output = Some(StageOutput::Query { columns: columns.clone() });
            }
            if let Some(columns) = columns {
                if let StageKind::Sft(sft) = &stage.kind {
                    conversations::check(sft, &query.path, &columns, reader);
                }
                check_pass_rate(&stage.kind, query, &columns, reader);
                facts.queries.insert(query.path.clone(), columns);
            }
        }
        // What reads the table of a query that can't be planned is not to blame.
        if matches!(stage.kind, StageKind::Query(_)) && !is_planned {
            broken.insert(stage.name.clone());
        }
        let own = output.map(|output| (stage.name.clone(), output));
        for (name, output) in own.into_iter().chain(stage.side_tables()) {
            if let Err(problem) = world.catalogue.register_output(&name, &output) {
                let path = format!("{}.name", stage_path(pipeline, idx, reader));
                let message = format!("stage `{}`: {}", stage.name, problem.message);
                reader.report_at(&path, message, problem.hint);
                broken.insert(name);
            }
        }
    }
}

/// A tokenizer is trained before the first stage runs, so its query sees the input tables only.
fn check_inputs_only(
    pipeline: &Pipeline,
    path: &str,
    sql: &Sql,
    world: &World<'_>,
    reader: &mut Reader<'_>,
) {
    let Ok(names) = world.catalogue.tables_of(&sql.0) else { return };
    let inputs: Vec<&str> = pipeline.tables.iter().map(|(name, _)| name.as_str()).collect();
    for name in names.iter().filter(|name| !inputs.contains(&name.as_str())) {
        let (line, column) = position_of_word(&sql.0, name);
        let span = reader.sources.span_within(reader.span_of(path), line, column, name.len());
        let message = if pipeline.stage(name).is_some() {
            format!(
                "`{path}` reads stage `{name}`, but tokenizers are trained before any stage runs"
            )
        } else {
            format!("unknown table `{name}`")
        };
        let hint = suggest(name, &inputs, "tables that it can read");
        reader.report(span, path, message, Some(hint));
    }
}

/// The columns of a query, or `None` where something was wrong with it or with what it reads.
fn plan_query(
    query: &Query<'_>,
    broken: &BTreeSet<String>,
    world: &World<'_>,
    reader: &mut Reader<'_>,
) -> Option<Vec<Column>> {
    if query.sql.0.is_empty() || !reader.is_good(&query.path) {
        return None;
    }
    let tables = match world.catalogue.tables_of(&query.sql.0) {
        Ok(tables) => tables,
        Err(problem) => {
            report_sql(&query.path, query.sql, problem, reader);
            return None;
        }
    };
    if tables
        .iter()
        .any(|table| broken.contains(table) || !reader.is_good(&format!("tables.{table}")))
    {
        return None;
    }
    match world.catalogue.schema_of(&query.sql.0) {
        Ok(columns) => {
            check_columns(query, &columns, reader);
            Some(columns)
        }
        Err(problem) => {
            report_sql(&query.path, query.sql, problem, reader);
            None
        }
    }
}

fn check_columns(query: &Query<'_>, columns: &[Column], reader: &mut Reader<'_>) {
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let missing = |needs: &Vec<&'static str>| -> Vec<&'static str> {
        needs.iter().copied().filter(|need| !names.contains(need)).collect()
    };
    let Some(usual) = query.needs.first() else { return };
    let found = query.needs.iter().find(|needs| missing(needs).is_empty());
    let string = reader.span_of(&query.path);
    let (line, column) = first_word(&query.sql.0);
    let span = reader.sources.span_within(string, line, column, 6);
    let Some(found) = found else {
        if let Some(benchmark) = query.benchmark {
            let message = format!(
                "the query of `{}` gives the columns of no layout of `{}`: {}",
                query.path,
                benchmark.word(),
                names.join(", ")
            );
            let hint = format!("expected {}", crate::benchmark::layouts(benchmark.card()));
            return reader.report(span, &query.path, message, Some(hint));
        }
        let others: Vec<String> =
            query.needs[1..].iter().map(|other| format!("`{}`", other.join("`, `"))).collect();
        let alternative = match &others[..] {
            [] => String::new(),
            others => format!(" (or {} alone)", others.join(" or ")),
        };
        for need in missing(usual) {
            let message =
                format!("the query of `{}` gives no column `{need}`{alternative}", query.path);
            let hint = suggest(need, &names, "the columns of the query");
            let hint = match super::problem::nearest(need, names.iter().copied()) {
                Some(name) => format!(
                    "write `{name} AS {need}`, or did the query forget it? it gives: {}",
                    names.join(", ")
                ),
                None => hint,
            };
            reader.report(span, &query.path, message, Some(hint));
        }
        return;
    };
    for column in columns {
        if let Some(name) = found.iter().find(|name| **name == column.name)
            && TEXT_COLUMNS.contains(name)
            && !column.is_text()
            && query.benchmark.is_none()
        {
            let message = format!(
                "column `{name}` of `{}` must be text, got {}",
                query.path, column.type_name
            );
            let hint = format!("write `CAST({name} AS VARCHAR) AS {name}`");
            reader.report(span, &query.path, message, Some(hint));
        }
    }
}

/// A curriculum starts from the column `pass_rate`, where there is one.
fn check_pass_rate(
    kind: &StageKind,
    query: &Query<'_>,
    columns: &[Column],
    reader: &mut Reader<'_>,
) {
    let has_curriculum = matches!(kind, StageKind::Rl(rl) if rl.curriculum.is_some());
    let column = columns.iter().find(|column| column.name == "pass_rate");
    let Some(column) = column.filter(|column| has_curriculum && !column.is_number()) else {
        return;
    };
    let message = format!(
        "column `pass_rate` of `{}` must be a number, got {}",
        query.path, column.type_name
    );
    let hint = "write `CAST(pass_rate AS DOUBLE) AS pass_rate`, or leave the column out";
    reader.report_at(&query.path, message, Some(hint.to_owned()));
}

/// Finds every model that the pipeline starts from and what it is.
fn find_models(pipeline: &Pipeline, world: &World<'_>, facts: &mut Facts, reader: &mut Reader<'_>) {
    for (name, source) in &pipeline.models {
        let path = format!("models.{name}");
        let base_path = match source {
            ModelSource::Adapted(_) => format!("{path}.base"),
            _ => path.clone(),
        };
        if let Some(text) = source.path()
            && reader.is_good(&path)
            && let Some(found) = probe(text, &base_path, world, reader)
        {
            if let ModelSource::Adapted(model) = source {
                probe_adapter(model, &path, world, reader);
            }
            if let Some(problem) = &found.weights_problem {
                let message = format!("`{text}`: {}", problem.message);
                reader.report_at(&path, message, problem.hint.clone());
            } else if found.vocab_size < found.tokenizer_vocab_size {
                report_mismatch(name, found.vocab_size, found.tokenizer_vocab_size, reader);
            }
            facts.models.insert(name.clone(), found);
        }
    }
    // Those made from nothing may take the tokenizer of another one, in any order; each round
    // settles at least one of them, or the rest is a circle.
    let mut waiting: Vec<(&String, &RandomModel)> = pipeline
        .models
        .iter()
        .filter_map(|(name, source)| match source {
            ModelSource::Random(model) => Some((name, &**model)),
            ModelSource::Path(_) | ModelSource::Adapted(_) => None,
        })
        .filter(|(name, _)| reader.is_good(&format!("models.{name}")))
        .collect();
    while !waiting.is_empty() {
        let before_count = waiting.len();
        let names: Vec<String> = waiting.iter().map(|(name, _)| (*name).clone()).collect();
        waiting.retain(|(name, model)| {
            if matches!(&model.tokenizer, TokenizerSource::Of(other) if names.contains(other)) {
                return true;
            }
            settle_random(name, model, pipeline, world, facts, reader);
            false
        });
        if waiting.len() == before_count {
            for (name, _) in waiting {
                let message = format!("model `{name}` takes its tokenizer from itself in the end");
                let hint = "one of the models must train a tokenizer or have one".to_owned();
                reader.report_at(&format!("models.{name}.tokenizer"), message, Some(hint));
            }
            return;
        }
    }
}

fn probe(
    source: &str,
    path: &str,
    world: &World<'_>,
    reader: &mut Reader<'_>,
) -> Option<ModelFacts> {
    let located = match world.places.locate(source) {
        Ok(located) => located,
        Err(not_found) => {
            reader.report_at(path, not_found.message, Some(not_found.hint));
            return None;
        }
    };
    match world.probe.probe(&located) {
        Ok(found) => Some(found),
        Err(problem) => {
            reader.report_at(path, format!("`{source}`: {}", problem.message), problem.hint);
            None
        }
    }
}

/// Reports an adapter that isn't there or doesn't fit its model, which was found.
fn probe_adapter(model: &AdaptedModel, path: &str, world: &World<'_>, reader: &mut Reader<'_>) {
    let path = format!("{path}.adapter");
    let Ok(base) = world.places.locate(&model.base) else { return };
    match world.places.adapter(&model.adapter) {
        Err(not_found) => reader.report_at(&path, not_found.message, Some(not_found.hint)),
        Ok(adapter) => {
            if let Err(problem) = world.probe.probe_adapter(&base, &adapter) {
                let message = format!("`{}`: {}", model.adapter, problem.message);
                reader.report_at(&path, message, problem.hint);
            }
        }
    }
}

/// Adds the facts of a model made from nothing, once its tokenizer is known.
fn settle_random(
    name: &str,
    model: &RandomModel,
    pipeline: &Pipeline,
    world: &World<'_>,
    facts: &mut Facts,
    reader: &mut Reader<'_>,
) {
    let path = format!("models.{name}.tokenizer");
    let (tokenizer_vocab_size, has_chat_template) = match &model.tokenizer {
        TokenizerSource::Train(training) => {
            check_vocab_room(training, &path, reader);
            (training.vocab_size, false)
        }
        TokenizerSource::Of(other) => {
            let found = match facts.models.get(other) {
                Some(found) => Some(found.clone()),
                // The other model is at fault and has been reported.
                None if pipeline.model(other).is_some() => None,
                None => probe(other, &path, world, reader),
            };
            match found {
                Some(found) => (found.tokenizer_vocab_size, found.has_chat_template),
                None => return,
            }
        }
    };
    if model.vocab_size != 0 && model.vocab_size < tokenizer_vocab_size {
        let vocab_path = format!("models.{name}.vocab_size");
        if reader.is_good(&vocab_path) {
            report_mismatch(name, model.vocab_size, tokenizer_vocab_size, reader);
        }
        return;
    }
    let vocab_size = if model.vocab_size == 0 { tokenizer_vocab_size } else { model.vocab_size };
    let mut found = super::memory::facts_of_random(model, vocab_size);
    found.tokenizer_vocab_size = tokenizer_vocab_size;
    found.has_chat_template = has_chat_template;
    facts.models.insert(name.to_owned(), found);
}

/// Reports a vocabulary that can't hold what a tokenizer starts from. How many of the bytes its texts
/// hold is known only when it is trained; all 256 are known now.
fn check_vocab_room(training: &TokenizerTraining, path: &str, reader: &mut Reader<'_>) {
    let (bytes, of) = match training.alphabet {
        Alphabet::Bytes => (256, "256 single bytes"),
        Alphabet::Seen => (1, "a byte at the least"),
    };
    let end_tokens = 1;
    let special_tokens = training.special_tokens.len();
    let needed = bytes + special_tokens + end_tokens;
    let vocab_path = format!("{path}.vocab_size");
    if (training.vocab_size as usize) < needed && reader.is_good(&vocab_path) {
        let message = format!(
            "`{vocab_path}` must be at least {needed}, for the end token, {special_tokens} special \
             tokens and {of}, got {}",
            training.vocab_size
        );
        let hint = match training.alphabet {
            Alphabet::Bytes => {
                "raise it, or set `alphabet = \"seen\"` to start from the bytes of the texts alone"
            }
            Alphabet::Seen => "raise it: every byte that the texts hold takes a place",
        };
        reader.report_at(&vocab_path, message, Some(hint.to_owned()));
    }
}

/// Checks lengths and template of a stage against its model, and hands the facts on to the model
/// that the stage makes.
fn check_against_model(
    pipeline: &Pipeline,
    idx: usize,
    world: &World<'_>,
    facts: &mut Facts,
    reader: &mut Reader<'_>,
) {
    let stage = &pipeline.stages[idx];
    let path = stage_path(pipeline, idx, reader);
    let known: Vec<ModelFacts> =
        stage.kind.models().iter().filter_map(|name| facts.models.get(name).cloned()).collect();
    check_roles(stage, &path, facts, reader);
    check_critic(stage, &path, facts, reader);
    check_guide(stage, &path, facts, reader);
    let (template, key, len) = match &stage.kind {
        StageKind::Sft(sft) => (&sft.template, "max_tokens", sft.max_tokens),
        StageKind::RewardModel(stage) => (&stage.template, "max_tokens", stage.max_tokens),
        StageKind::Dpo(stage) => (&stage.template, "max_tokens", stage.max_tokens),
        StageKind::Rl(rl) => (&rl.template, "sampling.max_tokens", rl.sampling.max_tokens),
        StageKind::Sample(s) => (&s.template, "sampling.max_tokens", s.sampling.max_tokens),
        StageKind::Eval(eval) => (&eval.template, "max_tokens", eval.max_tokens),
        StageKind::Export(export) => return check_export(export, pipeline, &path, world, reader),
        StageKind::Query(_) => return,
    };
    // A fine-tuning's default is bounded by the model's positions anyway.
    let has_bound =
        matches!(stage.kind, StageKind::Sft(_) | StageKind::RewardModel(_) | StageKind::Dpo(_));
    for model in &known {
        let positions = model.max_position_embeddings;
        let len_path = format!("{path}.{key}");
        let is_bounded = has_bound && !reader.has(&len_path);
        if len > positions && !is_bounded && reader.is_good(&len_path) {
            let message = format!("`{len_path}` is {len}, but the model has {positions} positions");
            let hint = format!("set it to at most {positions}, the prompt included");
            reader.report_at(&len_path, message, Some(hint));
        }
        let template_path = format!("{path}.template");
        if *template == Template::Chat && !model.has_chat_template && reader.is_good(&template_path)
        {
            let message =
                format!("`{template_path}` is \"chat\", but the model has no chat template");
            let hint = "use \"raw\", \"r1-zero\", or a text with {prompt} in it".to_owned();
            reader.report_at(&template_path, message, Some(hint));
        }
        // A prompt has a token at the least.
        let needed = super::memory::sequence_bytes(&pipeline.run, model, len.saturating_add(1));
        if !has_bound && needed > pipeline.run.kv_cache.0 && reader.is_good("run.kv_cache") {
            let message = format!(
                "`run.kv_cache` is {}, less than one sequence of `{len_path}` = {len} tokens needs",
                shown(pipeline.run.kv_cache.0)
            );
            let hint = format!("raise it to more than {}, for the prompts", shown(needed));
            reader.report_at("run.kv_cache", message, Some(hint));
        }
    }
    if stage.kind.is_training()
        && let Some(model) = known.into_iter().next()
    {
        let model = match &stage.kind {
            StageKind::RewardModel(_) => super::memory::facts_of_reward_model(&model),
            _ => model,
        };
        facts.models.insert(stage.name.clone(), model);
    }
}

/// A place that holds something else would be refused when the model is there at last.
fn check_export(
    export: &ExportStage,
    pipeline: &Pipeline,
    path: &str,
    world: &World<'_>,
    reader: &mut Reader<'_>,
) {
    let format_path = format!("{path}.format");
    let has_adapter = pipeline.stage(&export.model).is_some_and(|s| s.kind.lora().is_some());
    let is_known = reader.is_good(&format_path) && reader.is_good(&format!("{path}.model"));
    if export.format == Format::Peft && !has_adapter && is_known {
        let message = format!(
            "`{format_path}` is \"peft\", but `{}` is no stage that trains an adapter",
            export.model
        );
        let hint = "name a stage with `lora`, or leave `format` out for the whole model".to_owned();
        reader.report_at(&format_path, message, Some(hint));
    }
    let path = format!("{path}.out");
    let Some(out) = export.out.as_ref().filter(|_| reader.is_good(&path)) else { return };
    if let Err(error) = check_place(&world.places.base_dir.join(out)) {
        let hint = error.hint().map(str::to_owned);
        reader.report_at(&path, error.to_string(), hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_where_it_stands_alone() {
        let sql = "SELECT problems_id\nFROM  Problems p";
        assert_eq!(position_of_word(sql, "problems"), (2, 7));
        assert_eq!(position_of_word(sql, "absent"), (1, 1));
        assert_eq!(first_word("\n  WITH x AS (SELECT 1)"), (2, 3));
    }
}
