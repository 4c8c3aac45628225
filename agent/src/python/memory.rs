//! Another process's memory, read through `/proc/PID/mem`. Only ever read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The memory of one process. Stays with the process that it was opened for, also when the pid is used again.
#[derive(Debug)]
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens the memory of a process; needs the right to ptrace it, and does not ptrace it.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/mem"))? })
    }

    /// Reads `N` bytes at an address.
    pub fn read<const N: usize>(&self, address: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, address)?;
        Ok(bytes)
    }

    /// Fills `bytes` with what is at an address.
    pub fn read_into(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, address)
    }

    /// Reads a C `int`.
    pub fn read_i32(&self, address: u64) -> io::Result<i32> {
        self.read(address).map(i32::from_ne_bytes)
    }

    /// Reads a C `unsigned int`.
    pub fn read_u32(&self, address: u64) -> io::Result<u32> {
        self.read(address).map(u32::from_ne_bytes)
    }

    /// Reads a pointer, or a `uint64_t`.
    pub fn read_u64(&self, address: u64) -> io::Result<u64> {
        self.read(address).map(u64::from_ne_bytes)
    }

    /// Reads a C string of at most `limit` bytes; a longer one is cut.
    pub fn read_c_string(&self, address: u64, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; limit];
        // A string near the end of a mapping makes a short read, which is enough if its NUL is there.
        let read = self.file.read_at(&mut bytes, address)?;
        bytes.truncate(read);
        if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
            bytes.truncate(end);
        }
        Ok(bytes)
    }
}
