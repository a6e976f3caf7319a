//! `ringswitch top`: rates, drops and workers on a terminal, looked at again and again.
//!
//! `page` makes the text, `screen` has the terminal while it lasts. Without a terminal, or with `--once`, one page is printed.
mod page;
mod screen;

use super::arguments::TopSort;
use super::client::{Client, ClientError};
use super::commands::{Format, print, print_json};
use super::exit::CliError;
use crate::rest::wire::StatsReport;
use screen::{Key, Screen};
use std::io::{self, IsTerminal};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};

/// How long the daemon may take to answer: no key is heard meanwhile.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks every `interval` until it is told to end; once, if that is wanted.
pub async fn top(
    (interval, sort, once): (Duration, TopSort, bool),
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let is_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    let before = look(client).await?;
    if once || !is_terminal || format == Format::Json {
        tokio::time::sleep(interval).await;
        let body = client.get("/v1/stats").await?;
        let now: StatsReport = client.decode(&body)?;
        return match format {
            Format::Json => print_json(&body),
            Format::Text => print(&page::text(&before, &now, sort)),
        };
    }
    let mut view = View {
        interval,
        sort,
        paused: false,
        looks: (before, None),
        fault: None,
    };
    let mut screen = Screen::open().map_err(failed)?;
    let ended = view.run(&mut screen, client).await;
    // Before anything is said of how it ended.
    drop(screen);
    ended
}

fn failed(source: io::Error) -> CliError {
    CliError::Io {
        action: "use the terminal",
        source,
    }
}

async fn look(client: &Client) -> Result<StatsReport, ClientError> {
    client.decode(&client.get("/v1/stats").await?)
}

/// What is on the screen.
struct View {
    interval: Duration,
    sort: TopSort,
    paused: bool,
    /// The look before the last, and the last.
    looks: (StatsReport, Option<StatsReport>),
    /// Why there is no newer one.
    fault: Option<String>,
}

/// What ends a view, or draws it anew.
struct Signals {
    window: Signal,
    ends: [Signal; 3],
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            window: signal(SignalKind::window_change())?,
            ends: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ],
        })
    }
}

impl View {
    async fn run(&mut self, screen: &mut Screen, client: &Client) -> Result<(), CliError> {
        let mut signals = Signals::catch().map_err(failed)?;
        let [interrupt, terminate, hang_up] = &mut signals.ends;
        let mut next = Instant::now() + self.interval;
        loop {
            self.draw(screen).map_err(failed)?;
            tokio::select! {
                () = sleep_until(next), if !self.paused => {
                    self.look(client).await;
                    next = Instant::now() + self.interval;
                }
                key = screen.key() => match key {
                    Some(Key::Quit) | None => return Ok(()),
                    Some(Key::Sort) => self.sort = page::next_sort(self.sort),
                    Some(Key::Pause) => self.paused = !self.paused,
                    Some(Key::Look) => self.look(client).await,
                    Some(Key::Other) => {}
                },
                _ = signals.window.recv() => {}
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hang_up.recv() => return Ok(()),
            }
        }
    }

    /// A daemon that does not answer may be there again later: the last look stays.
    async fn look(&mut self, client: &Client) {
        match timeout(PATIENCE, look(client)).await {
            Ok(Ok(now)) => {
                if let Some(last) = self.looks.1.replace(now) {
                    self.looks.0 = last;
                }
                self.fault = None;
            }
            Ok(Err(error)) => self.fault = Some(error.to_string()),
            Err(_) => self.fault = Some("the daemon does not answer".to_owned()),
        }
    }

    fn draw(&self, screen: &mut Screen) -> io::Result<()> {
        let (before, now) = &self.looks;
        let text = match now {
            Some(now) => page::text(before, now, self.sort),
            None => "looking\n".to_owned(),
        };
        let what = if self.paused { "paused" } else { "" };
        let sort = page::sort_name(self.sort);
        let head = format!("ringswitch top  sorted by {sort}  {what}  q quit, s sort, p pause");
        let fault = self.fault.as_deref().unwrap_or_default();
        screen.show(&head, fault, &text)
    }
}
