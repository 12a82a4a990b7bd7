//! Which rows a block computes against which keys: lists that kernels read, from layouts alone.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::iter::successors;
use std::ops::Range;

use super::super::seqs::PagedSeq;
use super::super::{Dims, Layout, PAGE_LEN, PagedSeqs, Segment};
use super::{KEY_WARPS_LEAST, Sizes};
use crate::cuda::Kind;

/// What is in [`Item::aside`] of results that are final.
pub(super) const NONE: u32 = u32::MAX;

/// Most floats of gradients that wait to be added to those of shared segments, unless one segment has more: 128 MiB.
const ASIDE_LEN_MAX: usize = 1 << 25;

/// Blocks of decoding below which sequences are cut, so that a device isn't left idle.
const DECODE_BLOCKS_LEAST: usize = 256;

/// What a block computes: rows of consecutive queries of a sequence, which are queries times heads of a group, against
/// tiles of keys. Numbers as in `tiles.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Row of query 0 in the batch, and its position.
    pub row: usize,
    pub position: usize,
    /// Rows, counted from those of query 0.
    pub rows: Range32,
    /// Where the sequence's page ids begin.
    pub keys: usize,
    /// Tiles of keys; the tile and the end of what is put aside in the backward pass of keys.
    pub tiles: Range32,
    pub aside: u32,
}

/// An item of a block that has nothing to do: no rows.
const NOTHING: Item = Item {
    row: 0,
    position: 0,
    rows: Range32 { start: 0, end: 0 },
    keys: 0,
    tiles: Range32 { start: 0, end: 0 },
    aside: NONE,
};

/// A range that can be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range32 {
    pub start: u32,
    pub end: u32,
}

impl Range32 {
    fn of(range: Range<usize>) -> Range32 {
        Range32 { start: size(range.start), end: size(range.end) }
    }

    fn len(self) -> u32 {
        self.end - self.start
    }
}

/// Kernels count up to 2^32.
fn size(len: usize) -> u32 {
    u32::try_from(len).expect("kernels count up to 2^32")
}

impl Item {
    fn words(&self) -> [u32; 8] {
        let Item { row, position, rows, keys, tiles, aside } = *self;
        let [row, position, keys] = [row, position, keys].map(size);
        [row, position, rows.start, rows.end, keys, tiles.start, tiles.end, aside]
    }
}

/// As kernels read them.
pub(super) fn words(items: &[Item]) -> Vec<u32> {
    items.iter().flat_map(Item::words).collect()
}

/// Queries that follow one another, with their keys.
struct Queries {
    row: usize,
    count: usize,
    position: usize,
    keys: usize,
}

impl Queries {
    /// Blocks of at most so many rows, against all keys that any of the rows sees.
    fn blocks(&self, rows_max: usize, tile_len: usize, group: usize) -> impl Iterator<Item = Item> {
        let row_count = self.count * group;
        let &Queries { row, position, keys, .. } = self;
        (0..row_count).step_by(rows_max).map(move |from| {
            let end = row_count.min(from + rows_max);
            let tile_end = (position + (end - 1) / group + 1).div_ceil(tile_len);
            Item {
                row,
                position,
                rows: Range32::of(from..end),
                keys,
                tiles: Range32::of(0..tile_end),
                aside: NONE,
            }
        })
    }
}

/// Gradients of keys that are computed at once, and then added to those of shared segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wave {
    pub keys: Vec<Item>,
    /// Rows of what is put aside.
    pub aside_rows: usize,
    /// For each row of a shared segment that gets something: the row, its position, where in `firsts`, and how many.
    pub rows: Vec<[u32; 4]>,
    /// The rows that are put aside for position 0, by segment.
    pub firsts: Vec<u32>,
}

/// What kernels read of a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedLists {
    pub page_ids: Vec<u32>,
    /// The row of each slot of a page.
    pub slot_rows: Vec<u32>,
    pub forward: Vec<Item>,
    pub queries: Vec<Item>,
    pub waves: Vec<Wave>,
}

