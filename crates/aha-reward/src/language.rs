//! `kind = "language"`: is the chain of thought in the language that it should be in?
//!
//! What counts as a word is decided by `prose`: maths and code don't. Then each word is judged by its
//! script, and where several languages share the script, by the sentence that it is in: the share of right
//! words is that of R1's language consistency reward (DeepSeek-AI 2025, section 2.3.2).

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use whatlang::{Detector, Lang};

use crate::backend::Backends;
use crate::extract::{self, Extraction};
use crate::prose::{Piece, Script, pieces};
use crate::spec::{Problem, Resolve, is_word};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// Bytes of a text that are read, from its start: four times what 16,384 tokens of English take.
pub const READ_BYTES_MAX: usize = 1 << 18;

/// Words of a shared script from which sentences are judged together; shorter ones are joined with the next.
const SEGMENT_WORDS_MIN: usize = 8;

/// Letters that it takes to tell languages apart.
const DETECTED_LETTERS_MIN: usize = 20;

/// How sure the detector must be, out of 1, that sentences are in another language rather than in the target. Of
/// the words of English solutions in GSM8K and MATH, 0.8% are then taken for another language; at 0.5 it is 1.9%,
/// and at 0.9 sentences of neighbours, such as English and German, pass for each other.
const CONFIDENCE_MIN: f64 = 0.75;

/// Which part of the completion is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The chain of thought, up to the last `</think>`; all of a completion without these tags.
    #[default]
    Think,
    /// The content of the answer tag, or all after `</think>` where there is none.
    Answer,
    /// All of it.
    Completion,
}

/// The share of words that are in the target language, from 0 to 1; 0 without a word.
///
/// `words of the target language / all words`. Formulas, TeX commands, code, tags, addresses, words with digits,
/// single Latin or Greek letters and names of functions and units are no words; each Chinese character, kana
/// or Thai letter is one. A word in a script that the target isn't written in is another language's. Where languages
/// share a script, sentences (of 8 words or more; shorter ones are joined) count as another language's if a
/// detector by trigrams is sure of it; single words of another language inside a sentence are not seen. Han
/// characters are Japanese in sentences with kana and Chinese in sentences without.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// The language's ISO 639-1 code. Default `en`.
    pub target: String,
    /// Which part of the completion is judged, `think`, `answer` or `completion`. Default `think`.
    pub part: Part,
    /// Name of the tag around the chain of thought. Default `think`.
    pub think_tag: String,
    /// Name of the tag around the answer. Default `answer`.
    pub answer_tag: String,
}

impl Default for Settings {
    fn default() -> Self {
        let extract::Settings { think_tag, answer_tag, .. } = extract::Settings::default();
        Self { target: "en".to_owned(), part: Part::default(), think_tag, answer_tag }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        let target = language(&self.target);
        if target.is_none() {
            let codes: Vec<&str> = LANGUAGES.iter().map(|language| language.code).collect();
            let must = format!("one of {}", codes.join(", "));
            problems.push(Problem::new("target", must, format!("`{}`", self.target)));
        }
        let Settings { part, think_tag, answer_tag, .. } = self.clone();
        for (key, tag) in [("think_tag", &think_tag), ("answer_tag", &answer_tag)] {
            if !is_word(tag) {
                problems.push(Problem::new(key, "letters, digits and `_`", format!("`{tag}`")));
            }
        }
        match target {
            Some(target) if problems.is_empty() => {
                let extraction = Extraction { think_tag, answer_tag, ..Extraction::default() };
                Ok(Box::new(Consistency { target, part, extraction }))
            }
            _ => Err(problems),
        }
    }
}

/// See [`Settings`].
struct Consistency {
    target: &'static Language,
    part: Part,
    /// The names of the tags.
    extraction: Extraction,
}

impl Verifier for Consistency {
    fn kind(&self) -> Kind {
        Kind::Language
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let completion = sample.completion;
        let text = match self.part {
            Part::Think => Ok(extract::thinking(completion, &self.extraction.think_tag)),
            Part::Answer => self.extraction.find_text(completion),
            Part::Completion => Ok(completion),
        };
        let words = match text {
            Ok(text) => count(text, self.target),
            Err(reason) => return Verdict::scored(0.0, reason),
        };
        match words.share() {
            Some(share) => {
                let Words { target_count, all_count } = words;
                let code = self.target.code;
                Verdict::scored(
                    share as f32,
                    format!("{target_count} of {all_count} words are {code}"),
                )
            }
            None => Verdict::scored(0.0, "no words"),
        }
    }
}

