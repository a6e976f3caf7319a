//! What can be said about programs, tables, what belongs to them, and frames to be explained.
use super::page_arguments::PageArguments;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// How entries are written.
pub const ENTRY_SYNTAX: &str = "\
A key is written as name=value pairs separated by commas; a comma within a value is doubled. A value is, by the key field's kind:
  exact, optional      10.0.0.1, 52:54:00:12:34:56, 443, 0x0800, a port's name
  lpm                  10.0.0.0/8
  ternary              a value, a prefix, or value&mask
  range                a value, or 80..443
What is left out of a ternary, range or optional field matches anything.
Example: ringswitch table add acl_in 'port=vm1,protocol=6,dst=10.0.0.0/8,dst_port=80..443' --priority 10 --action allow 'mark=5'";

/// How flows are written.
pub const FLOW_SYNTAX: &str = "\
A flow is: tcp|udp SOURCE:PORT > DESTINATION:PORT, or icmp|arp SOURCE > DESTINATION; IPv6 with a port in brackets. Behind it, in any order:
  mac A > B, vlan N, ttl N, flags SAFRPU (of TCP; S otherwise), bytes N (of payload)
Example: ringswitch explain --port vm1 'tcp 10.0.0.5:1234 > 10.0.1.9:443 flags A'";

