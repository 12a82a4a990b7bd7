//! The reference in `docs/`, generated from what the program itself reads, writes and prints.
//!
//! # Map
//! - [`pipeline`]: every key of a pipeline file. [`objective`]: the keys of GRPO, its presets and their
//!   formulas. [`tables`]: tables, columns, metrics and SQL functions. [`curation`]: the queries in `datasets/`.
//!   [`commands`]: the command line.
//! - [`foreign`]: tables of a file that another crate declares. [`source`]: their doc comments, which can't
//!   be had at run time.
//! - [`markdown`]: cells, anchors and wrapped lines.

mod commands;
pub mod curation;
mod foreign;
mod markdown;
mod objective;
mod pipeline;
mod source;
mod tables;

use std::path::{Path, PathBuf};

use anyhow::Result;

/// Under the title of every page.
const NOTE: &str =
    "<!-- Written by `cargo xtask docs` from the program's own declarations: change those. -->";

/// A page by its file's name.
struct Page {
    name: &'static str,
    text: String,
}

/// Writes every page into `folder`.
pub fn write(folder: &Path) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    for page in pages()? {
        fs_err::write(folder.join(page.name), page.text)?;
    }
    Ok(())
}

/// The folder of the data sets and queries that ship.
pub fn datasets() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    Path::new(&here).join("../../datasets")
}

fn pages() -> Result<Vec<Page>> {
    Ok(vec![
        Page { name: "pipeline.md", text: pipeline::page()? },
        Page { name: "objective.md", text: objective::page()? },
        Page { name: "tables.md", text: tables::page()? },
        Page { name: "curation.md", text: curation::page(&datasets())? },
        Page { name: "commands.md", text: commands::page() },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_that_of_the_code() {
        let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
            .join("../../docs");
        for page in pages().unwrap() {
            let found = fs_err::read_to_string(folder.join(page.name)).unwrap_or_default();
            let differs = page.text.lines().zip(found.lines()).find(|(want, found)| want != found);
            assert!(
                page.text == found,
                "docs/{} is not what the code says: run `cargo xtask docs`; first difference: {differs:?}",
                page.name
            );
        }
        let known: Vec<&str> = pages().unwrap().iter().map(|page| page.name).collect();
        for entry in fs_err::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                known.contains(&&*name.to_string_lossy()),
                "docs/{name:?} is written by nothing"
            );
        }
    }

    #[test]
    fn links_between_pages_and_sections_lead_somewhere() {
        let pages = pages().unwrap();
        let anchors = |text: &str| -> Vec<String> {
            let headings = text.lines().filter(|line| line.starts_with('#'));
            headings.map(|line| markdown::anchor(line.trim_start_matches(['#', ' ']))).collect()
        };
        for page in &pages {
            for target in page.text.split("](").skip(1) {
                let target = target.split(')').next().unwrap();
                let (name, anchor) = target.split_once('#').unwrap_or((target, ""));
                let name = if name.is_empty() { page.name } else { name };
                let other = pages.iter().find(|page| page.name == name);
                let other = other.unwrap_or_else(|| panic!("{}: no page {target}", page.name));
                let found = anchor.is_empty() || anchors(&other.text).iter().any(|a| a == anchor);
                assert!(found, "{}: no section {target}", page.name);
            }
        }
    }
}
