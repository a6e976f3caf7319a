//! A guest that runs before its memory has arrived: rings are served from pages that come one by one, none is touched before it is there, and a
//! front-end that never sends one holds up nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_to_string;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use guest_sim::message::Request;
use guest_sim::nic::session::connect;
use guest_sim::nic::{Fault, Session};
use guest_sim::{GuestMemory, Nic, ProtocolFeatures, RawFrontend};
use ringswitch::ring::userfault;
use rustix::process::{Pid, Signal, kill_process};
use vhost::vhost_user::VhostUserProtocolFeatures as Bits;

use crate::migration::small_memory;
use crate::rig::{
    Bystanders, Switch, WITHIN, arrival, exchange, guest_options, introduce, named, numbered,
    one_way, settle, until, verify_arrival, verify_quiet,
};

const PAGE: u64 = 4096;
/// Frames that wait in the ring when the guest moves.
const WAITING: u16 = 100;

fn page_of(address: u64) -> u64 {
    address / PAGE * PAGE
}

/// The memory of a guest on its way, as the front-end at the target has it.
struct Source {
    from: GuestMemory,
    to: GuestMemory,
    sent: BTreeSet<u64>,
}

impl Source {
    fn new(from: &GuestMemory) -> Self {
        Self {
            from: from.clone(),
            to: small_memory(),
            sent: BTreeSet::new(),
        }
    }

    /// Sends a page, unless it was sent.
    fn send(&mut self, guest_address: u64) {
        let page = page_of(guest_address);
        if !self.sent.insert(page) {
            return;
        }
        let place = |memory: &GuestMemory| {
            let regions = memory.regions();
            let mut regions = regions.into_iter();
            let region = regions.find(|region| {
                let layout = region.layout();
                page.wrapping_sub(layout.guest_base) < layout.size_bytes
            });
            let region = region.unwrap();
            let layout = region.layout();
            let at = layout.mmap_offset_bytes + (page - layout.guest_base);
            (region.memfd().clone(), at)
        };
        let mut bytes = [0; PAGE as usize];
        let (file, at) = place(&self.from);
        file.read_exact_at(&mut bytes, at).unwrap();
        let (file, at) = place(&self.to);
        // A page that is written as a whole is there as a whole, or not at all.
        file.write_all_at(&bytes, at).unwrap();
    }

    /// Serves the back-end until `done`.
    fn serve<T>(&mut self, nic: &mut Nic, mut done: impl FnMut() -> Option<T>) -> T {
        until("what needs pages", || {
            while let Some(fault) = next_fault(nic.session()) {
                self.answer(nic.session(), fault);
            }
            done()
        })
    }

    fn answer(&mut self, session: &Session, fault: Fault) {
        self.send(fault.guest_address);
        let faults = session.arrival().unwrap().faults();
        userfault::wake(faults, page_of(fault.address), PAGE).unwrap();
    }

    /// Everything else.
    fn send_rest(&mut self) {
        for region in self.from.regions() {
            let layout = region.layout();
            for page in 0..layout.size_bytes / PAGE {
                self.send(layout.guest_base + page * PAGE);
            }
        }
    }

    /// Pages that are there, whoever made them.
    fn present(&self) -> u64 {
        let regions = self.to.regions();
        let files: BTreeMap<_, _> = regions
            .iter()
            .map(|region| region.memfd().metadata().unwrap())
            .map(|file| (file.ino(), file.blocks() * 512 / PAGE))
            .collect();
        files.values().sum()
    }
}

fn next_fault(session: &Session) -> Option<Fault> {
    let arrival = session.arrival().expect("postcopy");
    arrival.next_fault(Duration::ZERO).unwrap()
}

/// A guest on `vm1` that is stopped with frames in its ring, and its peer on `vm2`.
fn stopped(switch: &Switch) -> (Nic, Nic) {
    let mut guest = switch.guest_in(&small_memory(), "vm1", guest_options());
    let mut peer = switch.guest("vm2", guest_options());
    exchange((1, &mut guest), (2, &mut peer));
    guest.pause().unwrap();
    for number in 0..WAITING {
        let sending = &mut guest.pair(0).guest_tx;
        sending.queue(&numbered(number, 1, 2)).unwrap();
        sending.publish().unwrap();
    }
    (guest, peer)
}

/// Guest at the target, whose memory is still where it was.
fn arriving(switch: &Switch, guest: &mut Nic) -> Source {
    let source = Source::new(guest.memory());
    let stream = connect(&switch.daemon.socket("vm3"), WITHIN).unwrap();
    guest.arrive_by_postcopy(&source.to, stream).unwrap();
    source
}

