//! The files that a process has mapped, and how to open them from outside its mount namespace.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use procfs::ProcError;
use procfs::process::{MMPermissions, MMapPath, Process};

/// A part of a file, mapped into a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// File offset of the first byte.
    pub offset: u64,
    /// Whether it holds code.
    pub executable: bool,
    /// Inode number of the file.
    pub inode: u64,
    /// Path as the process sees it. Not to be opened: the process may live in another mount namespace.
    pub path: PathBuf,
}

impl Mapping {
    /// Last component of the path, `""` when there is none.
    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

/// A mapped file, opened.
#[derive(Debug)]
pub struct MappedFile {
    /// A path by which this process (the agent) reaches the file, for as long as the other process lives.
    pub path: PathBuf,
    /// The file.
    pub file: File,
}

/// The file mappings of a process, in address order.
pub fn file_mappings(pid: u32) -> Result<Vec<Mapping>, ProcError> {
    let maps = Process::new(i32::try_from(pid).map_err(|_| ProcError::NotFound(None))?)?.maps()?;
    Ok(maps
        .into_iter()
        .filter_map(|map| match map.pathname {
            MMapPath::Path(path) => Some(Mapping {
                start: map.address.0,
                end: map.address.1,
                offset: map.offset,
                executable: map.perms.contains(MMPermissions::EXECUTE),
                inode: map.inode,
                path: without_deleted(path),
            }),
            _ => None,
        })
        .collect())
}

/// Opens the file behind a mapping: by the mapping itself, which works for deleted files too and needs
/// CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; else as the executable; else by its path below the process's root, if that
/// still is the same file.
pub fn open(pid: u32, mapping: &Mapping) -> io::Result<MappedFile> {
    let Mapping { start, end, inode, path, .. } = mapping;
    let by_mapping = PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
    if let Ok(file) = File::open(&by_mapping) {
        return Ok(MappedFile { path: by_mapping, file });
    }
    let relative = path.strip_prefix("/").unwrap_or(path);
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for path in
        [PathBuf::from(format!("/proc/{pid}/exe")), Path::new(&format!("/proc/{pid}/root")).join(relative)]
    {
        match open_without_waiting(&path).and_then(|file| Ok((file.metadata()?.ino(), file))) {
            Ok((found, file)) if found == *inode => return Ok(MappedFile { path, file }),
            Ok(_) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// What the process has at the path by now may be a FIFO, and nobody writing to it.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Inode number of the file that a process executes; `None` for a kernel thread.
pub fn executable_inode(pid: u32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/exe")).ok().map(|metadata| metadata.ino())
}

/// The kernel marks the path of a file that was deleted while it was in use; this removes the mark.
pub fn without_deleted(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_executable_is_mapped_and_opens() {
        let pid = std::process::id();
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        let mappings = file_mappings(pid).unwrap();
        let code = mappings.iter().find(|mapping| mapping.path == exe && mapping.executable).unwrap();
        let opened = open(pid, code).unwrap();
        assert_eq!(opened.file.metadata().unwrap().ino(), std::fs::metadata(&exe).unwrap().ino());
        assert!(std::fs::metadata(&opened.path).is_ok());
    }

    #[test]
    fn a_replaced_file_is_not_mistaken_for_the_mapped_one() {
        let mapping = Mapping {
            start: 1,
            end: 2,
            offset: 0,
            executable: true,
            inode: u64::MAX,
            path: PathBuf::from("/etc/passwd"),
        };
        assert!(open(std::process::id(), &mapping).is_err());
    }

    #[test]
    fn without_the_mapping_the_path_will_do() {
        let mappings = file_mappings(std::process::id()).unwrap();
        for name in ["libc.so.6", std::env::current_exe().unwrap().file_name().unwrap().to_str().unwrap()] {
            let mapping = mappings.iter().find(|mapping| mapping.file_name() == name).unwrap();
            let opened = open(std::process::id(), &Mapping { start: 1, end: 2, ..mapping.clone() }).unwrap();
            assert!(!opened.path.to_str().unwrap().contains("map_files"));
            assert_eq!(opened.file.metadata().unwrap().ino(), mapping.inode);
        }
    }

    #[test]
    fn deleted_mark_is_no_part_of_the_path() {
        assert_eq!(without_deleted(PathBuf::from("/a/b (deleted)")), PathBuf::from("/a/b"));
        assert_eq!(without_deleted(PathBuf::from("/a/b")), PathBuf::from("/a/b"));
    }
}
