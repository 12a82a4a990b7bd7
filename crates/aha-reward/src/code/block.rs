//! The program in a completion.

use std::borrow::Cow;

use super::toolchain::Language;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Ends of a chain of thought that are looked at. A text with more of them is no program that speaks of them.
const ENDS_MAX: usize = 64;

/// Spaces before a fence, more than those before the one that it closes, that make it text of the block.
const INDENT_OF_TEXT: usize = 4;

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
    is_closed: bool,
}

impl Place<'_> {
    /// The program, or in a few words why there is none. Of several, the last that defines one of `names`;
    /// if none does, the last.
    pub fn find<'c>(&self, completion: &'c str, names: &[&str]) -> Result<Block<'c>, String> {
        let text = self.answer_part(completion.trim_start_matches(BYTE_ORDER_MARK))?;
        let fenced = fenced(text);
        let whole = if fenced.is_empty() { Some(text) } else { before_fence(text, names) };
        if let Some(text) = whole {
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

    /// What follows the chain of thought; of that, what is in the answer tag if there is one pair. A tag in a
    /// block is text of the program.
    fn answer_part<'c>(&self, completion: &'c str) -> Result<&'c str, String> {
        let (open, close) = (format!("<{}>", self.think_tag), format!("</{}>", self.think_tag));
        let is_open = completion.find(&open).filter(|at| !is_in_block(completion, *at));
        let rest = match after_thought(completion, is_open, &close) {
            Some(rest) => rest,
            None if is_open.is_some() => return Err(format!("{open} is not closed")),
            None => completion,
        };
        let tag_at = rest.find(&format!("<{}>", self.answer_tag));
        let is_text = tag_at.is_some_and(|at| is_in_block(rest, at));
        let tagged = crate::extract::extract_tag(rest, self.answer_tag).filter(|_| !is_text);
        Ok(tagged.unwrap_or(rest))
    }
}

/// What follows the last end of a chain of thought.
fn after_thought<'a>(text: &'a str, open_at: Option<usize>, close: &str) -> Option<&'a str> {
    if text.matches(close).count() > ENDS_MAX {
        return text.rfind(close).map(|at| &text[at + close.len()..]);
    }
    let (mut rest, mut from, mut found) = (text, 0, None);
    while let Some(at) = rest[from..].find(close).map(|at| from + at) {
        let end = at + close.len();
        // Blocks in a chain of thought may lack fences, so that the first end seems to be in one.
        let is_quoted = rest[..at].ends_with(['\'', '"']) || rest[end..].starts_with(['\'', '"']);
        let is_first = found.is_none() && (!is_quoted || open_at.is_some_and(|open| open < at));
        if !is_first && is_in_block(rest, at) {
            from = end;
        } else {
            (rest, from) = (&rest[end..], 0);
            found = Some(rest);
        }
    }
    found
}

/// Whether what is there is clearly text of a block: one that is closed, in a line that doesn't start with it.
fn is_in_block(text: &str, at: usize) -> bool {
    let line = text[..at].rsplit('\n').next().unwrap_or("");
    let has_fence = |code: &str| code.lines().any(|line| fence(line).is_some());
    let holds = |block: &Fenced<'_>| {
        let start = block.code.as_ptr() as usize - text.as_ptr() as usize;
        (start..start + block.code.len()).contains(&at) && block.is_closed
    };
    !line.trim().is_empty()
        && fenced(text).iter().any(|block| holds(block) && !has_fence(block.code))
}

/// The program before a fence that closes what the text doesn't open, as where the prompt does that; and a
/// program without a fence of its own that has some in its texts.
fn before_fence<'a>(text: &'a str, names: &[&str]) -> Option<&'a str> {
    let (mut at, mut first) = (0, None);
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let Some((_, _, rest)) = fence(line) else { continue };
        first = first.or(Some(start));
        if columns(indent(line)) >= INDENT_OF_TEXT {
            continue;
        }
        let (before, after) = (&text[..start], &text[at..]);
        let is_last = || !after.lines().any(|line| fence(line).is_some());
        let is_program = || after.trim().is_empty() || is_like_code(before);
        let is_closing = rest.is_empty()
            && !before.trim().is_empty()
            && (defines_any(before, names)
                || is_last() && !defines_any(after, names) && is_program());
        return is_closing.then_some(before);
    }
    first.filter(|at| defines_any(&text[..*at], names)).map(|_| text)
}

/// Whether a text looks like a program rather than like words about one.
fn is_like_code(text: &str) -> bool {
    const STARTS: [&str; 10] =
        [" ", "\t", "import ", "from ", "def ", "class ", "#include", "using ", "use std::", "fn "];
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or("");
    let last = lines.next_back().unwrap_or(first).trim_end();
    let is_statement = first.contains(" = ") || first.trim_end().ends_with([')', ';', '{']);
    STARTS.iter().any(|start| first.starts_with(start)) || is_statement && !last.ends_with(':')
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
        return fenced.code.trim_start_matches(BYTE_ORDER_MARK).into();
    }
    fenced.code.split_inclusive('\n').map(|line| &line[shared(line).min(most)..]).collect()
}

