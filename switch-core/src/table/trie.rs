//! The index of longest-prefix tables: a trie over the whole key, the exact part first.
//!
//! A node tells 64 branches apart, by the six bits from its depth on, and holds prefixes of up to five of those bits (a tree bitmap:
//! Eatherton et al., SIGCOMM CCR 2004). There is a node only where two prefixes part, so what lies between two nodes is skipped and
//! compared at once, and there are never more nodes than prefixes. A branch with a single prefix in it is that prefix.
//!
//! A prefix is a chain of versions. It stays in the trie until the last of them is freed; a lookup that comes upon one that is not
//! seen at its epoch goes on with the next shorter.

use super::Epoch;
use super::blocks::Blocks;
use super::buckets::NONE;
use super::index::Plan;
use super::key::{CanonicalKey, Matcher};
use super::layout::first_bits;
use super::shape::MAX_FIELDS;
use super::slab::Slab;
use super::version::{Version, Versions};

/// Bits that a node tells apart.
pub(super) const STRIDE: u32 = 6;

/// Items that a node holds itself: with those it is about a cache line, and most nodes have no more.
const FEW: usize = 8;

/// What a branch leads to: a node, or with this bit set the first version of a prefix. [`NONE`] is neither.
const PREFIX: u32 = 1 << 31;

/// A node; its depth is a multiple of six.
struct Node<const W: usize> {
    /// The bits before it, then zeroes.
    path: [u64; W],
    /// Its prefixes: the one that ends here, then the two of one bit more, the four of two, up to five.
    prefixes: u64,
    /// Its branches, by six bits.
    branches: u64,
    depth: u32,
    /// Its prefixes and then its branches; when they are more than fit, the block where they lie is the first.
    items: [u32; FEW],
}

impl<const W: usize> Node<W> {
    const fn empty() -> Self {
        Self {
            path: [0; W],
            prefixes: 0,
            branches: 0,
            depth: 0,
            items: [NONE; FEW],
        }
    }

    fn len(&self) -> u32 {
        self.prefixes.count_ones() + self.branches.count_ones()
    }

    #[inline]
    fn item(&self, blocks: &Blocks, place: u32) -> u32 {
        if self.len() as usize > FEW {
            return blocks.get(self.items[0], place);
        }
        self.items.get(place as usize).copied().unwrap_or(NONE)
    }

    fn set_item(&mut self, blocks: &mut Blocks, place: u32, to: u32) {
        if self.len() as usize > FEW {
            blocks.set(self.items[0], place, to);
        } else if let Some(item) = self.items.get_mut(place as usize) {
            *item = to;
        }
    }

    /// Puts an item before the one at a place. Its bit is not set yet.
    fn insert_item(&mut self, blocks: &mut Blocks, place: u32, to: u32) {
        let (len, at) = (self.len() as usize, place as usize);
        match len {
            ..FEW if at <= len => {
                self.items.copy_within(at..len, at + 1);
                self.items[at] = to;
            }
            ..FEW => {}
            FEW => {
                let block = blocks.of(&self.items);
                self.items[0] = blocks.insert(block, len as u32, place, to);
            }
            _ => self.items[0] = blocks.insert(self.items[0], len as u32, place, to),
        }
    }

    /// Takes out the item at a place. Its bit is still set.
    fn remove_item(&mut self, blocks: &mut Blocks, place: u32) {
        let (len, at) = (self.len() as usize, place as usize);
        if len <= FEW {
            if at < len {
                self.items.copy_within(at + 1..len, at);
            }
            return;
        }
        let block = blocks.remove(self.items[0], len as u32, place);
        self.items[0] = block;
        if len - 1 == FEW {
            for (item, at) in self.items.iter_mut().zip(0..) {
                *item = blocks.get(block, at);
            }
            blocks.free(block, FEW as u32);
        }
    }

    /// The place of a prefix among the items, by its bit.
    #[inline]
    fn prefix_place(&self, bit: u32) -> u32 {
        (self.prefixes & below(bit)).count_ones()
    }

