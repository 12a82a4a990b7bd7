//! Watchdogs: failures that a run would otherwise hide, each with a remedy. Pure.

use crate::pipeline::{Watch, Watchdogs};

/// What a step showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// Completions of the step.
    pub completions: usize,
    /// Of these, cut at the limit.
    pub truncated: usize,
    /// Of these, without an answer that the verifier could read; none where no reward reads answers.
    pub unparsed: Option<usize>,
    /// Groups of the step.
    pub groups: usize,
    /// Of these, with the same reward throughout.
    pub without_signal: usize,
    /// Completions that a gradient held.
    pub trained: usize,
    /// Steps in a row, this one included, that trained on nothing.
    pub steps_without_training: u32,
    /// Optimizer steps of this step whose loss or gradient was not a number.
    pub nan_batches: u32,
    /// The same, in the whole stage.
    pub nan_batches_total: u32,
}

/// Something to tell the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the run stops.
    pub stops: bool,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// What the watchdogs make of a step.
pub fn watch(settings: &Watchdogs, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |watch: Watch, found: bool, stops: bool, message: String, hint: &'static str| {
        if found && watch != Watch::Off {
            findings.push(Finding { stops: stops || watch == Watch::Stop, message, hint });
        }
    };
    let share =
        |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let percent = |x: f64| format!("{:.0} %", x * 100.0);

    let truncated = share(facts.truncated, facts.completions);
    find(
        settings.truncated,
        truncated > settings.truncated_share_max,
        false,
        format!("{} of the completions were cut at the token limit", percent(truncated)),
        "raise `sampling.max_tokens`, or reward shorter answers",
    );
    let without_signal = share(facts.without_signal, facts.groups);
    find(
        settings.no_signal,
        without_signal > settings.no_signal_share_max,
        false,
        format!(
            "{} of the groups have the same reward throughout and teach nothing",
            percent(without_signal)
        ),
        "take easier or harder prompts, a larger `group_size`, or a finer reward",
    );
    let unparsed = share(facts.unparsed.unwrap_or(0), facts.completions);
    find(
        settings.unparsed,
        unparsed > settings.unparsed_share_max,
        false,
        format!(
            "{} of the completions have no answer that the verifier can read",
            percent(unparsed)
        ),
        "check `template` and `max_tokens`, or begin with a cold start (a stage of kind `sft`)",
    );
    find(
        settings.nan,
        facts.nan_batches > 0,
        facts.nan_batches_total > settings.nan_batches_max,
        format!(
            "{} optimizer steps gave no number; their batches are set aside and the weights kept ({} so far)",
            facts.nan_batches, facts.nan_batches_total
        ),
        "lower `optimizer.lr` or `grad_clip`",
    );
    find(
        settings.trains_on_nothing,
        facts.trained == 0,
        facts.steps_without_training > settings.trains_on_nothing_steps_max,
        format!("nothing to train on in {} steps in a row", facts.steps_without_training),
        "look at rewards and skip_reason with `aha query`; prompts may be too hard or too easy",
    );
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Facts {
        Facts { completions: 100, groups: 10, trained: 100, unparsed: Some(0), ..Facts::default() }
    }

    fn messages(settings: &Watchdogs, facts: Facts) -> Vec<(String, bool)> {
        watch(settings, &facts).into_iter().map(|f| (f.message, f.stops)).collect()
    }

    #[test]
    fn a_step_that_is_well_gives_no_finding() {
        assert!(watch(&Watchdogs::default(), &well()).is_empty());
    }

    #[test]
    fn each_watchdog_finds_its_failure_and_is_off_when_set_off() {
        let cases = [
            ("cut at the token limit", Facts { truncated: 60, ..well() }),
            ("teach nothing", Facts { without_signal: 10, ..well() }),
            ("no answer", Facts { unparsed: Some(95), ..well() }),
            ("gave no number", Facts { nan_batches: 1, nan_batches_total: 1, ..well() }),
            ("nothing to train on", Facts { trained: 0, steps_without_training: 1, ..well() }),
        ];
        let off = Watchdogs {
            truncated: Watch::Off,
            no_signal: Watch::Off,
            unparsed: Watch::Off,
            nan: Watch::Off,
            trains_on_nothing: Watch::Off,
            ..Watchdogs::default()
        };
        for (text, facts) in cases {
            let found = messages(&Watchdogs::default(), facts);
            assert_eq!(found.len(), 1, "{text}");
            assert!(found[0].0.contains(text) && !found[0].1, "{found:?}");
            assert!(messages(&off, facts).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_share_at_its_limit_is_still_well() {
        assert!(messages(&Watchdogs::default(), Facts { truncated: 50, ..well() }).is_empty());
    }

    #[test]
    fn stop_stops_and_so_does_too_much_of_what_only_warns() {
        let stop = Watchdogs { truncated: Watch::Stop, ..Watchdogs::default() };
        assert!(messages(&stop, Facts { truncated: 51, ..well() })[0].1);
        let nan = Facts { nan_batches: 1, nan_batches_total: 4, ..well() };
        assert!(messages(&Watchdogs::default(), nan)[0].1);
        let idle = Facts { trained: 0, steps_without_training: 21, ..well() };
        assert!(messages(&Watchdogs::default(), idle)[0].1);
    }
}
