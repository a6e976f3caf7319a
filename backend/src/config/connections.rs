//! `[connections]`: bounds and timeouts of connection tracking.
use super::load::{ConfigError, Origin};
use super::value::{InvalidField, bounded};
use serde::Deserialize;
use switch_core::Millis;
use switch_core::conntrack::{ConntrackConfig, TcpPickup, TcpWindows, Timeouts};
use toml::Spanned;

/// Longest timeout, in seconds: a month.
const MAX_TIMEOUT_S: u32 = 31 * 24 * 3600;

macro_rules! connection_settings {
    ($($timeout:ident)*) => {
        /// `[connections]` as written. Timeouts are in seconds.
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct FileConnections {
            /// How many are tracked at once.
            pub capacity: Option<Spanned<i64>>,
            /// How many of them frames of one port may open.
            pub max_per_port: Option<Spanned<i64>>,
            /// How many of them one zone may have.
            pub max_per_zone: Option<Spanned<i64>>,
            /// Whether TCP segments have to be in the window.
            pub tcp_windows: Option<Spanned<TcpWindows>>,
            /// Whether a TCP connection may be met in its middle.
            pub tcp_pickup: Option<Spanned<TcpPickup>>,
            $(
                #[doc = concat!("How long a connection in this state is kept without a frame: `", stringify!($timeout), "`.")]
                pub $timeout: Option<Spanned<i64>>,
            )*
        }

        fn timeouts(
            file: &FileConnections,
            place: &dyn Fn(usize) -> Origin,
        ) -> Result<Timeouts, ConfigError> {
            let mut timeouts = Timeouts::default();
            $(
                if let Some(seconds) = number(stringify!($timeout), file.$timeout.as_ref(), (1, MAX_TIMEOUT_S), place)? {
                    timeouts.$timeout = Millis::from_secs(seconds.into());
                }
            )*
            Ok(timeouts)
        }
    };
}

connection_settings! {
    tcp_syn_sent tcp_syn_recv tcp_established tcp_fin_wait tcp_close_wait tcp_last_ack tcp_time_wait tcp_close
    udp_single udp_stream icmp generic
}

/// What `[connections]` means.
pub(super) fn connections(
    file: &FileConnections,
    place: &dyn Fn(usize) -> Origin,
) -> Result<ConntrackConfig, ConfigError> {
    let mut config = ConntrackConfig::default();
    let most = ConntrackConfig::MAX_CAPACITY;
    let bounds = (1, most);
    if let Some(capacity) = number("capacity", file.capacity.as_ref(), bounds, place)? {
        config.capacity = capacity;
        // As by default: no port can take them all.
        config.per_port_limit = (capacity / 4).max(1);
    }
    if let Some(limit) = number("max_per_port", file.max_per_port.as_ref(), bounds, place)? {
        config.per_port_limit = limit;
    }
    if let Some(limit) = number("max_per_zone", file.max_per_zone.as_ref(), bounds, place)? {
        config.per_zone_limit = limit;
    }
    if let Some(windows) = &file.tcp_windows {
        config.strictness.windows = *windows.get_ref();
    }
    if let Some(pickup) = &file.tcp_pickup {
        config.strictness.pickup = *pickup.get_ref();
    }
    config.timeouts = timeouts(file, place)?;
    Ok(config)
}

fn number(
    field: &'static str,
    value: Option<&Spanned<i64>>,
    (low, high): (u32, u32),
    place: &dyn Fn(usize) -> Origin,
) -> Result<Option<u32>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let invalid = |invalid: InvalidField| ConfigError::Invalid {
        origin: place(value.span().start),
        invalid,
    };
    bounded(field, *value.get_ref(), low, high)
        .map(Some)
        .map_err(invalid)
}
