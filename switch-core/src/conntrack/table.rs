//! The connection table: looking up, following, opening and removing.
//!
//! Locks, in the order in which they are taken: one shard of the index, or two, lower number first; then one slot. A free queue and
//! nothing else is locked below that. Nothing is done under any of them that takes longer than a packet does, except that a shard
//! which grows is copied.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::config::{ConntrackConfig, TcpPickup, TcpWindows};
use super::early_drop::RecentlyOpened;
use super::index::{Index, Place};
use super::limits::{Limits, Reached};
use super::nat::{Candidates, NatSpec};
use super::packet::{Packet, TcpInfo, TransportInfo};
use super::slab::Slab;
use super::slot::{Cold, ConnState, Slot, Status, Tick};
use super::tcp::{Followed, IgnoredSyn, TcpConnection};
use super::tracked::{ConnId, Endpoint, InvalidReason, StateBits, Tracked, Translation};
use super::tuple::{Direction, PROTOCOL_TCP, PROTOCOL_UDP, Tuple, TupleHasher, Zone};
use crate::port::PortId;
use crate::time::Millis;

/// How often a look-up or a commit begins again because a connection in its way was over.
const ATTEMPTS: usize = 8;

/// How a new connection is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The port that the packet came in by, to whose account the connection goes.
    pub port: PortId,
    /// The mark it begins with.
    pub mark: u32,
    /// The user data it begins with.
    pub data: [u32; 4],
    /// Its translation.
    pub nat: NatSpec,
}

/// Why a connection was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The table is full, and nothing in it may be replaced.
    #[error("the connection table is full: raise its capacity, or find the port that fills it")]
    TableFull,
    /// The port has as many connections as it may.
    #[error(
        "the port has reached its connection limit: raise the limit, or look for a scan or flood behind it"
    )]
    PortLimit,
    /// The zone has as many connections as it may.
    #[error(
        "the zone has reached its connection limit: raise the limit, or look for a scan or flood in it"
    )]
    ZoneLimit,
    /// No address and port of the translation's ranges is free for this destination.
    #[error("no translated port is free: widen the port range or add addresses")]
    PortsExhausted,
    /// Another connection has this tuple as its translated one, and no translation was asked for that would avoid it.
    #[error(
        "another connection already uses these addresses and ports: translate the source, or change the overlapping rule"
    )]
    TupleInUse,
    /// The translation is to another address family, or has an empty range.
    #[error(
        "the translation does not fit the packet: give addresses of its family and ranges that are not empty"
    )]
    BadTranslation,
    /// The packet does not open a connection.
    #[error("the packet does not open a connection: commit only what was tracked as new")]
    NotOpening(InvalidReason),
}

/// What the table has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConntrackStats {
    /// Connections now in the table, expired ones that were not swept so far included.
    pub connections: u64,
    /// Connections it can hold.
    pub capacity: u64,
    /// Connections opened; those that were imported had been opened elsewhere.
    pub opened: u64,
    /// Connections removed because they were quiet for too long.
    pub expired: u64,
    /// Connections removed to make room for another.
    pub early_dropped: u64,
    /// Bytes of memory it has taken.
    pub memory_bytes: u64,
}

/// A tuple and, for echo, whether it is that of an answer: two stations may well ping each other with one identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) zone: Zone,
    pub(super) tuple: Tuple,
    echo_reply: bool,
}

impl Key {
    /// The key by which packets of one of a connection's directions find it.
    pub(super) fn of_direction(zone: Zone, tuple: &Tuple, direction: Direction) -> Self {
        Self {
            zone,
            tuple: *tuple,
            echo_reply: tuple.is_echo() && direction == Direction::Reply,
        }
    }

    pub(super) fn hash(&self, hasher: &TupleHasher) -> u64 {
        // Multiplying by an odd number is one to one, so it makes no collisions; shard and tag both change.
        let hash = hasher.hash(self.zone, &self.tuple);
        if self.echo_reply {
            hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        } else {
            hash
        }
    }

