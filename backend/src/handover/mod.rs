//! The running daemon, replaced by another process under VMs that notice nothing.
pub mod descriptors;
