//! The words of a text, without its maths and code, and the writing systems that they are in.

/// A writing system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    Latin,
    Han,
    Kana,
    Hangul,
    Cyrillic,
    Greek,
    Arabic,
    Hebrew,
    Devanagari,
    Bengali,
    Gurmukhi,
    Gujarati,
    Tamil,
    Telugu,
    Kannada,
    Malayalam,
    Sinhala,
    Thai,
    Myanmar,
    Georgian,
    Armenian,
    Ethiopic,
    Khmer,
    /// No letter, or one of a script that no language here uses.
    Other,
}

/// The blocks of letters of each script.
const BLOCKS: &[(char, char, Script)] = &[
    ('A', 'Z', Script::Latin),
    ('a', 'z', Script::Latin),
    ('\u{c0}', '\u{24f}', Script::Latin),
    ('\u{370}', '\u{3ff}', Script::Greek),
    ('\u{400}', '\u{52f}', Script::Cyrillic),
    ('\u{531}', '\u{58f}', Script::Armenian),
    ('\u{591}', '\u{5f4}', Script::Hebrew),
    ('\u{600}', '\u{6ff}', Script::Arabic),
    ('\u{750}', '\u{77f}', Script::Arabic),
    ('\u{900}', '\u{97f}', Script::Devanagari),
    ('\u{980}', '\u{9ff}', Script::Bengali),
    ('\u{a00}', '\u{a7f}', Script::Gurmukhi),
    ('\u{a80}', '\u{aff}', Script::Gujarati),
    ('\u{b80}', '\u{bff}', Script::Tamil),
    ('\u{c00}', '\u{c7f}', Script::Telugu),
    ('\u{c80}', '\u{cff}', Script::Kannada),
    ('\u{d00}', '\u{d7f}', Script::Malayalam),
    ('\u{d80}', '\u{dff}', Script::Sinhala),
    ('\u{e00}', '\u{e7f}', Script::Thai),
    ('\u{1000}', '\u{109f}', Script::Myanmar),
    ('\u{10a0}', '\u{10ff}', Script::Georgian),
    ('\u{1100}', '\u{11ff}', Script::Hangul),
    ('\u{1200}', '\u{137f}', Script::Ethiopic),
    ('\u{1780}', '\u{17ff}', Script::Khmer),
    ('\u{1e00}', '\u{1eff}', Script::Latin),
    ('\u{1f00}', '\u{1fff}', Script::Greek),
    ('\u{3040}', '\u{30ff}', Script::Kana),
    ('\u{31f0}', '\u{31ff}', Script::Kana),
    ('\u{3400}', '\u{4dbf}', Script::Han),
    ('\u{4e00}', '\u{9fff}', Script::Han),
    ('\u{ac00}', '\u{d7af}', Script::Hangul),
    ('\u{f900}', '\u{faff}', Script::Han),
    ('\u{20000}', '\u{323af}', Script::Han),
];

impl Script {
    fn of(c: char) -> Self {
        if c.is_ascii() {
            return if c.is_ascii_alphabetic() { Script::Latin } else { Script::Other };
        }
        if c.is_numeric() || is_mark(c) {
            return Script::Other;
        }
        let idx = BLOCKS.partition_point(|(_, last, _)| *last < c);
        match BLOCKS.get(idx) {
            Some((first, _, script)) if *first <= c => *script,
            _ => Script::Other,
        }
    }

    /// Whether words have no blanks between them, so that each character counts as one.
    fn is_unspaced(self) -> bool {
        matches!(self, Script::Han | Script::Kana | Script::Thai | Script::Myanmar | Script::Khmer)
    }

    /// Whether a letter alone is more often a variable than a word.
    fn names_variables(self) -> bool {
        matches!(self, Script::Latin | Script::Greek)
    }
}

