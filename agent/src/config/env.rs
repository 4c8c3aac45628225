//! Reading one variable by the specification's rules ("Environment Variable Specification", type-specific guidance):
//! empty is unset, a boolean is true only for `true`, names have no case, a timeout of 0 is none, and a number or name
//! that cannot be understood is ignored with a warning.

use std::time::Duration;

/// The longest time there is, and what a timeout of 0 stands for: what 31 bits of milliseconds can say, 24 days.
const NO_LIMIT: Duration = Duration::from_millis(i32::MAX as u64);

/// A look-up of variables, and what it had to ignore so far.
pub(super) struct Env<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    /// One sentence for each value that was ignored.
    pub(super) warnings: Vec<String>,
}

impl<'a> Env<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, warnings: Vec::new() }
    }

    /// What two signals find wrong with the variable that they share is said once.
    pub(super) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The trimmed value, unless it is empty or unset.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let value = (self.lookup)(name)?;
        let trimmed = value.trim();
        (!trimmed.is_empty()).then(|| trimmed.to_owned())
    }

    /// The first of `names` that has a value, and the value.
    pub(super) fn first(&self, names: &[impl AsRef<str>]) -> Option<(String, String)> {
        names.iter().map(AsRef::as_ref).find_map(|name| Some((name.to_owned(), self.text(name)?)))
    }

    /// `true` only for `true`, in any case.
    pub(super) fn boolean(&mut self, name: &str) -> bool {
        let Some(value) = self.text(name) else { return false };
        let on = value.eq_ignore_ascii_case("true");
        if !on && !value.eq_ignore_ascii_case("false") {
            self.warn(format!("{name}: `{value}` is neither true nor false, and counts as false"));
        }
        on
    }

    /// The first of `names` that holds a non-negative integer.
    pub(super) fn number(&mut self, names: &[impl AsRef<str>]) -> Option<u64> {
        for name in names.iter().map(AsRef::as_ref) {
            let Some(value) = self.text(name) else { continue };
            match value.parse() {
                Ok(number) => return Some(number),
                Err(_) => self.warn(format!("{name}: `{value}` is not a number from 0 up, and is ignored")),
            }
        }
        None
    }

    /// A duration in milliseconds.
    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        self.number(&[name]).map(millis)
    }

    /// The first of `names` that holds a timeout in milliseconds.
    pub(super) fn timeout(&mut self, names: &[impl AsRef<str>]) -> Option<Duration> {
        let timeout = self.number(names).map(millis)?;
        Some(if timeout.is_zero() { NO_LIMIT } else { timeout })
    }
}

fn millis(number: u64) -> Duration {
    Duration::from_millis(number).min(NO_LIMIT)
}
