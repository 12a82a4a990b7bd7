//! Tokens as text, while they come: whole characters, without the text that ends a completion.

use std::sync::Arc;

use aha_model::Tokenizer;

/// What stands for bytes that are no character, or not yet one.
const UNFINISHED: char = '\u{fffd}';

/// Reads a completion's tokens.
pub struct Reader {
    tokenizer: Arc<Tokenizer>,
    ids: Vec<u32>,
    /// Tokens before this one are read. Those from `context` on are read again, as a token's text may depend on the one
    /// before.
    read: usize,
    context: usize,
    end: Ending,
}

impl Reader {
    /// Reads by `tokenizer`, up to one of `stop`.
    pub fn new(tokenizer: Arc<Tokenizer>, stop: Vec<String>) -> Reader {
        Reader { tokenizer, ids: Vec::new(), read: 0, context: 0, end: Ending::new(stop) }
    }

    /// Takes a token, and gives the text that is certain now.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.fresh();
        if text.ends_with(UNFINISHED) {
            return String::new();
        }
        self.is_read();
        self.end.push(&text)
    }

    /// The rest, when no token comes any more.
    pub fn finish(&mut self) -> String {
        let text = self.fresh();
        self.is_read();
        let mut rest = self.end.push(&text);
        rest.push_str(&self.end.finish());
        rest
    }

    /// The text of tokens that aren't read yet.
    fn fresh(&self) -> String {
        let before = self.decode(&self.ids[self.context..self.read]);
        let all = self.decode(&self.ids[self.context..]);
        all.strip_prefix(&before).map(str::to_owned).unwrap_or(all)
    }

    fn is_read(&mut self) {
        (self.context, self.read) = (self.read, self.ids.len());
    }

    /// A token that the tokenizer doesn't know has no text.
    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }
}

/// Holds text back that may be the beginning of the one that ends a completion.
struct Ending {
    stop: Vec<String>,
    held: String,
    is_over: bool,
}

impl Ending {
    fn new(stop: Vec<String>) -> Ending {
        Ending { stop, held: String::new(), is_over: false }
    }

    fn push(&mut self, text: &str) -> String {
        if self.is_over {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.is_over = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keeps = |at: &usize| self.stop.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(keeps);
        let rest = self.held.split_off(at.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use aha_model::tokenizer_train::{Alphabet, TrainOptions, train};

    use super::*;

    #[test]
    fn what_may_end_a_completion_is_held_back() {
        let read = |pieces: &[&str]| {
            let mut ending = Ending::new(vec!["</a>".into(), "\n\n".into()]);
            let mut out: Vec<String> = pieces.iter().map(|piece| ending.push(piece)).collect();
            out.push(ending.finish());
            out
        };
        assert_eq!(read(&["4 <", "/a", "> more"]), ["4 ", "", "", ""]);
        assert_eq!(read(&["4 <", "b", "\n", "x"]), ["4 ", "<b", "", "\nx", ""]);
        assert_eq!(read(&["x</"]), ["x", "</"]);
        assert_eq!(read(&["a\n\nb</a>"]), ["a", ""]);
    }

    #[test]
    fn characters_of_several_tokens_come_whole() {
        let options =
            TrainOptions { vocab_size: 257, alphabet: Alphabet::Full, ..TrainOptions::default() };
        let tokenizer = Arc::new(train(["a"], &options).unwrap());
        let text = "é: 等 ok";
        let ids = tokenizer.encode(text, false).unwrap();
        assert!(ids.len() > text.chars().count());
        let mut reader = Reader::new(Arc::clone(&tokenizer), Vec::new());
        let pieces: Vec<String> = ids.iter().map(|id| reader.push(*id)).collect();
        assert_eq!(pieces.concat() + &reader.finish(), text);
        assert!(pieces.iter().all(|piece| !piece.contains(UNFINISHED)));
        let mut cut = Reader::new(tokenizer, Vec::new());
        assert_eq!(cut.push(ids[0]), "");
        assert_eq!(cut.finish(), "\u{fffd}", "what is cut off is shown as such");
    }
}
