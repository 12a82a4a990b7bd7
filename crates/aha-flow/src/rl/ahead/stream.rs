//! The sampler's thread: draws group after group, as long as prompts come, from weights that change.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use aha_model::Model;
use aha_rollout::view::PromptsView;
use aha_sample::{Audience, Completion, News, Request, Room, Sampler, Weights};
use arrow::array::RecordBatch;

use super::intake::Arrival;
use super::lane::{Lane, Published};
use crate::clock;
use crate::compute::panic_text;
use crate::error::{Error, Result};
use crate::generate::{self, Drawn};
use crate::rl::credit::Credit;
use crate::rl::fault::Point;
use crate::rl::stage::Shared;
use crate::rl::{learner, reward};

/// How long one that was struck waits for another prompt, which tells whose fault it is.
const OTHERS_WAIT: Duration = Duration::from_millis(500);

/// A prompt to complete.
pub struct Ask {
    /// The round that it is asked in.
    pub round: u64,
    /// A row of `aha_rollout::schema::prompts`.
    pub prompt: RecordBatch,
    /// Pays for the place of the round's prompts, all of which have it until they begin.
    pub credit: Arc<Credit>,
}

/// What the thread needs.
pub struct Stream {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Where weights come from.
    pub lane: Arc<Lane>,
    /// Where prompts come from; it ends when nobody sends any more.
    pub asks: mpsc::Receiver<Ask>,
    /// Where groups go.
    pub reward: reward::Handle,
    /// Who has to know of prompts without a group, and of weights that aren't the learner's.
    pub learner: learner::Handle,
    /// Which spawn of the left side this is.
    pub attempt: u64,
    /// Raised when nobody wants anything any more.
    pub cancel: Arc<AtomicBool>,
}

impl Stream {
    /// Draws all prompts together, as they come.
    pub fn together(self) -> Result<()> {
        let Some(mut weights) = self.first_weights() else { return Ok(()) };
        let mut engine = self.engine(&weights);
        while let Some(ask) = self.wait() {
            self.draw(&mut engine, &mut weights, ask, true)?;
        }
        Ok(())
    }

    /// Draws each prompt by itself, so that one at which sampling fails costs no other. What fails at every prompt
    /// isn't a prompt's own fault.
    pub fn one_by_one(self) -> Result<()> {
        let Some(mut weights) = self.first_weights() else { return Ok(()) };
        let mut engine = None;
        let (mut has_drawn, mut struck): (bool, Vec<(u64, String, Error)>) = (false, Vec::new());
        while let Some(ask) = self.next_alone(has_drawn, &mut struck)? {
            let (round, prompt_id) = (ask.round, prompt_id(&ask.prompt)?);
            let drawn = catch_unwind(AssertUnwindSafe(|| {
                let mut of_ask = engine.take().unwrap_or_else(|| self.engine(&weights));
                self.draw(&mut of_ask, &mut weights, ask, false).map(|()| of_ask)
            }));
            let drawn = drawn.unwrap_or_else(|panic| {
                Err(Error::bug(format!("sampling panicked: {}", panic_text(&*panic))))
            });
            match drawn {
                Ok(of_ask) => (engine, has_drawn) = (Some(of_ask), true),
                // Nobody wants the rest, which is no prompt's fault.
                Err(error) if self.is_cancelled() => return Err(error),
                Err(error @ Error::Device { .. }) => return Err(error),
                Err(error) => struck.push((round, prompt_id, error)),
            }
        }
        Ok(())
    }

    /// The next prompt. Those that were struck have failed once another was drawn, or if there is but one.
    fn next_alone(
        &self,
        has_drawn: bool,
        struck: &mut Vec<(u64, String, Error)>,
    ) -> Result<Option<Ask>> {
        let is_open = !has_drawn && !struck.is_empty();
        if is_open && let Ok(ask) = self.asks.recv_timeout(OTHERS_WAIT) {
            return Ok(Some(ask));
        }
        if !has_drawn && struck.len() > 1 {
            let (_, _, error) = struck.swap_remove(0);
            return Err(error);
        }
        for (round, prompt_id, error) in struck.drain(..) {
            self.fail(round, prompt_id, &error);
        }
        Ok(self.wait())
    }

    /// Waits for a prompt; none where nobody will send any.
    fn wait(&self) -> Option<Ask> {
        self.lane.idle(true);
        let ask = self.asks.recv().ok().filter(|_| !self.is_cancelled());
        self.lane.idle(false);
        ask
    }

    fn first_weights(&self) -> Option<Weights> {
        self.lane.first(&self.cancel).map(|published| self.checked(published))
    }

    /// Looks whether weights are those that were published.
    fn checked(&self, published: Published) -> Weights {
        let Published { weights, checksum } = published;
        // Where the device has failed, whoever draws from them says so.
        match weights.model.checksum() {
            Ok(found) if found != checksum => self.learner.weights_differ(weights.version, found),
            _ => {}
        }
        weights
    }

