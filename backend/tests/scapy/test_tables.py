"""Tables as frames see them: changes, batches, counters, timeouts, and what operators are told."""

import json
import os
import threading

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from frames import mac, rebuilt, udp, whole
from rig import Admin, Refused, Switch

#: Two tables, one after the other, so that a batch can change both; the second counts and has timeouts.
PROGRAM = {
    "name": "two",
    "metadata": [{"name": "class", "bits": 8}],
    "actions": [
        {"name": "classify", "params": [{"name": "class", "bits": 8}], "do": [{"set": {"field": "meta.class", "to": "$class"}}]},
        {
            "name": "send",
            "params": [{"name": "port", "bits": 16, "format": "port"}, {"name": "dscp", "bits": 6}],
            "do": [{"set": {"field": "ipv4.dscp", "to": "$dscp"}}, {"output": {"port": "$port"}}],
        },
        {"name": "refuse", "do": [{"drop": {"reason": "denied_by_program"}}]},
    ],
    "tables": [
        {
            "name": "classes",
            "key": [
                {"field": "ipv4.dst", "match": "ternary", "name": "dst"},
                {"field": "udp.dst_port", "match": "range", "name": "port"},
            ],
            "actions": ["classify"],
            "size": 100,
        },
        {
            "name": "ways",
            "key": [{"field": "meta.class", "match": "exact", "name": "class"}],
            "actions": ["send", "refuse"],
            "default_action": {"action": "refuse"},
            "size": 4,
            "counters": True,
            "timeouts": True,
        },
    ],
    "ingress": [{"apply": {"table": "classes"}}, {"apply": {"table": "ways"}}],
}


def lab(binary, **options):
    return Switch(binary, ["vm1", "vm2", "vm3"], PROGRAM, **options)


FRAME = udp((1, 2), "10.0.0.1", "10.0.0.2", (1000, 80))


def way(number, port, dscp=0, **more):
    return {"table": "ways", "key": {"class": number}, "action": "send", "params": {"port": port, "dscp": dscp}, **more}


def classes(number, priority, key):
    return {"table": "classes", "key": key, "priority": priority, "action": "classify", "params": {"class": number}}


def marked(dscp):
    frame = whole(FRAME)
    frame[IP].tos = dscp << 2
    del frame[IP].chksum
    return whole(frame)


def test_entries_are_added_changed_and_deleted(binary):
    with lab(binary) as switch:
        switch.dropped("vm1", FRAME, "denied_by_program")
        switch.cli("table", "default", "ways", "send", "port=vm3,dscp=1")
        switch.passes("vm1", FRAME, "vm3", marked(1))
        switch.cli("table", "add", "classes", "dst=10.0.0.0/24,port=70..90", "--priority", "5", "--action", "classify", "class=1")
        switch.cli("table", "add", "ways", "class=1", "--action", "send", "port=vm2,dscp=2")
        switch.passes("vm1", FRAME, "vm2", marked(2))
        switch.cli("table", "modify", "ways", "class=1", "--action", "send", "port=vm3,dscp=3")
        switch.passes("vm1", FRAME, "vm3", marked(3))
        switch.cli("table", "add", "classes", "port=80", "--priority", "6", "--action", "classify", "class=2")
        switch.passes("vm1", FRAME, "vm3", marked(1))
        switch.cli("table", "put", "ways", "class=2", "--action", "refuse")
        switch.dropped("vm1", FRAME, "denied_by_program")
        switch.cli("table", "delete", "classes", "port=80", "--priority", "6")
        switch.passes("vm1", FRAME, "vm3", marked(3))
        switch.cli("table", "clear", "ways")
        switch.passes("vm1", FRAME, "vm3", marked(1))
        switch.cli("table", "default", "ways")
        switch.dropped("vm1", FRAME, "denied_by_program")
        for refused in (
            ("modify", "ways", "class=1", "--action", "refuse"),
            ("add", "ways", "class=300", "--action", "refuse"),
            ("add", "ways", "class=1", "--action", "classify", "class=1"),
            ("add", "nowhere", "class=1", "--action", "refuse"),
        ):
            switch.cli("table", *refused, status=1)


def test_no_frame_sees_half_of_a_batch(binary):
    with lab(binary) as switch:
        # A class and its way change places with each batch: a frame that saw one table of before and one of after would be dropped.
        switch.batch({"insert": classes(1, 1, {})}, {"insert": way(1, "vm2", 1)})
        stop, failures = threading.Event(), []

        def change():
            admin, now, after = Admin(switch.path), 1, 2
            try:
                while not stop.is_set():
                    admin.batch(
                        {"delete": {"table": "ways", "key": {"class": now}}},
                        {"insert": way(after, "vm2", after)},
                        {"modify": classes(after, 1, {})},
                    )
                    now, after = after, now
            except Exception as failure:
                failures.append(failure)

        changing = threading.Thread(target=change)
        changing.start()
        came = {1: 0, 2: 0}
        try:
            for _ in range(300):
                switch.send("vm1", FRAME)
                frame = switch.receive("vm2")
                dscp = frame[IP].tos >> 2
                assert bytes(frame) == bytes(marked(dscp)), f"{frame!r}"
                came[dscp] += 1
        finally:
            stop.set()
            changing.join()
        assert not failures and all(came.values()), f"{failures} {came}"
        assert not switch.drops("vm1"), f"{switch.drops('vm1')}"


