//! Draws from rows of logits on a device: temperature, top-k and top-p.
//!
//! | buffer                            | shape  | written by                                       |
//! |-----------------------------------|--------|--------------------------------------------------|
//! | `logits`                          | (T, V) | caller, f32                                      |
//! | `stats`                           |        | [`statistics`]                                   |
//! | `prompts` `samples` `positions`   | (N)    | caller, u64: the address of each draw            |
//! | `forced`                          | (N)    | caller, u32; [`NOTHING`] where one is drawn      |
//! | `rows`                            | (N)    | caller, u32: the row of each; `n` where absent   |
//! | `ids`                             | (N)    | draw `=`, u32                                    |
//! | `log_probs`                       | (N)    | draw `=`, nats                                   |
//!
//! The draw is that of `aha-sample`'s `Drawer`, for the same logits: weights are the same exponentials, sums that
//! decide are taken in the same order, and the uniform number is that of the address. Of all tokens, it is the first at
//! which the running sum of weights, whole blocks first, exceeds the number times their total. With top-k or top-p,
//! candidates are gone through likeliest first, equals by id. The log-prob is that under the whole distribution.

use std::ops::Range;
use std::sync::Arc;

use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::lm_head::cuda::{Stats, logits as logits_of, statistics};
use crate::staging::{Part, Place, Words};

pub(crate) static SOURCE: Source = Source { name: "draw.cu", text: include_str!("draw/draw.cu") };

/// What is in `forced` where nothing is.
pub const NOTHING: u32 = u32::MAX;

/// How tokens are drawn; the same for all rows of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep so many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Keep the fewest likeliest tokens that have this share of the weight; 1 for all.
    pub top_p: f32,
    /// The family of random numbers: [`Philox::key`](crate::random::Philox::key).
    pub key: u64,
}

impl Settings {
    /// What logits are multiplied by, which must be the statistics' too.
    pub fn inv_temperature(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { 1.0 / self.temperature }
    }
}

