//! The ordered prefetching loader, resumable from a saved position.
//!
//! An epoch is a permutation of the items that depends on (seed, epoch) alone, or an order of the
//! caller's. Worker threads load items ahead of the batches asked for, each item on its own, so
//! that a batch is spread over all workers; batches come out in the epoch's order. So neither the
//! number of workers nor their speed changes what comes, and a loader started at a saved
//! [`LoaderPosition`] continues as if never stopped.
//!
//! Where several processes share every batch, each loads certain places of it
//! ([`Loader::of_places`]): together they load what one process would.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::rng_for;

/// A position in the stream of batches: `step` batches of epoch `epoch` are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderPosition {
    /// Epochs that are done.
    pub epoch: u64,
    /// Batches of this epoch that are done.
    pub step: u64,
}

/// One batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedBatch<T> {
    /// The items in order. Fewer than the batch size, or the loader's places, only where
    /// [`ATTEMPTS`] items in a row could not be loaded.
    pub items: Vec<T>,
    /// The position after this batch, at which a new loader starts with the next one.
    pub position: LoaderPosition,
}

/// A request for an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemRequest {
    /// The item.
    pub item: usize,
    /// Epochs that are done.
    pub epoch: u64,
    /// Its place in the order of the epoch, which may have an item several times.
    pub place: usize,
}

/// How many items are tried in place of one that cannot be loaded.
pub const ATTEMPTS: usize = 100;

/// Batches that are loaded ahead of the current one.
const AHEAD: usize = 2;

/// Endless batches in a seeded order, loaded ahead by worker threads.
///
/// Dropping it stops the threads after the items that they are loading.
pub struct Loader<T> {
    shared: Arc<SharedLoader<T>>,
    workers: Vec<JoinHandle<()>>,
    position: LoaderPosition,
}

struct SharedLoader<T> {
    plan: BatchOrder,
    load: Box<dyn Fn(ItemRequest) -> Option<T> + Send + Sync>,
    state: Mutex<LoaderState<T>>,
    /// Work may be taken, or the loader is being dropped.
    work: Condvar,
    /// An item has been loaded.
    done: Condvar,
}

struct LoaderState<T> {
    /// One per slot from the first of the next batch on: what was loaded, once it was.
    slots: VecDeque<Option<SlotResult<T>>>,
    /// Number of the slot at the front of `slots`, counted over all epochs.
    front: u64,
    /// Number of the next slot that a worker takes.
    next: u64,
    /// The orders of the latest two epochs.
    orders: Vec<(u64, Arc<Vec<u32>>)>,
    stop: bool,
}

/// The result of a slot: an item, nothing after all attempts, or the panic of the load function.
type SlotResult<T> = Result<Option<T>, Box<dyn Any + Send>>;

/// Which items go where.
struct BatchOrder {
    batch: usize,
    /// Places of a batch that are loaded, in order. A slot is one of these in one batch.
    places: Vec<usize>,
    steps_per_epoch: u64,
    /// The order of an epoch's items.
    order: Box<dyn Fn(u64) -> Vec<u32> + Send + Sync>,
}

impl BatchOrder {
    /// Epoch of a slot, and its place in the epoch's order.
    fn place(&self, slot: u64) -> (u64, usize) {
        let each = self.places.len() as u64;
        let (batch, place) = (slot / each, self.places[(slot % each) as usize]);
        let (epoch, step) = (batch / self.steps_per_epoch, batch % self.steps_per_epoch);
        (epoch, step as usize * self.batch + place)
    }
}

