//! How a device fares, and how that came about.
use super::device::Device;
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

/// Transitions that are remembered.
pub const MAX_HISTORY: usize = 32;

/// How a device fares.
///
/// ```text
/// pending -> plugging -> waiting-for-guest <-> ready
///    ^          |               |               |
///    +---- failed <-------------+-- unplugging <+     (any of them -> unplugging, once it shall go)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Nothing is done yet: its VM does not run, or migrates.
    Pending,
    /// It is being given to its VM.
    Plugging,
    /// The VM has it; the guest's driver has not taken it up, or has let go of it.
    WaitingForGuest,
    /// It carries frames.
    Ready,
    /// The guest was asked to let go of it.
    Unplugging,
    /// It could not be done; it is tried again.
    Failed,
}

impl DeviceState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Plugging,
        Self::WaitingForGuest,
        Self::Ready,
        Self::Unplugging,
        Self::Failed,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Plugging => "plugging",
            Self::WaitingForGuest => "waiting-for-guest",
            Self::Ready => "ready",
            Self::Unplugging => "unplugging",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a device is not as it shall be, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Fault {
    /// The field of the device that it is about.
    pub field: Option<&'static str>,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl Fault {
    /// One that is about a field.
    pub fn of(field: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            field: Some(field),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// One that is about none.
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            field: None,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

/// A state with why, and when it will be looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The state.
    pub state: DeviceState,
    /// Why it is not ready, when there is something to say.
    pub fault: Option<Fault>,
    /// When it is tried again.
    pub retry: Option<Instant>,
}

impl Status {
    /// A state that needs no words.
    pub fn plain(state: DeviceState) -> Self {
        Self {
            state,
            fault: None,
            retry: None,
        }
    }

    /// A state with its reason.
    pub fn with(state: DeviceState, fault: Fault, retry: Option<Instant>) -> Self {
        Self {
            state,
            fault: Some(fault),
            retry,
        }
    }
}

/// One transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When, by the clock on the wall.
    pub at: SystemTime,
    /// To which state.
    pub state: DeviceState,
    /// Why.
    pub reason: Option<String>,
}

/// What is different of how a device fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// Why it is in its state: there may be a time in it, and another a second later.
    Reason,
    /// Its state.
    State,
}

/// How a device fares and fared.
#[derive(Clone, Debug)]
pub struct Actual {
    status: Status,
    history: VecDeque<Transition>,
}

impl Actual {
    /// From the beginning.
    pub fn new(status: Status) -> Self {
        let mut actual = Self {
            status: status.clone(),
            history: VecDeque::new(),
        };
        actual.remember(&status);
        actual
    }

    /// Takes notice of how it is now. Another reason for the same state is no transition.
    pub fn set(&mut self, status: Status) -> Change {
        let is_transition = status.state != self.status.state;
        let is_news = is_transition || status.fault != self.status.fault;
        if is_transition {
            self.remember(&status);
        } else if let Some(last) = self.history.back_mut() {
            last.reason = status.fault.as_ref().map(|fault| fault.reason.clone());
        }
        self.status = status;
        match (is_transition, is_news) {
            (true, _) => Change::State,
            (false, true) => Change::Reason,
            (false, false) => Change::Nothing,
        }
    }

    fn remember(&mut self, status: &Status) {
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Transition {
            at: SystemTime::now(),
            state: status.state,
            reason: status.fault.as_ref().map(|fault| fault.reason.clone()),
        });
    }

    /// How it is now.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// How that came about, oldest first.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Transition> {
        self.history.iter()
    }
}

/// That a device shall go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Whether it goes although its guest does not let go of it.
    pub force: bool,
    /// How long the guest may take.
    pub timeout: Duration,
}

/// A device as it shall be and as it fares.
#[derive(Clone, Debug)]
pub struct DeviceView {
    /// As asked for, with what was chosen.
    pub device: Device,
    /// That it shall go.
    pub removal: Option<Removal>,
    /// How it fares.
    pub actual: Actual,
    /// Whether it outlives the process.
    pub durable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_holds_each_transition_once_and_no_more_than_its_bound() {
        let mut actual = Actual::new(Status::plain(DeviceState::Pending));
        assert_eq!(
            actual.set(Status::plain(DeviceState::Pending)),
            Change::Nothing
        );
        for round in 0..100 {
            let fault = |text: &str| Fault::new(format!("{text} {round}"), "wait");
            assert_eq!(
                actual.set(Status::with(DeviceState::Failed, fault("first"), None)),
                Change::State
            );
            let again = Status::with(DeviceState::Failed, fault("first"), Some(Instant::now()));
            assert_eq!(actual.set(again), Change::Nothing);
            assert_eq!(
                actual.set(Status::with(DeviceState::Failed, fault("then"), None)),
                Change::Reason
            );
            assert_eq!(
                actual.set(Status::plain(DeviceState::Pending)),
                Change::State
            );
        }
        let history: Vec<_> = actual.history().collect();
        assert_eq!(history.len(), MAX_HISTORY);
        let failed = history[MAX_HISTORY - 2];
        assert_eq!(failed.reason.as_deref(), Some("then 99"));
    }
}
