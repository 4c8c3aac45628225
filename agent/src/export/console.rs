//! tmp
use crate::trace::FinishedSpan;
use std::time::Instant;
/// x
pub struct Style;
impl Style { /// x
 pub fn detect(_t: bool) -> Self { Self } }
/// x
pub struct Console { out: String }
impl Console {
 /// x
 pub fn new(_: Style) -> Self { Self { out: String::new() } }
 /// x
 pub fn push(&mut self, s: FinishedSpan) {
   let d = s.data; 
   let ms = d.end_time.duration_since(d.start_time).unwrap_or_default();
   self.out += &format!("{} {} parent={} {} {:?} {} {:?} {}\n", d.span_context.trace_id(), d.span_context.span_id(), d.parent_span_id, s.service.name, d.span_kind, d.name, ms, d.attributes.iter().map(|k| format!("{}={}", k.key, k.value)).collect::<Vec<_>>().join(" "));
 }
 /// x
 pub fn tick(&mut self, _: Instant) -> String { std::mem::take(&mut self.out) }
 /// x
 pub fn finish(mut self) -> String { std::mem::take(&mut self.out) }
}
