//! `kind = "judge"`.

use aha_reward::Verdict;
use serde_json::json;

use crate::server::{Reply, Server};
use crate::{Lender, judge, samples, verifier};

fn says(text: &str) -> Reply {
    Reply::ok(&json!({"choices": [{"message": {"role": "assistant", "content": text}}]}))
}

#[test]
fn an_endpoint_is_asked_as_a_chat_and_its_score_brought_to_0_to_1() {
    let server = Server::start(|_, _| says("Good. It claims 10, but:\nScore: 7"));
    let reward = format!(r#"{{"kind":"judge","url":"{}/v1/","model":"critic-7b"}}"#, server.url);
    let verifier = verifier(&reward, &Lender::default());
    assert_eq!(judge(verifier.as_ref(), "five"), Verdict::scored(0.7, "the judge says 7"));
    let request = &server.requests()[0];
    assert_eq!(request.line, "POST /v1/chat/completions HTTP/1.1\r\n");
    assert!(!request.headers.contains("authorization"));
    let body = &request.body;
    assert_eq!((&body["model"], &body["temperature"]), (&json!("critic-7b"), &json!(0.0)));
    assert!(body["messages"][0]["content"].as_str().unwrap().contains("\nfive\n"));
}

#[test]
fn a_judge_that_says_no_score_gives_null_and_is_not_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|number, _| match number {
        0 => says("I can't tell."),
        1 => Reply::ok(&json!({"error": "no"})),
        _ => says("Score: 11"),
    });
    let reward =
        format!(r#"{{"kind":"judge","url":"{}","model":"m","parallel_max":1}}"#, server.url);
    let verdicts = || {
        let verifier = verifier(&reward, &Lender::keeping(folder.path()));
        verifier.score_all(&samples(&["a", "b", "c"]))
    };
    let first = verdicts();
    for (verdict, reason) in
        first.iter().zip(["has no score: … I can't", "message.content", "says 11"])
    {
        assert!(verdict.score.is_none() && verdict.reason.contains(reason), "{verdict:?}");
    }
    assert_eq!(verdicts(), first);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_model_of_the_pipeline_is_asked_together() {
    let reward = r#"{"kind":"judge","model":"critic","template":"{completion}{answer}"}"#;
    let verifier = verifier(reward, &Lender::default());
    let mut asked = samples(&["12", "123456"]);
    asked[1].answer = None;
    asked.extend(samples(&["123"]));
    let verdicts = verifier.score_all(&asked);
    assert_eq!(verdicts[0], Verdict::scored(0.3, "the judge says 3"));
    assert_eq!(verdicts[1], Verdict::unscored("the sample has no answer"));
    assert_eq!(verdicts[2], Verdict::scored(0.4, "the judge says 4"));
}
