//! The threads that networks run on: rayon's, in a pool of their own, awake as long as a network runs.
//!
//! A network is hundreds of parallel loops with a few microseconds between them. Rayon's threads go to sleep after some twenty
//! without work, and to wake one takes longer than that. So each thread here looks for work for as long as there is a network
//! running, letting whoever else wants its core have it at each turn, and sleeps until the next one after that.

use candle_core::Device;
use rayon::{ThreadPool, ThreadPoolBuilder, Yield};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, LazyLock, Mutex, PoisonError};

/// Threads that stay awake; with more, those without work would be in the way of those with some. The others sleep as rayon's do.
const MOST_AWAKE: usize = 8;

/// Calls of [`in_pool`] that have not returned.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Held from finding that nothing runs until asleep, and when something begins to: no thread sleeps through it.
static ASLEEP: Mutex<()> = Mutex::new(());
static BEGUN: Condvar = Condvar::new();

/// `None` where the system has no threads to give.
static POOL: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let pool = ThreadPoolBuilder::new()
        .thread_name(|i| format!("autosam-pool-{i}"))
        .build()
        .inspect_err(|e| tracing::warn!("networks run on rayon's common threads: {e}"))
        .ok()?;
    // At the bottom of each thread's stack, before it has any other work: inside of that it would wait for a network that waits
    // for the work.
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

/// Runs `f` on a thread of the pool, and the parallel loops inside on all of them; from any other thread each loop would be handed
/// over and waited for.
///
/// Nothing inside may wait for other threads or processes: a thread that waits for the end of a loop takes up other work
/// meanwhile, another call of this perhaps, and could not go on before that.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let Some(pool) = &*POOL else { return f() };
    let _running = Running::begin();
    pool.install(f)
}

/// [`in_pool`] for networks on a CPU; those on a GPU are launched from this thread.
pub fn in_pool_of<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { in_pool(f) } else { f() }
}

/// Runs `f` once on each thread of the pool.
pub(crate) fn on_each_thread(f: impl Fn() + Sync) {
    let Some(pool) = &*POOL else { return };
    let _running = Running::begin();
    pool.broadcast(|_| f());
}

struct Running;

impl Running {
    fn begin() -> Self {
        {
            let _nobody_falls_asleep = ASLEEP.lock().unwrap_or_else(PoisonError::into_inner);
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

/// For as long as the program: works while something runs, sleeps otherwise.
fn stay_awake() {
    loop {
        while RUNNING.load(Ordering::SeqCst) > 0 {
            if rayon::yield_now() != Some(Yield::Executed) {
                std::thread::yield_now();
            }
        }
        let guard = ASLEEP.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = |(): &mut ()| RUNNING.load(Ordering::SeqCst) == 0;
        drop(BEGUN.wait_while(guard, nothing).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn a_loop_inside_runs_on_the_pools_threads_and_ends() {
        for _ in 0..200 {
            let sums: Vec<usize> = in_pool(|| {
                assert!(std::thread::current().name().is_some_and(|name| name.starts_with("autosam-pool-")));
                (0..64usize).into_par_iter().map(|i| (0..=i).into_par_iter().sum()).collect()
            });
            assert!(sums.iter().enumerate().all(|(i, sum)| *sum == i * (i + 1) / 2));
        }
    }

    #[test]
    fn calls_inside_one_another_and_side_by_side_end() {
        let sum = |n: usize| in_pool(|| (0..n).into_par_iter().map(|i| in_pool(|| i)).sum::<usize>());
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..8).map(|_| scope.spawn(move || sum(1000))).collect();
            assert!(calls.into_iter().all(|call| call.join().unwrap() == 499_500));
        });
        // From a thread of rayon's common pool too.
        assert!((0..32).into_par_iter().map(|_| sum(100)).all(|sum| sum == 4950));
    }

    #[test]
    fn a_panic_inside_is_the_callers_and_the_pool_goes_on() {
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
