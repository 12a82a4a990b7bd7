//! Draws from rows of logits on a device: temperature, top-k and top-p.
//!
//! | buffer                            | shape  | written by                                       |
//! |-----------------------------------|--------|--------------------------------------------------|
//! | `logits`                          | (T, V) | caller, f32                                      |
//! | `stats`                           |        | [`statistics`]                                   |
//! | `prompts` `samples` `positions`   | (T)    | caller, u64: the address of each row's draw      |
//! | `forced`                          | (T)    | caller, u32; [`NOTHING`] where a row is drawn    |
//! | `ids`                             | (T)    | draw `=`, u32                                    |
//! | `log_probs`                       | (T)    | draw `=`, nats                                   |
//!
//! The draw is that of `aha-sample`'s `Drawer`, for the same logits: weights are the same exponentials, sums that
//! decide are taken in the same order, and the uniform number is that of the address. Of all tokens, it is the first at
//! which the running sum of weights, whole blocks first, exceeds the number times their total. With top-k or top-p,
//! candidates are gone through likeliest first, equals by id. The log-prob is that under the whole distribution.

use crate::Tensor;
use crate::cuda::{Arg, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::lm_head::cuda::{Stats, statistics};

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

/// Where each row's draw is, three words to a row, and which rows aren't drawn.
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a> {
    /// Identity of the prompt in its step.
    pub prompts: View<'a>,
    /// Which of the prompt's completions.
    pub samples: View<'a>,
    /// Index of the token in its completion.
    pub positions: View<'a>,
    /// Tokens that rows take instead of drawing; absent where all are drawn.
    pub forced: Option<View<'a>>,
}

/// Draws a token from each row. `stats` are of these logits, with sums of blocks.
pub fn draw(
    cx: &Context,
    ids: &mut ViewMut<'_>,
    log_probs: &mut ViewMut<'_>,
    logits: View<'_>,
    stats: &Stats,
    addresses: Addresses<'_>,
    settings: &Settings,
) -> Result<(), Error> {
    let rows = ids.len();
    let cols = logits.len().checked_div(rows).unwrap_or(0);
    ids.assert_is(Kind::U32, rows);
    log_probs.assert_is(Kind::F32, rows);
    logits.assert_is(Kind::F32, rows * cols);
    stats.rows().assert_is(Kind::F32, rows * 3);
    for view in [addresses.prompts, addresses.samples, addresses.positions] {
        view.assert_is(Kind::U64, rows);
    }
    if let Some(forced) = addresses.forced {
        forced.assert_is(Kind::U32, rows);
    }
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
        Arg::size(cols),
        Arg::F32(settings.inv_temperature()),
        Arg::U64(settings.key),
        Arg::U32(u32::from(settings.temperature == 0.0)),
        Arg::size(top_k),
        Arg::F32(settings.top_p),
    ];
    // SAFETY: kinds and lengths are checked above.
    unsafe { cx.launch(&plan(rows), &args) }
}

/// As [`draw()`], from tensors on a CUDA device: the token and its log-prob for each row of `logits`. `addresses` are
/// prompt, sample and position of each row, and `forced` its token or [`NOTHING`]. Unspecified after a failure of the
/// device.
pub fn rows(
    logits: &Tensor,
    addresses: &[[u64; 3]],
    forced: &[u32],
    settings: &Settings,
) -> Vec<(u32, f32)> {
    let count = logits.rows();
    assert_eq!((addresses.len(), forced.len()), (count, count), "an address for each row");
    let drawn = logits.gpu().expect("logits on a CUDA device").ask(|cx| {
        let scale = settings.inv_temperature();
        let stats = statistics(cx, logits.view(), logits.cols(), scale, None, true)?;
        let column =
            |i: usize| -> Vec<u64> { addresses.iter().map(|address| address[i]).collect() };
        let [prompts, samples, positions] = [0, 1, 2].map(|i| cx.upload(&column(i)));
        let (prompts, samples, positions) = (prompts?, samples?, positions?);
        let forced = match forced.iter().all(|&id| id == NOTHING) {
            true => None,
            false => Some(cx.upload(forced)?),
        };
        let addresses = Addresses {
            prompts: prompts.view(),
            samples: samples.view(),
            positions: positions.view(),
            forced: forced.as_ref().map(|forced| forced.view()),
        };
        let (mut ids, mut log_probs) = (cx.buffer(Kind::U32, count)?, cx.buffer(Kind::F32, count)?);
        let (to, log_probs_to) = (&mut ids.view_mut(), &mut log_probs.view_mut());
        draw(cx, to, log_probs_to, logits.view(), &stats, addresses, settings)?;
        let ids: Vec<u32> = cx.download(ids.view())?;
        let log_probs: Vec<f32> = cx.download(log_probs.view())?;
        Ok(ids.into_iter().zip(log_probs).collect())
    });
    drawn.unwrap_or_else(|| vec![(0, 0.0); count])
}

fn plan(rows: usize) -> Plan {
    Plan::new(&SOURCE, "draw", rows, 512)
}

#[cfg(test)]
mod tests;
