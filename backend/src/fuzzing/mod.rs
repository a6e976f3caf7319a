//! Bodies of the fuzz targets, kept here so that the ordinary tests replay their corpora.
//!
//! * [`ring`]: a virtqueue in hostile memory.

pub mod ring;
