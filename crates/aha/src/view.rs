//! How a run is shown while it goes on: bars on a terminal, else a line per step, or JSON lines.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aha_flow::progress::{Event, Waiting};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::screen::{self, Screen};
use crate::text;

/// Measures that are shown, with what they are called.
const SHOWN: [(&str, &str); 6] = [
    ("reward", "reward"),
    ("accuracy", "accuracy"),
    ("loss", "loss"),
    ("completion_len_tokens", "length"),
    ("kl", "KL"),
    ("tokens_per_second", "tokens/s"),
];

/// Shows a run's events. It never fails: watching must not stop a run.
pub struct View {
    screen: Screen,
    is_json: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names of all stages, in order.
    stages: Vec<String>,
    current: Option<Current>,
    /// How often each warning came, by stage and remedy.
    warnings: BTreeMap<(String, String), u64>,
    /// Tables to print at the end.
    tables: Vec<String>,
}

/// The stage that runs.
struct Current {
    stage: String,
    steps: u64,
    pace: Pace,
    /// The newest step's measures, as they are shown.
    measures: String,
    bar: ProgressBar,
    note: ProgressBar,
}

impl View {
    /// A view that has seen nothing yet.
    pub fn new(screen: &Screen, is_json: bool) -> View {
        View { screen: screen.clone(), is_json, state: Mutex::default() }
    }

    /// Tells the view which stages there are.
    pub fn plan(&self, stages: Vec<String>) {
        self.state().stages = stages;
    }

    /// Shows an event.
    pub fn watch(&self, event: Event) {
        if self.is_json {
            // Nobody reading is no reason to stop.
            let _ = screen::print_json(&event_json(&event));
            return;
        }
        let mut state = self.state();
        match event {
            Event::StageStarted { stage, kind, step, steps } => {
                self.started(&mut state, stage, kind, step, steps);
            }
            Event::Step { stage, step, metrics } => self.step(&mut state, &stage, step, &metrics),
            Event::Warning { stage, message, hint } => {
                let count = state.warnings.entry((stage.clone(), hint.clone())).or_default();
                *count += 1;
                if let Some(text) = warning(&stage, &message, &hint, *count) {
                    self.screen.line(&text);
                }
            }
            Event::Actors { .. } => {}
            Event::Waiting { message, hint } => {
                self.screen.line(&format!("the run waits: {}", text::one_line(&message)));
                self.screen.line(&format!("hint: {hint}"));
            }
            Event::GoesOn => self.screen.line("there is room again, and the run goes on"),
            Event::StageDone { stage } => self.done(&mut state, &stage),
            Event::Print { stage, description, text } => {
                let title = if description.is_empty() { stage } else { description };
                state.tables.push(format!("\n{title}\n{}\n", text.trim_end()));
            }
        }
    }

    /// Removes the bars and prints the tables that the run's queries asked to print.
    pub fn finish(&self) -> std::io::Result<()> {
        let mut state = self.state();
        clear(state.current.take());
        let tables = std::mem::take(&mut state.tables).concat();
        if tables.is_empty() { Ok(()) } else { screen::print(text::lines(&tables)) }
    }

    fn started(&self, state: &mut State, stage: String, kind: &str, step: u64, steps: u64) {
        clear(state.current.take());
        let place = state.place(&stage);
        let bar = self.screen.bar(steps);
        bar.set_position(step);
        bar.set_prefix(text::one_line(&format!("{place}{stage} ({kind})")));
        if !self.screen.is_live() {
            let from = if step > 0 { format!(", from step {step}") } else { String::new() };
            self.screen.line(&format!("{place}{stage} ({kind}){from}"));
        }
        let pace = Pace { began: Instant::now(), steps_before: step };
        let note = self.screen.note();
        state.current = Some(Current { stage, steps, pace, measures: String::new(), bar, note });
    }

    fn step(&self, state: &mut State, stage: &str, step: u64, metrics: &BTreeMap<String, f64>) {
        let Some(current) = state.current.as_mut().filter(|current| current.stage == stage) else {
            return;
        };
        current.measures = measures(metrics);
        let left = current.pace.left(current.pace.began.elapsed(), step, current.steps);
        let left = left.map(|left| format!("{} left", text::duration(left)));
        if self.screen.is_live() {
            current.bar.set_position(step);
            current.bar.set_message(left.unwrap_or_default());
            current.note.set_message(current.measures.clone());
        } else {
            self.screen.line(&step_line(stage, step, current.steps, &current.measures, left));
        }
    }

    fn done(&self, state: &mut State, stage: &str) {
        let mut line = format!("{}{stage} done", state.place(stage));
        if let Some(current) = state.current.take().filter(|current| current.stage == stage) {
            line += &format!(" in {}", text::duration(current.pace.began.elapsed()));
            if !current.measures.is_empty() {
                line += &format!(": {}", current.measures);
            }
            clear(Some(current));
        }
        self.screen.line(&line);
    }

    /// An event is shown whole or not at all, so a poisoned lock is taken.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Where the stage stands among all: `[3/9] `.
    fn place(&self, stage: &str) -> String {
        let at = self.stages.iter().position(|name| name == stage);
        at.map(|idx| format!("[{}/{}] ", idx + 1, self.stages.len())).unwrap_or_default()
    }
}

