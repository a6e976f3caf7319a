//! A guest behind a virtual IOMMU: its driver's addresses mean something to its front-end alone, page by page, and not for ever.
//!
//! One guest's NIC is behind one ([`Behind`]), the other is not. A thread of the test answers for the front-end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest_sim::nic::iommu::{GUEST_SHIFT, Iommu, PAGE_BYTES, Permission, tell};
use guest_sim::nic::session::connect;
use guest_sim::{
    Ack, Canaries, Error, Features, GuestMemory, Nic, NicOptions, QueuePair, Refill, Session,
};
use vhost::vhost_user::VhostUserProtocolFeatures as Bits;

use crate::rig::*;

/// A front-end with nothing to do looks this often whether it is still wanted.
const QUIET: Duration = Duration::from_millis(5);

struct Behind {
    nic: Nic,
    iommu: Iommu,
}

impl Behind {
    /// A guest on a port, with nothing mapped and its rings not started.
    fn new(switch: &Switch, port: &str, memory: &GuestMemory, options: NicOptions) -> Self {
        let options = NicOptions {
            features: options.features | Features::ACCESS_PLATFORM,
            protocol: options.protocol.with(Bits::BACKEND_REQ),
            ..options
        };
        let stream = connect(&switch.daemon.socket(port), WITHIN).unwrap();
        let mut nic = introduce_in(memory, options, stream);
        let iommu = Iommu::connect(nic.session(), memory).unwrap();
        Self { nic, iommu }
    }

    /// With all its memory mapped and its rings started.
    fn started(switch: &Switch, port: &str) -> Self {
        Self::started_with(switch, port, guest_options())
    }

    fn started_with(switch: &Switch, port: &str, options: NicOptions) -> Self {
        let mut behind = Self::new(switch, port, &memory(), options);
        behind.iommu.map_all();
        behind.nic.start().unwrap();
        behind.settle();
        behind
    }

    /// Everything asked so far is answered, and was acted upon.
    fn settle(&mut self) {
        self.iommu.serve(self.nic.session(), 10 * QUIET).unwrap();
        settle(&mut self.nic);
    }

    /// Moves frames while the front-end answers, and afterwards does what `meanwhile` says again and again.
    fn while_serving<T>(
        &mut self,
        mut meanwhile: impl FnMut(&mut Iommu, &mut Session) + Send,
        traffic: impl FnOnce(&mut QueuePair) -> T,
    ) -> T {
        let done = AtomicBool::new(false);
        let (session, pairs) = self.nic.split();
        let iommu = &mut self.iommu;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    iommu.serve(session, QUIET).unwrap();
                    meanwhile(iommu, session);
                }
            });
            let _finished = Finished(&done);
            traffic(&mut pairs[0])
        })
    }
}

/// Sends frames to a guest behind an IOMMU until that has them all, each verified: what finds no buffer that is known is dropped.
fn insist(from: &mut Nic, to: &mut QueuePair, numbers: std::ops::Range<u16>) {
    let frames: Vec<_> = numbers.map(|number| numbered(number, 2, 1)).collect();
    for frame in &frames {
        until("a frame to get through", || {
            from.send(frame).unwrap();
            while let Some(arrived) = to.guest_rx.receive(10 * QUIET).unwrap() {
                if arrived.bytes == frame.bytes {
                    return Some(());
                }
                // One that was sent before and comes once more, or what bystanders flood.
                let is_known = frames.iter().any(|sent| sent.bytes == arrived.bytes);
                assert!(is_known || arrived.bytes[6..12] != mac(2));
            }
            None
        });
    }
    while to.guest_rx.try_receive().unwrap().is_some() {}
}

#[test]
fn frames_cross_an_iommu_both_ways() {
    let switch = Switch::of(&VM[..2]);
    let mut one = Behind::started(&switch, "vm1");
    let mut other = switch.guest("vm2", guest_options());
    one.while_serving(
        |_, _| {},
        |pair| {
            for number in 0..600 {
                let frame = numbered(number, 1, 2);
                pair.guest_tx.send(&frame, WITHIN).unwrap();
                verify_arrival(&frame, &mut other);
            }
            insist(&mut other, pair, 0..600);
            pair.guest_tx.drain(WITHIN).unwrap();
            pair.guest_rx.verify_untouched().unwrap();
        },
    );
    assert!(one.iommu.asked() > 10, "{}", one.iommu.asked());
    switch.finish();
}

