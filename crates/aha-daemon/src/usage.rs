//! Memory and processor time of runs' processes: looked at now and then, kept for charts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aha_rollout::time;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::api::App;
use crate::child;
use crate::error::blocking;
use crate::record::RunId;

/// How often processes are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// Samples of a run that are kept: when there are more, every second one goes, and from then on as many are left out.
const SAMPLES_MAX: usize = 600;

/// What a process took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Sample {
    /// When it was looked at, in µs since 1970, UTC.
    pub at_us: i64,
    /// Its resident memory.
    pub resident_bytes: u64,
    /// Processor time that it has had since it was started, in seconds.
    pub cpu_seconds: f64,
}

/// What processes of runs took over time.
#[derive(Debug, Default)]
pub struct Usages(Mutex<BTreeMap<RunId, History>>);

#[derive(Debug)]
struct History {
    samples: Vec<Sample>,
    /// One in so many looks is kept.
    every: usize,
    looks: usize,
}

impl Default for History {
    fn default() -> History {
        History { samples: Vec::new(), every: 1, looks: 0 }
    }
}

impl History {
    fn push(&mut self, sample: Sample) {
        self.looks += 1;
        if !self.looks.is_multiple_of(self.every) {
            return;
        }
        self.samples.push(sample);
        if self.samples.len() > SAMPLES_MAX {
            let mut idx = 0;
            self.samples.retain(|_| {
                idx += 1;
                idx % 2 == 0
            });
            self.every *= 2;
        }
    }
}

impl Usages {
    /// Samples of a run, oldest first.
    pub fn of(&self, run: RunId) -> Vec<Sample> {
        self.all().get(&run).map(|history| history.samples.clone()).unwrap_or_default()
    }

    fn push(&self, run: RunId, sample: Sample) {
        self.all().entry(run).or_default().push(sample);
    }

    /// Forgets runs that are not there any more.
    fn keep(&self, is_there: impl Fn(RunId) -> bool) {
        self.all().retain(|run, _| is_there(*run));
    }

    /// A history is whole after every change, so a poisoned lock is taken.
    fn all(&self) -> MutexGuard<'_, BTreeMap<RunId, History>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the processes of runs until `stop` says so.
pub async fn watch(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let looked = Arc::clone(&app);
        // What can't be looked at now is looked at again.
        let _ = blocking(move || {
            look(&looked);
            Ok(())
        })
        .await;
    }
}

fn look(app: &App) {
    for record in app.board.runs() {
        let Some(process) = record.process.filter(|_| record.status.has_process()) else {
            continue;
        };
        let Some(resident_bytes) = child::resident_bytes(process.pid) else { continue };
        let cpu_seconds = child::cpu_seconds(process.pid).unwrap_or(0.0);
        let sample = Sample { at_us: time::now_us(), resident_bytes, cpu_seconds };
        app.usages.push(record.id, sample);
        app.events.mention(record.id, "usage", json!(sample));
    }
    app.usages.keep(|run| app.board.run(run).is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_us: i64) -> Sample {
        Sample { at_us, resident_bytes: 1, cpu_seconds: 0.0 }
    }

    #[test]
    fn a_long_run_is_kept_from_its_beginning_on_with_ever_fewer_samples() {
        let usages = Usages::default();
        for at_us in 1..=5000 {
            usages.push(RunId(1), sample(at_us));
        }
        let found = usages.of(RunId(1));
        assert!(found.len() <= SAMPLES_MAX && found.len() > SAMPLES_MAX / 2 - 2, "{}", found.len());
        let gaps: Vec<i64> = found.windows(2).map(|two| two[1].at_us - two[0].at_us).collect();
        assert!(gaps.iter().all(|gap| *gap == gaps[0]), "{gaps:?}");
        assert!(found[0].at_us < 20 && found[found.len() - 1].at_us > 4980, "{found:?}");
    }

    #[test]
    fn a_run_that_is_gone_is_forgotten() {
        let usages = Usages::default();
        usages.push(RunId(1), sample(1));
        usages.push(RunId(2), sample(1));
        usages.keep(|run| run == RunId(2));
        assert!(usages.of(RunId(1)).is_empty());
        assert_eq!(usages.of(RunId(2)), [sample(1)]);
    }
}
