//! `ringswitch port capture`: what it shows of frames between guests, and that nobody but its reader notices it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use guest_sim::frame::FrameBuilder;
use guest_sim::{Frame, Nic};
use vmm_sys_util::tempdir::TempDir;

use crate::rig::{Switch, WITHIN, arrival, guest_options, mac, numbered, one_way, until};

/// A frame of a capture.
#[derive(Debug)]
struct Seen {
    direction: &'static str,
    comment: String,
    bytes: Vec<u8>,
    frame_bytes: usize,
}

/// A capture, read by the draft's rules and by none of the switch's code.
#[derive(Debug, Default)]
struct Capture {
    interfaces: Vec<String>,
    filter: Option<String>,
    frames: Vec<Seen>,
    /// The last statistics: frames of the port, wanted, missed.
    statistics: Option<[u64; 3]>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn options(body: &[u8], mut at: usize) -> Vec<(u16, Vec<u8>)> {
    let mut options = vec![];
    loop {
        let (code, length) = (half(body, at), usize::from(half(body, at + 2)));
        if code == 0 {
            assert_eq!(at + 4, body.len(), "nothing behind the end of options");
            return options;
        }
        options.push((code, body[at + 4..at + 4 + length].to_vec()));
        at += 4 + length.next_multiple_of(4);
    }
}

impl Capture {
    /// Every whole block.
    fn of(file: &[u8]) -> Self {
        let mut capture = Self::default();
        let mut at = 0;
        while file.len() >= at + 8 && file.len() >= at + word(file, at + 4) as usize {
            let (kind, length) = (word(file, at), word(file, at + 4) as usize);
            assert_eq!(word(file, at + length - 4) as usize, length, "at {at}");
            let body = &file[at + 8..at + length - 4];
            assert_eq!(kind == 0x0a0d_0d0a, at == 0);
            match kind {
                0x0a0d_0d0a => {
                    assert_eq!(
                        (word(body, 0), half(body, 4), half(body, 6)),
                        (0x1a2b_3c4d, 1, 0)
                    );
                }
                1 => {
                    assert_eq!(half(body, 0), 1, "Ethernet");
                    let options = options(body, 8);
                    let text = |code| options.iter().find(|option| option.0 == code);
                    let string = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
                    capture.interfaces.push(string(&text(2).unwrap().1));
                    capture.filter = text(11).map(|(_, value)| string(&value[1..]));
                    assert_eq!(text(9).unwrap().1, [9]);
                }
                5 => {
                    let options = options(body, 12);
                    let number = |code| {
                        let found = options.iter().find(|option| option.0 == code).unwrap();
                        u64::from_le_bytes(found.1[..].try_into().unwrap())
                    };
                    capture.statistics = Some([number(4), number(6), number(5)]);
                }
                6 => capture.frames.push(Seen::of(body)),
                other => panic!("a block of type {other}"),
            }
            at += length;
        }
        capture
    }
}

impl Seen {
    fn of(body: &[u8]) -> Self {
        assert_eq!(word(body, 0), 0, "the only interface");
        let captured = word(body, 12) as usize;
        let options = options(body, 20 + captured.next_multiple_of(4));
        let value = |code| &options.iter().find(|option| option.0 == code).unwrap().1;
        Self {
            direction: match word(value(2), 0) {
                1 => "in",
                2 => "out",
                other => panic!("flags {other}"),
            },
            comment: String::from_utf8(value(1).clone()).unwrap(),
            bytes: body[20..20 + captured].to_vec(),
            frame_bytes: word(body, 16) as usize,
        }
    }

    fn said(&self) -> (&str, &str) {
        (self.direction, &self.comment)
    }
}

/// `ringswitch port capture`, running; killed when dropped.
struct Running {
    child: Child,
    folder: TempDir,
}

impl Running {
    /// When this returns, the capture runs.
    fn start(switch: &Switch, port: &str, arguments: &[&str]) -> Self {
        let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-capture-"));
        let folder = folder.unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ringswitch"))
            .arg("--admin")
            .arg(switch.daemon.socket("admin"))
            .args(["port", "capture", port, "-w"])
            .arg(folder.as_path().join("file"))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let running = Self { child, folder };
        until("the capture to begin", || {
            (!running.file().is_empty()).then_some(())
        });
        running
    }

