//! Every error as a problem details object (RFC 9457): what is wrong, with which field, and what to do.
use crate::config::InvalidField;
use crate::control::CommandError;
use crate::control::tables::Refusal;
use crate::datapath::MoveError;
use crate::devices::DeviceError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use switch_core::engine::control::{WriteError, WriteErrorKind};

/// The media type (RFC 9457 §6.1).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A problem details object. Its `type` is `about:blank`, so that `title` is the status in words (RFC 9457 §4.2.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// The status in words.
    pub title: String,
    /// What is wrong in this case.
    pub detail: String,
    /// The field of the request it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Of a batch of table updates: which one it is about, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<usize>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Problem {
    /// A problem without a field.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: detail.into(),
            field: None,
            update: None,
            remedy: None,
        }
    }

    /// A field that cannot be accepted.
    pub fn with_status(status: StatusCode, invalid: InvalidField) -> Self {
        Self::new(status, invalid.reason)
            .about(invalid.field)
            .remedy(invalid.remedy)
    }

    /// It is not as the client saw it: `If-Match` (RFC 9110 §13.1.1).
    pub fn changed_since(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, detail)
            .about("If-Match")
            .remedy("read it again, and decide again")
    }

    /// With the field it is about.
    pub fn about(self, field: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            ..self
        }
    }

    /// With the update it is about.
    pub fn of_update(self, index: usize) -> Self {
        Self {
            update: Some(index),
            ..self
        }
    }

    /// With what to do about it.
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

impl From<InvalidField> for Problem {
    fn from(invalid: InvalidField) -> Self {
        Self::with_status(StatusCode::UNPROCESSABLE_ENTITY, invalid)
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        let detail = error.to_string();
        match error {
            CommandError::Conflict {
                field,
                reason,
                remedy,
            } => Self::new(StatusCode::CONFLICT, reason)
                .about(field)
                .remedy(remedy),
            CommandError::NotFound(_) => {
                let remedy = "GET /v1/ports, or `ringswitch port list`, shows those there are";
                Self::new(StatusCode::NOT_FOUND, detail)
                    .about("name")
                    .remedy(remedy)
            }
            CommandError::Changed(_) => Self::changed_since(detail),
            CommandError::NotMoved(MoveError::NoSuchWorker { .. }) => {
                let remedy = "GET /v1/workers, or `ringswitch worker list`, shows those there are";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
                    .about("worker")
                    .remedy(remedy)
            }
            CommandError::NotMoved(MoveError::NoSuchPair { .. }) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
                    .about("pair")
                    .remedy("choose one of these, or none to move them all")
            }
            CommandError::NotMoved(MoveError::NoSuchPort | MoveError::NoAnswer { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).remedy("try again")
            }
            CommandError::Refused(refused) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, refused.reason)
                    .about(refused.field)
                    .remedy(refused.remedy)
            }
            CommandError::Store(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
                .remedy("look at the disk and at the daemon's log, then start it again"),
            CommandError::NotCaptured(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
                .remedy("end another capture, then try again"),
            CommandError::Full => {
                Self::new(StatusCode::CONFLICT, detail).remedy("remove a port first")
            }
            CommandError::NotUpgraded(_) => {
                Self::new(StatusCode::CONFLICT, detail).remedy(
                    "this process goes on as before: correct that, or name another program with --binary",
                )
            }
            CommandError::Busy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).remedy("try again")
            }
            CommandError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).remedy("start it again")
            }
        }
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        let status = match error.kind {
            WriteErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            WriteErrorKind::NotFound => StatusCode::NOT_FOUND,
            WriteErrorKind::AlreadyExists | WriteErrorKind::Full | WriteErrorKind::Constant => {
                StatusCode::CONFLICT
            }
        };
        Self::new(status, error.reason)
            .about(error.place)
            .of_update(error.index)
            .remedy(error.remedy)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let unavailable = |remedy: &str| {
            Self::new(StatusCode::SERVICE_UNAVAILABLE, detail.clone()).remedy(remedy)
        };
        match refusal {
            Refusal::Write(error) => error.into(),
            Refusal::Store(_) => {
                unavailable("look at the disk and at the daemon's log, then start it again")
            }
            Refusal::Changed(_) => Self::changed_since(detail),
            Refusal::Busy => unavailable("try again"),
            Refusal::Stopping => unavailable("start it again"),
        }
    }
}

impl From<DeviceError> for Problem {
    fn from(error: DeviceError) -> Self {
        let detail = error.to_string();
        let unavailable = |remedy: &str| {
            Self::new(StatusCode::SERVICE_UNAVAILABLE, detail.clone()).remedy(remedy)
        };
        match error {
            DeviceError::Invalid(invalid) => invalid.into(),
            DeviceError::Control(error) => error.into(),
            DeviceError::Conflict {
                field,
                reason,
                remedy,
            } => Self::new(StatusCode::CONFLICT, reason)
                .about(field)
                .remedy(remedy),
            DeviceError::Changed(_) => Self::changed_since(detail),
            DeviceError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, detail)
                .about("name")
                .remedy("GET /v1/devices, or `ringswitch device list`, shows those there are"),
            DeviceError::Full => {
                Self::new(StatusCode::CONFLICT, detail).remedy("remove a device first")
            }
            DeviceError::Store(_) => {
                unavailable("look at the disk and at the daemon's log, then start it again")
            }
            DeviceError::Busy => unavailable("try again"),
            DeviceError::Stopping => unavailable("start it again"),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        response
    }
}
