//! Which container and which Kubernetes pod a process is in, told from its control groups and mounts.

/// Length of a container's id: a SHA-256 in hexadecimal.
const ID_LENGTH: usize = 64;

/// What the control groups and mounts of a process say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id of the container.
    pub id: Option<String>,
    /// The Kubernetes pod's UID.
    pub pod_uid: Option<String>,
}

impl Container {
    /// Looks at a process.
    pub fn of_process(pid: u32) -> Self {
        let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let cgroup = read("cgroup");
        let id = id_in_cgroup(&cgroup).or_else(|| id_in_mounts(&read("mountinfo")));
        Self { id, pod_uid: pod_in_cgroup(&cgroup) }
    }
}

/// The innermost component of a group's path that is a container's id, as the runtimes write it:
///
/// - Docker: `/docker/ID`, `/system.slice/docker-ID.scope`
/// - containerd: `/kubepods/burstable/podUID/ID`, `.../cri-containerd-ID.scope`, `...:cri-containerd:ID`
/// - CRI-O: `.../crio-ID.scope`
/// - Podman: `/machine.slice/libpod-ID.scope/container`
fn id_in_cgroup(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.rsplit('/').find_map(|component| {
            if component.contains("conmon") {
                return None;
            }
            let name = component.strip_suffix(".scope").unwrap_or(component);
            let id = name.rsplit(['-', ':']).next()?;
            is_id(id).then(|| id.to_owned())
        })
    })
}

/// Inside a cgroup namespace the path is just `/`; the files that runtimes mount into a container still name it. A
/// pod's shared `sandboxes/ID` is not the container.
fn id_in_mounts(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (root, target) = (fields.nth(3)?, fields.next()?);
        if !matches!(target, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf" | "/run/.containerenv") {
            return None;
        }
        let holds_id = |folder: &str| matches!(folder, "containers" | "overlay-containers");
        let mut pairs = root.split('/').zip(root.split('/').skip(1));
        pairs.find(|(folder, id)| holds_id(folder) && is_id(id)).map(|(_, id)| id.to_owned())
    })
}

/// `/kubepods/burstable/podUID/...` or `/kubepods.slice/kubepods-burstable-podUID.slice/...`, where the systemd form has
/// `_` for `-`.
fn pod_in_cgroup(text: &str) -> Option<String> {
    text.lines().filter(|line| line.contains("kubepods")).find_map(|line| {
        line.split('/').find_map(|component| {
            let name = component.strip_suffix(".slice").unwrap_or(component);
            let uid = name.rsplit_once("pod").map(|(_, uid)| uid.replace('_', "-"))?;
            uuid::Uuid::try_parse(&uid).is_ok().then_some(uid)
        })
    })
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "dc5f8de2b2e4a4b1c9a2f7a5c3d8e1f0b6a7c8d9e0f1a2b3c4d5e6f708192a3b";
    const POD: &str = "9a2c1f3e-5b7d-4c8e-a1b2-c3d4e5f60718";

    #[test]
    fn ids_in_cgroups() {
        for path in [
            "0::/docker/ID",
            "0::/system.slice/docker-ID.scope",
            "0::/system.slice/docker-ID.scope/init",
            "11:cpu:/kubepods/besteffort/podPOD/ID",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD.slice/cri-containerd-ID.scope",
            "0::/kubepods-burstable-podPOD.slice:cri-containerd:ID",
            "0::/kubepods.slice/kubepods-podPOD.slice/crio-ID.scope",
            "0::/machine.slice/libpod-ID.scope/container",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
        ] {
            let text = format!("1:name=systemd:/\n{}\n", path.replace("ID", ID).replace("POD", POD));
            assert_eq!(id_in_cgroup(&text).as_deref(), Some(ID), "{path}");
        }
        for path in [
            "0::/",
            "0::/user.slice/user-1000.slice/session-3.scope",
            "0::/system.slice/shop.service",
            "0::/machine.slice/libpod-conmon-ID.scope",
            "nonsense",
        ] {
            assert_eq!(id_in_cgroup(&path.replace("ID", ID)), None, "{path}");
        }
    }

    #[test]
    fn pods_in_cgroups() {
        let systemd = format!("kubepods-burstable-pod{}.slice", POD.replace('-', "_"));
        for path in [
            format!("0::/kubepods.slice/kubepods-burstable.slice/{systemd}/cri-containerd-{ID}.scope"),
            format!("4:memory:/kubepods/burstable/pod{POD}/{ID}"),
        ] {
            assert_eq!(pod_in_cgroup(&path).as_deref(), Some(POD), "{path}");
        }
        assert_eq!(pod_in_cgroup(&format!("0::/machine.slice/libpod-{ID}.scope")), None);
    }

    #[test]
    fn ids_in_mounts() {
        for root in [
            "/var/lib/docker/containers/ID/hostname",
            "/docker/containers/ID/hostname",
            "/containers/storage/overlay-containers/ID/userdata/hostname",
        ] {
            let line = format!("1 2 0:3 {} /etc/hostname rw - ext4 /dev/vda rw\n", root.replace("ID", ID));
            assert_eq!(id_in_mounts(&line).as_deref(), Some(ID), "{root}");
        }
        let sandbox = format!("1 2 0:3 /sandboxes/{ID}/hostname /etc/hostname rw - ext4 /dev/vda rw\n");
        assert_eq!(id_in_mounts(&sandbox), None);
        let other = format!("1 2 0:3 /containers/{ID}/data /data rw - ext4 /dev/vda rw\n");
        assert_eq!(id_in_mounts(&other), None);
    }
}