    fn is_of(&self, cold: &Cold, direction: Direction) -> bool {
        cold.zone == self.zone
            && cold.tuples.get(direction.index()) == Some(&self.tuple)
            && (!self.tuple.is_echo() || self.echo_reply == (direction == Direction::Reply))
    }
}

/// A connection that was found, its slot locked.
pub(super) struct Found<'a> {
    pub(super) index: u32,
    pub(super) direction: Direction,
    pub(super) slot: &'a Slot,
    pub(super) cold: MutexGuard<'a, Cold>,
}

impl Found<'_> {
    pub(super) fn id(&self) -> ConnId {
        ConnId {
            index: self.index,
            generation: self.slot.status().generation(),
        }
    }
}

/// The shared connection table. All methods take `&self`; workers and the control thread call them at the same time.
#[derive(Debug)]
pub struct Conntrack {
    pub(super) hasher: TupleHasher,
    pub(super) index: Index,
    pub(super) slab: Slab,
    pub(super) limits: Limits,
    pub(super) recent: RecentlyOpened,
    pub(super) config: ConntrackConfig,
    /// By [`Status::state_number`].
    timeouts: [u32; 16],
    pub(super) sweep_position: AtomicU32,
    entropy: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) early_dropped: AtomicU64,
}

impl Conntrack {
    /// An empty table. `seed` is a secret number of this process: who knows it can make the table slow.
    pub fn new(config: ConntrackConfig, seed: u64) -> Self {
        let capacity = config.capacity.min(ConntrackConfig::MAX_CAPACITY);
        Self {
            hasher: TupleHasher::new(seed),
            index: Index::new(),
            slab: Slab::new(capacity),
            limits: Limits::new(&config),
            recent: RecentlyOpened::new(),
            config,
            timeouts: timeouts_by_state(&config),
            sweep_position: AtomicU32::new(0),
            entropy: AtomicU64::new(seed),
            opened: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            early_dropped: AtomicU64::new(0),
        }
    }

    /// The configuration it was made with.
    pub const fn config(&self) -> &ConntrackConfig {
        &self.config
    }

    /// What it has done so far.
    pub fn stats(&self) -> ConntrackStats {
        ConntrackStats {
            connections: u64::from(self.limits.total()),
            capacity: u64::from(self.config.capacity),
            opened: self.opened.load(Relaxed),
            expired: self.expired.load(Relaxed),
            early_dropped: self.early_dropped.load(Relaxed),
            memory_bytes: (self.slab.memory_bytes() + self.index.memory_bytes()) as u64,
        }
    }

    /// Connections that `port` has opened.
    pub fn port_connections(&self, port: PortId) -> u32 {
        self.limits.of_port(port.get())
    }

    /// Connections of `zone`.
    pub fn zone_connections(&self, zone: Zone) -> u32 {
        self.limits.of_zone(zone)
    }

    /// Says what a packet is to the connections known, and moves its connection's state. A packet that would open a connection
    /// changes nothing until it is [committed](Self::commit).
    pub fn track(&self, packet: &Packet, now: Millis) -> Tracked {
        let embedded = match packet.transport {
            TransportInfo::IcmpError(embedded) => embedded,
            _ => return self.track_plain(packet, now),
        };
        self.track_error(packet, &embedded, now)
    }

    fn track_plain(&self, packet: &Packet, now: Millis) -> Tracked {
        let keys = match keys_of(packet) {
            Ok(keys) => keys,
            Err(reason) => return Tracked::invalid(reason),
        };
        for key in keys.into_iter().flatten() {
            let hash = key.hash(&self.hasher);
            for _ in 0..ATTEMPTS {
                let Some(found) = self.find(&key, hash, now) else {
                    break;
                };
                match self.follow(found, packet, now) {
                    Ok(tracked) => return tracked,
                    Err(over) => {
                        self.remove(over);
                    }
                }
            }
        }
        match self.opens(packet) {
            Ok(()) => Tracked::unknown(StateBits::NEW, None),
            Err(reason) => Tracked::invalid(reason),
        }
    }

