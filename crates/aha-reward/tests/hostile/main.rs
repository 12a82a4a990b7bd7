//! Programs that attack: the machine, the verdict, or whoever waits for them. Each scores 0, and the machine
//! is as it was before. Runs as whoever runs the tests, and as root a second time as an ordinary user.
//!
//! A program that attacks the machine knows the right answer and prints it only if its attack succeeds; if
//! not, it prints "contained". So a score of 0 for that says that the attack was made and failed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forgers;
mod hogs;
mod machine;
mod raiders;

use std::process::ExitCode;

use aha_reward::{NoBackends, Sample, Spec, Verifier};
use machine::Machine;

/// What tests expect: nothing that is guessed.
const ANSWER: &str = "9876543210123";

/// A completion with its tests, and what the reason of its verdict may contain.
struct Attack {
    name: &'static str,
    completion: String,
    tests: String,
    prompt: &'static str,
    reasons: &'static [&'static str],
}

fn main() -> ExitCode {
    aha_reward::code::enter_if_asked();
    machine::adopt_orphans();
    // A word without dashes names those to run, as with any other test.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let machine = Machine::new();
    let mut attacks = raiders::attacks(&machine);
    attacks.extend(hogs::attacks());
    attacks.extend(forgers::attacks());
    attacks.retain(|attack| wanted.as_ref().is_none_or(|wanted| attack.name.contains(wanted)));
    let user = machine::user();
    println!("\nrunning {} hostile programs as user {user}", attacks.len());
    if wanted.is_none() {
        assert!(attacks.len() >= 40, "there are to be at least 40 programs");
        honest_programs_pass(verifier().as_ref());
    }
    let mut complaints = judge(&attacks);
    complaints.extend(machine.complaints());
    machine.give_back();
    for complaint in &complaints {
        println!("FAILED {complaint}");
    }
    let is_good = complaints.is_empty() && (user != 0 || machine::run_as_ordinary_user());
    println!("hostile programs as user {user}: {}", if is_good { "ok" } else { "FAILED" });
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// With little time, so that those who waste it are done soon.
fn verifier() -> Box<dyn Verifier> {
    let json = r#"{"kind": "code", "time_s": 1, "memory_mib": 256, "parallel": 4}"#;
    let spec: Spec = serde_json::from_str(json).unwrap();
    spec.resolve(&NoBackends).unwrap_or_else(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        // Never skipped: where nothing is contained, nothing is shown by passing.
        panic!(
            "this machine has no sandbox, so nothing here can be tested: {}",
            problems.join("; ")
        )
    })
}

fn sample(attack: &Attack) -> Sample<'_> {
    Sample {
        prompt: attack.prompt,
        completion: &attack.completion,
        tests: Some(&attack.tests),
        ..Sample::default()
    }
}

/// Whoever prints or returns the right answer scores 1, so that a 0 means something.
fn honest_programs_pass(verifier: &dyn Verifier) {
    for attack in [raiders::honest(), forgers::honest()] {
        let verdict = verifier.score(&sample(&attack));
        assert_eq!(verdict.score, Some(1.0), "{}: {}", attack.name, verdict.reason);
    }
}

fn judge(attacks: &[Attack]) -> Vec<String> {
    let verifier = verifier();
    let samples: Vec<Sample<'_>> = attacks.iter().map(sample).collect();
    let verdicts = verifier.score_all(&samples);
    let mut complaints = Vec::new();
    for (attack, verdict) in attacks.iter().zip(verdicts) {
        let is_known = attack.reasons.iter().any(|reason| verdict.reason.contains(reason));
        println!("{:<40} {}", attack.name, verdict.reason);
        if verdict.score != Some(0.0) || !(is_known || attack.reasons.is_empty()) {
            complaints.push(format!("{}: {:?}: {}", attack.name, verdict.score, verdict.reason));
        }
        if verdict.reason.contains(ANSWER) {
            complaints.push(format!("{}: the reason tells the answer", attack.name));
        }
    }
    complaints
}

/// Tests of a program that reads nothing and has to print the answer.
fn prints_the_answer() -> String {
    let case = serde_json::json!({ "input": "", "output": format!("{ANSWER}\n") });
    serde_json::json!({ "kind": "stdio", "cases": [case] }).to_string()
}
