//! What was found in files, remembered by which files they are: hosts run many processes with the same ones.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};

/// Device, inode, size, modification time: the same for as long as the content is.
pub type FileKey = (u64, u64, u64, (i64, i64));

/// A memory of files.
#[derive(Debug)]
pub struct KnownFiles<T> {
    most: usize,
    found: Mutex<HashMap<FileKey, T>>,
}

impl<T: Clone> KnownFiles<T> {
    /// Remembers so many files; then the memory starts anew.
    pub fn new(most: usize) -> Self {
        Self { most, found: Mutex::default() }
    }

    /// What `look` finds in the file, or has found in it before.
    pub fn get(&self, file: &File, look: impl FnOnce(&File) -> io::Result<T>) -> io::Result<(FileKey, T)> {
        let metadata = file.metadata()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let key = (metadata.dev(), metadata.ino(), metadata.size(), modified);
        let found = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = found().get(&key) {
            return Ok((key, known.clone()));
        }
        // Without the lock: it may take a while.
        let new = look(file)?;
        let mut found = found();
        if found.len() >= self.most {
            found.clear();
        }
        found.insert(key, new.clone());
        Ok((key, new))
    }
}
