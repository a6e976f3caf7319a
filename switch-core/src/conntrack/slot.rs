//! One connection in memory: three cache lines.
//!
//! The first is atomics that the fast path reads and writes without a lock; the rest lies under the slot's lock, as do all changes
//! of [`Status`]. Who holds the lock may be a packet that changes the state, the control thread, or whoever frees the slot.
//!
//! Workers that refresh one connection at the same time may overwrite each other's notes of sequence numbers and counters. That is
//! harmless. The two directions write different words, so only packets of one direction can lose each other's. What is lost is one
//! packet's step forward: a window that seems one packet older than it is, until the next packet of that direction. The worst that
//! can follow is one acknowledgement, overtaking, that is taken for invalid, as if the network had lost it; a counter stays behind
//! by one packet. (A worker that stands still between reading and writing a counter, while others fill it and carry it over, makes
//! it 2^23 packets too large: the price of one word for it, paid perhaps never.) The state itself is never written without the lock. A packet that causes another one (an answer) was noted before
//! it was delivered, and delivery orders memory, so an answer is never judged by a window from before its cause.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::tcp::{IgnoredSyn, Side};
use super::tuple::{Addresses, Direction, Tuple, Zone};
use crate::time::Millis;

/// A connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ConnState {
    /// TCP: the opener sent a SYN.
    SynSent = 1,
    /// TCP: both ends sent a SYN, neither was answered (RFC 9293 §3.5, simultaneous open).
    SynSentByBoth = 2,
    /// TCP: a SYN was answered.
    SynRecv = 3,
    /// TCP: the handshake is complete.
    Established = 4,
    /// TCP: one end sent a FIN.
    FinWait = 5,
    /// TCP: one end's FIN was acknowledged.
    CloseWait = 6,
    /// TCP: both ends sent a FIN.
    LastAck = 7,
    /// TCP: both ends' FINs were acknowledged.
    TimeWait = 8,
    /// TCP: reset.
    Close = 9,
    /// UDP: only the opener has sent.
    UdpSingle = 10,
    /// UDP: both ends have sent.
    UdpStream = 11,
    /// ICMP or ICMPv6 echo.
    Icmp = 12,
    /// Any other protocol.
    Generic = 13,
}

impl ConnState {
    pub(crate) const ALL: [Self; 13] = [
        Self::SynSent,
        Self::SynSentByBoth,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::UdpSingle,
        Self::UdpStream,
        Self::Icmp,
        Self::Generic,
    ];

    /// Whether it is a state of TCP.
    pub const fn is_tcp(self) -> bool {
        self as u8 <= Self::Close as u8
    }
}

/// A slot's generation and the small facts of its connection, in one word that is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u64);

impl Status {
    const STATE: u64 = 0xf;
    /// Packets that change nothing may take the fast path.
    pub(crate) const FAST: u64 = 1 << 4;
    pub(crate) const SEEN_REPLY: u64 = 1 << 5;
    /// Worth keeping when there is no room.
    pub(crate) const ASSURED: u64 = 1 << 6;
    pub(crate) const TCP: u64 = 1 << 7;
    const SCALE_SHIFT: [u32; 2] = [8, 12];
    /// Windows are not checked.
    pub(crate) const LIBERAL: u64 = 1 << 16;
    pub(crate) const SOURCE_NAT: u64 = 1 << 17;
    pub(crate) const DESTINATION_NAT: u64 = 1 << 18;

