//! A deadline for answers that are awaited without one.
//!
//! Used by `session`, around `Frontend`, which would wait for ever; on a thread of its own, which ends with it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Shuts a socket down when an answer takes too long.
pub(super) struct Watchdog {
    orders: Option<Sender<Option<Instant>>>,
    bitten: Arc<AtomicBool>,
    deadline: Duration,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub fn new(stream: UnixStream, deadline: Duration) -> Self {
        let (orders, inbox) = channel::<Option<Instant>>();
        let bitten = Arc::new(AtomicBool::new(false));
        let flag = bitten.clone();
        let thread = std::thread::spawn(move || {
            let mut end: Option<Instant> = None;
            loop {
                let order = match end {
                    None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
                };
                match order {
                    Ok(new) => end = new,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        flag.store(true, Ordering::Release);
                        // An error means that the socket is closed already, which is what this is for.
                        let _closed = stream.shutdown(std::net::Shutdown::Both);
                        end = None;
                    }
                }
            }
        });
        Self {
            orders: Some(orders),
            bitten,
            deadline,
            thread: Some(thread),
        }
    }

    /// An answer is awaited from now on.
    pub fn start(&self) {
        self.order(Some(Instant::now() + self.deadline));
    }

    /// None is any more; whether it had to shut the socket down.
    pub fn stop(&self) -> bool {
        self.order(None);
        self.bitten.load(Ordering::Acquire)
    }

    fn order(&self, order: Option<Instant>) {
        if let Some(orders) = &self.orders {
            // The thread ends only when `orders` is dropped.
            let _sent = orders.send(order);
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