impl PackedLists {
    pub fn new(layout: &Layout, dims: Dims, sizes: Sizes) -> PackedLists {
        PackedLists::with_limit(layout, dims, sizes, ASIDE_LEN_MAX)
    }

    pub fn with_limit(
        layout: &Layout,
        dims: Dims,
        sizes: Sizes,
        aside_len_max: usize,
    ) -> PackedLists {
        let segments = layout.segments();
        let mut page_ids = Vec::new();
        let mut all = Vec::new();
        for (idx, &Segment { row, row_count, position, .. }) in segments.iter().enumerate() {
            all.push(Queries { row, count: row_count, position, keys: page_ids.len() });
            page_ids.extend_from_slice(layout.page_ids(idx));
        }
        let lane = |page: &Vec<usize>, lane: usize| page.get(lane).map_or(0, |&row| size(row));
        let slot_rows =
            layout.page_rows().iter().flat_map(|page| (0..PAGE_LEN).map(move |i| lane(page, i)));
        let blocks = |rows_max: usize, with_open: bool| {
            let of = all.iter().enumerate().filter(|(idx, _)| with_open || !layout.is_open(*idx));
            let mut items: Vec<Item> =
                of.flat_map(|(_, of)| of.blocks(rows_max, sizes.tile, dims.group())).collect();
            items.sort_by_key(|item| Reverse(item.tiles.end));
            items
        };
        let mut waves = Vec::new();
        let mut first = 0;
        while first < segments.len() {
            let end = wave_end(segments, first, aside_len_max / (2 * dims.kv_cols()));
            waves.push(wave(layout, &all, first..end, dims.group(), sizes.tile));
            first = end;
        }
        waves.retain(|wave| !wave.keys.is_empty());
        PackedLists {
            page_ids,
            slot_rows: slot_rows.collect(),
            forward: blocks(sizes.rows, true),
            queries: blocks(sizes.tile, false),
            waves,
        }
    }
}

/// The position up to which a segment puts gradients of keys aside: others see those rows too.
fn shared_end(segment: &Segment) -> usize {
    match segment.row_count {
        0 => 0,
        _ if segment.is_shared => segment.end(),
        _ => segment.position,
    }
}

/// The end of the segments from `first` on that put no more rows aside than allowed, or of one.
fn wave_end(segments: &[Segment], first: usize, rows_max: usize) -> usize {
    let (mut end, mut rows) = (first, 0);
    while let Some(segment) = segments.get(end) {
        rows += shared_end(segment);
        if end > first && rows > rows_max {
            break;
        }
        end += 1;
    }
    end
}

fn wave(layout: &Layout, all: &[Queries], of: Range<usize>, group: usize, tile_len: usize) -> Wave {
    let segments = layout.segments();
    let mut wave = Wave::default();
    // What each shared segment gets, in order.
    let mut firsts: Vec<Vec<u32>> = vec![Vec::new(); segments.len()];
    for idx in of {
        let (segment, queries) = (&segments[idx], &all[idx]);
        if segment.row_count == 0 || layout.is_open(idx) {
            continue;
        }
        let aside = size(wave.aside_rows);
        for tile in 0..segment.end().div_ceil(tile_len) {
            let first = (tile * tile_len).saturating_sub(segment.position);
            wave.keys.push(Item {
                row: queries.row,
                position: queries.position,
                rows: Range32::of(first * group..queries.count * group),
                keys: queries.keys,
                tiles: Range32 { start: size(tile), end: size(shared_end(segment)) },
                aside,
            });
        }
        wave.aside_rows += shared_end(segment);
        let mut at = if segment.is_shared { Some(idx) } else { segment.parent };
        while let Some(to) = at {
            firsts[to].push(aside);
            at = segments[to].parent;
        }
    }
    for (segment, firsts) in segments.iter().zip(firsts).filter(|(_, firsts)| !firsts.is_empty()) {
        let (start, count) = (size(wave.firsts.len()), size(firsts.len()));
        let places =
            (0..segment.row_count).map(|i| [segment.row + i, segment.position + i].map(size));
        wave.rows.extend(places.map(|[row, position]| [row, position, start, count]));
        wave.firsts.extend(firsts);
    }
    wave.keys.sort_by_key(|item| Reverse(item.rows.len()));
    wave
}

