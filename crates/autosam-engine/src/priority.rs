//! Thread scheduling: inference threads run at lower priority; the streaming thread can be given real-time priority.

use crate::{Error, Result};
use std::time::Duration;

/// Niceness (0 to 19) of inference threads, so that the streaming thread gets a core that they use.
const NICENESS: i32 = 10;
/// Time slice of inference threads: how long they keep a core from a thread that wakes up. Linux supports this since 6.12;
/// the default is 2.8 ms, checked only at the next tick.
const SLICE: Duration = Duration::from_micros(100);

/// Lowers the priority of the calling thread, which computes masks. A failure is only logged.
pub(crate) fn lower_thread_priority() {
    if let Err(e) = system::lower_thread_priority(NICENESS, SLICE) {
        tracing::debug!("cannot lower the priority of inference threads: {e}");
    }
}

/// Names rayon's global threads, which would be started by their first user otherwise.
pub(crate) fn name_common_threads() {
    // Weights are read with loops on rayon's global threads, which inherit the name of the thread that starts them. A pool that
    // already exists is kept.
    let named = rayon::ThreadPoolBuilder::new().thread_name(|i| format!("autosam-common-{i}"));
    if named.build_global().is_err() {
        tracing::debug!("rayon's thread pool is already running; its threads keep their priority");
    }
}

/// Guard of a thread's real-time priority (`SCHED_RR`, sched(7)), which ends when the guard is dropped, on any thread. Threads
/// started by the raised thread are ordinary.
#[derive(Debug)]
pub struct RealtimeGuard {
    thread: i32,
    level: u8,
}

impl RealtimeGuard {
    /// Raises the calling thread to `level`, 1 to 99.
    ///
    /// # Errors
    /// If the OS does not permit it, with the permission needed, and on systems other than Linux.
    pub fn this_thread(level: u8) -> Result<Self> {
        let thread = system::this_thread();
        system::schedule(thread, Some(level)).map_err(|e| {
            Error::device(format!(
                "cannot give the streaming thread real-time priority {level}: {e} (needs CAP_SYS_NICE or an rtprio limit of at least {level}, see `ulimit -r`)"
            ))
        })?;
        Ok(Self { thread, level })
    }

    /// The priority, 1 to 99.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Whether the calling thread is the raised one.
    pub fn is_here(&self) -> bool {
        self.thread == system::this_thread()
    }
}

impl Drop for RealtimeGuard {
    fn drop(&mut self) {
        // A thread that has ended needs no restoring, and its id may now belong to another program.
        if system::is_ours(self.thread)
            && let Err(e) = system::schedule(self.thread, None)
        {
            tracing::warn!("cannot restore a thread's ordinary priority: {e}");
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    pub fn this_thread() -> i32 {
        rustix::thread::gettid().as_raw_nonzero().get()
    }

    /// Makes the calling thread an ordinary one with at least this niceness and this time slice (sched(7)).
    pub fn lower_thread_priority(nice: i32, slice: Duration) -> io::Result<()> {
        let nice = nice.max(rustix::process::getpriority_process(None)?);
        // First with a separate call, because a sandbox may forbid the call below, which can also make a thread
        // real-time.
        rustix::process::setpriority_process(None, nice)?;
        let attributes = libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: libc::SCHED_OTHER as u32,
            sched_flags: 0,
            sched_nice: nice,
            sched_priority: 0,
            sched_runtime: slice.as_nanos() as u64,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the call reads `attributes`, whose size is correct, and accesses no other memory of this process.
        match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether the id belongs to a thread of this process.
    pub fn is_ours(thread: i32) -> bool {
        Path::new("/proc/self/task").join(thread.to_string()).exists()
    }

    /// Makes the thread real-time at `level`, or ordinary without one.
    pub fn schedule(thread: i32, level: Option<u8>) -> io::Result<()> {
        let policy = if level.is_some() { libc::SCHED_RR } else { libc::SCHED_OTHER };
        let param = libc::sched_param { sched_priority: level.unwrap_or(0).into() };
        // SAFETY: the call reads `param` and accesses no other memory of this process.
        match unsafe {
            libc::sched_setscheduler(thread, policy | libc::SCHED_RESET_ON_FORK, &raw const param)
        } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether the thread is real-time.
    #[cfg(test)]
    pub fn is_urgent(thread: i32) -> bool {
        // SAFETY: the call accesses no memory of this process.
        unsafe { libc::sched_getscheduler(thread) & !libc::SCHED_RESET_ON_FORK == libc::SCHED_RR }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;
    use std::time::Duration;

    pub fn this_thread() -> i32 {
        0
    }

    pub fn lower_thread_priority(_: i32, _: Duration) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    pub fn is_ours(_: i32) -> bool {
        false
    }

    pub fn schedule(_: i32, _: Option<u8>) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn real_time_priority_ends_when_the_guard_is_dropped_on_any_thread() {
        let (raised, threads) = std::sync::mpsc::channel();
        let (done, end) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            raised.send((system::this_thread(), RealtimeGuard::this_thread(3))).unwrap();
            let _ = end.recv();
        });
        let (number, urgent) = threads.recv().unwrap();
        let Ok(urgent) = urgent else {
            eprintln!("SKIPPED: {}", urgent.unwrap_err());
            return;
        };
        assert!(system::is_urgent(number));
        assert_eq!((urgent.level(), urgent.is_here()), (3, false));
        assert!(!system::is_urgent(system::this_thread()));
        drop(urgent);
        assert!(!system::is_urgent(number));
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn inference_threads_run_at_lower_priority() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let lowered = std::thread::spawn(move || {
            lower_thread_priority();
            nice()
        });
        assert_eq!((lowered.join().unwrap(), nice()), (NICENESS, before));
    }

    #[test]
    fn children_of_a_real_time_thread_are_ordinary() {
        let child = std::thread::spawn(|| {
            let urgent = RealtimeGuard::this_thread(1);
            let child = std::thread::spawn(|| system::is_urgent(system::this_thread())).join();
            urgent.map(|urgent| (urgent.is_here(), child.unwrap()))
        });
        match child.join().unwrap() {
            Ok(found) => assert_eq!(found, (true, false)),
            Err(e) => eprintln!("SKIPPED: {e}"),
        }
    }

    #[test]
    fn an_impossible_priority_is_an_error_that_names_the_permission() {
        let text = RealtimeGuard::this_thread(100).unwrap_err().to_string();
        assert!(text.contains("rtprio"), "{text}");
    }
}
