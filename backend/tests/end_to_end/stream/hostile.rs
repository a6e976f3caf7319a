//! Peers that do not keep to the framing, do not read, or do not stop: they lose their own connection or frames, and nobody else notices.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest_sim::frame::{FrameBuilder, verify};

use super::frames::{from, introduce};
use super::peer::{Peer, StreamSwitch};
use crate::rig::{Bystanders, WITHIN, guest_options, mac, named, numbered, until};

#[test]
fn a_length_that_no_frame_has_ends_the_connection_and_a_new_one_is_taken() {
    let all = StreamSwitch::new(&["vm1", "vm7", "vm8"], &[("s2", "")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut bystanders = Bystanders::on(&all.switch);
    let lengths = [
        0,
        69_633,
        1 << 24,
        u32::MAX - 3,
        u32::MAX,
        u32::from_be_bytes(*b"GET "),
    ];
    bystanders.during(|| {
        for (count, length) in (1u64..).zip(lengths) {
            named(&length, || {
                let mut peer = all.peer("s2");
                introduce(&all, (2, &mut peer), (1, &mut guest));
                peer.write(&length.to_be_bytes());
                // What follows is not looked at; the switch may have gone already.
                let _ = peer.socket.write_all(&[0; 100]);
                peer.await_end();
                all.await_state("s2", "listening");
                let shown = all.switch.show("s2");
                let reason = shown["reason"].as_str().unwrap();
                assert!(
                    reason.contains(&format!("a frame of {length} bytes")),
                    "{reason}"
                );
                assert_eq!(shown["device"]["protocol_errors"], count, "{shown}");
            });
        }
        let mut peer = all.peer("s2");
        introduce(&all, (2, &mut peer), (1, &mut guest));
    });
    all.switch.finish();
}

#[test]
fn a_peer_that_does_not_read_loses_frames_and_nobody_else_does() {
    let all = StreamSwitch::new(&["vm1", "vm7", "vm8"], &[("s2", "")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut bystanders = Bystanders::on(&all.switch);
    let mut peer = all.peer("s2");
    introduce(&all, (2, &mut peer), (1, &mut guest));
    let mut sent = 0u16;
    bystanders.during(|| {
        while all.switch.drops("s2", "peer_not_reading") < 100 {
            for _ in 0..200 {
                guest.send(&numbered(sent, 1, 2)).unwrap();
                sent += 1;
            }
        }
    });
    let waiting = all.switch.show("s2")["device"]["unsent_bytes"]
        .as_u64()
        .unwrap();
    assert!((1..=256 * 1024).contains(&waiting), "{waiting}");
    // What it gets once it reads are whole frames in order: all but those that were dropped.
    let delivered = u64::from(sent) - all.switch.drops("s2", "peer_not_reading");
    let mut last = None;
    for _ in 0..delivered {
        let frame = from(1, || peer.receive());
        let number = u16::from_be_bytes([frame.bytes[34], frame.bytes[35]]);
        verify::same(&numbered(number, 1, 2), &frame).unwrap();
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
    }
    peer.verify_quiet();
    introduce(&all, (2, &mut peer), (1, &mut guest));
    assert_eq!(all.switch.show("s2")["device"]["unsent_bytes"], 0);
    all.switch.finish();
}

#[test]
fn frames_that_wait_for_a_peer_that_goes_are_dropped_and_counted() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut peer = all.peer("s2");
    introduce(&all, (2, &mut peer), (1, &mut guest));
    let to_peer = || {
        let frames = &all.switch.counters("s2")["guest_rx_frames"];
        frames.as_u64().unwrap()
    };
    let unread = || all.switch.drops("s2", "peer_not_reading");
    let introduced = to_peer();
    let mut sent = 0;
    while unread() == 0 {
        assert!(sent < 20_000, "nothing is dropped");
        guest.send(&numbered(sent, 1, 2)).unwrap();
        sent += 1;
    }
    guest.pair(0).guest_tx.drain(WITHIN).unwrap();
    assert_eq!(all.switch.drops("s2", "peer_not_connected"), 0);
    let taken = to_peer();
    drop(peer);
    until("the connection's end to be seen", || {
        (all.switch.show("s2")["state"] == "listening").then_some(())
    });
    let lost = all.switch.drops("s2", "peer_not_connected");
    assert!(lost > 0);
    assert_eq!(to_peer(), taken, "nothing of it was delivered");
    assert_eq!(
        to_peer() - introduced + unread() + lost,
        u64::from(sent),
        "each frame is delivered or dropped, once"
    );
    all.switch.finish();
}

#[test]
fn a_slow_reader_gets_every_frame_whole_whatever_its_socket_takes() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "")], &["--workers", "2"]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut peer = all.peer("s2");
    introduce(&all, (2, &mut peer), (1, &mut guest));
    let frame = FrameBuilder::tcp4(60_000)
        .macs(mac(1), mac(2))
        .ports(5, 6)
        .segment(1448)
        .build();
    let mut reader = Peer::new(peer.socket.try_clone().unwrap());
    std::thread::scope(|scope| {
        let read = scope.spawn(move || {
            let (mut frames, started) = (0u32, Instant::now());
            while started.elapsed() < Duration::from_secs(2) {
                let frame = reader.receive();
                assert!(
                    (54..=1514).contains(&frame.bytes.len()),
                    "{}",
                    frame.bytes.len()
                );
                verify::check(&frame).unwrap();
                frames += 1;
                if frames.is_multiple_of(300) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            reader.socket.shutdown(std::net::Shutdown::Both).unwrap();
            frames
        });
        while !read.is_finished() {
            guest.send(&frame).unwrap();
        }
        assert!(read.join().unwrap() > 1000);
    });
    until("the connection's end to be seen", || {
        (all.switch.show("s2")["state"] == "listening").then_some(())
    });
    assert!(all.switch.drops("s2", "peer_not_reading") > 0);
    all.switch.finish();
}

#[test]
fn floods_half_frames_trickles_and_reconnect_storms_harm_nobody() {
    let streams = [("flood", ""), ("half", ""), ("trickle", ""), ("storm", "")];
    let all = StreamSwitch::new(&["vm7", "vm8"], &streams, &[]);
    let mut bystanders = Bystanders::on(&all.switch);
    let (mut flood, mut half, mut trickle) =
        (all.peer("flood"), all.peer("half"), all.peer("trickle"));
    // Known, or what is for it would be flooded and fill the bystanders' rings.
    half.send(&numbered(0, 4, 4));
    until("the station to be learned", || all.switch.learned(mac(4)));
    let storm = all.socket("storm");
    let until_then = Instant::now() + Duration::from_secs(3);
    let goes_on = move || Instant::now() < until_then;
    bystanders.during(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // To itself, to a peer that does not read, and runts.
                let burst: Vec<u8> = (0..500)
                    .flat_map(|number| Peer::framed(&numbered(number, 3, 3 + (number % 2) as u8)))
                    .collect();
                let burst = [burst, [0, 0, 0, 1, 9].repeat(100)].concat();
                while goes_on() {
                    flood.write(&burst);
                }
            });
            scope.spawn(|| {
                half.write(&69_632u32.to_be_bytes());
                half.write(&[7; 69_000]);
                while goes_on() {
                    std::thread::sleep(Duration::from_millis(50));
                    half.write(&[7]);
                }
            });
            scope.spawn(|| {
                for byte in Peer::framed(&numbered(5, 5, 5))
                    .iter()
                    .cycle()
                    .take_while(|_| goes_on())
                {
                    trickle.write(&[*byte]);
                }
            });
            scope.spawn(|| {
                while goes_on() {
                    // The backlog may be full.
                    if let Ok(mut socket) = UnixStream::connect(&storm) {
                        let _ = socket.write_all(&u32::MAX.to_be_bytes());
                    }
                }
            });
        });
    });
    let storm = all.switch.show("storm")["device"].clone();
    let connects = storm["connections"]["connects"].as_u64().unwrap();
    assert!((1..3000).contains(&connects), "{storm}");
    assert!(all.switch.drops("half", "peer_not_reading") > 0);
    assert!(all.switch.drops("flood", "frame_too_short") > 0);
    // All of them still work.
    for name in ["flood", "half", "trickle", "storm"] {
        until("the port to answer", || {
            matches!(
                all.switch.show(name)["state"].as_str(),
                Some("up" | "listening")
            )
            .then_some(())
        });
    }
    all.await_state("storm", "listening");
    all.peer("storm");
    all.switch.finish();
}