/// Whether it is punctuation or a sign in the midst of a block of letters.
fn is_mark(c: char) -> bool {
    matches!(c,
        '\u{d7}' | '\u{f7}' | '\u{37e}' | '\u{387}' | '\u{55a}'..='\u{55f}' | '\u{589}' | '\u{58a}'
        | '\u{5be}' | '\u{5c0}' | '\u{5c3}' | '\u{5c6}' | '\u{5f3}' | '\u{5f4}'
        | '\u{600}'..='\u{60f}' | '\u{61b}'..='\u{61f}' | '\u{66a}'..='\u{66d}' | '\u{6d4}'
        | '\u{964}' | '\u{965}' | '\u{e3f}' | '\u{e4f}' | '\u{e5a}' | '\u{e5b}'
        | '\u{104a}'..='\u{104f}' | '\u{10fb}' | '\u{1360}'..='\u{1368}'
        | '\u{17d4}'..='\u{17db}' | '\u{30a0}' | '\u{30fb}')
}

/// What a text consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A run of letters of one script, and how many words it counts for.
    Word(&'a str, Script, usize),
    /// The end of a sentence.
    End,
}

/// Words of mathematics and measurement that are the same in every language.
const NEUTRAL: &[&str] = &[
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "log", "ln", "lg", "exp", "max", "min", "mod", "gcd", "lcm", "det", "lim", "sqrt", "dx", "dy",
    "dt", "pi", "mm", "cm", "dm", "km", "mg", "kg", "ml", "cl", "kj", "kw", "hz", "khz", "mhz",
    "mol", "rad", "deg", "qed",
];

/// Calls `visit` with the pieces of the text, in order.
///
/// Left out are code (fenced, or in backticks), formulas (`$…$`, `$$…$$`, `\(…\)`, `\[…\]`,
/// `\begin{…}…\end{…}`), TeX commands, tags, addresses, words with digits, single Latin and Greek letters, which
/// may be variables, and names of functions and units. One pass over the text, whatever it holds.
pub(crate) fn pieces<'a>(text: &'a str, mut visit: impl FnMut(Piece<'a>)) {
    let mut skips = Skips { text, hopeless: [false; Closer::COUNT] };
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        // Marks are ASCII, so they begin where a character does.
        match skips.len_at(at) {
            0 => at += 1,
            len => {
                words(&text[start..at], &mut visit);
                at += len;
                start = at;
            }
        }
    }
    words(&text[start..], &mut visit);
}

/// Every word of a text, numbers, code and maths with it: runs of letters and digits, and each character of a
/// script without blanks.
pub(crate) fn every_word(text: &str) -> impl Iterator<Item = &str> {
    let runs =
        text.split(|c: char| !is_word_char(c)).filter(|run| run.contains(char::is_alphanumeric));
    runs.flat_map(|run| {
        let mut rest = run;
        std::iter::from_fn(move || {
            let is_alone = |c: char| Script::of(c).is_unspaced();
            let first = rest.chars().next()?;
            let len = if is_alone(first) {
                first.len_utf8()
            } else {
                rest.find(is_alone).unwrap_or(rest.len())
            };
            let (word, tail) = rest.split_at(len);
            rest = tail;
            Some(word)
        })
    })
}

/// What ends something that is left out.
#[derive(Clone, Copy)]
enum Closer {
    Dollars,
    Parenthesis,
    Bracket,
    Environment,
}

impl Closer {
    const COUNT: usize = 4;

    fn mark(self) -> &'static str {
        match self {
            Closer::Dollars => "$$",
            Closer::Parenthesis => "\\)",
            Closer::Bracket => "\\]",
            Closer::Environment => "\\end{",
        }
    }
}

/// Finds what is left out.
struct Skips<'a> {
    text: &'a str,
    /// Closers that don't occur any more, so that they aren't looked for again.
    hopeless: [bool; Closer::COUNT],
}