    #[inline]
    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline]
    pub(crate) const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Between 0, for a free slot, and 15.
    #[inline]
    pub(crate) const fn state_number(self) -> usize {
        (self.0 & Self::STATE) as usize
    }

    /// `None` of a free slot.
    pub(crate) fn state(self) -> Option<ConnState> {
        ConnState::ALL
            .get(self.state_number().wrapping_sub(1))
            .copied()
    }

    pub(crate) const fn is_free(self) -> bool {
        self.0 & Self::STATE == 0
    }

    #[inline]
    pub(crate) const fn scale(self, direction: Direction) -> u8 {
        let shift = match direction {
            Direction::Original => Self::SCALE_SHIFT[0],
            Direction::Reply => Self::SCALE_SHIFT[1],
        };
        (self.0 >> shift & 0xf) as u8
    }

    #[must_use]
    pub(crate) const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    #[must_use]
    pub(crate) const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    #[must_use]
    pub(crate) const fn with_state(self, state: ConnState) -> Self {
        Self(self.0 & !Self::STATE | state as u64)
    }

    #[must_use]
    pub(crate) const fn with_scales(self, scales: [u8; 2]) -> Self {
        let [original, reply] = scales;
        Self(
            self.0 & !(0xff << Self::SCALE_SHIFT[0])
                | (original as u64 & 0xf) << Self::SCALE_SHIFT[0]
                | (reply as u64 & 0xf) << Self::SCALE_SHIFT[1],
        )
    }

    /// The next generation, with nothing else set.
    pub(crate) const fn next_free(self) -> Self {
        Self((self.generation().wrapping_add(1) as u64) << 32)
    }

    /// The same in the next generation.
    pub(crate) const fn next_generation(self) -> Self {
        Self(self.next_free().0 | self.0 & 0xffff_ffff)
    }
}

/// Time in steps of 64 ms, which is as exact as timeouts are. 32 bits of it are compared as sequence numbers are, so they may wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick(pub(crate) u32);

impl Tick {
    const SHIFT: u32 = 6;

    #[inline]
    pub(crate) const fn of(now: Millis) -> Self {
        Self((now.0 >> Self::SHIFT) as u32)
    }

    /// How many ticks after `earlier`, zero when it is not after: two workers' clocks may be read in either order.
    #[inline]
    pub(crate) const fn since(self, earlier: Self) -> u32 {
        let difference = self.0.wrapping_sub(earlier.0);
        if difference as i32 >= 0 {
            difference
        } else {
            0
        }
    }

    /// So many ticks earlier.
    pub(crate) const fn before(self, ticks: u32) -> Self {
        Self(self.0.wrapping_sub(ticks))
    }

    /// A timeout in ticks, rounded up, at most about a year.
    pub(crate) const fn count(timeout: Millis) -> u32 {
        Self::cut(timeout.0.div_ceil(1 << Self::SHIFT))
    }

    /// Ticks that have passed in this time, at most about a year's.
    pub(crate) const fn whole(time: Millis) -> u32 {
        Self::cut(time.0 >> Self::SHIFT)
    }

    const fn cut(ticks: u64) -> u32 {
        if ticks < 1 << 29 {
            ticks as u32
        } else {
            1 << 29
        }
    }

    pub(crate) const fn to_millis(ticks: u32) -> Millis {
        Millis((ticks as u64) << Self::SHIFT)
    }
}

/// What is noted of one end's sequence space, as [`Side`], each word by itself.
#[derive(Debug, Default)]
pub(crate) struct AtomicSide {
    pub(crate) end: AtomicU32,
    pub(crate) max_end: AtomicU32,
    pub(crate) max_window: AtomicU32,
    pub(crate) max_ack: AtomicU32,
}

impl AtomicSide {
    #[inline]
    pub(crate) fn load(&self) -> Side {
        Side {
            end: self.end.load(Relaxed),
            max_end: self.max_end.load(Relaxed),
            max_window: self.max_window.load(Relaxed),
            max_ack: self.max_ack.load(Relaxed),
        }
    }

    pub(crate) fn store(&self, side: Side) {
        self.end.store(side.end, Relaxed);
        self.max_end.store(side.max_end, Relaxed);
        self.max_window.store(side.max_window, Relaxed);
        self.max_ack.store(side.max_ack, Relaxed);
    }
}

