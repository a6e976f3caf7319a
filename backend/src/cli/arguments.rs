//! What can be said on the command line.
use super::device_arguments::DeviceCommand;
use super::events::EventsArguments;
use super::flow_commands::FlowCommand;
use super::page_arguments::PageArguments;
use super::table_arguments::{
    ConnectionCommand, CounterCommand, ExplainArguments, FLOW_SYNTAX, GroupCommand, MeterCommand,
    MulticastCommand, ProgramCommand, TableCommand,
};
use crate::config::{DEFAULT_ADMIN_SOCKET, Overrides, RemoteFlags};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Environment variable that names the admin socket when `--admin` does not.
pub const ADMIN_VARIABLE: &str = "RINGSWITCH_ADMIN";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the operation failed; 2 wrong usage or configuration; 3 the daemon cannot be reached, or went away; 4 `config diff` found differences; 5 `doctor` found warnings; 6 `doctor` found problems.";

const PORT_SYNTAX: &str = "\
A port is written as key=value pairs separated by commas; a comma within a value is doubled.
  name=NAME            1 to 63 letters, digits, '.', '_', '-' (required)
  type=TYPE            vhost-user, stream (QEMU's -netdev stream) or tap (required)
  socket=PATH          vhost-user, stream: absolute path of its socket (required)
  mode=MODE            vhost-user, stream: server (default, Ringswitch listens) or client
  queue_pairs=N        vhost-user: 1 to 64 (default 1)
  packed=true          vhost-user: offer packed rings (default false)
  device_state=true    vhost-user: what the switch knows of the port migrates with its VM (default false)
  interface=NAME       tap: the interface, created if absent (required)
  mtu=BYTES            68 to 9216
  vlan=ID              access port of one VLAN
  vlan=trunk:ID+ID     trunk of tagged VLANs; native=ID is that of its untagged frames
Example: name=vm1,type=vhost-user,socket=/run/ringswitch/vm1.sock,queue_pairs=2,vlan=10";

const CAPTURE_SYNTAX: &str = "\
An expression, as tcpdump has it (docs/cli.md):
  host 10.0.0.1   net 10.0.0.0/8   port 53   src ..., dst ...   ip, ip6, arp, tcp, udp, icmp, icmp6
  ether host 52:54:00:00:00:01     vlan, vlan 10                and, or, not, ( )
  in: from the port's guest        out: for the port's guest    drop, dropped REASON
Examples: ringswitch port capture vm1 --filter 'tcp port 80 and drop'
          ringswitch port capture vm1 | wireshark -k -i -";

/// A software switch that serves virtual machines' NICs over vhost-user.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringswitch", version, after_help = EXIT_CODES)]
pub struct Arguments {
    /// How the daemon is reached.
    #[command(flatten)]
    pub reach: Reach,
    /// Print the daemon's JSON as it is, for programs.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How the daemon is reached.
#[derive(Clone, Debug, Default, Args)]
pub struct Reach {
    /// The daemon's admin socket [default: $RINGSWITCH_ADMIN, or /run/ringswitch/admin.sock].
    #[arg(long, global = true, value_name = "SOCKET")]
    pub admin: Option<String>,
    /// A daemon that listens on TCP, such as https://host1:8443, instead of an admin socket [default: $RINGSWITCH_URL].
    #[arg(long, global = true, value_name = "URL", conflicts_with = "admin")]
    pub url: Option<String>,
    /// With --url: the file with the token [default: $RINGSWITCH_TOKEN_FILE]. Of `run` and `check`: the tokens of clients over TCP.
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<String>,
    /// With --url: the CA that the daemon's certificate is of, a PEM file [default: $RINGSWITCH_CA].
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<String>,
    /// With --url: a certificate that proves who asks, a PEM file [default: $RINGSWITCH_CERT].
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<String>,
    /// With --url: the key of that certificate, a PEM file [default: $RINGSWITCH_KEY].
    #[arg(long, global = true, value_name = "FILE")]
    pub key: Option<String>,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the switch until SIGTERM or SIGINT.
    #[command(after_help = PORT_SYNTAX)]
    Run(Settings),
    /// Check a configuration as `run` would, and change nothing.
    #[command(after_help = PORT_SYNTAX)]
    Check(Settings),
    /// List, show, add and remove ports of the running switch.
    Port {
        /// What to do with ports.
        #[command(subcommand)]
        command: PortCommand,
    },
    /// Give NICs to running VMs and take them away again: the virtual-device table.
    Device {
        /// What to do with devices.
        #[command(subcommand)]
        command: DeviceCommand,
    },
    /// Compare what runs with the configuration file, and write it there.
    Config {
        /// What to do with the configuration.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// List the workers and what they serve; put a port on a worker.
    Worker {
        /// What to do with workers.
        #[command(subcommand)]
        command: WorkerCommand,
    },
    /// Show the counters of ports and workers.
    Stats {
        /// Show rates every so many seconds (0.1 to 3600), until interrupted.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = watch_seconds)]
        watch: Option<f64>,
    },
    /// Print everything that is counted, as Prometheus reads it.
    Metrics,
    /// Show which address was learnt where.
    Fdb(PageArguments),
    /// Print what happens, as it happens: ports, devices, migrations, stations; until interrupted.
    Events(EventsArguments),
    /// Add and remove ports and change tables in one go, whole or not at all: a file with {"ports": [...], "updates": [...]}, as docs/rest.md
    /// describes it.
    Batch {
        /// The file; - is standard input.
        file: PathBuf,
    },
    /// Watch rates, drops and workers on the terminal. Keys: q ends it, s sorts by the next column, p pauses, space looks at once.
    Top {
        /// How often to look, in seconds (0.1 to 3600).
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = watch_seconds)]
        interval: f64,
        /// What to sort ports by.
        #[arg(long, value_enum, default_value_t)]
        sort: TopSort,
        /// Print one page and end; so it does when standard output is not a terminal.
        #[arg(long)]
        once: bool,
    },
    /// Look the host and its ports over, or one port, and say what to do. Exit code 0: all is well; 5: there are warnings; 6: problems.
    Doctor {
        /// The port; otherwise all of them.
        port: Option<String>,
    },
    /// Replace the running daemon by another version, or by itself with a changed configuration, while guests notice nothing.
    Upgrade {
        /// The program to start; otherwise the one that runs, as it is on disk now.
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// How long it may take to be ready, in milliseconds, at most 10000.
        #[arg(long, value_name = "MS", default_value_t = 5000)]
        timeout: i64,
    },
    /// Show and check programs: what the switch does with frames.
    Program {
        /// What to do with programs.
        #[command(subcommand)]
        command: ProgramCommand,
    },
    /// List and change tables and their entries.
    Table {
        /// What to do with tables.
        #[command(subcommand)]
        command: TableCommand,
    },
    /// List and change weighted groups.
    Group {
        /// What to do with groups.
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// List and change multicast groups.
    Multicast {
        /// What to do with multicast groups.
        #[command(subcommand)]
        command: MulticastCommand,
    },
    /// List and change rates.
    Meter {
        /// What to do with meters.
        #[command(subcommand)]
        command: MeterCommand,
    },
    /// List counters of the program.
    Counter {
        /// What to do with counters.
        #[command(subcommand)]
        command: CounterCommand,
    },
    /// List what workers remember of frames: their flow caches.
    Flow {
        /// What to do with flows.
        #[command(subcommand)]
        command: FlowCommand,
    },
    /// List tracked connections.
    Connection {
        /// What to do with connections.
        #[command(subcommand)]
        command: ConnectionCommand,
    },
    /// Show and set what the switch answers by itself: ARP, ping, DHCP, router advertisements.
    Services {
        /// What to do with services.
        #[command(subcommand)]
        command: ServicesCommand,
    },
    /// Say what would happen to a frame, step by step, or why the latest were dropped.
    #[command(after_help = FLOW_SYNTAX)]
    Explain(ExplainArguments),
    /// Print the daemon's REST interface as an OpenAPI document.
    Openapi,
    /// List every reason to drop a frame, with what to do about it. Needs no daemon.
    DropReasons,
    /// Print a script that completes commands in a shell. Needs no daemon.
    Completions {
        /// The shell.
        shell: CompletionShell,
    },
    /// Print the manual page, or write those of all commands to a folder. Needs no daemon.
    Man {
        /// The folder, which must exist.
        directory: Option<PathBuf>,
    },
    /// What the daemon starts for a port whose VM arrives page by page.
    #[command(hide = true)]
    PostcopyPager,
}

/// What `top` sorts ports by: the most first, or their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopSort {
    /// Frames their guests send.
    #[default]
    Tx,
    /// Frames delivered to their guests.
    Rx,
    /// Frames dropped.
    Drops,
    /// Workers' time on what their guests send.
    Busy,
    /// Their names.
    Name,
}

/// A shell that commands can be completed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// bash(1).
    Bash,
    /// zsh(1).
    Zsh,
    /// fish(1).
    Fish,
}

