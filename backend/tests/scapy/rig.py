"""A running switch whose ports are TAP interfaces, and a station on each, in a network namespace of this process alone.

What a station sends leaves the host by the TAP's kernel interface, which is how it enters the switch; what the switch delivers
comes in by the interface. The kernel itself says nothing there: no addresses, no ARP, no IPv6. The namespace has no name and goes
when this process and the daemon are gone, and the daemon is gone when this process is.
"""

import ctypes
import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time

from scapy.layers.l2 import Ether

from frames import verify

#: Longest wait for anything: far more than it takes, so that a slow machine does not matter.
WITHIN_S = 15

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6
#: struct virtio_net_hdr of the packet socket.
VNET_HEADER = struct.Struct("=BBHHHH")
LIBC = ctypes.CDLL(None, use_errno=True)


def enter_namespace():
    """Moves this process into a network namespace of its own, where the kernel keeps quiet."""
    user, group = os.geteuid(), os.getegid()
    if LIBC.unshare(CLONE_NEWNET | (CLONE_NEWUSER if user else 0)) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    if user:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{file}", "w", encoding="ascii") as mapping:
                mapping.write(text)
    for which in ("all", "default"):
        path = f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6"
        if os.path.exists(path):
            with open(path, "w", encoding="ascii") as setting:
                setting.write("1")


class Refused(AssertionError):
    """The daemon refused what was asked."""

    def __init__(self, status, problem):
        super().__init__(f"{status}: {problem}")
        self.status = status
        self.problem = problem


class _Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=WITHIN_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Station:
    """What is at the other end of a port."""

    def __init__(self, interface):
        # Before the socket is bound, so that it hears nothing of before.
        subprocess.run(
            ["ip", "link", "set", interface, "arp", "off", "multicast", "off", "up"], check=True
        )
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((interface, ETH_P_ALL))

    def send(self, frame, vnet_header=(0, 0, 0, 0, 0, 0)):
        self.socket.send(VNET_HEADER.pack(*vnet_header) + bytes(frame))

    def take(self, within_s=WITHIN_S):
        """The next frame with its virtio-net header, or None."""
        if not select.select([self.socket], [], [], within_s)[0]:
            return None
        data, ancillary, _, _ = self.socket.recvmsg(1 << 17, 256)
        header, frame = VNET_HEADER.unpack_from(data), data[VNET_HEADER.size :]
        for level, kind, aux in ancillary:
            if (level, kind) != (SOL_PACKET, PACKET_AUXDATA):
                continue
            # The kernel takes the outer tag off: struct tpacket_auxdata has it.
            status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", aux[:20])
            if status & TP_STATUS_VLAN_VALID:
                tpid = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                frame = frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
        return header, frame


class Admin:
    """The admin socket. Each thread has one of its own."""

    def __init__(self, path):
        self.path = path
        self.connection = None

    def ask(self, method, path, body=None):
        """The admin socket's answer."""
        encoded = None if body is None else json.dumps(body)
        for attempt in (0, 1):
            if self.connection is None:
                self.connection = _Connection(self.path)
            try:
                self.connection.request(method, path, encoded, {"Content-Type": "application/json"})
                answer = self.connection.getresponse()
                text = answer.read()
                break
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # An idle connection is closed after a while.
                self.connection = None
                if attempt:
                    raise
        value = json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
        if answer.status >= 300:
            raise Refused(answer.status, value)
        return value

    def batch(self, *updates):
        return self.ask("POST", "/v1/tables/batch", {"updates": list(updates)})


