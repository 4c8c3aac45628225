//! `profile.speedscope.json`: the profile in the file format of speedscope, a flame graph viewer for the browser.
//!
//! Fields as in <https://www.speedscope.app/file-format-schema.json>.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::profile::Frame;
use crate::profile::stacks::Stacks;
use crate::profile::table::Table;

const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: &'static str,
    name: &'a str,
    active_profile_index: u32,
    shared: Shared,
    profiles: Vec<Profile>,
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<SharedFrame>,
}

#[derive(Serialize)]
struct SharedFrame {
    name: Arc<str>,
    file: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    r#type: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    /// Of each stack its frames, outermost first, by their number in [`Shared`].
    samples: Vec<Vec<usize>>,
    /// Of each stack its CPU time.
    weights: Vec<u64>,
}

/// Writes one profile of everything, and one for each route. `name` is the recording's; weights are in nanoseconds.
pub fn write(stacks: &Stacks, name: &str, period: Duration, to: &mut impl Write) -> io::Result<()> {
    let mut frames = Table::default();
    let routes = stacks.by_route();
    let mut profiles = vec![profile(stacks, "all".to_owned(), period, &mut frames)];
    for (route, of_route) in &routes {
        profiles.push(profile(of_route, route.to_string(), period, &mut frames));
    }
    let exporter = concat!("pitviper ", env!("CARGO_PKG_VERSION"));
    let shared = Shared { frames: frames.finish() };
    let file = File { schema: SCHEMA, exporter, name, active_profile_index: 0, shared, profiles };
    serde_json::to_writer(&mut *to, &file)?;
    to.flush()
}

fn profile(
    stacks: &Stacks,
    name: String,
    period: Duration,
    table: &mut Table<Frame, SharedFrame>,
) -> Profile {
    let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
    let mut samples = Vec::new();
    let mut weights = Vec::new();
    for entry in stacks.iter() {
        let numbers = entry.outermost_first().into_iter().map(|frame| {
            table.find(&frame).unwrap_or_else(|| {
                let Frame { function, file, line, .. } = &frame;
                let line = (*line > 0).then_some(*line);
                let shared = SharedFrame { name: Arc::clone(function), file: Arc::clone(file), line };
                table.add(frame, shared)
            })
        });
        samples.push(numbers.collect());
        weights.push(entry.count.saturating_mul(period));
    }
    let end_value = weights.iter().fold(0, |sum: u64, weight| sum.saturating_add(*weight));
    Profile { r#type: "sampled", name, unit: "nanoseconds", start_value: 0, end_value, samples, weights }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::stacks::tests::sample;

    #[test]
    fn everything_and_each_route() {
        let mut file = Vec::new();
        write(&sample(), "shop", Duration::from_millis(10), &mut file).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        let profiles = file["profiles"].as_array().unwrap();
        let names: Vec<_> = profiles.iter().map(|profile| profile["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["all", "GET /a", "GET /b"]);
        let frames = file["shared"]["frames"].as_array().unwrap();
        for profile in profiles {
            let weights: Vec<u64> =
                profile["weights"].as_array().unwrap().iter().map(|w| w.as_u64().unwrap()).collect();
            assert_eq!(profile["endValue"].as_u64().unwrap(), weights.iter().sum::<u64>());
            assert_eq!(profile["samples"].as_array().unwrap().len(), weights.len());
            for frame in profile["samples"].as_array().unwrap().iter().flat_map(|s| s.as_array().unwrap()) {
                assert!(usize::try_from(frame.as_u64().unwrap()).unwrap() < frames.len());
            }
        }
        let size = frames.iter().find(|frame| frame["name"] == "Ware.größe").unwrap();
        assert_eq!((&size["file"], &size["line"]), (&"/srv/shop/main.py".into(), &30.into()));
        assert_eq!(profiles[0]["endValue"], 70_000_000);
    }
}