/// Packets and bytes of one direction in one word, so that the fast path needs one cache line: 24 bits of packets above 40 of bytes.
/// When either half has filled up but its last bit, the slow path carries that bit over to [`Carried`]; the fast path waits for that.
///
/// Added to without a locked instruction: see above on what may be lost.
#[derive(Debug, Default)]
pub(crate) struct Counters(AtomicU64);

/// The higher digits of [`Counters`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carried {
    /// In units of 2^23.
    packets: u32,
    /// In units of 2^39.
    bytes: u32,
}

impl Counters {
    const PACKET: u64 = 1 << Self::BYTES_BITS;
    const BYTES_BITS: u32 = 40;
    const PACKETS_FULL: u64 = 1 << 63;
    const BYTES_FULL: u64 = 1 << (Self::BYTES_BITS - 1);
    const PACKETS_CARRY_BITS: u32 = 23;
    const BYTES_CARRY_BITS: u32 = Self::BYTES_BITS - 1;

    /// Whether the next packet must not be added before something is carried over.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.0.load(Relaxed) & (Self::PACKETS_FULL | Self::BYTES_FULL) != 0
    }

    #[inline]
    pub(crate) fn add(&self, bytes: u32) {
        let counted = self.0.load(Relaxed);
        self.0.store(
            counted.wrapping_add(Self::PACKET + u64::from(bytes)),
            Relaxed,
        );
    }

    /// Carries over. To be called with the slot's lock held.
    pub(crate) fn carry(&self, carried: &mut Carried) {
        let counted = self.0.load(Relaxed);
        if counted & Self::PACKETS_FULL != 0 {
            self.0.fetch_sub(Self::PACKETS_FULL, Relaxed);
            carried.packets = carried.packets.wrapping_add(1);
        }
        if counted & Self::BYTES_FULL != 0 {
            self.0.fetch_sub(Self::BYTES_FULL, Relaxed);
            carried.bytes = carried.bytes.wrapping_add(1);
        }
    }

    /// Packets and bytes.
    pub(crate) fn get(&self, carried: &Carried) -> (u64, u64) {
        let counted = self.0.load(Relaxed);
        (
            (u64::from(carried.packets) << Self::PACKETS_CARRY_BITS)
                + (counted >> Self::BYTES_BITS),
            (u64::from(carried.bytes) << Self::BYTES_CARRY_BITS) + (counted & (Self::PACKET - 1)),
        )
    }

    pub(crate) fn set(&self, packets: u64, bytes: u64) -> Carried {
        let carry = |count: u64, bits| u32::try_from(count >> bits).unwrap_or(u32::MAX);
        let packets_low = packets & ((1 << Self::PACKETS_CARRY_BITS) - 1);
        let bytes_low = bytes & (Self::BYTES_FULL - 1);
        self.0
            .store(packets_low << Self::BYTES_BITS | bytes_low, Relaxed);
        Carried {
            packets: carry(packets, Self::PACKETS_CARRY_BITS),
            bytes: carry(bytes, Self::BYTES_CARRY_BITS),
        }
    }
}

/// A place for a connection. The first 64 bytes are what every packet needs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Slot {
    pub(crate) status: AtomicU64,
    pub(crate) sides: [AtomicSide; 2],
    pub(crate) mark: AtomicU32,
    /// A [`Tick`].
    pub(crate) last_seen: AtomicU32,
    pub(crate) counters: [Counters; 2],
    pub(crate) data: [AtomicU32; 4],
    cold: Mutex<Cold>,
}

/// What only the slow path needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cold {
    /// By [`Direction`]: what a packet of that direction carries when it comes in.
    pub(crate) tuples: [Tuple; 2],
    pub(crate) zone: Zone,
    /// The port whose packet opened it.
    pub(crate) port: u16,
    pub(crate) ignored_syn: IgnoredSyn,
    /// By [`Direction`].
    pub(crate) carried: [Carried; 2],
}