    /// Whether a packet of no known connection opens one.
    pub(super) fn opens(&self, packet: &Packet) -> Result<(), InvalidReason> {
        match packet.transport {
            TransportInfo::Tcp(tcp) => {
                TcpConnection::opens(&tcp, self.config.strictness.pickup == TcpPickup::Midstream)
            }
            TransportInfo::Datagram | TransportInfo::EchoRequest => Ok(()),
            TransportInfo::EchoReply | TransportInfo::OtherIcmp => {
                Err(InvalidReason::IcmpUnexpected)
            }
            TransportInfo::LaterFragment => Err(InvalidReason::FragmentNoConnection),
            TransportInfo::IcmpError(_) => Err(InvalidReason::IcmpErrorUnrelated),
        }
    }

    /// The live connection of a key, locked.
    pub(super) fn find(&self, key: &Key, hash: u64, now: Millis) -> Option<Found<'_>> {
        let shard = self.index.lock(hash);
        let found = shard.find(hash, |place| self.open(key, place))?;
        drop(shard);
        self.is_live(found.slot, now).then_some(found)
    }

    fn open(&self, key: &Key, place: Place) -> Option<Found<'_>> {
        let slot = self.slab.get(place.slot)?;
        let cold = slot.lock();
        key.is_of(&cold, place.direction).then_some(Found {
            index: place.slot,
            direction: place.direction,
            slot,
            cold,
        })
    }

    pub(super) fn is_live(&self, slot: &Slot, now: Millis) -> bool {
        let status = slot.status();
        !status.is_free() && !self.is_overdue(slot, status, Tick::of(now))
    }

    #[inline]
    pub(super) fn is_overdue(&self, slot: &Slot, status: Status, now: Tick) -> bool {
        now.since(slot.last_seen()) > self.timeout_ticks(status)
    }

    #[inline]
    pub(super) fn timeout_ticks(&self, status: Status) -> u32 {
        self.timeouts
            .get(status.state_number())
            .copied()
            .unwrap_or(0)
    }

    /// Moves a connection's state. `Err` names a connection that this packet finds over, and that another is to take the place of.
    fn follow(
        &self,
        mut found: Found<'_>,
        packet: &Packet,
        now: Millis,
    ) -> Result<Tracked, ConnId> {
        let before = found.slot.status();
        let direction = found.direction;
        let mut status = before;
        if direction == Direction::Reply {
            status = status.with(Status::SEEN_REPLY);
        }
        let mut changes_nothing = true;
        match packet.transport {
            TransportInfo::Tcp(tcp) => {
                let windows = self.config.strictness.windows;
                match follow_tcp(&mut found, status, &tcp, windows) {
                    Ok(followed) => status = followed,
                    Err(Followed::Invalid(reason)) => return Ok(Tracked::invalid(reason)),
                    Err(_) => return Err(found.id()),
                }
                changes_nothing = super::refresh::is_plain(tcp.flags);
            }
            TransportInfo::LaterFragment => {
                changes_nothing = false;
                if status.has(Status::TCP) {
                    // Sequence numbers go on unseen, so windows mean nothing any more.
                    status = status.with(Status::LIBERAL);
                }
            }
            _ => {}
        }
        if status.has(Status::SEEN_REPLY) {
            status = match status.state() {
                Some(ConnState::UdpSingle | ConnState::UdpStream) => status
                    .with_state(ConnState::UdpStream)
                    .with(Status::ASSURED | Status::FAST),
                Some(ConnState::Icmp | ConnState::Generic) => status.with(Status::FAST),
                Some(ConnState::Established) => status.with(Status::ASSURED | Status::FAST),
                // It is over, though late segments are still expected: not worth keeping when there is no room.
                Some(ConnState::TimeWait | ConnState::Close) => {
                    status.without(Status::FAST | Status::ASSURED)
                }
                _ => status.without(Status::FAST),
            };
        }
        if status != before {
            if status.has(Status::SEEN_REPLY) && !before.has(Status::SEEN_REPLY) {
                let port = packet.port.get();
                self.slab.set_answered_by(found.index, Some(port));
            }
            found.slot.set_status(status);
        }
        found.slot.touch(Tick::of(now));
        let counters = found.slot.counters(direction);
        if counters.is_full()
            && let Some(carried) = found.cold.carried.get_mut(direction.index())
        {
            counters.carry(carried);
        }
        counters.add(packet.bytes);
        let mut tracked = view(&found);
        tracked.cacheable = changes_nothing && status == before && status.has(Status::FAST);
        Ok(tracked)
    }

    /// An ICMP error belongs to the connection of the packet it quotes, and goes the way of that connection's answers to it.
    fn track_error(&self, packet: &Packet, embedded: &Tuple, now: Millis) -> Tracked {
        const UNRELATED: Tracked = Tracked::invalid(InvalidReason::IcmpErrorUnrelated);
        if packet.tuple.addresses.destination() != embedded.addresses.source() {
            return UNRELATED;
        }
        let answer = embedded.inverse();
        for direction in [Direction::Reply, Direction::Original] {
            let key = Key::of_direction(packet.zone, &answer, direction);
            let found = self.find(&key, key.hash(&self.hasher), now);
            if let Some(found) = found {
                let mut tracked = view(&found);
                let [original, reply] = found.cold.tuples;
                let sent = match found.direction {
                    Direction::Original => reply,
                    Direction::Reply => original,
                };
                tracked.embedded = difference(embedded, &sent);
                // Who reports may be a router, with an address of its own: only an end that is hidden is to stay so.
                let answers_to = sent.inverse().addresses;
                let outer = &mut tracked.translation;
                outer.source = outer
                    .source
                    .filter(|end| end.address != answer.addresses.source());
                outer.destination = outer
                    .destination
                    .filter(|_| answers_to.destination() != answer.addresses.destination());
                let reply_bit = tracked.state.0 & StateBits::REPLY.0;
                let nat = StateBits::SOURCE_NAT.union(StateBits::DESTINATION_NAT).0;
                tracked.state = StateBits(reply_bit | tracked.state.0 & nat)
                    .union(StateBits::RELATED)
                    .union(StateBits::TRACKED);
                return tracked;
            }
            if !embedded.is_echo() {
                break;
            }
        }
        UNRELATED
    }

    /// Opens the connection that a packet tracked as [`StateBits::NEW`] belongs to. If it exists by now, because another worker was
    /// faster or because the packet is a repetition, it is left as it is and answered with.
    ///
    /// # Errors
    ///
    /// When the packet opens none, a limit is reached, or no translation is free.
    pub fn commit(
        &self,
        packet: &Packet,
        commit: &Commit,
        now: Millis,
    ) -> Result<Tracked, CommitError> {
        let not_opening = CommitError::NotOpening;
        let [key, _] = keys_of(packet).map_err(not_opening)?;
        let key = key.ok_or(not_opening(InvalidReason::Contradiction))?;
        let hash = key.hash(&self.hasher);
        // Most repetitions end here, before anything is counted or replaced.
        if let Some(found) = self.find(&key, hash, now) {
            return Ok(view(&found));
        }
        self.opens(packet).map_err(not_opening)?;
        let tcp = match packet.transport {
            TransportInfo::Tcp(tcp) => Some(self.open_tcp(&tcp).map_err(not_opening)?),
            _ => None,
        };
        let new = NewConnection::of(packet, commit, tcp);
        let candidates = Candidates::new(
            &self.hasher,
            packet.zone,
            &packet.tuple,
            &commit.nat,
            self.random_number(),
        )
        .ok_or(CommitError::BadTranslation)?;
        let index = self.reserve(&new, hash, now)?;
        let result = self.place(&new, (&key, hash), &candidates, (index, now));
        match result {
            Ok((tracked, true)) => {
                self.opened.fetch_add(1, Relaxed);
                if let Some(conn) = tracked.conn {
                    self.recent.note(commit.port.get(), conn);
                }
                Ok(tracked)
            }
            Ok((tracked, false)) => {
                self.unreserve(&new, index, hash);
                Ok(tracked)
            }
            Err(error) => {
                self.unreserve(&new, index, hash);
                Err(error)
            }
        }
    }

    fn open_tcp(&self, tcp: &TcpInfo) -> Result<TcpConnection, InvalidReason> {
        let midstream = self.config.strictness.pickup == TcpPickup::Midstream;
        let liberal = self.config.strictness.windows == TcpWindows::Liberal;
        TcpConnection::open(tcp, midstream, liberal).ok_or(InvalidReason::TcpNoConnection)
    }

    /// Counts a connection and takes a slot for it; replaces another one if it must and may.
    pub(super) fn reserve(
        &self,
        new: &NewConnection,
        hash: u64,
        now: Millis,
    ) -> Result<u32, CommitError> {
        let mut reached = self.limits.take(new.port, new.zone).err();
        if let Some(limit) = reached
            && self.make_room(limit, new, now)
        {
            reached = self.limits.take(new.port, new.zone).err();
        }
        match reached {
            Some(Reached::Capacity) => return Err(CommitError::TableFull),
            Some(Reached::Port) => return Err(CommitError::PortLimit),
            Some(Reached::Zone) => return Err(CommitError::ZoneLimit),
            None => {}
        }
        self.slab.take(hash).ok_or_else(|| {
            self.limits.give_back(new.port, new.zone);
            CommitError::TableFull
        })
    }

    pub(super) fn unreserve(&self, new: &NewConnection, index: u32, hash: u64) {
        self.slab.give_back(index, hash);
        self.limits.give_back(new.port, new.zone);
    }

    /// Puts a connection under both its tuples, the second being the first of `candidates` that nobody has. Says whether it is the
    /// new one: another may have been put under the first tuple in the meantime.
    fn place(
        &self,
        new: &NewConnection,
        (key, hash): (&Key, u64),
        candidates: &Candidates,
        (index, now): (u32, Millis),
    ) -> Result<(Tracked, bool), CommitError> {
        let mut number = 0;
        let mut overs = 0;
        while let Some(candidate) = candidates.get(number) {
            let reply = Key::of_direction(key.zone, &candidate.inverse(), Direction::Reply);
            match self.insert(new, [key, &reply], hash, (index, now)) {
                Insertion::Done(tracked) => return Ok((tracked, true)),
                Insertion::Exists(tracked) => return Ok((tracked, false)),
                Insertion::ReplyTaken => number += 1,
                // An expired connection in the way goes, and the same candidate is tried again.
                Insertion::Over(id) if overs < ATTEMPTS => {
                    overs += 1;
                    if self.remove(id) {
                        self.expired.fetch_add(1, Relaxed);
                    }
                }
                Insertion::Over(_) => number += 1,
            }
        }
        Err(if number > 1 || new.source_translated {
            CommitError::PortsExhausted
        } else {
            CommitError::TupleInUse
        })
    }

    /// Puts a connection under these two keys, unless one of them is taken.
    pub(super) fn insert(
        &self,
        new: &NewConnection,
        keys: [&Key; 2],
        original_hash: u64,
        (index, now): (u32, Millis),
    ) -> Insertion {
        let [original, reply] = keys;
        let reply_hash = reply.hash(&self.hasher);
        let mut shards = self.index.lock_two(original_hash, reply_hash);
        if let Some(found) = shards
            .first()
            .find(original_hash, |place| self.open(original, place))
        {
            return if self.is_live(found.slot, now) {
                Insertion::Exists(view(&found))
            } else {
                Insertion::Over(found.id())
            };
        }
        if let Some(found) = shards
            .second()
            .find(reply_hash, |place| self.open(reply, place))
        {
            return if self.is_live(found.slot, now) {
                Insertion::ReplyTaken
            } else {
                Insertion::Over(found.id())
            };
        }
        let itself = original.tuple == reply.tuple && original.echo_reply == reply.echo_reply;
        let Some(slot) = self.slab.get(index).filter(|_| !itself) else {
            return Insertion::ReplyTaken;
        };
        let mut cold = slot.lock();
        new.write(slot, &mut cold, [&original.tuple, &reply.tuple], now);
        self.slab.set_answered_by(index, new.answered_by);
        shards.first().insert(
            original_hash,
            Place {
                slot: index,
                direction: Direction::Original,
            },
        );
        shards.second().insert(
            reply_hash,
            Place {
                slot: index,
                direction: Direction::Reply,
            },
        );
        Insertion::Done(view(&Found {
            index,
            direction: Direction::Original,
            slot,
            cold,
        }))
    }

    /// Takes a connection out of the table. Nobody finds it any more when this returns, and no cached verdict that asks
    /// [`Conntrack::refresh`] holds. `false` if it was gone already.
    pub(super) fn remove(&self, id: ConnId) -> bool {
        let Some(slot) = self.slab.get(id.index) else {
            return false;
        };
        let is_it = || {
            let status = slot.status();
            !status.is_free() && status.generation() == id.generation
        };
        let cold = slot.lock();
        if !is_it() {
            return false;
        }
        let [original, reply] = self.keys_of_connection(&cold);
        drop(cold);
        let [original_hash, reply_hash] = [original.hash(&self.hasher), reply.hash(&self.hasher)];
        let mut shards = self.index.lock_two(original_hash, reply_hash);
        let cold = slot.lock();
        if !is_it() {
            return false;
        }
        shards.first().remove(
            original_hash,
            Place {
                slot: id.index,
                direction: Direction::Original,
            },
        );
        shards.second().remove(
            reply_hash,
            Place {
                slot: id.index,
                direction: Direction::Reply,
            },
        );
        slot.set_status(slot.status().next_free());
        let (port, zone) = (cold.port, cold.zone);
        drop(cold);
        drop(shards);
        self.slab.give_back(id.index, original_hash);
        self.limits.give_back(port, zone);
        true
    }

    pub(super) fn hash_of(&self, key: &Key) -> u64 {
        key.hash(&self.hasher)
    }

    /// A number that cannot be told from outside.
    pub(super) fn random_number(&self) -> u64 {
        let step = self.entropy.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        self.hasher.hash_words([step, 0])
    }

    fn keys_of_connection(&self, cold: &Cold) -> [Key; 2] {
        let [original, reply] = &cold.tuples;
        [
            Key::of_direction(cold.zone, original, Direction::Original),
            Key::of_direction(cold.zone, reply, Direction::Reply),
        ]
    }
}