/// As Linux does: buffers are offered when the interface comes up, long after the rings started. Its first frame, and the answer to it.
#[test]
fn the_first_frame_for_a_guest_behind_an_iommu_that_has_spoken_finds_a_buffer() {
    let switch = Switch::of(&VM[..2]);
    let options = NicOptions {
        refill: Refill::Manual,
        ..guest_options()
    };
    let mut one = Behind::started_with(&switch, "vm1", options);
    let mut other = switch.guest("vm2", guest_options());
    for pair in one.nic.pairs() {
        pair.guest_rx.refill().unwrap();
    }
    one.while_serving(
        |_, _| {},
        |pair| {
            let frame = numbered(0, 1, 2);
            pair.guest_tx.send(&frame, WITHIN).unwrap();
            verify_arrival(&frame, &mut other);
            pair.guest_tx.drain(WITHIN).unwrap();
        },
    );
    one.settle();
    let frame = numbered(1, 2, 1);
    other.send(&frame).unwrap();
    verify_arrival(&frame, &mut one.nic);
    switch.finish();
}

#[test]
fn pages_come_and_go_under_traffic() {
    let switch = Switch::of(&VM[..2]);
    let mut one = Behind::started(&switch, "vm1");
    let mut other = switch.guest("vm2", guest_options());
    let mut round = 0u64;
    let come_and_go = |iommu: &mut Iommu, session: &mut Session| {
        // A piece at a time, rings and buffers alike, and now and then everything.
        round += 1;
        let (at, bytes) = match round % 16 {
            0 => (0, 64 << 20),
            piece => (piece * 64 * PAGE_BYTES, 64 * PAGE_BYTES),
        };
        iommu.unmap(session, at, bytes).unwrap();
        iommu.map(at, bytes, Permission::Both);
    };
    one.while_serving(come_and_go, |pair| {
        for number in 0..400 {
            let frame = numbered(number, 1, 2);
            pair.guest_tx.send(&frame, WITHIN).unwrap();
            verify_arrival(&frame, &mut other);
        }
        insist(&mut other, pair, 0..200);
        pair.guest_tx.drain(WITHIN).unwrap();
        pair.guest_rx.verify_untouched().unwrap();
    });
    one.settle();
    let show = switch.show("vm1");
    assert_eq!(show["device"]["state"], "up", "{show}");
    switch.finish();
}

/// Translations, and questions under way, go along: pages come and go meanwhile.
#[test]
fn an_upgrade_loses_nothing_of_a_guest_behind_an_iommu() {
    let mut switch = Switch::of(&VM[..2]);
    let mut one = Behind::started(&switch, "vm1");
    let mut other = switch.guest("vm2", guest_options());
    let mut round = 0u64;
    let come_and_go = |iommu: &mut Iommu, session: &mut Session| {
        round += 1;
        let at = round % 16 * 64 * PAGE_BYTES;
        iommu.unmap(session, at, 64 * PAGE_BYTES).unwrap();
        iommu.map(at, 64 * PAGE_BYTES, Permission::Both);
    };
    one.while_serving(come_and_go, |pair| {
        for upgrade in 0..5 {
            switch.upgrade(&[]);
            for number in 40 * upgrade..40 * (upgrade + 1) {
                let frame = numbered(number, 1, 2);
                pair.guest_tx.send(&frame, WITHIN).unwrap();
                verify_arrival(&frame, &mut other);
            }
            insist(&mut other, pair, 0..40);
        }
        pair.guest_tx.drain(WITHIN).unwrap();
        pair.guest_rx.verify_untouched().unwrap();
    });
    one.settle();
    let show = switch.show("vm1");
    assert_eq!(show["device"]["connections"]["connects"], 1, "{show}");
    switch.finish();
}

