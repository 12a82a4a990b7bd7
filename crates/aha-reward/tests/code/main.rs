//! Verdicts on programs: each form of tests and each language, right and wrong, and what a reason says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cases;
mod command;
#[path = "../keys/mod.rs"]
mod key_cases;
mod keys;

use std::process::ExitCode;
use std::sync::Arc;

use aha_reward::backend::{Backends, ChatModel, PreferenceModel};
use aha_reward::wait::{Answers, Waiting};
use aha_reward::{NoBackends, Sample, Spec};
use cases::{CASES, Case};

fn main() -> ExitCode {
    aha_reward::code::enter_if_asked();
    // A word without dashes names those to run, as with any other test.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| wanted.as_ref().is_none_or(|wanted| case.name.contains(wanted)))
        .collect();
    println!("\nrunning {} programs", cases.len());
    let failures: Vec<String> = cases.iter().filter_map(|case| failure(case)).collect();
    for failure in &failures {
        println!("FAILED {failure}");
    }
    if wanted.is_none() {
        several_at_once_are_scored_as_one_by_one();
        what_is_wrong_with_settings_is_told();
        a_run_that_goes_on_has_the_verdicts_that_it_had();
        command::a_command_scores_in_the_sandbox();
        keys::every_key_of_code_does_something();
    }
    println!("programs: {}", if failures.is_empty() { "ok" } else { "FAILED" });
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn spec(settings: &str) -> Spec {
    serde_json::from_str(&format!(r#"{{"kind": "code"{settings}}}"#)).unwrap()
}

fn sample(case: &Case) -> Sample<'_> {
    Sample {
        prompt: case.prompt,
        completion: case.completion,
        tests: Some(case.tests),
        ..Sample::default()
    }
}

fn failure(case: &Case) -> Option<String> {
    let verifier = spec(case.settings).resolve(&NoBackends).ok().unwrap();
    let verdict = verifier.score(&sample(case));
    let is_told = case.reason.split(" | ").any(|reason| verdict.reason.contains(reason));
    let is_good = verdict.score == case.score && is_told;
    (!is_good).then(|| format!("{}: {:?}: {}", case.name, verdict.score, verdict.reason))
}

fn several_at_once_are_scored_as_one_by_one() {
    let verifier = spec(r#", "parallel": 3"#).resolve(&NoBackends).ok().unwrap();
    let cases = || CASES.iter().filter(|case| case.settings.is_empty());
    let samples: Vec<Sample<'_>> = cases().map(sample).collect();
    let together = verifier.score_all(&samples);
    assert_eq!(together.len(), samples.len());
    for ((case, sample), together) in cases().zip(&samples).zip(together) {
        let alone = verifier.score(sample);
        assert_eq!(together.score, alone.score, "{}", case.name);
        if !case.reason.contains(" | ") {
            assert_eq!(together.reason, alone.reason, "{}", case.name);
        }
    }
    assert!(verifier.score_all(&[]).is_empty());
    assert_eq!(verifier.parallel_count(), 3);
}

/// Lends a place for answers.
struct Lender(Waiting);

impl Backends for Lender {
    fn preference_model(&self, name: &str) -> Result<Arc<dyn PreferenceModel>, String> {
        Err(name.to_owned())
    }

    fn chat_model(&self, name: &str, _: usize, _: f64) -> Result<Arc<dyn ChatModel>, String> {
        Err(name.to_owned())
    }

    fn waiting(&self) -> Waiting {
        self.0.clone()
    }
}

/// Programs that pass by chance: without what was kept the second time would agree once in 2^16 times.
fn a_run_that_goes_on_has_the_verdicts_that_it_had() {
    let programs: Vec<String> =
        (0..16).map(|i| format!("import os  # {i}\nprint(os.urandom(1)[0] & 1)")).collect();
    let sample = |completion| Sample {
        completion,
        tests: Some(r#"{"kind":"stdio","cases":[{"input":"","output":"1"}]}"#),
        ..Sample::default()
    };
    let samples: Vec<Sample<'_>> = programs.iter().map(|program| sample(program)).collect();
    let folder = tempfile::tempdir().unwrap();
    let scored = |settings: &str| {
        let answers = Answers::open(&folder.path().join("answers.jsonl")).unwrap();
        let waiting = Waiting { answers: Some(Arc::new(answers)), ..Waiting::default() };
        spec(settings).resolve(&Lender(waiting)).ok().unwrap().score_all(&samples)
    };
    let first = scored("");
    assert!(first.iter().all(|verdict| verdict.score.is_some()), "{first:?}");
    assert_eq!(scored(r#", "parallel": 3"#), first);
    assert_ne!(scored(r#", "time_s": 5"#), first, "other settings, other verdicts");
}

fn what_is_wrong_with_settings_is_told() {
    let spec = spec(r#", "time_s": 0, "memory_mib": 1, "tolerance": -1.0, "think_tag": "<""#);
    let problems = spec.resolve(&NoBackends).err().unwrap();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["think_tag", "tolerance", "time_s", "memory_mib"]);
}
