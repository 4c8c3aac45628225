//! A temporary folder that goes away with its guard.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

/// A folder under the system's temporary folder, removed on drop.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Creates an empty folder that other users can enter, as PostgreSQL's does not run as root.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("pitviper-{name}-{}", process::id()));
        fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