impl<T> SharedLoader<T> {
    /// No code panics while it holds the lock, so a poisoned one holds a sound state.
    fn lock(&self) -> MutexGuard<'_, LoaderState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, state: &mut LoaderState<T>, epoch: u64) -> Arc<Vec<u32>> {
        if let Some((_, order)) = state.orders.iter().find(|(e, _)| *e == epoch) {
            return Arc::clone(order);
        }
        let order = Arc::new((self.plan.order)(epoch));
        state.orders.retain(|(e, _)| *e + 1 == epoch);
        state.orders.push((epoch, Arc::clone(&order)));
        order
    }

    /// Loads the item of a slot; where that fails, the next in the epoch's order, and so on.
    fn load_slot(&self, slot: u64, order: &[u32]) -> SlotResult<T> {
        let (epoch, place) = self.plan.place(slot);
        let candidates = order.iter().cycle().skip(place % order.len());
        let draw = |item: &u32| ItemRequest {
            item: *item as usize,
            epoch,
            place,
        };
        catch_unwind(AssertUnwindSafe(|| {
            candidates
                .take(ATTEMPTS.min(order.len()))
                .find_map(|item| (self.load)(draw(item)))
        }))
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.stop {
                return;
            }
            let limit = state.front + state.slots.len() as u64;
            if state.next >= limit {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let slot = state.next;
            state.next += 1;
            let order = self.order(&mut state, self.plan.place(slot).0);
            drop(state);
            let outcome = self.load_slot(slot, &order);
            state = self.lock();
            let index = (slot - state.front) as usize;
            if let Some(place) = state.slots.get_mut(index) {
                *place = Some(outcome);
            }
            self.done.notify_one();
        }
    }
}

