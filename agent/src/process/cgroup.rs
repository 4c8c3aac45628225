//! Control groups, version 2: which one a process is in, and what a path that a person gives means.

use std::path::{Path, PathBuf};

/// The group of a process in the unified hierarchy, from its root: `/system.slice/shop.service`.
pub fn of_process(pid: u32) -> Option<PathBuf> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The line of version 2 in a `/proc/PID/cgroup`: `0::PATH`. See `cgroups(7)`.
fn parse(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// Where the unified hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
pub fn mount_point() -> Option<PathBuf> {
    find_mount(&std::fs::read_to_string("/proc/self/mounts").ok()?)
}

fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

/// The group that a person means by an absolute path below the mount point, or by a path from the hierarchy's root. As
/// [`of_process`] gives it; `None` when there is no such group.
pub fn resolve(path: &Path, mount: &Path) -> Option<PathBuf> {
    let from_root = path.strip_prefix(mount).unwrap_or_else(|_| path.strip_prefix("/").unwrap_or(path));
    // A path from outside may hold `..` or symbolic links.
    let group = mount.join(from_root).canonicalize().ok()?;
    let group = group.strip_prefix(mount.canonicalize().ok()?).ok()?;
    mount.join(group).join("cgroup.procs").exists().then(|| Path::new("/").join(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let hybrid = "12:pids:/a\n1:name=systemd:/b\n0::/system.slice/shop.service\n";
        assert_eq!(parse(hybrid), Some(PathBuf::from("/system.slice/shop.service")));
        assert_eq!(parse("1:cpu:/\n"), None);
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount("tmpfs /cgroup2 tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn resolves_paths_of_this_machine() {
        let Some(mount) = mount_point() else {
            eprintln!("skipped: no cgroup v2 hierarchy is mounted");
            return;
        };
        assert_eq!(resolve(&mount, &mount), Some(PathBuf::from("/")));
        assert_eq!(resolve(Path::new("/"), &mount), Some(PathBuf::from("/")));
        assert_eq!(resolve(Path::new("no/such/group"), &mount), None);
        assert_eq!(resolve(Path::new("../../../etc"), &mount), None);
        let own = of_process(std::process::id()).unwrap();
        assert_eq!(resolve(&own, &mount), Some(own.clone()));
        assert_eq!(resolve(&mount.join(own.strip_prefix("/").unwrap()), &mount), Some(own));
    }
}
