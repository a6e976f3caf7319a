//! Storage that grows without moving what it holds: growing never keeps readers waiting for a copy of everything.

/// Items of a chunk.
const CHUNK: usize = 1 << 12;

/// A vector in chunks.
pub(super) struct Chunked<T> {
    /// All but the last are full. The first grows like a vector, the others have their size from the start.
    chunks: Vec<Vec<T>>,
}

impl<T> Chunked<T> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        let last = self.chunks.last().map_or(0, Vec::len);
        self.chunks.len().saturating_sub(1) * CHUNK + last
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let index = index as usize;
        self.chunks.get_mut(index / CHUNK)?.get_mut(index % CHUNK)
    }

    pub(super) fn push(&mut self, item: T) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(item),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(item);
                self.chunks.push(chunk);
            }
            None => self.chunks.push(vec![item]),
        }
    }

    fn last(&self) -> Option<&T> {
        self.chunks.last()?.last()
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let item = self.chunks.last_mut()?.pop();
        if self.chunks.last().is_some_and(Vec::is_empty) {
            self.chunks.pop();
        }
        item
    }
}

/// Items with an index that stays while they live. Freed places are used again.
pub(super) struct Slab<T> {
    items: Chunked<T>,
    free: Chunked<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self {
            items: Chunked::new(),
            free: Chunked::new(),
            len: 0,
        }
    }

    /// Items that live.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// One above the highest index ever given.
    pub(super) fn end(&self) -> u32 {
        self.items.len() as u32
    }

    /// The index that the next item gets.
    pub(super) fn next_index(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.end())
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.items.get(index)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.items.get_mut(index)
    }

    /// Puts an item into the place freed last, or a new one.
    pub(super) fn insert(&mut self, item: T) -> u32 {
        self.len += 1;
        if let Some(index) = self.free.pop()
            && let Some(place) = self.items.get_mut(index)
        {
            *place = item;
            return index;
        }
        let index = self.items.len() as u32;
        self.items.push(item);
        index
    }

    /// Frees a place that is in use, with what is to lie there until it is used again.
    pub(super) fn remove(&mut self, index: u32, rest: T) -> Option<T> {
        let item = std::mem::replace(self.items.get_mut(index)?, rest);
        self.free.push(index);
        self.len -= 1;
        Some(item)
    }
}