/// What to do with tables.
#[derive(Clone, Debug, Subcommand)]
pub enum TableCommand {
    /// List every table.
    List,
    /// Show one table: key, actions, default.
    Show {
        /// The table.
        table: String,
    },
    /// List the entries of a table.
    Entries {
        /// The table.
        table: String,
        /// At most so many.
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Say how many entries a table has.
    Count {
        /// The table.
        table: String,
    },
    /// Add an entry; refused when it is there.
    #[command(after_help = ENTRY_SYNTAX)]
    Add(EntryArguments),
    /// Give an entry another action; refused when it is not there.
    #[command(after_help = ENTRY_SYNTAX)]
    Modify(EntryArguments),
    /// Add an entry, or give it another action.
    #[command(after_help = ENTRY_SYNTAX)]
    Put(EntryArguments),
    /// Delete an entry.
    #[command(after_help = ENTRY_SYNTAX)]
    Delete {
        /// The table.
        table: String,
        /// The key as name=value,name=value.
        #[arg(default_value = "")]
        key: String,
        /// The entry's priority.
        #[arg(long, allow_negative_numbers = true)]
        priority: Option<i32>,
    },
    /// Delete every entry of a table.
    Clear {
        /// The table.
        table: String,
    },
    /// Say what happens when no entry matches; without an action: what the program says.
    Default {
        /// The table.
        table: String,
        /// The action.
        action: Option<String>,
        /// Its arguments as name=value,name=value.
        #[arg(default_value = "")]
        params: String,
    },
    /// Carry out a batch, whole or not at all: a file with {"updates": [...]}, as docs/rest.md describes it.
    Batch {
        /// The file; - is standard input.
        file: PathBuf,
    },
    /// Put many entries, in batches: a file with one entry as JSON on each line.
    Load {
        /// The file; - is standard input.
        file: PathBuf,
        /// Entries in one batch, which takes effect whole or not at all.
        #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        batch: u32,
    },
    /// Show what does not fit the program and is kept aside.
    Aside {
        /// Forget it.
        #[arg(long)]
        discard: bool,
    },
}

/// An entry.
#[derive(Clone, Debug, Args)]
pub struct EntryArguments {
    /// The table.
    pub table: String,
    /// The key as name=value,name=value.
    pub key: String,
    /// The action's arguments as name=value,name=value.
    #[arg(default_value = "")]
    pub params: String,
    /// The action.
    #[arg(long)]
    pub action: String,
    /// Which of several entries that match wins: the largest. In tables with ternary, range or optional keys.
    #[arg(long, allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// Remove it after this long without a frame, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub idle_timeout_ms: u32,
    /// Remove it after this long, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub hard_timeout_ms: u32,
    /// Whose quota it counts against.
    #[arg(long)]
    pub tenant: Option<String>,
}

/// What to do with programs.
#[derive(Clone, Debug, Subcommand)]
pub enum ProgramCommand {
    /// Print the P4Info document of the running program, or of another, for which no daemon is needed.
    Info {
        /// l2, vpc, or a program's JSON file.
        #[arg(long, value_name = "PROGRAM")]
        program: Option<String>,
    },
    /// Print the running program, or another, as JSON.
    Show {
        /// l2, vpc, or a program's JSON file.
        #[arg(long, value_name = "PROGRAM")]
        program: Option<String>,
    },
    /// Check a program's JSON file, and print every fault with its place.
    Check {
        /// The file, or l2 or vpc.
        program: String,
    },
    /// Print the JSON schema of programs.
    Schema,
}

/// What to do with weighted groups.
#[derive(Clone, Debug, Subcommand)]
pub enum GroupCommand {
    /// List every group that has members.
    List,
    /// Give a group its members; none: the group is empty.
    Set {
        /// The selector.
        selector: String,
        /// The group, from 1 on.
        group: u32,
        /// A member as name=value,name=value, with weight=N for another share than 1; repeatable.
        #[arg(long = "member")]
        members: Vec<String>,
    },
}

/// What to do with multicast groups.
#[derive(Clone, Debug, Subcommand)]
pub enum MulticastCommand {
    /// List every group that has ports.
    List,
    /// Give a group its ports; none: the group is empty.
    Set {
        /// The group, from 1 on.
        group: u16,
        /// The ports, by name or number.
        ports: Vec<String>,
    },
}

/// What to do with meters.
#[derive(Clone, Debug, Subcommand)]
pub enum MeterCommand {
    /// List every meter that has a rate.
    List,
    /// Give a meter its rate; without one: unlimited.
    Set {
        /// The array.
        meter: String,
        /// Which of it.
        index: u32,
        /// Bytes of frames a second.
        #[arg(long)]
        bytes_per_second: Option<u64>,
        /// How many at once.
        #[arg(long, requires = "bytes_per_second")]
        burst_bytes: Option<u64>,
        /// Frames a second.
        #[arg(long)]
        frames_per_second: Option<u64>,
        /// How many at once.
        #[arg(long, requires = "frames_per_second")]
        burst_frames: Option<u64>,
    },
}

/// What to do with counters.
#[derive(Clone, Debug, Subcommand)]
pub enum CounterCommand {
    /// List the counters of an array that are not zero.
    List {
        /// The array.
        counter: String,
        /// From this index on.
        #[arg(long, value_name = "INDEX", default_value_t = 0)]
        from: u32,
        /// At most so many [default: all].
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
}

/// What to do with tracked connections.
#[derive(Clone, Debug, Subcommand)]
pub enum ConnectionCommand {
    /// List tracked connections.
    List(PageArguments),
}

/// A frame to be explained.
#[derive(Clone, Debug, Args)]
pub struct ExplainArguments {
    /// The port it comes from.
    #[arg(long)]
    pub port: String,
    /// The frame in hex, from the destination address on.
    #[arg(long, value_name = "HEX", group = "what")]
    pub frame: Option<String>,
    /// A capture; its first 100 frames are explained.
    #[arg(long, value_name = "FILE", group = "what")]
    pub pcap: Option<PathBuf>,
    /// The first frame of a flow, in words.
    #[arg(group = "what")]
    pub flow: Option<String>,
    /// The latest frames that were dropped at the port, and why.
    #[arg(long, group = "what")]
    pub last_drops: bool,
    /// As if this batch had been carried out: a file with {"updates": [...]}.
    #[arg(long, value_name = "FILE", conflicts_with = "last_drops")]
    pub what_if: Option<PathBuf>,
}