    fn file(&self) -> Vec<u8> {
        std::fs::read(self.folder.as_path().join("file")).unwrap_or_default()
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.as_path().join("file")
    }

    /// Waits for its own end; what it has written, and said.
    fn finish(&mut self) -> (Capture, String) {
        let status = until("the capture to end", || self.child.try_wait().unwrap());
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(0), "{said}");
        (Capture::of(&self.file()), said)
    }

    /// Waits for so many frames, and ends it as Ctrl-C does.
    fn interrupt_after(&mut self, frames: usize) -> (Capture, String) {
        until("the frames to be captured", || {
            (Capture::of(&self.file()).frames.len() >= frames).then_some(())
        });
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pair(switch: &Switch) -> (Nic, Nic) {
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    // Both are learned.
    one_way(&numbered(1, 1, 2), &mut one, &mut other);
    one_way(&numbered(2, 2, 1), &mut other, &mut one);
    (one, other)
}

#[test]
fn a_capture_shows_what_is_sent_delivered_and_dropped_with_why() {
    let switch = Switch::with(&[("vm1", "mtu=1500"), ("vm2", "")]);
    let (mut one, mut other) = pair(&switch);
    let mut running = Running::start(&switch, "vm1", &["--count", "5"]);
    let sent = numbered(10, 1, 2);
    one_way(&sent, &mut one, &mut other);
    let delivered = numbered(11, 2, 1);
    one_way(&delivered, &mut other, &mut one);
    let spoofed = FrameBuilder::udp4(100).macs([1, 0, 0, 0, 0, 1], mac(2));
    one.send(&spoofed.build()).unwrap();
    until("the drop", || {
        (switch.drops("vm1", "source_multicast") == 1).then_some(())
    });
    let long = FrameBuilder::udp4(3000).macs(mac(2), mac(1)).build();
    other.send(&long).unwrap();
    until("the drop", || {
        (switch.drops("vm1", "mtu_exceeded") == 1).then_some(())
    });
    let broadcast = FrameBuilder::udp4(100).macs(mac(1), [0xff; 6]).build();
    one_way(&broadcast, &mut one, &mut other);
    let (capture, said) = running.finish();
    assert_eq!(capture.interfaces, ["vm1"]);
    let told: Vec<_> = capture.frames.iter().map(Seen::said).collect();
    assert_eq!(
        told,
        [
            ("in", "to vm2"),
            ("out", "from vm2"),
            ("in", "dropped: source_multicast"),
            ("out", "dropped: mtu_exceeded"),
            ("in", "flooded"),
        ]
    );
    for (seen, frame) in capture.frames.iter().zip([&sent, &delivered]) {
        assert_eq!(seen.bytes, frame.bytes);
    }
    assert_eq!(capture.frames[3].bytes, long.bytes);
    assert_eq!(capture.statistics, Some([5, 5, 0]));
    assert_eq!(said, "5 frames captured, 0 missed for want of room\n");
    read_by_tshark(&running.path());
    switch.finish();
}

/// What the reference implementation makes of the same file.
fn read_by_tshark(file: &Path) {
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.comment",
        "frame.len",
    ];
    let mut command = Command::new("tshark");
    command
        .arg("-r")
        .arg(file)
        .args(["-n", "-T", "fields", "-E", "separator=;"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output: Output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: there is no tshark to read the capture");
            return;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    for (line, (direction, comment)) in lines.iter().zip([
        ("1", "to vm2"),
        ("2", "from vm2"),
        ("1", "dropped: source_multicast"),
        ("2", "dropped: mtu_exceeded"),
        ("1", "flooded"),
    ]) {
        let cells: Vec<&str> = line.split(';').collect();
        assert_eq!(cells[0], "vm1", "{line}");
        let number = cells[1].trim_start_matches("0x").trim_start_matches('0');
        assert_eq!((number, cells[2]), (direction, comment), "{line}");
    }
}

#[test]
fn a_frame_is_shown_as_it_is_on_each_side_and_cut_as_asked() {
    let switch = Switch::with(&[("vm1", "vlan=10"), ("vm2", "vlan=trunk:10+20")]);
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    let filter = "vlan 10 and out and tcp src port 4321";
    let arguments = ["--filter", filter, "--snaplen", "100"];
    let mut tagged = Running::start(&switch, "vm2", &arguments);
    let arguments = ["--filter", "tcp and not vlan", "--count", "1"];
    let mut plain = Running::start(&switch, "vm1", &arguments);
    let frame = FrameBuilder::tcp4(30_000)
        .macs(mac(1), mac(2))
        .ports(4321, 80)
        .segment(1448)
        .build();
    one.send(&numbered(1, 1, 2)).unwrap();
    one.send(&frame).unwrap();
    arrival(&mut other);
    let arrived = arrival(&mut other);
    let (capture, _) = plain.finish();
    assert_eq!(capture.filter.as_deref(), Some("tcp and not vlan"));
    assert_eq!(capture.frames[0].bytes, frame.bytes);
    let (capture, _) = tagged.interrupt_after(1);
    let [seen] = &capture.frames[..] else {
        panic!("{capture:?}")
    };
    assert_eq!(seen.said(), ("out", "from vm1"));
    assert_eq!(seen.bytes, arrived.bytes[..100]);
    assert_eq!(seen.bytes[12..16], [0x81, 0, 0, 10]);
    assert_eq!(seen.frame_bytes, arrived.bytes.len());
    switch.finish();
}

/// The answer to a capture asked for by hand: its head, and the connection.
fn ask(switch: &Switch, query: &str) -> (String, UnixStream) {
    let mut stream = UnixStream::connect(switch.daemon.socket("admin")).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    let request = format!("GET /v1/ports/vm1/capture{query} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the answer broke off");
        head.extend(byte);
    }
    (String::from_utf8(head).unwrap(), stream)
}

fn is_accepted(head: &str) -> bool {
    head.starts_with("HTTP/1.1 200 ")
}

#[test]
fn a_capture_that_nobody_reads_misses_frames_and_holds_nobody_up() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let (mut one, mut other) = pair(&switch);
    let (head, mut stream) = ask(&switch, "");
    assert!(
        is_accepted(&head) && head.contains("application/x-pcapng"),
        "{head}"
    );
    // Twice what the buffers and the socket hold.
    let frame = FrameBuilder::tcp4(60_000)
        .macs(mac(1), mac(2))
        .segment(1448)
        .build();
    const FRAMES: u64 = 400;
    for _ in 0..FRAMES {
        one_way(&frame, &mut one, &mut other);
    }
    switch.command(&["port", "remove", "vm1"]);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let capture = Capture::of(&unchunked(&answer));
    let [seen, wanted, missed] = capture.statistics.unwrap();
    assert_eq!((seen, wanted), (FRAMES, FRAMES));
    assert!(missed > 0 && missed < FRAMES, "{missed}");
    assert_eq!(capture.frames.len() as u64, FRAMES - missed);
    for seen in &capture.frames {
        assert_eq!(seen.bytes, frame.bytes);
    }
    drop((one, other));
    switch.finish();
}

/// RFC 9112 §7.1.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").unwrap();
        let length = std::str::from_utf8(&body[..end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.extend(&body[end + 2..end + 2 + length]);
        body = &body[end + 2 + length + 2..];
    }
}

#[test]
fn captures_are_few_and_end_with_their_clients_and_their_port() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut captures: Vec<_> = (0..4).map(|_| ask(&switch, "")).collect();
    assert!(captures.iter().all(|(head, _)| is_accepted(head)));
    let (head, _) = ask(&switch, "");
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    // A client goes though no frame ever came.
    captures.pop();
    let (_, mut last) = until("room for another", || {
        Some(ask(&switch, "")).filter(|(head, _)| is_accepted(head))
    });
    switch.command(&["port", "remove", "vm1"]);
    last.read_to_end(&mut Vec::new()).unwrap();
    // The port that has its number next is none of theirs.
    let socket = switch.daemon.socket("again");
    let port = format!("name=again,type=vhost-user,socket={}", socket.display());
    switch.command(&["port", "add", &port]);
    for (_, stream) in &mut captures {
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    switch.finish();
}

#[test]
fn a_killed_client_leaves_the_switch_as_it_was() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let (mut one, mut other) = pair(&switch);
    for round in 0..8 {
        let mut running = Running::start(&switch, "vm2", &[]);
        one_way(&numbered(round, 1, 2), &mut one, &mut other);
        running.child.kill().unwrap();
        one_way(&numbered(round, 2, 1), &mut other, &mut one);
    }
    switch.finish();
}

