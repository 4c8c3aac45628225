//! Traces for people: finished spans gathered by trace and printed as a tree with a timeline.
//!
//! [`Console`] holds a bounded number of spans until their trace is quiet; [`render`] is pure text. Nothing here reads
//! a clock or writes: the caller passes the time in and prints what comes out. What came from the wire is escaped.

mod time;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, SpanKind, Status, TraceId};

use crate::trace::{FinishedSpan, semconv};

/// Silence after which a trace whose local root has ended is printed.
const QUIET: Duration = Duration::from_millis(300);
/// Silence after which a trace is printed whether or not its root was seen.
const PATIENCE: Duration = Duration::from_secs(5);
const TRACES_LIMIT: usize = 512;
const SPANS_LIMIT: usize = 8192;
/// Siblings of one name beyond which they become one line.
const FOLD_ABOVE: usize = 8;
/// Cells of the timeline.
const BAR_CELLS: u32 = 24;

/// How traces are drawn.
#[derive(Clone, Debug)]
pub struct Style {
    /// ANSI colours.
    pub color: bool,
    /// Columns of a line.
    pub width: usize,
}

impl Style {
    /// Colours where standard output is a terminal and `NO_COLOR` is not set; the width of `COLUMNS`, else 140.
    pub fn from_environment() -> Self {
        use std::io::IsTerminal as _;
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = columns.filter(|&columns: &usize| columns >= 40).unwrap_or(140);
        Self { color: std::io::stdout().is_terminal() && !no_color, width }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

struct Gathered {
    spans: Vec<FinishedSpan>,
    last: Instant,
    root: bool,
}

/// Gathers spans by trace until they can be printed.
pub struct Console {
    style: Style,
    traces: HashMap<TraceId, Gathered>,
    held: usize,
    dropped: u64,
}

impl Console {
    /// A console that draws like this.
    pub fn new(style: Style) -> Self {
        Self { style, traces: HashMap::new(), held: 0, dropped: 0 }
    }

    /// Takes a span, or drops and counts it when too many are held.
    pub fn push(&mut self, span: FinishedSpan, now: Instant) {
        let id = span.data.span_context.trace_id();
        let full =
            self.held >= SPANS_LIMIT || (self.traces.len() >= TRACES_LIMIT && !self.traces.contains_key(&id));
        if full {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        let root = span.data.parent_span_is_remote || span.data.parent_span_id == SpanId::INVALID;
        let trace =
            self.traces.entry(id).or_insert_with(|| Gathered { spans: Vec::new(), last: now, root: false });
        trace.root |= root;
        trace.last = now;
        trace.spans.push(span);
        self.held = self.held.saturating_add(1);
    }

    /// The traces that have become quiet, drawn, in the order in which they began.
    pub fn tick(&mut self, now: Instant) -> Vec<String> {
        self.take(|trace| {
            let silence = now.saturating_duration_since(trace.last);
            silence >= if trace.root { QUIET } else { PATIENCE }
        })
    }

    /// All that is held, drawn: for the end.
    pub fn flush(&mut self) -> Vec<String> {
        self.take(|_| true)
    }

    /// How many spans were not printed because too many were held.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn take(&mut self, ready: impl Fn(&Gathered) -> bool) -> Vec<String> {
        let mut traces: Vec<_> =
            self.traces.extract_if(|_, trace| ready(trace)).map(|(_, trace)| trace).collect();
        traces.sort_by_key(|trace| trace.spans.iter().map(|span| span.data.start_time).min());
        for trace in &traces {
            self.held = self.held.saturating_sub(trace.spans.len());
        }
        traces.iter().map(|trace| render(&trace.spans, &self.style)).collect()
    }
}

/// Draws the spans of one trace: a header, and a line for each span in time order below its parent.
pub fn render(trace: &[FinishedSpan], style: &Style) -> String {
    let mut spans: Vec<&FinishedSpan> = trace.iter().collect();
    spans.sort_by_key(|span| span.data.start_time);
    let Some(first) = spans.first() else { return String::new() };
    let start = first.data.start_time;
    let end = spans.iter().map(|span| span.data.end_time).max().unwrap_or(start);
    let total = end.duration_since(start).unwrap_or_default();
    let known: HashSet<SpanId> = spans.iter().map(|span| span.data.span_context.span_id()).collect();
    let mut children: HashMap<SpanId, Vec<&FinishedSpan>> = HashMap::new();
    let mut roots = Vec::new();
    for &span in &spans {
        let parent = span.data.parent_span_id;
        if known.contains(&parent) && parent != span.data.span_context.span_id() {
            children.entry(parent).or_default().push(span);
        } else {
            roots.push(span);
        }
    }
    let orphan = trace.len() == 1
        && first.data.span_kind == SpanKind::Client
        && first.data.parent_span_id == SpanId::INVALID;
    let mut text = header(first, total, orphan, style);
    // Spans to draw, last one on top: the span, how many it stands for, what is left of it, whether it is the last.
    let mut stack = Vec::new();
    push_siblings(&mut stack, &roots, "", true);
    while let Some(Entry { span, times, spent, indent, last, is_root }) = stack.pop() {
        let (branch, below) = match (is_root, last) {
            (true, _) => ("", ""),
            (false, true) => ("└─ ", "   "),
            (false, false) => ("├─ ", "│  "),
        };
        let tree = format!("{indent}{branch}");
        text.push_str(&line(span, &tree, times, spent, (start, total), style));
        if let Some(siblings) = children.remove(&span.data.span_context.span_id()) {
            push_siblings(&mut stack, &siblings, &format!("{indent}{below}"), false);
        }
    }
    text
}

struct Entry<'a> {
    span: &'a FinishedSpan,
    /// How many siblings this line stands for.
    times: usize,
    /// Sum of their durations.
    spent: Duration,
    indent: String,
    last: bool,
    is_root: bool,
}

fn push_siblings<'a>(stack: &mut Vec<Entry<'a>>, siblings: &[&'a FinishedSpan], indent: &str, is_root: bool) {
    // What makes siblings alike: service, name and whether they failed.
    let key = |span: &'a FinishedSpan| {
        let failed = matches!(span.data.status, Status::Error { .. });
        (span.service.name.as_str(), span.data.name.as_ref(), failed)
    };
    let mut alike: HashMap<_, usize> = HashMap::new();
    for &span in siblings {
        *alike.entry(key(span)).or_default() += 1;
    }
    let mut lines: Vec<Entry<'a>> = Vec::new();
    let mut folded: HashMap<_, usize> = HashMap::new();
    for &span in siblings {
        let spent = duration(span);
        let many = !is_root && alike.get(&key(span)).is_some_and(|&count| count > FOLD_ABOVE);
        if let Some(entry) = folded.get(&key(span)).and_then(|&at| lines.get_mut(at)) {
            entry.times += 1;
            entry.spent += spent;
            continue;
        }
        if many {
            folded.insert(key(span), lines.len());
        }
        lines.push(Entry { span, times: 1, spent, indent: indent.to_owned(), last: false, is_root });
    }
    if let Some(entry) = lines.last_mut() {
        entry.last = true;
    }
    stack.extend(lines.into_iter().rev());
}