#[test]
fn nothing_is_written_where_a_page_was_taken_away() {
    let switch = Switch::of(&VM[..2]);
    // Behind its rings, a guest that only receives and paints nothing leaves memory alone: what changes there the switch has written.
    let options = NicOptions {
        canaries: Canaries::Off,
        ..guest_options()
    };
    let mut one = Behind::started_with(&switch, "vm1", options);
    let mut other = switch.guest("vm2", guest_options());
    let memory = one.nic.memory().clone();
    let region = memory.region(0).unwrap();
    let contents = |at: u64| {
        let mut bytes = vec![0; PAGE_BYTES as usize];
        rustix::io::pread(region.memfd(), &mut bytes, at).unwrap();
        bytes
    };
    let (mut round, mut compared, mut written) = (0, 0, 0);
    let mut last = vec![vec![0; PAGE_BYTES as usize]; 64];
    let take_away = |iommu: &mut Iommu, session: &mut Session| {
        round += 1;
        let index = round % last.len();
        let page = (16 + index as u64) * PAGE_BYTES;
        iommu.unmap(session, page, PAGE_BYTES).unwrap();
        let before = contents(page);
        std::thread::sleep(Duration::from_micros(500));
        assert!(before == contents(page), "page {page:#x} was written");
        written += usize::from(std::mem::replace(&mut last[index], before.clone()) != before);
        compared += 1;
        iommu.map(page, PAGE_BYTES, Permission::Both);
    };
    let frames: Vec<_> = (0..32).map(|number| numbered(number, 2, 1)).collect();
    one.while_serving(take_away, |pair| {
        let patience = guest_sim::Patience::of(Duration::from_secs(3));
        let mut arrived = 0;
        while !patience.is_over() {
            other.pair(0).guest_tx.send_all(&frames, WITHIN).unwrap();
            while pair.guest_rx.try_receive().unwrap().is_some() {
                arrived += 1;
            }
        }
        assert!(arrived > 100, "{arrived}");
    });
    // The pages were those that frames go to.
    assert!(
        compared > 50 && written > 10,
        "{compared} compared, {written} written to"
    );
    switch.finish();
}

#[test]
fn an_address_that_is_not_mapped_costs_the_guest_its_ring_and_nobody_else_anything() {
    let switch = Switch::of(&["vm1", "vm2", "vm7", "vm8"]);
    let mut bystanders = Bystanders::on(&switch);
    let mut one = Behind::started(&switch, "vm1");
    let _other = switch.guest("vm2", guest_options());
    bystanders.during(|| {
        for permission in [None, Some(Permission::Write)] {
            // Whatever the driver sends from now on is not mapped, or not to be read.
            let (from, bytes) = (1 << 32, 64 << 20);
            one.iommu.unmap(one.nic.session(), from, bytes).unwrap();
            if let Some(permission) = permission {
                one.iommu.map(from, bytes, permission);
            }
            let pair = one.nic.pair(0);
            pair.guest_tx.use_regions(&[1]);
            pair.guest_tx.queue(&numbered(1, 1, 2)).unwrap();
            pair.guest_tx.publish().unwrap();
            let fault = until("the ring to be stopped", || {
                one.iommu.serve(one.nic.session(), QUIET).unwrap();
                let show = switch.show("vm1");
                show["device"]["rings"][1]["fault"]
                    .as_str()
                    .map(str::to_owned)
            });
            assert!(
                fault.contains("IOMMU does not let its device read"),
                "{fault}"
            );
            // The driver begins anew.
            one.iommu.map_all();
            one.nic.reset().unwrap();
            one.nic.start().unwrap();
            one.settle();
            assert_eq!(switch.show("vm1")["device"]["state"], "up");
        }
    });
    switch.finish();
}

#[test]
fn a_front_end_that_answers_late_or_never_delays_its_own_guest_alone() {
    let switch = Switch::of(&["vm1", "vm2", "vm7", "vm8"]);
    let mut bystanders = Bystanders::on(&switch);
    let memory = memory();
    let mut one = Behind::new(&switch, "vm1", &memory, guest_options());
    one.iommu.map_all();
    one.nic.start().unwrap();
    let mut other = switch.guest("vm2", guest_options());
    // Never: rings wait, say so, and nobody else notices.
    bystanders.during(|| {
        let show = until("the rings to wait", || {
            Some(switch.show("vm1")).filter(|show| show["device"]["rings"][1]["phase"] == "waiting")
        });
        let reason = show["device"]["reason"].as_str().unwrap();
        assert!(reason.contains("to make address"), "{reason}");
    });
    // Late: what was queued meanwhile goes out.
    one.settle();
    assert_eq!(switch.show("vm1")["device"]["rings"][1]["phase"], "running");
    let frames: Vec<_> = (0..40).map(|number| numbered(number, 1, 2)).collect();
    let pair = one.nic.pair(0);
    for frame in &frames {
        pair.guest_tx.queue(frame).unwrap();
    }
    pair.guest_tx.publish().unwrap();
    bystanders.during(|| {
        // What bystanders flood is not meant.
        while let Some(early) = other.receive(20 * QUIET).unwrap() {
            assert_ne!(early.bytes[6..12], mac(1), "sent before its page was known");
        }
    });
    let serving = &mut one;
    serving.settle();
    for frame in &frames {
        verify_arrival(frame, &mut other);
        serving
            .iommu
            .serve(serving.nic.session(), Duration::ZERO)
            .unwrap();
    }
    // A front-end that goes away with questions unanswered.
    drop(one);
    bystanders.during(|| ());
    let mut again = Behind::started(&switch, "vm1");
    again.while_serving(|_, _| {}, |pair| insist(&mut other, pair, 0..8));
    switch.finish();
}

