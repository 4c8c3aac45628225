//! What the owner rule knows of one process: its contexts, its threads, its open exchanges, its waiting operations.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use pitviper_ebpf::abi::{CONTEXT_IS_BASE, Task};
use rustc_hash::FxHashMap;

use super::exchange::{Exchange, LONG_NS};
use super::handover::Handovers;
use super::history::History;
use super::interleaving::Interleaving;
use super::judge::{Claim, Habits, Judgement, Operation, judge};
use super::lineage::{self, Node};
use super::work::Passage;
use super::{ExchangeKey, Moment, Orphan, Owner, Settled, Stats};

/// Contexts that are remembered; a process with more of them alive at once has its lineage forgotten.
const MOST_CONTEXTS: usize = 262_144;
/// Operations that wait; beyond it the oldest is settled with what is known.
const MOST_PENDING: usize = 65_536;
/// An operation does not wait longer than this.
const LONGEST_WAIT_NS: u64 = 300_000_000_000;
/// An operation with a confirmed prior does not wait longer than this for proof of the contrary.
const PRIOR_WAIT_NS: u64 = 10_000_000_000;
/// A question does not wait longer than this for the end of the context that it is about: profiles would lag.
const QUESTION_WAIT_NS: u64 = 2_000_000_000;
/// Questions are looked at no more often than this.
const BETWEEN_QUESTIONS_NS: u64 = 50_000_000;

/// A request was read on a thread: what that thread copies next belongs to its handling.
pub(super) struct Window {
    exchange: Rc<Exchange>,
    /// The loop turn, 0 for a thread without a loop.
    turn: u32,
    /// The context that did the reading, 0 if none.
    context: u64,
    ktime_ns: u64,
}

#[derive(Default)]
pub(super) struct Process {
    pub(super) contexts: FxHashMap<u64, Rc<Node>>,
    pub(super) threads: FxHashMap<u32, Rc<Node>>,
    pub(super) windows: FxHashMap<u32, Window>,
    pub(super) handovers: Handovers,
    pub(super) interleaving: Interleaving,
    exchanges: FxHashMap<ExchangeKey, Rc<Exchange>>,
    /// Exchanges that have not been answered, by their start.
    unanswered: BTreeMap<(u64, ExchangeKey), Rc<Exchange>>,
    history: History,
    habits: Habits,
    pending: VecDeque<Operation>,
    /// Those that are only asked about.
    questions: VecDeque<Operation>,
    next_questions_ns: u64,
    /// Something happened since the last round that may settle an operation.
    pub(super) stirred: bool,
    last_round_ns: u64,
    stats: Stats,
}

impl Process {
    /// There is a new context, a copy of the current one if `copied`.
    pub(super) fn context_made(&mut self, at: Moment, child: u64, copied: bool) {
        let at = self.seen(at);
        let parent = self.node(at.task);
        let node = match &parent {
            Some(parent) if copied => Node::child(parent, at.ktime_ns, at.task),
            _ => Node::root(at.ktime_ns),
        };
        self.handovers.context_made(at.task, child, copied, &node);
        if let Some(window) = self.window(at.task)
            // On an event loop other tasks run in the same turn, and their copies belong to their own lineage; but the
            // callback that has read the request (asyncio reads in the callback's context, uvloop outside of all) does
            // nothing else. A thread without a loop does one thing at a time in one context.
            && (at.task.turn == 0
                || (window.context != 0 && window.context == at.task.context)
                || parent.is_none_or(|parent| !parent.has_evidence()))
        {
            if at.task.turn == 0 || (window.context != 0 && window.context == at.task.context) {
                node.set_prior(&window.exchange, lineage::Window::Reader);
            } else {
                node.set_prior(&window.exchange, lineage::Window::Loop);
                window.exchange.note_copy(&node);
            }
        }
        self.remember(at, child, node);
    }

    /// There is a new generation of an address.
    pub(super) fn remember(&mut self, at: Moment, address: u64, node: Rc<Node>) {
        if self.contexts.len() >= MOST_CONTEXTS {
            self.lose_lineage();
        }
        if let Some(old) = self.contexts.insert(address, node) {
            old.end(at.task);
        }
    }

