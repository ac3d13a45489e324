//! Notifications to the service manager that started the program, systemd (sd_notify(3)). Without one, nothing is sent.

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// Reports to the service manager that the program is ready and still running.
pub struct Supervisor {
    /// Half of the watchdog's timeout; `None` without a watchdog.
    period: Option<Duration>,
    last: Instant,
}

impl Supervisor {
    /// Reports that the program is ready.
    pub fn ready() -> Self {
        send(&[NotifyState::Ready]);
        Self { period: sd_notify::watchdog_enabled().map(|limit| limit / 2), last: Instant::now() }
    }

    /// Reports that the program is still running. Call it often: it sends at most one notification per period.
    pub fn runs(&mut self) {
        if self.period.is_some_and(|period| self.last.elapsed() >= period) {
            send(&[NotifyState::Watchdog]);
            self.last = Instant::now();
        }
    }

    /// Sets the line of text in the service's status.
    pub fn status(text: &str) {
        send(&[NotifyState::Status(text)]);
    }
}

fn send(state: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager: {e}");
    }
}