/// The share of the text's words that are in the language of the ISO 639-1 code `lang`, in [0, 1], as the reward
/// `language` counts them; null where the text has no words or the language is unknown.
///
/// ```
/// use aha_reward::language_share;
/// assert_eq!(language_share("So the answer is $x^2$ 所以", "en"), Some(4.0 / 6.0));
/// ```
pub fn language_share(text: &str, lang: &str) -> Option<f64> {
    count(text, language(lang)?).share()
}

/// A language that can be asked for.
struct Language {
    code: &'static str,
    scripts: &'static [Script],
    /// Tells it from the others of its script.
    lang: Lang,
    /// Those that are too much like it to be told from it in a sentence.
    like: &'static [Lang],
}

const fn alone(code: &'static str, scripts: &'static [Script], lang: Lang) -> Language {
    Language { code, scripts, lang, like: &[] }
}

const fn latin(code: &'static str, lang: Lang, like: &'static [Lang]) -> Language {
    Language { code, scripts: &[Script::Latin], lang, like }
}

const fn cyrillic(code: &'static str, lang: Lang) -> Language {
    Language { code, scripts: &[Script::Cyrillic], lang, like: &[] }
}

/// Every language that can be asked for.
static LANGUAGES: [Language; 55] = [
    latin("en", Lang::Eng, &[]),
    alone("zh", &[Script::Han], Lang::Cmn),
    latin("es", Lang::Spa, &[Lang::Cat]),
    latin("fr", Lang::Fra, &[]),
    latin("de", Lang::Deu, &[]),
    latin("it", Lang::Ita, &[]),
    latin("pt", Lang::Por, &[]),
    latin("nl", Lang::Nld, &[]),
    latin("pl", Lang::Pol, &[]),
    latin("ro", Lang::Ron, &[]),
    latin("cs", Lang::Ces, &[Lang::Slk]),
    latin("sk", Lang::Slk, &[Lang::Ces]),
    latin("sl", Lang::Slv, &[Lang::Hrv]),
    latin("hr", Lang::Hrv, &[Lang::Slv]),
    latin("hu", Lang::Hun, &[]),
    latin("fi", Lang::Fin, &[Lang::Est]),
    latin("et", Lang::Est, &[Lang::Fin]),
    latin("lv", Lang::Lav, &[]),
    latin("lt", Lang::Lit, &[]),
    latin("sv", Lang::Swe, &[Lang::Dan, Lang::Nob]),
    latin("da", Lang::Dan, &[Lang::Nob, Lang::Swe]),
    latin("no", Lang::Nob, &[Lang::Dan, Lang::Swe]),
    latin("ca", Lang::Cat, &[Lang::Spa]),
    latin("tr", Lang::Tur, &[]),
    latin("vi", Lang::Vie, &[]),
    latin("id", Lang::Ind, &[]),
    cyrillic("ru", Lang::Rus),
    cyrillic("uk", Lang::Ukr),
    cyrillic("be", Lang::Bel),
    cyrillic("bg", Lang::Bul),
    cyrillic("mk", Lang::Mkd),
    cyrillic("sr", Lang::Srp),
    alone("ar", &[Script::Arabic], Lang::Ara),
    alone("fa", &[Script::Arabic], Lang::Pes),
    alone("ur", &[Script::Arabic], Lang::Urd),
    alone("hi", &[Script::Devanagari], Lang::Hin),
    alone("mr", &[Script::Devanagari], Lang::Mar),
    alone("ne", &[Script::Devanagari], Lang::Nep),
    alone("he", &[Script::Hebrew], Lang::Heb),
    alone("ja", &[Script::Kana, Script::Han], Lang::Jpn),
    alone("ko", &[Script::Hangul], Lang::Kor),
    alone("el", &[Script::Greek], Lang::Ell),
    alone("th", &[Script::Thai], Lang::Tha),
    alone("bn", &[Script::Bengali], Lang::Ben),
    alone("pa", &[Script::Gurmukhi], Lang::Pan),
    alone("gu", &[Script::Gujarati], Lang::Guj),
    alone("ta", &[Script::Tamil], Lang::Tam),
    alone("te", &[Script::Telugu], Lang::Tel),
    alone("kn", &[Script::Kannada], Lang::Kan),
    alone("ml", &[Script::Malayalam], Lang::Mal),
    alone("si", &[Script::Sinhala], Lang::Sin),
    alone("my", &[Script::Myanmar], Lang::Mya),
    alone("ka", &[Script::Georgian], Lang::Kat),
    alone("hy", &[Script::Armenian], Lang::Hye),
    alone("km", &[Script::Khmer], Lang::Khm),
];

fn language(code: &str) -> Option<&'static Language> {
    LANGUAGES.iter().find(|language| language.code == code)
}

