//! Stream ports (QEMU's `-netdev stream`): frames both ways, peers that come and go, and peers that misbehave.

mod frames;
mod hostile;
mod life;
mod peer;
