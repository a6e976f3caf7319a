//! Connections: accepted, bounded in number and in time, served.
//!
//! Runs as tasks of the main thread's runtime. A client that is slow, silent or dead holds one connection for a bounded time and costs nothing
//! else: when all are taken, the oldest that waits for its client makes room for the next.
use super::access::Access;
use super::problem::Problem;
use super::remote::{Remote, Stream};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet};

/// What a client is given.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time.
    pub connections: usize,
    /// For a request's head to arrive, and for an idle connection to send its next.
    pub head: Duration,
    /// For a request's body to arrive and its answer to be made.
    pub request: Duration,
    /// For a connection as a whole, whatever it does.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            head: Duration::from_secs(5),
            request: Duration::from_secs(15),
            connection: Duration::from_secs(60),
        }
    }
}

/// How long it may take to write the last answers.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a connection that has just come may take for its first request then: it may be on its way.
const FIRST_REQUEST: Duration = Duration::from_millis(100);
/// How long to leave new connections waiting when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The daemon ends: requests in hand are finished first.
    Drain,
    /// Another process does all that is asked from now on. Most of what is in hand waits for what that process has now.
    HandedOver,
}

impl Leave {
    /// How long requests in hand may take.
    fn patience(self) -> Duration {
        match self {
            Self::Drain => Duration::from_secs(2),
            Self::HandedOver => Duration::from_millis(100),
        }
    }

    /// The answer to one that took longer.
    fn too_late(self) -> Problem {
        let (detail, remedy) = match self {
            Self::Drain => (
                "the daemon ends, and the request takes too long",
                "see what came of it when the daemon runs again",
            ),
            Self::HandedOver => (
                "another process has taken this one's place meanwhile",
                "ask again, that process answers; of a change, see first what came of it",
            ),
        };
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).remedy(remedy)
    }
}

/// What connections are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be served.
    Serving,
    /// To end behind the request in hand.
    Leaving,
    /// To answer that one in this way.
    GivenUp(Leave),
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its client, to prove who it is and to send its first request.
    New,
    /// Its client, to send its next request.
    Client,
    /// The daemon, which is at work on its request.
    Daemon,
    /// Neither: it is told what happens, for as long as it listens.
    Listening,
}

/// One accepted connection.
struct Connection {
    task: JoinHandle<()>,
    phase: Rc<Cell<Phase>>,
}

/// Marks an answer that lasts as long as its client.
#[derive(Clone, Copy, Debug)]
pub struct Lasting;

/// Where clients come from.
enum Entrance {
    /// The admin socket.
    Local(UnixListener),
    /// TCP.
    Remote(TcpListener, Remote),
}

/// One that has come.
enum Arrival {
    Local(UnixStream),
    Remote(TcpStream, Remote),
}

impl Entrance {
    /// Has whoever comes refused, although others hold the same socket. Only where nobody else serves it.
    fn close(&self) {
        let listener = match self {
            Self::Local(listener) => listener.as_fd(),
            Self::Remote(listener, _) => listener.as_fd(),
        };
        if let Err(error) = rustix::net::shutdown(listener, rustix::net::Shutdown::Read) {
            log::debug!("a listening socket was closed already: {error}");
        }
    }

    async fn accept(&self) -> io::Result<Arrival> {
        Ok(match self {
            Self::Local(listener) => Arrival::Local(listener.accept().await?.0),
            Self::Remote(listener, remote) => {
                Arrival::Remote(listener.accept().await?.0, remote.clone())
            }
        })
    }
}

impl Arrival {
    async fn open(self) -> io::Result<(Box<dyn Stream>, Access)> {
        match self {
            Self::Local(stream) => Ok((Box::new(stream), Access::Local)),
            Self::Remote(stream, remote) => remote.open(stream).await,
        }
    }
}

/// When the interface over TCP begins.
pub enum Turn {
    /// It has.
    Listening(TcpListener),
    /// As soon as the process before, which hands everything over, has let go of the address.
    AfterAnother,
}

