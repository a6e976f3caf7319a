//! TCP as someone in the middle sees it: states and windows. Pure: values in, values out.
//!
//! ```text
//!              SYN              SYN ACK             ACK
//!   (nothing) ----> SynSent ----------> SynRecv ---------> Established
//!                     | SYN from the        ^ SYN ACK          | FIN
//!                     v other end           |                  v
//!                   SynSentByBoth ----------+               FinWait
//!                                                              | ACK
//!                                                   FIN        v
//!                    TimeWait <------ LastAck <---------- CloseWait
//!                              ACK       (or FIN straight from FinWait)
//! ```
//!
//! A reset that its receiver would believe leads from anywhere to Close; a SYN from TimeWait or Close to a new connection. This is
//! what Linux's connection tracking follows too, which guests' stacks are used to. States are those of the connection, not of one
//! end, so they run a little ahead: FIN, ACK and a retransmitted FIN look like both ends' closing, and only the timeouts differ.
//!
//! Windows: for each direction is noted how far its sender has sent (`end`), how far it may send (`max_end`), its largest window and
//! its latest acknowledgement. A segment is believed if its receiver could take it: it begins at or before `max_end`, it ends no
//! more than a window before `end`, it acknowledges nothing that was not sent, nor anything too old.

use serde::{Deserialize, Serialize};

use super::config::TcpWindows;
use super::packet::{TcpFlags, TcpInfo};
use super::slot::ConnState;
use super::tracked::InvalidReason;
use super::tuple::Direction;

/// No window scale option was in the SYN.
pub(crate) const NO_SCALE: u8 = 15;
/// The largest shift count (RFC 7323 §2.3).
const MAX_SCALE: u8 = 14;
/// An acknowledgement may be this much older than the latest data, however small the window: late segments are common.
const OLD_ACK_BYTES: u32 = 66_000;
/// No window is larger (RFC 7323 §2.3).
const MAX_WINDOW: u32 = 1 << 30;

/// What is known of one end's sequence space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// The sequence number after the last it sent.
    pub end: u32,
    /// The sequence number after the last that it may send: what the other end acknowledged plus that one's window.
    pub max_end: u32,
    /// The largest window it advertised, scaled, at least 1; 0 while nothing has come from it.
    pub max_window: u32,
    /// The latest acknowledgement it sent.
    pub max_ack: u32,
}

/// A SYN in the middle of a connection. It may come from an end that forgot the connection; the other end's answer will tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IgnoredSyn {
    /// The sequence number after it.
    pub end: u32,
    /// Its window.
    pub window: u16,
    /// Its window scale, 15 if it had none.
    pub scale: u8,
    /// The direction it went in. `None`: there was no such SYN.
    pub direction: Option<Direction>,
}

/// A TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpConnection {
    pub(crate) state: ConnState,
    pub(crate) sides: [Side; 2],
    /// Shift counts, or [`NO_SCALE`] until the handshake has shown whether both ends scale.
    pub(crate) scales: [u8; 2],
    pub(crate) liberal: bool,
    pub(crate) ignored_syn: IgnoredSyn,
}

/// What a segment did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// It belongs to the connection, whose new state is noted.
    Accepted,
    /// It does not; the connection is as it was.
    Invalid(InvalidReason),
    /// It opens another connection in place of this one, which is over.
    Reopens,
}

/// A segment by its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syn,
    SynAck,
    Fin,
    Ack,
    Rst,
}

impl Kind {
    /// `None` for combinations that no TCP sends. Push and the congestion flags go with anything.
    fn of(flags: TcpFlags) -> Option<Self> {
        const SYN: u8 = TcpFlags::SYN.0;
        const FIN: u8 = TcpFlags::FIN.0;
        const RST: u8 = TcpFlags::RST.0;
        const ACK: u8 = TcpFlags::ACK.0;
        const SYN_ACK: u8 = SYN | ACK;
        const FIN_ACK: u8 = FIN | ACK;
        const RST_ACK: u8 = RST | ACK;
        let urgent = flags.contains(TcpFlags::URG);
        match flags.0 & (SYN | FIN | RST | ACK) {
            SYN => Some(Self::Syn),
            SYN_ACK if !urgent => Some(Self::SynAck),
            FIN_ACK => Some(Self::Fin),
            ACK => Some(Self::Ack),
            RST | RST_ACK if !urgent => Some(Self::Rst),
            _ => None,
        }
    }
}

enum Step {
    To(ConnState),
    /// Let it pass, change nothing: only its receiver knows what it means.
    Pass,
    Reopen,
    Invalid,
}