/// Room for the lists of a step that decodes: they are filled up to it, so that all steps with the same room are the
/// same launches, which can be captured once. Rows and items that fill it up have nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// Rows of the batch.
    pub rows: usize,
    /// Tiles of keys of the longest sequence, where they are computed by several blocks.
    pub tiles: usize,
}

impl Room {
    /// Room for `rows` sequences that decode; none where others do.
    pub(super) fn of(seqs: &PagedSeqs, rows: usize, dims: Dims, sizes: Sizes) -> Option<Room> {
        if rows < seqs.row_count() || seqs.seqs().iter().any(|seq| seq.row_count != 1) {
            return None;
        }
        let least = KEY_WARPS_LEAST as usize;
        if !sizes.are_few(1, dims) || !cuts(rows, dims, DECODE_BLOCKS_LEAST) {
            return Some(Room { rows, tiles: least });
        }
        let tiles = seqs.seqs().iter().map(|seq| (seq.position + 1).div_ceil(sizes.tile)).max();
        Some(Room { rows, tiles: tiles.unwrap_or(0).next_power_of_two().max(least) })
    }
}

/// Bytes of the parts that steps of decoding put aside which were captured, at most: with each of these numbers of
/// rows, sequences of up to `len_max` positions. What is captured keeps a buffer for each size that occurs.
pub fn captured_parts_bytes(
    rows: impl Iterator<Item = usize>,
    dims: Dims,
    kind: Kind,
    len_max: usize,
) -> u64 {
    let sizes = Sizes::of(dims, kind);
    if !sizes.are_few(1, dims) {
        return 0;
    }
    let most = len_max.div_ceil(sizes.tile).next_power_of_two();
    let first = 2 * KEY_WARPS_LEAST as usize;
    let tiles = || successors(Some(first), |tiles| Some(2 * tiles)).take_while(|n| *n <= most);
    let cut = rows.filter(|&rows| cuts(rows, dims, DECODE_BLOCKS_LEAST));
    let each: BTreeSet<u64> =
        cut.flat_map(|rows| tiles().map(move |tiles| rows as u64 * tiles as u64)).collect();
    // Sums, and two floats of softmax.
    let row_bytes = size_of::<f32>() * (dims.head_dim + 2);
    each.iter().sum::<u64>() * dims.heads as u64 * row_bytes as u64
}

/// Whether so many sequences that decode are cut.
fn cuts(rows: usize, dims: Dims, blocks_least: usize) -> bool {
    rows * dims.kv_heads < blocks_least
}

/// What kernels read of [`PagedSeqs`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PagedLists {
    pub page_ids: Vec<u32>,
    /// The slot of each new row; [`NONE`] for a row that fills the room up.
    pub slots: Vec<u32>,
    /// Blocks of many rows.
    pub rows: Vec<Item>,
    /// Blocks of few rows.
    pub decode: Vec<Item>,
    /// Rows whose tiles are computed by several blocks, and then added.
    pub join: Vec<Item>,
    /// Rows of parts that wait to be added.
    pub part_rows: usize,
}

impl PagedLists {
    pub fn new(seqs: &PagedSeqs, dims: Dims, sizes: Sizes) -> PagedLists {
        PagedLists::with_limit(seqs, dims, sizes, DECODE_BLOCKS_LEAST)
    }

    pub fn with_limit(
        seqs: &PagedSeqs,
        dims: Dims,
        sizes: Sizes,
        blocks_least: usize,
    ) -> PagedLists {
        let few = |seq: &&PagedSeq| sizes.are_few(seq.row_count, dims);
        let decode_count = seqs.seqs().iter().filter(few).count();
        PagedLists::of(seqs, dims, sizes, cuts(decode_count, dims, blocks_least))
    }

