//! The pager: threads that each wait for a message and do what it says.
//!
//! Kept true: once the userfaultfd was given away nothing is allocated, since whoever has it may fill memory that was never touched; the process
//! ends with the thread that started it, and when the daemon closes its end.

use super::message::{Message, receive, send};
use crate::ring::userfault::{self, Windows};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Pages that are waited for at once.
pub const THREADS: usize = 8;
const STACK_BYTES: usize = 64 * 1024;

static WINDOWS: Windows = Windows::new();

/// Serves the daemon on standard input until it goes.
///
/// # Errors
/// No userfaultfd, thread or descriptor is to be had; the daemon was told.
pub fn run() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    let served = serve(&channel);
    if let Err(error) = &served {
        let told = Message::Failed(error.raw_os_error().unwrap_or_default());
        let _ = send(&channel, told, None, SendFlags::empty());
    }
    served
}

fn serve(channel: &OwnedFd) -> io::Result<()> {
    let faults = userfault::open()?;
    std::thread::scope(|scope| {
        let thread = || end(channel, answer_all(channel, faults.as_fd()));
        for _ in 0..THREADS {
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn_scoped(scope, thread)?;
        }
        send(
            channel,
            Message::Ready,
            Some(faults.as_fd()),
            SendFlags::empty(),
        )
    })
}

/// A thread that ends ends the process: the others may be waiting for a page that will not come any more.
fn end(channel: &OwnedFd, served: io::Result<()>) {
    let Err(error) = served else {
        std::process::exit(0);
    };
    let told = Message::Failed(error.raw_os_error().unwrap_or_default());
    let _ = send(channel, told, None, SendFlags::empty());
    std::process::exit(1);
}

fn answer_all(channel: &OwnedFd, faults: BorrowedFd<'_>) -> io::Result<()> {
    while let Some((message, descriptor)) = receive(channel, RecvFlags::empty())? {
        let answer = match (message, descriptor) {
            (
                Message::Map {
                    start,
                    bytes,
                    offset,
                },
                Some(file),
            ) => {
                WINDOWS.map((file.as_fd(), faults), (start, bytes, offset))?;
                Message::Mapped(start)
            }
            (Message::Fetch(page), None) if WINDOWS.touch(page) => Message::Here(page),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        send(channel, answer, None, SendFlags::empty())?;
    }
    Ok(())
}