/// Whether a line defines a function or class of one of the names.
fn defines_any(code: &str, names: &[&str]) -> bool {
    code.trim_start_matches(BYTE_ORDER_MARK).lines().any(|line| {
        let rest = line.strip_prefix("async ").unwrap_or(line);
        let rest = rest.strip_prefix("def ").or_else(|| rest.strip_prefix("class "));
        let is_lambda = |line: &str| {
            line.split_once('=').is_some_and(|(_, value)| value.trim_start().starts_with("lambda"))
        };
        rest.or_else(|| Some(line).filter(|line| is_lambda(line))).is_some_and(|rest| {
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
                let label = rest.trim_start_matches(['{', '.', ' ']);
                let label = label.split([' ', '{', '}', ',', '\t', ':']).next().unwrap_or("");
                let (indent, code) = (indent(line), &text[at..]);
                open = Some((mark, len, Fenced { label, indent, code, is_closed: false }));
            }
            Some((open_mark, open_len, block)) => {
                let is_text = columns(indent(line)) >= columns(block.indent) + INDENT_OF_TEXT;
                if mark == open_mark && len >= open_len && rest.is_empty() && !is_text {
                    let code_len = block.code.len() - (text.len() - start);
                    let code = &block.code[..code_len];
                    blocks.push(Fenced { code, is_closed: true, ..block });
                } else {
                    open = Some((open_mark, open_len, block));
                }
            }
        }
    }
    blocks.extend(open.map(|(_, _, block)| block));
    blocks
}

/// The blanks before a line.
fn indent(line: &str) -> &str {
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}

/// How far blanks indent, a tab to the next multiple of 4.
fn columns(blanks: &str) -> usize {
    blanks.bytes().fold(0, |at, blank| if blank == b'\t' { at / 4 * 4 + 4 } else { at + 1 })
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
    fn a_fence_in_a_text_of_the_program_closes_nothing() {
        let docs = "def f(x):\n    \"\"\"\n    ```\n    f(1)\n    ```\n    \"\"\"\n    return x\n";
        let fenced = format!("```python\n{docs}```\nIt works.");
        assert_eq!(found(&fenced, None, &["f"]), format!("python|{docs}"));
        let listed = "1. So:\n    ```python\n    a\n    ```\n";
        assert_eq!(found(listed, None, &[]), "python|a\n");
        let nested = "  ```python\n  a\n      ```\n  b\n  ```";
        assert_eq!(found(nested, None, &[]), "python|a\n    ```\nb\n");
        assert_eq!(found(docs, None, &["f"]), format!("python|{}", docs.trim_end()));
    }

    #[test]
    fn a_closing_fence_alone_ends_the_program() {
        let cases = [
            ("def f(x):\n    return x+1\n```\nThis works.", "python|def f(x):\n    return x+1"),
            ("f = lambda x: x\n```\nSo:\n```python\nf(1)\n```", "python|f = lambda x: x"),
            ("    return x+1\n```\nThis works.", "python|    return x+1"),
            ("a = input()\nprint(a)\n```\nThis works.", "python|a = input()\nprint(a)"),
            ("print(1)\n```", "python|print(1)"),
            ("Here is the code:\n```\nprint(1)", "python|print(1)"),
            ("Here is f:\n```\ndef f(x): 1", "python|def f(x): 1"),
            ("A = 1 (so):\n```\na\n```", "python|a\n"),
        ];
        for (completion, want) in cases {
            assert_eq!(found(completion, None, &["f"]), want, "{completion}");
        }
    }

    #[test]
    fn tags_in_a_block_are_text_of_the_program() {
        let program = "```python\nprint('<think>', '</think>', '<answer>b</answer>')\n```";
        let code = "python|print('<think>', '</think>', '<answer>b</answer>')\n";
        assert_eq!(found(program, None, &[]), code);
        assert_eq!(found(&format!("<think>a</think>\n{program}"), None, &[]), code);
        assert_eq!(found(&format!("a\n</think>\n{program}"), None, &[]), code);
        let draft = "<think>```\na\n``` or\nb</think>\n```\nc\n```";
        assert_eq!(found(draft, None, &[]), "python|c\n");
        let unclosed = "So:\n```python\na</think>\n```python\nb\n```";
        assert_eq!(found(unclosed, None, &[]), "python|b\n");
        let many = format!("{}b", "a</think>".repeat(100));
        assert_eq!(found(&many, None, &[]), "python|b");
    }

    #[test]
    fn labels_may_give_a_version_or_stand_in_braces() {
        for (label, want) in [
            ("python3.11", "python"),
            ("Python 3", "python"),
            ("{.python .numberLines}", "python"),
            ("{python}", "python"),
            ("c++17", "cpp"),
            ("cpp17", "cpp"),
            ("c++20", "cpp"),
            ("c11", "c"),
            ("{.rust}", "rust"),
        ] {
            let text = format!("```text\nb\n```\n```{label}\na\n```");
            assert_eq!(found(&text, None, &[]), format!("{want}|a\n"), "{label}");
        }
        assert_eq!(found("\u{feff}a = 1", None, &[]), "python|a = 1");
        assert_eq!(found("\u{feff}```\n\u{feff}a\n```", None, &[]), "python|a\n");
    }

    #[test]
    fn a_block_that_defines_what_is_tested_goes_before_one_that_uses_it() {
        let completion = "```python\ndef f(x):\n  pass\n```\nUse it:\n```python\nprint(f(1))\n```";
        assert_eq!(found(completion, None, &["f"]), "python|def f(x):\n  pass\n");
        assert_eq!(found(completion, None, &["g"]), "python|print(f(1))\n");
        let short = "```\nf = lambda x: x+1\n```\n```\nprint(f(1))\n```";
        assert_eq!(found(short, None, &["f"]), "python|f = lambda x: x+1\n");
        let twice = "```python\ndef f(): 1\n```\n```python\ndef f(): 2\n```";
        assert_eq!(found(twice, None, &["f"]), "python|def f(): 2\n");
    }
}
