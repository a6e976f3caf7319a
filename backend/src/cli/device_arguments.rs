//! What can be said on the command line about the virtual-device table.
use super::page_arguments::PageArguments;
use clap::{Args, Subcommand};

/// What to do with devices.
#[derive(Clone, Debug, Subcommand)]
pub enum DeviceCommand {
    /// Give a VM a NIC while it runs. Adding the same device again changes nothing and succeeds.
    Add(DeviceArguments),
    /// List devices and how they fare.
    List {
        /// Only those of the VM behind this QMP or API socket.
        #[arg(long, value_name = "SOCKET")]
        vm: Option<String>,
        /// Only those in this state: pending, plugging, waiting-for-guest, ready, unplugging or failed.
        #[arg(long)]
        state: Option<String>,
        /// Only those of this model, such as virtio-net.
        #[arg(long)]
        model: Option<String>,
        /// Which part of them.
        #[command(flatten)]
        page: PageArguments,
    },
    /// Show one device: how it fares and why, what to do about it, and how that came about.
    Show {
        /// The device.
        name: String,
    },
    /// Take a NIC from its VM: the guest is asked to let go of it, and then nothing of it is left.
    Remove {
        /// The device.
        name: String,
        /// Take it away although the guest does not let go of it.
        #[arg(long)]
        force: bool,
        /// How long the guest may take, in milliseconds, at most 600000.
        #[arg(long, value_name = "MS", default_value_t = 10_000)]
        timeout: i64,
    },
}

/// A device.
#[derive(Clone, Debug, Args)]
pub struct DeviceArguments {
    /// Its name, which is that of its port too: 1 to 63 letters, digits, '.', '_', '-'.
    pub name: String,
    /// The VM: qemu:SOCKET, with its QMP socket, or cloud-hypervisor:SOCKET, with its API socket.
    #[arg(long, value_name = "HYPERVISOR:SOCKET")]
    pub vm: String,
    /// The NIC.
    #[arg(long, default_value = "virtio-net")]
    pub model: String,
    /// Its address; chosen from the name when left out.
    #[arg(long)]
    pub mac: Option<String>,
    /// Pairs of rings, 1 to 64.
    #[arg(long, value_name = "N")]
    pub queue_pairs: Option<i64>,
    /// Offer packed rings.
    #[arg(long)]
    pub packed: bool,
    /// The MTU offered to the guest, 68 to 9216.
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<i64>,
    /// The port's VLANs: ID, or trunk:ID+ID.
    #[arg(long)]
    pub vlan: Option<String>,
    /// The VLAN of a trunk's untagged frames.
    #[arg(long, value_name = "ID", requires = "vlan")]
    pub native: Option<i64>,
    /// The port's socket; chosen beside the admin socket when left out.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// Wait until the guest has taken it up, for so many seconds at most.
    #[arg(long, value_name = "SECONDS")]
    pub wait: Option<u32>,
}
