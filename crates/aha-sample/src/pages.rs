//! Which pages of the key/value cache are free, and how many sequences share each.

/// Hands out pages and takes them back when their last holder lets go.
#[derive(Debug)]
pub struct Pages {
    holders: Vec<u32>,
    free: Vec<u32>,
    reserved: usize,
}

impl Pages {
    /// `count` free pages.
    pub fn new(count: usize) -> Pages {
        Pages { holders: vec![0; count], free: (0..count as u32).rev().collect(), reserved: 0 }
    }

    /// Pages in all.
    pub fn count(&self) -> usize {
        self.holders.len()
    }

    /// Sets `count` pages aside for a sequence's whole life, if there are as many that nobody has reserved.
    #[must_use]
    pub fn reserve(&mut self, count: usize) -> bool {
        let fits = self.reserved + count <= self.count();
        if fits {
            self.reserved += count;
        }
        fits
    }

    /// Gives a reservation back.
    pub fn unreserve(&mut self, count: usize) {
        assert!(count <= self.reserved, "gave back {count} pages of {} reserved", self.reserved);
        self.reserved -= count;
    }

    /// A free page, with one holder. There is one, as long as callers stay within their reservations.
    pub fn take(&mut self) -> u32 {
        let page = self.free.pop().expect("reservations never exceed the pages");
        self.holders[page as usize] = 1;
        page
    }

    /// One more holder of `page`.
    pub fn share(&mut self, page: u32) -> u32 {
        assert!(self.holders[page as usize] > 0, "page {page} is free");
        self.holders[page as usize] += 1;
        page
    }

    /// One holder less.
    pub fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(*holders > 0, "page {page} is free already");
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }

    /// Pages that somebody holds.
    pub fn used(&self) -> usize {
        self.count() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_page_is_free_after_its_last_holder() {
        let mut pages = Pages::new(2);
        let page = pages.take();
        pages.share(page);
        pages.release(page);
        assert_eq!(pages.used(), 1);
        pages.release(page);
        assert_eq!(pages.used(), 0);
    }

    #[test]
    fn reservations_stop_at_the_budget() {
        let mut pages = Pages::new(3);
        assert!(pages.reserve(2));
        assert!(!pages.reserve(2));
        pages.unreserve(1);
        assert!(pages.reserve(2));
    }

    #[test]
    #[should_panic(expected = "free already")]
    fn releasing_twice_is_a_bug() {
        let mut pages = Pages::new(1);
        let page = pages.take();
        pages.release(page);
        pages.release(page);
    }
}
