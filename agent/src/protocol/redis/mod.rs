//! Placeholder.
use super::{Direction, Event, Interest, Role, Segment, Walker};

/// x
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {}

/// x
pub struct RedisWalker<M> {
    marks: Vec<M>,
}
impl<M> RedisWalker<M> {
    /// x
    pub fn new(_role: Role) -> Self {
        Self { marks: Vec::new() }
    }
}
impl<M: Copy + Send> Walker<M> for RedisWalker<M> {
    fn feed(&mut self, _: Direction, _: Segment<'_>, _: M, _: &mut Vec<Event<M>>) {}
    fn end(&mut self, _: Direction, _: M, _: &mut Vec<Event<M>>) {}
    fn close(&mut self, _: M, _: &mut Vec<Event<M>>) {}
    fn interest(&self, _: Direction) -> Interest {
        Interest::Bytes
    }
    fn open_exchanges(&self) -> usize {
        self.marks.len()
    }
}
