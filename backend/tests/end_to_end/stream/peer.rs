//! The other end of a stream port, in the test: speaks QEMU's framing, well or badly.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use guest_sim::Frame;
use guest_sim::bench::daemon::PortArgument;
use vmm_sys_util::tempdir::TempDir;

use crate::rig::{Switch, WITHIN, pieces, until, verify_pieces};

/// A switch with stream ports, whose sockets are in a folder of their own, beside vhost-user ports.
pub struct StreamSwitch {
    pub switch: Switch,
    pub folder: TempDir,
}

impl StreamSwitch {
    /// vhost-user ports, stream ports with `key=value` pairs of their own, and arguments for all of it.
    pub fn new(ports: &[&str], streams: &[(&str, &str)], arguments: &[&str]) -> Self {
        let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-stream-"));
        let folder = folder.unwrap();
        let ports: Vec<_> = ports.iter().map(|name| PortArgument::named(name)).collect();
        let streams: Vec<_> = streams
            .iter()
            .map(|(name, more)| {
                let socket = folder.as_path().join(name);
                let comma = if more.is_empty() { "" } else { "," };
                format!(
                    "name={name},type=stream,socket={}{comma}{more}",
                    socket.display()
                )
            })
            .collect();
        let flags = streams.iter().flat_map(|stream| ["--port", stream]);
        let arguments: Vec<_> = flags.chain(arguments.iter().copied()).collect();
        Self {
            switch: Switch::new(&ports, &arguments),
            folder,
        }
    }

    /// Where a stream port's socket is.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.as_path().join(name)
    }

    /// A peer that the switch has taken.
    pub fn peer(&self, name: &str) -> Peer {
        let connects = |device: &serde_json::Value| device["connections"]["connects"].as_u64();
        let before = connects(&self.switch.show(name)["device"]).unwrap();
        let peer = self.connect(name);
        self.await_state(name, "up");
        until("the peer to be taken", || {
            let device = &self.switch.show(name)["device"];
            (connects(device) > Some(before)).then_some(())
        });
        peer
    }

    /// A peer that has connected, whatever becomes of it.
    pub fn connect(&self, name: &str) -> Peer {
        Peer::new(UnixStream::connect(self.socket(name)).unwrap())
    }

    /// Waits until a port is in that state.
    pub fn await_state(&self, name: &str, state: &str) {
        until("the port's state", || {
            (self.switch.show(name)["state"] == state).then_some(())
        });
    }
}

/// One end of the connection.
pub struct Peer {
    pub socket: UnixStream,
}

impl Peer {
    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(WITHIN)).unwrap();
        socket.set_write_timeout(Some(WITHIN)).unwrap();
        Self { socket }
    }

    /// The frame's bytes with their length, as they go over the socket.
    pub fn framed(frame: &Frame) -> Vec<u8> {
        let length = u32::try_from(frame.bytes.len()).unwrap();
        [&length.to_be_bytes(), frame.bytes.as_slice()].concat()
    }

    pub fn send(&mut self, frame: &Frame) {
        self.write(&Self::framed(frame));
    }

    /// Any bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next frame, which must come.
    pub fn receive(&mut self) -> Frame {
        let mut prefix = [0; 4];
        self.socket.read_exact(&mut prefix).unwrap();
        let length = u32::from_be_bytes(prefix) as usize;
        assert!((1..=69_632).contains(&length), "a frame of {length} bytes");
        let mut bytes = vec![0; length];
        self.socket.read_exact(&mut bytes).unwrap();
        Frame::plain(bytes)
    }

    /// What arrives of one frame of a guest, verified: the framing leaves nothing to be done.
    pub fn verify_arrival(&mut self, frame: &Frame) {
        let count = pieces(frame, guest_sim::Features::NONE);
        let arrived: Vec<Frame> = (0..count).map(|_| self.receive()).collect();
        verify_pieces(frame, &arrived);
    }

    /// Nothing has arrived.
    pub fn verify_quiet(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        let mut byte = [0];
        let read = self.socket.read(&mut byte);
        assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }

    /// The switch closes the connection, whatever it still sends.
    pub fn await_end(&mut self) {
        let mut room = vec![0; 1 << 16];
        self.socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        loop {
            match self.socket.read(&mut room) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the connection stays: {error}"),
            }
        }
    }
}
