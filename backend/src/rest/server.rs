//! Connections: accepted, bounded in number and in time, served.
//!
//! Runs as tasks of the main thread's runtime. A client that is slow, silent or dead holds one connection for a bounded time and costs nothing
//! else: when all are taken, the oldest that waits for its client makes room for the next.
use super::access::Access;
use super::problem::Problem;
use super::remote::{Remote, Stream};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
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

/// How long requests in hand may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(2);
/// How long to leave new connections waiting when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its client: to prove who it is, or to send its next request.
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
    serve_all((listener, None), router, limits, stop).await;
}

/// The same, over TCP too. Each has connections of its own, so that whatever comes over TCP leaves the admin socket alone.
pub async fn serve_all(
    (local, remote): (UnixListener, Option<(Remote, Turn)>),
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let (serving, until) = watch::channel(());
    let stopping = async {
        stop.await;
        drop(serving);
    };
    let over_tcp = async {
        let Some((remote, turn)) = remote else { return };
        let listener = match turn {
            Turn::Listening(listener) => Ok(listener),
            Turn::AfterAnother => tokio::select! {
                () = ended(until.clone()) => return,
                listener = remote.listen_in_turn() => listener,
            },
        };
        match listener {
            Ok(listener) => {
                let entrance = Entrance::Remote(listener, remote);
                accept_until(entrance, &router, limits, ended(until.clone())).await;
            }
            Err(error) => log::error!("nothing is served over TCP: {error}"),
        }
    };
    let here = accept_until(
        Entrance::Local(local),
        &router,
        limits,
        ended(until.clone()),
    );
    LocalSet::new()
        .run_until(async { tokio::join!(stopping, here, over_tcp) })
        .await;
}

/// Resolves when the sender is gone.
async fn ended(mut until: watch::Receiver<()>) {
    while until.changed().await.is_ok() {}
}

async fn accept_until(
    entrance: Entrance,
    router: &Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let mut connections: VecDeque<Connection> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = entrance.accept() => accepted,
        };
        match accepted {
            Ok(arrival) => {
                make_room(&mut connections, limits.connections);
                let phase = Rc::new(Cell::new(Phase::Client));
                let connection =
                    serve_connection(arrival, router.clone(), limits, Rc::clone(&phase));
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
    }
    drop(entrance);
    finish(connections).await;
}

/// Leaves room for one more: forgets connections that ended, then closes the oldest, preferring one that waits for its client, then one
/// that listens.
fn make_room(connections: &mut VecDeque<Connection>, most: usize) {
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() < most {
        return;
    }
    let oldest = |phase| {
        let mut phases = connections.iter().map(|connection| connection.phase.get());
        phases.position(|of| of == phase)
    };
    let least = oldest(Phase::Client).or_else(|| oldest(Phase::Listening));
    if let Some(least) = connections.remove(least.unwrap_or(0)) {
        least.task.abort();
    }
}

async fn finish(connections: VecDeque<Connection>) {
    let (in_hand, waiting): (Vec<_>, Vec<_>) = connections
        .into_iter()
        .partition(|connection| connection.phase.get() == Phase::Daemon);
    waiting
        .iter()
        .for_each(|connection| connection.task.abort());
    let all = async {
        for connection in in_hand {
            // An aborted or panicked connection has nothing left to finish.
            let _ = connection.task.await;
        }
    };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        log::warn!(
            "requests on the admin socket were cut off after {} s",
            DRAIN.as_secs()
        );
    }
}

async fn serve_connection(
    arrival: Arrival,
    router: Router,
    limits: Limits,
    phase: Rc<Cell<Phase>>,
) {
    let (stream, access) = match tokio::time::timeout(limits.head, arrival.open()).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return log::debug!("a connection did not begin: {error}"),
        Err(_) => return log::debug!("a client did not say who it is in time"),
    };
    let router = TowerToHyperService::new(router);
    let of_service = Rc::clone(&phase);
    let service = service_fn(move |request: Request<Incoming>| {
        answer(
            (router.clone(), access.clone()),
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
    loop {
        match tokio::time::timeout(limits.connection, &mut connection).await {
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

async fn answer(
    (router, access): (TowerToHyperService<Router>, Access),
    request: Request<Incoming>,
    limit: Duration,
    phase: Rc<Cell<Phase>>,
) -> Result<Response<Body>, Infallible> {
    let head = (request.method(), request.uri().path(), request.headers());
    if let Err(denied) = access.check(head.0, head.1, head.2) {
        return Ok(denied.into_response());
    }
    phase.set(Phase::Daemon);
    let response = tokio::time::timeout(limit, router.call(request)).await;
    let lasts = |response: &Response<Body>| response.extensions().get::<Lasting>().is_some();
    phase.set(match &response {
        Ok(Ok(response)) if lasts(response) => Phase::Listening,
        _ => Phase::Client,
    });
    Ok(match response {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request took over {} s", limit.as_secs()),
        )
        .remedy("send the whole body at once; if it was sent, try again")
        .into_response(),
    })
}
