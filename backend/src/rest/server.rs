//! Connections: accepted, bounded in number and in time, served.
//!
//! Runs as tasks of the main thread's runtime. A client that is slow, silent or dead holds one connection for a bounded time and costs nothing
//! else: when all are taken, the oldest that waits for its client makes room for the next.
use super::problem::Problem;
use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, HeaderValue};
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
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, LocalSet};

/// In a response's extensions: its body goes on for as long as its client reads it, whatever the limit of a connection. Whoever gives such an
/// answer bounds how many there are, and ends those that nobody reads.
#[derive(Clone, Copy, Debug)]
pub struct Lasting;

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

/// One accepted connection.
struct Connection {
    task: JoinHandle<()>,
    doing: Rc<Doing>,
}

/// What a connection is doing.
#[derive(Debug, Default)]
struct Doing {
    /// The daemon is at work on its request, rather than waiting for the client.
    at_work: Cell<bool>,
    /// It gets a [`Lasting`] answer.
    lasts: Cell<bool>,
}

/// Serves until `stop` resolves, then finishes the requests in hand.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    LocalSet::new()
        .run_until(accept_until(listener, router, limits, stop))
        .await;
}

async fn accept_until(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let mut connections: VecDeque<Connection> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                make_room(&mut connections, limits.connections);
                let doing = Rc::new(Doing::default());
                let connection =
                    serve_connection(stream, router.clone(), limits, Rc::clone(&doing));
                connections.push_back(Connection {
                    task: tokio::task::spawn_local(connection),
                    doing,
                });
            }
            Err(error) => {
                log::warn!("cannot accept a connection on the admin socket: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    finish(connections).await;
}

/// Leaves room for one more: forgets connections that ended, then closes the oldest, preferring one that waits for its client.
fn make_room(connections: &mut VecDeque<Connection>, most: usize) {
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() < most {
        return;
    }
    let waiting = connections
        .iter()
        .position(|Connection { doing, .. }| !doing.at_work.get() && !doing.lasts.get())
        .unwrap_or(0);
    if let Some(oldest) = connections.remove(waiting) {
        oldest.task.abort();
    }
}

async fn finish(connections: VecDeque<Connection>) {
    let (in_hand, waiting): (Vec<_>, Vec<_>) = connections
        .into_iter()
        .partition(|connection| connection.doing.at_work.get());
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

async fn serve_connection(stream: UnixStream, router: Router, limits: Limits, doing: Rc<Doing>) {
    let router = TowerToHyperService::new(router);
    let told = Rc::clone(&doing);
    let service = service_fn(move |request: Request<Incoming>| {
        answer(router.clone(), request, limits.request, Rc::clone(&told))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = match tokio::time::timeout(limits.connection, connection.as_mut()).await {
        // It is the last answer of its connection, so this ends with it.
        Err(_) if doing.lasts.get() => Ok(connection.await),
        ended => ended,
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("a connection on the admin socket ended: {error}"),
        Err(_) => log::debug!(
            "a connection on the admin socket was closed after {} s",
            limits.connection.as_secs()
        ),
    }
}

async fn answer(
    router: TowerToHyperService<Router>,
    request: Request<Incoming>,
    limit: Duration,
    doing: Rc<Doing>,
) -> Result<Response<Body>, Infallible> {
    doing.at_work.set(true);
    let response = tokio::time::timeout(limit, router.call(request)).await;
    doing.at_work.set(false);
    Ok(match response {
        Ok(Ok(mut response)) => {
            if response.extensions().get::<Lasting>().is_some() {
                doing.lasts.set(true);
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            response
        }
        Ok(Err(never)) => match never {},
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request took over {} s", limit.as_secs()),
        )
        .remedy("send the whole body at once; if it was sent, try again")
        .into_response(),
    })
}