#[test]
fn hostile_iotlb_messages_hurt_nobody() {
    const UPDATE: u8 = 2;
    const INVALIDATE: u8 = 3;
    let switch = Switch::of(&["vm1", "vm2", "vm7", "vm8"]);
    let mut bystanders = Bystanders::on(&switch);
    let mut one = Behind::started(&switch, "vm1");
    let mut other = switch.guest("vm2", guest_options());
    let memory = one.nic.memory().clone();
    let user = memory.region(0).unwrap().user_base();
    bystanders.during(|| {
        let session = one.nic.session();
        for (name, words, kind) in [
            ("empty", [0x1000, 0, user], (3, UPDATE)),
            ("wraps", [u64::MAX - 0xfff, 0x2000, user], (3, UPDATE)),
            (
                "the front-end's wraps",
                [0, 0x2000, u64::MAX - 0xfff],
                (3, UPDATE),
            ),
            ("outside memory", [0, 0x1000, 0x1000], (3, UPDATE)),
            ("across memory's end", [0, 1 << 40, user], (3, UPDATE)),
            ("no permission", [0, 0x1000, user], (0, UPDATE)),
            ("no such type", [0, 0x1000, user], (3, 77)),
        ] {
            let refused = tell(session, words, kind);
            assert!(
                matches!(refused, Err(Error::Refused { .. })),
                "{name}: {refused:?}"
            );
        }
        for words in [[0, 0, 0], [u64::MAX, 1, 0], [u64::MAX, u64::MAX, 0]] {
            tell(session, words, (0, INVALIDATE)).unwrap();
        }
        // A flood of pages that mean the same byte; overlaps.
        for number in 0..70_000u64 {
            let iova = (1 << 45) + number * 0x1800;
            tell(session, [iova, PAGE_BYTES, user], (3, UPDATE)).unwrap();
        }
        // An answer that nobody asked for ends the channel, not more.
        one.iommu.reply(0).unwrap();
        settle(&mut one.nic);
    });
    assert_eq!(
        switch.show("vm1")["device"]["connections"]["disconnects"],
        0
    );
    // Another channel: everything goes on.
    let mut iommu = Iommu::connect(one.nic.session(), &memory).unwrap();
    iommu.map_all();
    one.iommu = iommu;
    one.settle();
    one.while_serving(|_, _| {}, |pair| insist(&mut other, pair, 0..8));
    switch.finish();
}

#[test]
fn what_is_written_through_an_iommu_is_marked_where_the_guest_has_it() {
    let switch = Switch::of(&VM[..2]);
    let memory = memory();
    let mut one = Behind::new(&switch, "vm1", &memory, guest_options());
    one.iommu.map_all();
    one.nic.start().unwrap();
    one.settle();
    let mut other = switch.guest("vm2", guest_options());
    // A bit a page of all there is below the guest's last address.
    let pages = (GUEST_SHIFT + (1 << 33)) / PAGE_BYTES;
    let log = memfd(pages / 8);
    let session = one.nic.session();
    let acked = session.acked() | Features::LOG_ALL;
    let body = [pages / 8, 0].map(u64::to_ne_bytes).concat();
    let request = guest_sim::Request::SET_LOG_BASE;
    session
        .raw()
        .send(request, &body, &[std::os::fd::AsFd::as_fd(&log)])
        .unwrap();
    let replied = session.raw().receive(WITHIN).unwrap();
    assert_eq!(replied.body.len(), 16);
    session.set_features(acked, Ack::Wanted).unwrap();
    one.while_serving(|_, _| {}, |pair| insist(&mut other, pair, 0..40));
    let mut marked = vec![0u8; 1 << 15];
    let read =
        |from: u64, into: &mut [u8]| rustix::io::pread(&log, into, from / PAGE_BYTES / 8).unwrap();
    read(GUEST_SHIFT, &mut marked);
    let above: u32 = marked.iter().map(|byte| byte.count_ones()).sum();
    read(0, &mut marked);
    let below: u32 = marked.iter().map(|byte| byte.count_ones()).sum();
    assert!(
        above > 5 && below == 0,
        "{above} pages marked, {below} at the device's addresses"
    );
    switch.finish();
}

fn memfd(bytes: u64) -> std::fs::File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::memfd_create("log", flags).unwrap());
    file.set_len(bytes).unwrap();
    file
}
