//! A card per benchmark: its published prompt, its verifier, and its publishers' layouts.

use serde_json::json;

use super::{Card, Layout, Read, Row};
use crate::error::Result;
use crate::pipeline::Benchmark;

/// The card of a benchmark.
pub fn card(benchmark: Benchmark) -> &'static Card {
    match benchmark {
        Benchmark::Gsm8k => &GSM8K,
        Benchmark::Math500 => &MATH_500,
        Benchmark::Aime => &AIME,
        Benchmark::HumanEval => &HUMANEVAL,
        Benchmark::Mbpp => &MBPP,
        Benchmark::Gpqa => &GPQA,
        Benchmark::Codeforces => &CODEFORCES,
    }
}

/// The directive that DeepSeek-R1's model card gives for mathematical problems.
const BOXED: &str =
    "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.";

/// Cobbe et al. 2021, "Training verifiers to solve math word problems". Answers that end in the set's own
/// mark, `####`, count as well.
static GSM8K: Card = Card {
    instruction: BOXED,
    split: "test",
    reward: r#"{"kind":"math","extract":["answer_tag","boxed","hashes"]}"#,
    layouts: &[
        Layout {
            publisher: "openai/gsm8k",
            columns: &["question", "answer"],
            optional: &[],
            read: |row| {
                let solution = row.text("answer")?;
                let Some((_, answer)) = solution.rsplit_once("####") else {
                    return Err(row.wrong("`answer` has no `####` before its final answer"));
                };
                let answer = Some(answer.trim().to_owned());
                Ok(Read { prompt: row.text("question")?, answer, ..Read::default() })
            },
        },
        OURS_WITH_ANSWERS,
    ],
};

/// Lightman et al. 2023, "Let's verify step by step": 500 problems of MATH (Hendrycks et al. 2021).
static MATH_500: Card = Card {
    instruction: BOXED,
    split: "test",
    reward: r#"{"kind":"math","extract":["answer_tag","boxed"]}"#,
    layouts: &[
        Layout {
            publisher: "HuggingFaceH4/MATH-500",
            columns: &["problem", "answer"],
            optional: &["unique_id"],
            read: |row| answered(row, ["unique_id", "problem", "answer"]),
        },
        OURS_WITH_ANSWERS,
    ],
};

/// American Invitational Mathematics Examination, as several publishers have its years.
static AIME: Card = Card {
    instruction: BOXED,
    split: "test",
    reward: r#"{"kind":"math","extract":["answer_tag","boxed"]}"#,
    layouts: &[
        Layout {
            publisher: "HuggingFaceH4/aime_2024, AI-MO/aimo-validation-aime, math-ai/aime25",
            columns: &["problem", "answer"],
            optional: &["id"],
            read: |row| answered(row, ["id", "problem", "answer"]),
        },
        Layout {
            publisher: "Maxwell-Jia/AIME_2024",
            columns: &["Problem", "Answer"],
            optional: &["ID"],
            read: |row| answered(row, ["ID", "Problem", "Answer"]),
        },
        Layout {
            publisher: "opencompass/AIME2025",
            columns: &["question", "answer"],
            optional: &["id"],
            read: |row| answered(row, ["id", "question", "answer"]),
        },
        OURS_WITH_ANSWERS,
    ],
};

/// Chen et al. 2021, "Evaluating large language models trained on code"; the instruction is that of EvalPlus
/// (Liu et al. 2023) for models that chat.
static HUMANEVAL: Card = Card {
    instruction: "Please provide a self-contained Python script that solves the following problem in a \
                  markdown code block:\n```python\n{prompt}\n```",
    split: "test",
    reward: r#"{"kind":"code"}"#,
    layouts: &[
        Layout {
            publisher: "openai/openai_humaneval",
            columns: &["prompt", "test", "entry_point"],
            optional: &["task_id"],
            read: |row| {
                let (entry_point, test) = (row.text("entry_point")?, row.text("test")?);
                Ok(Read {
                    id: row.maybe_text("task_id"),
                    prompt: row.text("prompt")?,
                    tests: Some(json!({
                        "kind": "humaneval", "entry_point": entry_point, "test": test
                    })),
                    ..Read::default()
                })
            },
        },
        OURS_WITH_TESTS,
    ],
};

/// Austin et al. 2021, "Program synthesis with large language models", whose prompt this is but for its
/// examples; the code block stands for their marks of begin and end.
static MBPP: Card = Card {
    instruction: "You are an expert Python programmer, and here is your task: {prompt}\n\n\
                  Put your code into a ```python code block.",
    split: "test",
    reward: r#"{"kind":"code"}"#,
    layouts: &[
        Layout {
            publisher: "google-research-datasets/mbpp, full",
            columns: &["text", "test_list"],
            optional: &["task_id", "test_setup_code"],
            read: |row| mbpp(row, "text", row.maybe_text("test_setup_code").unwrap_or_default()),
        },
        Layout {
            publisher: "google-research-datasets/mbpp, sanitized",
            columns: &["prompt", "test_list"],
            optional: &["task_id", "test_imports"],
            read: |row| mbpp(row, "prompt", row.texts("test_imports").join("\n")),
        },
        OURS_WITH_TESTS,
    ],
};

