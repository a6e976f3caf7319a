//! VLANs between real ports: who gets a frame, how it is tagged there, and whether its checksum and segments are still right.

use guest_sim::frame::FrameBuilder;
use guest_sim::frame::build::{BROADCAST, TPID_8021AD, TPID_8021Q};
use guest_sim::{Features, Nic, NicOptions};

use crate::rig::{Switch, WITHIN, guest_options, mac, named, verify_arrival, verify_quiet};

/// With tags to be put before each.
fn kinds() -> Vec<FrameBuilder> {
    let kinds = [
        FrameBuilder::raw(0x88b5, 46),
        FrameBuilder::udp4(200),
        FrameBuilder::tcp4(1000).checksum_offload(),
        FrameBuilder::udp6(177).checksum_offload(),
        FrameBuilder::tcp4(30_000).segment(1448),
        FrameBuilder::tcp6(30_000).segment(1400).ecn(),
        FrameBuilder::tcp4(220).timestamps().segment(50),
        FrameBuilder::udp4(9000).segment(1400),
    ];
    kinds.map(|kind| kind.macs(mac(1), mac(2))).to_vec()
}

fn tagged(builder: &FrameBuilder, tags: &[(u16, u16)]) -> guest_sim::Frame {
    let builder = tags.iter().fold(builder.clone(), |builder, &(tpid, tci)| {
        builder.tag(tpid, tci)
    });
    builder.build()
}

/// A guest that does every offload, and one that does none.
fn receivers() -> [NicOptions; 2] {
    let plain = Features::LINUX - Features::OFFLOADS;
    [
        guest_options(),
        NicOptions {
            features: plain,
            ..guest_options()
        },
    ]
}

/// What goes in at a port of one configuration comes out at a port of another with these tags.
fn crosses(from_vlan: &str, to_vlan: &str, tags: &[(u16, u16)], expected: &[(u16, u16)]) {
    let switch = Switch::with(&[("vm1", from_vlan), ("vm2", to_vlan)]);
    let mut from = switch.guest("vm1", guest_options());
    for options in receivers() {
        let mut to = switch.guest("vm2", options);
        for kind in kinds() {
            named(&(&kind, tags, to.acked()), || {
                from.send(&tagged(&kind, tags)).unwrap();
                verify_arrival(&tagged(&kind, expected), &mut to);
            });
        }
        verify_quiet(&mut [&mut from, &mut to]);
    }
    switch.finish();
}

