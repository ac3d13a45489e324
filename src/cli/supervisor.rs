//! The service manager that started the program: systemd's notifications (sd_notify(3)). Without one, nothing is sent.

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// Tells the service manager that the program is ready, and that it still runs.
pub struct Supervisor {
    /// Half the time after which it would restart the program; `None` if it has no watchdog.
    period: Option<Duration>,
    last: Instant,
}

impl Supervisor {
    /// Reports that the program is ready.
    pub fn ready() -> Self {
        send(&[NotifyState::Ready]);
        Self { period: sd_notify::watchdog_enabled().map(|limit| limit / 2), last: Instant::now() }
    }

    /// Reports that the program runs; to be called often, what is sent is less.
    pub fn runs(&mut self) {
        if self.period.is_some_and(|period| self.last.elapsed() >= period) {
            send(&[NotifyState::Watchdog]);
            self.last = Instant::now();
        }
    }

    /// A line for the service's status.
    pub fn status(text: &str) {
        send(&[NotifyState::Status(text)]);
    }
}

fn send(state: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager: {e}");
    }
}
