//! The prepared statements and portals of one connection, by name; bounded, least recently used out first.

use std::collections::HashMap;

const MAX_NAMES: usize = 1024;
/// Most bytes of query texts that are kept for one connection.
const MAX_BYTES: usize = 1 << 20;

/// A map from names to statements.
pub(super) struct Names<T> {
    entries: HashMap<Box<[u8]>, (u64, T)>,
    clock: u64,
    bytes: usize,
}

/// What a name stands for.
pub(super) trait Named: Clone {
    /// Bytes that it holds.
    fn size(&self) -> usize;
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), clock: 0, bytes: 0 }
    }
}

impl<T: Named> Names<T> {
    pub(super) fn insert(&mut self, name: &[u8], value: T) {
        self.remove(name);
        self.clock = self.clock.wrapping_add(1);
        self.bytes = self.bytes.saturating_add(value.size());
        self.entries.insert(name.into(), (self.clock, value));
        while self.entries.len() > MAX_NAMES || (self.bytes > MAX_BYTES && self.entries.len() > 1) {
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used).map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
        }
    }

    pub(super) fn get(&mut self, name: &[u8]) -> Option<T> {
        self.clock = self.clock.wrapping_add(1);
        let (used, value) = self.entries.get_mut(name)?;
        *used = self.clock;
        Some(value.clone())
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        if let Some((_, value)) = self.entries.remove(name) {
            self.bytes = self.bytes.saturating_sub(value.size());
        }
    }
}
