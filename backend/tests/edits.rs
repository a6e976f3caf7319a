//! What a program may do with a frame beyond sending it on: translate it, put it into a tunnel, copy it, hand it to the control side;
//! whatever offload it came with and whatever its receiver takes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::frame::{Frame, FrameBuilder, GsoType, MacAddr, VnetHeader, verify};
use guest_sim::{Features, NicOptions};
use rig::Rig;
use ringswitch::datapath::worker::ControlFrame;
use std::sync::Arc;
use switch_core::engine::edit::{Delta, Edit, EditList, Run, TransportChecksum};
use switch_core::{
    Decide, DropReason, Flood, FrameCopy, FrameInfo, HeaderEdit, Millis, Outcomes, PortId, Punt,
    PuntReason, Target, Verdict, VlanEdit,
};

const MACS: [MacAddr; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Whom the frames are from and for once they are translated.
const NEW_MACS: [MacAddr; 2] = [[2, 0, 0, 0, 7, 1], [2, 0, 0, 0, 7, 2]];
/// Ethernet, IPv4, UDP, VXLAN.
const TUNNEL_BYTES: usize = 50;

type ScriptFn = Box<dyn FnMut(&mut Outcomes, &FrameInfo<'_>) -> Result<Verdict, DropReason>>;

/// Decides on each frame as a test says.
struct Script {
    outcomes: Outcomes,
    decide: ScriptFn,
}

impl Script {
    fn new(
        decide: impl FnMut(&mut Outcomes, &FrameInfo<'_>) -> Result<Verdict, DropReason> + 'static,
    ) -> Self {
        Self {
            outcomes: Outcomes::new(),
            decide: Box::new(decide),
        }
    }

    /// Every frame to guest 1, edited like this.
    fn edits(edits: Vec<Edit>) -> Self {
        let list = Arc::new(EditList::new(edits));
        Self::new(move |outcomes, _| {
            Ok(Verdict::Output {
                port: port(1),
                edit: HeaderEdit::List(outcomes.add_list(&list)?),
            })
        })
    }
}

impl Decide for Script {
    fn begin_batch(&mut self, _: Millis) {
        self.outcomes.clear();
    }

    fn decide(&mut self, _: PortId, frame: &FrameInfo<'_>) -> Verdict {
        (self.decide)(&mut self.outcomes, frame).unwrap_or_else(Verdict::Drop)
    }

    fn flood_members(&self, _: Flood) -> impl Iterator<Item = (PortId, VlanEdit)> + '_ {
        std::iter::empty()
    }

    fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }
}

fn port(index: u16) -> PortId {
    PortId::new(index).unwrap()
}

fn with(features: Features) -> NicOptions {
    NicOptions {
        features,
        ..NicOptions::bench()
    }
}

/// Everything, checksums alone, nothing.
fn receivers() -> [NicOptions; 3] {
    let plain = Features::VERSION_1 | Features::MRG_RXBUF;
    [
        NicOptions::bench(),
        with(plain | Features::GUEST_CSUM),
        with(plain),
    ]
}

fn frames() -> Vec<FrameBuilder> {
    let mut all = Vec::new();
    for bytes in [0, 22, 100, 1400] {
        for kind in [
            FrameBuilder::tcp4(bytes),
            FrameBuilder::tcp6(bytes),
            FrameBuilder::udp4(bytes),
            FrameBuilder::udp6(bytes),
        ] {
            all.push(kind.clone());
            all.push(kind.checksum_offload());
        }
    }
    for kind in [FrameBuilder::tcp4(60_000), FrameBuilder::tcp6(60_000)] {
        all.push(kind.clone().checksum_offload().segment(1400));
        all.push(kind.timestamps().checksum_offload().segment(8000));
    }
    all.push(FrameBuilder::udp4(30_000).checksum_offload().segment(1400));
    all.push(FrameBuilder::udp6(30_000).checksum_offload().segment(1400));
    all
}

/// The edits that make `old` `new`, which differ in their addresses.
fn translation(old: &[u8], new: &[u8]) -> Vec<Edit> {
    let is_v6 = old[12..14] == [0x86, 0xdd];
    let (addresses, protocol, transport) = if is_v6 {
        (22..54, old[20], 54)
    } else {
        (26..34, old[23], 34)
    };
    let write = |at: usize, bytes: &[u8]| Edit::Write {
        at: at as u16,
        bytes: Run::new(bytes),
    };
    let mut edits = vec![write(0, &new[..12])];
    for (index, run) in new[addresses.clone()].chunks(16).enumerate() {
        edits.push(write(addresses.start + 16 * index, run));
    }
    let delta = Delta::of(&old[addresses.clone()], &new[addresses]).get();
    if !is_v6 {
        edits.push(Edit::AdjustIpv4Checksum { at: 24, delta });
    }
    let (offset, kind) = match protocol {
        6 => (16, TransportChecksum::Plain),
        _ => (6, TransportChecksum::Udp),
    };
    edits.push(Edit::AdjustTransportChecksum {
        at: transport + offset,
        pseudo_delta: delta,
        data_delta: 0,
        kind,
    });
    edits
}

/// Puts a tunnel around a frame.
fn tunnel() -> Vec<Edit> {
    let mut outer = vec![2, 9, 9, 9, 9, 1, 2, 9, 9, 9, 9, 2, 8, 0];
    outer.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    outer.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    outer.extend([0xc0, 0x00, 0x12, 0xb5, 0, 0, 0, 0]);
    outer.extend([8, 0, 0, 0, 0, 0, 7, 0]);
    let insert = |(index, run)| Edit::Insert {
        at: 20 * index as u16,
        bytes: Run::new(run),
    };
    let mut edits: Vec<_> = outer.chunks(20).enumerate().map(insert).collect();
    edits.extend([
        Edit::WriteLength { at: 16, from: 14 },
        Edit::WriteLength { at: 38, from: 34 },
        Edit::FinishIpv4Checksum { at: 14 },
    ]);
    edits
}

/// Sends one frame from guest 0; what arrives at guest 1.
fn through<D: Decide>(
    rig: &mut Rig,
    runner: &mut ringswitch::datapath::batch::BatchRunner<D>,
    frame: &Frame,
) -> Vec<Frame> {
    rig.guests[0].pair.guest_tx.queue(frame).unwrap();
    rig.guests[0].pair.guest_tx.publish().unwrap();
    assert_eq!(rig.guests[0].run_on(runner).frames, 1);
    rig.guests[0].pair.guest_tx.reclaim().unwrap();
    received(rig, 1)
}

fn received(rig: &mut Rig, guest: usize) -> Vec<Frame> {
    let guest_rx = &mut rig.guests[guest].pair.guest_rx;
    std::iter::from_fn(|| guest_rx.try_receive().unwrap()).collect()
}

/// That what arrived is `expected`, whole or in pieces.
fn assert_arrived(expected: &Frame, arrived: &[Frame]) {
    match arrived {
        [one] if one.header.gso() == expected.header.gso() => verify::same(expected, one),
        pieces => verify::segments(expected, pieces),
    }
    .unwrap_or_else(|error| panic!("{error}: {:?}", expected.header));
}

#[test]
fn a_translated_frame_is_right_whatever_its_receiver_takes() {
    for receiver in receivers() {
        for builder in frames() {
            let sent = builder.clone().macs(MACS[0], MACS[1]).build();
            let expected = builder.clone().macs(NEW_MACS[0], NEW_MACS[1]).build();
            let mut rig = Rig::new(&[NicOptions::bench(), receiver.clone()]);
            let list = translation(&sent.bytes, &expected.bytes);
            let mut runner = rig.runner_with(Script::edits(list));
            let arrived = through(&mut rig, &mut runner, &sent);
            assert_arrived(&expected, &arrived);
            let takes_all = receiver.features == NicOptions::bench().features;
            let is_tcp = sent.header.gso() != Some(GsoType::Udp);
            assert!(
                !takes_all || !is_tcp || arrived.len() == 1,
                "in one piece to a receiver that takes it"
            );
        }
    }
}

#[test]
fn a_tagged_and_translated_frame_keeps_its_offload() {
    for receiver in receivers() {
        for builder in frames() {
            let sent = builder.clone().macs(MACS[0], MACS[1]).build();
            let expected = builder.clone().macs(NEW_MACS[0], NEW_MACS[1]);
            let mut list = translation(&sent.bytes, &expected.build().bytes);
            list.push(Edit::Insert {
                at: 12,
                bytes: Run::new(&[0x81, 0, 0, 10]),
            });
            let mut rig = Rig::new(&[NicOptions::bench(), receiver.clone()]);
            let mut runner = rig.runner_with(Script::edits(list));
            let arrived = through(&mut rig, &mut runner, &sent);
            assert_arrived(&expected.vlan(10).build(), &arrived);
        }
    }
}

/// The frames inside the tunnel, which asks nothing of its receiver and whose lengths and checksum are right.
fn unpacked(arrived: &[Frame]) -> Vec<Frame> {
    let unpack = |frame: &Frame| {
        let complete = VnetHeader {
            num_buffers: frame.header.num_buffers,
            ..VnetHeader::default()
        };
        assert_eq!(frame.header, complete, "nothing is left to be done");
        let bytes = &frame.bytes;
        let ip = etherparse::Ipv4HeaderSlice::from_slice(&bytes[14..]).unwrap();
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        assert_eq!(usize::from(ip.total_len()), bytes.len() - 14);
        let udp = u16::from_be_bytes([bytes[38], bytes[39]]);
        assert_eq!(usize::from(udp), bytes.len() - 34);
        Frame::plain(&bytes[TUNNEL_BYTES..])
    };
    arrived.iter().map(unpack).collect()
}

#[test]
fn what_is_left_undone_is_done_before_a_frame_goes_into_a_tunnel() {
    for receiver in receivers() {
        for builder in frames() {
            for translates in [false, true] {
                let sent = builder.clone().macs(MACS[0], MACS[1]).build();
                let new_macs = if translates { NEW_MACS } else { MACS };
                let expected = builder.clone().macs(new_macs[0], new_macs[1]).build();
                let mut list = translation(&sent.bytes, &expected.bytes);
                list.extend(tunnel());
                let mut rig = Rig::new(&[NicOptions::bench(), receiver.clone()]);
                let mut runner = rig.runner_with(Script::edits(list));
                let arrived = through(&mut rig, &mut runner, &sent);
                assert_arrived(&expected, &unpacked(&arrived));
                let largest = usize::from(sent.header.gso_size).max(1400) + 100 + TUNNEL_BYTES;
                assert!(arrived.iter().all(|frame| frame.bytes.len() <= largest));
            }
        }
    }
}

#[test]
fn a_frame_comes_out_of_a_tunnel_with_its_checksum_still_unfinished() {
    let inner = FrameBuilder::tcp4(500).checksum_offload().build();
    let mut bytes = vec![2, 9, 9, 9, 9, 1, 2, 9, 9, 9, 9, 2, 8, 0];
    let header = etherparse::Ipv4Header::new(
        (16 + inner.bytes.len()) as u16,
        64,
        etherparse::IpNumber::UDP,
        [192, 0, 2, 1],
        [192, 0, 2, 2],
    )
    .unwrap();
    bytes.extend(header.to_bytes());
    bytes.extend([0xc0, 0x00, 0x12, 0xb5]);
    bytes.extend((16 + inner.bytes.len() as u16).to_be_bytes());
    bytes.extend([0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
    bytes.extend(&inner.bytes);
    let mut sent = Frame::plain(bytes);
    sent.header = inner.header;
    sent.header.csum_start += TUNNEL_BYTES as u16;
    for receiver in receivers() {
        let mut rig = Rig::new(&[NicOptions::bench(), receiver]);
        let mut runner = rig.runner_with(Script::edits(vec![Edit::Remove {
            at: 0,
            bytes: TUNNEL_BYTES as u16,
        }]));
        assert_arrived(&inner, &through(&mut rig, &mut runner, &sent));
    }
}

#[test]
fn the_edited_length_counts_against_the_mtu() {
    let frame = FrameBuilder::udp4(1400).macs(MACS[0], MACS[1]).build();
    let len = frame.bytes.len() as u32;
    let large = FrameBuilder::tcp4(30_000).checksum_offload().segment(1400);
    let large = large.macs(MACS[0], MACS[1]).build();
    for (longest, arrives) in [(len + 50, true), (len + 49, false)] {
        let mut rig = Rig::new(&[NicOptions::bench(), NicOptions::bench()]);
        rig.limit_frames(1, longest);
        let mut runner = rig.runner_with(Script::edits(tunnel()));
        assert_eq!(through(&mut rig, &mut runner, &frame).len() == 1, arrives);
        // Its pieces have 12 bytes more of headers.
        rig.limit_frames(1, longest + 12);
        assert_eq!(!through(&mut rig, &mut runner, &large).is_empty(), arrives);
        let drops = rig.counters(1).drops;
        assert_eq!(drops.is_empty(), arrives, "{drops:?}");
        assert!(drops.iter().all(|(reason, _)| *reason == "mtu_exceeded"));
    }
}

#[test]
fn every_copy_leaves_with_its_own_edit_and_in_order() {
    let mut rig = Rig::new(&[(); 3].map(|()| NicOptions::bench()));
    let lists = [1, 2].map(|byte| {
        let bytes = Run::new(&[byte]);
        Arc::new(EditList::new(vec![Edit::Write { at: 5, bytes }]))
    });
    let mut runner = rig.runner_with(Script::new(move |outcomes, _| {
        let edits = [
            HeaderEdit::NONE,
            HeaderEdit::List(outcomes.add_list(&lists[0])?),
            HeaderEdit::List(outcomes.add_list(&lists[1])?),
        ];
        // More than wait at a time.
        let copies = (0..50).flat_map(|_| {
            [(1, 0), (2, 1), (1, 2), (1, 1)].map(|(to, edit)| FrameCopy {
                target: Target::Port(port(to)),
                edit: edits[edit],
            })
        });
        Ok(Verdict::Copies(outcomes.add_copies(copies)?))
    }));
    let frame = FrameBuilder::udp4(22)
        .macs(MACS[0], [2, 0, 0, 0, 0, 9])
        .build();
    let last_bytes = |frames: Vec<Frame>| -> Vec<u8> {
        assert!(frames.iter().all(|f| f.bytes[6..] == frame.bytes[6..]));
        frames.iter().map(|f| f.bytes[5]).collect()
    };
    let first = through(&mut rig, &mut runner, &frame);
    assert_eq!(last_bytes(first), [9, 2, 1].repeat(50));
    assert_eq!(last_bytes(received(&mut rig, 2)), [1].repeat(50));
    assert_eq!(rig.counters(0).drops, []);
}

#[test]
fn the_control_side_gets_a_frame_as_it_came_and_not_too_many() {
    let mut rig = Rig::new(&[NicOptions::bench(), NicOptions::bench()]);
    let punt = Punt {
        reason: PuntReason(3),
        args: [1, 2, 3, u128::MAX],
    };
    let translated = Arc::new(EditList::new(vec![Edit::Write {
        at: 0,
        bytes: Run::new(&[7; 12]),
    }]));
    let mut runner = rig.runner_with(Script::new(move |outcomes, _| {
        let copies = [
            FrameCopy {
                target: Target::Port(port(1)),
                edit: HeaderEdit::List(outcomes.add_list(&translated)?),
            },
            FrameCopy {
                target: Target::Controller(outcomes.add_punt(punt)?),
                edit: HeaderEdit::NONE,
            },
        ];
        Ok(Verdict::Copies(outcomes.add_copies(copies)?))
    }));
    let large = FrameBuilder::tcp4(60_000)
        .checksum_offload()
        .segment(1400)
        .build();
    assert_eq!(through(&mut rig, &mut runner, &large).len(), 1);
    let packet_in = rig.shared().packet_ins.receive().pop().unwrap();
    assert_eq!((packet_in.in_port, packet_in.punt), (port(0), punt));
    assert_eq!(&*packet_in.frame, &large.bytes);
    assert_eq!(packet_in.vnet_header[..10], large.header.to_bytes()[..10]);

    let small = FrameBuilder::udp4(22).build();
    for _ in 0..300 {
        assert_eq!(through(&mut rig, &mut runner, &small).len(), 1);
    }
    assert_eq!(rig.shared().packet_ins.receive().len(), 255);
    assert_eq!(rig.counters(0).drops, [("controller_busy", 45)]);
    let last = rig.last_drops(0).pop().unwrap();
    assert_eq!(last.reason, DropReason::ControllerBusy);
}

#[test]
fn the_control_side_sends_out_of_a_port_or_as_if_from_it() {
    let mut rig = Rig::new(&[NicOptions::bench(), receivers()[2].clone()]);
    let list = Arc::new(EditList::new(vec![Edit::Write {
        at: 0,
        bytes: Run::new(&NEW_MACS[1]),
    }]));
    let mut runner = rig.runner_with(Script::new(move |outcomes, frame| {
        assert_eq!((frame.frame_bytes, frame.wire_bytes), (10_054, 1454));
        let edit = HeaderEdit::List(outcomes.add_list(&list)?);
        Ok(Verdict::Output {
            port: port(1),
            edit,
        })
    }));
    let frame = FrameBuilder::tcp4(10_000).checksum_offload().segment(1400);
    let built = frame.build();
    let of_port = |index| ControlFrame {
        port: port(index),
        vnet_header: built.header.to_bytes(),
        bytes: built.bytes.clone().into(),
    };
    runner.run_sent(&of_port(1));
    assert_arrived(&built, &received(&mut rig, 1));
    runner.run_injected(&of_port(0));
    let mut expected = built.clone();
    expected.bytes[..6].copy_from_slice(&NEW_MACS[1]);
    assert_arrived(&expected, &received(&mut rig, 1));
    let mut wrong = of_port(1);
    wrong.vnet_header[6] = 3;
    runner.run_sent(&wrong);
    assert_eq!(rig.counters(1).drops, [("bad_vnet_header", 1)]);
}

#[test]
fn the_latest_drops_show_frames_where_they_were_dropped() {
    let mut rig = Rig::new(&[NicOptions::bench(), NicOptions::bench()]);
    let mut count = 0;
    let mut runner = rig.runner_with(Script::new(move |_, _| {
        count += 1;
        if count == 1 {
            return Err(DropReason::BridgeReserved);
        }
        let edit = HeaderEdit::NONE;
        Ok(Verdict::Output {
            port: port(1),
            edit,
        })
    }));
    runner.set_time(Millis(77));
    let frame = FrameBuilder::udp4(1000).build();
    assert_eq!(through(&mut rig, &mut runner, &frame), []);
    rig.limit_frames(1, 600);
    assert_eq!(through(&mut rig, &mut runner, &frame), []);
    for (guest, reason) in [
        (0, DropReason::BridgeReserved),
        (1, DropReason::MtuExceeded),
    ] {
        let drops = rig.last_drops(guest);
        assert_eq!(drops.len(), 1);
        assert_eq!((drops[0].at, drops[0].reason), (Millis(77), reason));
        assert_eq!(drops[0].in_port, Some(port(0)));
        assert_eq!(drops[0].len_bytes as usize, frame.bytes.len());
        assert_eq!(drops[0].header, frame.bytes[..128]);
    }
}

#[test]
fn a_frame_refused_before_it_was_read_shows_no_bytes_of_another() {
    let mut rig = Rig::new(&[NicOptions::bench(), NicOptions::bench()]);
    let mut runner = rig.runner_with(Script::new(|_, _| Err(DropReason::NoDestination)));
    through(&mut rig, &mut runner, &FrameBuilder::udp4(100).build());
    through(&mut rig, &mut runner, &Frame::plain([1; 9]));
    let last = rig.last_drops(0).pop().unwrap();
    assert_eq!(last.reason, DropReason::FrameTooShort);
    assert_eq!((last.len_bytes, last.header), (0, vec![]));
}
