//! Descriptors that travel beside plain state: the state names them by [`Slot`].

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;

/// Where a descriptor is among those that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(u32);

/// Descriptors to be sent.
#[derive(Debug, Default)]
pub struct Outgoing(Vec<OwnedFd>);

impl Outgoing {
    /// Adds one; how the state names it.
    pub fn add(&mut self, descriptor: OwnedFd) -> Slot {
        self.0.push(descriptor);
        Slot(self.0.len() as u32 - 1)
    }

    /// All of them, in the order of their slots.
    pub fn as_slice(&self) -> &[OwnedFd] {
        &self.0
    }
}

/// Descriptors that came.
#[derive(Debug, Default)]
pub struct Incoming(Vec<Option<OwnedFd>>);

impl Incoming {
    /// As they were sent.
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// Takes one out.
    ///
    /// # Errors
    /// It did not come, or was taken before.
    pub fn take(&mut self, slot: Slot) -> io::Result<OwnedFd> {
        let place = self.0.get_mut(slot.0 as usize);
        place
            .and_then(Option::take)
            .ok_or_else(|| io::Error::other(format!("descriptor {} did not come", slot.0)))
    }

    /// [`Self::take`] where there may be none.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_some(&mut self, slot: Option<Slot>) -> io::Result<Option<OwnedFd>> {
        slot.map(|slot| self.take(slot)).transpose()
    }
}

impl From<Outgoing> for Incoming {
    fn from(sent: Outgoing) -> Self {
        Self::new(sent.0)
    }
}