/// What to do with ports.
#[derive(Clone, Debug, Subcommand)]
pub enum PortCommand {
    /// List every port.
    List(PageArguments),
    /// Show one port: its configuration, its state and why, its counters, and what to do about dropped frames.
    Show {
        /// The port.
        name: String,
        /// Only the latest frames that were dropped, and why.
        #[arg(long)]
        last_drops: bool,
    },
    /// Add a port. Adding the same port again changes nothing and succeeds.
    #[command(after_help = PORT_SYNTAX)]
    Add {
        /// The port as key=value,key=value.
        #[arg(value_name = "PORT")]
        port: String,
    },
    /// Remove a port.
    Remove {
        /// The port.
        name: String,
    },
    /// Show the frames of a port as they pass, with what becomes of them, until interrupted: as lines on a terminal, otherwise as pcapng.
    #[command(after_help = CAPTURE_SYNTAX)]
    Capture(CaptureArguments),
    /// Write what the switch knows of a port: counters, stations, connections, and the entries that name it.
    Export {
        /// The port.
        name: String,
        /// Where to, instead of standard output.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Give a port what another had, of this switch or of another: all of it, or nothing.
    Import {
        /// The port.
        name: String,
        /// What `port export` wrote; standard input without it.
        file: Option<PathBuf>,
        /// Where an entry is there already and says something else, put the imported one in its place.
        #[arg(long, conflicts_with = "keep")]
        replace: bool,
        /// Where an entry is there already and says something else, keep it.
        #[arg(long)]
        keep: bool,
    },
}

/// What `port capture` is asked.
#[derive(Clone, Debug, Args)]
pub struct CaptureArguments {
    /// The port.
    pub name: String,
    /// Only frames of which this is true.
    #[arg(long, value_name = "EXPRESSION")]
    pub filter: Option<String>,
    /// Write pcapng to this file, readable by nobody else; - is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// End after so many frames.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Keep at most so many bytes of each frame, 14 to 69632 [default: all].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..=69_632))]
    pub snaplen: Option<u32>,
}

/// What to do with the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print what runs: every port, where it comes from, and why it cannot be opened if it cannot.
    Show,
    /// Print how the running ports differ from those of the configuration file. Exit code 0: not at all; 4: they do.
    Diff,
    /// Write the running ports into the configuration file. Comments, and all that is not about a port that differs, stay.
    Save {
        /// Write it to another file, which begins as a copy of the daemon's [default: the file the daemon was started with].
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// What to do with services.
#[derive(Clone, Debug, Subcommand)]
pub enum ServicesCommand {
    /// Print the configuration in effect, as JSON.
    Show,
    /// Set the whole configuration; neighbours and leases that still fit are kept.
    Set {
        /// The configuration as JSON (docs/services.md), or - for standard input.
        file: PathBuf,
    },
    /// List DHCP leases and offers from pools.
    Leases,
    /// List neighbours: known, sought, and those that do not answer.
    Neighbors,
    /// Show what was answered, and what was not and why.
    Stats,
}

/// What to do with workers.
#[derive(Clone, Debug, Subcommand)]
pub enum WorkerCommand {
    /// List every worker, and every ring, TAP and stream with the worker that serves it, busiest first.
    List,
    /// Put a port, or one of its queue pairs, on a worker. It stays there, whatever the load, until --auto or its removal.
    Move {
        /// The port, or one of its queue pairs as PORT/PAIR.
        #[arg(value_name = "PORT[/PAIR]", value_parser = port_and_pair)]
        source: (String, Option<u16>),
        /// The worker's number, from 0.
        #[arg(required_unless_present = "auto", conflicts_with = "auto")]
        worker: Option<usize>,
        /// Leave it to its load again.
        #[arg(long)]
        auto: bool,
    },
}

/// The daemon's configuration: a file, with the flags over it.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// The configuration file (TOML; docs/configuration.md).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A port; repeatable. One with the name of a port in the file replaces that.
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<String>,
    /// Data-path threads, 1 to 64 [default: as many as --cpus, or 1].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub workers: Option<i64>,
    /// The CPU to pin each worker to, such as 2,3.
    #[arg(
        long,
        value_name = "CPU,CPU",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    pub cpus: Option<Vec<i64>>,
    /// The folder, in memory, where packed rings keep their positions [default: `rings` beside the admin socket].
    #[arg(long, value_name = "FOLDER")]
    pub ring_state: Option<String>,
    /// What the switch does with frames: l2, vpc, or the absolute path of a program's JSON file [default: l2].
    #[arg(long, value_name = "PROGRAM")]
    pub program: Option<String>,
    /// The folder where what is changed at run time is durable: ports, table entries and more [default: nowhere].
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<String>,
    /// The services' configuration to begin with, a JSON file (docs/services.md). Once set otherwise, and durable, it is not used.
    #[arg(long, value_name = "FILE")]
    pub services: Option<String>,
    /// The key that signs what migrates of ports with device_state=true, the same file on every host [default: none].
    #[arg(long, value_name = "FILE")]
    pub device_state_key_file: Option<String>,
    /// The admin interface over TCP.
    #[command(flatten)]
    pub remote: RemoteFlags,
}

/// Environment variables for what its flags leave out.
pub const URL_VARIABLE: &str = "RINGSWITCH_URL";
/// See [`URL_VARIABLE`].
pub const TOKEN_FILE_VARIABLE: &str = "RINGSWITCH_TOKEN_FILE";
/// See [`URL_VARIABLE`].
pub const CA_VARIABLE: &str = "RINGSWITCH_CA";
/// See [`URL_VARIABLE`].
pub const CERT_VARIABLE: &str = "RINGSWITCH_CERT";
/// See [`URL_VARIABLE`].
pub const KEY_VARIABLE: &str = "RINGSWITCH_KEY";

impl Reach {
    /// The admin socket that a client connects to.
    pub fn admin_socket(&self) -> PathBuf {
        said(self.admin.as_ref(), ADMIN_VARIABLE)
            .unwrap_or_else(|| DEFAULT_ADMIN_SOCKET.to_owned())
            .into()
    }