/// The languages that are told apart: those that can be asked for.
static DETECTOR: LazyLock<Detector> = LazyLock::new(|| {
    Detector::with_allowlist(LANGUAGES.iter().map(|language| language.lang).collect())
});

impl Language {
    /// Whether other languages are written in its script.
    fn shares_script(&self) -> bool {
        matches!(
            self.scripts,
            [Script::Latin | Script::Cyrillic | Script::Arabic | Script::Devanagari]
        )
    }

    /// Whether words of its script are surely of another language.
    fn is_not(&self, words: &str) -> bool {
        let letter_count = words.chars().filter(|c| c.is_alphabetic()).count();
        if letter_count < DETECTED_LETTERS_MIN {
            return false;
        }
        let Some(nearest) = DETECTOR.detect_lang(words) else { return false };
        if nearest == self.lang || self.like.contains(&nearest) {
            return false;
        }
        // That another neighbour is nearly as near says nothing about the target.
        let between = Detector::with_allowlist(vec![self.lang, nearest]).detect(words);
        between.is_some_and(|info| info.lang() == nearest && info.confidence() >= CONFIDENCE_MIN)
    }
}

/// Words of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Words {
    target_count: usize,
    all_count: usize,
}

impl Words {
    fn share(&self) -> Option<f64> {
        (self.all_count > 0).then(|| self.target_count as f64 / self.all_count as f64)
    }
}

/// Sentences that are judged together.
#[derive(Default)]
struct Segment {
    /// The words in the target's script, if it shares that.
    text: String,
    /// How many words are in the target's script; for Chinese and Japanese, characters.
    target_script_count: usize,
    han_count: usize,
    kana_count: usize,
    all_count: usize,
}

impl Segment {
    fn add(&mut self, word: &str, script: Script, count: usize, target: &Language) {
        self.all_count += count;
        match script {
            Script::Han => self.han_count += count,
            Script::Kana => self.kana_count += count,
            _ => {}
        }
        if target.scripts.contains(&script) {
            self.target_script_count += count;
            if target.shares_script() {
                self.text.push_str(word);
                self.text.push(' ');
            }
        }
    }

    /// Whether it is long enough to be judged: Chinese and Japanese are told apart in any sentence.
    fn is_whole(&self, target: &Language) -> bool {
        !target.shares_script() || self.target_script_count >= SEGMENT_WORDS_MIN
    }

    fn target_count(&self, target: &Language) -> usize {
        match target.lang {
            // A few kana in much Chinese are quoted; much of Japanese is kana.
            Lang::Cmn if self.kana_count * 5 > self.han_count => 0,
            Lang::Jpn if self.kana_count * 20 < self.han_count && self.han_count > 4 => {
                self.kana_count
            }
            _ if target.shares_script() && target.is_not(&self.text) => 0,
            _ => self.target_script_count,
        }
    }
}

