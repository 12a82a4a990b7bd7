//! What is forced after which tokens, without a model: tokens are fed as if they were drawn.

use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};

use super::*;

/// Has the tokens `.</`, `think` and the bytes.
fn tokenizer() -> Tokenizer {
    let options = TrainOptions {
        vocab_size: 300,
        special_tokens: vec!["<|end|>".to_owned()],
        eos_token: Some("<|end|>".to_owned()),
        alphabet: Alphabet::Full,
        ..TrainOptions::default()
    };
    tokenizer_train::train(["so.</think>so.</think>so.</think>"], &options).unwrap()
}

/// A completion, fed with what is drawn.
struct Fed<'a> {
    forcing: &'a Forcing<'a>,
    thought: Thought,
    ids: Vec<u32>,
}

impl<'a> Fed<'a> {
    fn new(forcing: &'a Forcing<'a>) -> Fed<'a> {
        let mut fed = Fed { forcing, thought: forcing.start(), ids: Vec::new() };
        fed.force();
        fed
    }

    fn force(&mut self) {
        while let Some(id) = self.thought.next() {
            self.ids.push(id);
            self.thought.push();
        }
    }

    fn draw(&mut self, id: u32, stop: Option<FinishReason>) -> Next {
        self.ids.push(id);
        self.thought.push();
        let next = self.forcing.look(&mut self.thought, &self.ids, stop);
        if let Next::Rewind(len) = next {
            self.ids.truncate(len);
        }
        self.force();
        next
    }

    fn text(&self) -> String {
        self.forcing.tokenizer.decode(&self.ids, false).unwrap()
    }

    /// The text, with what was forced in brackets.
    fn marked(&self) -> String {
        assert_eq!(self.ids.len(), self.thought.mask.len());
        let tokens = self.ids.iter().zip(&self.thought.mask);
        let runs: Vec<_> = tokens.collect();
        let runs = runs.chunk_by(|a, b| a.1 == b.1).map(|run| {
            let ids: Vec<u32> = run.iter().map(|(id, _)| **id).collect();
            let text = self.forcing.tokenizer.decode(&ids, false).unwrap();
            if *run[0].1 { format!("[{text}]") } else { text }
        });
        runs.collect()
    }
}

/// Feeds the tokens of each text and gives the whole, with what was forced in brackets.
fn fed(thinking: Thinking, pieces: &[&str]) -> String {
    let sampling = Sampling { max_tokens: 64, thinking: Some(thinking), ..Sampling::default() };
    sampling.check().unwrap();
    let tokenizer = tokenizer();
    let forcing = Forcing::of(&sampling, &tokenizer).unwrap().unwrap();
    let mut fed = Fed::new(&forcing);
    for piece in pieces {
        for id in tokenizer.encode(piece, false).unwrap() {
            fed.draw(id, None);
        }
    }
    fed.marked()
}

fn waits(waits: usize) -> Thinking {
    Thinking { waits, ..Thinking::default() }
}

#[test]
fn the_tokenizer_has_tokens_on_both_sides_of_the_end() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("so.</think>", false).unwrap();
    let pieces: Vec<&[u8]> = ids.iter().map(|id| tokenizer.token_bytes(*id)).collect();
    assert!(pieces.contains(&&b".</"[..]), "{pieces:?}");
}

#[test]
fn ends_are_taken_back_as_often_as_is_set_and_wait_takes_their_place() {
    let pieces = ["so</think>", "no</think>", " 4"];
    assert_eq!(fed(waits(0), &pieces), "so</think>no</think> 4");
    assert_eq!(fed(waits(1), &pieces), "so[Wait]no</think> 4");
    assert_eq!(fed(waits(2), &pieces), "so[Wait]no[Wait] 4");
    let hmm = Thinking { wait: "\nHmm, ".to_owned(), ..waits(1) };
    assert_eq!(fed(hmm, &pieces), "so[\nHmm, ]no</think> 4");
    let other = Thinking { end: "no".to_owned(), ..waits(1) };
    assert_eq!(fed(other, &pieces), "so</think>[Wait]</think> 4");
}

#[test]
fn what_stands_ahead_of_the_end_in_its_first_token_is_spelled_again() {
    assert_eq!(fed(waits(1), &["so.</think>", " 4"]), "so[.Wait] 4");
    // And what stands behind it in its last token goes with it.
    let other = Thinking { end: ".<".to_owned(), ..waits(1) };
    assert_eq!(fed(other, &["so.</think>"]), "so[Wait]think>");
}

#[test]
fn a_half_written_character_ahead_of_the_end_is_spelled_whole() {
    let sampling = Sampling { max_tokens: 64, thinking: Some(waits(1)), ..Sampling::default() };
    let tokenizer = tokenizer();
    let forcing = Forcing::of(&sampling, &tokenizer).unwrap().unwrap();
    let mut thought = forcing.start();
    // Two tokens for é; if the second held the end as well, both would be spelled again.
    let ids = tokenizer.encode("aé", false).unwrap();
    assert_eq!(ids.len(), 3);
    ids.iter().for_each(|_| thought.push());
    let kept = forcing.kept(&thought, &ids, Place { token_idx: 2, bytes_before: 1 });
    assert_eq!(kept, (1, ids[1..].to_vec()));
    thought.drawn_from = 2;
    let kept = forcing.kept(&thought, &ids, Place { token_idx: 2, bytes_before: 1 });
    assert_eq!(kept, (2, Vec::new()), "what was forced stays");
}

