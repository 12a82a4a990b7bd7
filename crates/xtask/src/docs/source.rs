//! Doc comments of structs and enums, read from their source.
//!
//! The tables `objective` and `rewards` are declared with serde in the crates that own them, which leaves
//! nothing of their docs at run time. A field or variant has a line of its own there, as rustfmt has it.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// A field of a struct, or a variant of an enum.
#[derive(Debug, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its type; empty for a variant.
    pub ty: String,
    /// Its doc, a line each.
    pub doc: Vec<String>,
}

/// A struct or an enum.
#[derive(Debug)]
pub struct Item {
    /// Its doc, a line each.
    pub doc: Vec<String>,
    /// Its fields or variants.
    pub members: Vec<Member>,
}

/// The source files of a crate, one after the other.
pub struct Source(String);

impl Source {
    /// Reads files of `crates/NAME/src`.
    pub fn read(name: &str, files: &[&str]) -> Result<Source> {
        let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
            .join("..")
            .join(name)
            .join("src");
        let texts: std::io::Result<Vec<String>> =
            files.iter().map(|file| fs_err::read_to_string(folder.join(file))).collect();
        Ok(Source(texts?.concat()))
    }

    /// The public struct or enum of that name.
    pub fn item(&self, name: &str) -> Result<Item> {
        let mut doc = Vec::new();
        let mut lines = self.0.lines();
        loop {
            let line =
                lines.next().with_context(|| format!("there is no struct or enum `{name}`"))?;
            if let Some(text) = doc_of(line) {
                doc.push(text);
            } else if is_head(line, name) {
                break;
            } else if !line.starts_with("#[") {
                doc.clear();
            }
        }
        let body = lines.take_while(|line| *line != "}");
        let members = members(body);
        if members.iter().any(|member| member.doc.is_empty()) {
            bail!("a member of `{name}` has no doc");
        }
        Ok(Item { doc, members })
    }

    /// The words of a serde enum with `rename_all = "snake_case"`, each with its doc.
    pub fn words(&self, name: &str) -> Result<Vec<(String, String)>> {
        let members = self.item(name)?.members;
        // Where one variant's doc speaks of another, the file knows that one by its word.
        let told = |doc: &[String]| {
            members.iter().fold(plain(doc), |text, other| {
                text.replace(
                    &format!("`{}`", other.name),
                    &format!("`{}`", snake_case(&other.name)),
                )
            })
        };
        Ok(members.iter().map(|m| (snake_case(&m.name), told(&m.doc))).collect())
    }
}

fn is_head(line: &str, name: &str) -> bool {
    let rest = ["pub struct ", "pub enum "].iter().find_map(|head| line.strip_prefix(head));
    rest.is_some_and(|rest| rest.strip_suffix(" {") == Some(name))
}

fn doc_of(line: &str) -> Option<String> {
    Some(line.trim_start().strip_prefix("///")?.trim().to_owned())
}

fn members<'a>(body: impl Iterator<Item = &'a str>) -> Vec<Member> {
    let mut members = Vec::new();
    let mut doc = Vec::new();
    for line in body {
        // What is deeper belongs to a variant with fields of its own.
        let Some(line) = line.strip_prefix("    ").filter(|line| !line.starts_with([' ', '}']))
        else {
            continue;
        };
        if let Some(text) = doc_of(line) {
            doc.push(text);
        } else if !line.starts_with("#[") {
            let line = line.trim_start_matches("pub ").trim_end_matches([',', ' ', '{']);
            let (name, ty) = line.split_once(": ").unwrap_or((line, ""));
            let (name, ty) = (name.to_owned(), ty.to_owned());
            members.push(Member { name, ty, doc: std::mem::take(&mut doc) });
        }
    }
    members
}

/// `RolloutTokenMean` as serde's `snake_case` has it.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (idx, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && idx > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// A doc in one piece, without links that lead nowhere outside of rustdoc.
pub fn plain(doc: &[String]) -> String {
    let mut text = doc.join(" ");
    let mut from = 0;
    while let Some(at) = text[from..].find("[`").map(|at| from + at) {
        let name = text[at + 2..].find('`').map(|len| at + 2 + len);
        from = at + 1;
        if let Some(end) = name.filter(|&end| text[end..].starts_with("`]")) {
            text.remove(end + 1);
            text.remove(at);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
/// Another.
pub struct Other {
    /// Not this.
    pub a: u32,
}

/// What is [`Kind`]
/// of it.
#[derive(Debug)]
pub enum Shape {
    /// First.
    #[default]
    LongName,
    /// As [`Self::x`] and `LongName`, in [`a`, `b`].
    Deep {
        /// Inside.
        length: u32,
    },
}
";

    #[test]
    fn docs_are_those_of_the_item_asked_for() {
        let source = Source(TEXT.to_owned());
        let item = source.item("Shape").unwrap();
        assert_eq!(plain(&item.doc), "What is `Kind` of it.");
        let words = source.words("Shape").unwrap();
        let shown: Vec<(&str, &str)> = words.iter().map(|(a, b)| (&**a, &**b)).collect();
        let deep = "As `Self::x` and `long_name`, in [`a`, `b`].";
        assert_eq!(shown, [("long_name", "First."), ("deep", deep)]);
        assert_eq!(source.item("Other").unwrap().members[0].ty, "u32");
        assert!(source.item("Nothing").is_err());
    }
}
