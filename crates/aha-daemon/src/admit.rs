//! Which run starts next, and what the end of a process means: two pure functions.

use std::time::Duration;

use crate::bounded;
use crate::record::{RunId, Trouble};
use crate::status::Change;

/// The longest pause before a run is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A run that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number.
    pub id: RunId,
    /// Memory that it wants.
    pub memory_bytes: u64,
    /// Whether it may be started now, or has to wait after a failure.
    pub is_ready: bool,
}

/// What may be in use at once, or is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Runs.
    pub runs: usize,
    /// Their memory.
    pub memory_bytes: u64,
}

/// What to do about the runs that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start this one.
    Start(RunId),
    /// Fail this one: it wants more than there will ever be.
    Refuse(RunId),
    /// Wait until something ends.
    Wait,
}

/// Decides from the runs that wait, first come first, from what is in use and what may be. A run that doesn't fit
/// yet holds back those behind it: a large one would never find room otherwise. One that waits after a failure holds
/// back nobody.
pub fn next(waiting: &[Waiting], in_use: Load, limits: Load) -> Next {
    let Some(first) = waiting.iter().find(|run| run.is_ready) else { return Next::Wait };
    if first.memory_bytes > limits.memory_bytes {
        return Next::Refuse(first.id);
    }
    let fits = in_use.memory_bytes.saturating_add(first.memory_bytes) <= limits.memory_bytes;
    if in_use.runs < limits.runs && fits { Next::Start(first.id) } else { Next::Wait }
}

/// Whether a run may compute on its devices while others compute on `busy` ones: one run at a time on each.
pub fn is_free<'a>(device: Option<&str>, busy: impl Iterator<Item = &'a str>) -> bool {
    let numbers = |device: &str| -> Vec<String> {
        device.trim_start_matches("cuda:").split(',').map(str::to_owned).collect()
    };
    let own = device.map(numbers).unwrap_or_default();
    !busy.flat_map(numbers).any(|number| own.contains(&number))
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Its exit code, if it has one.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// What it said last about the run.
    pub last_word: Option<LastWord>,
    /// The end of what it wrote to stderr.
    pub said: String,
    /// Whether it made a step.
    pub has_stepped: bool,
    /// Whether the kernel ended it for want of memory.
    pub is_out_of_memory: bool,
    /// Whether a signal of ours ended it, and not the run itself: it took too long to stop, or had just begun.
    pub is_ours: bool,
}

/// What a run's process says when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastWord {
    /// Every stage is done.
    Done,
    /// It stopped on request.
    Stopped,
    /// It failed.
    Failed {
        /// Why.
        trouble: Trouble,
        /// Whether trying again may help.
        may_pass: bool,
    },
}

/// What the end of a process means for its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What happens to the run.
    pub change: Change,
    /// Why, where something went wrong.
    pub trouble: Option<Trouble>,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// How long the run waits before it is tried again.
    pub retry_after: Duration,
}

/// Decides from how the process ended and how often in a row those before it failed. A process that made a step has
/// come further than the last one, so the count begins anew.
pub fn verdict(ending: &Ending, failures_before: u32, retries_max: u32) -> Verdict {
    let good = |change| Verdict { change, trouble: None, failures: 0, retry_after: Duration::ZERO };
    let failures = if ending.has_stepped { 1 } else { failures_before + 1 };
    let retry = |trouble: Trouble| match failures > retries_max {
        false => Verdict {
            change: Change::Lost,
            trouble: Some(trouble),
            failures,
            retry_after: pause_after(failures),
        },
        true => Verdict {
            change: Change::Failed,
            trouble: Some(Trouble {
                message: format!("{failures} times in a row: {}", trouble.message),
                ..trouble
            }),
            failures,
            retry_after: Duration::ZERO,
        },
    };
    match &ending.last_word {
        _ if ending.is_ours => good(Change::Stopped),
        Some(LastWord::Done) => good(Change::Done),
        Some(LastWord::Stopped) => good(Change::Stopped),
        Some(LastWord::Failed { trouble, may_pass: true }) => retry(trouble.clone()),
        Some(LastWord::Failed { trouble, may_pass: false }) => Verdict {
            change: Change::Failed,
            trouble: Some(trouble.clone()),
            failures,
            retry_after: Duration::ZERO,
        },
        None => retry(unexplained(ending)),
    }
}