fn end(guest: &mut Nic, source: &mut Source) {
    source.send_rest();
    guest.session().postcopy_end().unwrap();
}

/// The frames that waited, in order.
fn waited_for(peer: &mut Nic) {
    for number in 0..WAITING {
        verify_arrival(&numbered(number, 1, 2), peer);
    }
}

/// The processes that fetch pages for the daemon.
fn pagers(switch: &Switch) -> Vec<Pid> {
    let daemon = switch.daemon.pid();
    let threads = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let children = threads.flatten().map(|thread| {
        // One that ends meanwhile has none.
        read_to_string(thread.path().join("children")).unwrap_or_default()
    });
    let children: Vec<String> = children.collect();
    let pids = children.iter().flat_map(|line| line.split_whitespace());
    let pids = pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    pids.filter(|pid| {
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        read_to_string(path).is_ok_and(|line| line.contains("postcopy-pager"))
    })
    .collect()
}

/// Its own socket and userfaultfd: no other port's connection, no guest's memory but what it maps.
fn has_nothing_else(pager: Pid) {
    let folder = format!("/proc/{}/fd", pager.as_raw_nonzero());
    let open = std::fs::read_dir(folder).unwrap().flatten();
    let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let open: BTreeSet<_> = open.map(|file| file.display().to_string()).collect();
    let count = |kind: &str| open.iter().filter(|file| file.contains(kind)).count();
    let counts = ["socket:", "userfaultfd", "memfd:"].map(count);
    assert_eq!(counts, [1, 1, 0], "{open:?}");
    let maps = read_to_string(format!("/proc/{}/maps", pager.as_raw_nonzero())).unwrap();
    let guests = maps.lines().filter(|line| line.contains("memfd:")).count();
    assert!(guests <= 2, "{maps}");
}

fn no_pager(switch: &Switch) {
    until("the pager to end", || {
        pagers(switch).is_empty().then_some(())
    });
}

/// What is flooded while nobody knows where the guest is does not reach the bystanders.
fn switch() -> Switch {
    Switch::with(&[
        ("vm1", ""),
        ("vm2", ""),
        ("vm3", ""),
        ("vm7", "vlan=7"),
        ("vm8", "vlan=7"),
    ])
}

#[test]
fn rings_are_served_while_memory_arrives_and_no_page_is_touched_before() {
    let switch = switch();
    let (mut guest, mut peer) = stopped(&switch);
    let mut source = arriving(&switch, &mut guest);
    let [pager] = pagers(&switch)[..] else {
        panic!("one pager");
    };
    has_nothing_else(pager);
    // What waited is sent from pages that come as they are needed.
    let sent = |switch: &Switch| switch.counters("vm3")["guest_tx_frames"].as_u64().unwrap();
    source.serve(&mut guest, || {
        (sent(&switch) == u64::from(WAITING)).then_some(())
    });
    waited_for(&mut peer);
    // Frames for the guest are written to pages that are there; those that find none are dropped, and said to be.
    let dropped_before = switch.drops("vm3", "rx_ring_not_ready");
    let mut delivered = 0;
    let mut tried = 0;
    while delivered < 150 {
        tried += 1;
        peer.send(&numbered(tried, 2, 1)).unwrap();
        source.serve(&mut guest, || {
            let counters = switch.counters("vm3");
            let frames = counters["guest_rx_frames"].as_u64().unwrap();
            let dropped = switch.drops("vm3", "rx_ring_not_ready") - dropped_before;
            (frames + dropped == u64::from(tried)).then(|| delivered = frames)
        });
    }
    // Nobody has made a page but the front-end.
    assert_eq!(source.present(), source.sent.len() as u64);
    assert!(
        source.sent.len() < 1000,
        "{} pages were fetched",
        source.sent.len()
    );
    end(&mut guest, &mut source);
    no_pager(&switch);
    let mut last = 0;
    for _ in 0..delivered {
        let frame = arrival(&mut guest);
        let number = (last + 1..=tried).find(|number| frame.bytes == numbered(*number, 2, 1).bytes);
        last = number.expect("a frame that was sent, in order");
    }
    exchange((1, &mut guest), (2, &mut peer));
    switch.finish();
}

