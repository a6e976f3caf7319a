//! One task for each hypervisor: looks at what it has, plans, executes, and waits for something to happen.
//!
//! Runs on the thread of the table's owner, beside the tasks of all other hypervisors, and shares nothing with them: what it is to do comes
//! as a list that replaces the one before, what becomes of it goes to the owner as reports. It ends when the owner ends it.
//!
//! It remembers nothing that it could read instead: only when it asked guests to let go, and when it may try again what failed.
use super::backend::{Backend, Objects, Sight};
use super::check::{Refusal, check};
use super::device::{Device, VmAddress, name_in_id};
use super::execute::{Hands, StepFault, close_port, port_of};
use super::plan::{Intent, Seen, Step, plan};
use super::status::{DeviceState, Fault, Removal, Status};
use crate::config::PortName;
use crate::control::{ControlHandle, PortView};
use crate::hypervisor::HypervisorError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};

/// Between two looks when all is as it shall be: what nobody tells us of, such as a port that was removed by hand, is noticed after that.
const CALM: Duration = Duration::from_secs(2);
/// The same while a guest is waited for: first, and at most.
const WAITING: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Between two attempts at what failed: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two attempts to reach a hypervisor that is not there.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// What an obstacle that passes by itself is given.
const OBSTACLE: Duration = Duration::from_secs(1);
/// Between two requests to a guest to let go. A PCIe slot takes two within 5 s for "never mind".
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// Between two looks at the least, however often something happens.
const BREATH: Duration = Duration::from_millis(10);

/// A device that a hypervisor shall have, or shall have no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The device.
    pub device: Device,
    /// That it shall go.
    pub removal: Option<Removal>,
}

/// What became of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It fares so.
    Status(Status),
    /// Nothing of it is left in the switch.
    Gone {
        /// What the hypervisor still knows it by, since its guest has not let go of it.
        left_behind: bool,
    },
}

/// A report, about the device of that name and id.
pub type Reported = (PortName, String, Report);

/// The task of one hypervisor.
pub struct Reconciler {
    /// The hypervisor.
    pub vm: VmAddress,
    /// What it shall have.
    pub wanted: watch::Receiver<Arc<Vec<Wanted>>>,
    /// The switch.
    pub control: ControlHandle,
    /// Where reports go.
    pub reports: mpsc::Sender<Reported>,
    /// Where sockets are put that nobody named: what hangs on one there is ours.
    pub folder: PathBuf,
    /// By id.
    pub progress: BTreeMap<String, Progress>,
}

/// What is remembered of a device from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// When its removal began.
    removing_since: Option<Instant>,
    /// When its guest may be asked to let go again, and after which pause once more.
    ask: Pace,
    /// Why asking came to nothing, the last time.
    refused: Option<Fault>,
    /// The same for what failed.
    retry: Pace,
    /// The same for looking whether its guest has taken it up.
    look: Pace,
}

/// Pauses that grow.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    next: Option<Instant>,
    pause: Duration,
}

impl Pace {
    fn is_due(&self) -> bool {
        self.next.is_none_or(|next| next <= Instant::now())
    }