impl Skips<'_> {
    /// The bytes from `at` on that are no prose; 0 where prose goes on.
    fn len_at(&mut self, at: usize) -> usize {
        let bytes = &self.text.as_bytes()[at..];
        match bytes[0] {
            b'`' => self.code_len(at),
            b'$' if bytes.get(1) == Some(&b'$') => 2 + self.closer_len(at + 2, Closer::Dollars),
            b'$' => self.dollar_len(at),
            b'\\' => self.command_len(at),
            b'<' => tag_len(bytes),
            b'h' | b'w' => address_len(bytes),
            _ => 0,
        }
    }

    fn code_len(&self, at: usize) -> usize {
        let rest = &self.text[at..];
        if let Some(code) = rest.strip_prefix("```") {
            // Code that isn't closed goes on to the end.
            return code.find("```").map_or(rest.len(), |len| len + 6);
        }
        let code = rest[1..].find(['`', '\n']).filter(|&len| rest[1 + len..].starts_with('`'));
        code.map_or(0, |len| len + 2)
    }

    /// A formula in dollars stays on its line and doesn't begin or end with a blank: "$5 and $6" is money.
    fn dollar_len(&self, at: usize) -> usize {
        let rest = &self.text[at + 1..];
        let Some(len) = rest.find(['$', '\n']).filter(|&len| rest[len..].starts_with('$')) else {
            return 0;
        };
        let formula = &rest[..len];
        let is_formula = !formula.is_empty() && formula.trim() == formula;
        if is_formula { len + 2 } else { 0 }
    }

    fn command_len(&mut self, at: usize) -> usize {
        let rest = &self.text[at..];
        if rest.starts_with("\\(") {
            return 2 + self.closer_len(at + 2, Closer::Parenthesis);
        }
        if rest.starts_with("\\[") {
            return 2 + self.closer_len(at + 2, Closer::Bracket);
        }
        if rest.starts_with("\\begin{") {
            return 7 + self.environment_len(at + 7);
        }
        let name_len = rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
        // A command of one character is a mark; one of two backslashes is a new line.
        1 + if name_len == 0 { usize::from(rest[1..].starts_with('\\')) } else { name_len }
    }

    /// The bytes from `from` on to the closer and with it; 0 where there is none.
    fn closer_len(&mut self, from: usize, closer: Closer) -> usize {
        if self.hopeless[closer as usize] {
            return 0;
        }
        let len = self.text[from..].find(closer.mark()).map(|len| len + closer.mark().len());
        self.hopeless[closer as usize] = len.is_none();
        len.unwrap_or(0)
    }

    /// To the end of the environment whose name begins at `from`; those inside end first.
    fn environment_len(&mut self, from: usize) -> usize {
        if self.hopeless[Closer::Environment as usize] {
            return 0;
        }
        let (mut depth, mut at) = (1usize, from);
        while let Some(len) = self.text[at..].find('\\') {
            at += len;
            let rest = &self.text[at..];
            if rest.starts_with("\\begin{") {
                depth += 1;
            } else if rest.starts_with(Closer::Environment.mark()) {
                depth -= 1;
                if depth == 0 {
                    let name_len = rest.bytes().take(32).take_while(|b| *b != b'}').count();
                    let is_named = rest.as_bytes().get(name_len) == Some(&b'}');
                    return at - from + if is_named { name_len + 1 } else { 5 };
                }
            }
            at += 1;
        }
        // With none that ends this one, those inside it may end, but are then looked for only once.
        self.hopeless[Closer::Environment as usize] = true;
        0
    }
}

/// `<name>` or `</name>`.
fn tag_len(bytes: &[u8]) -> usize {
    let slash_len = usize::from(bytes.get(1) == Some(&b'/'));
    let name = &bytes[1 + slash_len..];
    let is_name = |b: &&u8| b.is_ascii_alphabetic() || **b == b'_';
    let name_len = name.iter().take(32).take_while(is_name).count();
    let is_closed = name_len > 0 && name.get(name_len) == Some(&b'>');
    if is_closed { name_len + slash_len + 2 } else { 0 }
}

fn address_len(bytes: &[u8]) -> usize {
    let begins = [&b"https://"[..], b"http://", b"www."];
    if !begins.iter().any(|begin| bytes.starts_with(begin)) {
        return 0;
    }
    let is_inside = |b: &&u8| !b.is_ascii_whitespace() && !b"()<>\"".contains(b) && b.is_ascii();
    bytes.iter().take_while(is_inside).count()
}

/// The pieces of prose.
fn words<'a>(text: &'a str, visit: &mut impl FnMut(Piece<'a>)) {
    let mut start = 0;
    for (at, mark) in text.match_indices(|c: char| !is_word_char(c)) {
        run(&text[start..at], visit);
        start = at + mark.len();
        let is_end = match mark {
            "." | "!" | "?" => !text[start..].starts_with(is_word_char),
            mark => matches!(mark, "\n" | "。" | "！" | "？" | "؟" | "।"),
        };
        if is_end {
            visit(Piece::End);
        }
    }
    run(&text[start..], visit);
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '\'' | '’') || Script::of(c) != Script::Other
}

