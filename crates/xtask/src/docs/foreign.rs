//! Tables of a pipeline file that another crate declares: `objective` and `rewards`.

use anyhow::{Result, ensure};

use super::markdown::table;
use super::source::{Item, Member, Source, plain};

/// Fails where the docs are of other keys than the program reads.
pub fn ensure_same(item: &Item, known: &[String]) -> Result<()> {
    let documented: Vec<&str> = item.members.iter().map(|member| member.name.as_str()).collect();
    let mut read: Vec<&str> = known.iter().map(String::as_str).collect();
    // What serde is given first to find out the others comes last or not at all.
    read.sort_by_key(|name| documented.iter().position(|known| known == name));
    ensure!(documented == read, "documented are {documented:?}, read are {read:?}");
    Ok(())
}

/// The item with the keys of `inner` in place of the field of type `ty` that holds them.
pub fn flattened(mut item: Item, ty: &str, inner: Item) -> Item {
    if let Some(idx) = item.members.iter().position(|member| member.ty == ty) {
        item.members.splice(idx..=idx, inner.members);
    }
    item
}

/// The keys of a table that another crate declares.
pub fn keys_table(item: &Item, source: &Source) -> Result<String> {
    let mut rows = Vec::new();
    for member in &item.members {
        let (value, words) = value(member, source)?;
        let mut doc = plain(&member.doc);
        for (word, meaning) in words {
            doc.push_str(&format!("<br>`{word}`: {meaning}"));
        }
        rows.push([format!("`{}`", member.name), value, doc]);
    }
    Ok(table(["key", "value", "what it does"], rows))
}

/// What a field of that type takes in the file, and the words that it chooses from.
fn value(member: &Member, source: &Source) -> Result<(String, Vec<(String, String)>)> {
    let ty = member.ty.trim_start_matches("Option<").trim_end_matches('>');
    let plain = |text: &str| Ok((text.to_owned(), Vec::new()));
    match ty {
        "f32" | "f64" => plain("a number"),
        "u32" | "u64" | "usize" => plain("a whole number"),
        "bool" => plain("true or false"),
        "String" => plain("a string"),
        "Switch" => plain("a number, or `false`"),
        "[f32; 2]" => plain("an array of two numbers"),
        "Value" => plain("a table, or JSON text"),
        ty => {
            let (ty, is_list) = match ty.strip_prefix("Vec<") {
                Some(item) => (item, true),
                None => (ty, false),
            };
            if is_list && ty == "String" {
                return plain("an array of strings");
            }
            // The variants of `AggregationName` are documented where they have their meaning.
            let words = source.words(ty.strip_suffix("Name").unwrap_or(ty))?;
            let shown: Vec<String> =
                words.iter().map(|(word, _)| format!("`\"{word}\"`")).collect();
            let each = if is_list { "an array of " } else { "" };
            Ok((format!("{each}{}", shown.join(", ")), words))
        }
    }
}
