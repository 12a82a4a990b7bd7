//! A forward pass of a sampler on a CUDA device: its lists are copied there at once, its draws come back at once.
//!
//! [`Step`] says what the pass reads: ids and positions of its rows, the pages of their sequences, which rows are drawn
//! after, and at which addresses. A [`Tape`](crate::Tape) that is told of it looks nothing up on the host.

use std::sync::Arc;

use crate::cuda::{Buffer, Context, Error};
use crate::ops::attention::cuda::{self, Room};
use crate::ops::attention::{KvCache, PagedSeqs};
use crate::ops::draw::{self, Draws};
use crate::ops::embedding;
use crate::ops::matmul::Packed;
use crate::staging::{Part, Staging, Words};
use crate::{Device, Tensor};

/// Most logits that draws of a step have in memory at once on a device, but for a row of them: 256 MiB.
pub const LOGITS_LEN_MAX: usize = 1 << 26;

/// What a step is to do.
pub struct Task<'a> {
    /// Token of each row. Where the step has room, rows without a sequence are behind the others.
    pub ids: &'a [u32],
    /// Position of each row.
    pub positions: &'a [u32],
    /// The sequences of the rows; they are on the device afterwards.
    pub seqs: &'a mut PagedSeqs,
    /// Whether rows may be captured with room for others: all sequences decode.
    pub has_room: bool,
    /// The rows that are drawn after, where it isn't the first ones one by one.
    pub wanted: Option<&'a [u32]>,
    /// Pages that are copied before anything else: from the first of each pair to the second.
    pub copies: &'a [[u32; 2]],
    /// Draws after the wanted rows, by their numbers among these.
    pub draws: &'a Draws,
}

/// The lists of a step on a device.
#[derive(Debug)]
pub struct Step {
    pub(crate) ids: Part,
    pub(crate) positions: Part,
    wanted: Option<Part>,
    draws: draw::Lists,
    room: Option<Room>,
}

impl Step {
    /// Copies the lists to the device, and pages of the cache. None after a failure of the device.
    pub fn new(
        device: &Device,
        staging: &mut Staging,
        words: &mut Words,
        cache: &mut KvCache,
        task: Task<'_>,
    ) -> Option<Step> {
        let gpu = device.gpu().expect("a CUDA device");
        gpu.ask(|cx| Step::on(cx, staging, words, cache.on_gpu_mut()?, task))
    }

    fn on(
        cx: &Context,
        staging: &mut Staging,
        words: &mut Words,
        cache: &mut cuda::KvCache,
        task: Task<'_>,
    ) -> Result<Step, Error> {
        let Task { ids, positions, seqs, has_room, wanted, copies, draws } = task;
        assert_eq!(ids.len(), positions.len(), "a position for each row");
        let room = if has_room { cuda::room(seqs, cache, ids.len()) } else { None };
        assert!(room.is_some() || ids.len() == seqs.row_count(), "a sequence for each row");
        words.clear();
        // What is captured reads these, so they come first: where one begins is a function of the room.
        let [ids, positions] = [ids, positions].map(|list| words.push(list.iter().copied()));
        let paged = cuda::put(words, seqs, cache, room);
        let wanted = wanted.map(|rows| words.push(rows.iter().copied()));
        let pairs = words.push(copies.as_flattened().iter().copied());
        let draws = draws.put(words);
        let words: Arc<Buffer> = staging.send(cx, words)?;
        let part = |place| Part::new(&words, place);
        cache.copy_pages_of(cx, copies, part(pairs).view())?;
        seqs.set_on_gpu(cuda::Paged::at(&words, paged));
        Ok(Step {
            ids: part(ids),
            positions: part(positions),
            wanted: wanted.map(part),
            draws: draw::Lists::at(&words, draws),
            room,
        })
    }

    /// Where its lists begin on the device.
    pub fn address(&self) -> u64 {
        self.ids.view().at().0
    }

    /// The room of the step, where all steps with the same are the same work on other lists.
    pub fn room(&self) -> Option<Room> {
        self.room
    }

    /// The wanted rows of hidden states, one after the other.
    pub fn wanted(&self, hidden: &Tensor) -> Tensor {
        let rows = self.wanted.as_ref().expect("rows are wanted");
        let (gpu, cols) = (hidden.gpu().expect("a CUDA device"), hidden.cols());
        let mut y = Tensor::uninit_as(hidden.device(), hidden.dtype(), &[rows.view().len(), cols]);
        gpu.run(|cx| {
            embedding::cuda::gather_at(cx, &mut y.view_mut(), hidden.view(), rows.view(), cols)
        });
        y
    }

    /// Draws after the first `row_count` rows of hidden states: a token with its log-prob, in nats, for each draw.
    /// Waits for all work. None after a failure of the device.
    pub fn draw(
        &self,
        staging: &mut Staging,
        (hidden, row_count): (&Tensor, usize),
        head: &Packed,
        draws: &Draws,
        settings: &draw::Settings,
        logits_len_max: usize,
    ) -> Option<Vec<(u32, f32)>> {
        assert_eq!(hidden.dtype(), head.on_gpu().dtype(), "hidden states and head");
        hidden.gpu().expect("a CUDA device").ask(|cx| {
            let of = (hidden.view(), row_count);
            let (head, width) = (head.on_gpu().view(), head.in_len());
            let lists = (draws, &self.draws);
            let results = draw::after(cx, of, head, width, lists, settings, logits_len_max)?;
            let words = staging.fetch(cx, results.view())?;
            let (ids, log_probs) = words.split_at(draws.len());
            Ok(ids.iter().zip(log_probs).map(|(&id, &bits)| (id, f32::from_bits(bits))).collect())
        })
    }
}