/// What became of an attempt to put a connection into the table.
pub(super) enum Insertion {
    Done(Tracked),
    /// The packet's own tuple has a connection.
    Exists(Tracked),
    /// Another connection has the reply tuple.
    ReplyTaken,
    /// A connection that has expired is in the way.
    Over(ConnId),
}

/// All of a connection but its place.
pub(super) struct NewConnection {
    pub(super) zone: Zone,
    pub(super) port: u16,
    pub(super) mark: u32,
    pub(super) data: [u32; 4],
    /// State and flags; the generation is the slot's.
    pub(super) status: Status,
    pub(super) tcp: Option<TcpConnection>,
    /// The port that its first answer came by.
    pub(super) answered_by: Option<u16>,
    /// Packets and bytes by direction.
    pub(super) counters: [(u64, u64); 2],
    /// How long ago it was last seen.
    pub(super) idle: Millis,
    source_translated: bool,
}

impl NewConnection {
    fn of(packet: &Packet, commit: &Commit, tcp: Option<TcpConnection>) -> Self {
        let state = match &tcp {
            Some(tcp) => tcp.state,
            None if packet.tuple.protocol == PROTOCOL_UDP => ConnState::UdpSingle,
            None if packet.tuple.is_echo() => ConnState::Icmp,
            None => ConnState::Generic,
        };
        Self {
            zone: packet.zone,
            port: commit.port.get(),
            mark: commit.mark,
            data: commit.data,
            // What is no TCP changes its state with the first answer only.
            status: match tcp {
                Some(_) => Status(0).with_state(state),
                None => Status(0).with_state(state).with(Status::FAST),
            },
            tcp,
            answered_by: None,
            counters: [(1, u64::from(packet.bytes)), (0, 0)],
            idle: Millis(0),
            source_translated: commit.nat.source.is_some(),
        }
    }