/// The pause before the next try: 1, 4, 16, then 60 seconds.
fn pause_after(failures: u32) -> Duration {
    Duration::from_secs(4_u64.saturating_pow(failures.saturating_sub(1))).min(PAUSE_MAX)
}

/// Whether a run that may be started again at `at_us` may be now; both in µs since 1970. A time that is further off
/// than any pause is none: the clock was set back.
pub fn is_ready(at_us: Option<i64>, now_us: i64) -> bool {
    let longest_us = i64::try_from(PAUSE_MAX.as_micros()).unwrap_or(i64::MAX);
    at_us.is_none_or(|at_us| at_us <= now_us || at_us.saturating_sub(now_us) > longest_us)
}

/// The memory to keep for a run whose process the kernel ended for want of it: half as much again, at most all. Fewer
/// runs work beside it then; no result changes.
pub fn more_memory(bytes: u64, total_bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 2).min(total_bytes.max(bytes))
}

/// What is known of a process that ended without a word.
fn unexplained(ending: &Ending) -> Trouble {
    if ending.is_out_of_memory {
        return Trouble {
            message: "the kernel ended the run's process for want of memory".to_owned(),
            hint: Some(
                "it is tried again with more memory kept for it; lower `micro_batch_tokens` or `run.kv_cache`, or \
                 start the daemon with less --memory"
                    .to_owned(),
            ),
        };
    }
    let how = match (ending.signal, ending.code) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(code)) => format!("ended with code {code}"),
        (None, None) => "could not be started".to_owned(),
    };
    let (error, hint) = told(&ending.said);
    let because = error.map(|error| format!(": {error}")).unwrap_or_default();
    Trouble { message: format!("the run's process {how}{because}"), hint }
}

