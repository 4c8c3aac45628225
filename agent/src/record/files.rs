//! The files of a recording: which there are, and what they are called.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{flamegraph, speedscope};
use crate::profile::collapsed::{self, Level};
use crate::profile::pprof::{self, Recorded};
use crate::profile::stacks::Stacks;

const PPROF: &str = "profile.pb.gz";
const COLLAPSED: &str = "profile.collapsed";
const SPEEDSCOPE: &str = "profile.speedscope.json";
const FLAMEGRAPH: &str = "flamegraph.svg";
/// Folder of the flame graphs by route.
const ROUTES: &str = "routes";
/// Flame graphs by route, the busiest ones.
const MOST_ROUTES: usize = 50;

/// A file that was written, and what it is.
pub(super) type Written = (PathBuf, &'static str);

/// Where to write.
pub(super) struct Files<'a> {
    pub(super) folder: &'a Path,
    pub(super) title: &'a str,
    pub(super) recorded: Recorded,
}

impl Files<'_> {
    /// Writes all of them.
    pub(super) fn write(&self, stacks: &Stacks) -> Result<Vec<Written>> {
        let Self { title, recorded, .. } = *self;
        let mut written = vec![
            self.file(FLAMEGRAPH, "open it in a browser", |to| flamegraph::write(stacks, title, to))?,
            self.file(PPROF, "for `go tool pprof` and Pyroscope", |to| pprof::write(stacks, recorded, to))?,
            self.file(SPEEDSCOPE, "for speedscope.app", |to| {
                speedscope::write(stacks, title, recorded.period, to)
            })?,
            self.file(COLLAPSED, "for flame graph tools", |to| collapsed::write(stacks, Level::Service, to))?,
        ];
        let routes = stacks.by_route();
        if routes.is_empty() {
            return Ok(written);
        }
        // It may be a folder of the user's: nothing in it is taken away but flame graphs of the same name.
        let folder = self.folder.join(ROUTES);
        fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        for (route, of_route) in routes.iter().take(MOST_ROUTES) {
            let name = format!("{ROUTES}/{}.svg", file_name(route));
            self.file(&name, "", |to| flamegraph::write(of_route, &format!("{title}, {route}"), to))?;
        }
        written.push((folder, "a flame graph for each route"));
        Ok(written)
    }

    fn file(
        &self,
        name: &str,
        what: &'static str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<Written> {
        let path = self.folder.join(name);
        write_file(&path, write)?;
        Ok((path, what))
    }
}

/// Writes a file, or says which one could not be written.
pub(crate) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<PathBuf> {
    let written = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        write(&mut file)?;
        file.flush()
    };
    written().with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path.to_owned())
}

/// `GET_items_{}_stock` of `GET /items/{}/stock`: a route comes from a request, and must not lead elsewhere.
fn file_name(route: &str) -> String {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '{' | '}' | '-' | '_' | '.');
    let replaced: String =
        route.replace(" /", "/").chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    replaced.trim_start_matches('.').chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::profile::stacks::tests::sample;

    #[test]
    fn writes_them_all_and_takes_nothing_away() {
        let folder = std::env::temp_dir().join(format!("pitviper-files-{}", std::process::id()));
        fs::create_dir_all(folder.join(ROUTES)).unwrap();
        fs::write(folder.join(ROUTES).join("orders.py"), "").unwrap();
        fs::write(folder.join(ROUTES).join("GET_a.svg"), "old").unwrap();
        let recorded = Recorded {
            start: SystemTime::now(),
            duration: Duration::from_secs(1),
            period: Duration::from_millis(10),
        };
        let files = Files { folder: &folder, title: "shop: CPU", recorded };
        let written = files.write(&sample()).unwrap();
        assert_eq!(written.len(), 5);
        let mut routes: Vec<_> = fs::read_dir(folder.join(ROUTES))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        routes.sort();
        assert_eq!(routes, ["GET_a.svg", "GET_b.svg", "orders.py"]);
        assert_ne!(fs::read(folder.join(ROUTES).join("GET_a.svg")).unwrap(), b"old");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn routes_as_file_names() {
        assert_eq!(file_name("GET /items/{}/stock"), "GET_items_{}_stock");
        assert_eq!(file_name("../../etc/passwd"), "_.._etc_passwd");
        assert_eq!(file_name("process celery"), "process_celery");
    }
}
