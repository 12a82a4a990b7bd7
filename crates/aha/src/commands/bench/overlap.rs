//! What sampling ahead of the learner gains where the two don't share a bottleneck. A stage `rl` of a tiny model is run
//! with its own actors, but sampling a step's groups and training on them are each made to wait: a unit of time a step,
//! as if each had a device of its own. In turns a step takes two units, at once it takes one.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use aha_flow::devices;
use aha_flow::progress::Event;
use aha_flow::rl::fault::{Faults, Point};
use aha_flow::run::{self, Options};
use aha_flow::stop::Stop;
use anyhow::Context;

use super::row::Row;
use super::{Bench, Kind};
use crate::commands::shared;
use crate::report::failed;

/// What `max_staleness` is, row by row.
const STALENESS: [u32; 4] = [0, 1, 2, 4];
/// Groups of a step.
const GROUPS: u32 = 4;

/// A row for each staleness.
pub fn rows(bench: &Bench<'_>) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for staleness in STALENESS {
        let name = format!("max_staleness = {staleness}");
        bench.say(Kind::Overlap, &name);
        let rate = steps_per_second(bench, staleness)?;
        let mut row = Row::new(Kind::Overlap, name, 1);
        row.add("steps_per_second", rate);
        row.add("step_units", 1.0 / (rate * unit(bench).as_secs_f64()));
        let in_turns = rows.first().and_then(|first| first.get("steps_per_second"));
        row.add("speedup", rate / in_turns.unwrap_or(rate));
        rows.push(row);
    }
    Ok(rows)
}

fn unit(bench: &Bench<'_>) -> Duration {
    Duration::from_millis(u64::from(bench.args.unit_ms))
}

/// Steps per second from the end of the first step to that of the last: before, a sampler that runs ahead has to get
/// there.
fn steps_per_second(bench: &Bench<'_>, staleness: u32) -> anyhow::Result<f64> {
    let scratch = tempfile::tempdir().context("can't make a directory for a run")?;
    let steps = bench.args.steps;
    let pipeline = scratch.path().join("pipeline.toml");
    fs_err::write(&pipeline, text(staleness, steps))?;
    let ends: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let sink = Arc::clone(&ends);
    let options = Options {
        pipeline,
        sets: vec!["run.device=\"cpu\"".to_owned()],
        dir: Some(scratch.path().join("run")),
        disk_reserve_bytes: 0,
        resume: false,
        watcher: Arc::new(move |event| {
            if let Event::Step { .. } = event {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        }),
        stop: Stop::default(),
        faults: waits(unit(bench)),
        devices: devices::of_machine(),
    };
    let outcome = shared::runtime()?.block_on(run::run(options, |_, _| ()));
    outcome.map_err(|error| failed(format!("the run failed: {error}"), "see what it says"))?;
    let ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
    let span = ends.last().zip(ends.first()).map(|(last, first)| last.duration_since(*first));
    Ok((ends.len().max(1) - 1) as f64 / span.unwrap_or_default().as_secs_f64())
}

/// A unit for the groups of a step, group by group on the sampler's thread, and one on the learner's.
fn waits(unit: Duration) -> Faults {
    let on_learner = move |point, _| {
        if point == Point::Train {
            thread::sleep(unit);
        }
        Ok(())
    };
    Faults::new(on_learner).and_of_prompts(move |_| {
        thread::sleep(unit / GROUPS);
        Ok(())
    })
}

fn text(staleness: u32, steps: u32) -> String {
    let problems: Vec<String> = (0..64).map(|number| format!("({number})")).collect();
    let problems = problems.join(", ");
    format!(
        r#"
[run]
threads = 1

[models]
blank = {{ init = "random", hidden_size = 16, intermediate_size = 16, layers = 1, heads = 1, kv_heads = 1, head_dim = 16, max_position_embeddings = 64, tokenizer = {{ train = "SELECT 'ab' AS text", vocab_size = 3, alphabet = "seen" }} }}

[[stage]]
name = "simulated"
kind = "rl"
model = "blank"
prompts = "SELECT 'p' || column1 AS id, 'a' AS prompt FROM (VALUES {problems})"
steps = {steps}
prompts_per_step = {GROUPS}
group_size = 2
max_staleness = {staleness}
checkpoint_every = {steps}
sampling = {{ max_tokens = 2 }}
rewards = [{{ kind = "regex", pattern = "a" }}]
watchdogs = {{ truncated = "off", no_signal = "off", trains_on_nothing = "off", trains_on_nothing_steps_max = 10000 }}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_pipeline_is_one() {
        let text = text(2, 3);
        let pipeline = aha_flow::pipeline::parse(aha_flow::pipeline::Text {
            path: "pipeline.toml",
            text: &text,
            sets: &[],
        });
        assert!(pipeline.is_ok(), "{:?}", pipeline.err());
    }
}
