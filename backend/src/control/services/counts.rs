//! What was done with frames for the controller and with what the services said, beside what the services count themselves.
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($field:ident $meaning:literal)*) => {
        /// The live numbers. One thread writes them.
        #[derive(Debug, Default)]
        pub struct Counts {
            $(#[doc = $meaning] pub $field: AtomicU64,)*
        }

        /// The numbers at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
        pub struct CountsView {
            $(#[doc = $meaning] #[serde(default)] pub $field: u64,)*
        }

        impl Counts {
            /// The numbers now.
            pub fn view(&self) -> CountsView {
                CountsView { $($field: self.$field.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counts! {
    frames_received
        "Frames that the program sent to the controller."
    unknown_reasons
        "Of these, those with a reason that the services do not know."
    frames_sent
        "Frames sent straight out of a port, copies of floods among them."
    frames_given_back
        "Frames given back to the program."
    frames_lost
        "Frames that a port was too busy for, or that had no port any more."
    neighbors_installed
        "Neighbours put into the program's table, or changed there."
    neighbors_removed
        "Neighbours taken out of it."
    neighbors_left_alone
        "Neighbours that have an entry of an operator's."
    neighbors_refused
        "Neighbours that the program's table did not take."
}

/// One more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
