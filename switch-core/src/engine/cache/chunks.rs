//! An array that grows without moving what it holds: a list of equal chunks.

/// `N` values a chunk.
pub(super) struct Chunks<T, const N: usize> {
    chunks: Vec<Box<[T; N]>>,
}

impl<T, const N: usize> Chunks<T, N> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.chunks.len() * N
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / N)?.get(index % N)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index / N)?.get_mut(index % N)
    }

    /// One more chunk of values made by `make`.
    pub(super) fn grow(&mut self, make: impl FnMut() -> T) {
        let chunk = std::iter::repeat_with(make).take(N).collect::<Box<[T]>>();
        // Exactly `N` values were made, so this is never refused.
        self.chunks.extend(chunk.try_into().ok());
    }
}
