//! Exchanges between emulated devices: all meet, and each copies what it receives.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use aha_cuda::link::{Link, Transfer};
use aha_cuda::meeting::Meeting;
use aha_cuda::{Driver, Error, Stream};

use crate::Emulated;

#[derive(Debug)]
struct EmulatedLink {
    rank: usize,
    meeting: Arc<Meeting>,
}

pub(crate) fn connect(drivers: &[Arc<dyn Driver>]) -> Vec<Arc<dyn Link>> {
    for driver in drivers {
        let any: &dyn Any = &**driver;
        assert!(any.is::<Emulated>(), "{driver:?} is of another kind");
    }
    let meeting = Meeting::new(drivers.len());
    let link =
        |rank| -> Arc<dyn Link> { Arc::new(EmulatedLink { rank, meeting: Arc::clone(&meeting) }) };
    (0..drivers.len()).map(link).collect()
}

impl EmulatedLink {
    fn meet(&self, transfers: Vec<Transfer>) -> Result<Vec<Vec<Transfer>>, Error> {
        let all = self.meeting.meet(self.rank, Arc::new(transfers));
        let all =
            all.map_err(|error| Error::Failed { call: "exchange", code: error.to_string() })?;
        let of = |thing: &Arc<dyn Any + Send + Sync>| {
            thing.downcast_ref::<Vec<Transfer>>().expect("transfers are brought").clone()
        };
        Ok(all.iter().map(of).collect())
    }
}

/// Panics where ranks don't fit each other: a device would wait for ever.
impl Link for EmulatedLink {
    unsafe fn exchange(&self, transfers: &[Transfer], _: Stream) -> Result<(), Error> {
        let all = self.meet(transfers.to_vec())?;
        let sent_here = |rank: usize| {
            all[rank].iter().filter_map(|transfer| match *transfer {
                Transfer::Send { from, bytes, to_rank } if to_rank == self.rank => {
                    Some((from, bytes))
                }
                _ => None,
            })
        };
        let mut received: HashMap<usize, usize> = HashMap::new();
        for transfer in transfers {
            let Transfer::Receive { to, bytes, from_rank } = *transfer else { continue };
            let number = received.entry(from_rank).or_default();
            let (from, sent) = sent_here(from_rank).nth(*number).expect("what is received is sent");
            *number += 1;
            assert_eq!(bytes, sent, "bytes from rank {from_rank} to {}", self.rank);
            // SAFETY: both are memory of this process; the rest is the caller's promise.
            unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, bytes) };
        }
        for rank in 0..all.len() {
            let count = received.get(&rank).copied().unwrap_or(0);
            assert_eq!(count, sent_here(rank).count(), "all that is sent is received");
        }
        // What was sent may change only now.
        self.meet(Vec::new()).map(|_| ())
    }

    fn abort(&self) {
        self.meeting.fail(self.rank, "aborted");
    }
}
