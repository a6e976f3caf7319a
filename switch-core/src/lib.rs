//! What happens to a frame.
#![forbid(unsafe_code)]