    /// One that is not new but comes from elsewhere.
    pub(super) fn imported(
        zone: Zone,
        port: u16,
        status: Status,
        tcp: Option<TcpConnection>,
    ) -> Self {
        Self {
            zone,
            port,
            mark: 0,
            data: [0; 4],
            status,
            tcp,
            answered_by: None,
            counters: [(0, 0); 2],
            idle: Millis(0),
            source_translated: false,
        }
    }

    /// Writes all of it to a slot that nobody finds so far.
    fn write(&self, slot: &Slot, cold: &mut Cold, tuples: [&Tuple; 2], now: Millis) {
        let [original, reply] = tuples;
        *cold = Cold {
            tuples: [*original, *reply],
            zone: self.zone,
            port: self.port,
            ignored_syn: IgnoredSyn::default(),
            carried: std::array::from_fn(|direction| {
                match (slot.counters.get(direction), self.counters.get(direction)) {
                    (Some(counters), Some(&(packets, bytes))) => counters.set(packets, bytes),
                    _ => Default::default(),
                }
            }),
        };
        let generation = u64::from(slot.status().generation()) << 32;
        let mut status = Status(self.status.0 & 0xffff_ffff | generation);
        let left_as = reply.inverse();
        if left_as.addresses.source() != original.addresses.source()
            || left_as.source_port != original.source_port
        {
            status = status.with(Status::SOURCE_NAT);
        }
        if left_as.addresses.destination() != original.addresses.destination()
            || !original.is_echo() && left_as.destination_port != original.destination_port
        {
            status = status.with(Status::DESTINATION_NAT);
        }
        if let Some(tcp) = &self.tcp {
            status = store_tcp(slot, cold, status.with(Status::TCP), tcp);
        }
        slot.mark.store(self.mark, Relaxed);
        slot.store_data(self.data);
        // A clock that began later than the connection was last seen wraps, as ticks may.
        let seen = Tick::of(now).before(Tick::whole(self.idle));
        slot.last_seen.store(seen.0, Relaxed);
        slot.set_status(status);
    }
}