    #[inline]
    fn branch_place(&self, branch: u32) -> u32 {
        self.prefixes.count_ones() + (self.branches & below(branch)).count_ones()
    }

    /// What a prefix of this node or below takes in it.
    fn item_of(&self, prefix: &Prefix<W>) -> Item {
        let six = six_bits(&prefix.key, self.depth);
        match prefix.bits - self.depth {
            more @ 0..STRIDE => Item::Prefix(prefix_bit(six, more)),
            _ => Item::Branch(six),
        }
    }

    fn place_of(&self, item: Item) -> u32 {
        match item {
            Item::Prefix(bit) => self.prefix_place(bit),
            Item::Branch(branch) => self.branch_place(branch),
        }
    }
}

/// An item of a node.
#[derive(Clone, Copy)]
enum Item {
    Prefix(u32),
    Branch(u32),
}

/// So many first bits of a key; the others are zero.
#[derive(Clone, Copy)]
pub(super) struct Prefix<const W: usize> {
    pub(super) key: [u64; W],
    pub(super) bits: u32,
}

impl<const W: usize> Prefix<W> {
    /// A key of exact fields and a prefix.
    pub(super) fn of_key(plan: &Plan, key: &CanonicalKey) -> Self {
        let (values, _) = plan.layout.values_and_masks(key);
        Self {
            key: plan.layout.pack(&values),
            bits: u32::from(key.specificity) + plan.layout.padding(),
        }
    }
}

/// The key of a version.
pub(super) fn key_of<A, const W: usize>(plan: &Plan, version: &Version<A, W>) -> CanonicalKey {
    let (mut values, mut masks) = ([0; MAX_FIELDS], [0; MAX_FIELDS]);
    plan.layout.unpack_into(&version.key, &mut values);
    let mask: [u64; W] = first_bits(version.class);
    plan.layout.unpack_into(&mask, &mut masks);
    let mut matchers = [Matcher::Any; MAX_FIELDS];
    let fields = plan.shape.key().iter().zip(values.into_iter().zip(masks));
    for (matcher, (&field, (value, mask))) in matchers.iter_mut().zip(fields) {
        *matcher = Matcher::of_masked(field, value, mask);
    }
    let specificity = version.class - plan.layout.padding();
    plan.shape
        .canonical_of(matchers, version.priority, specificity as u16)
}

/// Where what a branch leads to is written down.
#[derive(Clone, Copy)]
enum Place {
    Root,
    /// At a place of a node.
    Item(u32, u32),
}

pub(super) struct Trie<const W: usize> {
    root: u32,
    nodes: Slab<Node<W>>,
    blocks: Blocks,
}

impl<const W: usize> Trie<W> {
    pub(super) fn new() -> Self {
        Self {
            root: NONE,
            nodes: Slab::new(),
            blocks: Blocks::new(),
        }
    }

    /// The version of the longest prefix of `key` that is seen. Adds to `looked` the bits that this depended on.
    #[inline]
    pub(super) fn lookup<A>(
        &self,
        versions: &Versions<A, W>,
        key: &[u64; W],
        at: Epoch,
        looked: &mut [u64; W],
    ) -> Option<u32> {
        let mut longest = u32::MAX;
        let mut depended = None;
        let found = loop {
            let walk = self.walk(versions, key, longest);
            // The first walk sees all prefixes; later ones only pass over those that are not seen.
            depended.get_or_insert(walk.depended);
            let Some((first, bits)) = walk.found else {
                break None;
            };
            let mut version = first;
            while let Some(seen) = versions.get(version) {
                if seen.is_seen_at(at) {
                    break;
                }
                version = seen.next;
            }
            if version != NONE {
                break Some(version);
            }
            match bits.checked_sub(1) {
                Some(shorter) => longest = shorter,
                None => break None,
            }
        };
        *looked = first_bits(depended.unwrap_or(0));
        found
    }

