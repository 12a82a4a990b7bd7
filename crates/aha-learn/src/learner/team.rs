//! Several devices that learn together, in one process: a learner for each, and a thread while a step is made.
//!
//! The first is whom others know. It has the [`Learner`]s of the other devices, and each of its steps is theirs too:
//! each computes the gradients of its share of the minibatch, all add them up, and all make the same step. Weights,
//! moments and what is reported have the same bits everywhere, so checkpoints are those of the first.
//!
//! A device that fails says so to the others, which wait for it in vain otherwise; the error of whoever failed first is
//! the step's. After that no step is possible any more: the learner is to be made again, from a checkpoint.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::{panic, thread};

use aha_compute::Device;
use aha_compute::ops::adamw::StatePlace;
use aha_compute::peers::{self, Peers};
use aha_model::Model;

use super::{Learner, shares};
use crate::Error;

/// Where a learner is.
pub(super) struct Place {
    device: Device,
    peers: Arc<dyn Peers>,
}

impl Learner {
    /// Learns on these devices too, each of which gets a copy of all that is known so far: weights, the optimizer's
    /// state, reference, teacher and critic. Fails where devices can't reach each other or have too little memory.
    pub fn spread_to(&mut self, others: &[Device]) -> Result<(), Error> {
        let devices: Vec<Device> =
            std::iter::once(self.model.device()).chain(others).cloned().collect();
        self.spread(others, peers::connect(&devices)?)
    }

    /// As [`Learner::spread_to`], where the devices reach each other by these, this learner's first.
    pub fn spread(&mut self, others: &[Device], all: Vec<Arc<dyn Peers>>) -> Result<(), Error> {
        assert_eq!(all.len(), others.len() + 1, "each device has its peers");
        let mut all = all.into_iter();
        self.peers = all.next().unwrap_or_else(|| Arc::new(peers::Alone));
        let places: Vec<Place> = others
            .iter()
            .cloned()
            .zip(all)
            .map(|(device, peers)| Place { device, peers })
            .collect();
        if let Some(critic) = &mut self.critic {
            critic.follow(places.iter().map(Place::clone), &self.peers);
        }
        let peers = Arc::clone(&self.peers);
        self.follow(places.iter().map(Place::clone), &peers);
        let (reference, teacher) = (self.reference.clone(), self.teacher.clone());
        self.set_reference(reference);
        self.set_teacher(teacher);
        others.iter().try_for_each(Device::check).map_err(Error::from)
    }

    /// The devices that learn, this one's first.
    pub fn device_count(&self) -> usize {
        self.peers.count()
    }

    /// The learners of all devices, this one's first.
    pub fn on_all_devices(&self) -> impl Iterator<Item = &Learner> {
        std::iter::once(self).chain(&self.followers)
    }

    /// Makes a learner like this one in each of these places.
    pub(super) fn follow(&mut self, places: impl Iterator<Item = Place>, peers: &Arc<dyn Peers>) {
        self.peers = Arc::clone(peers);
        let follower = |Place { device, peers }: Place| {
            let model = Arc::new(self.model.replica_on(&device));
            let adamw = self.adamw.copy_for(model.params(), self.state_place());
            Learner { peers, ..Learner::resume(model, adamw, self.version) }
        };
        self.followers = places.map(follower).collect();
    }

    /// Where this one is.
    pub(super) fn place(&self) -> Place {
        Place { device: self.model.device().clone(), peers: Arc::clone(&self.peers) }
    }

    fn state_place(&self) -> StatePlace {
        self.adamw.place()
    }

    /// Sets a model beside the weights on all devices. Where it is the first one's own weights, it is each one's own.
    pub(super) fn each_with_model(
        &mut self,
        model: Option<Arc<Model>>,
        set: impl Fn(&mut Learner, Option<Arc<Model>>),
    ) {
        for follower in &mut self.followers {
            let copy = model.as_ref().map(|model| match Arc::ptr_eq(model, &self.model) {
                true => Arc::clone(&follower.model),
                false => Arc::new(model.replica_on(follower.model.device())),
            });
            set(follower, copy);
        }
        set(self, model);
    }

