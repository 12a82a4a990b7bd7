//! `aha doctor --check cuda:0`: whether a CUDA device computes what the processor does.

use aha_check::{Finding, Part, Size, Subject};
use serde_json::json;

use crate::report::{failed, misuse};
use crate::screen;
use crate::text;

/// A CUDA device by its number, as `cuda:0`.
pub(crate) fn number(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "expected a CUDA device by its number, such as cuda:0".to_owned())
}

/// What is looked at.
#[derive(Clone, Debug)]
pub(super) struct Checks {
    /// The device.
    pub number: u32,
    /// Parts; all where there are none.
    pub parts: Vec<Part>,
    /// Small shapes alone.
    pub quick: bool,
    /// Threads of the processor.
    pub threads: usize,
    /// A line of JSON for each case, in place of text.
    pub json: bool,
}

/// Looks at the device and prints each case as soon as it is done. Fails where a case does.
pub(super) fn run(checks: &Checks) -> anyhow::Result<()> {
    let subject = Subject::nvidia(checks.number, checks.threads).map_err(|error| {
        misuse(format!("no CUDA device: {error}"), "`aha doctor` says what was found")
    })?;
    let parts = if checks.parts.is_empty() { &Part::ALL[..] } else { &checks.parts };
    let size = if checks.quick { Size::Small } else { Size::Full };
    let mut unwritten = None;
    let findings = aha_check::run(&subject, parts, size, &mut |finding| {
        let written = match checks.json {
            true => screen::print_json(finding),
            false => screen::print(text::lines(&shown(finding))).map_err(Into::into),
        };
        unwritten = unwritten.take().or(written.err());
    });
    if let Some(error) = unwritten {
        return Err(error);
    }
    let failing: Vec<&Finding> = findings.iter().filter(|finding| !finding.passed).collect();
    let (count, name) = (findings.len(), &subject.driver().info().name);
    let summary = format!("{} of {count} cases passed on {name}", count - failing.len());
    match checks.json {
        true => screen::print_json(&json!({
            "summary": summary, "cases": count, "failed": failing.len(), "device": name,
            "version": env!("CARGO_PKG_VERSION"),
        }))?,
        false => screen::print(format!("{summary}\n"))?,
    }
    match failing.first() {
        None => Ok(()),
        Some(first) => Err(failed(
            format!("{}: {}: {}", first.part, first.name, first.what),
            "don't train on this device; report what `aha doctor` and this say",
        )),
    }
}

fn shown(finding: &Finding) -> String {
    let verdict = if finding.passed { "ok" } else { "FAILED" };
    let Finding { part, name, what, .. } = finding;
    let figure = match finding.figure.zip(finding.bound) {
        Some((figure, bound)) => format!("{figure:.2e} (at most {bound:.0e}) "),
        None => String::new(),
    };
    format!("{verdict:<8}{part:<13}{name}: {figure}{what}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(passed: bool, figure: Option<f64>) -> Finding {
        let bound = figure.map(|_| 1.0);
        let (name, what) = ("swiglu 5x37, f32".to_owned(), "of the bound".to_owned());
        Finding { part: Part::Ops, name, passed, figure, bound, what, seconds: 0.1 }
    }

    #[test]
    fn a_case_is_a_line() {
        let line = "ok      ops          swiglu 5x37, f32: 2.50e-1 (at most 1e0) of the bound\n";
        assert_eq!(shown(&finding(true, Some(0.25))), line);
        let line = "FAILED  ops          swiglu 5x37, f32: of the bound\n";
        assert_eq!(shown(&finding(false, None)), line);
    }

    #[test]
    fn a_device_is_named_by_its_number() {
        assert_eq!(number("cuda:3"), Ok(3));
        for wrong in ["cpu", "cuda", "cuda:", "cuda:-1", "3"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }
}
