//! What was found, case by case.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use serde::Serialize;

use crate::{Error, Part};

/// What a case found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The part that the case belongs to.
    pub part: Part,
    /// The case.
    pub name: String,
    /// Whether all is as it must be.
    pub passed: bool,
    /// The figure that is bounded; none where the case came to none.
    pub figure: Option<f64>,
    /// What the figure may be at most.
    pub bound: Option<f64>,
    /// What the figure is of, with others beside it; or why there is none.
    pub what: String,
    /// How long the case took.
    pub seconds: f64,
}

/// A figure, what it may be at most, and what it is of.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub figure: f64,
    pub bound: f64,
    pub what: String,
}

impl Outcome {
    pub(crate) fn new(figure: f64, bound: f64, what: impl Into<String>) -> Outcome {
        Outcome { figure, bound, what: what.into() }
    }

    /// For what is or isn't so: counts what is wrong.
    pub(crate) fn none_of(wrong: usize, what: impl Into<String>) -> Outcome {
        Outcome::new(wrong as f64, 0.0, what)
    }
}

/// Findings in the order of their cases.
pub struct Findings<'a> {
    list: Vec<Finding>,
    told: &'a mut dyn FnMut(&Finding),
}

impl<'a> Findings<'a> {
    /// None yet; `told` hears of each as soon as it is there.
    pub fn new(told: &'a mut dyn FnMut(&Finding)) -> Findings<'a> {
        Findings { list: Vec::new(), told }
    }

    /// All of them.
    pub fn into_list(self) -> Vec<Finding> {
        self.list
    }

    /// Does a case. A figure that is no number is beyond any bound.
    pub(crate) fn case(
        &mut self,
        part: Part,
        name: impl Into<String>,
        case: impl FnOnce() -> Result<Outcome, Error>,
    ) {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(case));
        let seconds = begun.elapsed().as_secs_f64();
        let (figure, bound, what) = match result {
            Ok(Ok(Outcome { figure, bound, what })) => (Some(figure), Some(bound), what),
            Ok(Err(error)) => (None, None, error.to_string()),
            Err(panic) => (None, None, format!("panicked: {}", message(&*panic))),
        };
        let passed = figure.zip(bound).is_some_and(|(figure, bound)| figure <= bound);
        let figure = figure.filter(|figure| figure.is_finite());
        let finding = Finding { part, name: name.into(), passed, figure, bound, what, seconds };
        (self.told)(&finding);
        self.list.push(finding);
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_an_error_and_a_panic_are_findings_that_did_not_pass() {
        let mut heard = 0;
        let mut told = |_: &Finding| heard += 1;
        let mut findings = Findings::new(&mut told);
        findings.case(Part::Ops, "in bounds", || Ok(Outcome::new(1.0, 1.0, "")));
        findings.case(Part::Ops, "beyond", || Ok(Outcome::new(1.1, 1.0, "")));
        findings.case(Part::Ops, "no number", || Ok(Outcome::new(f64::NAN, 1.0, "")));
        findings.case(Part::Ops, "an error", || Err(Error::Case("broken".into())));
        findings.case(Part::Ops, "a panic", || panic!("lost"));
        let list = findings.into_list();
        assert_eq!(heard, 5);
        assert_eq!(
            list.iter().map(|f| f.passed).collect::<Vec<_>>(),
            [true, false, false, false, false]
        );
        assert_eq!((list[3].what.as_str(), list[4].what.as_str()), ("broken", "panicked: lost"));
        assert_eq!((list[1].figure, list[2].figure), (Some(1.1), None));
    }
}