    fn engine(&self, weights: &Weights) -> Sampler {
        generate::sampler(&weights.model, &self.shared.tokenizer, &self.shared.run)
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn fail(&self, round: u64, prompt_id: String, error: &Error) {
        self.learner.arrived(self.attempt, round, Arrival::failed(prompt_id, error.to_string()));
    }

    /// Draws a prompt, and with `goes_on` those that come meanwhile.
    fn draw(
        &self,
        engine: &mut Sampler,
        weights: &mut Weights,
        ask: Ask,
        goes_on: bool,
    ) -> Result<()> {
        let shared = &self.shared;
        let mut desk = Desk {
            stream: self,
            model: Arc::clone(&weights.model),
            room: engine.room(),
            first: Some(ask),
            goes_on,
            next_idx: 0,
            open: BTreeMap::new(),
            outcome: Ok(()),
        };
        let random = shared.random.derive("ahead");
        engine.serve_changing(weights, &shared.sampling, random, &mut desk)?;
        desk.outcome?;
        if self.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

fn prompt_id(prompt: &RecordBatch) -> Result<String> {
    Ok(PromptsView::new(prompt)?.prompt_id(0).to_owned())
}

/// A group that is being drawn.
struct Open {
    round: u64,
    prompt: RecordBatch,
    completions: Vec<(Completion, i64)>,
}

/// Asks for what comes, and hands on groups that are complete.
struct Desk<'a> {
    stream: &'a Stream,
    /// What is drawn from now.
    model: Arc<Model>,
    room: Room,
    first: Option<Ask>,
    goes_on: bool,
    next_idx: usize,
    open: BTreeMap<usize, Open>,
    outcome: Result<()>,
}

impl Desk<'_> {
    /// A prompt as a request; none where it can't be served, and has failed.
    fn request(&mut self, ask: Ask) -> Result<Option<Request>> {
        let Stream { shared, .. } = self.stream;
        let view = PromptsView::new(&ask.prompt)?;
        let prompt_id = view.prompt_id(0);
        shared.faults.at_prompt(prompt_id)?;
        let request = Request {
            prompt_ids: view.prompt_token_ids(0).into(),
            address: generate::address(&format!("{}/{prompt_id}", ask.round)),
            samples: 0..shared.settings.group_size,
        };
        if let Err(error) = self.room.check(&self.model, &request, &shared.sampling) {
            self.stream.fail(ask.round, prompt_id.to_owned(), &error.into());
            return Ok(None);
        }
        let completions = Vec::with_capacity(request.samples.len());
        let Ask { round, prompt, credit } = ask;
        drop(credit);
        self.open.insert(self.next_idx, Open { round, prompt, completions });
        self.next_idx += 1;
        Ok(Some(request))
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        let Stream { shared, reward, cancel, attempt, .. } = self.stream;
        let idx = completion.request_idx;
        let unknown = || Error::bug("a completion of no request");
        let open = self.open.get_mut(&idx).ok_or_else(unknown)?;
        open.completions.push((completion, clock::now_us()));
        if open.completions.len() < shared.settings.group_size as usize {
            return Ok(());
        }
        let Open { round, prompt, completions } = self.open.remove(&idx).ok_or_else(unknown)?;
        let view = PromptsView::new(&prompt)?;
        let rows = generate::group_rows((&view, 0), completions, &shared.tokenizer, Drawn::ByEach)?;
        if reward.score(round, *attempt, rows) {
            return Ok(());
        }
        cancel.store(true, Ordering::Relaxed);
        Err(Error::Interrupted)
    }

    fn is_wanted(&self) -> bool {
        self.outcome.is_ok() && !self.stream.is_cancelled()
    }
}

impl Audience for Desk<'_> {
    fn next(&mut self) -> Option<Request> {
        while self.is_wanted() {
            let ask = match self.first.take() {
                Some(ask) => ask,
                None if self.goes_on => self.stream.asks.try_recv().ok()?,
                None => return None,
            };
            match self.request(ask) {
                Ok(Some(request)) => return Some(request),
                Ok(None) => {}
                Err(error) => self.outcome = Err(error),
            }
        }
        None
    }

    fn weights(&mut self) -> Option<Weights> {
        if let Err(error) = self.stream.shared.faults.at(Point::Decode, 0) {
            self.outcome = Err(error);
        }
        let newer = self.stream.checked(self.stream.lane.newer()?);
        self.model = Arc::clone(&newer.model);
        Some(newer)
    }

    fn hears(&mut self, _: News<'_>) -> bool {
        self.stream.lane.drew();
        self.is_wanted()
    }

    fn done(&mut self, completion: Completion) -> bool {
        if let Err(error) = self.complete(completion) {
            self.outcome = Err(error);
        }
        self.is_wanted()
    }
}