fn clear(current: Option<Current>) {
    if let Some(current) = current {
        current.bar.finish_and_clear();
        current.note.finish_and_clear();
    }
}

/// When a stage began here, and at which step.
struct Pace {
    began: Instant,
    steps_before: u64,
}

impl Pace {
    /// Time left if steps go on as they went; none before the first step, or where their number isn't
    /// known.
    fn left(&self, elapsed: Duration, step: u64, steps: u64) -> Option<Duration> {
        let done = step.checked_sub(self.steps_before).filter(|done| *done > 0)?;
        let left = steps.checked_sub(step)?;
        Duration::try_from_secs_f64(elapsed.as_secs_f64() / done as f64 * left as f64).ok()
    }
}

fn measures(metrics: &BTreeMap<String, f64>) -> String {
    // The loss of a policy gradient says nothing about progress; the reward does.
    let is_shown = |key: &str| key != "loss" || !metrics.contains_key("reward");
    let shown = SHOWN.iter().filter(|(key, _)| is_shown(key)).filter_map(|(key, name)| {
        let value = metrics.get(*key)?;
        Some(format!("{name} {}", text::measure(*value)))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// A warning that comes for the `count`-th time: shown the 1st, 10th, 100th … time, so that one that
/// comes at every step doesn't bury the steps. The log has them all.
fn warning(stage: &str, message: &str, hint: &str, count: u64) -> Option<String> {
    let is_power_of_ten = count == 10_u64.pow(count.checked_ilog10()?);
    let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
    is_power_of_ten.then(|| format!("warning: {stage}: {message}{times}\nhint: {hint}"))
}

fn step_line(stage: &str, step: u64, steps: u64, measures: &str, left: Option<String>) -> String {
    let of = if steps > 0 { format!("/{steps}") } else { String::new() };
    let said: Vec<&str> =
        [Some(measures), left.as_deref()].into_iter().flatten().filter(|s| !s.is_empty()).collect();
    let colon = if said.is_empty() { "" } else { ": " };
    format!("{stage} step {step}{of}{colon}{}", said.join(", "))
}

fn event_json(event: &Event) -> Value {
    match event {
        Event::StageStarted { stage, kind, step, steps } => json!({
            "event": "stage_started", "stage": stage, "kind": kind, "step": step, "steps": steps,
        }),
        Event::Step { stage, step, metrics } => {
            let numbers = metrics.iter().map(|(name, value)| (name, text::Number(*value)));
            let metrics: BTreeMap<_, _> = numbers.collect();
            json!({"event": "step", "stage": stage, "step": step, "metrics": metrics})
        }
        Event::Actors { stage, actors } => {
            let shown = |of: &Waiting| json!({"actor": of.actor, "count": of.count, "max": of.max});
            let actors: Vec<Value> = actors.iter().map(shown).collect();
            json!({"event": "actors", "stage": stage, "actors": actors})
        }
        Event::Warning { stage, message, hint } => {
            json!({"event": "warning", "stage": stage, "message": message, "hint": hint})
        }
        Event::Waiting { message, hint } => {
            json!({"event": "waiting", "message": message, "hint": hint})
        }
        Event::GoesOn => json!({"event": "goes_on"}),
        Event::StageDone { stage } => json!({"event": "stage_done", "stage": stage}),
        Event::Print { stage, description, text } => {
            json!({"event": "print", "stage": stage, "description": description, "text": text})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_with_what_matters() {
        let metrics = [
            ("accuracy", 0.25),
            ("completion_len_tokens", 63.25),
            ("kl", 0.0004),
            ("loss", 0.1),
            ("lr", 1e-4),
            ("reward", 0.5),
            ("tokens_per_second", 1830.4),
        ];
        let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).into();
        let line = step_line("zero", 12, 100, &measures(&metrics), Some("3m12s left".to_owned()));
        let expected = "zero step 12/100: reward 0.500, accuracy 0.250, length 63.2, KL 4.0e-4, \
                        tokens/s 1,830, 3m12s left";
        assert_eq!(line, expected);
        assert_eq!(step_line("a", 1, 0, "", None), "a step 1");
        assert_eq!(measures(&BTreeMap::from([("loss".to_owned(), 2.0)])), "loss 2.000");
    }

    #[test]
    fn a_warning_that_comes_again_is_shown_now_and_then() {
        let shown = (0..=1000).filter(|count| warning("zero", "cut", "raise", *count).is_some());
        assert_eq!(shown.collect::<Vec<_>>(), [1, 10, 100, 1000]);
        let again = warning("zero", "cut", "raise", 10).unwrap();
        assert_eq!(again, "warning: zero: cut (10 times)\nhint: raise");
    }

    #[test]
    fn time_left_is_that_of_the_steps_since_the_resume() {
        let pace = Pace { began: Instant::now(), steps_before: 10 };
        let elapsed = Duration::from_secs(20);
        assert_eq!(pace.left(elapsed, 10, 100), None);
        assert_eq!(pace.left(elapsed, 20, 100), Some(Duration::from_secs(160)));
        assert_eq!(pace.left(elapsed, 20, 0), None);
        assert_eq!(pace.left(elapsed, 100, 100), Some(Duration::ZERO));
    }
}
