//! Watchdogs: failures that a run would otherwise hide, each with a remedy. Pure.

use crate::pipeline::{SftWatchdogs, Watch, Watchdogs};
use crate::prompts::{Example, StopToken};

/// What a step showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// Completions of the step.
    pub completions: usize,
    /// Of these, cut at the limit.
    pub truncated: usize,
    /// Of these, ended by a stop token that isn't among the tokens that the loss is over.
    pub stop_outside_mask: usize,
    /// Of these, those that have a reward which reads their answer.
    pub answerable: usize,
    /// Of those, without an answer that the verifier could read.
    pub unparsed: usize,
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
    let unparsed = share(facts.unparsed, facts.answerable);
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
        settings.stop_token_masked,
        facts.stop_outside_mask > 0,
        false,
        format!(
            "{} of {} completions ended at a stop token that is outside the loss mask: \
             the model would not learn to stop",
            facts.stop_outside_mask, facts.completions
        ),
        "a sampler has to hand on the token that ended a completion: report this",
    );
    find(
        settings.trains_on_nothing,
        facts.trained == 0,
        facts.steps_without_training > settings.trains_on_nothing_steps_max,
        format!("nothing to train on in {} steps in a row", facts.steps_without_training),
        "look at rewards and skip_reason with `aha query`; prompts may be too hard or too easy",
    );
    let batches = (facts.nan_batches, facts.nan_batches_total);
    findings.extend(nan(settings.nan, settings.nan_batches_max, batches));
    findings
}

/// What is to be said of optimizer steps whose loss or gradient was no number: `batches` of them now, and in
/// the whole stage.
pub fn nan(watch: Watch, batches_max: u32, batches: (u32, u32)) -> Option<Finding> {
    let (now, total) = batches;
    let what = match now {
        0 => return None,
        1 => "an optimizer step gave no number; its batch is".to_owned(),
        _ => format!("{now} optimizer steps gave no number; their batches are"),
    };
    (watch != Watch::Off).then(|| Finding {
        stops: watch == Watch::Stop || total > batches_max,
        message: format!("{what} set aside and the weights kept ({total} so far)"),
        hint: "lower `optimizer.lr` or `grad_clip`",
    })
}

/// What is to be said of the examples of an `sft` stage before it trains. A model that never learns the end
/// token, or that learns from another place than it samples at, fails later and without a sign.
pub fn examples<'a>(
    settings: &SftWatchdogs,
    examples: impl Iterator<Item = &'a Example> + Clone,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |watch: Watch, message: String, hint: &'static str| {
        if watch != Watch::Off {
            findings.push(Finding { stops: watch == Watch::Stop, message, hint });
        }
    };
    let of = |part: usize, whole: usize| {
        format!("{part} of {whole} examples ({:.0} %)", 100.0 * share(part, whole))
    };
    let mut broken = examples.clone().filter_map(|example| example.mask_problem.as_ref());
    if let Some(problem) = broken.next() {
        let which = of(1 + broken.count(), examples.clone().count());
        find(
            settings.template_breaks_mask,
            format!("the chat template breaks the loss mask of {which}: {problem}"),
            "use another `template`, mend the model's chat template, or, where it rewrites earlier turns of \
             conversations, set `loss_on` = \"last\"",
        );
    }
    // What was cut off its end says nothing about where the end belongs.
    let whole = examples.filter(|example| example.stop != StopToken::CutOff);
    let count = |stop| whole.clone().filter(|example| example.stop == stop).count();
    let outside_count = count(StopToken::OutsideMask);
    if outside_count > 0 {
        let which = of(outside_count, whole.clone().count());
        find(
            settings.stop_token_masked,
            format!(
                "{which} have their stop token outside the loss mask: \
                 the model would not learn to stop"
            ),
            "put the end-of-turn token inside the chat template's `{% generation %}` block, \
             use another `template`, or set `loss_on` to \"all\"",
        );
    }
    if count(StopToken::Missing) > 0 {
        find(
            settings.stop_token_masked,
            "the tokenizer has no end token: the model would never learn to stop".to_owned(),
            "name its `eos_token` in the model's tokenizer_config.json",
        );
    }
    findings
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Facts {
        Facts { completions: 100, groups: 10, trained: 100, answerable: 100, ..Facts::default() }
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
            ("no answer", Facts { unparsed: 95, ..well() }),
            ("1 of 100 completions ended", Facts { stop_outside_mask: 1, ..well() }),
            ("gave no number", Facts { nan_batches: 1, nan_batches_total: 1, ..well() }),
            ("nothing to train on", Facts { trained: 0, steps_without_training: 1, ..well() }),
        ];
        let all = |watch| Watchdogs {
            truncated: watch,
            no_signal: watch,
            unparsed: watch,
            stop_token_masked: watch,
            nan: watch,
            trains_on_nothing: watch,
            ..Watchdogs::default()
        };
        for (text, facts) in cases {
            for watch in [Watch::Warn, Watch::Stop] {
                let found = messages(&all(watch), facts);
                assert_eq!(found.len(), 1, "{text}");
                assert!(found[0].0.contains(text), "{found:?}");
                assert_eq!(found[0].1, watch == Watch::Stop, "{found:?}");
            }
            assert!(messages(&all(Watch::Off), facts).is_empty(), "{text}");
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

    #[test]
    fn examples_are_counted_by_what_is_wrong_with_them() {
        let example = |stop, mask_problem: Option<&str>| Example {
            ids: vec![1, 2],
            loss_mask: vec![false, true],
            stop,
            mask_problem: mask_problem.map(str::to_owned),
        };
        let all = [
            example(StopToken::Learned, None),
            example(StopToken::CutOff, None),
            example(StopToken::OutsideMask, Some("it rewrites turns")),
        ];
        let found = |settings: &SftWatchdogs, of: &[Example]| {
            let found = examples(settings, of.iter());
            found.into_iter().map(|f| (f.message, f.stops)).collect::<Vec<_>>()
        };
        let stop = SftWatchdogs::default();
        let messages = found(&stop, &all);
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[0].0.contains("of 1 of 3 examples (33 %): it rewrites"), "{messages:?}");
        assert!(messages[1].0.starts_with("1 of 2 examples (50 %) have"), "{messages:?}");
        assert!(messages.iter().all(|(_, stops)| *stops));
        let warn = SftWatchdogs {
            stop_token_masked: Watch::Warn,
            template_breaks_mask: Watch::Off,
            ..SftWatchdogs::default()
        };
        let messages = found(&warn, &all);
        assert!(messages.len() == 1 && !messages[0].1, "{messages:?}");
        assert_eq!(found(&stop, &all[..2]), []);
        assert_eq!(found(&stop, &[]), []);
        let missing = found(&stop, &[example(StopToken::Missing, None)]);
        assert!(missing[0].0.contains("has no end token"), "{missing:?}");
    }
}
