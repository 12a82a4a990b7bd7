//! `{% generation %}`, transformers' tag around what the assistant has to write.
//!
//! minijinja has no custom tags, so the tag becomes a call block, which has the same scope, of a
//! function that puts marks around its body's text. The marks are found and removed afterwards.

use std::ops::Range;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, State, Value};

use crate::error::{Error, Result};

/// The variable that holds the two marks of a rendering.
pub(super) const MARKS: &str = "__generation_marks";
const FUNCTION: &str = "__generation";

/// Replaces the tags; the flag says whether there were any.
pub(super) fn translate(source: &str) -> (String, bool) {
    let (mut out, mut has_tags) = (String::with_capacity(source.len()), false);
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, after_tag)) = after.split_once("%}") else {
            rest = after;
            continue;
        };
        let name = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => format!(" call {FUNCTION}() "),
            "endgeneration" => " endcall ".to_owned(),
            _ => {
                rest = after;
                continue;
            }
        };
        has_tags = true;
        out.extend(tag.chars().next().filter(|c| "-+".contains(*c)));
        out.push_str(&replacement);
        out.extend(tag.chars().last().filter(|c| "-+".contains(*c)));
        out.push_str("%}");
        rest = after_tag;
    }
    out.push_str(rest);
    (out, has_tags)
}

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function(FUNCTION, |state: &mut State, kwargs: Kwargs| {
        let caller: Value = kwargs.get("caller")?;
        let body = caller.call(state, &[])?;
        let marks = state.lookup(MARKS).unwrap_or_default();
        let marks = marks.as_str().and_then(|marks| marks.split_once(' '));
        let (open, close) =
            marks.ok_or_else(|| minijinja::Error::new(ErrorKind::InvalidOperation, "no marks"))?;
        Ok::<_, minijinja::Error>(Value::from(format!("{open}{body}{close}")))
    });
}

/// Two characters that no text of this rendering contains.
pub(super) struct Marks {
    open: char,
    close: char,
}

impl Marks {
    /// Unicode reserves 32 noncharacters for such use; a text that holds almost all is refused.
    pub fn absent_from<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Result<Self> {
        let mut free = ('\u{FDD0}'..='\u{FDEF}')
            .filter(|mark| !texts.clone().any(|text| text.contains(*mark)));
        match (free.next(), free.next()) {
            (Some(open), Some(close)) => Ok(Marks { open, close }),
            _ => Err(Error::input("the conversation is made of Unicode noncharacters")),
        }
    }

    pub fn value(&self) -> Value {
        Value::from(format!("{} {}", self.open, self.close))
    }

    /// Removes the marks and returns the text between them as ranges of what is left.
    pub fn extract(&self, marked: &str) -> Result<(String, Vec<Range<usize>>)> {
        let (mut text, mut spans) = (String::with_capacity(marked.len()), Vec::new());
        let mut start = None;
        for c in marked.chars() {
            if c == self.open && start.is_none() {
                start = Some(text.len());
            } else if c == self.close && start.is_some() {
                spans.extend(start.take().map(|start| start..text.len()));
            } else if c == self.open || c == self.close {
                return Err(Error::input("the chat template's generation blocks are not balanced"));
            } else {
                text.push(c);
            }
        }
        if start.is_some() {
            return Err(Error::input("a generation block of the chat template is not closed"));
        }
        Ok((text, spans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_white_space_control() {
        let (out, has_tags) = translate("a{%- generation %}b{% x %}{%endgeneration-%}c{%");
        assert_eq!(out, "a{%- call __generation() %}b{% x %}{% endcall -%}c{%");
        assert!(has_tags);
        assert_eq!(translate("{% if generation %}"), ("{% if generation %}".into(), false));
    }
}