    /// For a step that decodes, filled up.
    pub fn in_room(seqs: &PagedSeqs, dims: Dims, sizes: Sizes, room: Room) -> PagedLists {
        let cuts = room.tiles > KEY_WARPS_LEAST as usize;
        let mut lists = PagedLists::of(seqs, dims, sizes, cuts);
        lists.slots.resize(room.rows, NONE);
        let group = dims.group();
        if !sizes.are_few(1, dims) {
            lists.rows.resize(room.rows * group.div_ceil(sizes.rows), NOTHING);
        } else if cuts {
            lists.decode.resize(room.rows * room.tiles.div_ceil(KEY_WARPS_LEAST as usize), NOTHING);
            lists.join.resize(room.rows, NOTHING);
            lists.part_rows = room.rows * room.tiles * dims.kv_heads * group;
        } else {
            lists.decode.resize(room.rows, NOTHING);
        }
        lists
    }

    fn of(seqs: &PagedSeqs, dims: Dims, sizes: Sizes, cuts: bool) -> PagedLists {
        let mut lists = PagedLists::default();
        for seq in seqs.seqs() {
            let pages = seqs.pages(seq);
            let queries = Queries {
                row: seq.row_start,
                count: seq.row_count,
                position: seq.position,
                keys: lists.page_ids.len(),
            };
            lists.page_ids.extend_from_slice(pages);
            lists.slots.extend((seq.position..seq.position + seq.row_count).map(|position| {
                pages[position / PAGE_LEN] * PAGE_LEN as u32 + size(position % PAGE_LEN)
            }));
            if !sizes.are_few(seq.row_count, dims) {
                lists.rows.extend(queries.blocks(sizes.rows, sizes.tile, dims.group()));
                continue;
            }
            for item in queries.blocks(sizes.few_rows, sizes.tile, dims.group()) {
                match cuts && item.tiles.end > KEY_WARPS_LEAST {
                    true => lists.cut(item, dims.kv_heads),
                    false => lists.decode.push(item),
                }
            }
        }
        for items in [&mut lists.rows, &mut lists.decode] {
            items.sort_by_key(|item| Reverse(item.tiles.len()));
        }
        lists
    }

