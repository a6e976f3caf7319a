//! A virtual machine without the machine: an in-process VMM and virtio-net driver, the other end of the switch, for tests, benches and
//! fuzzers.
//!
//! It is an independent reading of the VIRTIO 1.3 and vhost-user specifications: it shares no code with the device it drives, checks
//! everything that device does, and breaks every rule on purpose when asked to. It contains no `unsafe`.
//!
//! # The map, in the order in which things happen
//! 1. [`memory`]: memfds and regions ([`GuestMemory`]), buffers cut from them.
//! 2. [`message`]: any vhost-user message, byte for byte ([`RawFrontend`]).
//! 3. [`nic`]: what a NIC is to be ([`NicOptions`]), one message at a time ([`Session`], over `vhost`'s `Frontend`), the order in which QEMU
//!    and Cloud Hypervisor send them ([`MessageOrder`]), and the NIC with the events of a VM's life ([`Nic`]).
//! 4. [`ring`]: virtqueues, split and packed, from the driver's side ([`Virtqueue`]), and any word of them ([`RawRing`],
//!    [`RawPackedRing`]).
//! 5. [`driver`]: frames into guest-tx rings ([`GuestTx`]), frames out of guest-rx rings ([`GuestRx`]).
//! 6. [`frame`]: frames with offload headers ([`Frame`]), built with a pattern that can be verified ([`FrameBuilder`](frame::FrameBuilder)),
//!    and verified on arrival ([`frame::verify`]).
//! 7. [`migrate`]: whether all that a back-end writes is marked while a VM migrates, seen by comparing all of memory.
//! 8. [`misbehave`]: tables of chains and messages that no honest guest or front-end would send.
//! 9. [`mod@bench`]: guests that bounce frames as fast as they can ([`Bounce`](bench::Bounce)), the machine's state, and the program under test
//!    as a process ([`Daemon`](bench::Daemon)).
//!
//! # Two guests exchange a frame
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//! use guest_sim::frame::{FrameBuilder, verify};
//! use guest_sim::{Features, GuestMemory, GuestMemoryLayout, Nic, NicOptions};
//!
//! # fn main() -> Result<(), guest_sim::Error> {
//! let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20))?;
//! let options = NicOptions { guest_tx_ring_size: 1024, ..NicOptions::default() };
//! let mut vm1 = Nic::attach(&memory, options.clone(), Path::new("vm1.sock"))?;
//! let mut vm2 = Nic::attach(&memory, options, Path::new("vm2.sock"))?;
//!
//! let frame = FrameBuilder::tcp4(20_000).checksum_offload().segment(1448).build();
//! vm1.send(&frame)?;
//! // Segmentation was acked on both sides: the frame travels in one piece.
//! let arrived = vm2.receive(Duration::from_secs(5))?;
//! assert_eq!(arrived.map(|frame| frame.bytes), Some(frame.bytes));
//! # Ok(())
//! # }
//! ```
//!
//! # What goes wrong
//! Every fallible call answers [`Error`]. [`Error::Device`] carries a [`DeviceFault`]: the device broke the named rule, which is a bug in
//! it. [`Error::Refused`], [`Error::Disconnected`] and [`Error::Timeout`] name the message that met them; nothing waits longer than
//! [`NicOptions::deadline`].
//!
//! # Taking control
//! * [`Nic::introduce`], [`Nic::start`], [`Nic::start_from`], [`Nic::pause`], [`Nic::resume`], [`Nic::reset`], [`Nic::reconnect`],
//!   [`Nic::shut_down`] and dropping are a VM's life, each as the chosen front-end words it. [`Nic::session`] sends single messages in any
//!   other order, [`Session::raw`] any bytes.
//! * [`Nic::start_logging`] has the back-end mark the pages it writes; [`Nic::vmm`] reads the log, changes it and ends it.
//! * [`Nic::split`] and [`Nic::halves`] lend the queue pairs to other threads while messages go out.
//! * [`GuestTx::queue`] and [`GuestTx::publish`] apart make batches; [`Refill::Manual`] with [`GuestRx::post`] counts buffers exactly.
//! * [`Nic::raw_ring`] and [`Nic::raw_packed_ring`] write any descriptor, entry or index, and kick.
//! * [`nic::session::Listener`] is for a back-end that connects to the VMM; pass what it accepts to [`Nic::introduce`].
//!
//! [`FrameBuilder`]: frame::FrameBuilder

pub mod bench;
pub mod driver;
pub mod error;
pub mod features;
pub mod frame;
pub mod memory;
pub mod message;
pub mod migrate;
pub mod misbehave;
pub mod nic;
pub mod ring;

pub use driver::{ChainLayout, GuestRx, GuestTx, Patience, Waiting};
pub use error::{DeviceFault, Error};
pub use features::Features;
pub use frame::{Frame, VnetHeader};
pub use memory::{GuestMemory, GuestMemoryLayout, RegionLayout};
pub use message::{RawFrontend, Request};
pub use nic::{
    Ack, Canaries, DirtyLog, Listener, MemoryUpdate, MessageOrder, Nic, NicOptions,
    ProtocolFeatures, QueuePair, Refill, RingBase, RingState, Session, Settle, Vmm,
};
pub use ring::{
    Descriptor, DescriptorTable, EventSuppression, Format, PackedDescriptor, Position,
    RawPackedRing, RawRing, Virtqueue,
};