#[test]
fn front_ends_with_memory_tables_arrive_as_well() {
    let switch = switch();
    let without_slots = guest_sim::NicOptions {
        protocol: ProtocolFeatures::QEMU.without(Bits::CONFIGURE_MEM_SLOTS),
        ..guest_options()
    };
    let mut guest = switch.guest_in(&small_memory(), "vm1", without_slots);
    let mut peer = switch.guest("vm2", guest_options());
    exchange((1, &mut guest), (2, &mut peer));
    guest.pause().unwrap();
    guest.pair(0).guest_tx.queue(&numbered(1, 1, 2)).unwrap();
    guest.pair(0).guest_tx.publish().unwrap();
    let mut source = arriving(&switch, &mut guest);
    let sent = || (switch.counters("vm3")["guest_tx_frames"] == 1).then_some(());
    source.serve(&mut guest, sent);
    verify_arrival(&numbered(1, 1, 2), &mut peer);
    end(&mut guest, &mut source);
    exchange((1, &mut guest), (2, &mut peer));
    switch.finish();
}

#[test]
fn memory_that_never_arrives_holds_up_nobody_else_and_goes_with_its_front_end() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let (mut guest, mut peer) = stopped(&switch);
    bystanders.during(|| {
        let source = arriving(&switch, &mut guest);
        until("the port to wait", || {
            let show = switch.show("vm3").to_string();
            show.contains("to make address").then_some(())
        });
        // Frames for the guest find no ring.
        for number in 0..50 {
            peer.send(&numbered(number, 2, 1)).unwrap();
        }
        until("them to be dropped", || {
            let dropped: u64 = switch
                .all_drops("vm3")
                .iter()
                .map(|(_, frames)| frames)
                .sum();
            (dropped >= 50).then_some(())
        });
        assert_eq!(source.present(), 0, "a page that nobody sent");
        let refused = switch.daemon.command(&["upgrade"]).unwrap_err().to_string();
        assert!(
            refused.contains("arriving by a postcopy migration"),
            "{refused}"
        );
    });
    let waiting = pagers(&switch);
    assert_eq!(waiting.len(), 1);
    guest.session().raw().hang_up();
    no_pager(&switch);
    drop(guest);
    let mut guest = switch.guest("vm3", guest_options());
    exchange((3, &mut guest), (2, &mut peer));
    switch.finish();
}

#[test]
fn a_pager_that_dies_costs_time_and_no_frame_that_waited() {
    let switch = switch();
    let (mut guest, mut peer) = stopped(&switch);
    let mut source = arriving(&switch, &mut guest);
    for pager in pagers(&switch) {
        kill_process(pager, Signal::KILL).unwrap();
    }
    no_pager(&switch);
    settle(&mut guest);
    assert_eq!(source.present(), 0);
    end(&mut guest, &mut source);
    waited_for(&mut peer);
    exchange((1, &mut guest), (2, &mut peer));
    switch.finish();
}

