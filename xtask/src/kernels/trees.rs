//! Reads the trace trees that `pitviper run --console` printed in the guest, and compares them with what the services of
//! `xtask/kernels/service.py` did.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

/// Orders that the client sends: rounds times orders in `service.py`.
const ORDERS: usize = 16;

/// A span, and its parent if it has one: service, direction and what was asked for.
type Edge = (String, Option<String>);

/// Gives the number of spans, or says what is missing and what is too much.
pub(crate) fn check(log: &str) -> Result<usize> {
    let seen: Vec<Edge> = edges(log);
    let unique: BTreeSet<&Edge> = seen.iter().collect();
    let expected: BTreeSet<Edge> = (1..=ORDERS).flat_map(expected).collect();
    let missing: Vec<&Edge> = expected.iter().filter(|edge| !unique.contains(edge)).collect();
    let foreign: Vec<&&Edge> = unique.iter().filter(|edge| !expected.contains(**edge)).collect();
    if !missing.is_empty() || !foreign.is_empty() || seen.len() != expected.len() {
        bail!(
            "{} spans instead of {}; missing {missing:?}; not expected {foreign:?}",
            seen.len(),
            expected.len()
        );
    }
    Ok(seen.len())
}

fn expected(order: usize) -> [Edge; 6] {
    let asked = format!("client ▶ http://front/order/{order}");
    let served = format!("front ◀ /order/{order}");
    let [item, price] =
        [format!("front ▶ http://back/item/{order}"), format!("front ▶ http://[::1]:8001/price/{order}")];
    [
        (format!("back ◀ /item/{order}"), Some(item.clone())),
        (format!("back ◀ /price/{order}"), Some(price.clone())),
        (item, Some(served.clone())),
        (price, Some(served.clone())),
        (served, Some(asked.clone())),
        (asked, None),
    ]
}

fn edges(log: &str) -> Vec<Edge> {
    let mut edges = Vec::new();
    // The spans from the root to the line before.
    let mut path: Vec<String> = Vec::new();
    for line in log.lines() {
        let rest = line.trim_start_matches(['│', '├', '└', '─', ' ']);
        // Each level is three characters wide.
        let depth = (line.chars().count() - rest.chars().count()) / 3;
        // Behind that it says where the time went.
        let told = rest.split_once("  [").map_or(rest, |(told, _)| told);
        let words: Vec<&str> = told.split_whitespace().collect();
        let [service, direction @ ("▶" | "◀"), .., target] = words.as_slice() else { continue };
        path.truncate(depth);
        let span = format!("{service} {direction} {target}");
        edges.push((span.clone(), path.last().cloned()));
        path.push(span);
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(item_order: usize) -> String {
        (1..=ORDERS)
            .map(|order| {
                let item = if order == item_order { 99 } else { order };
                format!(
                    "05:23:57.098Z  6b52611e  client  702.1ms\n\
                     client ▶ GET   ━━━━   702.1ms  200  http://front/order/{order}\n\
                     └─ front ◀ GET   ··━━   612.8ms  200  /order/{order}  [cpu 10.5ms, peers 78.2ms]\n\
                     \u{20}  ├─ front ▶ GET   ··━·   421.6ms  200  http://[::1]:8001/price/{order}\n\
                     \u{20}  │  └─ back ◀ GET   ··━·   158.7ms  200  /price/{order}\n\
                     \u{20}  └─ front ▶ GET   ··━━   271.7ms  200  http://back/item/{item}\n\
                     \u{20}     └─ back ◀ GET   ··━·   161.9ms  200  /item/{item}\n\n"
                )
            })
            .collect()
    }

    #[test]
    fn whole_trees_pass_and_a_wrong_parent_does_not() {
        assert_eq!(check(&printed(0)).unwrap(), 6 * ORDERS);
        let error = check(&printed(3)).unwrap_err().to_string();
        assert!(error.contains("/item/3") && error.contains("/item/99"), "{error}");
        assert!(check("").is_err());
    }
}