    /// The longest prefix of `key` that is not longer than `longest`.
    #[inline]
    fn walk<A>(&self, versions: &Versions<A, W>, key: &[u64; W], longest: u32) -> Walk {
        let mut walk = Walk {
            found: None,
            depended: 0,
        };
        let mut last = None;
        let mut at = self.root;
        while let Some(node) = self.node(at) {
            let common = common_bits(key, &node.path);
            if common < node.depth {
                walk.depended = common + 1;
                break;
            }
            let six = six_bits(key, node.depth);
            let mut matching = node.prefixes & ON_PATH[six as usize % 64];
            if let Some(more @ 0..STRIDE) = longest.checked_sub(node.depth) {
                matching &= below((2 << more) - 1);
            } else if longest < node.depth {
                matching = 0;
            }
            if matching != 0 {
                last = Some((node, matching));
            }
            if node.branches >> six & 1 == 0 {
                walk.depended = node.depth + parting_bits(node, six);
                at = NONE;
            } else {
                at = node.item(&self.blocks, node.branch_place(six));
            }
        }
        if at != NONE && at & PREFIX != 0 {
            let first = at & !PREFIX;
            let version = versions.get(first);
            let bits = version.map_or(0, |version| version.class);
            let common = version.map_or(0, |version| common_bits(key, &version.key));
            walk.depended = bits.min(common + 1);
            if common >= bits && bits <= longest {
                walk.found = Some((first, bits));
                return walk;
            }
        }
        walk.found = last.map(|(node, matching)| {
            let bit = 63 - matching.leading_zeros();
            let first = node.item(&self.blocks, node.prefix_place(bit));
            (first & !PREFIX, node.depth + (bit + 1).ilog2())
        });
        walk
    }

    /// The first version of a prefix.
    pub(super) fn find<A>(&self, versions: &Versions<A, W>, prefix: &Prefix<W>) -> Option<u32> {
        let place = self.place_of(versions, prefix)?;
        Some(self.read(place) & !PREFIX)
    }

    /// Puts a version before the others of its prefix, which is of so many bits of its key.
    pub(super) fn link<A>(&mut self, versions: &mut Versions<A, W>, index: u32, bits: u32) {
        if let Some(version) = versions.get_mut(index) {
            version.class = bits;
        }
        let Some(prefix) = prefix_of(versions, index) else {
            return;
        };
        let next = match self.place_of(versions, &prefix) {
            Some(place) => {
                let next = self.read(place) & !PREFIX;
                self.write_first(place, index);
                next
            }
            None => {
                self.insert(versions, &prefix, index);
                NONE
            }
        };
        if let Some(version) = versions.get_mut(index) {
            version.next = next;
        }
    }

    /// Takes a version out, and its prefix when it is the last.
    pub(super) fn unlink<A>(&mut self, versions: &mut Versions<A, W>, index: u32) {
        let Some(prefix) = prefix_of(versions, index) else {
            return;
        };
        let Some(place) = self.place_of(versions, &prefix) else {
            return;
        };
        let first = self.read(place) & !PREFIX;
        let next = versions.get(index).map_or(NONE, |version| version.next);
        if first != index {
            let mut before = first;
            while let Some(version) = versions.get_mut(before) {
                if version.next == index {
                    version.next = next;
                    return;
                }
                before = version.next;
            }
        } else if next != NONE {
            self.write_first(place, next);
        } else {
            self.remove(versions, &prefix);
        }
    }

    /// Where the first version of a prefix is written down.
    fn place_of<A>(&self, versions: &Versions<A, W>, prefix: &Prefix<W>) -> Option<Place> {
        let mut place = Place::Root;
        loop {
            let at = self.read(place);
            let Some(node) = self.node(at) else {
                if at == NONE {
                    return None;
                }
                let there = prefix_of(versions, at & !PREFIX)?;
                return (there.bits == prefix.bits && there.key == prefix.key).then_some(place);
            };
            if prefix.bits < node.depth || common_bits(&prefix.key, &node.path) < node.depth {
                return None;
            }
            let item = node.item_of(prefix);
            let in_node = node.place_of(item);
            match item {
                Item::Prefix(bit) => {
                    let is_there = node.prefixes >> bit & 1 != 0;
                    return is_there.then_some(Place::Item(at, in_node));
                }
                Item::Branch(branch) if node.branches >> branch & 1 == 0 => return None,
                Item::Branch(_) => place = Place::Item(at, in_node),
            }
        }
    }

