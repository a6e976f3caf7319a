//! What each port offers to its front-end, frozen for as long as the port is configured.
//!
//! A front-end that reconnects and misses a feature it had before gives up for good, so an offer is fixed before the port's socket
//! exists, and made again by the next process, whatever its version would offer. It ends with the port, or when the port is
//! configured as another device. The control thread changes it; the engine reads it when it opens a port.
use super::tables::StoreError;
use super::tables::rows::{Row, RowKind};
use super::tables::store::{decode, encode};
use crate::config::{PortConfig, PortFields, PortKind, PortName};
use crate::device::features::{Offer, PackedOffer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The offers of all ports, by name. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct FrozenOffers(Arc<Mutex<BTreeMap<PortName, Frozen>>>);

/// An offer, and the port it was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frozen {
    offer: Offer,
    port: PortConfig,
}

/// As the store keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    offer: Offer,
    port: PortFields,
}

impl FrozenOffers {
    /// What the port of this name offers.
    pub fn get(&self, name: &PortName) -> Option<Offer> {
        self.lock().get(name).map(|frozen| frozen.offer)
    }

    pub(super) fn frozen(&self, name: &PortName) -> Option<Frozen> {
        self.lock().get(name).cloned()
    }

    pub(super) fn set(&self, name: &PortName, frozen: Option<Frozen>) {
        match frozen {
            Some(frozen) => drop(self.lock().insert(name.clone(), frozen)),
            None => drop(self.lock().remove(name)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortName, Frozen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frozen {
    /// What a port offers from now on: what it did, if it is the same device and this version can. `None`: it has no front-end.
    pub(super) fn of(port: &PortConfig, earlier: Option<Self>) -> Option<Self> {
        let offer = offer_of(port)?;
        if let Some(earlier) = earlier.filter(|earlier| earlier.port.is_same_device(port)) {
            let lacking = offer.lacks_of(&earlier.offer);
            if lacking.is_empty() {
                return Some(Self {
                    offer: earlier.offer,
                    port: port.clone(),
                });
            }
            log::warn!(
                "port {}: this version does not have {}, which the port offered before: a VM that was attached to it has to be started again",
                port.name,
                lacking.join(", ")
            );
        }
        Some(Self {
            offer,
            port: port.clone(),
        })
    }

    pub(super) fn row(name: &PortName, frozen: Option<&Self>) -> Result<Row, StoreError> {
        let record = frozen.map(|frozen| {
            encode(&Record {
                offer: frozen.offer,
                port: PortFields::from(&frozen.port),
            })
        });
        Ok(Row {
            kind: RowKind::Offer,
            name: name.to_string(),
            value: record.transpose()?,
        })
    }

    pub(super) fn read(bytes: &[u8]) -> Result<(PortName, Self), StoreError> {
        let record: Record = decode(bytes)?;
        let port = PortConfig::from_fields(record.port)
            .map_err(|error| StoreError::Content(error.to_string()))?;
        let offer = record.offer;
        Ok((port.name.clone(), Self { offer, port }))
    }
}

/// What this version offers. Whether packed rings can be had shows only when the port is opened, and they are taken out then.
fn offer_of(port: &PortConfig) -> Option<Offer> {
    match &port.kind {
        PortKind::VhostUser {
            queue_pairs,
            packed,
            device_state,
            ..
        } => {
            let packed = match packed {
                true => PackedOffer::Made,
                false => PackedOffer::NotWanted,
            };
            let offer = Offer::new(queue_pairs.get(), &packed);
            Some(match device_state {
                true => offer.with_device_state(),
                false => offer,
            })
        }
        PortKind::Tap { .. } | PortKind::Stream { .. } => None,
    }
}
