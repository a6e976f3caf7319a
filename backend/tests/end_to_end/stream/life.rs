//! A stream port's life: peers that come and go, ports and daemons that come and go.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use guest_sim::bench::cores::threads_cpu_time;
use guest_sim::frame::verify;

use super::frames::introduce;
use super::peer::{Peer, StreamSwitch};
use crate::rig::{arrival, guest_options, numbered, until};

#[test]
fn a_port_says_how_it_fares_and_takes_one_peer_at_a_time() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "")], &[]);
    let shown = all.switch.show("s2");
    assert_eq!(shown["type"], "stream");
    assert_eq!(shown["state"], "listening", "{shown}");
    assert!(
        shown["reason"]
            .as_str()
            .unwrap()
            .contains("waiting for a peer")
    );
    let mut guest = all.switch.guest("vm1", guest_options());
    // Nobody is there to take it.
    guest.send(&numbered(0, 1, 2)).unwrap();
    until("the drop to be counted", || {
        (all.switch.drops("s2", "peer_not_connected") == 1).then_some(())
    });
    let mut peer = all.peer("s2");
    assert!(all.switch.show("s2")["reason"].is_null());
    introduce(&all, (2, &mut peer), (1, &mut guest));
    let mut second = all.connect("s2");
    second.await_end();
    until("the second to be counted", || {
        let device = &all.switch.show("s2")["device"];
        (device["connections"]["rejected"] == 1).then_some(())
    });
    introduce(&all, (2, &mut peer), (1, &mut guest));
    drop(peer);
    all.await_state("s2", "listening");
    let shown = all.switch.show("s2");
    assert!(
        shown["reason"]
            .as_str()
            .unwrap()
            .contains("the peer closed"),
        "{shown}"
    );
    // Whoever was behind the peer may be gone.
    assert_eq!(all.switch.learned(crate::rig::mac(2)), None);
    all.switch.finish();
}

#[test]
fn a_hundred_peers_come_and_go_each_with_traffic() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    for cycle in 0..100u64 {
        let mut peer = all.connect("s2");
        peer.send(&numbered(3, 2, 1));
        verify::same(&numbered(3, 2, 1), &arrival(&mut guest)).unwrap();
        guest.send(&numbered(4, 1, 2)).unwrap();
        peer.verify_arrival(&numbered(4, 1, 2));
        if cycle % 2 == 0 {
            // In the middle of a frame, which the next peer must not be given the rest of.
            peer.write(&[0, 0, 1, 0, 5, 5]);
        }
    }
    until("the last to be gone", || {
        let device = &all.switch.show("s2")["device"];
        (device["connections"]["disconnects"] == 100).then_some(())
    });
    assert_eq!(all.switch.show("s2")["device"]["protocol_errors"], 0);
    all.switch.finish();
}

#[test]
fn in_client_mode_the_switch_connects_again_and_again() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "mode=client")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    assert_eq!(all.switch.show("s2")["state"], "connecting");
    for _ in 0..2 {
        let listener = UnixListener::bind(all.socket("s2")).unwrap();
        for _ in 0..3 {
            let mut peer = Peer::new(listener.accept().unwrap().0);
            introduce(&all, (2, &mut peer), (1, &mut guest));
        }
        drop(listener);
        std::fs::remove_file(all.socket("s2")).unwrap();
    }
    all.switch.finish();
}

#[test]
fn ports_come_and_go_at_run_time() {
    let all = StreamSwitch::new(&["vm1"], &[], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let socket = all.socket("s2");
    let port = format!("name=s2,type=stream,socket={},mtu=9000", socket.display());
    for _ in 0..5 {
        all.switch.command(&["port", "add", &port]);
        let mut peer = all.peer("s2");
        introduce(&all, (2, &mut peer), (1, &mut guest));
        // It goes under a peer that sends and does not read.
        let flood = Peer::framed(&numbered(1, 2, 2)).repeat(200);
        let mut sender = Peer::new(peer.socket.try_clone().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use std::io::Write;
                while sender.socket.write_all(&flood).is_ok() {}
            });
            all.switch.command(&["port", "remove", "s2"]);
        });
        peer.await_end();
        assert!(!socket.exists(), "its socket stays");
    }
    let taken = format!(
        "name=s3,type=stream,socket={}",
        all.switch.daemon.socket("vm1").display()
    );
    let refused = all.switch.daemon.command(&["port", "add", &taken]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("socket"), "{refused}");
    all.switch.finish();
}

