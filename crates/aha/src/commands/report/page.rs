//! The page: one HTML file with its styles, its script and its data.
//!
//! # Safety of the page
//! Its data hold what models wrote. They are JSON in a data block in which `<`, `>` and `&` are escaped, so no
//! text can end the block; the script sets texts as text and never as markup. Should either fail, the policy
//! lets nothing run, load or be sent but the one script and the one style sheet whose digests it names.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::curves::{self, Line};
use super::facts::Facts;
use super::{Report, browser, moments};
use crate::text;

const STYLE: &str = concat!(include_str!("page/theme.css"), include_str!("page/page.css"));
/// One script, in the order in which its parts need each other; a block keeps their names to themselves.
const SCRIPT: &str = concat!(
    "\"use strict\";\n{\n",
    include_str!("page/elements.js"),
    include_str!("page/numbers.js"),
    include_str!("page/stages.js"),
    include_str!("page/charts.js"),
    include_str!("page/results.js"),
    include_str!("page/figures.js"),
    include_str!("page/panels.js"),
    include_str!("page/scaling.js"),
    include_str!("page/moments.js"),
    include_str!("page/browser.js"),
    include_str!("page/main.js"),
    "}\n",
);

/// What the script draws.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    curves: Vec<Curves<'a>>,
    docs: BTreeMap<&'static str, &'static str>,
    moments: &'a [moments::Stage],
    reflections: &'static [&'static str],
    browser: &'a browser::Browser,
    made_by: &'static str,
}

#[derive(Serialize)]
struct Curves<'a> {
    stage: &'a str,
    kind: &'a str,
    lines: BTreeMap<&'a str, Line>,
}

/// The page as it is written to its file.
pub fn html(report: &Report) -> anyhow::Result<String> {
    let lines_count = report.curves.iter().map(|found| found.series.len()).sum();
    let curves = report.curves.iter().map(|found| {
        let lines = found.series.iter();
        let lines = lines.map(|(name, of)| (name.as_str(), Line::of(of, lines_count))).collect();
        Curves { stage: &found.stage, kind: &found.kind, lines }
    });
    let data = Data {
        facts: &report.facts,
        curves: curves.collect(),
        docs: curves::docs(),
        moments: &report.moments,
        reflections: aha_reward::text::REFLECTIONS,
        browser: &report.browser,
        made_by: concat!("aha ", env!("CARGO_PKG_VERSION")),
    };
    let json = serde_json::to_string(&data).context("the page's data have no JSON")?;
    Ok(assemble(&report.facts.about.name, &json))
}

fn assemble(name: &str, json: &str) -> String {
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; base-uri 'none'; form-action 'none'",
        digest(STYLE),
        digest(SCRIPT)
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} · aha report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <noscript>This page is drawn by a script that is part of it; allow scripts to see it.</noscript>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n",
        title = escaped(name),
        data = inert(json),
    )
}

/// A text between tags.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// JSON that a script element can hold, whatever its strings say. Outside of strings JSON has none of these
/// characters. What is hidden, and could turn the direction of a text around, is spelled out for the reader.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c if text::is_hidden(c) => {
                out.push('\\');
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}

/// A source of a content security policy: the digest of what is between the tags.
fn digest(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text.as_bytes())))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0, |word, i| (word << 8) | usize::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let is_padding = i > chunk.len();
            let digit = ALPHABET[(word >> (18 - 6 * i)) & 63];
            out.push(if is_padding { '=' } else { char::from(digit) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures of several kinds of stage: their panels stand before those of the kinds.
    const SHARED: [&str; 6] =
        ["grad_norm", "lr", "tokens_per_second", "held_out_accuracy", "held_out_loss", "accuracy"];

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (text, expected) in cases {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn no_text_ends_the_data() {
        let hostile = "</script><script>alert(1)</script><!--\u{2028}&amp;";
        let json = serde_json::to_string(hostile).unwrap();
        let page = assemble("</title><script>alert(2)</script>", &json);
        assert!(!page.contains("alert(1)</") && !page.contains("<script>alert"), "{page}");
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script>").count(), 2);
        let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
        assert_eq!(serde_json::from_str::<String>(data).unwrap(), hostile);
        assert!(!data.contains(['<', '>', '&', '\u{2028}']), "{data}");
    }

    #[test]
    fn what_is_hidden_is_spelled_out() {
        let json = serde_json::to_string("a\u{202e}b\u{9b}").unwrap();
        let shown: String = serde_json::from_str(&inert(&json)).unwrap();
        assert_eq!(shown, "a\\u{202e}b\\u{9b}");
    }

    /// What is between the tags is what the digests are of, and none of it ends an element.
    #[test]
    fn the_policy_names_the_script_and_the_styles_and_nothing_else() {
        assert!(!SCRIPT.contains("</") && !SCRIPT.contains("<!--"));
        assert!(!STYLE.contains("</"));
        let page = assemble("run", "{}");
        let between = |open: &str, close: &str| {
            page.split(open).nth(1).unwrap().split(close).next().unwrap().to_owned()
        };
        let policy = between("content=\"", "\"");
        let script = between("</script>\n<script>", "</script>");
        let style = between("<style>", "</style>");
        let expected = format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; base-uri 'none'; form-action 'none'",
            digest(&style),
            digest(&script)
        );
        assert_eq!(policy, expected);
    }

    /// Goal: no measure of a run is shown without a title and a unit. Method: the script names each of them, or what
    /// it begins with, among its panels.
    #[test]
    fn every_measure_has_a_figure_of_its_own() {
        let panels = include_str!("page/figures.js").split("const panels = {").nth(1).unwrap();
        let missing = curves::docs().into_keys().filter(|name| {
            let (prefix, is_many) =
                name.strip_suffix("NAME").map_or((*name, false), |prefix| (prefix, true));
            let shown =
                if is_many { format!("prefix: \"{prefix}\"") } else { format!("\"{prefix}\"") };
            !panels.contains(&shown) && !SHARED.contains(name)
        });
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
        for name in SHARED {
            assert!(SCRIPT.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    /// The script has no way to make markup of a text, or code; nor does it, or a style, load anything.
    #[test]
    fn the_script_sets_texts_as_texts() {
        let of_script = [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "Function(",
            "DOMParser",
            "srcdoc",
            "fetch(",
            "XMLHttp",
            "import(",
            "setTimeout(\"",
        ];
        for word in of_script {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        for word in ["url(", "@import"] {
            assert!(!STYLE.contains(word), "{word}");
        }
    }
}
