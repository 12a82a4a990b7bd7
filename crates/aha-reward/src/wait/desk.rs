//! Requests in, answers out: each is asked once, by a bounded number of threads, and its answer kept.

use std::collections::HashMap;
use std::sync::Arc;

use super::answers::Outcome;
use super::pool::Pool;
use super::retry::Failure;
use super::{Key, Waiting};

/// A request: what its answer depends on, and what the service is told.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its identity.
    pub key: Key,
    /// What is sent.
    pub body: String,
}

/// Whoever answers.
pub trait Service: Send + Sync + 'static {
    /// The answer to each request, in order. Called on several threads at once; it waits no longer than its
    /// own limits allow.
    fn call(&self, requests: &[Request]) -> Vec<Result<String, Failure>>;
}

/// Where requests to one service are handed in.
pub struct Desk<S> {
    service: Arc<S>,
    waiting: Waiting,
    pool: Pool,
    batch_max: usize,
}

impl<S: Service> Desk<S> {
    /// At most `parallel_max` calls at once, of at most `batch_max` requests each.
    pub fn new(service: S, waiting: Waiting, parallel_max: usize, batch_max: usize) -> Desk<S> {
        let pool = Pool::new("aha-waiting", parallel_max);
        Desk { service: Arc::new(service), waiting, pool, batch_max }
    }

    /// The answer to each request, in order, or why there is none.
    pub fn ask(&self, requests: Vec<Request>) -> Vec<Outcome> {
        let mut outcomes: HashMap<Key, Outcome> = HashMap::new();
        let mut unknown: Vec<Request> = Vec::new();
        let keys: Vec<Key> = requests.iter().map(|request| request.key).collect();
        for request in requests {
            if outcomes.contains_key(&request.key) {
                continue;
            }
            let known = match &self.waiting.answers {
                Some(answers) => answers.get(&request.key),
                None => Ok(None),
            };
            // What stands here until there is an answer: nobody waits for one any more.
            let outcome = known.unwrap_or_else(|error| Some(Err(error)));
            let stopped = || Err("the run was stopped".to_owned());
            if outcome.is_none() {
                unknown.push(request.clone());
            }
            outcomes.insert(request.key, outcome.unwrap_or_else(stopped));
        }
        outcomes.extend(self.ask_unknown(&unknown));
        keys.iter().map(|key| outcomes[key].clone()).collect()
    }

    fn ask_unknown(&self, unknown: &[Request]) -> Vec<(Key, Outcome)> {
        let jobs = unknown.chunks(self.batch_max).map(|batch| {
            let (service, waiting) = (Arc::clone(&self.service), self.waiting.clone());
            let batch = batch.to_vec();
            move || {
                let outcomes = service.call(&batch);
                assert_eq!(outcomes.len(), batch.len(), "an outcome for each request");
                batch
                    .iter()
                    .zip(outcomes)
                    .map(|(request, outcome)| settle(&waiting, request, outcome))
                    .collect()
            }
        });
        let results: Vec<Option<Vec<_>>> = self.pool.run(&self.waiting.cancel, jobs.collect());
        let batches = unknown.chunks(self.batch_max).zip(results);
        let settled = batches.flat_map(|(batch, settled)| match settled {
            Some(settled) => settled,
            None if self.waiting.cancel.is_raised() => Vec::new(),
            None => {
                let reason =
                    "asking panicked, which is a bug in aha, or no thread could be started";
                batch.iter().map(|request| (request.key, Err(reason.to_owned()))).collect()
            }
        });
        settled.collect()
    }
}

