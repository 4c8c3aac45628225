//! Named uprobes in the kernel's tracing file system: defining them, and taking definitions away.
//!
//! A definition belongs to nobody and outlives its maker; it does nothing until an event is opened on it. The group's
//! name says which daemon made it, so that those of a daemon that is gone are known as such.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where the file system is mounted, on most machines.
const MOUNTED: &str = "/sys/kernel/tracing";
/// The file with the definitions: one line each (Documentation/trace/uprobetracer.rst).
const DEFINITIONS: &str = "uprobe_events";
/// Start of every daemon's group; its pid follows.
const GROUP: &str = "pitviper_";

/// The tracing file system.
#[derive(Debug)]
pub(super) struct Tracefs {
    root: PathBuf,
    /// Keeps a mount alive that nobody else sees.
    _mount: Option<OwnedFd>,
}

impl Tracefs {
    /// Finds it, or mounts it for this process alone where it cannot be written.
    pub(super) fn open() -> io::Result<Self> {
        let root = PathBuf::from(MOUNTED);
        // A container may have it read-only.
        if access(root.join(DEFINITIONS), Access::WRITE_OK).is_ok() {
            return Ok(Self { root, _mount: None });
        }
        let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        // A kernel without CONFIG_UPROBE_EVENTS has the file system, but not the file.
        fs::metadata(root.join(DEFINITIONS))?;
        Ok(Self { root, _mount: Some(mount) })
    }

    /// Defines a probe on the function at `offset` in `file`, or `on_return` from it; gives the number of its tracepoint.
    pub(super) fn define(
        &self,
        group: &str,
        name: &str,
        file: &Path,
        offset: u64,
        on_return: bool,
    ) -> io::Result<u64> {
        let file = file.to_str().filter(|file| !file.contains(char::is_whitespace));
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
        let kind = if on_return { 'r' } else { 'p' };
        self.write(&format!("{kind}:{group}/{name} {file}:{offset:#x}\n"))?;
        let id = fs::read_to_string(self.root.join("events").join(group).join(name).join("id"))?;
        id.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Takes a definition away. It fails while events are open on it.
    pub(super) fn remove(&self, group: &str, name: &str) -> io::Result<()> {
        self.write(&format!("-:{group}/{name}\n"))
    }

    /// All definitions of pitvipers: the daemon's pid and the probe's name.
    pub(super) fn defined(&self) -> io::Result<Vec<(u32, String)>> {
        let text = fs::read_to_string(self.root.join(DEFINITIONS))?;
        Ok(text.lines().filter_map(parse).collect())
    }

    /// Opening for writing without appending would take all definitions away, other people's too.
    fn write(&self, command: &str) -> io::Result<()> {
        let mut file = File::options().append(true).open(self.root.join(DEFINITIONS))?;
        file.write_all(command.as_bytes())
    }
}

/// The group of a daemon.
pub(super) fn group_of(pid: u32) -> String {
    format!("{GROUP}{pid}")
}

/// `r:GROUP/NAME FILE:OFFSET`, or with `p`
fn parse(line: &str) -> Option<(u32, String)> {
    let (group, name) =
        line.strip_prefix("r:").or_else(|| line.strip_prefix("p:"))?.split(' ').next()?.split_once('/')?;
    Some((group.strip_prefix(GROUP)?.parse().ok()?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_definitions() {
        let line = "r:pitviper_4711/copy_1 /usr/lib/libpython3.11.so.1.0:0x000000000026adf0";
        assert_eq!(parse(line), Some((4711, "copy_1".to_owned())));
        assert_eq!(parse("r:uprobes/copy_1 /bin/sh:0x10"), None);
        assert_eq!(parse("p:pitviper_x/copy_1 /bin/sh:0x10"), None);
        assert_eq!(parse(""), None);
    }
}
