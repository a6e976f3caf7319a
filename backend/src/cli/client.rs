//! One HTTP request to a daemon, on a connection of its own.
use super::arguments::Reach;
use super::reach::{Place, ReachError};
use crate::rest::problem::Problem;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long the daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer: a full table of a million addresses has about 100 MiB.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// The head of an answer, and what carries the rest of it.
type Answering = (Response<Incoming>, JoinHandle<hyper::Result<()>>);

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// Why there is no answer, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// What was said of the daemon's place cannot be used.
    #[error(transparent)]
    Reach(Box<ReachError>),
    /// Nobody answers there.
    #[error("cannot reach the daemon on {place}: {source}; {advice}")]
    Unreachable {
        /// The admin socket or URL.
        place: String,
        /// Why.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The daemon refused.
    #[error("{}", problem_text(.0))]
    Refused(Box<Problem>),
    /// What answers is not a Ringswitch daemon, or it broke off.
    #[error(
        "the answer on {place} cannot be used: {reason}; check that a ringswitch of this version serves it"
    )]
    Answer {
        /// The admin socket or URL.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn problem_text(problem: &Problem) -> String {
    let field = problem
        .field
        .as_ref()
        .map(|field| format!("`{field}`: "))
        .unwrap_or_default();
    let remedy = problem
        .remedy
        .as_ref()
        .map(|remedy| format!("; {remedy}"))
        .unwrap_or_default();
    let update = problem
        .update
        .map(|index| format!("update {index}: "))
        .unwrap_or_default();
    format!("{update}{field}{}{remedy}", problem.detail)
}

/// A daemon that can be asked.
#[derive(Clone)]
pub struct Client {
    place: Place,
}

impl Client {
    /// A client of the daemon that the arguments mean.
    pub fn new(reach: &Reach) -> Result<Self, ClientError> {
        Ok(Self {
            place: Place::of(reach)?,
        })
    }

    /// GETs `path` and returns the body of a successful answer.
    pub async fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// GETs `path` and returns the body of a successful answer as it comes, for as long as it does.
    pub async fn stream(&self, path: &str) -> Result<Stream, ClientError> {
        let head = self.ask(Method::GET, path, (Bytes::new(), JSON));
        let (response, connection) = match tokio::time::timeout(TIMEOUT, head).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.unreachable(io::ErrorKind::TimedOut.into())),
        };
        let status = response.status();
        let mut stream = Stream {
            client: self.clone(),
            body: response.into_body(),
            connection,
        };
        if status.is_success() {
            return Ok(stream);
        }
        let mut problem = Vec::new();
        while let Some(bytes) = stream.next().await? {
            problem.extend_from_slice(&bytes);
            if problem.len() > MAX_ANSWER_BYTES {
                break;
            }
        }
        Err(self.refusal(status, &problem))
    }

    /// POSTs JSON to `path`.
    pub async fn post(&self, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        self.send(Method::POST, path, body.into()).await
    }

    /// DELETEs `path`.
    pub async fn delete(&self, path: &str) -> Result<Bytes, ClientError> {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    /// PUTs bytes to `path`.
    pub async fn upload(&self, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let exchange = self.exchange(Method::PUT, path, (body.into(), BYTES));
        self.in_time(exchange).await
    }

    /// Sends JSON to `path`.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, ClientError> {
        self.send(method, path, body.into()).await
    }

    /// Reads an answer's JSON.
    pub fn decode<T: serde::de::DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.unusable(error))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        self.in_time(self.exchange(method, path, (body, JSON)))
            .await
    }

    async fn in_time(
        &self,
        exchange: impl Future<Output = Result<Bytes, ClientError>>,
    ) -> Result<Bytes, ClientError> {
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Sends a request; the head of its answer, and the task of the connection that the body comes over.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        (body, media_type): (Bytes, &str),
    ) -> Result<Answering, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.place.authority)
            .header(CONTENT_TYPE, media_type);
        if let Some(token) = &self.place.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|error| self.unusable(error))?;
        let stream = self.place.connect().await;
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unusable(error))?;
        let connection = tokio::spawn(connection);
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.unusable(error))?;
        Ok((response, connection))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: (Bytes, &str),
    ) -> Result<Bytes, ClientError> {
        let (response, connection) = self.ask(method, path, body).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        connection.abort();
        let body = body.map_err(|error| self.unusable(error))?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(self.refusal(status, &body))
        }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice(body) {
            Ok(problem) => ClientError::Refused(Box::new(problem)),
            Err(_) => self.unusable(format!("status {status} without a problem description")),
        }
    }

    fn unusable(&self, reason: impl ToString) -> ClientError {
        ClientError::Answer {
            place: self.place.to_string(),
            reason: reason.to_string(),
        }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable {
            place: self.place.to_string(),
            advice: self.place.advice(&source),
            source,
        }
    }
}

/// An answer that goes on.
pub struct Stream {
    client: Client,
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Stream {
    /// The next bytes; `None`: the answer is complete. May be given up and called again.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(self.client.unusable(format!("it broke off: {error}")));
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

impl Stream {
    /// What came is not what was to come.
    pub fn unusable(&self, reason: impl ToString) -> ClientError {
        self.client.unusable(reason)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
