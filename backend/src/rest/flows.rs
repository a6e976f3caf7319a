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

#[cfg(test)]
mod tests {
    use super::*;
    use switch_core::FlowDecision;

    fn names(named: &[(u16, &str)]) -> Names {
        let named = named.iter();
        Names(
            named
                .map(|&(id, name)| (PortId::new(id).unwrap(), PortName::parse(name).unwrap()))
                .collect(),
        )
    }

    fn flow(worker: usize, port: u16, to: &str) -> (usize, PortId, ListedFlow) {
        let flow = ListedFlow {
            headers: vec!["ethernet".to_owned()],
            r#match: BTreeMap::from([("ethernet.dst".to_owned(), to.to_owned())]),
            frame_bytes: None,
            wire_bytes: None,
            connection: None,
            metered: false,
            decision: FlowDecision::Flood { vlan: None },
            valid_for_ms: None,
        };
        (worker, PortId::new(port).unwrap(), flow)
    }

    #[test]
    fn flows_are_in_order_each_once_and_of_ports_that_are_the_same_still() {
        let before = names(&[(1, "vm1"), (2, "vm2"), (3, "vm3")]);
        let now = names(&[(1, "vm1"), (2, "another")]);
        let flows = vec![
            flow(1, 1, "b"),
            flow(0, 2, "a"),
            flow(0, 3, "a"),
            flow(0, 4, "a"),
            flow(1, 1, "a"),
            flow(0, 1, "b"),
            flow(1, 1, "b"),
        ];
        let listed = before.list(
            Flows {
                flows,
                has_more: true,
            },
            &now,
        );
        let told: Vec<_> = listed
            .flows
            .iter()
            .map(|Flow { worker, port, flow }| {
                (
                    *worker,
                    port.as_str(),
                    flow.r#match["ethernet.dst"].as_str(),
                )
            })
            .collect();
        assert_eq!(told, [(0, "vm1", "b"), (1, "vm1", "a"), (1, "vm1", "b")]);
        assert!(listed.truncated);
    }
}