fn header(first: &FinishedSpan, total: Duration, orphan: bool, style: &Style) -> String {
    let since = first.data.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let of_day = since.as_secs() % 86_400;
    let clock = format!(
        "{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        since.subsec_millis()
    );
    let id: String = first.data.span_context.trace_id().to_string().chars().take(8).collect();
    let service = escape(&first.service.name);
    let note = if orphan { "  (no request)" } else { "" };
    let service = style.paint(&service_color(&first.service.name), &service);
    format!("{}  {service}  {}{note}\n", style.paint("2", &format!("{clock}  {id}")), human(total))
}

fn line(
    span: &FinishedSpan,
    tree: &str,
    times: usize,
    spent: Duration,
    (start, total): (SystemTime, Duration),
    style: &Style,
) -> String {
    let data = &span.data;
    let glyph = match data.span_kind {
        SpanKind::Server | SpanKind::Consumer => "◀",
        SpanKind::Client | SpanKind::Producer => "▶",
        SpanKind::Internal => "●",
    };
    let folded = if times > 1 { format!(" × {times}") } else { String::new() };
    let service = escape(&span.service.name);
    let label_width = if style.width >= 110 { 44 } else { 28 };
    let label = fit(&format!("{tree}{service} {glyph} {}{folded}", escape(&data.name)), label_width);
    let bar = bar(data.start_time, data.end_time, start, total);
    let failed = matches!(data.status, Status::Error { .. });
    let status = escape(&status(span));
    let used = label_width + 2 + BAR_CELLS as usize + 2 + 8 + 2;
    let plain_status = if failed && status.is_empty() { "error".to_owned() } else { status };
    let room = style.width.saturating_sub(used + plain_status.chars().count() + 2).max(8);
    let told = time::told(span);
    let (told, taken) = match told.chars().count() + 3 {
        // What was asked for comes first.
        taken if told.is_empty() || taken + 16 > room => (String::new(), 0),
        taken => (style.paint("2", &format!("  [{told}]")), taken + 1),
    };
    let detail = cut(&escape(&detail(span)), room - taken) + &told;
    let label = match label.split_once(service.as_str()) {
        Some((before, after)) if style.color => {
            format!("{before}{}{after}", style.paint(&service_color(&span.service.name), &service))
        }
        _ => label,
    };
    let shown = if failed { style.paint("31", &plain_status) } else { plain_status };
    let line = format!(
        "{label}  {}  {:>8}  {shown}{}{detail}",
        style.paint(if failed { "31" } else { "36" }, &bar),
        human(spent),
        if shown.is_empty() { "" } else { "  " }
    );
    format!("{}\n", line.trim_end())
}