/// The keys a packet may be found by: more than one only for fragments of echo messages, whose type they don't show.
pub(super) fn keys_of(packet: &Packet) -> Result<[Option<Key>; 2], InvalidReason> {
    let key = |direction| Some(Key::of_direction(packet.zone, &packet.tuple, direction));
    let (tuple, tcp) = (&packet.tuple, packet.tuple.protocol == PROTOCOL_TCP);
    let one_identifier = !tuple.is_echo() || tuple.source_port == tuple.destination_port;
    match packet.transport {
        TransportInfo::OtherIcmp => Err(InvalidReason::IcmpUnexpected),
        TransportInfo::Tcp(_) if tcp => Ok([key(Direction::Original), None]),
        TransportInfo::Datagram if !tcp && !tuple.is_echo() => Ok([key(Direction::Original), None]),
        TransportInfo::EchoRequest if tuple.is_echo() && one_identifier => {
            Ok([key(Direction::Original), None])
        }
        TransportInfo::EchoReply if tuple.is_echo() && one_identifier => {
            Ok([key(Direction::Reply), None])
        }
        TransportInfo::LaterFragment if tuple.is_echo() => {
            Ok([key(Direction::Original), key(Direction::Reply)])
        }
        TransportInfo::LaterFragment => Ok([key(Direction::Original), None]),
        _ => Err(InvalidReason::Contradiction),
    }
}