/// Nothing with these tags gets from the one port to the other, and the sender's port counts why.
fn stops(from_vlan: &str, to_vlan: &str, tags: &[(u16, u16)], reason: &str) {
    let switch = Switch::with(&[("vm1", from_vlan), ("vm2", to_vlan)]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    let mut sent = 0;
    for kind in kinds() {
        for destination in [mac(2), BROADCAST] {
            let kind = kind.clone().macs(mac(1), destination);
            from.send(&tagged(&kind, tags)).unwrap();
            sent += 1;
        }
    }
    verify_quiet(&mut [&mut from, &mut to]);
    assert_eq!(switch.all_drops("vm1"), [(reason.to_owned(), sent)]);
    assert_eq!(switch.all_drops("vm2"), []);
    switch.finish();
}

const TAG_10: (u16, u16) = (TPID_8021Q, 10);
const TAG_20: (u16, u16) = (TPID_8021Q, 20);
/// VLAN 0 with priority 5.
const PRIORITY: (u16, u16) = (TPID_8021Q, 5 << 13);
const SERVICE_10: (u16, u16) = (TPID_8021AD, 10);

#[test]
fn access_ports_of_one_vlan_reach_each_other_untagged() {
    crosses("vlan=10", "vlan=10", &[], &[]);
}

#[test]
fn an_untagged_frame_leaves_a_trunk_tagged_with_its_checksum_place_moved() {
    crosses("vlan=10", "vlan=trunk:10+20", &[], &[TAG_10]);
}

#[test]
fn a_tagged_frame_leaves_an_access_port_untagged_with_its_checksum_place_moved() {
    crosses("vlan=trunk:10+20", "vlan=20", &[TAG_20], &[]);
}

#[test]
fn a_trunk_passes_tagged_frames_to_a_trunk_as_they_are() {
    let tag = (TPID_8021Q, 3 << 13 | 20);
    crosses("vlan=trunk:10+20", "vlan=trunk:20+30", &[tag], &[tag]);
}

#[test]
fn native_frames_pass_untagged_from_trunk_to_trunk() {
    crosses("vlan=trunk:10,native=1", "vlan=trunk:20,native=1", &[], &[]);
}

#[test]
fn native_frames_are_tagged_where_their_vlan_is_not_native() {
    crosses("vlan=trunk:20,native=10", "vlan=trunk:10", &[], &[TAG_10]);
}

#[test]
fn frames_tagged_with_the_other_ends_native_vlan_leave_untagged() {
    crosses("vlan=trunk:10", "vlan=trunk:20,native=10", &[TAG_10], &[]);
}

#[test]
fn a_priority_tag_on_an_access_port_is_taken_off_at_an_access_port() {
    crosses("vlan=10", "vlan=10", &[PRIORITY], &[]);
}

#[test]
fn a_priority_tag_becomes_the_vlans_tag_on_a_trunk_and_keeps_its_priority() {
    let tag = (TPID_8021Q, 5 << 13 | 10);
    crosses("vlan=10", "vlan=trunk:10", &[PRIORITY], &[tag]);
}

#[test]
fn stacked_tags_pass_from_trunk_to_trunk_as_they_are() {
    let tags = [SERVICE_10, (TPID_8021Q, 77)];
    crosses("vlan=trunk:10", "vlan=trunk:10", &tags, &tags);
}

#[test]
fn ports_without_vlans_pass_every_tag_as_payload() {
    for tags in [&[][..], &[TAG_10], &[PRIORITY], &[SERVICE_10, TAG_20]] {
        crosses("", "", tags, tags);
    }
}

#[test]
fn access_ports_of_different_vlans_are_apart() {
    stops("vlan=10", "vlan=20", &[], "no_destination");
}

#[test]
fn a_port_without_a_vlan_and_one_with_are_apart() {
    stops("", "vlan=10", &[], "no_destination");
    stops("", "vlan=10", &[TAG_10], "no_destination");
    stops("vlan=10", "", &[], "no_destination");
}

#[test]
fn tagged_frames_do_not_enter_an_access_port_not_even_with_its_own_vlan() {
    stops("vlan=10", "vlan=10", &[TAG_10], "vlan_tag_on_access_port");
    stops("vlan=10", "vlan=20", &[TAG_20], "vlan_tag_on_access_port");
}

#[test]
fn vlans_a_trunk_does_not_allow_do_not_enter() {
    stops("vlan=trunk:10", "vlan=20", &[TAG_20], "vlan_not_allowed");
}

#[test]
fn untagged_frames_do_not_enter_a_trunk_without_a_native_vlan() {
    stops("vlan=trunk:10", "vlan=10", &[], "no_native_vlan");
}

#[test]
fn a_stacked_tag_does_not_hop_into_another_vlan() {
    let hop = [PRIORITY, TAG_20];
    stops("vlan=10", "vlan=trunk:10+20", &hop, "inner_tag_exposed");
    stops(
        "vlan=trunk:20,native=10",
        "vlan=trunk:20,native=10",
        &hop,
        "inner_tag_exposed",
    );
}

#[test]
fn vlan_4095_enters_nowhere() {
    let tag = [(TPID_8021Q, 4095)];
    stops(
        "vlan=trunk:10,native=1",
        "vlan=trunk:10,native=1",
        &tag,
        "vlan_reserved",
    );
}

#[test]
fn one_flood_reaches_each_member_in_its_own_form_and_nobody_else() {
    let switch = Switch::with(&[
        ("vm1", "vlan=10"),
        ("vm2", "vlan=10"),
        ("vm3", "vlan=trunk:10+20"),
        ("vm4", "vlan=trunk:20,native=10"),
        ("vm5", "vlan=20"),
        ("vm6", ""),
        ("vm7", "vlan=trunk:20"),
    ]);
    let mut from = switch.guest("vm1", guest_options());
    let mut nics: Vec<Nic> = ["vm2", "vm3", "vm4", "vm5", "vm6", "vm7"]
        .map(|port| switch.guest(port, guest_options()))
        .into();
    for kind in kinds() {
        let kind = kind.macs(mac(1), BROADCAST);
        from.send(&kind.build()).unwrap();
        for (nic, tags) in nics.iter_mut().zip([&[][..], &[TAG_10], &[]]) {
            verify_arrival(&tagged(&kind, tags), nic);
        }
    }
    from.pair(0).guest_tx.drain(WITHIN).unwrap();
    verify_quiet(&mut nics.iter_mut().collect::<Vec<_>>());
    switch.finish();
}

#[test]
fn one_station_may_be_behind_different_ports_in_different_vlans() {
    let switch = Switch::with(&[
        ("vm1", "vlan=trunk:10+20"),
        ("vm2", "vlan=10"),
        ("vm3", "vlan=20"),
    ]);
    let mut trunk = switch.guest("vm1", guest_options());
    let mut ten = switch.guest("vm2", guest_options());
    let mut twenty = switch.guest("vm3", guest_options());
    // The same address on both sides.
    let hello = FrameBuilder::udp4(50).macs(mac(2), mac(1));
    for (nic, tag) in [(&mut ten, TAG_10), (&mut twenty, TAG_20)] {
        nic.send(&hello.build()).unwrap();
        verify_arrival(&tagged(&hello, &[tag]), &mut trunk);
    }
    for kind in kinds() {
        trunk.send(&tagged(&kind, &[TAG_10])).unwrap();
        verify_arrival(&kind.build(), &mut ten);
        trunk.send(&tagged(&kind, &[TAG_20])).unwrap();
        verify_arrival(&kind.build(), &mut twenty);
    }
    verify_quiet(&mut [&mut trunk, &mut ten, &mut twenty]);
    switch.finish();
}
