//! Bodies of the fuzz targets, kept here so that the ordinary tests replay their corpora.
//!
//! * [`ring`]: a virtqueue in hostile memory.
//! * [`session`]: a vhost-user connection with a hostile front-end.
//! * [`stream`]: a stream port with a hostile peer.

pub mod ring;
pub mod session;
pub mod stream;