#[test]
fn a_switch_that_was_killed_takes_its_socket_back_and_the_peer_connects_anew() {
    let mut all = StreamSwitch::new(&["vm1"], &[("s2", "")], &[]);
    let mut peer = all.peer("s2");
    all.switch.daemon.kill().unwrap();
    peer.await_end();
    let left = std::fs::symlink_metadata(all.socket("s2")).unwrap();
    assert!(left.file_type().is_socket(), "what a killed switch leaves");
    UnixStream::connect(all.socket("s2")).unwrap_err();
    all.switch.daemon.restart().unwrap();
    all.switch.await_ready();
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut peer = all.peer("s2");
    introduce(&all, (2, &mut peer), (1, &mut guest));
    all.switch.finish();
}

#[test]
fn a_silent_peer_costs_nothing_and_its_next_frame_wakes_the_switch() {
    const INTERVAL: Duration = Duration::from_secs(3);
    let all = StreamSwitch::new(&["vm1"], &[("s2", ""), ("s3", "")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let (mut peer, mut silent) = (all.peer("s2"), all.peer("s3"));
    introduce(&all, (2, &mut peer), (1, &mut guest));
    // Half a frame is nothing to be awake for.
    silent.write(&[0, 0, 1]);
    let pid = all.switch.daemon.pid();
    let cpu_time = || {
        let threads = threads_cpu_time(pid).unwrap();
        threads.iter().map(|(_, time)| *time).sum::<Duration>()
    };
    let before = cpu_time();
    std::thread::sleep(INTERVAL);
    let used = cpu_time() - before;
    assert!(
        used < INTERVAL / 100,
        "{used:?} of CPU time in {INTERVAL:?}"
    );
    for number in 0..500u16 {
        peer.send(&numbered(number, 2, 1));
        verify::same(&numbered(number, 2, 1), &arrival(&mut guest)).unwrap();
        guest.send(&numbered(number, 1, 2)).unwrap();
        peer.verify_arrival(&numbered(number, 1, 2));
        std::thread::sleep(Duration::from_micros(u64::from(number) % 120));
    }
    all.switch.finish();
}

#[test]
fn an_upgrade_hands_connections_over_in_the_middle_of_a_frame() {
    let mut all = StreamSwitch::new(&["vm1"], &[("s2", ""), ("s3", "")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let (mut peer, third) = (all.peer("s2"), all.peer("s3"));
    introduce(&all, (2, &mut peer), (1, &mut guest));
    for round in 0..6u16 {
        let frame = numbered(round, 2, 1);
        let framed = Peer::framed(&frame);
        let (first, rest) = framed.split_at(usize::from(round) * 17);
        peer.write(first);
        all.switch.upgrade(&[]);
        peer.write(rest);
        verify::same(&frame, &arrival(&mut guest)).unwrap();
        guest.send(&numbered(round, 1, 2)).unwrap();
        peer.verify_arrival(&numbered(round, 1, 2));
        let device = all.switch.show("s2")["device"].clone();
        assert_eq!(device["connections"]["connects"], 1, "{device}");
        assert_eq!(device["connections"]["disconnects"], 0, "{device}");
    }
    // The new process listens, too.
    drop(third);
    all.await_state("s3", "listening");
    let mut again = all.peer("s3");
    introduce(&all, (3, &mut again), (1, &mut guest));
    let frames = all.switch.counters("s2")["guest_tx_frames"].as_u64();
    assert_eq!(frames, Some(1 + 6), "counters go on");
    all.switch.finish();
}