#[test]
fn what_is_asked_wrongly_is_refused_with_what_to_do() {
    let switch = Switch::of(&["vm1"]);
    let deep = "(".repeat(900);
    for (query, status, part) in [
        ("?filter=hots%2010.0.0.1".to_owned(), 422, "column 1"),
        (format!("?filter={deep}"), 422, "inside each other"),
        (format!("?filter={}", "a".repeat(5000)), 422, "longer than"),
        ("?filter=%00%1b%5b2J".to_owned(), 422, "not known here"),
        ("?filter=%ff%fe".to_owned(), 422, "column 1"),
        ("?filter=host".to_owned(), 422, "an IP address"),
        ("?snaplen=13".to_owned(), 422, "from 14 to 69632"),
        ("?snaplen=-1".to_owned(), 400, "snaplen"),
        ("?snaplen=99999999999".to_owned(), 400, "snaplen"),
        ("?count=0".to_owned(), 422, "count"),
        ("?colour=red".to_owned(), 400, "colour"),
    ] {
        let (head, mut stream) = ask(&switch, &query);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{query}: {head}"
        );
        let length = head.split("content-length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains(part), "{query}: {body}");
        assert!(!body.contains('\u{1b}'), "{body}");
    }
    let missing = switch
        .daemon
        .command(&["port", "capture", "vm9", "-w", "/dev/null"]);
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .contains("there is no port vm9")
    );
    switch.finish();
}

