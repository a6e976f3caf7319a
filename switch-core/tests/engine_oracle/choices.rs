//! Random choices from a list of numbers, so that a failing case gets smaller as the list does.

pub struct Choices<'a> {
    numbers: &'a [u32],
    at: usize,
}

impl<'a> Choices<'a> {
    pub fn new(numbers: &'a [u32]) -> Self {
        Self { numbers, at: 0 }
    }

    fn next(&mut self) -> u32 {
        let number = self.numbers.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        number
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        // Zero, which shrinking leads to, is no.
        99 - self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// Any number of so many bits.
    pub fn number(&mut self, bits: u16) -> u128 {
        let mut number = 0;
        for _ in 0..bits.div_ceil(32) {
            number = number << 32 | u128::from(self.next());
        }
        crate::bytes::cut(number, bits)
    }
}
