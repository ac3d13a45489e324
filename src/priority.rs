//! Who gets a core first: threads that make masks stand back, a thread that brings pictures may go before all others.

use crate::{Error, Result, ops};
use std::time::Duration;

/// How nice (0 to 19) the threads are that make masks: where a picture's thread wants a core that they have, it gets it.
const NICENESS: i32 = 10;
/// For how long they keep a core from a thread that wakes, which Linux grants from 6.12 on; 2.8 ms are usual, and the next tick is the
/// first occasion then.
const SLICE: Duration = Duration::from_micros(100);

/// Lowers the priority of this thread and of those that networks run on. Where that cannot be done the picture goes on all the same.
pub(crate) fn stand_back() {
    let lower = || {
        if let Err(e) = system::stand_back(NICENESS, SLICE) {
            tracing::debug!("no lower priority for inference: {e}");
        }
    };
    lower();
    ops::on_each_thread(lower);
    // Models are read with loops on rayon's common threads, which would bear the name of the thread that starts them. A pool that is
    // there already stays as it is.
    let named = rayon::ThreadPoolBuilder::new().thread_name(|i| format!("autosam-common-{i}"));
    if named.build_global().is_err() {
        tracing::debug!("rayon's threads have been started elsewhere");
    }
}

/// A thread that goes before all ordinary ones (`SCHED_RR`, sched(7)) until this is dropped, on whatever thread. Threads that it
/// starts are ordinary.
#[derive(Debug)]
pub struct Urgent {
    thread: i32,
    level: u8,
}

impl Urgent {
    /// Raises the calling thread to `level`, 1 to 99.
    ///
    /// # Errors
    /// Where the system does not permit it, with what would, and on systems other than Linux.
    pub fn this_thread(level: u8) -> Result<Self> {
        let thread = system::this_thread();
        system::schedule(thread, Some(level)).map_err(|e| {
            Error::invalid(format!(
                "no real-time priority {level} for the thread of the pictures: {e}. It takes CAP_SYS_NICE or a limit rtprio of {level} (ulimit -r)"
            ))
        })?;
        Ok(Self { thread, level })
    }

    /// 1 to 99.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Whether this is the calling thread's.
    pub fn is_here(&self) -> bool {
        self.thread == system::this_thread()
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // A thread that has ended needs nothing, and its number may be another program's by now.
        if system::is_ours(self.thread)
            && let Err(e) = system::schedule(self.thread, None)
        {
            tracing::warn!("a thread keeps its real-time priority: {e}");
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

    /// Makes the calling thread an ordinary one of at least this niceness and of this slice (sched(7)).
    pub fn stand_back(nice: i32, slice: Duration) -> io::Result<()> {
        let nice = nice.max(rustix::process::getpriority_process(None)?);
        // By itself first: a sandbox may forbid the call below, which can make a thread real-time too.
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
        // SAFETY: the call reads `attributes`, as large as they say, and touches no other memory of ours.
        match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether a thread of this process has the number.
    pub fn is_ours(thread: i32) -> bool {
        Path::new("/proc/self/task").join(thread.to_string()).exists()
    }

    /// Real-time with a level, ordinary without.
    pub fn schedule(thread: i32, level: Option<u8>) -> io::Result<()> {
        let policy = if level.is_some() { libc::SCHED_RR } else { libc::SCHED_OTHER };
        let param = libc::sched_param { sched_priority: level.unwrap_or(0).into() };
        // SAFETY: the call reads `param` and touches no other memory of ours.
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
        // SAFETY: the call touches no memory of ours.
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

    pub fn stand_back(_: i32, _: Duration) -> io::Result<()> {
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
    fn a_thread_is_urgent_until_it_is_given_back_also_from_elsewhere() {
        let (raised, threads) = std::sync::mpsc::channel();
        let (done, end) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            raised.send((system::this_thread(), Urgent::this_thread(3))).unwrap();
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
    fn threads_of_networks_are_nicer_than_others() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        std::thread::spawn(stand_back).join().unwrap();
        let found = std::sync::Mutex::new(Vec::new());
        ops::on_each_thread(|| found.lock().unwrap().push(nice()));
        let found = found.into_inner().unwrap();
        assert!(!found.is_empty() && found.iter().all(|n| *n == NICENESS), "{found:?}");
        assert_eq!(nice(), before);
    }

    #[test]
    fn what_a_real_time_thread_starts_is_ordinary() {
        let child = std::thread::spawn(|| {
            let urgent = Urgent::this_thread(1);
            let child = std::thread::spawn(|| system::is_urgent(system::this_thread())).join();
            urgent.map(|urgent| (urgent.is_here(), child.unwrap()))
        });
        match child.join().unwrap() {
            Ok(found) => assert_eq!(found, (true, false)),
            Err(e) => eprintln!("SKIPPED: {e}"),
        }
    }

    #[test]
    fn a_level_that_there_is_not_is_an_error_that_says_what_it_takes() {
        let text = Urgent::this_thread(100).unwrap_err().to_string();
        assert!(text.contains("rtprio"), "{text}");
    }
}