    /// The daemon to reach over TCP; `None`: the one on the admin socket. A flag goes over a variable.
    pub fn url(&self) -> Option<String> {
        match (&self.url, &self.admin) {
            (None, Some(_)) => None,
            (url, _) => said(url.as_ref(), URL_VARIABLE),
        }
    }

    /// The file with the token.
    pub fn token_file(&self) -> Option<PathBuf> {
        said(self.token_file.as_ref(), TOKEN_FILE_VARIABLE).map(Into::into)
    }

    /// The CA of the daemon's certificate.
    pub fn ca(&self) -> Option<PathBuf> {
        said(self.ca.as_ref(), CA_VARIABLE).map(Into::into)
    }

    /// The client's own certificate.
    pub fn cert(&self) -> Option<PathBuf> {
        said(self.cert.as_ref(), CERT_VARIABLE).map(Into::into)
    }

    /// Its key.
    pub fn key(&self) -> Option<PathBuf> {
        said(self.key.as_ref(), KEY_VARIABLE).map(Into::into)
    }
}

fn said(flag: Option<&String>, variable: &str) -> Option<String> {
    let variable = || {
        std::env::var(variable)
            .ok()
            .filter(|value| !value.is_empty())
    };
    flag.cloned().or_else(variable)
}

impl Settings {
    /// What the flags say over the file, those that other commands have too among them.
    pub fn overrides(&self, global: &Reach) -> Overrides {
        Overrides {
            workers: self.workers,
            cpus: self.cpus.clone(),
            admin: global.admin.clone(),
            token_file: global.token_file.clone(),
            remote: self.remote.clone(),
            ring_state: self.ring_state.clone(),
            program: self.program.clone(),
            state_dir: self.state_dir.clone(),
            services: self.services.clone(),
            device_state_key_file: self.device_state_key_file.clone(),
            ports: self.ports.clone(),
        }
    }
}

fn port_and_pair(text: &str) -> Result<(String, Option<u16>), String> {
    let Some((port, pair)) = text.split_once('/') else {
        return Ok((text.to_owned(), None));
    };
    match pair.parse() {
        Ok(pair) => Ok((port.to_owned(), Some(pair))),
        Err(_) => Err("use the number of a queue pair, from 0, behind the '/'".to_owned()),
    }
}

fn watch_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("use a number of seconds from 0.1 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(text: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(text.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn run_takes_a_file_and_repeated_ports() {
        let arguments = parse("ringswitch run --config a.toml --port name=a --port name=b --workers 2 --cpus 0,1 --admin /a.sock").unwrap();
        let Command::Run(settings) = &arguments.command else {
            panic!("not run")
        };
        let overrides = settings.overrides(&arguments.reach);
        assert_eq!(settings.config, Some("a.toml".into()));
        assert_eq!(overrides.ports, ["name=a", "name=b"]);
        assert_eq!(
            (overrides.workers, overrides.cpus),
            (Some(2), Some(vec![0, 1]))
        );
        assert_eq!(overrides.admin.as_deref(), Some("/a.sock"));
    }

