//! Bodies of the fuzz targets, kept here so that the ordinary tests replay their corpora.
//!
//! * [`ring`]: a virtqueue in hostile memory.
//! * [`session`]: a vhost-user connection with a hostile front-end.

pub mod ring;
pub mod session;
