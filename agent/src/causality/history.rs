//! The latest exchanges of a process: those of a connection, and those that were open at a time.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::ExchangeKey;
use super::exchange::Exchange;

/// Exchanges that are remembered.
const MOST: usize = 4096;
/// Ends of exchanges are told in their order, but for so much.
const DISORDER_NS: u64 = 1_000_000_000;

/// See the module.
#[derive(Default)]
pub(super) struct History {
    /// In the order of their reading.
    read: VecDeque<Rc<Exchange>>,
    by_connection: FxHashMap<u64, VecDeque<Rc<Exchange>>>,
    /// In the order of their ends.
    over: VecDeque<Rc<Exchange>>,
    /// When the latest one was over that is in `over` no more.
    forgotten: u64,
}

impl History {
    /// A request was read.
    pub(super) fn read(&mut self, exchange: &Rc<Exchange>) {
        if self.read.len() >= MOST
            && let Some(oldest) = self.read.pop_front()
            && let Entry::Occupied(mut of_connection) = self.by_connection.entry(oldest.connection)
        {
            of_connection.get_mut().pop_front();
            if of_connection.get().is_empty() {
                of_connection.remove();
            }
        }
        self.read.push_back(Rc::clone(exchange));
        self.by_connection.entry(exchange.connection).or_default().push_back(Rc::clone(exchange));
    }

    /// An exchange is over.
    pub(super) fn over(&mut self, exchange: Rc<Exchange>) {
        if self.over.len() >= MOST
            && let Some(over) = self.over.pop_front().and_then(|oldest| oldest.over.get())
        {
            self.forgotten = self.forgotten.max(over);
        }
        self.over.push_back(exchange);
    }

    /// The exchanges of a connection, in the order of their reading.
    pub(super) fn of_connection(&self, connection: u64) -> impl Iterator<Item = &Rc<Exchange>> {
        self.by_connection.get(&connection).into_iter().flatten()
    }

    /// Whether another exchange than this one was open at any time from `from` to `until`; `open` are those that are still. Of times
    /// that are forgotten it is assumed.
    pub(super) fn others(
        &self,
        open: &FxHashMap<ExchangeKey, Rc<Exchange>>,
        exchange: &Rc<Exchange>,
        from: u64,
        until: u64,
    ) -> bool {
        let open_then = |other: &Rc<Exchange>| {
            !Rc::ptr_eq(other, exchange) && other.start <= until && !other.over_by(from)
        };
        let over_since = |other: &&Rc<Exchange>| {
            other.over.get().is_none_or(|over| over >= from.saturating_sub(DISORDER_NS))
        };
        from <= self.forgotten
            || open.values().any(open_then)
            || self.over.iter().rev().take_while(over_since).any(open_then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn exchange(history: &mut History, key: ExchangeKey, connection: u64, times: (u64, u64)) -> Rc<Exchange> {
        let (start, over) = (times.0 * SECOND, times.1 * SECOND);
        let exchange = Rc::new(Exchange::new(key, connection, false, start, None));
        history.read(&exchange);
        exchange.over.set(Some(over));
        history.over(Rc::clone(&exchange));
        exchange
    }

    #[test]
    fn who_else_was_served() {
        let mut history = History::default();
        let mut open = FxHashMap::default();
        let own = exchange(&mut history, 1, 7, (10, 20));
        exchange(&mut history, 2, 8, (11, 12));
        exchange(&mut history, 3, 8, (30, 31));
        let others = |history: &History, open: &_, from: u64, until: u64| {
            history.others(open, &own, from * SECOND, until * SECOND)
        };
        assert!(others(&history, &open, 10, 20) && others(&history, &open, 12, 12));
        assert!(!others(&history, &open, 13, 29));
        assert!(others(&history, &open, 13, 30));
        open.insert(4, Rc::new(Exchange::new(4, 9, false, 5 * SECOND, None)));
        assert!(others(&history, &open, 13, 29));
    }

    #[test]
    fn what_is_forgotten_is_in_doubt() {
        let mut history = History::default();
        let own = exchange(&mut history, 1, 7, (1, 1));
        for key in 0..MOST as u64 {
            exchange(&mut history, key + 2, key % 2, (key + 10, key + 10));
        }
        let open = FxHashMap::default();
        assert!(history.others(&open, &own, SECOND, 2 * SECOND));
        assert!(!history.others(&open, &own, 2 * SECOND, 3 * SECOND));
        assert_eq!(history.of_connection(7).count(), 0);
        assert_eq!(history.of_connection(0).count() + history.of_connection(1).count(), MOST);
    }
}