impl<T: Send + 'static> Loader<T> {
    /// A loader of `len` items in batches of `batch`, from `start` on.
    ///
    /// `load` makes an item from its arguments alone, on any of `workers` threads (0: on the
    /// calling thread). `None` means that it cannot be loaded: the next in the epoch's order takes
    /// its place.
    ///
    /// An incomplete batch at the end of an epoch is dropped. With fewer items than
    /// `batch`, every epoch is one batch in which items repeat.
    ///
    /// # Panics
    /// If `len` or `batch` is 0, or `len` exceeds `u32::MAX`.
    pub fn new(
        len: usize,
        batch: usize,
        seed: u64,
        workers: usize,
        start: LoaderPosition,
        load: impl Fn(ItemRequest) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        let places = (0..batch).collect();
        Self::of_places(len, batch, places, seed, workers, start, load)
    }

    /// As [`Loader::new`], but of each batch only the items at `places`, numbers below `batch`, in
    /// their order. Loaders of other places have the others: an item that cannot be loaded is
    /// replaced as if one loader loaded the whole batch.
    ///
    /// # Panics
    /// As [`Loader::new`], or if `places` is empty or holds a place that is none of a batch.
    #[allow(
        clippy::too_many_arguments,
        reason = "those of `new`, which says what they are, and the places"
    )]
    pub fn of_places(
        len: usize,
        batch: usize,
        places: Vec<usize>,
        seed: u64,
        workers: usize,
        start: LoaderPosition,
        load: impl Fn(ItemRequest) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        let order = move |epoch| {
            let mut order: Vec<u32> = (0..len as u32).collect();
            order.shuffle(&mut rng_for(seed, epoch, "order of items"));
            order
        };
        Self::start(len, batch, places, workers, start, order, load)
    }

    /// As [`Loader::new`] in the caller's order: `order(epoch)` names `len` items, which may
    /// repeat, and must depend on nothing but the epoch.
    ///
    /// # Panics
    /// If `len` or `batch` is 0, or `len` exceeds `u32::MAX`.
    pub fn ordered(
        len: usize,
        batch: usize,
        workers: usize,
        start: LoaderPosition,
        order: impl Fn(u64) -> Vec<u32> + Send + Sync + 'static,
        load: impl Fn(ItemRequest) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        let places = (0..batch).collect();
        Self::start(len, batch, places, workers, start, order, load)
    }

    fn start(
        len: usize,
        batch: usize,
        places: Vec<usize>,
        workers: usize,
        start: LoaderPosition,
        order: impl Fn(u64) -> Vec<u32> + Send + Sync + 'static,
        load: impl Fn(ItemRequest) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        assert!(
            len > 0 && batch > 0 && u32::try_from(len).is_ok(),
            "cannot load {len} items in batches of {batch}"
        );
        assert!(
            !places.is_empty() && places.iter().all(|place| *place < batch),
            "cannot load the places {places:?} of batches of {batch}"
        );
        let each = places.len();
        let plan = BatchOrder {
            batch,
            places,
            steps_per_epoch: (len / batch).max(1) as u64,
            order: Box::new(order),
        };
        let first_batch = start.epoch * plan.steps_per_epoch + start.step;
        let front = first_batch * each as u64;
        let position = LoaderPosition {
            epoch: first_batch / plan.steps_per_epoch,
            step: first_batch % plan.steps_per_epoch,
        };
        let ahead = if workers == 0 { 0 } else { AHEAD * each };
        let state = LoaderState {
            slots: (0..ahead).map(|_| None).collect(),
            front,
            next: front,
            orders: Vec::new(),
            stop: false,
        };
        let shared = Arc::new(SharedLoader {
            plan,
            load: Box::new(load),
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let workers = (0..workers).map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.work())
        });
        Loader {
            workers: workers.collect(),
            shared,
            position,
        }
    }

    /// Batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.shared.plan.steps_per_epoch
    }

    /// The position of the next batch.
    pub fn position(&self) -> LoaderPosition {
        self.position
    }

    /// The next batch, waiting for it where it is not loaded yet.
    ///
    /// # Panics
    /// Where the load function panicked on a worker, with its panic.
    // Not an `Iterator`: it has no end, and an `Option` that is never `None` misleads.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> LoadedBatch<T> {
        let outcomes = if self.workers.is_empty() {
            self.load_here()
        } else {
            self.wait_for_workers()
        };
        self.position.step += 1;
        if self.position.step == self.shared.plan.steps_per_epoch {
            self.position = LoaderPosition {
                epoch: self.position.epoch + 1,
                step: 0,
            };
        }
        let loaded = outcomes.into_iter().map(|outcome| match outcome {
            Ok(item) => item,
            Err(panic) => resume_unwind(panic),
        });
        LoadedBatch {
            items: loaded.flatten().collect(),
            position: self.position,
        }
    }

    fn load_here(&mut self) -> Vec<SlotResult<T>> {
        let batch = self.shared.plan.places.len() as u64;
        let mut state = self.shared.lock();
        let front = state.front;
        state.front += batch;
        let order = self
            .shared
            .order(&mut state, self.shared.plan.place(front).0);
        drop(state);
        (front..front + batch)
            .map(|slot| self.shared.load_slot(slot, &order))
            .collect()
    }

    fn wait_for_workers(&mut self) -> Vec<SlotResult<T>> {
        let batch = self.shared.plan.places.len();
        let mut state = self.shared.lock();
        let mut outcomes = Vec::with_capacity(batch);
        // Every slot that is taken makes room for another, so that workers never idle while a
        // slow item holds up the batch.
        while outcomes.len() < batch {
            match state.slots.front_mut().and_then(Option::take) {
                Some(outcome) => {
                    outcomes.push(outcome);
                    state.slots.pop_front();
                    state.slots.push_back(None);
                    state.front += 1;
                    self.shared.work.notify_one();
                }
                None => {
                    let waited = self.shared.done.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        outcomes
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of the load function and has none of its own.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn numbers(
        len: usize,
        batch: usize,
        workers: usize,
        start: LoaderPosition,
    ) -> Loader<(usize, u64)> {
        Loader::new(
            len,
            batch,
            7,
            workers,
            start,
            |ItemRequest { item, epoch, .. }| {
                // Uneven work, so that items are finished out of order.
                if item % 3 == 0 {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Some((item, epoch))
            },
        )
    }

    fn take<T: Send + 'static>(loader: &mut Loader<T>, count: usize) -> Vec<LoadedBatch<T>> {
        (0..count).map(|_| loader.next()).collect()
    }

    #[test]
    fn an_epoch_holds_every_item_once_in_its_own_order() {
        let mut loader = numbers(12, 4, 2, LoaderPosition::default());
        assert_eq!(loader.steps_per_epoch(), 3);
        let mut orders = Vec::new();
        for epoch in 0..2 {
            let batches = take(&mut loader, 3);
            let items: Vec<_> = batches.iter().flat_map(|b| b.items.clone()).collect();
            assert!(items.iter().all(|(_, e)| *e == epoch));
            let order: Vec<usize> = items.iter().map(|(item, _)| *item).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..12).collect::<Vec<_>>());
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn the_number_of_workers_changes_nothing() {
        let expected = take(&mut numbers(50, 8, 0, LoaderPosition::default()), 20);
        for workers in [1, 3] {
            let actual = take(&mut numbers(50, 8, workers, LoaderPosition::default()), 20);
            assert_eq!(actual, expected, "{workers} workers");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn resumed_equals_uninterrupted(
            len in 1_usize..40, batch in 1_usize..9, stop in 0_usize..20, workers in 0_usize..4,
        ) {
            let expected = take(&mut numbers(len, batch, 0, LoaderPosition::default()), stop + 6);
            let mut first = numbers(len, batch, workers, LoaderPosition::default());
            let mut actual = take(&mut first, stop);
            let place = first.position();
            prop_assert_eq!(place, actual.last().map_or(LoaderPosition::default(), |b| b.position));
            drop(first);
            actual.extend(take(&mut numbers(len, batch, workers, place), 6));
            prop_assert_eq!(actual, expected);
        }
    }

    #[test]
    fn an_item_that_fails_is_replaced_by_the_next_of_the_order() {
        let whole = take(&mut numbers(20, 5, 0, LoaderPosition::default()), 4);
        let order: Vec<usize> = whole.iter().flat_map(|b| &b.items).map(|i| i.0).collect();
        let bad = [order[3], order[4], order[19]];
        for workers in [0, 3] {
            let start = LoaderPosition::default();
            let load = move |ItemRequest { item, .. }| (!bad.contains(&item)).then_some(item);
            let mut loader = Loader::new(20, 5, 7, workers, start, load);
            let items: Vec<usize> = take(&mut loader, 4)
                .into_iter()
                .flat_map(|b| b.items)
                .collect();
            let mut expected = order.clone();
            (expected[3], expected[4]) = (order[5], order[5]);
            expected[19] = order[0];
            assert_eq!(items, expected, "{workers} workers");
        }
    }

    #[test]
    fn loaders_of_places_have_the_whole_batch_together() {
        let load = |ItemRequest { item, epoch, .. }| (item % 7 != 2).then_some((item, epoch));
        let start = LoaderPosition { epoch: 0, step: 2 };
        let whole = take(&mut Loader::new(30, 8, 7, 0, start, load), 9);
        // Two parts of a batch, of which two ranks have a half each.
        for workers in [0, 2] {
            let mut of_ranks = [[0, 1, 4, 5], [2, 3, 6, 7]].map(|places| {
                let places = places.to_vec();
                let mut loader = Loader::of_places(30, 8, places, 7, workers, start, load);
                assert_eq!(loader.position(), start);
                take(&mut loader, 9).into_iter()
            });
            for expected in &whole {
                let [first, second] = of_ranks.each_mut().map(|rank| rank.next().unwrap());
                assert_eq!([first.position, second.position], [expected.position; 2]);
                let parts = [&first.items[..2], &second.items[..2], &first.items[2..]];
                let items = [parts.concat(), second.items[2..].to_vec()].concat();
                assert_eq!(items, expected.items);
            }
        }
    }

    #[test]
    fn nothing_to_load_gives_empty_batches_rather_than_no_end() {
        for workers in [0, 2] {
            let mut loader =
                Loader::new(9, 3, 0, workers, LoaderPosition::default(), |_| None::<()>);
            assert!(take(&mut loader, 4).iter().all(|b| b.items.is_empty()));
        }
    }

    #[test]
    fn fewer_items_than_a_batch_repeat() {
        let mut loader = numbers(3, 8, 2, LoaderPosition::default());
        assert_eq!(loader.steps_per_epoch(), 1);
        let batch = loader.next();
        assert_eq!(batch.items.len(), 8);
        assert_eq!(batch.position, LoaderPosition { epoch: 1, step: 0 });
    }

    #[test]
    fn dropping_stops_the_threads() {
        let alive = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&alive);
        let mut loader = Loader::new(
            1000,
            10,
            0,
            4,
            LoaderPosition::default(),
            move |ItemRequest { item, .. }| {
                counted.fetch_add(1, Ordering::SeqCst);
                Some(item)
            },
        );
        loader.next();
        drop(loader);
        let loads = alive.load(Ordering::SeqCst);
        assert!((10..=30 + 4).contains(&loads), "{loads} items loaded");
        assert_eq!(Arc::strong_count(&alive), 1, "a worker holds on");
    }

    #[test]
    fn a_panic_of_the_load_function_reaches_the_caller() {
        for workers in [0, 2] {
            let load = |ItemRequest { item, .. }| {
                assert!(item != 5, "item five");
                Some(item)
            };
            let mut loader = Loader::new(10, 10, 0, workers, LoaderPosition::default(), load);
            let panic = catch_unwind(AssertUnwindSafe(|| loader.next())).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"item five"));
        }
    }
}
