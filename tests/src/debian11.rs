//! Python as Debian 11 ships it, with OpenSSL 1.1.1, which no supported distribution has any more: a few of its packages,
//! unpacked into `target/test-variants` and run in place, in the libraries of this machine's Python 3.9.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::python::{self, Home, Python, run};
use crate::runner::skip;
use crate::{chroot, variants};

/// Packages as of Debian 11.11, the last release of it: path below `pool/main` and SHA-256.
const PACKAGES: [(&str, &str); 6] = [
    (
        "libf/libffi/libffi7_3.3-6_amd64.deb",
        "30ca89bfddae5fa6e0a2a044f22b6e50cd17c4bc6bc850c579819aeab7101f0f",
    ),
    (
        "m/mpdecimal/libmpdec3_2.5.1-1_amd64.deb",
        "816404866f754d5662d69db50072018dccb78cf372fc38e0be961fab0f57d741",
    ),
    (
        "o/openssl/libssl1.1_1.1.1w-0+deb11u1_amd64.deb",
        "aadf8b4b197335645b230c2839b4517aa444fd2e8f434e5438c48a18857988f7",
    ),
    (
        "p/python3.9/libpython3.9-minimal_3.9.2-1_amd64.deb",
        "594283526d67e03e3c4e96534f6bfe5da1bf41da5d49360553c9b79fbf08c4ab",
    ),
    (
        "p/python3.9/libpython3.9-stdlib_3.9.2-1_amd64.deb",
        "32ac64d959ac2dbc5bb289532fc9834dab8f671b5455695a3a9315aad973c65b",
    ),
    (
        "p/python3.9/python3.9-minimal_3.9.2-1_amd64.deb",
        "5d6003c5c20223a2547ac4976e09a9ec778dbe351507a6292bef3b60df5f4aa7",
    ),
];
/// Where Debian keeps what has left its mirrors.
const ARCHIVE: &str = "http://archive.debian.org/debian/";

/// How tests call it.
pub const LABEL: &str = "debian11";

/// The interpreter.
pub fn python() -> Result<Python> {
    if !cfg!(target_arch = "x86_64") {
        return Err(skip("the packages are for x86-64"));
    }
    let of = python::find("3.9").ok_or_else(|| skip("no Python 3.9 on this machine"))?;
    let (_lock, prefix) = variants::prefix(LABEL)?;
    let [root, marker] = ["root", "complete"].map(|name| prefix.join(name));
    let executable = root.join("usr/bin/python3.9");
    let with =
        format!("PYTHONHOME='{0}' LD_LIBRARY_PATH='{0}/lib/x86_64-linux-gnu'", root.join("usr").display());
    if !marker.exists() {
        let mirrors = [chroot::mirror()?, ARCHIVE.to_owned()];
        for (path, hash) in PACKAGES {
            let file = prefix.join("package.deb");
            let download = |mirror: &String| {
                let url = format!("{}/pool/main/{path}", mirror.trim_end_matches('/'));
                let mut helper = Command::new("/usr/lib/apt/apt-helper");
                run(helper.args(["-qq", "download-file", &url]).arg(&file).arg(format!("SHA256:{hash}")))
            };
            if download(&mirrors[0]).is_err() {
                download(&mirrors[1])?;
            }
            run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&root))?;
            fs::remove_file(&file)?;
        }
        let imports = "import asyncio, ctypes, decimal, ssl; print(ssl.OPENSSL_VERSION)";
        let script = format!("{with} exec \"$0\" \"$@\"");
        let output =
            Command::new("/bin/sh").args(["-c", &script]).arg(&executable).args(["-c", imports]).output()?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(version.starts_with("OpenSSL 1.1.1"), "{version}{}", String::from_utf8_lossy(&output.stderr));
        fs::write(marker, version)?;
    }
    Ok(Python { label: LABEL.to_owned(), executable, home: Home::Guest { with, of: Box::new(of) } })
}
