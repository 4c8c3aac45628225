//! Why a process cannot be traced, each reason one sentence that a person can act on.

use std::fmt;
use std::io;
use std::path::Path;

use procfs::ProcError;

use super::version::Version;

/// Why a process cannot be traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untraceable {
    /// It is gone, or never was.
    NoSuchProcess,
    /// It runs no CPython.
    NotPython,
    /// CPython 3.7 or older.
    TooOld {
        /// Which.
        version: Version,
    },
    /// It runs a CPython that does not tell its version.
    UnknownVersion,
    /// A 32-bit process.
    ThirtyTwoBit,
    /// The interpreter is still starting: look again soon.
    NotInitialised,
    /// The agent may not look into the process.
    PermissionDenied,
    /// Something that should be readable was not.
    Unreadable(String),
}

impl fmt::Display for Untraceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchProcess => f.write_str("there is no such process"),
            Self::NotPython => f.write_str("it does not run CPython"),
            Self::TooOld { version } => {
                write!(f, "it runs CPython {version}, which is too old: 3.8 is the oldest that can be traced")
            }
            Self::UnknownVersion => f.write_str("it runs a CPython that does not tell its version"),
            Self::ThirtyTwoBit => f.write_str("it is a 32-bit process, and only 64-bit ones can be traced"),
            Self::NotInitialised => f.write_str("its interpreter is still starting"),
            Self::PermissionDenied => {
                f.write_str("its memory may not be read: run as root, or with CAP_SYS_PTRACE")
            }
            Self::Unreadable(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Untraceable {}

impl From<io::Error> for Untraceable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoSuchProcess,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied,
            // ESRCH: the process ended between two reads.
            _ if error.raw_os_error() == Some(libc::ESRCH) => Self::NoSuchProcess,
            _ => Self::Unreadable(error.to_string()),
        }
    }
}

impl From<ProcError> for Untraceable {
    fn from(error: ProcError) -> Self {
        match error {
            ProcError::NotFound(_) => Self::NoSuchProcess,
            ProcError::PermissionDenied(_) => Self::PermissionDenied,
            ProcError::Io(error, _) => error.into(),
            error => Self::Unreadable(error.to_string()),
        }
    }
}

impl Untraceable {
    /// A file that the process has mapped could not be read.
    pub(super) fn of_file(error: &io::Error, path: &Path) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::PermissionDenied,
            _ => Self::Unreadable(format!("its file {} cannot be read: {error}", path.display())),
        }
    }
}
