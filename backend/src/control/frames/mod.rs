//! Frames to be explained, from what people have: text, hex, captures.
//!
//! * [`flow`]: `tcp 10.0.0.5:1234 > 10.0.1.9:443` to a frame with those headers;
//! * [`capture`]: the frames of a pcap or pcapng file;
//! * [`encoding`]: hex and base64.
//!
//! Used by the admin socket and, for files, by the command line. Everything is bounded by the length of its input.
pub mod capture;
pub mod encoding;
pub mod flow;

/// Longest frame that is explained, in bytes.
pub const MAX_FRAME_BYTES: usize = 65_550;
