//! A table of a profile format: each item once, in the order of first use, referred to by its place.
//!
//! Knows no format; [`super::pprof`], OTLP's profiles and speedscope's file are made of such tables.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// The items `V` of a table, found by what they are made from.
#[derive(Debug)]
pub struct Table<K, V> {
    places: FxHashMap<K, usize>,
    items: Vec<V>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { places: FxHashMap::default(), items: Vec::new() }
    }
}

impl<K: Eq + Hash, V> Table<K, V> {
    /// A table whose first item stands for "none".
    pub fn with_none(none: V) -> Self {
        Self { items: vec![none], ..Self::default() }
    }

    /// The place of the item for `key`.
    pub fn find(&self, key: &K) -> Option<usize> {
        self.places.get(key).copied()
    }

    /// Adds the item for `key`, which is not there yet, and gives its place.
    pub fn add(&mut self, key: K, item: V) -> usize {
        let place = self.items.len();
        self.items.push(item);
        self.places.insert(key, place);
        place
    }

    /// The items.
    pub fn finish(self) -> Vec<V> {
        self.items
    }

    /// Where the next item will be.
    pub fn next(&self) -> usize {
        self.items.len()
    }
}
