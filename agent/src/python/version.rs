//! A CPython version, as the several places where an interpreter states it.

use std::fmt;

/// A CPython version. The minor version decides the layout of the interpreter's structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// 3, but for the dead.
    pub major: u8,
    /// The 12 of 3.12.1.
    pub minor: u8,
    /// The rest, where it is known.
    pub release: Option<Release>,
}

/// What follows the minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Release {
    /// The 1 of 3.12.1.
    pub micro: u8,
    /// `0xA` alpha, `0xB` beta, `0xC` candidate, `0xF` final.
    pub level: u8,
    /// The 2 of 3.14.0rc2.
    pub serial: u8,
}

impl Version {
    /// A version of which only major and minor are known.
    pub const fn new(major: u8, minor: u8) -> Self {
        Self { major, minor, release: None }
    }

    /// Major and minor.
    pub const fn series(self) -> (u8, u8) {
        (self.major, self.minor)
    }

    /// From `PY_VERSION_HEX`: `Py_Version` and `_Py_DebugOffsets.version` hold it.
    pub fn from_hex(hex: u64) -> Option<Self> {
        let [micro, level_and_serial] = [(hex >> 8) as u8, hex as u8];
        let version = Self {
            major: (hex >> 24) as u8,
            minor: (hex >> 16) as u8,
            release: Some(Release { micro, level: level_and_serial >> 4, serial: level_and_serial & 0xf }),
        };
        (hex >> 32 == 0 && (2..=4).contains(&version.major)).then_some(version)
    }

    /// From `PY_VERSION`, such as `3.10.13` or `3.9.0rc1+`.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.trim_end_matches('+').splitn(3, '.');
        let (major, minor, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (micro, suffix) = rest.split_at_checked(digits)?;
        let (level, serial) = match suffix {
            "" => (0xF, 0),
            _ => {
                let numbered = |prefix| suffix.strip_prefix(prefix).and_then(|serial| serial.parse().ok());
                numbered("rc")
                    .map(|serial| (0xC, serial))
                    .or_else(|| numbered("b").map(|serial| (0xB, serial)))
                    .or_else(|| numbered("a").map(|serial| (0xA, serial)))?
            }
        };
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            release: Some(Release { micro: micro.parse().ok()?, level, serial }),
        })
    }

    /// From a file's name or soname: `libpython3.8.so.1.0`, `python3.9`, `python3.13t`, `libpython3.7m.so.1.0`.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("lib").unwrap_or(name).strip_prefix("python")?;
        let (major, rest) = rest.split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self::new(major.parse().ok()?, rest.get(..digits)?.parse().ok()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, release } = self;
        write!(f, "{major}.{minor}")?;
        let Some(Release { micro, level, serial }) = release else { return Ok(()) };
        write!(f, ".{micro}")?;
        match level {
            0xA => write!(f, "a{serial}"),
            0xB => write!(f, "b{serial}"),
            0xC => write!(f, "rc{serial}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex() {
        assert_eq!(Version::from_hex(0x030c_01f0).unwrap().to_string(), "3.12.1");
        assert_eq!(Version::from_hex(0x030e_00c2).unwrap().to_string(), "3.14.0rc2");
        assert_eq!(Version::from_hex(0), None);
        assert_eq!(Version::from_hex(u64::MAX), None);
    }

    #[test]
    fn text() {
        for text in ["3.10.13", "3.9.0rc1", "3.8.0a4", "3.8.0b1"] {
            assert_eq!(Version::from_text(text).unwrap().to_string(), text);
        }
        assert_eq!(Version::from_text("3.9.2+").unwrap().to_string(), "3.9.2");
        for text in ["", "3", "3.9", "3.9.", "3.9.x", "3.9.1z", "3.9.1rc", "3.900.1", "three.9.1"] {
            assert_eq!(Version::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn file_names() {
        for (name, version) in [
            ("libpython3.8.so.1.0", Some("3.8")),
            ("libpython3.7m.so.1.0", Some("3.7")),
            ("python3.13t", Some("3.13")),
            ("python2.7", Some("2.7")),
            ("libpython3.so", None),
            ("python3", None),
            ("python", None),
            ("ruby3.2", None),
        ] {
            assert_eq!(
                Version::from_file_name(name).map(|version| version.to_string()).as_deref(),
                version,
                "{name}"
            );
        }
    }
}