/// Serves the admin socket until `stop` resolves, then finishes the requests in hand.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let stop = async {
        stop.await;
        Leave::Drain
    };
    serve_all((listener, None), router, limits, stop).await;
}

/// The same, over TCP too. Each has connections of its own, so that whatever comes over TCP leaves the admin socket alone.
pub async fn serve_all(
    (local, remote): (UnixListener, Option<(Remote, Turn)>),
    router: Router,
    limits: Limits,
    stop: impl Future<Output = Leave>,
) {
    let (serving, until) = watch::channel(None);
    let stopping = async {
        serving.send_replace(Some(stop.await));
    };
    let over_tcp = async {
        let Some((remote, turn)) = remote else { return };
        let listener = match turn {
            Turn::Listening(listener) => Ok(listener),
            Turn::AfterAnother => tokio::select! {
                _ = leave(until.clone()) => return,
                listener = remote.listen_in_turn() => listener,
            },
        };
        match listener {
            Ok(listener) => {
                let entrance = Entrance::Remote(listener, remote);
                accept_until(entrance, &router, limits, leave(until.clone())).await;
            }
            Err(error) => log::error!("nothing is served over TCP: {error}"),
        }
    };
    let here = accept_until(
        Entrance::Local(local),
        &router,
        limits,
        leave(until.clone()),
    );
    LocalSet::new()
        .run_until(async { tokio::join!(stopping, here, over_tcp) })
        .await;
}

/// Resolves when there is a reason to leave.
async fn leave(mut until: watch::Receiver<Option<Leave>>) -> Leave {
    let told = until.wait_for(Option::is_some).await;
    told.ok().and_then(|told| *told).unwrap_or(Leave::Drain)
}

