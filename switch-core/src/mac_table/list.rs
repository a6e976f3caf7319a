//! Doubly linked lists whose nodes are the elements of a slice and whose links are indexes: no allocation, O(1) everywhere.
//!
//! An index out of range ends a walk instead of panicking; the table's own code never makes one.

/// The index that stands for none.
pub(super) const NIL: u32 = u32::MAX;

/// A node's neighbours in the one list it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    previous: u32,
    next: u32,
}

impl Links {
    /// In no list.
    pub(super) const NONE: Self = Self {
        previous: NIL,
        next: NIL,
    };

    /// The node after this one.
    #[cfg(test)]
    pub(super) fn next(self) -> Option<u32> {
        (self.next != NIL).then_some(self.next)
    }
}

/// An element that can be in a list.
pub(super) trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// A list's two ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self {
        head: NIL,
        tail: NIL,
    };

    /// The first element.
    pub(super) fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// The last element.
    pub(super) fn last(&self) -> Option<u32> {
        (self.tail != NIL).then_some(self.tail)
    }

    /// Puts `node`, which is in no list, at the front.
    pub(super) fn push_front<T: Linked>(&mut self, nodes: &mut [T], node: u32) {
        let next = std::mem::replace(&mut self.head, node);
        set_links(
            nodes,
            node,
            Links {
                previous: NIL,
                next,
            },
        );
        match nodes.get_mut(next as usize) {
            Some(element) => element.links().previous = node,
            None => self.tail = node,
        }
    }

    /// Puts `node`, which is in no list, at the end.
    pub(super) fn push_back<T: Linked>(&mut self, nodes: &mut [T], node: u32) {
        let previous = std::mem::replace(&mut self.tail, node);
        set_links(
            nodes,
            node,
            Links {
                previous,
                next: NIL,
            },
        );
        match nodes.get_mut(previous as usize) {
            Some(element) => element.links().next = node,
            None => self.head = node,
        }
    }

    /// Takes `node`, which is in this list, out of it.
    pub(super) fn remove<T: Linked>(&mut self, nodes: &mut [T], node: u32) {
        let Some(element) = nodes.get_mut(node as usize) else {
            return;
        };
        let Links { previous, next } = std::mem::replace(element.links(), Links::NONE);
        match nodes.get_mut(previous as usize) {
            Some(element) => element.links().next = next,
            None => self.head = next,
        }
        match nodes.get_mut(next as usize) {
            Some(element) => element.links().previous = previous,
            None => self.tail = previous,
        }
    }
}

fn set_links<T: Linked>(nodes: &mut [T], node: u32, links: Links) {
    if let Some(element) = nodes.get_mut(node as usize) {
        *element.links() = links;
    }
}