fn duration(span: &FinishedSpan) -> Duration {
    span.data.end_time.duration_since(span.data.start_time).unwrap_or_default()
}

/// A span's place on its trace's timeline; never empty.
fn bar(from: SystemTime, to: SystemTime, start: SystemTime, total: Duration) -> String {
    let cells = u128::from(BAR_CELLS);
    let total = total.as_nanos().max(1);
    let at = |time: SystemTime| time.duration_since(start).unwrap_or_default().as_nanos() * cells;
    let first = (at(from) / total).min(cells - 1) as usize;
    let end = (at(to).div_ceil(total).min(cells) as usize).max(first + 1);
    let tail = (BAR_CELLS as usize).saturating_sub(end);
    format!("{}{}{}", "·".repeat(first), "━".repeat(end - first), "·".repeat(tail))
}

fn human(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1000 => format!("{micros}µs"),
        1000..1_000_000 => format!("{:.1}ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2}s", duration.as_secs_f64()),
    }
}

fn attribute(span: &FinishedSpan, key: &str) -> Option<String> {
    let found = span.data.attributes.iter().find(|attribute| attribute.key.as_str() == key)?;
    Some(found.value.as_str().into_owned())
}

/// The HTTP status or the database's error code.
fn status(span: &FinishedSpan) -> String {
    [semconv::HTTP_RESPONSE_STATUS_CODE, semconv::DB_RESPONSE_STATUS_CODE, semconv::ERROR_TYPE]
        .into_iter()
        .find_map(|key| attribute(span, key))
        .unwrap_or_default()
}

/// What was asked for: the statement, the URL or the path.
fn detail(span: &FinishedSpan) -> String {
    if let Some(text) = attribute(span, semconv::DB_QUERY_TEXT).or_else(|| attribute(span, semconv::URL_FULL))
    {
        return text;
    }
    let mut text = attribute(span, semconv::URL_PATH).unwrap_or_default();
    if let Some(query) = attribute(span, semconv::URL_QUERY) {
        let _ = write!(text, "?{query}");
    }
    text
}

/// Each service keeps its colour.
fn service_color(name: &str) -> String {
    let sum = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let palette = ["1;34", "1;35", "1;32", "1;33", "1;36", "1;94", "1;95"];
    palette[sum as usize % palette.len()].to_owned()
}

/// Spaces for white space, `\u{1b}` for other control and direction-changing characters: a terminal obeys neither.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => escaped.push(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escaped.extend(character.escape_unicode());
            }
            character if character.is_control() => escaped.extend(character.escape_unicode()),
            character => escaped.push(character),
        }
    }
    escaped
}

/// At most `width` characters, the last one an ellipsis where something is missing.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Exactly `width` characters.
fn fit(text: &str, width: usize) -> String {
    format!("{:<width$}", cut(text, width))
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
