//! Which contexts a thread has entered and not left, from one record to the next.
//!
//! CPython's count of entered and left contexts tells how many were left, or that another one was entered: who is in two and has
//! none of them any more has left two, and whatever was entered beside would have been left too, and counts twice. uvloop
//! runs a task's step in two: its own, and the task's in that.

use pitviper_ebpf::abi::CONTEXT_IS_BASE;

/// Contexts that are told apart; of a thread that has entered more nothing is known until it is back at its loop.
const DEEPEST: usize = 4;

/// The contexts around the current one, the innermost last; the first one is the thread's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nesting {
    outers: [u64; DEEPEST],
    depth: usize,
    /// There may be more around those.
    or_more: bool,
}

impl Nesting {
    /// Of a thread that is in this context, of which nothing else is known.
    pub(super) fn of(context: u64) -> Self {
        let entered = !is_base(context);
        Self { outers: [0; DEEPEST], depth: usize::from(entered), or_more: entered }
    }

    /// The thread, which is in `current`, enters another one. `None`: it is in too many.
    pub(super) fn enter(mut self, current: u64) -> Option<Self> {
        *self.outers.get_mut(self.depth)? = current;
        self.depth += 1;
        Some(self)
    }

    /// So many contexts have been entered or left since, and the thread is in `current`: what it is in now, if it has entered
    /// no other.
    pub(super) fn leave(self, passed: u32, current: u64) -> Option<Self> {
        if is_base(current) {
            return self.is_left_by(passed).then(|| Self::of(current));
        }
        let depth = self.depth.checked_sub(usize::try_from(passed).ok()?)?;
        let found = depth > 0 && self.outers.get(depth) == Some(&current);
        found.then_some(Self { depth, ..self })
    }

    /// So many contexts have been entered or left since, and the thread is in none but its own: whether it has entered no other.
    ///
    /// If it was in one more than is known it has left one more; then the number is odd where it would be even, so that this
    /// cannot be taken for the other case.
    pub(super) fn is_left_by(self, passed: u32) -> bool {
        usize::try_from(passed)
            .is_ok_and(|passed| passed == self.depth || (self.or_more && passed == self.depth + 1))
    }
}

/// Whether it is a thread's own context, or none: what it is in when all others are left.
pub(super) fn is_base(context: u64) -> bool {
    context == 0 || context & CONTEXT_IS_BASE != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xf0 | CONTEXT_IS_BASE;

    #[test]
    fn contexts_are_left_as_they_were_entered() {
        let two = Nesting::of(BASE).enter(BASE).unwrap().enter(0xa0).unwrap();
        let one = two.leave(1, 0xa0).unwrap();
        assert_eq!(one.depth, 1);
        assert_eq!(two.leave(2, BASE).unwrap().depth, 0);
        assert_eq!(one.leave(1, BASE).unwrap().depth, 0);
        assert!(two.is_left_by(2) && !two.is_left_by(1));
        for (left, current) in [(1, BASE), (1, 0xb0), (2, 0xa0), (3, BASE), (u32::MAX, BASE)] {
            assert_eq!(two.leave(left, current), None, "{left} {current:x}");
        }
    }

    #[test]
    fn not_more_than_can_be_told_apart() {
        let mut nesting = Nesting::of(BASE);
        for context in 0..DEEPEST {
            nesting = nesting.enter(context as u64).unwrap();
        }
        assert_eq!(nesting.enter(0xa0), None);
    }

    #[test]
    fn a_thread_that_was_found_in_a_context() {
        let found = Nesting::of(0xa0);
        assert!(found.is_left_by(1) && found.is_left_by(2) && !found.is_left_by(3));
        assert_eq!(found.leave(2, BASE).unwrap().depth, 0);
        assert_eq!((found.leave(1, 0xb0), found.leave(2, 0xb0)), (None, None));
        let inside = found.enter(0xa0).unwrap();
        assert!(inside.is_left_by(2) && inside.is_left_by(3) && !inside.is_left_by(1));
        assert!(Nesting::of(0).is_left_by(0) && !Nesting::of(BASE).is_left_by(1));
    }
}
