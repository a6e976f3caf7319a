//! A switch whose outside world is a record: the control thread and the admin socket are real, ports are not.
use crate::fake_engine::FakeEngine;
use ringswitch::config::SocketPath;
use ringswitch::control::engine::PortHealth;
use ringswitch::control::plan::Step;
use ringswitch::control::port_table::PortTable;
use ringswitch::control::services::ServicesHandle;
use ringswitch::control::tables::{Tables, TablesOptions};
use ringswitch::control::{ControlThread, DesiredPorts, Engine, PortId, StepError};
use ringswitch::datapath::capture::Captures;
use ringswitch::datapath::{
    Destination, DroppedFrame, MoveError, PortCounters, SourceId, SourceStats, WorkerStats,
};
use ringswitch::rest::{Limits, router, serve};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use switch_core::{DropReason, MacAddress, MacEntry, MacMove, MacMoves, Millis, VlanId};
use tokio::sync::oneshot;
use vmm_sys_util::tempdir::TempDir;

/// Steps in the order they were asked for.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Vec<Step>>>);

impl Record {
    pub fn steps(&self) -> Vec<Step> {
        self.0.lock().unwrap().clone()
    }
}

/// Refuses to open ports whose name starts with `refused`; every other step succeeds. Once there is a port `mover`, stations move.
struct RecordingEngine(Record);

impl Engine for RecordingEngine {
    fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.0.0.lock().unwrap().push(step.clone());
        match step {
            Step::Open { port, .. } if port.name.as_str().starts_with("refused") => {
                Err(StepError {
                    field: "socket",
                    reason: "the directory is missing".into(),
                    remedy: "create it".into(),
                })
            }
            _ => Ok(()),
        }
    }
    fn health(&self, _: PortId) -> Option<PortHealth> {
        Some(PortHealth {
            state: "listening".into(),
            reason: Some("no front-end yet".into()),
            device: None,
        })
    }
    fn counters(&self, _: PortId) -> PortCounters {
        PortCounters {
            guest_tx_frames: 7,
            guest_tx_bytes: 700,
            drops: vec![("vlan_not_allowed", 3)],
            ..PortCounters::default()
        }
    }
    fn worker_stats(&self) -> Vec<WorkerStats> {
        vec![WorkerStats {
            frames: 7,
            batches: 2,
            ..WorkerStats::default()
        }]
    }
    fn sources(&self) -> Vec<SourceStats> {
        vec![source(1, true)]
    }
    fn move_sources(
        &mut self,
        id: PortId,
        pair: Option<u16>,
        destination: Destination,
    ) -> Result<Vec<SourceStats>, MoveError> {
        assert_eq!(id.get(), 0);
        match (pair, destination) {
            (Some(pair @ 1..), _) => Err(MoveError::NoSuchPair { pair, last: 0 }),
            (_, Destination::Pinned(worker @ 2..)) => {
                Err(MoveError::NoSuchWorker { worker, last: 1 })
            }
            (_, Destination::Pinned(worker)) => Ok(vec![source(worker, true)]),
            (_, Destination::Automatic | Destination::Worker(_)) => Ok(vec![source(0, false)]),
        }
    }
    fn last_drops(&self, id: PortId) -> (Millis, Vec<DroppedFrame>) {
        let frame = |at, reason, len_bytes| DroppedFrame {
            at: Millis(at),
            reason,
            in_port: Some(id),
            len_bytes,
            header: vec![0xff; 6],
        };
        let older = frame(500, DropReason::RxRingFull, 1514);
        (
            Millis(2_000),
            vec![older, frame(500, DropReason::NoDestination, 60)],
        )
    }
    fn fdb(&self) -> Vec<MacEntry> {
        let entry = |vlan, last, port| MacEntry {
            vlan: VlanId::new(vlan),
            mac: MacAddress([0x52, 0x54, 0, 0, 0, last]),
            port: PortId::new(port).unwrap(),
            age: Millis(2_500),
        };
        // The last is of a port that is gone.
        vec![entry(10, 1, 0), entry(0, 2, 0), entry(10, 3, 999)]
    }
    fn mac_moves(&mut self) -> MacMoves {
        let moved = |from, to| MacMove {
            vlan: VlanId::new(10),
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            from: PortId::new(from).unwrap(),
            to: PortId::new(to).unwrap(),
        };
        let has_mover =
            |step: &Step| matches!(step, Step::Open { port, .. } if port.name.as_str() == "mover");
        if !self.0.steps().iter().any(has_mover) {
            return MacMoves::default();
        }
        // The last is behind a port that is gone.
        MacMoves {
            moves: vec![moved(0, 1), moved(0, 999)],
            lost: 3,
        }
    }
    fn captures(&self) -> Option<Arc<Captures>> {
        Some(Arc::default())
    }
    fn tick(&mut self) {}
    fn stop(&mut self) {}
}