def test_a_batch_that_is_refused_changes_nothing(binary):
    with lab(binary) as switch:
        switch.batch({"insert": classes(1, 1, {})}, {"insert": way(1, "vm2", 1)})
        for wrong, status in (
            ({"insert": way(1, "vm3", 1)}, 409),
            ({"modify": way(3, "vm3", 1)}, 404),
            ({"insert": way(3, "vm3", 64)}, 422),
        ):
            try:
                switch.batch({"modify": way(1, "vm3", 9)}, {"insert": way(4, "vm3")}, wrong)
                raise AssertionError(f"{wrong} was taken")
            except Refused as refused:
                assert refused.problem["update"] == 2, f"{refused}"
                assert refused.status in (status, 409, 422), f"{refused}"
            switch.passes("vm1", FRAME, "vm2", marked(1))
        # A table's size is a limit.
        switch.batch(*({"insert": way(number, "vm3")} for number in (2, 3, 4)))
        try:
            switch.batch({"modify": way(1, "vm3", 9)}, {"insert": way(5, "vm3")})
            raise AssertionError("the table is larger than its size")
        except Refused as refused:
            assert refused.status == 409, f"{refused}"
        switch.passes("vm1", FRAME, "vm2", marked(1))


def test_entries_count_and_leave_when_idle(binary):
    with lab(binary) as switch:
        switch.batch({"insert": classes(1, 1, {})}, {"insert": way(1, "vm2", 1, idle_timeout_ms=1500)}, {"insert": way(2, "vm3", hard_timeout_ms=1)})
        for _ in range(5):
            switch.passes("vm1", FRAME, "vm2", marked(1))

        def entries():
            return {str(entry["key"]["class"]): entry for entry in switch.ask("GET", "/v1/tables/ways/entries")["entries"]}

        entry = switch.await_that("frames were counted", lambda: entries().get("1", {"frames": 5}).get("frames", 0) >= 5 and entries())
        if "1" in entry:
            assert (entry["1"]["frames"], entry["1"]["bytes"]) == (5, 5 * len(FRAME)), f"{entry}"
        switch.await_that("both entries left", lambda: not entries())
        switch.dropped("vm1", FRAME, "denied_by_program")


def test_a_tenant_has_a_quota(binary):
    with lab(binary, config="[tenant.red]\nmax_entries = 2\n") as switch:
        switch.batch({"insert": way(1, "vm2", tenant="red")}, {"insert": way(2, "vm2", tenant="red")})
        for tenant, taken in (("red", False), ("blue", True)):
            try:
                switch.batch({"insert": way(3, "vm2", tenant=tenant)})
                assert taken
            except Refused as refused:
                assert not taken and refused.status == 409, f"{refused}"


def test_what_if_says_what_would_be_and_changes_nothing(binary):
    with lab(binary) as switch:
        switch.batch({"insert": classes(1, 1, {})})
        wanted = [{"insert": way(1, "vm2", 8)}]
        outcome = switch.explain("vm1", FRAME, wanted)["outcome"]
        assert [copy["to"] for copy in outcome["copies"]] == ["vm2"], f"{outcome}"
        assert bytes.fromhex(outcome["copies"][0]["header"]) == bytes(marked(8)), f"{outcome}"
        switch.dropped("vm1", FRAME, "denied_by_program")
        path = os.path.join(switch.folder.name, "batch.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"updates": wanted}, file)
        assert "vm2" in switch.cli("explain", "--port", "vm1", "--frame", bytes(FRAME).hex(), "--what-if", path)
        switch.cli("table", "batch", path)
        switch.passes("vm1", FRAME, "vm2", marked(8))


def test_frames_are_explained_from_hex_a_capture_and_words(binary):
    with lab(binary) as switch:
        switch.batch({"insert": classes(1, 1, {"port": "80"})}, {"insert": way(1, "vm2", 8)})
        path = os.path.join(switch.folder.name, "frames.pcap")
        other = udp((1, 2), "10.0.0.1", "10.0.0.2", (1000, 81))
        wrpcap(path, [FRAME, other])
        said = switch.cli("explain", "--port", "vm1", "--pcap", path)
        assert "vm2" in said and "denied_by_program" in said, said
        words = f"udp 10.0.0.1:1000 > 10.0.0.2:80 mac {mac(1)} > {mac(2)}"
        trace = switch.ask("POST", "/v1/explain", {"port": "vm1", "flow": words})["traces"][0]
        assert [copy["to"] for copy in trace["outcome"]["copies"]] == ["vm2"], f"{trace}"
        made = Ether(bytes.fromhex(trace["frame"]))
        assert (made.src, made.dst, made[IP].src, made[IP].dst) == (mac(1), mac(2), "10.0.0.1", "10.0.0.2")
        assert bytes(made) == bytes(rebuilt(made)), f"{made!r}"
        assert "classes" in switch.cli("explain", "--port", "vm1", words)


def test_the_latest_drops_are_told_newest_first(binary):
    with lab(binary) as switch:
        for port in range(3):
            switch.dropped("vm1", udp((1, 2), "10.0.0.1", "10.0.0.2", (port, 9)), "denied_by_program")
        drops = switch.ask("GET", "/v1/ports/vm1/last-drops")["drops"]
        ports = [Ether(bytes.fromhex(drop["header"])).sport for drop in drops]
        assert ports == [2, 1, 0], f"{drops}"
        said = switch.cli("port", "show", "vm1", "--last-drops")
        assert "denied_by_program" in said and "ringswitch explain" in said, said


def test_entries_outlive_a_daemon_that_is_killed(binary):
    with lab(binary, state=True) as switch:
        switch.batch({"insert": classes(1, 1, {})}, {"insert": way(1, "vm2", 5)})
        switch.passes("vm1", FRAME, "vm2", marked(5))
        switch.restart()
        switch.passes("vm1", FRAME, "vm2", marked(5))