class Switch(Admin):
    """A running `ringswitch run`, with a station on each port."""

    def __init__(self, binary, ports, program=None, config="", state=False):
        self.binary = binary
        self.folder = tempfile.TemporaryDirectory(prefix="ringswitch-scapy-")
        super().__init__(os.path.join(self.folder.name, "admin.sock"))
        self.stations = {}
        self.process = None
        if not isinstance(ports, dict):
            ports = {name: "" for name in ports}
        path = os.path.join(self.folder.name, "switch.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(config)
        command = [binary, "run", "--config", path, "--admin", self.path]
        command += ["--ring-state", os.path.join(self.folder.name, "rings")]
        if state:
            command += ["--state-dir", os.path.join(self.folder.name, "state")]
        for name, more in ports.items():
            more = f",{more}" if more else ""
            command += ["--port", f"name={name},type=tap,interface=rs-{name},mtu=9000{more}"]
        if isinstance(program, dict):
            path = os.path.join(self.folder.name, "program.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(program, file)
            program = path
        self.command = command + (["--program", program] if program else [])
        self.log = open(os.path.join(self.folder.name, "log"), "w+", encoding="utf-8")
        try:
            self._start(ports)
        except BaseException:
            self.close()
            raise

    def _start(self, ports):
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        deadline = time.monotonic() + WITHIN_S
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended: {self.said()}")
            try:
                self.ask("GET", "/healthz")
                break
            except (OSError, http.client.HTTPException):
                self.connection = None
                assert time.monotonic() < deadline, f"the daemon does not answer: {self.said()}"
                select.select([], [], [], 0.01)
        for name in ports:
            self.stations[name] = Station(f"rs-{name}")

    def restart(self):
        """Kills the daemon and starts it anew."""
        self.process.kill()
        self.process.wait()
        for station in self.stations.values():
            station.socket.close()
        self.connection = None
        self._start(list(self.stations))

    def said(self):
        self.log.flush()
        with open(self.log.name, encoding="utf-8") as log:
            return log.read()

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(WITHIN_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for station in self.stations.values():
            station.socket.close()
        self.log.close()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.quiet()
                assert self.process.poll() is None, f"the daemon ended: {self.said()}"
        finally:
            self.close()

    # What operators do.

    def cli(self, *arguments, status=0):
        """What a command of the command line prints."""
        done = subprocess.run(
            [self.binary, *arguments, "--admin", self.path],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def drops(self, port):
        """How many frames of a port were dropped, by reason."""
        counters = self.ask("GET", f"/v1/ports/{port}")["counters"]
        return {drop["reason"]: drop["frames"] for drop in counters["drops"]}

    def last_drop(self, port):
        return self.ask("GET", f"/v1/ports/{port}/last-drops")["drops"][0]

    def explain(self, port, frame, what_if=()):
        asked = {"port": port, "frame": bytes(frame).hex()}
        if what_if:
            asked["what_if"] = list(what_if)
        return self.ask("POST", "/v1/explain", asked)["traces"][0]

    # What becomes of frames.

    def becomes(self, port, frame, copies, explained=True):
        """A frame from a port leaves as these, by port, and by no other; `explain` says the same, before."""
        if explained:
            outcome = self.explain(port, frame)["outcome"]
            assert outcome["outcome"] == "deliver", f"{outcome}"
            told = {copy["to"]: bytes.fromhex(copy["header"]) for copy in outcome["copies"] if "header" in copy}
            assert set(told) == set(copies), f"explain: {outcome}"
            for name, header in told.items():
                expected = bytes(copies[name])[: len(header)]
                assert header == expected, f"explain: {Ether(header)!r}\nshould be\n{copies[name]!r}"
        self.send(port, frame)
        for name, expected in copies.items():
            came = self.receive(name)
            assert bytes(came) == bytes(expected), f"{name} got\n{came!r}\nshould be\n{expected!r}"
            verify(came)
        self.quiet()

    def passes(self, port, frame, to, expected=None):
        """A frame leaves by one port, as it came unless said."""
        self.becomes(port, frame, {to: frame if expected is None else expected})

    def dropped(self, port, frame, reason, explained=True):
        """A frame is dropped for a reason: its port counts it, and the latest drop is this one. `explain` says so before."""
        if explained:
            outcome = self.explain(port, frame)["outcome"]
            assert outcome.get("reason") == reason, f"{reason}: {outcome}"
        before = self.drops(port)
        self.send(port, frame)
        after = self.await_that("a drop was counted", lambda: self.another(port, before))
        assert after == {**before, reason: before.get(reason, 0) + 1}, f"{before} {after}"
        latest = self.last_drop(port)
        assert (latest["reason"], latest["from"]) == (reason, port), f"{latest}"
        assert bytes(frame).startswith(bytes.fromhex(latest["header"])), f"{latest}"
        assert latest["frame_bytes"] == len(frame) and latest["advice"], f"{latest}"
        self.quiet()

    def another(self, port, before):
        after = self.drops(port)
        return after != before and after

    # What stations do.

    def send(self, port, frame):
        self.stations[port].send(frame)

    def receive(self, port):
        """The next frame that a port gets."""
        taken = self.stations[port].take()
        assert taken is not None, f"nothing came to {port}"
        return Ether(taken[1])

    def quiet(self, besides=()):
        """Nothing waits at any port."""
        for name, station in self.stations.items():
            taken = None if name in besides else station.take(0)
            assert taken is None, f"{name} got {Ether(taken[1])!r}"

    def await_that(self, what, condition):
        """Waits for an event that only polling tells of."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < deadline, f"it did not come to be that {what}"
            select.select([], [], [], 0.01)
