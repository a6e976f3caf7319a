//! How much of a list is asked for: `?limit=&after=`.
use super::problem::Problem;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;

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
