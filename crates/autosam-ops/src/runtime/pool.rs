//! Inference threads: a separate rayon pool that stays awake while a network runs.
//!
//! A network consists of hundreds of parallel loops with a few microseconds between them. Rayon's threads go to sleep
//! after some twenty microseconds without work, and waking one takes longer than that. So each thread here polls for
//! work as long as a network runs, yields its core at each turn, and sleeps until the next network starts.

use candle_core::Device;
use rayon::{ThreadPool, ThreadPoolBuilder, Yield};
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Maximum number of threads that stay awake. More would slow down the threads that have work. The others sleep like
/// rayon's.
const MOST_AWAKE: usize = 8;

/// Number of calls of [`in_pool`] that have not returned.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Held by a thread from checking that nothing runs until it sleeps, and by a call when it begins, so that no wake-up
/// is missed.
static ASLEEP: Mutex<()> = Mutex::new(());
static BEGUN: Condvar = Condvar::new();

/// `None` if the system cannot start threads.
static POOL: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let pool = ThreadPoolBuilder::new()
        .thread_name(|i| format!("autosam-pool-{i}"))
        .build()
        .inspect_err(|e| {
            tracing::warn!("cannot start the inference thread pool; networks run on rayon's threads: {e}")
        })
        .ok()?;
    // Runs at the bottom of each thread's stack, before any other work. Inside other work it could deadlock with a
    // network that waits for that work.
    let begun = Arc::new(Barrier::new(pool.current_num_threads() + 1));
    let each = begun.clone();
    pool.spawn_broadcast(move |thread| {
        each.wait();
        if thread.index() < MOST_AWAKE {
            stay_awake();
        }
    });
    begun.wait();
    Some(pool)
});

/// Runs `f` on a thread of the pool, and its parallel loops on all of them. From any other thread each loop would have
/// to be handed over separately.
///
/// `f` must not wait for other threads or processes, because another network may be waiting for this thread.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    match &*POOL {
        Some(pool) if pool.current_thread_index().is_none() => {
            let _running = Running::begin();
            handed_over(f)
        }
        _ => f(),
    }
}

/// Calls that wait for a thread. Rayon's own queue is not used, because it allocates at every 63rd call, and a thread
/// that waits for the end of a loop could pick up a whole network from it.
static CALLS: Mutex<VecDeque<&'static dyn Call>> = Mutex::new(VecDeque::new());
static WAITING: AtomicUsize = AtomicUsize::new(0);

trait Call: Sync {
    fn run(&self);
}

struct Handed<F, R> {
    f: Mutex<Option<F>>,
    result: Mutex<Option<thread::Result<R>>>,
    /// Owned together with the caller, because the caller drops the call as soon as it is notified of its end.
    ended: Arc<Ended>,
}

#[derive(Default)]
struct Ended {
    yet: Mutex<bool>,
    news: Condvar,
}

thread_local! {
    static ENDED: Arc<Ended> = Arc::default();
}

/// The standard library's locks, not parking_lot's: its condition variable wakes all waiting threads at once, parking_lot's
/// only one after another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: FnOnce() -> R + Send, R: Send> Call for Handed<F, R> {
    fn run(&self) {
        let ended = self.ended.clone();
        if let Some(f) = lock(&self.f).take() {
            let result = panic::catch_unwind(AssertUnwindSafe(f));
            *lock(&self.result) = Some(result);
        }
        *lock(&ended.yet) = true;
        ended.news.notify_one();
    }
}

/// Runs `f` on a thread that is awake and returns its result.
fn handed_over<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let ended = ENDED.with(Arc::clone);
    *lock(&ended.yet) = false;
    let call = Handed { f: Mutex::new(Some(f)), result: Mutex::new(None), ended: ended.clone() };
    {
        let call: &dyn Call = &call;
        // SAFETY: the thread that takes the call runs it and does not access it after signalling its end; until then this
        // function waits, and nothing in between panics.
        let call = unsafe { std::mem::transmute::<&dyn Call, &'static dyn Call>(call) };
        lock(&CALLS).push_back(call);
        WAITING.fetch_add(1, Ordering::Release);
    }
    let guard = lock(&ended.yet);
    drop(ended.news.wait_while(guard, |yet| !*yet).unwrap_or_else(PoisonError::into_inner));
    let result = lock(&call.result).take();
    match result {
        Some(Ok(result)) => result,
        Some(Err(payload)) => panic::resume_unwind(payload),
        None => unreachable!("a call that ended has a result"),
    }
}

/// [`in_pool`] for networks on a CPU. Networks on a GPU are launched from the calling thread.
pub fn in_pool_of<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { in_pool(f) } else { f() }
}

/// Runs `f` once on each thread of the pool.
pub fn on_each_thread(f: impl Fn() + Sync) {
    let Some(pool) = &*POOL else { return };
    let _running = Running::begin();
    pool.broadcast(|_| f());
}

struct Running;

impl Running {
    fn begin() -> Self {
        {
            let _nobody_falls_asleep = lock(&ASLEEP);
            RUNNING.fetch_add(1, Ordering::SeqCst);
        }
        BEGUN.notify_all();
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Loop of a pool thread for the life of the program: works while a network runs and sleeps otherwise. It helps with
/// running loops before it starts a new call.
fn stay_awake() {
    loop {
        while RUNNING.load(Ordering::SeqCst) > 0 {
            if rayon::yield_now() == Some(Yield::Executed) {
                continue;
            }
            match next() {
                Some(call) => call.run(),
                None => thread::yield_now(),
            }
        }
        let guard = lock(&ASLEEP);
        let nothing = |(): &mut ()| RUNNING.load(Ordering::SeqCst) == 0;
        drop(BEGUN.wait_while(guard, nothing).unwrap_or_else(PoisonError::into_inner));
    }
}

/// The call that has waited longest.
fn next() -> Option<&'static dyn Call> {
    if WAITING.load(Ordering::Acquire) == 0 {
        return None;
    }
    let call = lock(&CALLS).pop_front()?;
    WAITING.fetch_sub(1, Ordering::Relaxed);
    Some(call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn a_nested_loop_runs_on_the_pool_s_threads() {
        for _ in 0..200 {
            let sums: Vec<usize> = in_pool(|| {
                assert!(std::thread::current().name().is_some_and(|name| name.starts_with("autosam-pool-")));
                (0..64usize).into_par_iter().map(|i| (0..=i).into_par_iter().sum()).collect()
            });
            assert!(sums.iter().enumerate().all(|(i, sum)| *sum == i * (i + 1) / 2));
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        let sum = |n: usize| in_pool(|| (0..n).into_par_iter().map(|i| in_pool(|| i)).sum::<usize>());
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..8).map(|_| scope.spawn(move || sum(1000))).collect();
            assert!(calls.into_iter().all(|call| call.join().unwrap() == 499_500));
        });
        // Also from a thread of rayon's global pool.
        assert!((0..32).into_par_iter().map(|_| sum(100)).all(|sum| sum == 4950));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let caught =
            std::panic::catch_unwind(|| in_pool(|| (0..100).into_par_iter().for_each(|i| assert!(i != 57))));
        assert!(caught.is_err());
        assert_eq!(in_pool(|| (0..100).into_par_iter().sum::<i32>()), 4950);
    }

    #[test]
    fn each_thread_is_reached_once() {
        let reached = Mutex::new(std::collections::HashSet::new());
        on_each_thread(|| assert!(reached.lock().unwrap().insert(std::thread::current().id())));
        let threads = POOL.as_ref().map_or(0, ThreadPool::current_num_threads);
        assert_eq!(reached.lock().unwrap().len(), threads);
    }
}
