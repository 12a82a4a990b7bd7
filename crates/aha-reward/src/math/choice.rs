//! Multiple choice: is `(B) 12` the answer `B`?

use super::lex::{self, Commas, Kind, Token};

/// Longest text that is read as a choice with its wording.
const LEN_BYTES_MAX: usize = 512;

/// Whether both name the same choice, one of them perhaps with its wording behind.
pub(super) fn is_same(gold: &str, pred: &str) -> bool {
    match (choice(gold), choice(pred)) {
        (Some(gold), Some(pred)) => gold.letter == pred.letter && (gold.is_bare || pred.is_bare),
        _ => false,
    }
}

struct Choice {
    letter: String,
    /// Whether nothing follows.
    is_bare: bool,
}

/// The choice that a text names: `B`, `(B)`, `B.`, `(B) twelve`, `Option B`. None where another choice
/// is named behind.
fn choice(text: &str) -> Option<Choice> {
    if text.len() > LEN_BYTES_MAX {
        return None;
    }
    let tokens = lex::lex(text, Commas::GroupDigits);
    let mut rest = &tokens[..];
    if let [Token { kind: Kind::Word(word), .. }, after @ ..] = rest
        && matches!(word.to_lowercase().as_str(), "option" | "choice" | "answer")
    {
        rest = after;
    }
    let is_opened = matches!(rest.first(), Some(Token { kind: Kind::Punct('('), .. }));
    rest = &rest[usize::from(is_opened)..];
    let (first, mut rest) = rest.split_first()?;
    let named = letter(first)?.to_owned();
    let mark = match rest.first() {
        Some(Token { kind: Kind::Punct(c @ (')' | '.' | ':')), .. }) => Some(*c),
        None => None,
        Some(_) => return None,
    };
    if is_opened && mark != Some(')') {
        return None;
    }
    rest = &rest[usize::from(mark.is_some())..];
    // "(A), 5" and "(A) or 5" are lists of two answers.
    let goes_on = |kind: &Kind| match kind {
        Kind::Punct(c) => matches!(c, ',' | ';' | '=' | '/' | '+' | '*' | '^' | '&' | '∪'),
        Kind::Word(word) => matches!(word.to_lowercase().as_str(), "and" | "or"),
        _ => false,
    };
    if rest.first().is_some_and(|token| goes_on(&token.kind)) {
        return None;
    }
    // "(A)(B)" and "(A) or (B)" name two.
    let names_another = rest.iter().any(|token| letter(token).is_some());
    (!names_another).then_some(Choice { letter: named, is_bare: rest.is_empty() })
}

fn letter(token: &Token) -> Option<&str> {
    match &token.kind {
        Kind::Letter(name)
            if matches!(name.as_str(), "A" | "B" | "C" | "D" | "E" | "F" | "G" | "H") =>
        {
            Some(name)
        }
        _ => None,
    }
}