/// Rein et al. 2023, "GPQA: a graduate-level Google-proof Q&A benchmark"; the prompt is that of OpenAI's
/// simple-evals. The publisher's first answer is always the right one, so they are shuffled.
static GPQA: Card = Card {
    instruction: "Answer the following multiple choice question. The last line of your response should \
                  be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of \
                  ABCD. Think step by step before answering.\n\n{prompt}",
    split: "test",
    reward: r#"{"kind":"choice","extract":["answer_tag","boxed","answer_is"]}"#,
    layouts: &[
        Layout {
            publisher: "Idavidrein/gpqa",
            columns: &[
                "Question",
                "Correct Answer",
                "Incorrect Answer 1",
                "Incorrect Answer 2",
                "Incorrect Answer 3",
            ],
            optional: &["Record ID"],
            read: gpqa,
        },
        OURS_WITH_ANSWERS,
    ],
};

/// Programming contests in the style of Codeforces. No prompt is published for R1's evaluation; this one
/// says what the verifier runs.
static CODEFORCES: Card = Card {
    instruction: "Solve the following programming problem in Python 3. Your program reads from standard \
                  input and writes to standard output. Put it into a ```python code block.\n\n{prompt}",
    split: "test",
    reward: r#"{"kind":"code"}"#,
    layouts: &[
        Layout {
            publisher: "open-r1/codeforces",
            columns: &["description", "official_tests"],
            optional: &[
                "id",
                "title",
                "input_format",
                "output_format",
                "examples",
                "note",
                "rating",
            ],
            read: codeforces,
        },
        OURS_WITH_TESTS,
    ],
};

/// The layout of our own data sets, for problems with an answer.
const OURS_WITH_ANSWERS: Layout = Layout {
    publisher: "aha",
    columns: &["prompt", "answer"],
    optional: &["id", "rating"],
    read: |row| {
        let read = answered(row, ["id", "prompt", "answer"])?;
        Ok(Read { rating: row.maybe_number("rating"), ..read })
    },
};

/// The layout of our own data sets, for problems with tests.
const OURS_WITH_TESTS: Layout = Layout {
    publisher: "aha",
    columns: &["prompt", "tests"],
    optional: &["id", "rating"],
    read: |row| {
        let tests = serde_json::from_str(&row.text("tests")?)
            .map_err(|error| row.wrong(&format!("`tests` is not JSON: {error}")))?;
        Ok(Read {
            id: row.maybe_text("id"),
            prompt: row.text("prompt")?,
            tests: Some(tests),
            rating: row.maybe_number("rating"),
            ..Read::default()
        })
    },
};

fn answered(row: &Row, [id, prompt, answer]: [&str; 3]) -> Result<Read> {
    let (prompt, answer) = (row.text(prompt)?, Some(row.text(answer)?));
    Ok(Read { id: row.maybe_text(id), prompt, answer, ..Read::default() })
}

fn mbpp(row: &Row, prompt: &str, setup: String) -> Result<Read> {
    let tests = row.texts("test_list");
    let task = row.text(prompt)?;
    Ok(Read {
        id: row.maybe_text("task_id"),
        prompt: format!("{task} Your code should pass these tests:\n\n{}", tests.join("\n")),
        tests: Some(json!({ "kind": "asserts", "setup": setup, "tests": tests })),
        ..Read::default()
    })
}

fn gpqa(row: &Row) -> Result<Read> {
    let question = row.text("Question")?;
    // Without an id of its own, the question is what it is known by.
    let id = row.maybe_text("Record ID");
    let columns =
        ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"];
    let mut prompt = format!("{}\n", question.trim());
    let mut answer = None;
    let order = row.shuffled(id.as_ref().unwrap_or(&question), columns.len());
    for (letter, column_idx) in ('A'..='D').zip(order) {
        prompt.push_str(&format!("\n{letter}) {}", row.text(columns[column_idx])?.trim()));
        if column_idx == 0 {
            answer = Some(letter.to_string());
        }
    }
    Ok(Read { id, prompt, answer, ..Read::default() })
}

fn codeforces(row: &Row) -> Result<Read> {
    let mut parts = Vec::new();
    parts.extend(row.maybe_text("title"));
    parts.push(row.text("description")?);
    for (column, heading) in [("input_format", "Input"), ("output_format", "Output")] {
        parts.extend(row.maybe_text(column).map(|text| format!("{heading}\n{text}")));
    }
    let examples = row.list("examples");
    for example in &examples {
        let of = |key: &str| example[key].as_str().unwrap_or_default().trim_end().to_owned();
        parts.push(format!("Example input\n{}\nExample output\n{}", of("input"), of("output")));
    }
    parts.extend(row.maybe_text("note").map(|text| format!("Note\n{text}")));
    let official = row.list("official_tests");
    let cases = if official.is_empty() { examples } else { official };
    if cases.is_empty() {
        return Err(row.wrong("it has neither tests nor examples"));
    }
    Ok(Read {
        id: row.maybe_text("id"),
        prompt: parts.join("\n\n"),
        tests: Some(json!({ "kind": "stdio", "cases": cases })),
        rating: row.maybe_number("rating"),
        ..Read::default()
    })
}
