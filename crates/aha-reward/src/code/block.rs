//! The program in a completion.

use std::borrow::Cow;

use super::toolchain::Language;

/// Where programs are looked for.
pub struct Place<'a> {
    pub think_tag: &'a str,
    pub answer_tag: &'a str,
    /// The language that it must be in; none for what the block says.
    pub language: Option<Language>,
}

/// A program.
#[derive(Debug, PartialEq)]
pub struct Block<'a> {
    pub language: Language,
    pub code: Cow<'a, str>,
}

/// A fenced block with the first word of what its fence says.
struct Fenced<'a> {
    label: &'a str,
    /// The spaces before its fence.
    indent: &'a str,
    code: &'a str,
}

impl Place<'_> {
    /// The program, or in a few words why there is none. Of several, the last that defines one of `names`;
    /// if none does, the last.
    pub fn find<'c>(&self, completion: &'c str, names: &[&str]) -> Result<Block<'c>, String> {
        let text = self.answer_part(completion)?;
        let fenced = fenced(text);
        if fenced.is_empty() {
            let language = self.language.unwrap_or(Language::Python);
            return match text.trim().is_empty() {
                true => Err("there is no program".to_owned()),
                false => Ok(Block { language, code: text.trim_matches('\n').into() }),
            };
        }
        let blocks: Vec<Block<'c>> = fenced.iter().filter_map(|f| self.block(f)).collect();
        let defining = blocks.iter().rposition(|block| defines_any(&block.code, names));
        let chosen = defining.or(blocks.len().checked_sub(1));
        let found = blocks.into_iter().nth(chosen.unwrap_or(usize::MAX));
        found.ok_or_else(|| match self.language {
            Some(language) => format!("no block of code is {language}"),
            None => "no block of code is in a known language".to_owned(),
        })
    }

    fn block<'c>(&self, fenced: &Fenced<'c>) -> Option<Block<'c>> {
        let language = match (fenced.label, self.language) {
            ("", language) => language.unwrap_or(Language::Python),
            (label, None) => Language::from_label(label)?,
            (label, Some(language)) => Language::from_label(label).filter(|l| *l == language)?,
        };
        Some(Block { language, code: without_indent(fenced) })
    }

    /// What follows the chain of thought; of that, what is in the answer tag if there is one pair.
    fn answer_part<'c>(&self, completion: &'c str) -> Result<&'c str, String> {
        let (open, close) = (format!("<{}>", self.think_tag), format!("</{}>", self.think_tag));
        let rest = match completion.rfind(&close) {
            Some(at) => &completion[at + close.len()..],
            None if completion.contains(&open) => return Err(format!("{open} is not closed")),
            None => completion,
        };
        Ok(crate::extract::extract_tag(rest, self.answer_tag).unwrap_or(rest))
    }
}

/// The code without its fence's indent, as in an item of a list. A first line with less of it says that the
/// other lines have less as well.
fn without_indent<'a>(fenced: &Fenced<'a>) -> Cow<'a, str> {
    // An indent is of spaces and tabs, so no character is cut.
    let shared = |line: &str| {
        let same = line.bytes().zip(fenced.indent.bytes()).take_while(|(a, b)| a == b);
        same.count()
    };
    let first = fenced.code.lines().find(|line| !line.trim().is_empty());
    let most = first.map_or(0, shared);
    if most == 0 {
        return fenced.code.into();
    }
    fenced.code.split_inclusive('\n').map(|line| &line[shared(line).min(most)..]).collect()
}

/// Whether a line defines one of the names.
fn defines_any(code: &str, names: &[&str]) -> bool {
    code.lines().any(|line| {
        let rest = line.strip_prefix("async ").unwrap_or(line);
        let rest = rest.strip_prefix("def ").or_else(|| rest.strip_prefix("class "));
        rest.is_some_and(|rest| {
            let name = rest.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next();
            name.is_some_and(|name| names.contains(&name))
        })
    })
}