/// Follows a segment and stores what came of it; the status is the caller's to store.
fn follow_tcp(
    found: &mut Found<'_>,
    status: Status,
    tcp: &TcpInfo,
    windows: TcpWindows,
) -> Result<Status, Followed> {
    let Some(mut connection) = load_tcp(found.slot, &found.cold, status) else {
        return Err(Followed::Invalid(InvalidReason::Contradiction));
    };
    match connection.follow(found.direction, tcp, windows) {
        Followed::Accepted => Ok(store_tcp(found.slot, &mut found.cold, status, &connection)),
        other => Err(other),
    }
}

/// A connection's TCP part.
pub(super) fn load_tcp(slot: &Slot, cold: &Cold, status: Status) -> Option<TcpConnection> {
    let [original, reply] = &slot.sides;
    Some(TcpConnection {
        state: status.state().filter(|state| state.is_tcp())?,
        sides: [original.load(), reply.load()],
        scales: Direction::BOTH.map(|direction| status.scale(direction)),
        liberal: status.has(Status::LIBERAL),
        ignored_syn: cold.ignored_syn,
    })
}

fn store_tcp(slot: &Slot, cold: &mut Cold, status: Status, tcp: &TcpConnection) -> Status {
    for (place, side) in slot.sides.iter().zip(tcp.sides) {
        place.store(side);
    }
    cold.ignored_syn = tcp.ignored_syn;
    let status = status.with_state(tcp.state).with_scales(tcp.scales);
    if tcp.liberal {
        status.with(Status::LIBERAL)
    } else {
        status
    }
}