async fn accept_until(
    entrance: Entrance,
    router: &Router,
    limits: Limits,
    stop: impl Future<Output = Leave>,
) {
    let mut stop = pin!(stop);
    let mut connections: VecDeque<Connection> = VecDeque::new();
    let (stage, told) = watch::channel(Stage::Serving);
    let leaves = loop {
        let accepted = tokio::select! {
            // First: once there is a reason to leave, whoever comes is another's.
            biased;
            leaves = &mut stop => break leaves,
            accepted = entrance.accept() => accepted,
        };
        match accepted {
            Ok(arrival) => {
                make_room(&mut connections, limits.connections);
                let phase = Rc::new(Cell::new(Phase::New));
                let connection = serve_connection(
                    arrival,
                    (router.clone(), told.clone()),
                    limits,
                    Rc::clone(&phase),
                );
                connections.push_back(Connection {
                    task: tokio::task::spawn_local(connection),
                    phase,
                });
            }
            Err(error) => {
                log::warn!("cannot accept a connection on the admin interface: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    if leaves == Leave::Drain {
        entrance.close();
    }
    drop(entrance);
    finish(connections, leaves, &stage).await;
}

/// Leaves room for one more: forgets connections that ended, then closes the oldest, preferring one that waits for its client, then one
/// that listens.
fn make_room(connections: &mut VecDeque<Connection>, most: usize) {
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() < most {
        return;
    }
    let oldest = |wanted: &dyn Fn(Phase) -> bool| {
        let mut phases = connections.iter().map(|connection| connection.phase.get());
        phases.position(wanted)
    };
    let for_client = |phase| matches!(phase, Phase::New | Phase::Client);
    let least = oldest(&for_client).or_else(|| oldest(&|phase| phase == Phase::Listening));
    if let Some(least) = connections.remove(least.unwrap_or(0)) {
        least.task.abort();
    }
}

async fn finish(
    mut connections: VecDeque<Connection>,
    leaves: Leave,
    stage: &watch::Sender<Stage>,
) {
    let end = |connections: &mut VecDeque<Connection>, phases: &[Phase]| {
        let ended = connections.iter();
        let ended = ended.filter(|one| phases.contains(&one.phase.get()));
        ended.for_each(|one| one.task.abort());
    };
    end(&mut connections, &[Phase::Listening]);
    stage.send_replace(Stage::Leaving);
    settle(&mut connections, FIRST_REQUEST).await;
    end(&mut connections, &[Phase::New, Phase::Listening]);
    let patience = leaves.patience().saturating_sub(FIRST_REQUEST);
    settle(&mut connections, patience).await;
    stage.send_replace(Stage::GivenUp(leaves));
    end(&mut connections, &[Phase::Listening]);
    settle(&mut connections, LAST_WORDS).await;
    if !connections.is_empty() {
        log::warn!(
            "{} clients of the admin interface took too long and were cut off",
            connections.len()
        );
    }
}

/// Waits for connections to end; forgets those that did.
async fn settle(connections: &mut VecDeque<Connection>, within: Duration) {
    let until = tokio::time::Instant::now() + within;
    for connection in connections.iter_mut() {
        // One that was aborted or panicked has ended as well; one that is late is looked at again.
        let _ = tokio::time::timeout_at(until, &mut connection.task).await;
    }
    connections.retain(|connection| !connection.task.is_finished());
}

async fn serve_connection(
    arrival: Arrival,
    (router, mut stage): (Router, watch::Receiver<Stage>),
    limits: Limits,
    phase: Rc<Cell<Phase>>,
) {
    let (stream, access) = match tokio::time::timeout(limits.head, arrival.open()).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return log::debug!("a connection did not begin: {error}"),
        Err(_) => return log::debug!("a client did not say who it is in time"),
    };
    let router = TowerToHyperService::new(router);
    let (of_service, of_service_stage) = (Rc::clone(&phase), stage.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        answer(
            (router.clone(), access.clone(), of_service_stage.clone()),
            request,
            limits.request,
            Rc::clone(&of_service),
        )
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut is_leaving = false;
    loop {
        let served = tokio::time::timeout(limits.connection, &mut connection);
        let served = tokio::select! {
            // First: what has come is read before the connection hears that it is to end.
            biased;
            served = served => served,
            _ = stage.wait_for(|stage| *stage != Stage::Serving), if !is_leaving => {
                is_leaving = true;
                // One that has not asked yet would be closed at once; its first answer says that it is the last.
                if phase.get() != Phase::New {
                    connection.as_mut().graceful_shutdown();
                }
                continue;
            }
        };
        match served {
            Ok(Ok(())) => return,
            Ok(Err(error)) => return log::debug!("a connection ended: {error}"),
            // Ended by its client's end, which is seen when something is to be sent to it.
            Err(_) if phase.get() == Phase::Listening => {}
            Err(_) => {
                let limit = limits.connection.as_secs();
                return log::debug!("a connection was closed after {limit} s");
            }
        }
    }
}

/// Resolves when requests in hand are given up.
async fn given_up(mut stage: watch::Receiver<Stage>) -> Leave {
    let told = stage.wait_for(|stage| matches!(stage, Stage::GivenUp(_)));
    match told.await.as_deref() {
        Ok(Stage::GivenUp(leaves)) => *leaves,
        _ => Leave::Drain,
    }
}

async fn answer(
    (router, access, stage): (TowerToHyperService<Router>, Access, watch::Receiver<Stage>),
    request: Request<Incoming>,
    limit: Duration,
    phase: Rc<Cell<Phase>>,
) -> Result<Response<Body>, Infallible> {
    let head = (request.method(), request.uri().path(), request.headers());
    if let Err(denied) = access.check(head.0, head.1, head.2) {
        return Ok(denied.into_response());
    }
    phase.set(Phase::Daemon);
    let response = tokio::time::timeout(limit, router.call(request));
    let response = tokio::select! {
        response = response => response,
        leaves = given_up(stage.clone()) => Ok(Ok(leaves.too_late().into_response())),
    };
    let lasts = |response: &Response<Body>| response.extensions().get::<Lasting>().is_some();
    phase.set(match &response {
        Ok(Ok(response)) if lasts(response) => Phase::Listening,
        _ => Phase::Client,
    });
    let mut response = match response {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request took over {} s", limit.as_secs()),
        )
        .remedy("send the whole body at once; if it was sent, try again")
        .into_response(),
    };
    if *stage.borrow() != Stage::Serving {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response)
}
