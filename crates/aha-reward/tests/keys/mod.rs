//! Every key that a kind of reward has of its own does something: with another value of it a completion has another
//! score, and both are known.

use std::collections::BTreeSet;

use aha_reward::{Backends, Composite, Kind, OnNull, Sample, Spec};
use serde_json::{Map, Value, json};

/// What a reward with a key makes of a completion: a score or none, or the key that it is refused for.
pub type Outcome = Result<Option<f32>, &'static str>;

/// A key with a value that isn't its default.
#[derive(Clone)]
pub struct Case<'a> {
    pub kind: Kind,
    pub key: &'static str,
    pub value: Value,
    /// What else is set, with and without it.
    pub within: Value,
    pub sample: Sample<'a>,
    pub without: Outcome,
    pub with: Outcome,
}

/// Fails for a key of the kinds that has no case, and for a case of none. Those in `elsewhere` have tests of their own.
pub fn check_keys(kinds: &[Kind], cases: &[Case<'_>], elsewhere: &[(Kind, &str)]) {
    for &kind in kinds {
        let cased = cases.iter().filter(|case| case.kind == kind).map(|case| case.key);
        let others = elsewhere.iter().filter(|(of, _)| *of == kind).map(|(_, key)| *key);
        let cased: BTreeSet<&str> = cased.chain(others).collect();
        let common = ["kind", "name", "weight", "clip", "gate", "on_null", "sources"];
        let own = Spec::key_names(kind);
        let own = own.iter().map(String::as_str).filter(|key| !common.contains(key));
        assert_eq!(own.collect::<BTreeSet<&str>>(), cased, "{kind}");
    }
}

/// Fails for a case whose scores are others.
pub fn check_cases(cases: &[Case<'_>], backends: &dyn Backends) {
    let mut complaints = Vec::new();
    for case in cases {
        let mut settings = case.within.as_object().cloned().unwrap_or_default();
        let without = outcome(case.kind, settings.clone(), &case.sample, backends);
        settings.insert(case.key.to_owned(), case.value.clone());
        let with = outcome(case.kind, settings, &case.sample, backends);
        for (found, want) in [(without, &case.without), (with, &case.with)] {
            let (name, value) = (case.key, &case.value);
            let is_wanted = match (&found, want) {
                (Ok(Some(found)), Ok(Some(want))) => (found - want).abs() < 1e-6,
                (Ok(None), Ok(None)) => true,
                (Err(key), Err(want)) => key == want,
                _ => false,
            };
            if !is_wanted {
                complaints
                    .push(format!("{} {name}={value}: {found:?}, expected {want:?}", case.kind));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The score, behind two rewards that others can be built on: `right` finds every completion right, `wrong` none.
fn outcome(
    kind: Kind,
    mut settings: Map<String, Value>,
    sample: &Sample<'_>,
    backends: &dyn Backends,
) -> Result<Option<f32>, String> {
    settings.insert("kind".to_owned(), json!(kind.name()));
    settings.insert("name".to_owned(), json!("it"));
    let specs = [
        json!({"kind": "regex", "name": "right", "pattern": ""}),
        json!({"kind": "regex", "name": "wrong", "pattern": "[^\\s\\S]"}),
        Value::Object(settings),
    ];
    let specs = specs.map(|spec| serde_json::from_value::<Spec>(spec).unwrap());
    match Composite::new(&specs, OnNull::Drop, None, backends) {
        Ok(composite) => Ok(composite.score(sample).parts[2]),
        Err(problems) => Err(problems[0].1.key.clone()),
    }
}