#[test]
fn frames_of_two_workers_are_captured_without_a_gap() {
    let switch = Switch::new(
        &["vm1", "vm2"].map(guest_sim::bench::daemon::PortArgument::named),
        &["--workers", "2"],
    );
    switch.command(&["worker", "move", "vm1", "0"]);
    switch.command(&["worker", "move", "vm2", "1"]);
    let (mut one, mut other) = pair(&switch);
    let mut running = Running::start(&switch, "vm1", &["--count", "200"]);
    let frames: Vec<Frame> = (0..100).map(|number| numbered(number, 1, 2)).collect();
    let answers: Vec<Frame> = (0..100).map(|number| numbered(number, 2, 1)).collect();
    for (frame, answer) in frames.iter().zip(&answers) {
        one_way(frame, &mut one, &mut other);
        one_way(answer, &mut other, &mut one);
    }
    let (capture, _) = running.finish();
    for (direction, sent) in [("in", &frames), ("out", &answers)] {
        let seen = capture
            .frames
            .iter()
            .filter(|seen| seen.direction == direction);
        assert!(
            seen.map(|seen| &seen.bytes)
                .eq(sent.iter().map(|frame| &frame.bytes))
        );
    }
    assert_eq!(capture.statistics, Some([200, 200, 0]));
    switch.finish();
}

#[test]
fn a_pipe_gets_pcapng_and_programs_get_json() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let (mut one, mut other) = pair(&switch);
    let admin = switch.daemon.socket("admin");
    let start = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ringswitch"))
            .arg("--admin")
            .arg(&admin)
            .args(["port", "capture", "vm1", "--count", "1"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let frame = numbered(7, 1, 2);
    let mut children = [start(&[]), start(&["--json"])];
    // Whenever they have begun: they end by themselves.
    until("both to end", || {
        one_way(&frame, &mut one, &mut other);
        std::thread::sleep(Duration::from_millis(5));
        let ended = children
            .iter_mut()
            .all(|child| child.try_wait().unwrap().is_some());
        ended.then_some(())
    });
    let [bytes, json] = children.map(|child| child.wait_with_output().unwrap().stdout);
    assert_eq!(Capture::of(&bytes).frames[0].bytes, frame.bytes);
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (&json["direction"], &json["fate"]),
        (&"in".into(), &"to vm2".into())
    );
    assert_eq!(json["frame"].as_str().unwrap().len(), 2 * frame.bytes.len());
    switch.finish();
}
