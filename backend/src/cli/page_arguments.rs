//! Which part of a list is shown.
use super::reach::percent_encoded;
use clap::Args;

/// A page of a list; when nothing is said, everything, or as much as the list's path has by itself.
#[derive(Args, Clone, Debug, Default)]
pub struct PageArguments {
    /// How many at most, 1 to 10,000.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: Option<u32>,
    /// Those behind this one: what the page before ended with.
    #[arg(long, value_name = "PLACE")]
    after: Option<String>,
}

impl PageArguments {
    /// The parts of a query.
    pub fn parts(&self) -> Vec<String> {
        let limit = self.limit.map(|limit| format!("limit={limit}"));
        let after = self.after.as_ref();
        let after = after.map(|after| format!("after={}", percent_encoded(after)));
        limit.into_iter().chain(after).collect()
    }

    /// A path with its query.
    pub fn of(&self, path: &str) -> String {
        format!("{path}?{}", self.parts().join("&"))
    }
}

/// A list as it is printed, with how to see its next page.
pub fn with_next(list: String, next: Option<&String>) -> String {
    match next {
        Some(next) => format!("{list}more: --after {next}\n"),
        None => list,
    }
}
