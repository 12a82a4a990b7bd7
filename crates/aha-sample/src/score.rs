//! Log-probs of tokens that are given, with the likeliest ones beside them: the sampler's own numbers for a text that
//! it did not draw.

use aha_compute::ops::lm_head;
use aha_compute::{Tape, Tensor};
use aha_model::Model;
use aha_model::model::Batch;

use crate::draw::Drawer;
use crate::engine::LOGITS_LEN_MAX;
use crate::{Error, Sampling};

/// A token that was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Its log-prob after those before it.
    pub logprob: f32,
    /// The likeliest tokens in its place with their log-probs, the likeliest first, the lower id of equals.
    pub top: Vec<(u32, f32)>,
}

/// Scores the tokens of a sequence from its second on, at `temperature`, with the `top` likeliest beside each.
pub fn score(
    model: &Model,
    token_ids: &[u32],
    temperature: f32,
    top: usize,
) -> Result<Vec<Scored>, Error> {
    model.check_sequence(token_ids)?;
    let sampling = Sampling { temperature, ..Sampling::default() };
    sampling.check()?;
    let count = token_ids.len().saturating_sub(1);
    if count == 0 {
        return Ok(Vec::new());
    }
    let (device, params) = (model.device(), model.params());
    let mut tape = Tape::inference(device, params);
    let hidden = model.hidden(&mut tape, Batch::packed(token_ids, [token_ids.len()]), false);
    let rows: Vec<usize> = (0..count).collect();
    let hidden = tape.select_rows(&hidden, &rows.into());
    let packed = params.packed_as(model.head(), sampling.weights);
    let chunk = (LOGITS_LEN_MAX / model.config().vocab_size).max(1);
    let mut drawer = Drawer::default();
    let mut scored = Vec::with_capacity(count);
    for start in (0..count).step_by(chunk) {
        let end = (start + chunk).min(count);
        let hidden = hidden.value().rows_range(start..end);
        let mut logits = Tensor::uninit(device, &[hidden.rows(), packed.out_len()]);
        lm_head::logits(&mut logits, &hidden, packed, sampling.inv_temperature());
        let logits = logits.host();
        model.check_device()?;
        for values in logits.chunks_exact(packed.out_len()) {
            let likeliest = likeliest(values, top);
            let row = drawer.row(device.isa(), values, &sampling);
            scored.push(Scored {
                logprob: row.take(token_ids[scored.len() + 1]).logprob,
                top: likeliest.into_iter().map(|id| (id, row.take(id).logprob)).collect(),
            });
        }
    }
    Ok(scored)
}

/// The ids of the greatest logits, the greatest first, the lower id of equals.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(ids.len());
    if count == 0 {
        return Vec::new();
    }
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_equals_by_id() {
        assert_eq!(likeliest(&[0.5, 2.0, -1.0, 2.0], 3), [1, 3, 0]);
        assert_eq!(likeliest(&[0.5, 2.0], 9), [1, 0]);
        assert!(likeliest(&[0.5], 0).is_empty());
    }
}
