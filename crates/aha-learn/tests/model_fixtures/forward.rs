//! What the model says of sequences.

use aha_compute::ops::lm_head;
use aha_compute::{Tape, Tensor};
use aha_model::Model;
use aha_model::model::Batch;

use super::support::{Comparison, NAMES, Setup, fixture, floats, ids, keys};

/// The sequences of each fixture, and how long they are.
const SEQUENCES: [(&str, usize); 4] = [("len1", 1), ("len200", 200), ("len64", 64), ("len7", 7)];

#[test]
fn log_probs_and_entropies_are_those_of_transformers() {
    let mut comparison = Comparison::default();
    for name in NAMES {
        let fixture = fixture(name);
        let sequences = &fixture["sequences"];
        assert_eq!(keys(sequences), SEQUENCES.map(|(key, _)| key), "{name}");
        let token_ids = SEQUENCES.map(|(key, _)| ids(&sequences[key]["ids"]));
        let views: Vec<&[u32]> = token_ids.iter().map(Vec::as_slice).collect();
        for setup in Setup::all(name) {
            let (model, device) = (setup.load(name), &setup.device);
            let together = model.log_probs(&views).unwrap();
            for ((key, len), (ids, packed)) in SEQUENCES.iter().zip(views.iter().zip(&together)) {
                let what = format!("{name} {key}");
                let (logps, entropies) = alone(&model, ids);
                assert_eq!(&logps[..len - 1], packed, "{what}: alone and packed");
                comparison.same_bits(device, &what, &logps);
                let wanted = [("next_logprobs_f64", packed), ("entropy_f32", &entropies)];
                for (kind, found) in wanted {
                    let want = floats(&sequences[key][kind]);
                    assert_eq!(found.len(), want.len(), "{what}");
                    for (i, (found, want)) in found.iter().zip(want).enumerate() {
                        let off = (f64::from(*found) - want).abs();
                        let what = format!("{what}[{i}]");
                        comparison.near(device, kind, &what, off, setup.bounds.nats);
                    }
                }
            }
        }
    }
    comparison.show();
}

/// Log-probs of the tokens from the second on and of token 0 after them, and entropies after each token.
fn alone(model: &Model, ids: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let mut tape = Tape::inference(model.device(), model.params());
    let hidden = model.hidden(&mut tape, Batch::packed(ids, [ids.len()]), false);
    let targets: Vec<u32> = ids[1..].iter().copied().chain([0]).collect();
    let (logps, entropies) = tape.log_probs(&hidden, model.head(), &targets.into(), 1.0);
    (logps.value().host().into_owned(), entropies.value().host().into_owned())
}

#[test]
fn the_largest_logits_are_those_of_transformers() {
    let mut comparison = Comparison::default();
    for name in NAMES {
        let fixture = fixture(name);
        for setup in Setup::all(name) {
            let (model, device) = (setup.load(name), &setup.device);
            for (key, len) in SEQUENCES {
                let what = format!("{name} {key}");
                let sequence = &fixture["sequences"][key];
                let found = last_logits(&model, &ids(&sequence["ids"]));
                comparison.same_bits(device, &what, &found);
                let top = ids(&sequence["last_top10_ids"]);
                let want = floats(&sequence["last_top10_logits_f64"]);
                assert_eq!((ids(&sequence["ids"]).len(), top.len(), want.len()), (len, 10, 10));
                for (&id, want) in top.iter().zip(want) {
                    let off = (f64::from(found[id as usize]) - want).abs();
                    let what = format!("{what}, token {id}");
                    comparison.near(device, "logit", &what, off, setup.bounds.logit);
                }
                // No other is larger by more than rounding.
                let least = f64::from(found[top[9] as usize]);
                for (id, logit) in (0u32..).zip(&found).filter(|(id, _)| !top.contains(id)) {
                    let ahead = f64::from(*logit) - least;
                    assert!(ahead <= 2.0 * setup.bounds.logit, "{what}: {id} is ahead by {ahead}");
                }
            }
        }
    }
    comparison.show();
}

/// Logits `(V)` after the last token.
fn last_logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut tape = Tape::inference(model.device(), model.params());
    let hidden = model.hidden(&mut tape, Batch::packed(ids, [ids.len()]), false);
    let last = tape.select_rows(&hidden, &[ids.len() - 1].into());
    let head = model.params().packed(model.head());
    let mut logits = Tensor::uninit(model.device(), &[1, model.config().vocab_size]);
    lm_head::logits(&mut logits, last.value(), head, 1.0);
    logits.host().into_owned()
}