    /// Blocks that put their tiles aside, and one that adds them.
    fn cut(&mut self, item: Item, kv_heads: usize) {
        let all = Item { aside: size(self.part_rows), ..item };
        for start in (0..item.tiles.end).step_by(KEY_WARPS_LEAST as usize) {
            let end = item.tiles.end.min(start + KEY_WARPS_LEAST);
            self.decode.push(Item { tiles: Range32 { start, end }, ..all });
        }
        self.join.push(all);
        self.part_rows += item.tiles.end as usize * kv_heads * item.rows.len() as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Split;
    use super::*;
    use crate::ops::check::MODELS;

    const DIMS: Dims = Dims { heads: 4, kv_heads: 2, head_dim: 64 };

    fn sizes() -> Sizes {
        Sizes::of(DIMS, Kind::Bf16)
    }

    /// How often each row of a batch meets each position, by a list of items.
    fn meetings(items: &[Item], rows: usize, group: usize, tile: usize) -> Vec<Vec<usize>> {
        let mut met = vec![Vec::new(); rows * group];
        for item in items {
            for i in item.rows.start as usize..item.rows.end as usize {
                let last = item.position + i / group;
                let seen = item.tiles.start as usize * tile
                    ..(item.tiles.end as usize * tile).min(last + 1);
                met[(item.row + i / group) * group + i % group].extend(seen);
            }
        }
        met
    }

    #[test]
    fn each_row_meets_each_position_up_to_its_own_once() {
        let layout = Layout::new([(70, Some(2)), (0, Some(2)), (200, None), (1, None)]);
        let lists = PackedLists::new(&layout, DIMS, sizes());
        for items in [&lists.forward, &lists.queries] {
            let met = meetings(items, layout.row_count(), 2, 64);
            for (i, &position) in layout.positions().iter().flat_map(|p| [p, p]).enumerate() {
                let want: Vec<usize> = (0..=position as usize).collect();
                assert_eq!(met[i], want, "row {i}");
            }
        }
        assert!(
            lists.forward.is_sorted_by_key(|item| Reverse(item.tiles.end)),
            "the longest first"
        );
    }

    #[test]
    fn each_key_meets_each_row_that_sees_it_once_and_its_gradient_has_one_place() {
        let layout = Layout::new([(70, Some(2)), (0, Some(2)), (200, None), (1, None)]);
        let lists = PackedLists::new(&layout, DIMS, sizes());
        let [wave] = &lists.waves[..] else { panic!("one wave") };
        // The completion's tiles see its rows from the first that the tile has; the prompt's likewise.
        let mut items: Vec<_> =
            wave.keys.iter().map(|k| (k.row, k.tiles.start, k.rows, k.aside)).collect();
        items.sort_by_key(|item| (item.0, item.1));
        let rows = |start, end| Range32 { start, end };
        let mut want: Vec<_> = (0..4).map(|tile| (0, tile, rows(0, 140), 0)).collect();
        want.push((0, 4, rows(112, 140), 0));
        want.extend((0..4).map(|tile| (70, tile, rows(128 * tile, 400), 200)));
        want.push((270, 0, rows(0, 2), 400));
        assert_eq!(items, want);
        // The prompt's rows get what the completion puts aside, and then their own.
        assert_eq!((wave.aside_rows, &wave.firsts[..]), (400, &[0, 200][..]));
        let places: Vec<[u32; 4]> = (0..200).map(|i| [70 + i, i, 0, 2]).collect();
        assert_eq!(wave.rows, places);
    }

    #[test]
    fn what_waits_is_bounded_and_an_open_segment_has_no_gradients() {
        let split = Split { begun: None, open: Some(2) };
        let layout = Layout::with_split([(3, Some(2)), (4, Some(2)), (5, None)], split);
        let lists = PackedLists::with_limit(&layout, DIMS, sizes(), 5 * 2 * DIMS.kv_cols());
        assert_eq!(lists.waves.len(), 2, "one for each completion, none for the prompt");
        for wave in &lists.waves {
            assert_eq!((wave.aside_rows, &wave.firsts[..], wave.rows.len()), (5, &[0][..], 5));
        }
        assert_eq!(lists.queries.iter().map(|item| item.row).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(lists.forward.len(), 3);
    }

    /// Items of the parts of what is cut are whole, in order.
    #[test]
    fn few_long_sequences_are_cut_and_many_are_not() {
        let pages: Vec<u32> = (0..40).collect();
        for (count, cuts) in [(1, true), (127, true), (128, false), (300, false)] {
            let mut seqs = PagedSeqs::default();
            (0..count).for_each(|i| seqs.push(1, 500 + i % 3, &pages));
            let lists = PagedLists::new(&seqs, DIMS, sizes());
            assert!(lists.rows.is_empty());
            let met = meetings(&lists.decode, count, 2, 64);
            for (i, met) in met.iter().enumerate() {
                let mut met = met.clone();
                met.sort_unstable();
                assert_eq!(met, (0..=500 + i / 2 % 3).collect::<Vec<_>>());
            }
            let joined = if cuts { count } else { 0 };
            assert_eq!((lists.join.len(), lists.part_rows), (joined, joined * 8 * 2 * 2));
            assert_eq!(lists.decode.len(), if cuts { 4 * count } else { count });
        }
    }

    #[test]
    fn new_rows_have_their_slots() {
        let mut seqs = PagedSeqs::default();
        seqs.push(3, 15, &[7, 2]);
        seqs.push(1, 0, &[5]);
        let lists = PagedLists::new(&seqs, DIMS, sizes());
        assert_eq!(lists.slots, [7 * 16 + 15, 2 * 16, 2 * 16 + 1, 5 * 16]);
        assert_eq!(lists.page_ids, [7, 2, 5]);
        assert_eq!(
            lists.decode.iter().map(|item| (item.row, item.keys)).collect::<Vec<_>>(),
            [(0, 0), (3, 2)]
        );
    }

    /// Goal: indices stay below 2^32, and lists small beside what they are for, in the largest batches.
    #[test]
    fn lists_of_large_batches_are_small() {
        for model in MODELS {
            let dims =
                Dims { heads: model.heads, kv_heads: model.kv_heads, head_dim: model.head_dim };
            for layout in [
                Layout::sequences([131_072]),
                Layout::sequences(vec![4096; 32]),
                Layout::new((0..128).map(|_| (1000, Some(128))).chain([(3072, None)])),
            ] {
                let lists = PackedLists::new(&layout, dims, Sizes::of(dims, Kind::Bf16));
                let keys: usize = lists.waves.iter().map(|wave| wave.keys.len()).sum();
                let words = lists.page_ids.len()
                    + lists.slot_rows.len()
                    + 8 * (lists.forward.len() + lists.queries.len() + keys);
                assert!(words * 4 < 2 * layout.row_count() * dims.kv_cols() / 8, "{words} words");
                for wave in &lists.waves {
                    assert!(2 * wave.aside_rows * dims.kv_cols() <= ASIDE_LEN_MAX);
                }
            }
        }
    }

    /// Goal: steps with one room are the same launches. Method: batches that differ in sequences and lengths.
    #[test]
    fn lists_in_one_room_have_one_length() {
        let pages: Vec<u32> = (0..100).collect();
        let in_room = |lens: &[usize], rows: usize| {
            let mut seqs = PagedSeqs::default();
            lens.iter().for_each(|&len| seqs.push(1, len - 1, &pages));
            let room = Room::of(&seqs, rows, DIMS, sizes()).expect("all decode");
            let lists = PagedLists::in_room(&seqs, DIMS, sizes(), room);
            let lens = [&lists.rows, &lists.decode, &lists.join].map(Vec::len);
            assert_eq!(lists.slots.len(), rows);
            (room, lens, lists.part_rows)
        };
        let two_tiles = in_room(&[1, 128, 77], 4);
        assert_eq!(two_tiles, (Room { rows: 4, tiles: 2 }, [0, 4, 0], 0));
        assert_eq!(in_room(&[3], 4), two_tiles);
        let cut = in_room(&[129], 4);
        assert_eq!(cut, (Room { rows: 4, tiles: 4 }, [0, 8, 4], 4 * 4 * 2 * 2));
        assert_eq!(in_room(&[256, 1, 200, 130], 4), cut);
        // Enough blocks without cutting.
        let many = in_room(&[1000; 120], 128);
        assert_eq!(many, (Room { rows: 128, tiles: 2 }, [0, 128, 0], 0));
        let mut seqs = PagedSeqs::default();
        seqs.push(2, 0, &pages);
        assert_eq!(Room::of(&seqs, 4, DIMS, sizes()), None, "a prompt");
    }

    /// Goal: what is counted of captured steps is what their lists take. Method: the lists of each length and number of
    /// rows, of which each size counts once.
    #[test]
    fn parts_of_captured_steps_are_those_of_their_lists() {
        let rows = [1, 2, 4, 24, 96, 128, 160];
        for len_max in [1, 128, 129, 1000, 3000] {
            let pages: Vec<u32> = (0..200).collect();
            let mut found = BTreeSet::new();
            for (rows, len) in
                rows.iter().flat_map(|&rows| (1..=len_max).map(move |len| (rows, len)))
            {
                let mut seqs = PagedSeqs::default();
                seqs.push(1, len - 1, &pages);
                let room = Room::of(&seqs, rows, DIMS, sizes()).expect("it decodes");
                found.insert(PagedLists::in_room(&seqs, DIMS, sizes(), room).part_rows as u64);
            }
            let want = found.iter().sum::<u64>() * 4 * (DIMS.head_dim as u64 + 2);
            let bytes = captured_parts_bytes(rows.into_iter(), DIMS, Kind::Bf16, len_max);
            assert_eq!(bytes, want, "up to {len_max}");
        }
        assert_eq!(captured_parts_bytes(rows.into_iter(), DIMS, Kind::F32, 3000), 0, "not cut");
    }
}