#[test]
fn an_end_below_the_least_number_of_tokens_is_taken_back() {
    let least = |min_tokens| Thinking { min_tokens, ..Thinking::default() };
    // `Wait` is four tokens: each byte is one of its own.
    let pieces = ["x</think>", "yz</think>", "v</think>", "!"];
    assert_eq!(fed(least(1), &pieces), "x</think>yz</think>v</think>!");
    assert_eq!(fed(least(2), &pieces), "x[Wait]yz</think>v</think>!");
    assert_eq!(fed(least(7), &pieces), "x[Wait]yz</think>v</think>!");
    assert_eq!(fed(least(8), &pieces), "x[Wait]yz[Wait]v</think>!");
}

#[test]
fn thinking_that_has_used_up_its_tokens_is_closed() {
    let most = |max_tokens| Thinking { max_tokens: Some(max_tokens), ..Thinking::default() };
    assert_eq!(fed(most(3), &["xyz", "4"]), "xyz[</think>]4");
    assert_eq!(fed(most(0), &["4"]), "[</think>]4");
    assert_eq!(fed(most(4), &["xyz<", "4"]), "xyz[</think>]4", "a half written end goes");
    assert_eq!(fed(most(4), &["xyz>", "4"]), "xyz>[</think>]4");
    let close = Thinking { close: "</think>\n<answer>".to_owned(), ..most(3) };
    assert_eq!(fed(close, &["xyz", "4"]), "xyz[</think>\n<answer>]4");
    // Thinking that ends by itself isn't closed, and what follows isn't thinking.
    assert_eq!(fed(most(12), &["xyz</think>", "0123456789"]), "xyz</think>0123456789");
}

#[test]
fn an_end_stays_where_wait_would_leave_nothing_to_think_with() {
    let thinking = |max_tokens| Thinking { max_tokens: Some(max_tokens), ..waits(9) };
    let pieces = ["x</think>", "y</think>"];
    let end = tokenizer().encode("</think>", false).unwrap().len();
    assert!(end > 1);
    assert_eq!(fed(thinking(6 + end), &pieces), "x[Wait]y</think>");
    let tight = Thinking { end: "!".to_owned(), ..thinking(5) };
    assert_eq!(fed(tight, &["x!"]), "x!");
    let room = Thinking { end: "!".to_owned(), ..thinking(6) };
    assert_eq!(fed(room, &["x!", "y"]), "x[Wait]y[</think>]");
}

#[test]
fn a_stop_token_or_text_ends_the_thinking_and_is_taken_back_too() {
    let tokenizer = tokenizer();
    let sampling = Sampling {
        max_tokens: 64,
        stop: vec!["ab".to_owned()],
        thinking: Some(waits(2)),
        ..Sampling::default()
    };
    let forcing = Forcing::of(&sampling, &tokenizer).unwrap().unwrap();
    let mut fed = Fed::new(&forcing);
    let id = |text: &str| tokenizer.encode(text, false).unwrap()[0];
    let end = tokenizer.token_id("<|end|>").unwrap();
    assert_eq!(fed.draw(id("x"), None), Next::GoOn);
    assert_eq!(fed.draw(end, Some(FinishReason::Stop)), Next::Rewind(1));
    assert_eq!(fed.draw(id("a"), None), Next::GoOn);
    assert_eq!(fed.draw(id("b"), Some(FinishReason::StopString)), Next::Rewind(5));
    assert_eq!(fed.text(), "xWaitWait");
    assert_eq!(fed.draw(end, Some(FinishReason::Stop)), Next::GoOn, "two were taken back");
    assert_eq!(fed.thought.removed_count(), 3);
}

#[test]
fn an_end_text_begins_behind_what_was_forced() {
    // The text `t</think>`, whose first letter is forced.
    let thinking = Thinking { end: "t</think>".to_owned(), min_tokens: 30, ..Thinking::default() };
    assert_eq!(fed(thinking, &["t</think>", "</think>"]), "[Wait]</think>");
}

#[test]
fn settings_that_cannot_hold_are_told() {
    let told = |thinking: Thinking, max_tokens| {
        let sampling = Sampling { max_tokens, thinking: Some(thinking), ..Sampling::default() };
        let tokenizer = tokenizer();
        let checked = sampling.check().and_then(|()| Forcing::of(&sampling, &tokenizer).map(drop));
        checked.map_err(|error| error.to_string()).unwrap_err()
    };
    let text = |key: &str| Thinking {
        end: if key == "end" { String::new() } else { "E".to_owned() },
        wait: if key == "wait" { String::new() } else { "W".to_owned() },
        close: if key == "close" { String::new() } else { "E".to_owned() },
        ..Thinking::default()
    };
    for key in ["end", "wait", "close"] {
        let error = told(text(key), 64);
        assert!(error.contains(&format!("`thinking.{key}` must be a text")), "{error}");
    }
    let inside = Thinking { wait: "a</think>b".to_owned(), ..Thinking::default() };
    assert!(told(inside, 64).contains("`thinking.wait` must be a text without `end`"));
    let most = |max_tokens| Thinking { max_tokens: Some(max_tokens), ..Thinking::default() };
    assert!(told(most(64), 64).contains("`thinking.max_tokens` must be below the 64 tokens"));
    let error = told(most(62), 64);
    assert!(error.contains("of the 64 of a completion none is left"), "{error}");
    let least = Thinking { min_tokens: 9, ..most(8) };
    assert!(told(least, 64).contains("`thinking.min_tokens` must be at most 8"));
    let least = Thinking { min_tokens: 64, ..Thinking::default() };
    assert!(told(least, 64).contains("`thinking.min_tokens` must be at most 63"));
}
