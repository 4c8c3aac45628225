//! The bench's table: medians over the rounds, and ratios to the bare service of the same round.

use std::fmt::Write as _;

/// What one round measured of one setup.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sample {
    /// At saturation.
    pub(crate) requests_per_second: f64,
    /// Of the service's process, at saturation.
    pub(crate) saturated_cpu_us: f64,
    /// Of the service's process, at the fixed rate.
    pub(crate) steady_cpu_us: f64,
    /// At the fixed rate, in milliseconds.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Spans that reached the collector, of all requests of the round.
    pub(crate) spans_per_request: f64,
    /// CPU time of pitviper itself.
    pub(crate) agent_us_per_span: f64,
    pub(crate) agent_memory_mb: f64,
}

/// One round: the same load on each setup.
pub(crate) struct Round {
    pub(crate) bare: Sample,
    pub(crate) pitviper: Sample,
    pub(crate) sdk: Sample,
}

/// What is hoped for.
#[derive(Clone, Copy)]
enum Aim {
    None,
    AtLeast(f64),
    AtMost(f64),
}

struct Row {
    name: &'static str,
    of: fn(&Sample) -> f64,
    /// For pitviper's ratio to bare or, in a row about the agent alone, for its value.
    aim: Aim,
    decimals: usize,
}

const COMPARED: [Row; 5] = [
    row("throughput at saturation, requests/s", |sample| sample.requests_per_second, Aim::AtLeast(0.9), 0),
    row("service CPU per request, saturated, us", |sample| sample.saturated_cpu_us, Aim::AtMost(1.05), 0),
    row("service CPU per request, fixed rate, us", |sample| sample.steady_cpu_us, Aim::AtMost(1.05), 0),
    row("latency p50, fixed rate, ms", |sample| sample.p50_ms, Aim::None, 2),
    row("latency p99, fixed rate, ms", |sample| sample.p99_ms, Aim::None, 2),
];

const ALONE: [Row; 2] = [
    row("agent CPU per span, us", |sample| sample.agent_us_per_span, Aim::AtMost(15.0), 1),
    row("agent memory at most, MB", |sample| sample.agent_memory_mb, Aim::AtMost(60.0), 1),
];

/// A server span and five client spans: without them all, a low cost means nothing.
const SPANS: Aim = Aim::AtLeast(6.0);

const fn row(name: &'static str, of: fn(&Sample) -> f64, aim: Aim, decimals: usize) -> Row {
    Row { name, of, aim, decimals }
}

/// The table, as text.
pub(crate) fn table(rounds: &[Round]) -> String {
    let mut text = format!(
        "{:40} {:>9} {:>9} {:>7} {:>9} {:>7}  {}\n",
        "median of the rounds", "bare", "pitviper", "ratio", "SDK", "ratio", "aim for pitviper"
    );
    for Row { name, of, aim, decimals } in COMPARED {
        let value = |pick: fn(&Round) -> &Sample| median(rounds.iter().map(|round| of(pick(round))));
        let ratio = |pick: fn(&Round) -> &Sample| {
            median(rounds.iter().map(|round| of(pick(round)) / of(&round.bare)))
        };
        let ours = ratio(|round| &round.pitviper);
        let _ = writeln!(
            text,
            "{name:40} {:9.decimals$} {:9.decimals$} {ours:7.3} {:9.decimals$} {:7.3}  {}",
            value(|round| &round.bare),
            value(|round| &round.pitviper),
            value(|round| &round.sdk),
            ratio(|round| &round.sdk),
            aim.judge(ours),
        );
    }
    let spans =
        |pick: fn(&Round) -> &Sample| median(rounds.iter().map(|round| pick(round).spans_per_request));
    let ours = spans(|round| &round.pitviper);
    let _ = writeln!(
        text,
        "{:40} {:>9} {ours:9.2} {:>7} {:9.2} {:>7}  {}",
        "spans per request at the collector",
        "",
        "",
        spans(|round| &round.sdk),
        "",
        SPANS.judge((ours * 100.0).round() / 100.0),
    );
    for Row { name, of, aim, decimals } in ALONE {
        let value = median(rounds.iter().map(|round| of(&round.pitviper)));
        let _ = writeln!(text, "{name:40} {:>9} {value:9.decimals$} {:>25}  {}", "", "", aim.judge(value));
    }
    text
}

impl Aim {
    fn judge(self, value: f64) -> String {
        let (met, sign, bound) = match self {
            Self::None => return String::new(),
            Self::AtLeast(bound) => (value >= bound, ">=", bound),
            Self::AtMost(bound) => (value <= bound, "<=", bound),
        };
        format!("{sign} {bound}: {}", if met { "met" } else { "missed" })
    }
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => f64::NAN,
        values if values.len() % 2 == 1 => values[middle],
        values => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let round = |bare: f64, pitviper: f64| Round {
            bare: Sample { requests_per_second: bare, ..Sample::default() },
            pitviper: Sample { requests_per_second: pitviper, ..Sample::default() },
            sdk: Sample { requests_per_second: bare / 2.0, ..Sample::default() },
        };
        // The second round's machine was twice as fast; the ratio of the medians would be another.
        let text = table(&[round(1000.0, 950.0), round(2000.0, 1900.0), round(1500.0, 1200.0)]);
        let throughput = text.lines().nth(1).unwrap();
        assert!(throughput.contains(" 0.950 ") && throughput.contains(" 0.500 "), "{throughput}");
        assert!(throughput.ends_with(">= 0.9: met"), "{throughput}");
    }

    #[test]
    fn median_of_an_even_number_is_between() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.5);
    }
}