    pub(super) fn context_gone(&mut self, task: Task, context: u64) {
        for key in [context, context | CONTEXT_IS_BASE] {
            if let Some(node) = self.contexts.remove(&key) {
                node.end(task);
                self.stirred = true;
            }
        }
    }

    /// A request was read; `exclusive`: its thread does nothing else until it is answered.
    pub(super) fn request_read(
        &mut self,
        key: ExchangeKey,
        connection: u64,
        exclusive: bool,
        first: Moment,
        head: Moment,
    ) {
        let head = self.at_home(head);
        let seen = self.interleaving.seen(head);
        let reader = self.node(seen.task);
        let exchange = Rc::new(Exchange::new(key, connection, exclusive, first.ktime_ns, reader.as_ref()));
        self.history.read(&exchange);
        self.exchanges.insert(key, Rc::clone(&exchange));
        self.unanswered.insert((first.ktime_ns, key), Rc::clone(&exchange));
        self.forget_threads();
        self.interleaving.request_read(head, &exchange);
        let head = self.interleaving.seen(head);
        // Of several requests in one read the server begins with the first one.
        if self.windows.get(&head.task.tid).is_none_or(|window| window.ktime_ns != head.ktime_ns) {
            let Task { turn, context, .. } = head.task;
            let window = Window { exchange, turn, context, ktime_ns: head.ktime_ns };
            self.windows.insert(head.task.tid, window);
        }
        self.stirred = true;
    }

    /// The response was begun; `own`: by a task of this process.
    pub(super) fn response_begun(&mut self, key: ExchangeKey, at: Moment, own: bool) {
        let Some(exchange) = self.exchanges.get(&key).cloned() else { return };
        if exchange.answered.get().is_some() {
            return;
        }
        exchange.answered.set(Some(at.ktime_ns));
        self.unanswered.remove(&(exchange.start, key));
        let task = own.then(|| self.seen(at).task);
        if let Some(node) = task.and_then(|task| self.node(task)) {
            node.prove(&exchange);
            self.habits.learn(&exchange);
        }
        self.stirred = true;
    }

    pub(super) fn request_over(&mut self, key: ExchangeKey, ktime_ns: u64, lost: bool) {
        let Some(exchange) = self.exchanges.remove(&key) else { return };
        exchange.lost.set(lost);
        exchange.over.set(Some(ktime_ns));
        self.unanswered.remove(&(exchange.start, key));
        self.history.over(exchange);
        self.stirred = true;
    }

    /// `counted`: the outcome goes into the counts. What is not changes nothing of what is known of the process.
    pub(super) fn operation(&mut self, key: ExchangeKey, at: Moment, counted: bool) {
        let Moment { task, ktime_ns: time, .. } = self.seen(at);
        let serving = self.window(task).map(|window| &window.exchange);
        let serving = serving.filter(|exchange| exchange.exclusive || task.turn == 0).cloned();
        let certain = task.is_base() && serving.as_ref().is_some_and(|exchange| exchange.exclusive);
        let node = self.node(task);
        if let Some(node) = node.as_ref().filter(|_| counted) {
            node.work(time);
        }
        let operation = Operation { key, time, node, serving, certain, counted };
        if counted {
            self.pending.push_back(operation);
            self.stirred = true;
        } else {
            self.questions.push_back(operation);
        }
    }

    /// Settles what can be settled; with `now` given as the end of time, or `last`, everything.
    pub(super) fn settle(&mut self, now_ns: u64, last: bool, out: &mut Vec<Settled>) {
        const ROUND_NS: u64 = 1_000_000_000;
        if !self.pending.is_empty()
            && (last || self.stirred || now_ns >= self.last_round_ns.saturating_add(ROUND_NS))
        {
            self.stirred = false;
            self.last_round_ns = now_ns;
            let pending = std::mem::take(&mut self.pending);
            self.pending = self.settle_what_can_be(pending, now_ns, last, out);
        }
        // There are many, and they are in no hurry.
        if !self.questions.is_empty() && (last || now_ns >= self.next_questions_ns) {
            self.next_questions_ns = now_ns.saturating_add(BETWEEN_QUESTIONS_NS);
            let questions = std::mem::take(&mut self.questions);
            self.questions = self.settle_what_can_be(questions, now_ns, last, out);
        }
    }