impl Default for Cold {
    fn default() -> Self {
        let nothing = Tuple {
            addresses: Addresses::V4 {
                source: std::net::Ipv4Addr::UNSPECIFIED,
                destination: std::net::Ipv4Addr::UNSPECIFIED,
            },
            protocol: 0,
            source_port: 0,
            destination_port: 0,
        };
        Self {
            tuples: [nothing; 2],
            zone: Zone(0),
            port: 0,
            ignored_syn: IgnoredSyn::default(),
            carried: Default::default(),
        }
    }
}

/// The promise of the configuration's documentation: a connection takes no more than 192 bytes beside its two index entries.
const _: () = assert!(size_of::<Slot>() == 192);

impl Default for Slot {
    fn default() -> Self {
        Self {
            // Generations begin at 1, so that an id of all zeroes names nothing.
            status: AtomicU64::new(1 << 32),
            sides: Default::default(),
            mark: AtomicU32::default(),
            last_seen: AtomicU32::default(),
            counters: Default::default(),
            data: Default::default(),
            cold: Mutex::default(),
        }
    }
}

impl Slot {
    /// Locks the rest of the slot. Whoever panicked holding it left plain values, each valid by itself.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Cold> {
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn status(&self) -> Status {
        Status(self.status.load(std::sync::atomic::Ordering::Acquire))
    }

    /// To be called with the lock held.
    pub(crate) fn set_status(&self, status: Status) {
        self.status
            .store(status.0, std::sync::atomic::Ordering::Release);
    }

    pub(crate) fn load_data(&self) -> [u32; 4] {
        std::array::from_fn(|word| self.data.get(word).map_or(0, |word| word.load(Relaxed)))
    }

    pub(crate) fn store_data(&self, data: [u32; 4]) {
        for (place, word) in self.data.iter().zip(data) {
            place.store(word, Relaxed);
        }
    }

    #[inline]
    pub(crate) fn side(&self, direction: Direction) -> &AtomicSide {
        match direction {
            Direction::Original => &self.sides[0],
            Direction::Reply => &self.sides[1],
        }
    }

    #[inline]
    pub(crate) fn counters(&self, direction: Direction) -> &Counters {
        match direction {
            Direction::Original => &self.counters[0],
            Direction::Reply => &self.counters[1],
        }
    }

    #[inline]
    pub(crate) fn last_seen(&self) -> Tick {
        Tick(self.last_seen.load(Relaxed))
    }

    /// Notes that a packet came. Mostly a read: a tick has many packets.
    #[inline]
    pub(crate) fn touch(&self, tick: Tick) {
        if tick.since(self.last_seen()) > 0 {
            self.last_seen.store(tick.0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_paths_words_are_in_the_first_cache_line() {
        assert!(std::mem::offset_of!(Slot, data) <= 64);
    }

    #[test]
    fn counters_go_on_beyond_their_word() {
        for (packets, bytes) in [
            (0, 0),
            ((1 << 23) - 2, 7),
            (5, (1 << 39) - 2000),
            ((1 << 23) - 1, (1 << 39) - 1),
            (3 << 40, 9 << 50),
        ] {
            let counters = Counters::default();
            let mut carried = counters.set(packets, bytes);
            assert_eq!(counters.get(&carried), (packets, bytes));
            assert!(!counters.is_full());
            for count in 1..=4 {
                if counters.is_full() {
                    counters.carry(&mut carried);
                }
                assert!(!counters.is_full());
                counters.add(1500);
                let expected = (packets + count, bytes + 1500 * count);
                assert_eq!(counters.get(&carried), expected);
            }
        }
    }

    #[test]
    fn ticks_wrap_and_never_go_back() {
        assert_eq!(Tick(5).since(Tick(u32::MAX)), 6);
        assert_eq!(Tick(5).since(Tick(6)), 0);
        assert_eq!(Tick::of(Millis(129)).since(Tick::of(Millis(64))), 1);
        assert_eq!(Tick::count(Millis(1)), 1);
        assert_eq!(Tick::count(Millis(u64::MAX)), 1 << 29);
    }
}
