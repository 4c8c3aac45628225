//! The emulated machine: an initial file system with Python, the sample services and pitviper, and a boot of it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{GUEST_PACKAGES, archive::Archive, trees};
use crate::{command, progress::Step, workspace};

/// Seconds after which a guest has hung; it needs about twenty.
const LIMIT: &str = "300";

/// An emulated machine, ready to be booted with any kernel.
pub(crate) struct Guest {
    folder: PathBuf,
}

impl Guest {
    /// Makes the initial file system: the packages once, the services and pitviper each time.
    pub(crate) fn prepare(folder: &Path, archive: &Archive) -> Result<Self> {
        let step = Step::begin("prepare the guest");
        let guest = Self { folder: folder.to_owned() };
        let base = folder.join("base.cpio");
        if !base.exists() {
            let root = folder.join("root");
            archive.unpack_with_dependencies(&step, &GUEST_PACKAGES, &root)?;
            // Documentation, and character sets that nobody needs.
            for unneeded in ["usr/share", "usr/lib/x86_64-linux-gnu/gconv"] {
                let _ = fs::remove_dir_all(root.join(unneeded));
            }
            // Releases with everything in /usr have these links in a package that only its scripts complete.
            for name in ["bin", "sbin", "lib", "lib64"] {
                if !root.join(name).exists() {
                    symlink(format!("usr/{name}"), root.join(name)).context("failed to make a link")?;
                }
            }
            pack(&step, &root, &base)?;
        }
        let overlay = folder.join("overlay");
        fs::create_dir_all(overlay.join("usr/bin")).context("failed to create the overlay")?;
        for name in ["init", "service.py"] {
            let source = workspace::root().join("xtask/kernels").join(name);
            fs::copy(&source, overlay.join(name))
                .with_context(|| format!("failed to copy {}", source.display()))?;
        }
        fs::copy(workspace::daemon(false), overlay.join("usr/bin/pitviper"))
            .context("failed to copy the daemon")?;
        pack(&step, &overlay, &folder.join("overlay.cpio"))?;
        // The kernel unpacks one archive after the other.
        let mut whole = File::create(guest.initrd()).context("failed to create the initial file system")?;
        for part in [base, folder.join("overlay.cpio")] {
            let mut part = File::open(&part).with_context(|| format!("failed to open {}", part.display()))?;
            io::copy(&mut part, &mut whole).context("failed to write the initial file system")?;
        }
        step.done("");
        Ok(guest)
    }

    fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.cpio")
    }

    /// Boots a kernel; gives one line about what pitviper saw, or what went wrong.
    pub(crate) fn boot(&self, step: &Step, series: &str, image: &Path) -> Result<String> {
        let [boot_log, log] = ["boot", "log"].map(|kind| self.folder.join(format!("{series}.{kind}")));
        let _ = fs::remove_file(&log);
        let mut qemu = command::new("timeout");
        qemu.args([LIMIT, "qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none"])
            // Hardware virtualisation is not to be had everywhere. 6.12 crashes on the emulator's largest processor.
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Haswell-noTSX"])
            .args(["-smp", "2", "-m", "1G"])
            .args(["-append", "console=ttyS0 loglevel=4 panic=-1 rdinit=/init"])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(self.initrd());
        for file in [&boot_log, &log] {
            qemu.arg("-serial").arg(format!("file:{}", file.display()));
        }
        command::quiet(step, &mut qemu)?;
        let text = fs::read(&log).with_context(|| format!("the guest wrote no {}", log.display()))?;
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        judge(&text)
    }
}

fn pack(step: &Step, folder: &Path, into: &Path) -> Result<()> {
    let script = "find . -print0 | sort -z | cpio --null --create --format=newc --owner=0:0 --quiet >\"$0\"";
    command::quiet(step, command::new("sh").args(["-c", script]).arg(into).current_dir(folder)).map(drop)
}

/// Reads what the guest's `init` wrote.
fn judge(log: &str) -> Result<String> {
    let value = |name: &str| log.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let kernel = value("kernel:").context("the guest did not come up")?;
    if let Some(refusal) = log.lines().find(|line| line.contains("the kernel refused")) {
        // The verifier's last words come before its statistics.
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.iter().position(|line| line.starts_with("verification time")).unwrap_or(0);
        let reason = end.checked_sub(1).and_then(|at| lines.get(at)).unwrap_or(&"");
        let subject = refusal.split(": ").nth(1).unwrap_or(refusal);
        bail!("{kernel}: {subject}: {reason}");
    }
    match value("pitviper: status") {
        Some("0") => {}
        status => bail!("{kernel}: pitviper ended with status {}", status.unwrap_or("unknown")),
    }
    if !log.lines().any(|line| line == "client: done") {
        bail!("{kernel}: the client of the services failed");
    }
    let stacks = match value("profile:").and_then(|count| count.parse::<u32>().ok()) {
        None | Some(0) => bail!("{kernel}: no profile sample has a frame of the services"),
        Some(stacks) => stacks,
    };
    let spans = trees::check(log).with_context(|| kernel.to_owned())?;
    let steps = |program: &str| {
        let steps = log.lines().find_map(|line| {
            let rest = line.strip_prefix("pitviper: debug: the kernel verified ")?.strip_prefix(program)?;
            rest.trim_start_matches("_unpreempted").strip_prefix(" in ")?.strip_suffix(" steps")
        });
        steps.map_or(String::new(), |steps| format!(", {program} verified in {steps} steps"))
    };
    let steps = steps("sys_exit") + &steps("cpu_sample");
    Ok(format!(
        "{kernel}: ok, {spans} spans, every one under the right parent, {stacks} profile stacks{steps}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_verifiers_words() {
        let log = "kernel: 6.1.0\nclient: done\npitviper: status 1\npitviper: the kernel refused the program sys_exit: the \
                   syscall failed. Verifier output: 0: R1=ctx\n7: (85) call x\nR2 min value is negative\nverification time 9 usec\n";
        let error = judge(log).unwrap_err().to_string();
        assert_eq!(error, "6.1.0: the kernel refused the program sys_exit: R2 min value is negative");
    }

    #[test]
    fn a_guest_that_says_nothing_has_failed() {
        assert!(judge("").is_err());
        assert!(judge("kernel: 6.1.0\npitviper: status 0\nclient: done\n").is_err());
    }
}