    /// Pauses, longer than last time; until when.
    fn pause(&mut self, (first, most): (Duration, Duration)) -> Instant {
        self.pause = (self.pause * 2).clamp(first, most);
        let next = Instant::now() + self.pause;
        self.next = Some(next);
        next
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

impl Reconciler {
    /// Runs until the owner has gone.
    pub async fn run(mut self) {
        let mut reconnect = Pace::default();
        let mut last = None;
        while self.wanted.has_changed().is_ok() {
            let Some(connected) = self.connect(last.as_ref()).await else {
                return;
            };
            let error = match connected {
                Ok(mut backend) => {
                    reconnect.reset();
                    match self.serve(&mut backend).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            // One that hangs is not asked as often as one that is not there.
            let pauses = match error {
                HypervisorError::Absent(_) | HypervisorError::Closed(_) => RECONNECT,
                _ => RETRY,
            };
            let retry = reconnect.pause(pauses);
            self.unreachable(&error, retry).await;
            loop {
                // What goes by force goes in time, whether its hypervisor answers or not.
                let until = self.next_force().map_or(retry, |force| force.min(retry));
                tokio::select! {
                    changed = self.wanted.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    () = sleep_until(until.into()) => {}
                }
                if until == retry {
                    break;
                }
                self.unreachable(&error, retry).await;
            }
            last = Some(error);
        }
    }

    /// When the next device is to go by force that has not been seen to.
    fn next_force(&self) -> Option<Instant> {
        let wanted = self.wanted.borrow();
        let forced = wanted.iter().filter_map(|wanted| {
            let removal = wanted.removal.filter(|removal| removal.force)?;
            let since = self.progress.get(&wanted.device.id())?.removing_since?;
            Some(since + removal.timeout)
        });
        forced.filter(|force| *force > Instant::now()).min()
    }

    /// Connects. Where that failed before and takes its time again, what is asked for meanwhile is answered at once. `None`: the owner has
    /// gone.
    async fn connect(
        &mut self,
        last: Option<&HypervisorError>,
    ) -> Option<Result<Backend, HypervisorError>> {
        // That nobody listens is told at once, and may be otherwise by now.
        let last = last.filter(|error| !matches!(error, HypervisorError::Absent(_)));
        if let Some(error) = last {
            self.unreachable(error, Instant::now()).await;
        }
        let vm = self.vm.clone();
        let mut connecting = std::pin::pin!(Backend::connect(&vm));
        loop {
            tokio::select! {
                connected = &mut connecting => return Some(connected),
                changed = self.wanted.changed() => changed.ok()?,
            }
            if let Some(error) = last {
                self.unreachable(error, Instant::now()).await;
            }
        }
    }

    /// Looks and acts whenever something happened. `Ok`: the owner has gone.
    async fn serve(&mut self, backend: &mut Backend) -> Result<(), HypervisorError> {
        loop {
            let next = self.round(backend).await?;
            sleep(BREATH).await;
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return Ok(()) },
                happened = backend.changed() => happened?,
                () = sleep_until(next.into()) => {}
            }
        }
    }

    /// One look, and what follows from it; when to look again.
    async fn round(&mut self, backend: &mut Backend) -> Result<Instant, HypervisorError> {
        let wanted = Arc::clone(&self.wanted.borrow_and_update());
        let sight = backend.look().await?;
        let mut next = Instant::now() + CALM;
        let ids: BTreeSet<String> = wanted.iter().map(|wanted| wanted.device.id()).collect();
        self.progress
            .retain(|id, _| ids.contains(id) || sight.contains_key(id));
        for wanted in wanted.iter() {
            let id = wanted.device.id();
            let mut progress = self.progress.get(&id).cloned().unwrap_or_default();
            let due = Turn {
                reconciler: self,
                wanted,
                id: &id,
                progress: &mut progress,
            }
            .take(backend, sight.get(&id).cloned().unwrap_or_default())
            .await?;
            self.progress.insert(id, progress);
            next = next.min(due);
        }
        next = next.min(self.clean(backend, &sight, &wanted).await?);
        Ok(next.max(Instant::now()))
    }

    /// Takes away what an earlier life of this switch has left in the VM: NICs of a device that is another now, or that hang on a socket in
    /// our own folder that is nobody's.
    async fn clean(
        &mut self,
        backend: &mut Backend,
        sight: &Sight,
        wanted: &[Wanted],
    ) -> Result<Instant, HypervisorError> {
        let mut next = Instant::now() + CALM;
        for (id, objects) in sight {
            if wanted.iter().any(|wanted| wanted.device.id() == *id) {
                continue;
            }
            let namesake = wanted
                .iter()
                .find(|wanted| name_in_id(id) == Some(wanted.device.name().as_str()));
            let in_our_folder = objects
                .socket
                .as_ref()
                .is_some_and(|socket| socket.parent() == Some(&self.folder));
            let same_socket = namesake.is_some_and(|namesake| {
                let socket = namesake.device.port.socket().map(|socket| socket.as_path());
                objects.socket.is_none() || objects.socket.as_deref() == socket
            });
            if !in_our_folder && !same_socket {
                continue;
            }
            let progress = self.progress.entry(id.clone()).or_default();
            if progress.ask.is_due() {
                log::info!(
                    "{}: taking {id} away, which an earlier ringswitch has left",
                    self.vm.socket
                );
                next = next.min(progress.ask.pause(ASK_AGAIN));
                take_away(backend, id, objects).await?;
            }
        }
        Ok(next)
    }

    /// Nothing can be done about its devices, but for those that only the switch still knows.
    async fn unreachable(&mut self, error: &HypervisorError, retry: Instant) {
        let wanted = Arc::clone(&self.wanted.borrow_and_update());
        let is_absent = matches!(error, HypervisorError::Absent(_));
        // One that has just gone is looked for once more at once.
        let is_going = is_absent || matches!(error, HypervisorError::Closed(_));
        let fault = Fault::of("vm", format!("the hypervisor: {error}"), error.remedy());
        for Wanted { device, removal } in wanted.iter() {
            let id = device.id();
            let report = match removal {
                // Nobody listens: the VM has ended, and the NIC with it.
                Some(_) if is_absent => self.leave(device, false).await,
                Some(removal) => {
                    let progress = self.progress.entry(id.clone()).or_default();
                    let since = *progress.removing_since.get_or_insert_with(Instant::now);
                    if removal.force && since.elapsed() >= removal.timeout {
                        self.leave(device, true).await
                    } else {
                        let state = if is_going {
                            DeviceState::Unplugging
                        } else {
                            DeviceState::Failed
                        };
                        Report::Status(Status::with(state, fault.clone(), Some(retry)))
                    }
                }
                None => {
                    // The monitor's silence says nothing of the NIC: that is seen at the port.
                    let port = port_of(&self.control, device).await.ok().flatten();
                    let state = match port {
                        Some(port) if is_taken_up(&port) => DeviceState::Ready,
                        _ if is_going => DeviceState::Pending,
                        _ => DeviceState::Failed,
                    };
                    Report::Status(Status::with(state, fault.clone(), Some(retry)))
                }
            };
            self.report(device.name(), id, report).await;
        }
    }

    /// Closes the port of a device that its VM does not have, or keeps whatever we do.
    async fn leave(&self, device: &Device, left_behind: bool) -> Report {
        match close_port(&self.control, device).await {
            Ok(()) => Report::Gone { left_behind },
            Err(fault) => Report::Status(Status::with(DeviceState::Failed, fault.fault(), None)),
        }
    }

    async fn report(&self, name: &PortName, id: String, report: Report) {
        // An owner that is gone ends this task too.
        let _ = self.reports.send((name.clone(), id, report)).await;
    }
}

async fn take_away(
    backend: &mut Backend,
    id: &str,
    objects: &Objects,
) -> Result<(), HypervisorError> {
    let taken = match backend {
        Backend::Qemu(qemu) if objects.nic => qemu.ask_for_release(id).await,
        Backend::Qemu(qemu) => match qemu.delete_netdev(id).await {
            Ok(()) => qemu.delete_chardev(id).await,
            refused => refused,
        },
        Backend::CloudHypervisor(api) => api.remove_device(id).await,
    };
    match taken {
        Err(error) if error.ends_connection() => Err(error),
        Err(error) => {
            log::warn!("{id} could not be taken away: {error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// One device's part of a round.
struct Turn<'a> {
    reconciler: &'a Reconciler,
    wanted: &'a Wanted,
    id: &'a str,
    progress: &'a mut Progress,
}

impl Turn<'_> {
    fn device(&self) -> &Device {
        &self.wanted.device
    }

    async fn status(&self, status: Status) {
        let name = self.device().name();
        let report = Report::Status(status);
        self.reconciler
            .report(name, self.id.to_owned(), report)
            .await;
    }

    /// Brings the device nearer to what it shall be; when to look again.
    async fn take(
        &mut self,
        backend: &mut Backend,
        objects: Objects,
    ) -> Result<Instant, HypervisorError> {
        let port = match port_of(&self.reconciler.control, self.device()).await {
            Ok(port) => port,
            // A port that is somebody else's: the device has none.
            Err(fault) if fault.is_others_port() && self.wanted.removal.is_some() => None,
            Err(fault) => return Ok(self.failed(DeviceState::Failed, fault.fault()).await),
        };
        let seen = Seen {
            port: port.is_some(),
            nic: objects.nic,
            chardev: objects.socket.is_some(),
        };
        match self.wanted.removal {
            Some(removal) => self.remove(backend, seen, removal).await,
            None => self.keep(backend, seen, port).await,
        }
    }

    async fn keep(
        &mut self,
        backend: &mut Backend,
        seen: Seen,
        port: Option<PortView>,
    ) -> Result<Instant, HypervisorError> {
        if seen.is_plugged(self.device()) {
            return match port {
                Some(port) => Ok(self.tell(&port).await),
                None => self.carry_out(backend, seen, String::new()).await,
            };
        }
        if !self.progress.retry.is_due() {
            return Ok(self.progress.retry.next.unwrap_or_else(Instant::now));
        }
        if seen.nic {
            let fault = Fault::new(
                "the VM still has what was left of an earlier NIC of this name",
                "let the guest release it, or restart the VM",
            );
            let fault = self.ask(backend).await?.err().unwrap_or(fault);
            return Ok(self.failed(DeviceState::Pending, fault).await);
        }
        let facts = match backend.facts().await {
            Err(error) if !error.ends_connection() => {
                let fault = StepFault::from(error).fault();
                return Ok(self.failed(DeviceState::Failed, fault).await);
            }
            facts => facts?,
        };
        match check(self.device(), &facts) {
            Ok(bus) => self.carry_out(backend, seen, bus).await,
            Err(Refusal::NotSo(fault)) => Ok(self.failed(DeviceState::Failed, fault).await),
            Err(Refusal::NotNow(fault)) => {
                let retry = Instant::now() + OBSTACLE;
                self.status(Status::with(DeviceState::Pending, fault, Some(retry)))
                    .await;
                Ok(retry)
            }
        }
    }

    /// Gives the VM its NIC.
    async fn carry_out(
        &mut self,
        backend: &mut Backend,
        seen: Seen,
        bus: String,
    ) -> Result<Instant, HypervisorError> {
        self.status(Status::plain(DeviceState::Plugging)).await;
        let steps = plan(self.device(), &Intent::Present { bus }, seen);
        match self.execute(backend, &steps).await? {
            Ok(()) => {
                self.progress.retry.reset();
                self.progress.look.reset();
                log::info!(
                    "device {} plugged into {}",
                    self.device().name(),
                    self.device().vm.socket
                );
                Ok(Instant::now())
            }
            Err(fault) => Ok(self.failed(DeviceState::Failed, fault).await),
        }
    }

    /// Says how a device fares that its VM has.
    async fn tell(&mut self, port: &PortView) -> Instant {
        self.progress.retry.reset();
        if is_taken_up(port) {
            self.progress.look.reset();
            self.status(Status::plain(DeviceState::Ready)).await;
            return Instant::now() + CALM;
        }
        let reason = port.health.reason.clone();
        let reason = reason.unwrap_or_else(|| format!("the port is {}", port.health.state));
        let remedy = "let the guest load its driver and bring the interface up; `ringswitch port show` says what the port waits for";
        let fault = Fault::new(reason, remedy);
        self.status(Status::with(DeviceState::WaitingForGuest, fault, None))
            .await;
        self.progress.look.pause(WAITING)
    }

    async fn remove(
        &mut self,
        backend: &mut Backend,
        seen: Seen,
        removal: Removal,
    ) -> Result<Instant, HypervisorError> {
        let since = match self.progress.removing_since {
            Some(since) => since,
            None => {
                // Pauses were for giving the VM its NIC.
                *self.progress = Progress::default();
                *self.progress.removing_since.insert(Instant::now())
            }
        };
        if !seen.nic {
            return self.finish(backend, seen, Intent::Absent).await;
        }
        let deadline = since + removal.timeout;
        let asked = self.ask(backend).await?;
        if removal.force && Instant::now() >= deadline {
            return self.finish(backend, seen, Intent::Abandoned).await;
        }
        let again = self.progress.ask.next.unwrap_or_else(Instant::now);
        if let Err(fault) = asked {
            self.progress.refused = Some(fault);
        } else if backend.take_guest_refusal(self.id) {
            self.progress.refused = Some(Fault::of(
                "vm",
                "the guest refuses to let go of it",
                "see the guest's log; remove it with force to take it away all the same",
            ));
        }
        let status = match self.progress.refused.clone() {
            // So it stays until it is asked again.
            Some(fault) => Status::with(DeviceState::Failed, fault, Some(again)),
            None if Instant::now() >= deadline => {
                let reason = format!(
                    "the guest has not let go of it within {} ms",
                    removal.timeout.as_millis()
                );
                let remedy = "see whether the guest runs and handles hot-plug; it is asked again; remove it with force to take it away all the same";
                Status::with(
                    DeviceState::Failed,
                    Fault::of("vm", reason, remedy),
                    Some(again),
                )
            }
            None => Status::plain(DeviceState::Unplugging),
        };
        self.status(status).await;
        let next = if deadline > Instant::now() {
            deadline.min(again)
        } else {
            again
        };
        Ok(if backend.has_events() {
            next
        } else {
            next.min(self.progress.look.pause(WAITING))
        })
    }

    /// Asks the guest to let go, if it is time to.
    async fn ask(&mut self, backend: &mut Backend) -> Result<Result<(), Fault>, HypervisorError> {
        if !self.progress.ask.is_due() {
            return Ok(Ok(()));
        }
        self.progress.ask.pause(ASK_AGAIN);
        self.progress.refused = None;
        self.execute(backend, &[Step::AskForRelease]).await
    }

    /// The last steps of a device that goes.
    async fn finish(
        &mut self,
        backend: &mut Backend,
        seen: Seen,
        intent: Intent,
    ) -> Result<Instant, HypervisorError> {
        if !self.progress.retry.is_due() {
            return Ok(self.progress.retry.next.unwrap_or_else(Instant::now));
        }
        let steps = plan(self.device(), &intent, seen);
        match self.execute(backend, &steps).await? {
            Ok(()) => {
                let left_behind = seen.nic;
                let name = self.device().name();
                log::info!("device {name} removed from {}", self.device().vm.socket);
                self.reconciler
                    .report(name, self.id.to_owned(), Report::Gone { left_behind })
                    .await;
                Ok(Instant::now() + CALM)
            }
            Err(fault) => Ok(self.failed(DeviceState::Failed, fault).await),
        }
    }

    /// Outer error: the connection is of no more use. Inner: a step was refused.
    async fn execute(
        &self,
        backend: &mut Backend,
        steps: &[Step],
    ) -> Result<Result<(), Fault>, HypervisorError> {
        let hands = Hands {
            control: &self.reconciler.control,
            device: self.device(),
            id: self.id,
        };
        match hands.execute(backend, steps).await {
            Err(StepFault::Hypervisor(error)) if error.ends_connection() => Err(error),
            Err(fault) => Ok(Err(fault.fault())),
            Ok(()) => Ok(Ok(())),
        }
    }

    async fn failed(&mut self, state: DeviceState, fault: Fault) -> Instant {
        let retry = self.progress.retry.pause(RETRY);
        log::debug!("device {}: {fault}", self.device().name());
        self.status(Status::with(state, fault, Some(retry))).await;
        retry
    }
}

/// Whether the guest's driver has taken the NIC up: the port carries frames, with the features that the driver wanted.
fn is_taken_up(port: &PortView) -> bool {
    let Some(device) = &port.health.device else {
        return port.health.state == "up";
    };
    let acked = device.get("features_acked");
    port.health.state == "up" && acked.is_none_or(|acked| !acked.is_null())
}