/// The outcome that counts.
fn settle(
    waiting: &Waiting,
    request: &Request,
    outcome: Result<String, Failure>,
) -> (Key, Outcome) {
    let outcome = match outcome {
        // Whoever goes on with the run may have opened the answers by now.
        _ if waiting.cancel.is_raised() => Err("the run was stopped".to_owned()),
        Ok(answer) => Ok(answer),
        Err(Failure::Failed(reason)) => Err(reason),
        Err(Failure::Stopped) => Err("the run was stopped".to_owned()),
    };
    let is_kept = !waiting.cancel.is_raised() && (outcome.is_ok() || waiting.keeps_failures);
    let kept = match &waiting.answers {
        // An answer that isn't kept would be another one after a kill.
        Some(answers) if is_kept => answers.keep(&request.key, outcome).unwrap_or_else(Err),
        _ => outcome,
    };
    (request.key, kept)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{Answers, key};
    use super::*;

    /// Answers how often it was called by then, and fails for what begins with `bad`.
    #[derive(Default)]
    struct Counter(Arc<AtomicUsize>);

    impl Service for Counter {
        fn call(&self, requests: &[Request]) -> Vec<Result<String, Failure>> {
            let call = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            let answer = |request: &Request| match request.body.as_str() {
                "bad" => Err(Failure::Failed("bad".to_owned())),
                "panic" => panic!("asked to"),
                body => Ok(format!("{body} {call}")),
            };
            requests.iter().map(answer).collect()
        }
    }

    fn requests(bodies: &[&str]) -> Vec<Request> {
        let request = |body: &&str| Request { key: key(&[body]), body: (*body).to_owned() };
        bodies.iter().map(request).collect()
    }

    #[test]
    fn the_same_request_is_asked_once_and_never_again_where_answers_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let answers = Answers::open(&folder.path().join("answers.jsonl")).unwrap();
            Waiting { answers: Some(Arc::new(answers)), keeps_failures: true, ..Waiting::default() }
        };
        let calls = Arc::new(AtomicUsize::new(0));
        let bodies = ["a", "bad", "a", "b"];
        let desk = Desk::new(Counter(Arc::clone(&calls)), open(), 1, 1);
        let first = desk.ask(requests(&bodies));
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(first, [ok("a 1"), Err("bad".to_owned()), ok("a 1"), ok("b 3")]);
        drop(desk);
        let again = Desk::new(Counter(Arc::clone(&calls)), open(), 8, 2);
        assert_eq!(again.ask(requests(&bodies)), first);
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn requests_go_in_batches_and_a_panic_costs_its_own_batch() {
        let calls = Arc::new(AtomicUsize::new(0));
        let desk = Desk::new(Counter(Arc::clone(&calls)), Waiting::default(), 1, 2);
        let outcomes = desk.ask(requests(&["a", "b", "panic", "c", "d"]));
        assert_eq!(outcomes[..2], [Ok("a 1".to_owned()), Ok("b 1".to_owned())]);
        assert!(outcomes[2].is_err() && outcomes[3].is_err());
        assert_eq!(outcomes[4], Ok("d 3".to_owned()));
    }

    #[test]
    fn failures_are_asked_again_where_they_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let answers = Arc::new(Answers::open(&folder.path().join("a.jsonl")).unwrap());
        let waiting = Waiting { answers: Some(answers), ..Waiting::default() };
        let calls = Arc::new(AtomicUsize::new(0));
        let desk = Desk::new(Counter(Arc::clone(&calls)), waiting, 1, 1);
        assert_eq!(desk.ask(requests(&["bad", "a"])), desk.ask(requests(&["bad", "a"])));
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn nothing_is_asked_or_kept_after_a_stop() {
        let folder = tempfile::tempdir().unwrap();
        let answers = Arc::new(Answers::open(&folder.path().join("a.jsonl")).unwrap());
        let waiting = Waiting { answers: Some(Arc::clone(&answers)), ..Waiting::default() };
        waiting.cancel.raise();
        let desk = Desk::new(Counter::default(), waiting, 1, 1);
        assert!(desk.ask(requests(&["a"]))[0].as_ref().unwrap_err().contains("stopped"));
        assert_eq!(answers.get(&key(&["a"])).unwrap(), None);
    }
}