fn source(worker: usize, pinned: bool) -> SourceStats {
    SourceStats {
        source: SourceId {
            port: PortId::new(0).unwrap(),
            pair: 0,
        },
        worker,
        pinned,
        frames: 7,
        busy_ns: 700,
        busy_permille: 125,
    }
}

/// An admin socket with a control thread behind it.
pub struct TestSwitch {
    folder: TempDir,
    pub record: Record,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TestSwitch {
    pub fn start(limits: Limits) -> Self {
        Self::start_with(limits, None)
    }

    /// With a program's tables.
    pub fn with_tables(engine: Arc<FakeEngine>) -> Self {
        let tables = Tables::start(engine, TablesOptions::default()).unwrap();
        Self::start_with(Limits::default(), Some(tables))
    }

    pub fn start_with(limits: Limits, tables: Option<Tables>) -> Self {
        Self::with_services(limits, tables, None)
    }

    /// With a program's tables and services.
    pub fn with_services(
        limits: Limits,
        tables: Option<Tables>,
        services: Option<ServicesHandle>,
    ) -> Self {
        Self::with_ports(DesiredPorts::default(), (limits, tables, services))
    }

    /// With ports.
    pub fn with_ports(
        desired: DesiredPorts,
        (limits, tables, services): (Limits, Option<Tables>, Option<ServicesHandle>),
    ) -> Self {
        let folder =
            TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-rest-")).unwrap();
        let socket = folder.as_path().join("admin.sock");
        let record = Record::default();
        let admin = SocketPath::parse("admin", socket.to_str().unwrap()).unwrap();
        let engine = (RecordingEngine(record.clone()), PortTable::default());
        let control = ControlThread::start(engine, desired, admin, tables.clone()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let stopped = async { drop(stopped.await) };
                serve(
                    listener,
                    router(control.handle(), tables, services, None),
                    limits,
                    stopped,
                )
                .await;
                control.handle().stop().await.unwrap();
            });
            control.join();
        });
        Self {
            folder,
            record,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.as_path().join("admin.sock")
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// One request as raw bytes; the answer as it came.
    pub fn send(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that has seen enough answers and closes before everything is written.
        let _ = stream.write_all(request);
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "")
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.send(request.as_bytes())
    }

    pub fn post(&self, body: &serde_json::Value) -> Answer {
        self.request("POST", "/v1/ports", &body.to_string())
    }
}

impl Drop for TestSwitch {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the server panicked"
        );
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Reads until the server closes.
    pub fn read(stream: &mut UnixStream) -> Self {
        let mut bytes = vec![];
        if let Err(error) = stream.read_to_end(&mut bytes) {
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "no answer: {error}"
            );
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0);
        Self {
            status,
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it is a problem description (RFC 9457) of its own status.
    #[track_caller]
    pub fn problem(&self) -> serde_json::Value {
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert!(
            !problem["title"].as_str().unwrap().is_empty()
                && !problem["detail"].as_str().unwrap().is_empty()
        );
        assert!(!problem["remedy"].as_str().unwrap().is_empty(), "{self:?}");
        problem
    }
}
