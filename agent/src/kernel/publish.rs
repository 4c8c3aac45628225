//! The shared map `traces_ctx_v1`: the span that each thread is at work on, for profilers and others to read.
//!
//! Its path and shape are a contract (`devdocs/trace-profile-correlation.md` of open-telemetry/opentelemetry-ebpf-instrumentation;
//! read by open-telemetry/opentelemetry-ebpf-profiler): an LRU hash pinned at `/sys/fs/bpf/otel/traces_ctx_v1`, from the
//! kernel's `pid_tgid` to 16 bytes of trace id and 8 of span id. Whoever comes first makes it.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapInfo, MapType};
use pitviper_ebpf::abi::{SocketId, SpanIds, Stream};
use rustc_hash::FxHashMap;
use rustix::fs::statfs;

/// Where BPF file systems are mounted.
pub const BPF_FILES: &str = "/sys/fs/bpf";
/// Name of the map, in the kernel programs too.
pub(super) const MAP: &str = "traces_ctx_v1";
/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_MAGIC: u64 = 0xcafe_4a11;

/// Why the map cannot be shared.
#[derive(Debug)]
pub enum Unshareable {
    /// There is no BPF file system at the path.
    NotMounted(PathBuf),
    /// There is something else at the map's path.
    WrongShape(PathBuf),
    /// The file system says no.
    Io(PathBuf, io::Error),
}

impl fmt::Display for Unshareable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMounted(path) => write!(
                f,
                "--publish-context: there is no BPF file system at {0}: mount it with `mount -t bpf bpf {0}`",
                path.display()
            ),
            Self::WrongShape(path) => write!(
                f,
                "--publish-context: {} is there and is no map from threads to spans: remove it if nothing uses it",
                path.display()
            ),
            Self::Io(path, error) => write!(f, "--publish-context: {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for Unshareable {}

/// The place of the map, checked. Dropping it removes what was made.
#[derive(Debug)]
pub struct Pin {
    map: PathBuf,
    made_map: bool,
    made_folder: Option<PathBuf>,
}

impl Pin {
    /// Checks that the map can be pinned, or shared where it is pinned already.
    pub fn prepare(bpf_files: &Path) -> Result<Self, Unshareable> {
        let is_bpf = statfs(bpf_files).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(BPF_MAGIC));
        if !is_bpf {
            return Err(Unshareable::NotMounted(bpf_files.to_owned()));
        }
        let folder = bpf_files.join("otel");
        let made_folder = match fs::DirBuilder::new().mode(0o1700).create(&folder) {
            Ok(()) => Some(folder.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(Unshareable::Io(folder, error)),
        };
        let map = folder.join(MAP);
        let made_map = !map.exists();
        if !made_map && !has_shape(&map) {
            return Err(Unshareable::WrongShape(map));
        }
        Ok(Self { map, made_map, made_folder })
    }

    /// The map's path.
    pub fn map(&self) -> &Path {
        &self.map
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.made_map {
            let _ = fs::remove_file(&self.map);
        }
        if let Some(folder) = &self.made_folder {
            // Not if somebody else has put something there.
            let _ = fs::remove_dir(folder);
        }
    }
}

fn has_shape(path: &Path) -> bool {
    MapInfo::from_pin(path).is_ok_and(|info| {
        info.map_type().is_ok_and(|kind| kind == MapType::LruHash)
            && info.key_size() as usize == size_of::<u64>()
            && info.value_size() as usize == size_of::<SpanIds>()
    })
}

/// A thread as the kernel names it: `pid_tgid`.
pub fn thread(pid: u32, tid: u32) -> u64 {
    u64::from(pid) << 32 | u64::from(tid)
}

/// The entries that pitviper has made.
pub struct Published {
    traces: HashMap<MapData, u64, SpanIds>,
    serving: HashMap<MapData, u64, u64>,
    streams: HashMap<MapData, u64, Stream>,
    own: FxHashMap<u64, SpanIds>,
    _pin: Pin,
}

impl Published {
    pub(super) fn new(ebpf: &mut Ebpf, pin: Pin) -> Result<Self> {
        let mut map = |name: &str| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        Ok(Self {
            traces: map(MAP)?.try_into()?,
            serving: map("SERVING")?.try_into()?,
            streams: map("STREAMS")?.try_into()?,
            own: FxHashMap::default(),
            _pin: pin,
        })
    }

    /// Enters the span of a thread that has read a request of `socket`, unless something was sent over that since: `sent`
    /// is how much it was when the request was read. The kernel side removes the entry when something is.
    ///
    /// First the kernel side is told to, then it is looked whether it had reason to before: it counts what is sent
    /// before it looks whether there is an entry.
    pub fn enter(&mut self, thread: u64, socket: SocketId, sent: u64, ids: SpanIds) -> bool {
        if self.answered(socket, sent)
            || self.serving.insert(socket.sock, thread, 0).is_err()
            || self.traces.insert(thread, ids, 0).is_err()
        {
            return false;
        }
        self.own.insert(thread, ids);
        if self.answered(socket, sent) {
            self.withdraw(thread, socket);
            return false;
        }
        true
    }

    /// Removes the entry of a thread, if it is the one that was made.
    pub fn withdraw(&mut self, thread: u64, socket: SocketId) {
        if self.serving.get(&socket.sock, 0).is_ok_and(|serving| serving == thread) {
            let _ = self.serving.remove(&socket.sock);
        }
        self.remove(thread);
    }

    fn remove(&mut self, thread: u64) {
        let Some(ids) = self.own.remove(&thread) else { return };
        if self.traces.get(&thread, 0).is_ok_and(|there| there == ids) {
            let _ = self.traces.remove(&thread);
        }
    }

    fn answered(&self, socket: SocketId, sent: u64) -> bool {
        !self.streams.get(&socket.sock, 0).is_ok_and(|now| now.inode == socket.inode && now.sent == sent)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let own: Vec<u64> = self.own.keys().copied().collect();
        own.into_iter().for_each(|thread| self.remove(thread));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bpf_file_system_is_refused() {
        let folder = std::env::temp_dir();
        let error = Pin::prepare(&folder).unwrap_err();
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!folder.join("otel").exists());
    }

    #[test]
    fn threads_are_named_as_the_kernel_does() {
        assert_eq!(thread(2, 3), 0x2_0000_0003);
    }
}