fn step(state: ConnState, direction: Direction, kind: Kind) -> Step {
    use ConnState::*;
    use Direction::*;
    match (kind, state) {
        (Kind::Syn, TimeWait) => Step::Reopen,
        (Kind::Syn, SynSentByBoth) => Step::To(SynSentByBoth),
        (Kind::Syn, _) if direction == Reply => match state {
            SynSent => Step::To(SynSentByBoth),
            _ => Step::Invalid,
        },
        (Kind::Syn, SynSent) => Step::To(SynSent),
        (Kind::Syn, Close) => Step::Reopen,
        (Kind::Syn, _) => Step::Pass,

        (Kind::SynAck, SynSentByBoth) => Step::To(SynRecv),
        (Kind::SynAck, _) if direction == Original => match state {
            SynRecv => Step::To(SynRecv),
            _ => Step::Invalid,
        },
        (Kind::SynAck, SynSent) => Step::To(SynRecv),
        (Kind::SynAck, _) => Step::Pass,

        (Kind::Fin, SynSent | SynSentByBoth) => Step::Invalid,
        (Kind::Fin, SynRecv | Established) => Step::To(FinWait),
        (Kind::Fin, FinWait | CloseWait) => Step::To(LastAck),
        (Kind::Fin, _) => Step::To(state),

        // An end that still has an older connection answers a SYN so (RFC 5961 §4).
        (Kind::Ack, SynSent | SynSentByBoth) if direction == Reply => Step::Pass,
        (Kind::Ack, SynSent | SynSentByBoth) => Step::Invalid,
        (Kind::Ack, SynRecv) if direction == Original => Step::To(Established),
        (Kind::Ack, FinWait) => Step::To(CloseWait),
        (Kind::Ack, LastAck) => Step::To(TimeWait),
        (Kind::Ack, _) => Step::To(state),

        (Kind::Rst, _) => Step::To(Close),
    }
}

/// Whether `a` comes before `b` (RFC 9293 §3.4).
#[inline]
const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether a segment may go from `sender` to `receiver`. `end` is the sequence number after it, `ack` what it acknowledges.
#[inline]
pub(crate) fn in_window(sender: &Side, receiver: &Side, sequence: u32, end: u32, ack: u32) -> bool {
    let oldest_ack = sender.max_window.max(OLD_ACK_BYTES);
    !before(sender.max_end, sequence)
        && (receiver.max_window == 0 || !before(end, sender.end.wrapping_sub(receiver.max_window)))
        && !before(receiver.end, ack)
        && !before(ack, receiver.end.wrapping_sub(oldest_ack))
}

/// Whether `a` comes after `b`.
#[inline]
pub(crate) const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The window that a segment without SYN advertises.
#[inline]
pub(crate) const fn scaled_window(window: u16, scale: u8) -> u32 {
    if scale > MAX_SCALE {
        window as u32
    } else {
        (window as u32) << scale
    }
}

/// How far the receiver of this acknowledgement may send. A byte beyond a closed window is how a sender probes it.
#[inline]
pub(crate) const fn allowed_end(ack: u32, window: u32) -> u32 {
    ack.wrapping_add(if window == 0 { 1 } else { window })
}

impl TcpConnection {
    /// The connection that a first segment opens. `None` when it opens none.
    pub(crate) fn open(tcp: &TcpInfo, midstream: bool, liberal: bool) -> Option<Self> {
        let end = tcp.sequence_end();
        let mut connection = Self {
            state: ConnState::SynSent,
            sides: [Side::default(); 2],
            scales: [NO_SCALE; 2],
            liberal,
            ignored_syn: IgnoredSyn::default(),
        };
        match Kind::of(tcp.flags)? {
            Kind::Syn => connection.start(Direction::Original, tcp),
            Kind::Ack if midstream => {
                let window = u32::from(tcp.window).max(1);
                connection.state = ConnState::Established;
                connection.liberal = true;
                // What the other end sent is only guessed from what this one acknowledges.
                connection.sides = [
                    Side {
                        end,
                        max_end: end.wrapping_add(window),
                        max_window: window,
                        max_ack: tcp.acknowledgement,
                    },
                    Side {
                        end: tcp.acknowledgement,
                        max_end: tcp.acknowledgement.wrapping_add(window),
                        max_window: 0,
                        max_ack: tcp.sequence,
                    },
                ];
            }
            _ => return None,
        }
        Some(connection)
    }

    /// Whether a segment can open a connection.
    pub(crate) fn opens(tcp: &TcpInfo, midstream: bool) -> Result<(), InvalidReason> {
        match Kind::of(tcp.flags) {
            None => Err(InvalidReason::TcpFlags),
            Some(Kind::Syn) => Ok(()),
            Some(Kind::Ack) if midstream => Ok(()),
            Some(_) => Err(InvalidReason::TcpNoConnection),
        }
    }