    /// Does a part of a step on every device at once. The result is the first one's, or the error of whoever failed
    /// first.
    pub(super) fn together<T: Send>(
        &mut self,
        part: impl Fn(&mut Learner) -> Result<T, Error> + Sync,
    ) -> Result<T, Error> {
        if self.followers.is_empty() {
            return part(self);
        }
        let mut followers = std::mem::take(&mut self.followers);
        let results = thread::scope(|scope| {
            let spawn = |follower| {
                let part = &part;
                scope.spawn(move || do_part(follower, part))
            };
            let threads: Vec<_> = followers.iter_mut().map(spawn).collect();
            let own = panic::catch_unwind(panic::AssertUnwindSafe(|| do_part(self, &part)));
            let others = threads.into_iter().map(|thread| thread.join());
            std::iter::once(own).chain(others).collect::<Vec<_>>()
        });
        self.followers = followers;
        self.first_result(results)
    }

    /// What the first device made, unless one failed.
    fn first_result<T>(
        &self,
        results: Vec<Result<Result<T, Error>, Box<dyn Any + Send>>>,
    ) -> Result<T, Error> {
        let failed = self.peers.left().unwrap_or(0);
        let mut own = None;
        for (rank, result) in results.into_iter().enumerate() {
            match result {
                // Who failed first knows why.
                Err(panicked) if rank == failed => panic::resume_unwind(panicked),
                Ok(result) if rank == failed => own = Some(result),
                _ => {}
            }
        }
        own.unwrap_or_else(|| Err(Error::Bug(format!("no device {failed} made a step"))))
    }

    /// This device's part of a minibatch, whose sequences have so many tokens.
    pub(super) fn own(&self, lens_tokens: &[usize]) -> Range<usize> {
        shares(lens_tokens, self.peers.count()).swap_remove(self.peers.rank())
    }

    /// As [`Learner::own`], of what belongs to the sequences.
    pub(super) fn share<'a, T>(&self, all: &'a [T], lens_tokens: &[usize]) -> &'a [T] {
        &all[self.own(lens_tokens)]
    }

    /// The sums of all devices, added in their order.
    pub(super) fn total<T: Any + Clone + Default + Send + Sync>(
        &self,
        own: T,
        add: impl Fn(&mut T, T),
    ) -> Result<T, Error> {
        if self.peers.count() == 1 {
            return Ok(own);
        }
        let mut total = T::default();
        peers::gather(&*self.peers, own)?.into_iter().for_each(|next| add(&mut total, next));
        Ok(total)
    }

    /// Fails unless all devices say the same.
    pub(super) fn agree(&self, what: &str, said: u64) -> Result<(), Error> {
        if self.peers.count() == 1 {
            return Ok(());
        }
        let all = peers::gather(&*self.peers, said)?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => Err(Error::Bug(format!(
                "{what} of device {rank} has other bits than that of device 0: one of them computes wrongly"
            ))),
        }
    }
}

impl Clone for Place {
    fn clone(&self) -> Place {
        Place { device: self.device.clone(), peers: Arc::clone(&self.peers) }
    }
}

/// Does a learner's part, and tells the others where it can't.
fn do_part<T>(
    learner: &mut Learner,
    part: impl Fn(&mut Learner) -> Result<T, Error>,
) -> Result<T, Error> {
    /// Also where the thread panics.
    struct Telling(Arc<dyn Peers>);
    impl Drop for Telling {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.leave("its thread panicked");
            }
        }
    }
    let telling = Telling(Arc::clone(&learner.peers));
    let result = part(learner);
    if let Err(error) = &result {
        telling.0.leave(&error.to_string());
    }
    result
}
