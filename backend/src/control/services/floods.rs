//! Which ports a bridge domain has, and how each wants frames tagged.
//!
//! A domain's ports are those of a multicast group: the one that the domain's entry in a table `domains` names as `flood`, if the
//! program has such a table, else the group with the domain's number. A port gets frames with the tag `vid` of its entry in a table
//! `tags_out` (keys `port`, `domain`), else untagged; a port whose entry in a table `ports` says `trunk` gets none of a domain that it
//! has no tag for.
//!
//! The tables are looked through when a flood comes after they changed, but never for more than a tenth of the time.
use super::neighbors::Numbers;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch_core::PortId;
use switch_core::engine::control::ListedEntry;
use switch_core::engine::literal::{Literal, parse_number};
use switch_core::engine::model::KeyMatch;
use switch_core::engine::runtime::Engine;

/// Entries looked at at a time.
const PAGE: usize = 4096;
/// A look through the tables is followed by so many times its own duration without one.
const PAUSE: u32 = 9;
/// The tag's ethertype (IEEE 802.1Q).
const TPID: [u8; 2] = [0x81, 0x00];
/// The action of a port that has several domains.
const TRUNK: &str = "trunk";
/// Where the tag goes: behind both MAC addresses.
const TAG_AT: usize = 12;

/// The ports of every bridge domain.
pub struct Floods {
    engine: Arc<Engine>,
    /// Which change of the engine this is of.
    version: Option<u64>,
    /// Not looked at again before.
    not_before: Instant,
    groups: HashMap<u16, Vec<u16>>,
    /// The group of a domain that has an entry.
    group_of: HashMap<u16, u16>,
    /// By port and domain; `None`: untagged.
    tags: HashMap<(u16, u16), Option<u16>>,
    trunks: HashSet<u16>,
}

impl Floods {
    /// Of an engine's program.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            version: None,
            not_before: Instant::now(),
            groups: HashMap::new(),
            group_of: HashMap::new(),
            tags: HashMap::new(),
            trunks: HashSet::new(),
        }
    }

    /// The frames that a flood of `frame` is: one for each port of the domain.
    pub fn copies(
        &mut self,
        domain: u16,
        except: Option<PortId>,
        frame: &[u8],
    ) -> Vec<(PortId, Vec<u8>)> {
        self.refresh();
        let group = self.group_of.get(&domain).copied().unwrap_or(domain);
        let Some(ports) = self.groups.get(&group) else {
            return Vec::new();
        };
        ports
            .iter()
            .filter_map(|&port| PortId::new(port))
            .filter(|&port| Some(port) != except)
            .filter_map(|port| match self.tags.get(&(port.get(), domain)) {
                Some(Some(vid)) => Some((port, tagged(frame, *vid))),
                None if self.trunks.contains(&port.get()) => None,
                Some(None) | None => Some((port, frame.to_vec())),
            })
            .collect()
    }

    fn refresh(&mut self) {
        let version = self.engine.version();
        let started = Instant::now();
        if self.version == Some(version) || started < self.not_before {
            return;
        }
        self.version = Some(version);
        self.groups = self.engine.multicast_groups().into_iter().collect();
        let (mut group_of, mut tags) = (HashMap::new(), HashMap::new());
        let mut trunks = HashSet::new();
        self.each("ports", |listed| {
            if listed.entry.action == TRUNK {
                trunks.insert(number_of(listed.entry.key.get("port")?)?);
            }
            Some(())
        });
        self.each("domains", |listed| {
            let domain = number_of(listed.entry.key.get("domain")?)?;
            group_of.insert(domain, param(listed, "flood")?);
            Some(())
        });
        self.each("tags_out", |listed| {
            let port = number_of(listed.entry.key.get("port")?)?;
            let domain = number_of(listed.entry.key.get("domain")?)?;
            tags.insert((port, domain), param(listed, "vid"));
            Some(())
        });
        (self.group_of, self.tags, self.trunks) = (group_of, tags, trunks);
        let took: Duration = started.elapsed();
        self.not_before = started + took * (PAUSE + 1);
    }

    /// Every entry of a table that the program may have. What does not fit is passed over.
    fn each(&self, table: &str, mut take: impl FnMut(&ListedEntry) -> Option<()>) {
        let mut after = None;
        while let Ok(page) = self.engine.entries(table, (after, PAGE), &Numbers) {
            let Some(last) = page.last() else { return };
            after = Some(last.handle);
            for listed in &page {
                let _ = take(listed);
            }
        }
    }
}

fn param(listed: &ListedEntry, name: &str) -> Option<u16> {
    number(listed.entry.params.get(name)?)
}

fn number_of(key: &KeyMatch) -> Option<u16> {
    match key {
        KeyMatch::Text(literal) => number(literal),
        _ => None,
    }
}

fn number(literal: &Literal) -> Option<u16> {
    let number = match literal {
        Literal::Number(number) => *number,
        Literal::Text(text) => parse_number(text)?,
    };
    u16::try_from(number).ok()
}

fn tagged(frame: &[u8], vid: u16) -> Vec<u8> {
    let Some((macs, rest)) = frame.split_at_checked(TAG_AT) else {
        return frame.to_vec();
    };
    [macs, &TPID, &vid.to_be_bytes(), rest].concat()
}
