//! How much of a list is asked for: `?limit=&after=`.
use super::problem::Problem;
use crate::control::FdbEntry;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use std::fmt;
use switch_core::{MacAddress, VlanId};

/// Most rows of one answer.
pub const MAX_ROWS: u32 = 10_000;
/// Rows of an answer of which nothing is said.
const USUAL_ROWS: u32 = 1_000;

/// The parts of a query.
pub fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(parts)| parts).map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())
            .remedy("docs/rest.md says what this path takes: numbers in digits, each part once")
    })
}

/// As many rows as are asked for, and the place of the last if there are more; without `limit`, [`MAX_ROWS`].
pub fn cut<T, P>(
    rows: impl Iterator<Item = T>,
    asked: Option<u32>,
    place: impl Fn(&T) -> P,
) -> Result<(Vec<T>, Option<P>), Problem> {
    let limit = limit(Some(asked.unwrap_or(MAX_ROWS)))?;
    let mut rows: Vec<T> = rows.take(limit + 1).collect();
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| has_more).map(place);
    Ok((rows, next))
}

/// A place among learnt addresses: by VLAN, that of ports without one last, then by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbPlace {
    vlan: u16,
    mac: [u8; 6],
}

/// Stands for no VLAN: VLANs end at 4094.
const NO_VLAN: u16 = u16::MAX;

impl FdbPlace {
    /// Of an address.
    pub fn of(entry: &FdbEntry) -> Self {
        Self {
            vlan: entry.vlan.map_or(NO_VLAN, VlanId::get),
            mac: entry.mac.0,
        }
    }

    /// From `next` of a page.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let place = || {
            let (vlan, mac) = text.split_once('-')?;
            let vlan = match vlan {
                "none" => NO_VLAN,
                number => number.parse().ok().filter(|id| *id <= 4094)?,
            };
            let MacAddress(mac) = mac.parse().ok()?;
            Some(Self { vlan, mac })
        };
        place().ok_or_else(|| {
            Problem::new(StatusCode::BAD_REQUEST, "it is no place among addresses")
                .about("after")
                .remedy("send what `next` said, such as 10-52:54:00:12:34:56")
        })
    }
}

impl fmt::Display for FdbPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = MacAddress(self.mac);
        match self.vlan {
            NO_VLAN => write!(f, "none-{mac}"),
            vlan => write!(f, "{vlan}-{mac}"),
        }
    }
}

/// How many rows, from `limit` of a query.
pub fn limit(asked: Option<u32>) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(USUAL_ROWS);
    if (1..=MAX_ROWS).contains(&limit) {
        return Ok(limit as usize);
    }
    let detail = format!("{limit} is out of bounds");
    Err(Problem::new(StatusCode::BAD_REQUEST, detail)
        .about("limit")
        .remedy(format!("use 1 to {MAX_ROWS}, and ask for the next page")))
}
