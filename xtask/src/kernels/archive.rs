//! Debian's archive through apt, in a folder of its own: which kernels there are, and packages unpacked.
//!
//! The mirror is the one that this machine's apt uses; the machine's own indexes and packages stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, progress::Step};

/// Some suites of Debian's archive.
pub(crate) struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Fetches the indexes of `suites`, each with whether it is in the archive for security updates.
    pub(crate) fn open(step: &Step, folder: PathBuf, suites: &[(&str, bool)]) -> Result<Self> {
        for name in ["lists/partial", "cache/archives/partial", "unpacked"] {
            fs::create_dir_all(folder.join(name))
                .with_context(|| format!("failed to create {name} in {}", folder.display()))?;
        }
        let mut sources = String::new();
        for &(suite, security) in suites {
            let mirror = mirror(if security { "Debian-Security" } else { "Debian" })?;
            sources.push_str(&format!("deb [arch=amd64] {mirror} {suite} main\n"));
        }
        let path = folder.display();
        let configuration = format!(
            "Dir::Etc::sourcelist \"{path}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State::lists \"{path}/lists\";\nDir::State::status \"{path}/status\";\n\
             Dir::Cache \"{path}/cache\";\nAPT::Sandbox::User \"root\";\n"
        );
        // An empty list of installed packages makes apt fetch all that a package depends on.
        for (name, text) in [("sources.list", &*sources), ("apt.conf", &configuration), ("status", "")] {
            fs::write(folder.join(name), text).with_context(|| format!("failed to write {name}"))?;
        }
        let archive = Self { folder };
        command::quiet(step, archive.apt("apt-get").arg("update"))?;
        Ok(archive)
    }

    /// The image of the newest kernel of a series, such as `6.1`.
    pub(crate) fn kernel(&self, step: &Step, series: &str) -> Result<PathBuf> {
        let names = command::quiet(step, self.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        let package = newest(names.lines(), series)
            .with_context(|| format!("Debian's archive has no kernel {series} for cloud machines"))?;
        let unpacked = self.folder.join("unpacked").join(package);
        if !unpacked.exists() {
            let downloads = self.folder.join("cache/kernels");
            fs::create_dir_all(&downloads).context("failed to create a folder for the kernels")?;
            command::quiet(step, self.apt("apt-get").args(["download", package]).current_dir(&downloads))?;
            let prefix = format!("{package}_");
            let file = files(&downloads)?
                .into_iter()
                .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
                .with_context(|| format!("apt-get downloaded no {package}"))?;
            unpack(step, &file, &unpacked)?;
        }
        let image = |folder: &Path| {
            let name_fits = |file: &PathBuf| {
                file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
            };
            files(folder).ok()?.into_iter().find(name_fits)
        };
        // Up to 6.x it is in /boot, then in the folder of the modules.
        let modules = files(&unpacked.join("usr/lib/modules")).unwrap_or_default();
        image(&unpacked.join("boot"))
            .or_else(|| modules.iter().find_map(|folder| image(folder)))
            .with_context(|| format!("{package} contains no kernel image"))
    }

    /// Unpacks packages and all that they depend on into `folder`.
    pub(crate) fn unpack_with_dependencies(
        &self,
        step: &Step,
        packages: &[&str],
        folder: &Path,
    ) -> Result<()> {
        let options = ["install", "--download-only", "--yes", "--no-install-recommends"];
        command::quiet(step, self.apt("apt-get").args(options).args(packages))?;
        for file in files(&self.folder.join("cache/archives"))? {
            if file.extension().is_some_and(|extension| extension == "deb") {
                unpack(step, &file, folder)?;
            }
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = command::new(program);
        apt.env("APT_CONFIG", self.folder.join("apt.conf")).env("DEBIAN_FRONTEND", "noninteractive");
        apt
    }
}

/// The codename of this machine's own release, with whose libraries the daemon was built.
pub(crate) fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("failed to read /etc/os-release")?;
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(codename.context("/etc/os-release names no codename")?.trim_matches('"').to_owned())
}

/// Where this machine's apt finds the archive of this label.
fn mirror(label: &str) -> Result<String> {
    let targets = command::output(command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))
    .unwrap_or_default();
    let prefix = format!("Debian {label} ");
    match targets.lines().find_map(|line| line.strip_prefix(&prefix)) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!("apt knows no archive {label}: this needs Debian, and perhaps `apt-get update`"),
    }
}

/// The newest package with an image of a series. From 7 on `linux-image-*` is an empty package beside `linux-binary-*`.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: &str) -> Option<&'a str> {
    names
        .filter_map(|name| {
            let (is_binary, version) = name
                .strip_prefix("linux-binary-")
                .map(|rest| (true, rest))
                .or_else(|| name.strip_prefix("linux-image-").map(|rest| (false, rest)))?;
            let version = version.strip_suffix("-cloud-amd64")?;
            version.strip_prefix(series)?.strip_prefix('.')?;
            let numbers: Vec<u32> =
                version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
            Some(((is_binary, numbers), name))
        })
        .max()
        .map(|(_, name)| name)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

fn unpack(step: &Step, package: &Path, folder: &Path) -> Result<()> {
    command::quiet(step, command::new("dpkg-deb").arg("--extract").args([package, folder])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_with_an_image_is_chosen() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.2.9+deb13-cloud-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let check = |series, expected| assert_eq!(newest(names.into_iter(), series), expected, "{series}");
        check("6.1", Some("linux-image-6.1.0-56-cloud-amd64"));
        check("6.12", Some("linux-image-6.12.117+deb12-cloud-amd64"));
        check("7.2", Some("linux-binary-7.2.12+deb13-cloud-amd64"));
        check("5.10", None);
    }
}