    #[test]
    fn the_admin_socket_can_be_named_before_or_after_the_subcommand() {
        for text in [
            "ringswitch --admin /a.sock port list",
            "ringswitch port list --admin /a.sock",
            "ringswitch port --admin /a.sock list",
        ] {
            assert_eq!(
                parse(text).unwrap().reach.admin_socket(),
                PathBuf::from("/a.sock"),
                "{text}"
            );
        }
    }

    #[test]
    fn watch_has_a_default_and_bounds() {
        let watch = |text: &str| match parse(text).map(|arguments| arguments.command) {
            Ok(Command::Stats { watch }) => Ok(watch),
            Ok(other) => panic!("not stats: {other:?}"),
            Err(error) => Err(error.exit_code()),
        };
        assert_eq!(watch("ringswitch stats"), Ok(None));
        assert_eq!(watch("ringswitch stats --watch"), Ok(Some(1.0)));
        assert_eq!(watch("ringswitch stats --watch --json"), Ok(Some(1.0)));
        assert_eq!(watch("ringswitch stats --watch 0.5"), Ok(Some(0.5)));
        for bad in ["0", "3601", "NaN", "x"] {
            assert_eq!(
                watch(&format!("ringswitch stats --watch {bad}")),
                Err(2),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_worker_takes_a_port_or_a_pair_or_lets_go_of_it() {
        let moved = |text: &str| match parse(text).unwrap().command {
            Command::Worker {
                command: WorkerCommand::Move { source, worker, .. },
            } => (source.0, source.1, worker),
            other => panic!("not a move: {other:?}"),
        };
        for (text, expected) in [
            ("vm1 2", (None, Some(2))),
            ("vm1/3 0", (Some(3), Some(0))),
            ("vm1/3 --auto", (Some(3), None)),
            ("--auto vm1", (None, None)),
        ] {
            let (port, pair, worker) = moved(&format!("ringswitch worker move {text}"));
            assert_eq!((port.as_str(), (pair, worker)), ("vm1", expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_command_is_a_usage_error() {
        for text in [
            "ringswitch",
            "ringswitch port",
            "ringswitch port show",
            "ringswitch port add",
            "ringswitch fdb x",
            "ringswitch worker",
            "ringswitch worker move",
            "ringswitch worker move vm1",
            "ringswitch worker move vm1 0 --auto",
            "ringswitch worker move vm1/x 0",
            "ringswitch worker move vm1 -1",
            "ringswitch run --prot x",
            "ringswitch table add t k=1",
            "ringswitch table add t --action a",
            "ringswitch table load f --batch 0",
            "ringswitch explain tcp",
            "ringswitch explain --port vm1 --frame 00 flow",
            "ringswitch explain --port vm1 --last-drops --what-if f",
            "ringswitch meter set m 1 --burst-bytes 5",
            "ringswitch program check",
            "ringswitch services",
            "ringswitch services set",
            "ringswitch config",
            "ringswitch batch",
            "ringswitch events --kind port_upp",
            "ringswitch events --count 0",
            "ringswitch counter list c --limit 0",
            "ringswitch config save a.toml",
        ] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