    /// Takes a segment into account.
    pub(crate) fn follow(
        &mut self,
        direction: Direction,
        tcp: &TcpInfo,
        windows: TcpWindows,
    ) -> Followed {
        let Some(kind) = Kind::of(tcp.flags) else {
            return Followed::Invalid(InvalidReason::TcpFlags);
        };
        match step(self.state, direction, kind) {
            Step::Invalid => Followed::Invalid(InvalidReason::TcpState),
            Step::Reopen => Followed::Reopens,
            Step::Pass => self.pass(direction, tcp, kind),
            Step::To(_) if kind == Kind::Rst => self.reset(direction, tcp),
            Step::To(state) => {
                let before = *self;
                let inside = self.advance(direction, tcp);
                if !inside && windows == TcpWindows::Checked && !self.liberal {
                    *self = before;
                    return Followed::Invalid(InvalidReason::TcpWindow);
                }
                self.state = state;
                Followed::Accepted
            }
        }
    }

    fn side(&self, direction: Direction) -> &Side {
        let [original, reply] = &self.sides;
        match direction {
            Direction::Original => original,
            Direction::Reply => reply,
        }
    }

    fn side_mut(&mut self, direction: Direction) -> &mut Side {
        let [original, reply] = &mut self.sides;
        match direction {
            Direction::Original => original,
            Direction::Reply => reply,
        }
    }

    fn scale_mut(&mut self, direction: Direction) -> &mut u8 {
        let [original, reply] = &mut self.scales;
        match direction {
            Direction::Original => original,
            Direction::Reply => reply,
        }
    }

    /// Begins a direction with its SYN.
    fn start(&mut self, direction: Direction, tcp: &TcpInfo) {
        let syn = IgnoredSyn {
            end: tcp.sequence_end(),
            window: tcp.window,
            scale: tcp
                .window_scale
                .map_or(NO_SCALE, |scale| scale.min(MAX_SCALE)),
            direction: None,
        };
        self.start_from(direction, syn);
        // Of the answer is known that it acknowledges at least the SYN. Data may have come with it (RFC 7413).
        self.side_mut(direction).max_ack = tcp.sequence.wrapping_add(1);
    }

    fn start_from(&mut self, direction: Direction, syn: IgnoredSyn) {
        let ack = self.side(direction).max_ack;
        *self.side_mut(direction) = Side {
            end: syn.end,
            max_end: syn.end,
            max_window: u32::from(syn.window).max(1),
            max_ack: ack,
        };
        *self.scale_mut(direction) = syn.scale;
        self.side_mut(direction.opposite()).max_ack = syn.end;
    }

    /// Scaling is used only if both ends offered it (RFC 7323 §2.2).
    fn settle_scales(&mut self) {
        if self.scales.contains(&NO_SCALE) {
            self.scales = [0; 2];
        }
    }

    /// Checks a segment against the window and notes what it says. When it is outside, what was noted counts only for those who
    /// don't check.
    fn advance(&mut self, direction: Direction, tcp: &TcpInfo) -> bool {
        let syn = tcp.flags.contains(TcpFlags::SYN);
        let has_ack = tcp.flags.contains(TcpFlags::ACK);
        let end = tcp.sequence_end();
        let oldest_answer = self.side(direction.opposite()).max_ack;
        let first = self.side(direction).max_window == 0;
        if syn && (first || (!has_ack && end != self.side(direction).end)) {
            self.start(direction, tcp);
            if !first || !has_ack {
                // A SYN again, with another number, or from both ends: nothing to compare with.
                if first {
                    self.settle_scales();
                }
                return true;
            }
            self.settle_scales();
            let opener = self.side_mut(direction.opposite());
            let sent_to = opener.end;
            let inside = !before(tcp.acknowledgement, oldest_answer)
                && !before(sent_to, tcp.acknowledgement);
            // The window in a SYN is never scaled.
            opener.max_end = later(
                opener.max_end,
                allowed_end(tcp.acknowledgement, u32::from(tcp.window)),
            );
            opener.max_ack = end;
            self.side_mut(direction).max_ack = tcp.acknowledgement;
            return inside;
        }
        let scale = match (syn, direction) {
            (true, _) => 0,
            (false, Direction::Original) => self.scales[0],
            (false, Direction::Reply) => self.scales[1],
        };
        let window = scaled_window(tcp.window, scale);
        if first {
            // The first that is seen of an end whose SYN was not.
            let sender = self.side_mut(direction);
            sender.end = end;
            sender.max_window = window.max(1);
            sender.max_end = later(sender.max_end, end);
        }
        let (sender, receiver) = match &mut self.sides {
            [original, reply] if direction == Direction::Original => (original, reply),
            [original, reply] => (reply, original),
        };
        let ack = if has_ack {
            tcp.acknowledgement
        } else {
            receiver.end
        };
        let inside = in_window(sender, receiver, tcp.sequence, end, ack);
        sender.max_window = sender.max_window.max(window);
        sender.end = later(sender.end, end);
        if has_ack {
            sender.max_ack = later(sender.max_ack, ack);
        }
        if receiver.max_window != 0 && after(end, sender.max_end) {
            // It began inside the window and ends beyond: the receiver may have opened it in a segment that went another way.
            let beyond = end.wrapping_sub(sender.max_end);
            receiver.max_window = receiver.max_window.saturating_add(beyond).min(MAX_WINDOW);
        }
        receiver.max_end = later(receiver.max_end, allowed_end(ack, window));
        inside
    }

