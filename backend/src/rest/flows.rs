//! The flows that workers remember: `GET /v1/flows`.
//!
//! Workers are asked on a thread of the runtime's for what blocks, so that nobody else waits for them. Who hangs up is no longer waited for.
use super::page;
use super::problem::Problem;
use super::routes::Admin;
use super::wire::{Flow, FlowList, FlowsQuery};
use crate::config::PortName;
use crate::control::{CommandError, ControlHandle, PortId};
use crate::datapath::flow_list::Listing;
use crate::datapath::{FlowListError, Flows};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use std::collections::BTreeMap;
use std::sync::Arc;
use switch_core::ListedFlow;
use switch_core::engine::control::PortNames;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Paths of flows.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(flows))
}

/// What workers' flow caches hold at this moment: frames that are answered for without asking the tables again.
#[utoipa::path(
    get,
    path = "/v1/flows",
    params(FlowsQuery),
    responses(
        (status = 200, body = FlowList, description = "The flows that are valid"),
        (status = 404, description = "There is no such port")
    )
)]
async fn flows(
    State(control): State<ControlHandle>,
    query: Result<Query<FlowsQuery>, QueryRejection>,
) -> Result<Json<FlowList>, Problem> {
    let FlowsQuery { port, limit } = page::query(query)?;
    let limit = page::limit(limit)?;
    let names = Names(control.port_names().await?);
    let port = port.map(|name| names.port(&name)).transpose()?;
    let lister = control.flows().await?;
    let listing = lister.begin()?;
    let _wanted = Wanted(Arc::clone(&listing));
    let asked = tokio::task::spawn_blocking(move || {
        let listed = lister.list(&listing, (port, limit), &names);
        listed.map(|listed| (listed, names))
    });
    let (listed, names) = asked.await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            .remedy("report this as a fault of Ringswitch")
    })??;
    let names_now = Names(control.port_names().await?);
    Ok(Json(names.list(listed, &names_now)))
}

/// Gives a listing up with whoever waits for it.
struct Wanted(Arc<Listing>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// What ports are called.
struct Names(BTreeMap<PortId, PortName>);

impl Names {
    fn port(&self, name: &str) -> Result<PortId, Problem> {
        let found = self.0.iter().find(|(_, known)| known.as_str() == name);
        found.map(|(id, _)| *id).ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, format!("there is no port {name:?}"))
                .about("port")
                .remedy("GET /v1/ports, or `ringswitch port list`, shows those there are")
        })
    }

    /// The flows of ports that were there before the workers were asked and are there now. One that moved in its cache meanwhile was seen twice.
    fn list(&self, Flows { flows, has_more }: Flows, now: &Self) -> FlowList {
        let named = |(worker, port, flow): (usize, PortId, ListedFlow)| {
            let name = self.0.get(&port)?;
            (now.0.get(&port) == Some(name)).then(|| Flow {
                worker,
                port: name.to_string(),
                flow,
            })
        };
        let mut flows: Vec<Flow> = flows.into_iter().filter_map(named).collect();
        fn place(
            Flow { worker, port, flow }: &Flow,
        ) -> (usize, &str, &[String], &BTreeMap<String, String>) {
            (*worker, port, &flow.headers, &flow.r#match)
        }
        flows.sort_by(|one, other| place(one).cmp(&place(other)));
        flows.dedup_by(|one, other| place(one) == place(other));
        FlowList {
            flows,
            truncated: has_more,
        }
    }
}

impl PortNames for Names {
    fn id(&self, name: &str) -> Option<PortId> {
        self.port(name).ok()
    }

    fn name(&self, id: PortId) -> Option<String> {
        self.0.get(&id).map(PortName::to_string)
    }
}

impl From<FlowListError> for Problem {
    fn from(error: FlowListError) -> Self {
        let detail = error.to_string();
        match error {
            FlowListError::Busy | FlowListError::NoAnswer => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).remedy("try again")
            }
            FlowListError::Stopping => Self::from(CommandError::Stopping),
        }
    }
}