/// What a connection is to a packet of the direction it was found by.
pub(super) fn view(found: &Found<'_>) -> Tracked {
    let status = found.slot.status();
    let [original, reply] = &found.cold.tuples;
    let (comes_as, leaves_as) = match found.direction {
        Direction::Original => (original, reply.inverse()),
        Direction::Reply => (reply, original.inverse()),
    };
    let mut state = StateBits::TRACKED;
    if found.direction == Direction::Reply {
        state = state.union(StateBits::REPLY);
    }
    if found.direction == Direction::Reply || status.has(Status::SEEN_REPLY) {
        state = state.union(StateBits::ESTABLISHED);
    } else {
        state = state.union(StateBits::NEW);
    }
    let mut translation = Translation::NONE;
    if status.0 & (Status::SOURCE_NAT | Status::DESTINATION_NAT) != 0 {
        translation = difference(comes_as, &leaves_as);
    }
    if status.has(Status::SOURCE_NAT) {
        state = state.union(StateBits::SOURCE_NAT);
    }
    if status.has(Status::DESTINATION_NAT) {
        state = state.union(StateBits::DESTINATION_NAT);
    }
    Tracked {
        state,
        conn: Some(found.id()),
        direction: found.direction,
        translation,
        embedded: Translation::NONE,
        mark: found.slot.mark.load(Relaxed),
        data: found.slot.load_data(),
        cacheable: false,
        invalid: None,
    }
}

/// What to rewrite to make one tuple the other.
pub(super) fn difference(from: &Tuple, to: &Tuple) -> Translation {
    let end = |from: (std::net::IpAddr, u16), to: (std::net::IpAddr, u16)| {
        (from != to).then_some(Endpoint {
            address: to.0,
            port: to.1,
        })
    };
    Translation {
        source: end(
            (from.addresses.source(), from.source_port),
            (to.addresses.source(), to.source_port),
        ),
        destination: end(
            (from.addresses.destination(), from.destination_port),
            (to.addresses.destination(), to.destination_port),
        ),
    }
}

fn timeouts_by_state(config: &ConntrackConfig) -> [u32; 16] {
    let timeouts = &config.timeouts;
    let mut ticks = [0; 16];
    for state in ConnState::ALL {
        let timeout = match state {
            ConnState::SynSent | ConnState::SynSentByBoth => timeouts.tcp_syn_sent,
            ConnState::SynRecv => timeouts.tcp_syn_recv,
            ConnState::Established => timeouts.tcp_established,
            ConnState::FinWait => timeouts.tcp_fin_wait,
            ConnState::CloseWait => timeouts.tcp_close_wait,
            ConnState::LastAck => timeouts.tcp_last_ack,
            ConnState::TimeWait => timeouts.tcp_time_wait,
            ConnState::Close => timeouts.tcp_close,
            ConnState::UdpSingle => timeouts.udp_single,
            ConnState::UdpStream => timeouts.udp_stream,
            ConnState::Icmp => timeouts.icmp,
            ConnState::Generic => timeouts.generic,
        };
        ticks[state as usize] = Tick::count(timeout);
    }
    ticks
}
