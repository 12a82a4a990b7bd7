//! Rust source as far as the rules need it: what is code, what is comment, what is text.

/// What a character is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Code,
    Comment,
    /// Inside of a string or character literal.
    Text,
}

/// Each character of the source with its class. Newlines are code, so that lines stay lines.
pub fn classify(source: &str) -> Vec<(char, Class)> {
    let chars: Vec<char> = source.chars().collect();
    let mut classes = Vec::with_capacity(chars.len());
    let mut at = 0;
    while at < chars.len() {
        let (len, class) = token(&chars, at);
        for &c in &chars[at..at + len] {
            classes.push((c, if c == '\n' { Class::Code } else { class }));
        }
        at += len;
    }
    classes
}

/// The length of what begins at `at`, and what it is.
fn token(chars: &[char], at: usize) -> (usize, Class) {
    let starts = |text: &str| text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let after_word = at > 0 && is_word(chars[at - 1]);
    if starts("//") {
        let len = chars[at..].iter().position(|&c| c == '\n').unwrap_or(chars.len() - at);
        return (len, Class::Comment);
    }
    if starts("/*") {
        return (block_comment(&chars[at..]), Class::Comment);
    }
    if chars[at] == '"' {
        return (string(&chars[at..]), Class::Text);
    }
    if chars[at] == 'r'
        && (!after_word || chars[at - 1] == 'b')
        && let Some(len) = raw_string(&chars[at..])
    {
        return (len, Class::Text);
    }
    // A character, not a lifetime: it ends after one character, or begins with a backslash.
    if chars[at] == '\'' && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'')) {
        let from = if chars[at + 1] == '\\' { 3 } else { 2 };
        let close = chars[at + from..].iter().position(|&c| c == '\'');
        return (close.map_or(1, |close| from + close + 1), Class::Text);
    }
    (1, Class::Code)
}

fn block_comment(chars: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn string(chars: &[char]) -> usize {
    let mut at = 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The length of `r#"…"#`; none if that isn't one.
fn raw_string(chars: &[char]) -> Option<usize> {
    let hashes = chars[1..].iter().take_while(|&&c| c == '#').count();
    if chars.get(1 + hashes) != Some(&'"') {
        return None;
    }
    let from = 2 + hashes;
    let close = (from..chars.len()).find(|&at| {
        chars[at] == '"' && chars[at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes
    });
    Some(close.map_or(chars.len(), |at| at + 1 + hashes))
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// The line of its `fn`, from 1.
    pub line: usize,
    /// From there to its closing brace.
    pub lines_count: usize,
}

/// The functions of a source, those inside others too.
pub fn functions(source: &str) -> Vec<Function> {
    let code: Vec<char> = classify(source)
        .into_iter()
        .map(|(c, class)| if class == Class::Code { c } else { ' ' })
        .collect();
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let mut found = Vec::new();
    for at in 0..code.len().saturating_sub(3) {
        let starts = code[at] == 'f' && code[at + 1] == 'n' && code[at + 2] == ' ';
        if !starts || (at > 0 && is_word(&code[at - 1])) {
            continue;
        }
        let name: String = code[at + 3..].iter().take_while(|c| is_word(c)).collect();
        if let Some(end) = end_of_body(&code, at).filter(|_| !name.is_empty()) {
            let line = 1 + code[..at].iter().filter(|&&c| c == '\n').count();
            let lines_count = 1 + code[at..end].iter().filter(|&&c| c == '\n').count();
            found.push(Function { name, line, lines_count });
        }
    }
    found
}

/// Where the braces close that follow the signature at `at`; none where there is no body.
fn end_of_body(code: &[char], at: usize) -> Option<usize> {
    let mut depth = 0_i32;
    let mut is_inside = false;
    for (idx, c) in code.iter().enumerate().skip(at) {
        match c {
            ';' if depth == 0 => return None,
            '{' if depth == 0 => (is_inside, depth) = (true, 1),
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if is_inside && depth == 0 {
                    return Some(idx);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn strings_comments_and_lifetimes_do_not_mislead_the_scan() {
    let source = r##"
fn a<'a>(x: &'a str) -> [u8; 2] { /* } /* */ */
    let brace = '}'; // }
    let (text, raw) = ("\"}", r#"}"}"#);
    call(b"}", b'\'', '\u{7d}')
}
type F = fn(u8) -> u8;
trait T { fn none(&self); fn some(&self) {
    } }
"##;
    let found = functions(source);
    let shown: Vec<(&str, usize, usize)> =
        found.iter().map(|f| (f.name.as_str(), f.line, f.lines_count)).collect();
    assert_eq!(shown, [("a", 2, 5), ("some", 8, 2)]);
}