#[test]
fn requests_out_of_turn_are_refused_and_leave_nothing_behind() {
    let mut switch = switch();
    let socket = switch.daemon.socket("vm3");
    let raw = || {
        let stream = connect(&socket, WITHIN).unwrap();
        let mut raw = RawFrontend::new(stream);
        let features = ProtocolFeatures::QEMU.bits().to_ne_bytes();
        raw.send(Request::SET_PROTOCOL_FEATURES, &features, &[])
            .unwrap();
        raw
    };
    let refused = |raw: &mut RawFrontend, request: Request| {
        raw.send_needing_reply(request, &[], &[]).unwrap();
        assert_ne!(raw.receive_u64(request, WITHIN).unwrap(), 0, "{request:?}");
    };
    named(&"LISTEN without ADVISE", || {
        let mut raw = raw();
        refused(&mut raw, Request::POSTCOPY_LISTEN);
        raw.hang_up();
    });
    named(&"ADVISE again and again", || {
        let mut raw = raw();
        for descriptors in [1, 0, 0, 0] {
            raw.send(Request::POSTCOPY_ADVISE, &[], &[]).unwrap();
            assert_eq!(raw.receive(WITHIN).unwrap().descriptors.len(), descriptors);
        }
        until("one pager", || (pagers(&switch).len() == 1).then_some(()));
        raw.hang_up();
        no_pager(&switch);
    });
    named(&"ADVISE and nothing read or said any more", || {
        let mut raw = raw();
        raw.send(Request::POSTCOPY_ADVISE, &[], &[]).unwrap();
        raw.hang_up();
        no_pager(&switch);
    });
    named(&"without PAGEFAULT", || {
        let mut raw = raw();
        let features = ProtocolFeatures::QEMU.without(Bits::PAGEFAULT).bits();
        raw.send(Request::SET_PROTOCOL_FEATURES, &features.to_ne_bytes(), &[])
            .unwrap();
        for request in [
            Request::POSTCOPY_ADVISE,
            Request::POSTCOPY_LISTEN,
            Request::POSTCOPY_END,
        ] {
            refused(&mut raw, request);
        }
        raw.hang_up();
    });
    named(&"an ack of nothing", || {
        let mut raw = raw();
        raw.send_needing_reply(Request::ADD_MEM_REG, &[0; 8], &[])
            .unwrap();
        assert_ne!(raw.receive_u64(Request::ADD_MEM_REG, WITHIN).unwrap(), 0);
        raw.hang_up();
    });
    named(&"more regions than a pager is told of", || {
        let mut guest = switch.guest("vm2", guest_options());
        let memory = small_memory();
        let regions = memory.regions();
        let region = regions[0].message_region();
        let words = [
            0,
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            region.mmap_offset,
        ];
        let body = words.map(u64::to_ne_bytes);
        let mut raw = raw();
        raw.send(Request::POSTCOPY_ADVISE, &[], &[]).unwrap();
        raw.receive(WITHIN).unwrap();
        raw.send_needing_reply(Request::POSTCOPY_LISTEN, &[], &[])
            .unwrap();
        assert_eq!(
            raw.receive_u64(Request::POSTCOPY_LISTEN, WITHIN).unwrap(),
            0
        );
        let file = regions[0].memfd();
        let mut added = 0;
        let refused = loop {
            raw.send(Request::ADD_MEM_REG, body.as_flattened(), &[file.as_fd()])
                .unwrap();
            let reply = raw.receive(WITHIN).unwrap();
            if reply.body.len() == 8 {
                break added;
            }
            added += 1;
            assert!(added < 5000, "no end of regions");
            raw.send_needing_reply(Request::REM_MEM_REG, body.as_flattened(), &[])
                .unwrap();
            assert_eq!(raw.receive_u64(Request::REM_MEM_REG, WITHIN).unwrap(), 0);
        };
        assert!(refused >= 509, "{refused} regions");
        raw.hang_up();
        no_pager(&switch);
        settle(&mut guest);
    });
    named(&"an announcement that nothing follows", || {
        let stream = connect(&switch.daemon.socket("vm3"), WITHIN).unwrap();
        let mut guest = introduce(guest_options(), stream);
        guest
            .session()
            .raw()
            .send(Request::POSTCOPY_ADVISE, &[], &[])
            .unwrap();
        assert_eq!(
            guest
                .session()
                .raw()
                .receive(WITHIN)
                .unwrap()
                .descriptors
                .len(),
            1
        );
        guest.start().unwrap();
        no_pager(&switch);
        let mut peer = switch.guest("vm2", guest_options());
        exchange((3, &mut guest), (2, &mut peer));
        switch.upgrade(&[]);
        exchange((3, &mut guest), (2, &mut peer));
    });
    named(&"memory before", || {
        let mut guest = switch.guest("vm3", guest_options());
        guest
            .session()
            .raw()
            .send(Request::POSTCOPY_ADVISE, &[], &[])
            .unwrap();
        let reply = guest.session().raw().receive(WITHIN).unwrap();
        assert!(reply.descriptors.is_empty() && reply.body.is_empty());
        let mut peer = switch.guest("vm2", guest_options());
        one_way(&numbered(1, 3, 2), &mut guest, &mut peer);
        verify_quiet(&mut [&mut guest, &mut peer]);
    });
    no_pager(&switch);
    switch.finish();
}

#[test]
fn wakes_without_a_page_are_no_page() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let (mut guest, mut peer) = stopped(&switch);
    let mut source = arriving(&switch, &mut guest);
    bystanders.during(|| {
        // Any wake is allowed, of anything at any time: the fault is looked at again.
        let faults = guest
            .session()
            .arrival()
            .unwrap()
            .faults()
            .as_fd()
            .try_clone_to_owned();
        let faults = faults.unwrap();
        for _ in 0..1000 {
            let Some(fault) = next_fault(guest.session()) else {
                continue;
            };
            userfault::wake(faults.as_fd(), page_of(fault.address), PAGE).unwrap();
        }
        assert_eq!(source.present(), 0);
    });
    let sent = || {
        let frames = switch.counters("vm3")["guest_tx_frames"].as_u64();
        (frames == Some(u64::from(WAITING))).then_some(())
    };
    source.serve(&mut guest, sent);
    waited_for(&mut peer);
    end(&mut guest, &mut source);
    exchange((1, &mut guest), (2, &mut peer));
    switch.finish();
}