    /// Adds a prefix that is not there.
    fn insert<A>(&mut self, versions: &Versions<A, W>, prefix: &Prefix<W>, first: u32) {
        let mut place = Place::Root;
        loop {
            let at = self.read(place);
            if at == NONE {
                self.write(place, first | PREFIX);
                return;
            }
            let Some(node) = self.node(at) else {
                // A prefix, of which this one parts.
                if let Some(other) = prefix_of(versions, at & !PREFIX) {
                    let common = common_bits(&prefix.key, &other.key);
                    let depth = common.min(prefix.bits).min(other.bits) / STRIDE * STRIDE;
                    let parting = self.add_node(&prefix.key, depth);
                    self.add_item(parting, &other, at & !PREFIX | PREFIX);
                    self.add_item(parting, prefix, first | PREFIX);
                    self.write(place, parting);
                }
                return;
            };
            let common = common_bits(&prefix.key, &node.path).min(prefix.bits);
            if common < node.depth {
                let other = Prefix {
                    key: node.path,
                    bits: node.depth,
                };
                let parting = self.add_node(&prefix.key, common / STRIDE * STRIDE);
                self.add_item(parting, &other, at);
                self.add_item(parting, prefix, first | PREFIX);
                self.write(place, parting);
                return;
            }
            match node.item_of(prefix) {
                item @ Item::Branch(branch) if node.branches >> branch & 1 != 0 => {
                    place = Place::Item(at, node.place_of(item));
                }
                _ => {
                    self.add_item(at, prefix, first | PREFIX);
                    return;
                }
            }
        }
    }

    /// Removes a prefix that is there. A node that is left with one item goes too.
    fn remove<A>(&mut self, versions: &Versions<A, W>, prefix: &Prefix<W>) {
        let mut place = Place::Root;
        loop {
            let at = self.read(place);
            let Some(node) = self.node(at) else {
                // Only a root has no node above it.
                self.write(place, NONE);
                return;
            };
            let item = node.item_of(prefix);
            let in_node = node.place_of(item);
            let below = node.item(&self.blocks, in_node);
            if let Item::Branch(_) = item
                && self.node(below).is_some()
            {
                place = Place::Item(at, in_node);
                continue;
            }
            debug_assert!(prefix_of(versions, below & !PREFIX).is_some());
            if let Some(last) = self.remove_item(at, item) {
                self.write(place, last);
            }
            return;
        }
    }

    #[inline]
    fn node(&self, at: u32) -> Option<&Node<W>> {
        // A prefix's number is beyond all nodes.
        self.nodes.get(at)
    }

    fn read(&self, place: Place) -> u32 {
        match place {
            Place::Root => self.root,
            Place::Item(node, at) => {
                let node = self.nodes.get(node);
                node.map_or(NONE, |node| node.item(&self.blocks, at))
            }
        }
    }

    fn write(&mut self, place: Place, to: u32) {
        match place {
            Place::Root => self.root = to,
            Place::Item(node, at) => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.set_item(&mut self.blocks, at, to);
                }
            }
        }
    }

    /// Another first version of the prefix that is written down here.
    fn write_first(&mut self, place: Place, first: u32) {
        self.write(place, first | PREFIX);
    }

    fn add_node(&mut self, key: &[u64; W], depth: u32) -> u32 {
        self.nodes.insert(Node {
            path: super::layout::and(key, &first_bits(depth)),
            depth,
            ..Node::empty()
        })
    }

    /// Adds what is at a prefix of, or below, a node.
    fn add_item(&mut self, at: u32, prefix: &Prefix<W>, to: u32) {
        let Some(node) = self.nodes.get_mut(at) else {
            return;
        };
        let item = node.item_of(prefix);
        let place = node.place_of(item);
        node.insert_item(&mut self.blocks, place, to);
        match item {
            Item::Prefix(bit) => node.prefixes |= 1 << bit,
            Item::Branch(branch) => node.branches |= 1 << branch,
        }
    }

    /// Removes an item. When one is left, the node is freed, and it is what takes the node's place.
    fn remove_item(&mut self, at: u32, item: Item) -> Option<u32> {
        let node = self.nodes.get_mut(at)?;
        let place = node.place_of(item);
        node.remove_item(&mut self.blocks, place);
        match item {
            Item::Prefix(bit) => node.prefixes &= !(1 << bit),
            Item::Branch(branch) => node.branches &= !(1 << branch),
        }
        if node.len() > 1 {
            return None;
        }
        let last = node.items[0];
        self.nodes.remove(at, Node::empty());
        Some(last)
    }
}

