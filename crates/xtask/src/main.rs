//! Chores of this repository. What they write is checked in, and a test holds it against them.
//!
//! # Map
//! - `cargo xtask datasets` writes the data sets of the miniatures again; the same version writes the
//!   same bytes: `quickstart`, and `languages` for `language-consistency.toml`.
//! - `cargo xtask docs` writes the reference in `docs/`: `docs`.
//! - `cargo xtask planted ROWS FOLDER` writes rows with known duplicates to measure curation with: `planted`.
//! - The house rules that a test can know are in `tests/rules/`.
//!
//! `cargo xtask` is short for `cargo run --release -p xtask --`; start it in the repository's root.

mod docs;
mod languages;
mod planted;
mod quickstart;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["datasets"] => quickstart::write(Path::new("datasets")),
        ["datasets", folder] => quickstart::write(Path::new(folder)),
        ["docs"] => docs::write(Path::new("docs")),
        ["docs", folder] => docs::write(Path::new(folder)),
        ["planted", rows, folder] => planted::write(rows.parse()?, Path::new(folder)),
        _ => bail!("usage: cargo xtask datasets|docs [FOLDER], or cargo xtask planted ROWS FOLDER"),
    }
}
