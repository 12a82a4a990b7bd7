//! Files in each publisher's layout, made here, and the problems in them.

use aha_data::source::TableSource;
use aha_data::{Session, SessionOptions};
use serde_json::json;

use super::*;
use crate::pipeline::Benchmark;

/// Rows of a JSON lines file, as a table gives them.
async fn rows(lines: &[Json]) -> Vec<RecordBatch> {
    let temp = tempfile::tempdir().unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs_err::write(temp.path().join("data.jsonl"), text).unwrap();
    let session = Session::new(&SessionOptions::default()).unwrap();
    let source = TableSource::new("data.jsonl", temp.path()).unwrap();
    session.register("data", &source).await.unwrap();
    session.collect("SELECT * FROM data").await.unwrap()
}

async fn read(benchmark: Benchmark, lines: &[Json]) -> Result<Vec<Problem>> {
    let batches = rows(lines).await;
    problems(benchmark.word(), benchmark.card(), &batches, Philox::new(7), Origin::Files)
}

/// The one problem of a file of one row.
async fn one(benchmark: Benchmark, line: Json) -> Problem {
    let mut found = read(benchmark, &[line]).await.unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn answered(id: &str, source: &str, prompt: &str, answer: &str) -> Problem {
    Problem {
        id: id.to_owned(),
        prompt: prompt.to_owned(),
        answer: Some(answer.to_owned()),
        source: Some(source.to_owned()),
        tests: None,
        rating: None,
        pass_rate: None,
    }
}

fn tests_of(problem: &Problem) -> Json {
    serde_json::from_str(problem.tests.as_deref().unwrap()).unwrap()
}

#[tokio::test]
async fn problems_with_an_answer_are_read_from_every_publisher() {
    use Benchmark::{Aime, Gsm8k, Math500};
    let cases = [
        (
            Gsm8k,
            json!({"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4,000"}),
            answered("0", "gsm8k", "Two and two?", "4,000"),
        ),
        (
            Gsm8k,
            json!({"id": "g7", "source": "ours", "prompt": "Q", "answer": "4", "split": "test"}),
            answered("g7", "ours", "Q", "4"),
        ),
        (
            Math500,
            json!({"problem": "P", "solution": "…", "answer": "\\frac{1}{2}", "subject": "Algebra",
                   "level": 2, "unique_id": "test/algebra/1.json"}),
            answered("test/algebra/1.json", "math500", "P", "\\frac{1}{2}"),
        ),
        (
            Aime,
            json!({"id": 60, "problem": "P", "solution": "…", "answer": "204", "year": "2024"}),
            answered("60", "aime", "P", "204"),
        ),
        (
            Aime,
            json!({"ID": "2024-I-4", "Problem": "P", "Solution": "…", "Answer": 116}),
            answered("2024-I-4", "aime", "P", "116"),
        ),
        (Aime, json!({"question": "P", "answer": "70"}), answered("0", "aime", "P", "70")),
        // Some readers of CSV take a column with a gap for floats.
        (Aime, json!({"problem": "P", "answer": 33.0}), answered("0", "aime", "P", "33")),
    ];
    for (benchmark, line, expected) in cases {
        let shown = line.to_string();
        assert_eq!(one(benchmark, line).await, expected, "{shown}");
    }
}

#[tokio::test]
async fn problems_with_tests_are_read_from_every_publisher() {
    let humaneval = one(
        Benchmark::HumanEval,
        json!({"task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n",
               "test": "def check(candidate):\n    assert candidate(1) == 1\n", "entry_point": "f"}),
    )
    .await;
    assert_eq!((humaneval.id.as_str(), humaneval.prompt.as_str()), ("HumanEval/0", "def f(x):\n"));
    assert_eq!(
        tests_of(&humaneval),
        json!({"kind": "humaneval", "entry_point": "f",
               "test": "def check(candidate):\n    assert candidate(1) == 1\n"})
    );

    let asserts = ["assert f(1) == 2", "assert f(2) == 3"];
    let expected = |setup: &str| json!({"kind": "asserts", "setup": setup, "tests": asserts});
    let full = one(
        Benchmark::Mbpp,
        json!({"task_id": 11, "text": "Add one.", "code": "…", "test_list": asserts,
               "test_setup_code": "import math", "challenge_test_list": []}),
    )
    .await;
    assert_eq!((full.id.as_str(), tests_of(&full)), ("11", expected("import math")));
    let text = "Add one. Your code should pass these tests:\n\nassert f(1) == 2\nassert f(2) == 3";
    assert_eq!(full.prompt, text);
    let sanitized = one(
        Benchmark::Mbpp,
        json!({"source_file": "x", "task_id": 11, "prompt": "Add one.", "code": "…",
               "test_imports": ["import math", "import re"], "test_list": asserts}),
    )
    .await;
    assert_eq!(tests_of(&sanitized), expected("import math\nimport re"));
    assert_eq!(sanitized.prompt, text);

    let ours = one(
        Benchmark::Mbpp,
        json!({"id": "m", "prompt": "Add one, as these say: …", "answer": "…", "split": "test",
               "tests": expected("").to_string()}),
    )
    .await;
    assert_eq!(tests_of(&ours), expected(""));
    assert_eq!(ours.prompt, "Add one, as these say: …", "our prompts name their tests");
}

#[tokio::test]
async fn a_contest_problem_has_all_that_its_page_says_and_a_rating() {
    let line = json!({
        "id": "4/A", "title": "Watermelon", "description": "Can it be divided?",
        "input_format": "One number.", "output_format": "YES or NO.", "note": "Both parts weigh.",
        "examples": [{"input": "8\n", "output": "YES\n"}],
        "official_tests": [{"input": "8\n", "output": "YES\n"}, {"input": "3\n", "output": "NO\n"}],
        "rating": 800
    });
    let found = one(Benchmark::Codeforces, line).await;
    assert_eq!((found.id.as_str(), found.rating), ("4/A", Some(800.0)));
    let cases = json!([{"input": "8\n", "output": "YES\n"}, {"input": "3\n", "output": "NO\n"}]);
    assert_eq!(tests_of(&found), json!({"kind": "stdio", "cases": cases}));
    let expected = "Watermelon\n\nCan it be divided?\n\nInput\nOne number.\n\nOutput\nYES or NO.\n\n\
                    Example input\n8\nExample output\nYES\n\nNote\nBoth parts weigh.";
    assert_eq!(found.prompt, expected);
    let ours = json!({"id": "c", "prompt": "P", "tests": "{\"kind\":\"stdio\",\"cases\":[]}",
                      "rating": 1900.0});
    assert_eq!(one(Benchmark::Codeforces, ours).await.rating, Some(1900.0));
    let bare = json!({"description": "P", "official_tests": [], "examples": []});
    let error = read(Benchmark::Codeforces, &[bare]).await.unwrap_err();
    assert!(error.to_string().contains("neither tests nor examples"), "{error}");
}

#[tokio::test]
async fn choices_are_shuffled_by_the_seed_and_the_question() {
    let line = |idx: usize| {
        json!({"Record ID": format!("rec{idx}"), "Question": "What is it?", "Correct Answer": "right",
               "Incorrect Answer 1": "wrong 1", "Incorrect Answer 2": "wrong 2\n",
               "Incorrect Answer 3": "wrong 3"})
    };
    let lines: Vec<Json> = (0..40).map(line).collect();
    let found = read(Benchmark::Gpqa, &lines).await.unwrap();
    let mut letters = std::collections::BTreeSet::new();
    for problem in &found {
        let (question, options) = problem.prompt.split_once("\n\n").unwrap();
        assert_eq!(question, "What is it?");
        let options: Vec<&str> = options.lines().collect();
        let heads: Vec<&str> = options.iter().map(|option| &option[..3]).collect();
        assert_eq!(heads, ["A) ", "B) ", "C) ", "D) "]);
        let answer = problem.answer.as_deref().unwrap();
        assert!(options.contains(&format!("{answer}) right").as_str()), "{problem:?}");
        letters.insert(answer.to_owned());
    }
    assert_eq!(letters.len(), 4, "the right one is anywhere");
    // A question's choices don't depend on which others there are, but on the seed.
    assert_eq!(read(Benchmark::Gpqa, &lines[5..6]).await.unwrap()[0].prompt, found[5].prompt);
    let batches = rows(&lines).await;
    let card = Benchmark::Gpqa.card();
    let other = problems("gpqa", card, &batches, Philox::new(8), Origin::Files).unwrap();
    assert!(found.iter().zip(&other).any(|(a, b)| a.prompt != b.prompt));
}

#[tokio::test]
async fn rows_of_other_splits_are_left_out() {
    let line =
        |id: &str, split: &str| json!({"id": id, "prompt": "Q", "answer": "4", "split": split});
    let lines = [line("a", "train"), line("b", "test"), line("c", "train")];
    let found = read(Benchmark::Gsm8k, &lines).await.unwrap();
    assert_eq!(found.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["b"]);
    let error = read(Benchmark::Gsm8k, &lines[..1]).await.unwrap_err();
    assert!(error.to_string().contains("no row has the split `test`"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said_without_a_query() {
    let cases = [
        (json!({"text": "Q", "label": 1}), "no layout of `gsm8k` has the columns text, label"),
        (json!({"question": "Q", "answer": "4"}), "row 0 of the problems: `answer` has no `####`"),
        (json!({"question": null, "answer": "#### 4", "id": 1}), "has no `question`"),
    ];
    for (line, message) in cases {
        let error = read(Benchmark::Gsm8k, &[line]).await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        let hint = error.hint().unwrap_or_default();
        assert!(!hint.contains("WHERE") && !hint.contains("aha query"), "{hint}");
    }
    let twice = json!({"id": "a", "prompt": "Q", "answer": "4"});
    let error = read(Benchmark::Gsm8k, &[twice.clone(), twice]).await.unwrap_err();
    assert!(error.to_string().contains("`a` occurs twice"), "{error}");
    assert!(!error.hint().unwrap().contains("SELECT"), "{error:?}");
}