/// What a walk came to.
struct Walk {
    /// The first version of the longest prefix, and how long that is.
    found: Option<(u32, u32)>,
    /// Any key with the same first bits, so many, ends at the same.
    depended: u32,
}

fn prefix_of<A, const W: usize>(versions: &Versions<A, W>, index: u32) -> Option<Prefix<W>> {
    let version = versions.get(index)?;
    Some(Prefix {
        key: version.key,
        bits: version.class,
    })
}

/// The bits below `bit`.
#[inline]
fn below(bit: u32) -> u64 {
    (1u64 << (bit & 63)) - 1
}

/// The bit of a node's prefix: `more` of the six bits.
const fn prefix_bit(six: u32, more: u32) -> u32 {
    (1 << more) - 1 + (six >> (STRIDE - more))
}

/// For each six bits, the prefixes of a node that they have: 0 to 5 of them.
const ON_PATH: [u64; 64] = {
    let mut table = [0; 64];
    let mut six = 0;
    while six < 64 {
        let mut more = 0;
        while more < STRIDE {
            table[six as usize] |= 1 << prefix_bit(six, more);
            more += 1;
        }
        six += 1;
    }
    table
};

/// For each prefix of a node, by its bit, the prefixes of the node that begin with it.
const BELOW_PREFIX: [u64; 64] = {
    let mut table = [0; 64];
    let mut six = 0;
    while six < 64 {
        let mut more = 0;
        while more < STRIDE {
            let mut above = 0;
            while above <= more {
                table[prefix_bit(six, above) as usize] |= 1 << prefix_bit(six, more);
                above += 1;
            }
            more += 1;
        }
        six += 1;
    }
    table
};

/// How many of the six bits tell a key apart from all that is in the node and not on its way, and show all that is.
#[inline]
fn parting_bits<const W: usize>(node: &Node<W>, six: u32) -> u32 {
    let on_path = ON_PATH[six as usize % 64];
    let others = node.prefixes & !on_path;
    let matching = node.prefixes & on_path;
    let mut bits = match matching {
        0 => 0,
        matching => (64 - matching.leading_zeros()).ilog2(),
    };
    while bits < STRIDE {
        let span = STRIDE - bits;
        let alike = (u64::MAX >> (64 - (1 << span))) << (six >> span << span);
        let prefixes = BELOW_PREFIX[prefix_bit(six, bits) as usize % 64];
        if node.branches & alike | others & prefixes == 0 {
            break;
        }
        bits += 1;
    }
    bits
}

/// Six bits of a key from `depth` on; zeroes beyond its end.
#[inline]
fn six_bits<const W: usize>(key: &[u64; W], depth: u32) -> u32 {
    let (word, bit) = ((depth / 64) as usize, depth % 64);
    let high = key.get(word).copied().unwrap_or(0) << bit;
    let low = match bit {
        0..=58 => 0,
        bit => key.get(word + 1).copied().unwrap_or(0) >> (64 - bit),
    };
    ((high | low) >> (64 - STRIDE)) as u32
}

/// How many first bits two keys have in common.
#[inline]
fn common_bits<const W: usize>(one: &[u64; W], other: &[u64; W]) -> u32 {
    let mut bits = 0;
    for (one, other) in one.iter().zip(other) {
        let differing = one ^ other;
        if differing != 0 {
            return bits + differing.leading_zeros();
        }
        bits += 64;
    }
    bits
}