    /// A segment that changes nothing, or shows that both ends know something that was missed here.
    fn pass(&mut self, direction: Direction, tcp: &TcpInfo, kind: Kind) -> Followed {
        match kind {
            Kind::Syn => {
                self.ignored_syn = IgnoredSyn {
                    end: tcp.sequence_end(),
                    window: tcp.window,
                    scale: tcp
                        .window_scale
                        .map_or(NO_SCALE, |scale| scale.min(MAX_SCALE)),
                    direction: Some(direction),
                };
                Followed::Accepted
            }
            Kind::SynAck => {
                let syn = self.ignored_syn;
                if syn.direction == Some(direction.opposite()) && tcp.acknowledgement == syn.end {
                    // Both ends begin anew. The ignored SYN is taken into account now.
                    self.state = ConnState::SynRecv;
                    self.sides = [Side::default(); 2];
                    self.start_from(direction.opposite(), syn);
                    self.side_mut(direction.opposite()).max_ack = syn.end;
                    self.ignored_syn = IgnoredSyn::default();
                    self.advance(direction, tcp);
                    return Followed::Accepted;
                }
                // Sent again because its acknowledgement was lost; otherwise not of this connection.
                if tcp.sequence_end() == self.side(direction).end || self.liberal {
                    Followed::Accepted
                } else if self.state == ConnState::SynRecv {
                    Followed::Invalid(InvalidReason::TcpWindow)
                } else if in_window_at_all(self.side(direction), tcp.sequence_end()) {
                    Followed::Accepted
                } else {
                    Followed::Invalid(InvalidReason::TcpWindow)
                }
            }
            _ if tcp.payload_bytes == 0 => Followed::Accepted,
            _ => Followed::Invalid(InvalidReason::TcpState),
        }
    }

    /// A reset closes the connection only if its receiver would believe it (RFC 9293 §3.10.7, RFC 5961 §3.2). One that merely lies in
    /// the window passes without effect: its receiver answers with a challenge, which a true reset follows.
    fn reset(&mut self, direction: Direction, tcp: &TcpInfo) -> Followed {
        const REFUSED: Followed = Followed::Invalid(InvalidReason::TcpReset);
        let has_ack = tcp.flags.contains(TcpFlags::ACK);
        let sender = *self.side(direction);
        let receiver = *self.side(direction.opposite());
        let answers_ignored_syn = self.ignored_syn.direction == Some(direction.opposite())
            && has_ack
            && tcp.acknowledgement == self.ignored_syn.end;
        let believed = match (self.state, direction) {
            _ if answers_ignored_syn => true,
            (ConnState::SynSent, Direction::Original) => true,
            (ConnState::SynSent, Direction::Reply) => {
                if !has_ack || tcp.acknowledgement != receiver.end {
                    return REFUSED;
                }
                true
            }
            _ => {
                let next = receiver.max_ack;
                if before(tcp.sequence, next) || after(tcp.sequence, later(sender.max_end, next)) {
                    return REFUSED;
                }
                self.state != ConnState::Established
                    || tcp.sequence == next
                    || tcp.sequence == sender.end
            }
        };
        if believed {
            self.state = ConnState::Close;
        }
        Followed::Accepted
    }
}

/// Whether a repeated SYN ACK, whose number begins a connection, can be of this one: it cannot be after what was sent.
fn in_window_at_all(sender: &Side, end: u32) -> bool {
    !after(end, sender.end)
}

const fn later(a: u32, b: u32) -> u32 {
    if before(a, b) { b } else { a }
}
