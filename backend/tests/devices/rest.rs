//! Requests: idempotent, refused with the field, listed by filter.
use super::fake_qemu::FakeQemu;
use super::rig::{Switch, on_qemu, with};
use serde_json::{Value, json};

#[test]
fn the_same_device_twice_is_one_and_another_under_its_name_is_a_conflict() {
    let switch = Switch::start();
    let qemu = FakeQemu::start(&switch.path("vm7.qmp"));
    let body = on_qemu("a", &qemu.socket);
    let device = switch.add(&body);
    for same in [
        body.clone(),
        with(
            body.clone(),
            json!({ "mac": device["mac"], "socket": device["socket"] }),
        ),
    ] {
        let (status, again) = switch.post(&same);
        assert_eq!((status, &again["mac"]), (200, &device["mac"]));
    }
    for (other, field) in [
        (with(body.clone(), json!({ "mtu": 1400 })), "name"),
        (
            with(on_qemu("b", &qemu.socket), json!({ "mac": device["mac"] })),
            "mac",
        ),
        (
            with(
                on_qemu("b", &qemu.socket),
                json!({ "socket": device["socket"] }),
            ),
            "socket",
        ),
    ] {
        let (status, problem) = switch.post(&other);
        assert_eq!(
            (status, &problem["field"]),
            (409, &json!(field)),
            "{problem}"
        );
        assert!(problem["remedy"].is_string());
    }
    switch.wait_state("a", "waiting-for-guest");
    assert_eq!(qemu.vm().nics.len(), 1);
}

#[test]
fn a_port_that_is_no_devices_keeps_its_name_and_socket() {
    let switch = Switch::start();
    let socket = switch.path("own.sock");
    let port = json!({ "name": "own", "type": "vhost-user", "socket": socket });
    assert_eq!(
        switch.request("POST", "/v1/ports", &port.to_string()).0,
        201
    );
    let monitor = switch.path("vm7.qmp");
    let (status, problem) = switch.post(&on_qemu("own", &monitor));
    assert_eq!((status, &problem["field"]), (409, &json!("name")));
    let (status, problem) = switch.post(&with(on_qemu("a", &monitor), json!({ "socket": socket })));
    assert_eq!((status, &problem["field"]), (409, &json!("socket")));
    assert_eq!(switch.get("/v1/devices")["devices"], json!([]));
}

#[test]
fn what_cannot_be_is_refused_with_its_field_and_what_to_do() {
    let switch = Switch::start();
    let vm = |hypervisor: &str| json!({ "hypervisor": hypervisor, "socket": "/run/vm.sock" });
    let good = on_qemu("a", &switch.path("vm7.qmp"));
    for (change, field) in [
        (json!({ "model": "ne2k_pci" }), "model"),
        (json!({ "vm": vm("xen") }), "vm.hypervisor"),
        (
            json!({ "vm": vm("cloud-hypervisor"), "packed": true }),
            "packed",
        ),
        (json!({ "mac": "01:00:00:00:00:00" }), "mac"),
        (json!({ "queue_pairs": 65 }), "queue_pairs"),
        (json!({ "colour": "red" }), "colour"),
        (json!({ "mtu": "big" }), "mtu"),
    ] {
        let (status, problem) = switch.post(&with(good.clone(), change.clone()));
        assert_eq!(
            (status, &problem["field"]),
            (422, &json!(field)),
            "{change}: {problem}"
        );
        assert!(problem["remedy"].is_string(), "{problem}");
    }
    for query in ["?timeout_ms=-1", "?timeout_ms=600001"] {
        assert_eq!(switch.delete("a", query).0, 422, "{query}");
    }
    for query in ["?timeout_ms=x", "?colour=red", "?force=maybe"] {
        assert_eq!(switch.delete("a", query).0, 400, "{query}");
    }
    assert_eq!(switch.delete("a", "").0, 404);
    assert_eq!(switch.request("GET", "/v1/devices/a", "").0, 404);
    assert_eq!(switch.request("GET", "/v1/devices?state=fine", "").0, 422);
}

#[test]
fn devices_are_listed_by_vm_state_and_model() {
    let switch = Switch::start();
    let qemu = FakeQemu::start(&switch.path("vm7.qmp"));
    switch.add(&on_qemu("a", &qemu.socket));
    switch.add(&on_qemu("b", &switch.path("vm8.qmp")));
    switch.wait_state("a", "waiting-for-guest");
    let names = |query: &str| -> Vec<Value> {
        let listed = switch.get(&format!("/v1/devices{query}"));
        let devices = listed["devices"].as_array().unwrap().iter();
        devices.map(|device| device["name"].clone()).collect()
    };
    assert_eq!(names(""), ["a", "b"]);
    assert_eq!(names(&format!("?vm={}", qemu.socket.display())), ["a"]);
    assert_eq!(names("?state=pending"), ["b"]);
    assert_eq!(names("?model=virtio-net"), ["a", "b"]);
    assert_eq!(names("?model=e1000"), Vec::<Value>::new());
}

#[test]
fn a_device_is_removed_only_as_the_client_saw_it() {
    let switch = Switch::start();
    let device = on_qemu("a", &switch.path("vm7.qmp"));
    let tag = || {
        let (head, status, _) = switch.exchange("GET", "/v1/devices/a", "", "");
        assert_eq!(status, 200, "{head}");
        let line = head.lines().find(|line| line.starts_with("etag: "));
        line.expect(&head)["etag: ".len()..].to_owned()
    };
    let remove = |tag: &str| {
        let condition = format!("If-Match: {tag}\r\n");
        let (_, status, body) = switch.exchange("DELETE", "/v1/devices/a", &condition, "");
        (status, body["field"].clone())
    };
    switch.add(&device);
    let first = tag();
    assert_eq!(remove("*").0, 204);
    switch.add(&with(device, json!({"mtu": 1400})));
    assert_eq!(remove(&first), (412, json!("If-Match")));
    let second = tag();
    assert_eq!(remove(&second).0, 204);
    assert_eq!(remove(&second).0, 404);
}

#[test]
fn devices_come_in_pages() {
    let switch = Switch::start();
    for name in ["c", "a", "b"] {
        switch.add(&on_qemu(name, &switch.path("vm7.qmp")));
    }
    let page = |query: &str| {
        let page = switch.get(&format!("/v1/devices?{query}"));
        let devices = page["devices"].as_array().unwrap().iter();
        let names: Vec<Value> = devices.map(|device| device["name"].clone()).collect();
        (names, page["next"].clone())
    };
    assert_eq!(page("limit=2"), (vec![json!("a"), json!("b")], json!("b")));
    assert_eq!(page("limit=2&after=b"), (vec![json!("c")], Value::Null));
    assert_eq!(page("after=a").0, ["b", "c"]);
    assert_eq!(switch.request("GET", "/v1/devices?limit=0", "").0, 400);
}

#[test]
fn a_port_that_took_a_devices_name_meanwhile_outlives_the_device() {
    let switch = Switch::start();
    switch.add(&on_qemu("a", &switch.path("vm7.qmp")));
    let port = json!({"name": "a", "type": "vhost-user", "socket": switch.path("another.sock")});
    let (status, added) = switch.request("POST", "/v1/ports", &port.to_string());
    assert_eq!(status, 201, "{added}");
    assert_eq!(switch.delete("a", "").0, 204);
    let (status, left) = switch.request("GET", "/v1/ports/a", "");
    assert_eq!((status, &left["socket"]), (200, &port["socket"]));
}
