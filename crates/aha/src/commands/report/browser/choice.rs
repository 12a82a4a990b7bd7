//! How much of a table is shown: pure arithmetic.

/// Tokens of all tables together. One takes about eight bytes of the page.
const TOKENS_TOTAL: usize = 700_000;
/// Steps of a table.
const STEPS_MAX: usize = 12;
/// Prompts of a table that has steps, by step; and of one that has none.
const GROUPS_MAX: usize = 4;
const GROUPS_WITHOUT_STEPS_MAX: usize = 12;
/// Completions of a prompt.
const COMPLETIONS_MAX: usize = 16;
/// Tokens of a completion.
const TOKENS_MAX: usize = 2000;
/// Completions of all tables together. One takes about 200 bytes of the page besides its tokens.
const ROWS_TOTAL: usize = 20_000;

/// What is shown of a table, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Steps.
    pub steps: usize,
    /// Prompts of a step.
    pub groups: usize,
    /// Completions of a prompt.
    pub completions: usize,
    /// Tokens of all that is shown of the table.
    tokens: usize,
    /// Completions, likewise.
    rows: usize,
}

/// What a table holds.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Steps.
    pub steps: usize,
    /// Prompts, one of two steps counted twice.
    pub groups: usize,
    /// Completions.
    pub rows: usize,
    /// Their tokens.
    pub tokens: usize,
}

impl Bounds {
    /// Those of each of so many tables.
    pub fn for_tables(count: usize) -> Bounds {
        Bounds {
            steps: STEPS_MAX,
            groups: GROUPS_MAX,
            completions: COMPLETIONS_MAX,
            tokens: TOKENS_TOTAL / count.max(1),
            rows: ROWS_TOTAL / count.max(1),
        }
    }

    /// Fewer prompts, then fewer completions, then fewer steps, until what is shown of a table of that size is
    /// about what is allowed; the rest is up to [`Bounds::tokens_of`].
    pub fn fit(mut self, size: Size) -> Bounds {
        if size.steps == 1 {
            self.groups = GROUPS_WITHOUT_STEPS_MAX;
        }
        let len = (size.tokens / size.rows.max(1)).clamp(1, TOKENS_MAX);
        let group_len = size.rows.div_ceil(size.groups.max(1));
        let is_too_much = |bounds: &Bounds| {
            let group_len = bounds.completions.min(group_len);
            let rows = size.steps.min(bounds.steps) * bounds.groups * group_len;
            rows > bounds.rows || rows * len > bounds.tokens
        };
        while self.groups > 1 && is_too_much(&self) {
            self.groups -= 1;
        }
        while self.completions > 4 && is_too_much(&self) {
            self.completions -= 1;
        }
        while self.steps > 2 && is_too_much(&self) {
            self.steps -= 1;
        }
        self
    }

    /// The largest number of tokens to show of one completion, so that those of all are allowed where each takes
    /// the room of so many.
    pub fn tokens_of(&self, lens: impl Iterator<Item = usize>, room: usize) -> usize {
        let lens: Vec<usize> = lens.collect();
        let fits =
            |max: usize| room * lens.iter().map(|len| len.min(&max)).sum::<usize>() <= self.tokens;
        // The first that is too many lies between the two.
        let (mut least, mut most) = (0, TOKENS_MAX + 1);
        while most - least > 1 {
            let middle = least.midpoint(most);
            if fits(middle) { least = middle } else { most = middle }
        }
        least
    }
}

/// At most `max` indices below `len`, at even distances, the first and the last among them.
pub fn evenly(len: usize, max: usize) -> Vec<usize> {
    if len <= max || max < 2 {
        return (0..len.min(max)).collect();
    }
    (0..max).map(|i| (i * (len - 1) + (max - 1) / 2) / (max - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_even_and_have_both_ends() {
        assert_eq!(evenly(40, 12), [0, 4, 7, 11, 14, 18, 21, 25, 28, 32, 35, 39]);
        assert_eq!(evenly(3, 12), [0, 1, 2]);
        assert_eq!(evenly(5, 1), [0]);
        assert!(evenly(0, 12).is_empty());
        for len in 0..60 {
            let found = evenly(len, 12);
            assert!(found.windows(2).all(|w| w[0] < w[1]), "{len}: {found:?}");
            assert_eq!(found.last().copied(), len.checked_sub(1), "{len}: {found:?}");
        }
    }

    #[test]
    fn a_small_table_is_shown_as_far_as_the_limits_go() {
        let size = Size { steps: 40, groups: 640, rows: 10_240, tokens: 300_000 };
        let bounds = Bounds::for_tables(5).fit(size);
        assert_eq!((bounds.steps, bounds.groups, bounds.completions), (12, 4, 16));
        let one = Size { steps: 1, groups: 64, rows: 256, tokens: 5000 };
        assert_eq!(Bounds::for_tables(5).fit(one).groups, 12);
        assert_eq!(bounds.tokens_of([30, 50].into_iter(), 1), TOKENS_MAX);
    }

    #[test]
    fn of_long_completions_fewer_are_shown_and_less_of_each() {
        let size = Size { steps: 1000, groups: 32_000, rows: 512_000, tokens: 2_000_000_000 };
        let bounds = Bounds::for_tables(5).fit(size);
        assert_eq!((bounds.steps, bounds.groups, bounds.completions), (12, 1, 5));
        let among_many = Bounds::for_tables(200).fit(size);
        assert_eq!((among_many.steps, among_many.groups, among_many.completions), (2, 1, 4));
        let lens = vec![8000; 12 * 5];
        let most = bounds.tokens_of(lens.iter().copied(), 1);
        assert_eq!(most, TOKENS_MAX);
        let more = |room| bounds.tokens_of(std::iter::repeat_n(8000, 700), room);
        assert_eq!((more(1), more(2)), (TOKENS_TOTAL / 5 / 700, TOKENS_TOTAL / 5 / 1400));
        assert_eq!(bounds.tokens_of(std::iter::empty(), 1), TOKENS_MAX);
    }
}
