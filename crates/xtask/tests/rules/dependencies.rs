//! Dependencies point one way, in the order of ARCHITECTURE.md.

use std::collections::BTreeMap;

use toml::{Table, Value};

use crate::map::crates;
use crate::{none, read};

/// What crates that compute must not know, directly or through others.
const ABOVE_COMPUTE: [&str; 4] = ["arrow", "parquet", "datafusion", "ractor"];
const THAT_COMPUTE: [&str; 5] =
    ["aha-compute", "aha-model", "aha-sample", "aha-learn", "aha-check"];

/// The names in a section of a crate's manifest.
fn dependencies(name: &str, section: &str) -> Vec<String> {
    let manifest: Table = read(&format!("crates/{name}/Cargo.toml")).parse().unwrap();
    let section = manifest.get(section).and_then(Value::as_table);
    section.map(|section| section.keys().cloned().collect()).unwrap_or_default()
}

/// Whether a crate is of this workspace.
fn is_ours(name: &str) -> bool {
    name == "aha" || name.starts_with("aha-")
}

#[test]
fn a_crate_depends_on_those_above_it_in_the_list() {
    let order = crates();
    let mut complaints = Vec::new();
    for (idx, name) in order.iter().enumerate() {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for other in dependencies(name, section).iter().filter(|d| is_ours(d)) {
                if !order[..idx].contains(other) {
                    complaints.push(format!("{name} must not depend on {other} ({section})"));
                }
            }
        }
    }
    none(&complaints);
}

#[test]
fn crates_that_compute_know_no_tables_no_queries_and_no_actors() {
    let lock: Table = read("Cargo.lock").parse().unwrap();
    let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let of = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        // Where there are several versions of one package, its version follows the name.
        let names = of.map(|d| d.as_str().unwrap().split(' ').next().unwrap().to_owned());
        edges.entry(name.to_owned()).or_default().extend(names);
    }
    let mut complaints = Vec::new();
    for name in THAT_COMPUTE {
        // The lock mixes in what only tests need, so a crate of ours says itself what it is built on.
        let mut reached = dependencies(name, "dependencies");
        let mut at = 0;
        while let Some(next) = reached.get(at).cloned() {
            let more = match is_ours(&next) {
                true => dependencies(&next, "dependencies"),
                false => edges[&next].clone(),
            };
            let more: Vec<String> = more.into_iter().filter(|d| !reached.contains(d)).collect();
            reached.extend(more);
            at += 1;
        }
        assert!(reached.len() > 1, "{name} depends on almost nothing, which can't be");
        let is_above = |d: &&String| {
            ABOVE_COMPUTE.iter().any(|above| *d == above || d.starts_with(&format!("{above}-")))
        };
        complaints.extend(reached.iter().filter(is_above).map(|d| format!("{name} reaches {d}")));
    }
    none(&complaints);
}
