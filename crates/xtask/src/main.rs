//! Chores of this repository.
//!
//! `cargo run --release -p xtask -- datasets [FOLDER]` writes the data sets of the quickstart again; the
//! same version writes the same bytes.

mod quickstart;

use std::path::PathBuf;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["datasets"] => quickstart::write(&PathBuf::from("datasets")),
        ["datasets", folder] => quickstart::write(&PathBuf::from(folder)),
        _ => bail!("usage: xtask datasets [FOLDER]"),
    }
}