/// Where each draw is, three words to a draw, and what isn't drawn.
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a> {
    /// Identity of the prompt in its step.
    pub prompts: View<'a>,
    /// Which of the prompt's completions.
    pub samples: View<'a>,
    /// Index of the token in its completion.
    pub positions: View<'a>,
    /// Tokens that are taken instead of drawing; absent where all are drawn.
    pub forced: Option<View<'a>>,
    /// The row of logits of each draw, and what number the first one has that is there; row by row where absent.
    pub rows: Option<(View<'a>, usize)>,
}

/// Draws tokens, one from each row or as many as are asked for. `stats` are of these logits, with sums of blocks.
pub fn draw(
    cx: &Context,
    ids: &mut ViewMut<'_>,
    log_probs: &mut ViewMut<'_>,
    logits: View<'_>,
    stats: &Stats,
    addresses: Addresses<'_>,
    settings: &Settings,
) -> Result<(), Error> {
    let (count, rows) = (ids.len(), stats.rows().len() / 3);
    let cols = logits.len().checked_div(rows).unwrap_or(0);
    ids.assert_is(Kind::U32, count);
    log_probs.assert_is(Kind::F32, count);
    logits.assert_is(Kind::F32, rows * cols);
    for view in [addresses.prompts, addresses.samples, addresses.positions] {
        view.assert_is(Kind::U64, count);
    }
    let lists = [addresses.forced, addresses.rows.map(|(rows, _)| rows)];
    lists.into_iter().flatten().for_each(|list| list.assert_is(Kind::U32, count));
    assert!(addresses.rows.is_some() || count == rows, "{count} draws from {rows} rows");
    let block_sums = stats.block_sums().expect("statistics to draw by have sums of blocks");
    // As many as there are, or more, is all.
    let top_k = if settings.top_k < cols { settings.top_k } else { 0 };
    let args = [
        Arg::from(&*ids),
        Arg::from(&*log_probs),
        Arg::from(&logits),
        Arg::from(&stats.rows()),
        Arg::from(&block_sums),
        Arg::from(&addresses.prompts),
        Arg::from(&addresses.samples),
        Arg::from(&addresses.positions),
        Arg::of(addresses.forced),
        Arg::of(addresses.rows.map(|(rows, _)| rows)),
        Arg::size(addresses.rows.map_or(0, |(_, first)| first)),
        Arg::size(cols),
        Arg::F32(settings.inv_temperature()),
        Arg::U64(settings.key),
        Arg::U32(u32::from(settings.temperature == 0.0)),
        Arg::size(top_k),
        Arg::F32(settings.top_p),
    ];
    // SAFETY: kinds and lengths are checked above; rows are the caller's promise.
    unsafe { cx.launch(&plan(count), &args) }
}

/// Draws that a step is to make, in the order of their rows.
#[derive(Debug, Default)]
pub struct Draws {
    /// The row of hidden states that each draws after.
    rows: Vec<u32>,
    addresses: [Vec<u64>; 3],
    forced: Vec<u32>,
    forces: bool,
}

impl Draws {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.addresses.iter_mut().for_each(Vec::clear);
        self.forced.clear();
        self.forces = false;
    }

    /// Adds one after this row, which isn't before that of the last: at an address of prompt, sample and position, or a
    /// token that is taken instead.
    pub fn push(&mut self, row: usize, address: [u64; 3], forced: Option<u32>) {
        assert!(self.rows.last().is_none_or(|&last| last as usize <= row), "draws go by rows");
        self.rows.push(row as u32);
        self.addresses.iter_mut().zip(address).for_each(|(list, x)| list.push(x));
        self.forced.push(forced.unwrap_or(NOTHING));
        self.forces |= forced.is_some();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Puts their lists with others of a step.
    pub(crate) fn put(&self, words: &mut Words) -> Places {
        Places {
            addresses: self.addresses.each_ref().map(|list| words.push_u64(list.iter().copied())),
            rows: words.push(self.rows.iter().copied()),
            forced: self.forces.then(|| words.push(self.forced.iter().copied())),
        }
    }
}

/// Where the lists of [`Draws`] are among those of a step.
pub(crate) struct Places {
    addresses: [Place; 3],
    rows: Place,
    forced: Option<Place>,
}

/// Lists of [`Draws`] on a device.
#[derive(Debug)]
pub(crate) struct Lists {
    addresses: [Part; 3],
    rows: Part,
    forced: Option<Part>,
}

impl Lists {
    /// Of lists that were copied to the device.
    pub(crate) fn at(words: &Arc<Buffer>, places: Places) -> Lists {
        let part = |place| Part::new(words, place);
        Lists {
            addresses: places.addresses.map(part),
            rows: part(places.rows),
            forced: places.forced.map(part),
        }
    }

    /// Some of the draws, from rows of which the first that is there has this number.
    fn addresses(&self, draws: &Range<usize>, first_row: usize) -> Addresses<'_> {
        let [prompts, samples, positions] =
            self.addresses.each_ref().map(|part| part.view_u64().slice(draws.clone()));
        Addresses {
            prompts,
            samples,
            positions,
            forced: self.forced.as_ref().map(|part| part.view().slice(draws.clone())),
            rows: Some((self.rows.view().slice(draws.clone()), first_row)),
        }
    }
}

/// Draws after rows of hidden states `(T, C)`, of which the first `row_count` count: tokens, then the bits of their
/// log-probs. At most so many logits are there at once, but for a row.
pub(crate) fn after(
    cx: &Context,
    (hidden, row_count): (View<'_>, usize),
    head: View<'_>,
    width: usize,
    (draws, lists): (&Draws, &Lists),
    settings: &Settings,
    logits_len_max: usize,
) -> Result<Buffer, Error> {
    let (vocab, count) = (head.len() / width, draws.len());
    let mut results = cx.buffer(Kind::U32, 2 * count)?;
    let (mut ids, log_probs) = results.view_mut().split_at(count);
    let mut log_probs = log_probs.as_kind(Kind::F32);
    let chunk = (logits_len_max / vocab).max(1);
    for first in (0..row_count).step_by(chunk) {
        let rows = first..row_count.min(first + chunk);
        let place = |row: usize| draws.rows.partition_point(|&of| (of as usize) < row);
        let of_chunk = place(rows.start)..place(rows.end);
        let mut logits = cx.buffer(Kind::F32, rows.len() * vocab)?;
        let hidden = hidden.slice(rows.start * width..rows.end * width);
        logits_of(cx, &mut logits.view_mut(), hidden, head, rows.len(), 1.0)?;
        let stats = statistics(cx, logits.view(), vocab, settings.inv_temperature(), None, true)?;
        let addresses = lists.addresses(&of_chunk, first);
        let ids = &mut ids.reborrow().slice(of_chunk.clone());
        let log_probs = &mut log_probs.reborrow().slice(of_chunk);
        draw(cx, ids, log_probs, logits.view(), &stats, addresses, settings)?;
    }
    Ok(results)
}

fn plan(rows: usize) -> Plan {
    Plan::new(&SOURCE, "draw", rows, 512)
}

#[cfg(test)]
mod tests;
