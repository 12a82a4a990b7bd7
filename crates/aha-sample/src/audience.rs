//! Who hears of completions while they are drawn.

use crate::{Completion, Request, Weights};

/// What a completion has so far. With [`crate::Thinking`] tokens may be taken back: then there are fewer than before.
#[derive(Clone, Copy, Debug)]
pub struct News<'a> {
    /// Index of its request, in the order in which they were asked.
    pub request_idx: usize,
    /// Which of the request's completions.
    pub sample_idx: u32,
    /// Its tokens.
    pub token_ids: &'a [u32],
    /// Their log-probs.
    pub logprobs: &'a [f32],
}

/// Asks for completions while others are drawn, and hears of each token. It is called on the thread that draws, so it
/// has to return at once.
pub trait Audience {
    /// The next request, if there is one now. [`crate::Sampler::serve`] counts them from 0.
    fn next(&mut self) -> Option<Request>;

    /// Newer weights, where [`crate::Sampler::serve_changing`] is to go on with others.
    fn weights(&mut self) -> Option<Weights> {
        None
    }

    /// A completion has a new token. Says whether it is still wanted: if not, it is dropped, and never done.
    fn hears(&mut self, news: News<'_>) -> bool;

    /// A completion has ended. Says whether to go on with the others.
    fn done(&mut self, completion: Completion) -> bool;
}

/// One that asks for nothing and hears only of what has ended.
pub(crate) struct Listener<'a> {
    pub(crate) done: &'a mut dyn FnMut(Completion) -> bool,
}

impl Audience for Listener<'_> {
    fn next(&mut self) -> Option<Request> {
        None
    }

    fn hears(&mut self, _: News<'_>) -> bool {
        true
    }

    fn done(&mut self, completion: Completion) -> bool {
        (self.done)(completion)
    }
}