/// The blocks between fences of three or more backticks or tildes. The last one may lack its closing fence.
fn fenced(text: &str) -> Vec<Fenced<'_>> {
    let mut blocks = Vec::new();
    // The open fence: its character, its length, and its block as far as the text goes.
    let mut open: Option<(char, usize, Fenced<'_>)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let Some((mark, len, rest)) = fence(line) else { continue };
        match open.take() {
            None => {
                let label = rest.split([' ', '{', ',', '\t', ':']).next().unwrap_or("");
                let indent = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
                open = Some((mark, len, Fenced { label, indent, code: &text[at..] }));
            }
            Some((open_mark, open_len, block)) => {
                if mark == open_mark && len >= open_len && rest.is_empty() {
                    let code_len = block.code.len() - (text.len() - start);
                    blocks.push(Fenced { code: &block.code[..code_len], ..block });
                } else {
                    open = Some((open_mark, open_len, block));
                }
            }
        }
    }
    blocks.extend(open.map(|(_, _, block)| block));
    blocks
}

/// A line that is a fence: its character, how many of it, and the rest of the line.
fn fence(line: &str) -> Option<(char, usize, &str)> {
    let line = line.trim();
    let mark = line.chars().next().filter(|c| *c == '`' || *c == '~')?;
    let len = line.chars().take_while(|c| *c == mark).count();
    let rest = line[len..].trim();
    (len >= 3 && !rest.contains('`')).then_some((mark, len, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(completion: &str, language: Option<Language>, names: &[&str]) -> String {
        let place = Place { think_tag: "think", answer_tag: "answer", language };
        match place.find(completion, names) {
            Ok(block) => format!("{}|{}", block.language, block.code),
            Err(reason) => reason,
        }
    }

    #[test]
    fn the_last_block_in_the_right_language_is_the_program() {
        let cases = [
            ("a = 1", "python|a = 1"),
            ("\n  return 1\n", "python|  return 1"),
            ("```python\na\n```", "python|a\n"),
            ("```\na\n```\nthen\n```py\nb\n```", "python|b\n"),
            ("```python\na\n```\nIt prints:\n```text\n1\n```", "python|a\n"),
            ("```python\na\n", "python|a\n"),
            ("````python\n```\n````", "python|```\n"),
            ("~~~cpp\nx\n~~~", "cpp|x\n"),
            ("```c++\nx\n```", "cpp|x\n"),
            ("```rust,ignore\nx\n```", "rust|x\n"),
            ("   ```C\nx\n   ```", "c|x\n"),
            ("```python:main.py\na\n```", "python|a\n"),
            (
                "1. Code:\n   ```python\n   if a:\n\n       b\n   c = \"\"\"\nd\"\"\"\n   ```",
                "python|if a:\n\n    b\nc = \"\"\"\nd\"\"\"\n",
            ),
            ("  ```python\nif a:\n  b\n  ```", "python|if a:\n  b\n"),
            ("\t```python\n\ta\n\t```", "python|a\n"),
            ("```text\n1\n```", "no block of code is in a known language"),
            ("<think>```python\na\n```</think>\n```python\nb\n```", "python|b\n"),
            ("<think>```python\na\n```", "<think> is not closed"),
            ("<think>a</think><answer>\n```python\nb\n```\n</answer> ```x```", "python|b\n"),
            ("<answer>b = 1</answer>", "python|b = 1"),
            ("<think>a</think>", "there is no program"),
            ("", "there is no program"),
        ];
        for (completion, want) in cases {
            assert_eq!(found(completion, None, &[]), want, "{completion}");
        }
        let rust = Some(Language::Rust);
        assert_eq!(found("```python\na\n```", rust, &[]), "no block of code is rust");
        assert_eq!(found("```\na\n```", rust, &[]), "rust|a\n");
    }

    #[test]
    fn a_block_that_defines_what_is_tested_goes_before_one_that_uses_it() {
        let completion = "```python\ndef f(x):\n  pass\n```\nUse it:\n```python\nprint(f(1))\n```";
        assert_eq!(found(completion, None, &["f"]), "python|def f(x):\n  pass\n");
        assert_eq!(found(completion, None, &["g"]), "python|print(f(1))\n");
        let twice = "```python\ndef f(): 1\n```\n```python\ndef f(): 2\n```";
        assert_eq!(found(twice, None, &["f"]), "python|def f(): 2\n");
    }
}
