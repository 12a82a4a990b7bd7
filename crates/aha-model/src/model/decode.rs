//! Steps of decoding on a CUDA device: a graph for each number of rows.
//!
//! A forward pass is some fifteen launches a layer, which take the host longer than a device needs for one row. So a
//! step whose rows are a new token of a sequence each is captured once, and then done again at one call. What differs
//! from step to step is in the lists of a [`Step`], at addresses that don't change.
//!
//! Rows are filled up to the next of [`bucket`]'s numbers; what fills up takes part in products and is nowhere stored.
//! No row's bits depend on the rows beside it, nor on where sequences are cut for attention, so they are the bits that
//! the same pass has without graphs, in any company.

use std::sync::Arc;

use aha_compute::graphs::Graphs;
use aha_compute::ops::attention::{KvCache, PagedSeqs};
use aha_compute::ops::matmul::Packed;
use aha_compute::step::Step;
use aha_compute::{Rows, Tape, Tensor};

use super::{Batch, Model};

/// Rows that a step of decoding with so many sequences is filled up to: less than half more, or than twice where they
/// are few.
pub fn bucket(rows: usize) -> usize {
    const SMALL: [usize; 14] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256];
    SMALL.into_iter().find(|&bucket| bucket >= rows).unwrap_or(rows.next_multiple_of(128))
}

/// Captured steps of decoding, of a model or of several with one shape.
#[derive(Debug, Default)]
pub struct Decoder {
    graphs: Graphs,
    /// Hidden states of a step, for as many rows as any had.
    hidden: Option<Tensor>,
    key: Vec<u64>,
}

impl Decoder {
    /// The last layer's normalised hidden states of a step that has room. Behind those of sequences are others, of no
    /// meaning. They stay until the next call.
    pub fn hidden(
        &mut self,
        model: &Model,
        step: &Step,
        (ids, positions): (&[u32], &Arc<[u32]>),
        cache: &mut KvCache,
        seqs: &mut PagedSeqs,
    ) -> &Tensor {
        let room = step.room().expect("a step that decodes");
        assert_eq!(room.rows, ids.len(), "rows of the step");
        let vocab_size = model.config.vocab_size;
        let past = ids.iter().find(|&&id| id as usize >= vocab_size);
        assert!(past.is_none(), "id {past:?} of a table with {vocab_size} rows");
        let shape = [room.rows, model.config.hidden_size];
        let has_rows = |to: &Tensor| to.rows() >= room.rows && to.dtype() == model.params.dtype();
        let known = self.hidden.take().filter(has_rows);
        let to =
            known.unwrap_or_else(|| Tensor::uninit_as(&model.device, model.params.dtype(), &shape));
        let to = self.hidden.insert(to);
        self.key.clear();
        let end = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let rope = model.rope.address(&model.device, end);
        self.key.extend([room.rows, room.tiles].map(|n| n as u64));
        self.key.extend([step.address(), cache.address(), to.address(), rope]);
        self.key.extend(model.params.addresses(model.packed_weights()));
        let work = || {
            let mut tape = Tape::inference(&model.device, &model.params).of_step(step);
            let rows = Rows::Paged { cache: &mut *cache, seqs: &mut *seqs };
            let batch = Batch { ids, positions: Arc::clone(positions), rows };
            let hidden = model.hidden(&mut tape, batch, false);
            to.set_rows(0..room.rows, hidden.value());
        };
        // SAFETY: the key has the addresses of the weights, of what is packed of them, of the cache, of the table of
        // rotations, of the step's lists and of the result. All are there now, and there is nothing else.
        unsafe { self.graphs.run(&model.device, &self.key, work) };
        to
    }

    /// How many steps are captured.
    pub fn graph_count(&self) -> usize {
        self.graphs.len()
    }
}

impl Model {
    /// The copies of weights that kernels of a CUDA device read, or may.
    fn packed_weights(&self) -> impl Iterator<Item = &Packed> + '_ {
        let params = &self.params;
        let of_layer = move |layer: &super::Layer| {
            let all = [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down];
            all.into_iter().flat_map(move |projection| {
                let adapter = projection.adapter.map(|adapter| [adapter.a, adapter.b]);
                let adapter = adapter.into_iter().flatten().map(|id| params.packed(id));
                let bias = projection.bias.and_then(|id| params.rounded_bias(id));
                [params.packed_for_layer(projection.weight)].into_iter().chain(adapter).chain(bias)
            })
        };
        self.layers.iter().flat_map(of_layer).chain([params.packed(self.head)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_filled_up_by_less_than_half_but_for_the_smallest() {
        for rows in 1..1000 {
            let bucket = bucket(rows);
            assert!(rows <= bucket && bucket < 2 * rows, "{rows}: {bucket}");
            assert!(rows < 17 || 2 * bucket < 3 * rows, "{rows}: {bucket}");
        }
        assert_eq!([0, 1, 3, 9, 33, 257].map(bucket), [1, 1, 4, 16, 48, 384]);
    }
}