/// What a process said last, and its remedy.
fn told(said: &str) -> (Option<String>, Option<String>) {
    match bounded::last_word(said) {
        Some((error, hint)) => (Some(error), hint),
        None => (said.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(id: u64, memory_bytes: u64, is_ready: bool) -> Waiting {
        Waiting { id: RunId(id), memory_bytes, is_ready }
    }

    const LIMITS: Load = Load { runs: 2, memory_bytes: 100 };

    #[test]
    fn runs_start_in_order_within_the_limits() {
        let none = Load { runs: 0, memory_bytes: 0 };
        let queue = [waiting(1, 60, true), waiting(2, 60, true), waiting(3, 10, true)];
        assert_eq!(next(&queue, none, LIMITS), Next::Start(RunId(1)));
        let one = Load { runs: 1, memory_bytes: 60 };
        assert_eq!(next(&queue[1..], one, LIMITS), Next::Wait, "3 fits, but 2 is before it");
        assert_eq!(next(&queue[2..], one, LIMITS), Next::Start(RunId(3)));
        let two = Load { runs: 2, memory_bytes: 70 };
        assert_eq!(next(&queue[2..], two, LIMITS), Next::Wait);
        assert_eq!(next(&[], none, LIMITS), Next::Wait);
    }

    #[test]
    fn a_run_that_never_fits_is_refused_and_one_in_its_pause_blocks_nobody() {
        let one = Load { runs: 1, memory_bytes: 60 };
        assert_eq!(next(&[waiting(1, 101, true)], one, LIMITS), Next::Refuse(RunId(1)));
        let queue = [waiting(1, 10, false), waiting(2, 10, true)];
        assert_eq!(next(&queue, one, LIMITS), Next::Start(RunId(2)));
        assert_eq!(next(&queue[..1], one, LIMITS), Next::Wait);
    }

    #[test]
    fn runs_on_one_device_wait_for_each_other() {
        let is_free = |device, busy: &[&'static str]| is_free(device, busy.iter().copied());
        assert!(is_free(None, &["cuda:0"]), "it is the processor's");
        assert!(is_free(Some("cuda:0"), &[]));
        assert!(is_free(Some("cuda:1"), &["cuda:0", "cuda:2,3"]));
        assert!(!is_free(Some("cuda:0"), &["cuda:0"]));
        assert!(!is_free(Some("cuda:1,2"), &["cuda:0", "cuda:2,3"]));
    }

    fn failed(may_pass: bool) -> Ending {
        let trouble = Trouble { message: "no room".into(), hint: Some("make room".into()) };
        let last_word = Some(LastWord::Failed { trouble, may_pass });
        Ending { code: Some(1), last_word, ..Ending::default() }
    }

    #[test]
    fn what_may_pass_is_tried_again_a_few_times() {
        for (before, pause) in [(0, 1), (1, 4), (2, 16)] {
            let verdict = verdict(&failed(true), before, 3);
            assert_eq!(verdict.change, Change::Lost);
            assert_eq!(verdict.failures, before + 1);
            assert_eq!(verdict.retry_after, Duration::from_secs(pause));
        }
        let last = verdict(&failed(true), 3, 3);
        assert_eq!(last.change, Change::Failed);
        assert_eq!(last.trouble.unwrap().message, "4 times in a row: no room");
        let stepped = Ending { has_stepped: true, ..failed(true) };
        assert_eq!(verdict(&stepped, 3, 3).failures, 1, "a step is progress");
        assert_eq!(verdict(&failed(true), 0, 0).change, Change::Failed);
    }

    #[test]
    fn what_will_not_pass_fails_at_once() {
        let verdict = verdict(&failed(false), 0, 3);
        assert_eq!(verdict.change, Change::Failed);
        assert_eq!(verdict.trouble.unwrap().hint.as_deref(), Some("make room"));
    }

    #[test]
    fn a_process_that_is_killed_says_what_is_known() {
        let said = "warning: x\nerror: too much\nhint: take less\n".to_owned();
        let ending = Ending { signal: Some(9), said, ..Ending::default() };
        let trouble = verdict(&ending, 0, 3).trouble.unwrap();
        assert_eq!(trouble.message, "the run's process was ended by signal 9: too much");
        assert_eq!(trouble.hint.as_deref(), Some("take less"));
        let ours = Ending { is_ours: true, ..ending };
        assert_eq!(verdict(&ours, 0, 3).change, Change::Stopped, "it was told to stop");
        let silent = Ending { signal: Some(9), is_out_of_memory: true, ..Ending::default() };
        let verdict = verdict(&silent, 0, 3);
        assert_eq!(verdict.change, Change::Lost, "it is tried again");
        assert!(verdict.trouble.unwrap().message.contains("for want of memory"));
    }

    #[test]
    fn a_pause_ends_though_the_clock_is_set_back() {
        let second = 1_000_000;
        assert!(is_ready(None, 0) && is_ready(Some(5 * second), 5 * second));
        assert!(!is_ready(Some(65 * second), 5 * second));
        assert!(is_ready(Some(66 * second), 5 * second), "no pause is so long");
    }

    #[test]
    fn a_run_that_was_short_of_memory_is_kept_more_of_all_there_is() {
        assert_eq!(more_memory(100, 1000), 150);
        assert_eq!(more_memory(800, 1000), 1000);
        assert_eq!(more_memory(1200, 1000), 1200);
    }

    #[test]
    fn a_process_that_is_done_or_stopped_has_no_trouble() {
        for (word, change) in [(LastWord::Done, Change::Done), (LastWord::Stopped, Change::Stopped)]
        {
            let ending = Ending { code: Some(0), last_word: Some(word), ..Ending::default() };
            let verdict = verdict(&ending, 2, 3);
            assert_eq!((verdict.change, verdict.trouble, verdict.failures), (change, None, 0));
        }
    }
}
