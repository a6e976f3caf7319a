//! The command line: `ringswitch run`, and the client of a running daemon.
//!
//! In the order a call flows:
//!
//! * [`arguments`]: what can be said;
//! * [`table_arguments`]: of that, what concerns programs and tables; [`entry_text`]: keys and arguments;
//! * [`page_arguments`]: pages of long lists;
//! * [`device_arguments`], [`device_commands`]: the virtual-device table; [`flow_commands`]: what workers remember;
//! * [`exit`]: what every error means for the exit code;
//! * [`reach`]: where the daemon is, and how one gets there;
//! * [`client`]: one HTTP request to it;
//! * [`commands`]: each subcommand: ask, then print;
//! * [`program`], [`table_commands`], [`load`]: those of programs and tables;
//! * [`services`]: those of services, [`port_state`]: those of ports' states; [`config_commands`]: what runs beside the configuration file;
//! * [`batch`]: ports and tables in one go; [`events`]: what happens, as it happens;
//! * [`capture`]: a port's frames as they pass; [`top`]: rates on a terminal; [`doctor`]: what is wrong, and what to do;
//! * [`completions`], [`man`]: made from what can be said;
//! * [`render`], [`render_rings`], [`render_tables`] and [`table`]: answers as text for people.
pub mod arguments;
pub mod batch;
pub mod capture;
pub mod client;
pub mod commands;
pub mod completions;
pub mod config_commands;
pub mod device_arguments;
pub mod device_commands;
pub mod doctor;
pub mod entry_text;
pub mod events;
pub mod exit;
pub mod flow_commands;
pub mod load;
pub mod man;
pub mod page_arguments;
pub mod port_state;
pub mod program;
pub mod reach;
pub mod render;
pub mod render_rings;
pub mod render_tables;
pub mod services;
pub mod table;
pub mod table_arguments;
pub mod table_commands;
pub mod top;

pub use arguments::Arguments;
pub use commands::execute;