fn count(text: &str, target: &Language) -> Words {
    let text = &text[..text.floor_char_boundary(READ_BYTES_MAX)];
    let (mut words, mut segment) = (Words::default(), Segment::default());
    let mut close = |segment: &mut Segment| {
        words.target_count += segment.target_count(target);
        words.all_count += segment.all_count;
        *segment = Segment::default();
    };
    pieces(text, |piece| match piece {
        Piece::Word(word, script, count) => segment.add(word, script, count, target),
        Piece::End if segment.is_whole(target) => close(&mut segment),
        Piece::End => {}
    });
    close(&mut segment);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGLISH: &str =
        "So the answer is five, because we can solve the equation for the unknown value.";
    const GERMAN: &str = "Zuerst addieren wir die beiden gegebenen Zahlen, und danach teilen wir die Summe durch drei.";
    const FRENCH: &str =
        "D'abord nous ajoutons les deux nombres donnés, puis nous divisons la somme par trois.";
    const SPANISH: &str =
        "Primero sumamos los dos números que nos dan y después dividimos el resultado entre tres.";
    const RUSSIAN: &str = "Сначала мы складываем два данных числа, а затем делим сумму на три.";
    const UKRAINIAN: &str =
        "Спочатку ми додаємо два задані числа, а потім ділимо їхню суму на три.";
    const CHINESE: &str = "首先我们把给出的两个数相加，然后把和除以三。";
    const JAPANESE: &str = "まず与えられた二つの数を足して、それから和を三で割ります。";
    const KOREAN: &str = "먼저 주어진 두 수를 더한 다음 합을 셋으로 나눕니다.";
    const ARABIC: &str = "أولا نجمع العددين المعطيين ثم نقسم المجموع على ثلاثة.";
    const HINDI: &str = "पहले हम दी गई दो संख्याओं को जोड़ते हैं, फिर योग को तीन से भाग देते हैं।";
    const VIETNAMESE: &str = "Trước tiên chúng ta cộng hai số đã cho, sau đó chia tổng cho ba.";

    #[test]
    fn a_language_is_told_from_every_other() {
        let texts = [
            ("en", ENGLISH),
            ("de", GERMAN),
            ("fr", FRENCH),
            ("es", SPANISH),
            ("ru", RUSSIAN),
            ("uk", UKRAINIAN),
            ("zh", CHINESE),
            ("ja", JAPANESE),
            ("ko", KOREAN),
            ("ar", ARABIC),
            ("hi", HINDI),
            ("vi", VIETNAMESE),
        ];
        for (code, text) in texts {
            for (target, _) in texts {
                let share = language_share(text, target).unwrap();
                // Chinese characters in a Japanese sentence are Japanese, and kana never Chinese.
                let want = f64::from(u8::from(code == target));
                assert_eq!(share, want, "{code} as {target}: {text}");
            }
        }
    }

    #[test]
    fn mixed_texts_have_the_share_of_their_words() {
        let joined = |texts: &[&str]| texts.join("\n");
        // 15 English words, 15 German ones, 20 Chinese characters.
        let cases = [
            (joined(&[ENGLISH, GERMAN]), "en", 15.0 / 30.0),
            (joined(&[ENGLISH, GERMAN]), "de", 15.0 / 30.0),
            (joined(&[ENGLISH, CHINESE]), "en", 15.0 / 35.0),
            (joined(&[ENGLISH, CHINESE]), "zh", 20.0 / 35.0),
            (joined(&[ENGLISH, GERMAN, ENGLISH]), "en", 30.0 / 45.0),
            ("So the answer 是五".to_owned(), "en", 3.0 / 5.0),
            ("answer是".to_owned(), "en", 0.5),
            ("答案是 answer".to_owned(), "zh", 3.0 / 4.0),
        ];
        for (text, target, want) in cases {
            assert_eq!(language_share(&text, target), Some(want), "{target}: {text}");
        }
    }

    #[test]
    fn maths_and_code_do_not_count_against_it() {
        let cases = [
            (r"因此 $\text{area} = ab$，答案是 \boxed{5} cm。", "zh"),
            (r"ответ: \(speed \times time\), затем sin x и log y", "ru"),
            ("答案\n```python\nprint('hello world')\n```\n是 `code`", "zh"),
            ("Let $x$ be the number of apples. Then \\[ 3x + 5 = 20 \\] and so x = 5.", "en"),
            ("We have θ = 30° and α + β = 90°, hence cos θ = √3/2.", "en"),
            ("答案 x1 var_2 3rd", "zh"),
            ("it costs $5 and then $6", "en"),
        ];
        for (text, target) in cases {
            assert_eq!(language_share(text, target), Some(1.0), "{text}");
        }
        assert_eq!(language_share("x + y = 12", "en"), None);
        assert_eq!(language_share("", "en"), None);
        assert_eq!(language_share("word", "xx"), None);
    }

    #[test]
    fn the_part_decides_which_words_count() {
        let completion = format!("<think>{ENGLISH}</think> <answer>答案是五</answer>");
        let score = |keys: &str, completion: &str| {
            let settings: Settings = serde_json::from_str(keys).unwrap();
            let verifier = settings.resolve(&crate::NoBackends).ok().unwrap();
            let verdict = verifier.score(&Sample { completion, ..Sample::default() });
            (verdict.score.unwrap(), verdict.reason)
        };
        let (share, reason) = score("{}", &completion);
        assert_eq!((share, reason.as_str()), (1.0, "15 of 15 words are en"));
        assert_eq!(score(r#"{"part":"answer"}"#, &completion).0, 0.0);
        assert_eq!(score(r#"{"part":"answer","target":"zh"}"#, &completion).0, 1.0);
        assert_eq!(score(r#"{"part":"completion"}"#, &completion).0, 15.0 / 19.0);
        assert_eq!(score("{}", "<think>3 + 4 = 7</think> seven"), (0.0, "no words".to_owned()));
        assert_eq!(score(r#"{"part":"answer"}"#, "<think>a").1, "<think> is not closed");
    }

    #[test]
    fn a_language_that_is_not_known_is_refused() {
        let settings = Settings { target: "xx".to_owned(), ..Settings::default() };
        let problems = settings.resolve(&crate::NoBackends).err().unwrap();
        assert!(problems[0].to_string().starts_with("`target` must be one of en, zh, es, "));
    }
}