    /// Gives back what has to wait.
    fn settle_what_can_be(
        &mut self,
        mut pending: VecDeque<Operation>,
        now_ns: u64,
        last: bool,
        out: &mut Vec<Settled>,
    ) -> VecDeque<Operation> {
        let too_many = pending.len().saturating_sub(MOST_PENDING);
        let mut index = 0;
        let mut stats = self.stats;
        pending.retain(|operation| {
            index += 1;
            let Some(owner) = self.owner(operation, now_ns, last || index <= too_many, &mut stats) else {
                return true;
            };
            if operation.counted {
                stats.count(owner);
            }
            out.push(Settled { operation: operation.key, owner });
            false
        });
        self.stats = stats;
        pending
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether exchanges are open, or operations wait.
    pub(super) fn is_busy(&self) -> bool {
        !self.exchanges.is_empty() || !self.pending.is_empty() || !self.questions.is_empty()
    }

    pub(super) fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// The owner of an operation; `None`: it has to wait.
    fn owner(&self, operation: &Operation, now_ns: u64, hurry: bool, stats: &mut Stats) -> Option<Owner> {
        let tentative = match judge(operation, &self.habits, stats) {
            Judgement::Orphan(reason) => return Some(Err(reason)),
            Judgement::Proven(claim) => return self.grant(operation, &claim, now_ns, hurry),
            Judgement::Tentative(tentative) => tentative,
            Judgement::Leftover { next } => {
                if next || self.unanswered.range(..=(operation.time, ExchangeKey::MAX)).next().is_none() {
                    if operation.counted {
                        self.habits.leftovers.set(true);
                    }
                    return Some(Err(Orphan::Leftover));
                }
                Err(Orphan::Leftover)
            }
        };
        let known = || {
            tentative
                .as_ref()
                .map_or_else(|none| Some(Err(*none)), |claim| self.grant(operation, claim, now_ns, hurry))
        };
        if self.unanswered.range(..=(operation.time, ExchangeKey::MAX)).next().is_none() {
            return known();
        }
        let waited = now_ns.saturating_sub(operation.time);
        let answered = tentative.as_ref().is_ok_and(|claim| claim.exchange.answered.get().is_some());
        if hurry || waited > LONGEST_WAIT_NS || (answered && waited > PRIOR_WAIT_NS) {
            let owner = known()?;
            stats.overdue += 1;
            return Some(owner);
        }
        None
    }

    /// Gives an operation to the exchange that claims it, unless there is reason for doubt; `None`: wait.
    fn grant(&self, operation: &Operation, claim: &Claim<'_>, now_ns: u64, hurry: bool) -> Option<Owner> {
        let Operation { time, counted, .. } = *operation;
        let exchange = &claim.exchange;
        if exchange.long_over(time) {
            return Some(Err(Orphan::LongOver));
        }
        // Its answer may have gone by unseen; or its end will not be seen, so that it will have no span.
        let unanswered = exchange.answered.get().is_none_or(|answered| answered < time);
        if (unanswered && exchange.lost.get()) || (hurry && exchange.over.get().is_none()) {
            return Some(Err(Orphan::ParentLost));
        }
        let deadline = if counted {
            exchange.over.get().unwrap_or(time).saturating_add(LONG_NS)
        } else {
            time.saturating_add(QUESTION_WAIT_NS)
        };
        let patient = !hurry && now_ns <= deadline;
        match claim.way.leads_to(exchange) {
            Passage::Open => {}
            Passage::Until(end) if !hurry && now_ns < end && (counted || patient) => return None,
            Passage::Until(_) | Passage::Closed => return Some(Err(Orphan::Outlived)),
        }
        let late = exchange.over_by(time);
        // The next request of the connection may be the one that this is work for: nobody has answered it.
        let next = |other: &&Rc<Exchange>| {
            !Rc::ptr_eq(other, exchange)
                && (exchange.start..=time).contains(&other.start)
                && other.answered.get().is_none()
        };
        if late && let Some(next) = self.history.of_connection(exchange.connection).find(next) {
            return if next.given_up() || !patient { Some(Err(Orphan::Ambiguous)) } else { None };
        }
        if claim.handed_on.is_some_and(|since| self.others(exchange, since, time)) {
            return Some(Err(Orphan::HandedOn));
        }
        let owner = Some(Ok(claim.owner()));
        let Some(branch) = claim.living.filter(|branch| self.others(exchange, branch.born(), time)) else {
            return owner;
        };
        if late && counted {
            branch.outlive();
        }
        if patient {
            return None;
        }
        match exchange.over.get() {
            _ if branch.has_outlived() || (late && !counted) => Some(Err(Orphan::Outlived)),
            None if counted => Some(Err(Orphan::Ambiguous)),
            _ => owner,
        }
    }

    /// Whether the process served another request at any time from `from` to `until`.
    fn others(&self, exchange: &Rc<Exchange>, from: u64, until: u64) -> bool {
        self.history.others(&self.exchanges, exchange, from, until)
    }

    /// Context copies were lost, or there is no room for them.
    pub(super) fn lose_lineage(&mut self) {
        self.stats.amnesias += 1;
        self.forget_lineage();
    }

    pub(super) fn forget_lineage(&mut self) {
        self.contexts.clear();
        self.threads.clear();
        self.windows.clear();
        self.handovers.clear();
        self.stirred = true;
    }

    /// Threads that have served their only request leave nothing behind for long.
    fn forget_threads(&mut self) {
        const MANY: usize = 1024;
        if self.windows.len() > MANY {
            self.windows.retain(|_, window| window.exchange.over.get().is_none());
        }
        if self.threads.len() > MANY {
            self.threads.retain(|tid, _| self.windows.contains_key(tid));
        }
    }

    /// The moment as the owner rule is to see it.
    pub(super) fn seen(&mut self, at: Moment) -> Moment {
        let at = self.at_home(at);
        self.interleaving.seen(at)
    }

    /// The logical task of a thread. A thread's base context stands for the thread, like no context at all; that of a
    /// greenlet, on a thread with a loop, for the greenlet. An event-loop thread outside every context runs anybody's
    /// callbacks: `None`.
    pub(super) fn node(&mut self, task: Task) -> Option<Rc<Node>> {
        let Task { tid, turn, context } = task;
        // A thread that takes jobs may run a loop in one of them; its base context is the thread's all the same.
        let alone = self.handovers.turns_since(tid, turn) == 0 || self.takes_jobs(tid);
        let node = match context {
            _ if alone && task.is_base() => self.threads.entry(tid).or_insert_with(|| Node::root(0)),
            0 => return None,
            _ => self.contexts.entry(context).or_insert_with(|| Node::root(0)),
        };
        Some(Rc::clone(node))
    }

    /// Whether a thread that takes jobs has one.
    pub(super) fn has_job(&self, task: Task) -> bool {
        self.window(task).is_some_and(|window| window.exchange.exclusive)
    }

    /// Whether a thread takes jobs, one at a time.
    fn takes_jobs(&self, tid: u32) -> bool {
        self.windows.get(&tid).is_some_and(|window| window.exchange.exclusive)
    }

    /// The reading window that is open on a thread.
    fn window(&self, task: Task) -> Option<&Window> {
        let window = self.windows.get(&task.tid)?;
        let Exchange { exclusive, over, .. } = &*window.exchange;
        if *exclusive {
            return over.get().is_none().then_some(window);
        }
        (window.turn == task.turn && (task.turn != 0 || over.get().is_none())).then_some(window)
    }
}