/// The words of a run of letters, digits and marks: one for each script in it.
fn run<'a>(run: &'a str, visit: &mut impl FnMut(Piece<'a>)) {
    let mut rest = run;
    while !rest.is_empty() {
        // Characters of no script (digits, marks) stay with the word.
        let first = rest.chars().map(Script::of).find(|script| *script != Script::Other);
        let script = first.unwrap_or(Script::Other);
        let is_of_another =
            |c: char| !matches!(Script::of(c), Script::Other) && Script::of(c) != script;
        let (word, tail) = rest.split_at(rest.find(is_of_another).unwrap_or(rest.len()));
        rest = tail;
        let count = word_count(word, script);
        if count > 0 {
            visit(Piece::Word(word.trim_matches(['\'', '’']), script, count));
        }
    }
}

/// How many words a run of letters of one script counts for.
fn word_count(word: &str, script: Script) -> usize {
    if script.is_unspaced() {
        return word.chars().filter(|c| c.is_alphabetic() && Script::of(*c) == script).count();
    }
    let letter_count = word.chars().filter(|c| c.is_alphabetic()).count();
    let is_name = word.contains(|c: char| c.is_numeric() || c == '_')
        || (letter_count == 1 && script.names_variables())
        || (script == Script::Latin && is_neutral(word));
    usize::from(letter_count > 0 && !is_name)
}

fn is_neutral(word: &str) -> bool {
    word.len() <= 6 && NEUTRAL.iter().any(|neutral| neutral.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut words = Vec::new();
        pieces(text, |piece| match piece {
            Piece::Word(word, _, 1) => words.push(word.to_owned()),
            Piece::Word(word, _, count) => words.push(format!("{word}:{count}")),
            Piece::End => words.push("/".to_owned()),
        });
        words.join(" ")
    }

    #[test]
    fn a_text_falls_into_words_and_sentences() {
        let cases = [
            ("Two words. And don't!", "Two words / And don't /"),
            ("3.5 apples cost 1.5 each", "apples cost each"),
            ("a line\nanother", "line / another"),
            ("答案是五。对", "答案是五:4 / 对"),
            ("答案answer是", "答案:2 answer 是"),
            ("x + y, x1 and var_2 or 3rd", "and or"),
            ("θ or π, sin x, 5 cm", "or"),
            ("и в я", "и в я"),
            ("これは答え", "これは:3 答 え"),
            ("see https://example.org/some/page now", "see now"),
            ("see www.example.org), now", "see now"),
            ("正解×5", "正解:2"),
            ("हिन्दी में", "हिन्दी में"),
        ];
        for (text, want) in cases {
            assert_eq!(shown(text), want, "{text}");
        }
    }

    #[test]
    fn maths_code_and_tags_are_left_out() {
        let cases = [
            (r"so $\text{area} = ab$ is \boxed{5}", "so is"),
            (r"so \(speed \times time\) and \[ mass \] go", "so and go"),
            ("so $$mass\n times$$ go", "so go"),
            ("so\n```python\nprint('hi there')\n```\ngo `code` on", "so / / go on"),
            ("so\n```\nnever closed", "so /"),
            ("it costs $5 and then $6", "it costs and then"),
            (r"so \begin{align} ab &= cd \begin{array} ef \end{array} gh \end{align} go", "so go"),
            (r"so \begin{align} ab", "so align ab"),
            (r"so \( ab", "so ab"),
            (r"so \[ ab \alpha", "so ab"),
            ("<think>so</think> a < bc > de", "so bc de"),
            (r"one\\two", "one two"),
            ("so ` ab\n` cd", "so ab / cd"),
        ];
        for (text, want) in cases {
            assert_eq!(shown(text), want, "{text}");
        }
    }

    #[test]
    fn blocks_are_in_order() {
        assert!(BLOCKS.iter().all(|(first, last, _)| first <= last));
        assert!(BLOCKS.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}
