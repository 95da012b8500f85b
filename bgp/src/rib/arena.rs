//! Storage with 32-bit indices in chunks of fixed size: growing copies nothing, and an index is
//! half a pointer. Indices of removed values are reused.

use super::ids::Ids;

const CHUNK_BITS: u32 = 12;
const CHUNK: usize = 1 << CHUNK_BITS;

/// No index.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Arena<T> {
    chunks: Vec<Vec<T>>,
    free: Ids,
    /// Indices ever given out.
    end: u32,
}

impl<T> Arena<T> {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            free: Ids::default(),
            end: 0,
        }
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self[index] = value;
            return index;
        }
        let index = self.end;
        assert!(index < NONE, "the arena holds 2^32 - 1 values");
        if index as usize & (CHUNK - 1) == 0 {
            // The first chunk grows as it fills, so that a small table stays small.
            let capacity = if index == 0 { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks
            .last_mut()
            .expect("a chunk was pushed with its first index")
            .push(value);
        self.end += 1;
        index
    }

    /// The value stays in place until its index is given out again.
    pub(super) fn remove(&mut self, index: u32) {
        let fresh = self.free.insert(index);
        debug_assert!(fresh, "a value is removed once");
    }

    /// Every index given out so far is below.
    pub(super) fn end(&self) -> u32 {
        self.end
    }
}

impl<T> std::ops::Index<u32> for Arena<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        &self.chunks[(index >> CHUNK_BITS) as usize][index as usize & (CHUNK - 1)]
    }
}

impl<T> std::ops::IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[(index >> CHUNK_BITS) as usize][index as usize & (CHUNK - 1)]
    }
}

/// One word for each index of an arena, zero until set; pages are made when first written.
#[derive(Debug, Default)]
pub(super) struct Words {
    pages: Vec<Option<Box<[u32; CHUNK]>>>,
}

impl Words {
    pub(super) fn get(&self, index: u32) -> u32 {
        match self.pages.get((index >> CHUNK_BITS) as usize) {
            Some(Some(page)) => page[index as usize & (CHUNK - 1)],
            _ => 0,
        }
    }

    pub(super) fn slot(&mut self, index: u32) -> &mut u32 {
        let page = (index >> CHUNK_BITS) as usize;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| Box::new([0; CHUNK]));
        &mut page[index as usize & (CHUNK - 1)]
    }
}
