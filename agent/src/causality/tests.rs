//! The owner rule on the shapes of event that real servers produce.

use pitviper_ebpf::abi::CONTEXT_IS_BASE;

use super::*;

mod handover;

const PID: u32 = 7;

/// A script of events on one process; times count up by themselves.
struct Script {
    engine: Engine,
    now: u64,
    settled: std::collections::HashMap<ExchangeKey, Option<(ExchangeKey, Evidence)>>,
}

/// An event-loop thread in its `turn`, in a context.
fn on_loop(turn: u32, context: u64) -> Task {
    Task { tid: 1, turn, context }
}

/// A thread without a loop.
fn thread(tid: u32, context: u64) -> Task {
    Task { tid, turn: 0, context }
}

impl Script {
    fn new() -> Self {
        Self { engine: Engine::default(), now: 1_000, settled: std::collections::HashMap::new() }
    }

    fn at(&mut self, task: Task) -> Moment {
        self.now += 10;
        Moment { pid: PID, ktime_ns: self.now, task }
    }

    fn copy(&mut self, task: Task, child: u64) -> &mut Self {
        let at = self.at(task);
        self.engine.context_copied(at, child);
        self
    }

    fn create(&mut self, task: Task, context: u64) -> &mut Self {
        let at = self.at(task);
        self.engine.context_created(at, context);
        self
    }

    fn gone(&mut self, context: u64) -> &mut Self {
        self.gone_in(on_loop(1_000, 0), context)
    }

    fn gone_in(&mut self, task: Task, context: u64) -> &mut Self {
        self.engine.context_gone(PID, task, context);
        self.settle()
    }

    /// A request on a connection that has had others.
    fn read_on(&mut self, connection: u64, key: ExchangeKey, task: Task) -> &mut Self {
        let at = self.at(task);
        self.engine.request_read(key, connection, at, at);
        self
    }

    fn read(&mut self, key: ExchangeKey, task: Task) -> &mut Self {
        let at = self.at(task);
        self.engine.request_read(key, key, at, at);
        self
    }

    fn job(&mut self, key: ExchangeKey, task: Task) -> &mut Self {
        let at = self.at(task);
        self.engine.job_read(key, key, at, at);
        self
    }

    fn operation(&mut self, key: ExchangeKey, task: Task) -> &mut Self {
        let at = self.at(task);
        self.engine.operation(key, at);
        self.settle()
    }

    fn question(&mut self, key: ExchangeKey, task: Task) -> &mut Self {
        let at = self.at(task);
        self.engine.question(key, at);
        self.settle()
    }

    fn answer(&mut self, key: ExchangeKey, task: Task) -> &mut Self {
        self.begin(key, task).over(key)
    }

    fn begin(&mut self, key: ExchangeKey, task: Task) -> &mut Self {
        let at = self.at(task);
        self.engine.response_begun(key, at);
        self.settle()
    }

    fn over(&mut self, key: ExchangeKey) -> &mut Self {
        self.now += 10;
        self.engine.request_over(key, self.now, false);
        self.settle()
    }

    fn lose(&mut self, key: ExchangeKey) -> &mut Self {
        self.now += 10;
        self.engine.request_over(key, self.now, true);
        self.settle()
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += seconds * 1_000_000_000;
        self.settle()
    }

    fn settle(&mut self) -> &mut Self {
        let mut out = Vec::new();
        self.engine.settle(self.now, &mut out);
        self.keep(&out)
    }

    fn end(&mut self) -> &mut Self {
        let mut out = Vec::new();
        self.engine.process_ended(PID, &mut out);
        self.keep(&out)
    }

    fn keep(&mut self, out: &[Settled]) -> &mut Self {
        for Settled { operation, owner } in out {
            assert!(self.settled.insert(*operation, owner.ok()).is_none(), "settled twice");
        }
        self
    }

    /// Asserts the owners: pairs of an operation and its exchange with the evidence.
    fn check(&mut self, expected: &[(ExchangeKey, Option<(ExchangeKey, Evidence)>)]) {
        for (operation, owner) in expected {
            assert_eq!(self.settled.remove(operation).as_ref(), Some(owner), "operation {operation}");
        }
        assert!(self.settled.is_empty(), "not expected: {:?}", self.settled);
    }
}

const READER: u64 = 0x10;

#[test]
fn tasks_of_an_event_loop_keep_apart() {
    // Two requests read in one turn; their tasks run interleaved; one gathers.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0);
    script.read(2, on_loop(5, READER)).copy(on_loop(5, READER), 0xb0);
    script.operation(101, on_loop(6, 0xa0)).operation(201, on_loop(6, 0xb0));
    script.copy(on_loop(6, 0xa0), 0xaa0).operation(102, on_loop(7, 0xaa0));
    script.check(&[]);
    script.gone(0xaa0).answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0));
    script.check(&[
        (101, Some((1, Evidence::Response))),
        (102, Some((1, Evidence::Response))),
        (201, Some((2, Evidence::Response))),
    ]);
}

#[test]
fn a_connection_task_serves_one_request_after_the_other() {
    // aiohttp: one context for all requests of a connection, none copied when a request is read.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).operation(101, on_loop(6, 0xc0)).answer(1, on_loop(7, 0xc0));
    script.read(2, on_loop(8, READER)).operation(201, on_loop(9, 0xc0)).answer(2, on_loop(10, 0xc0));
    script.check(&[(101, Some((1, Evidence::Response))), (201, Some((2, Evidence::Response)))]);
}

#[test]
fn a_recycled_address_is_a_new_context() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).answer(1, on_loop(6, 0xa0));
    script.copy(on_loop(9, 0x990), 0xa0).operation(1001, on_loop(9, 0xa0));
    script.check(&[(1001, None)]);
}

#[test]
fn a_background_task_belongs_to_its_request() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).answer(1, on_loop(6, 0xa0));
    script.operation(101, on_loop(7, 0xa0));
    script.copy(on_loop(7, 0xa0), 0xaa0).operation(102, on_loop(8, 0xaa0));
    script.check(&[(101, Some((1, Evidence::Response))), (102, Some((1, Evidence::Response)))]);
}

#[test]
fn work_long_after_the_response_is_nobodys() {
    // A sender task that the first request happened to create.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0x5e);
    script.answer(1, on_loop(6, 0xa0)).later(40).operation(101, on_loop(9, 0x5e));
    script.check(&[(101, None)]);
}

#[test]
fn another_tasks_copy_in_the_reading_window_is_refuted() {
    // Request 2 is read, and in the same turn a callback in the lineage of request 1 copies its context.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).operation(101, on_loop(6, 0xc0));
    script.read(2, on_loop(7, READER)).copy(on_loop(7, 0xc0), 0xcc0);
    script
        .operation(102, on_loop(8, 0xcc0))
        .gone(0xcc0)
        .answer(2, on_loop(9, 0xd0))
        .answer(1, on_loop(10, 0xc0));
    script.check(&[(101, Some((1, Evidence::Response))), (102, Some((1, Evidence::Response)))]);
    assert_eq!(script.engine.stats().conflicts, 1);
}

#[test]
fn a_question_does_not_count_as_refuted() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).operation(101, on_loop(6, 0xc0));
    script.read(2, on_loop(7, READER)).copy(on_loop(7, 0xc0), 0xcc0);
    script
        .question(900, on_loop(8, 0xcc0))
        .gone(0xcc0)
        .answer(2, on_loop(9, 0xd0))
        .answer(1, on_loop(10, 0xc0));
    script.later(1).check(&[(101, Some((1, Evidence::Response))), (900, Some((1, Evidence::Response)))]);
    assert_eq!(script.engine.stats().conflicts, 0);
}

#[test]
fn a_streamed_response_covers_its_whole_time() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).begin(1, on_loop(6, 0xc0)).operation(101, on_loop(7, 0xc0)).over(1);
    script.check(&[(101, Some((1, Evidence::Response)))]);
}

#[test]
fn a_thread_serves_one_request_at_a_time() {
    let mut script = Script::new();
    script.read(1, thread(3, 0)).read(2, thread(4, 0));
    script.operation(101, thread(3, 0)).operation(201, thread(4, 0));
    script.answer(2, thread(4, 0)).answer(1, thread(3, 0));
    script.read(3, thread(3, 0)).operation(301, thread(3, 0)).over(3).end();
    script.check(&[
        (101, Some((1, Evidence::Response))),
        (201, Some((2, Evidence::Response))),
        (301, Some((3, Evidence::Thread))),
    ]);
}

#[test]
fn a_thread_that_serves_two_requests_at_once_proves_nothing() {
    // asyncio on select(2), where no turn and no context can be seen.
    let mut script = Script::new();
    script.read(1, thread(3, 0)).operation(101, thread(3, 0)).read(2, thread(3, 0));
    script.operation(201, thread(3, 0)).answer(1, thread(3, 0)).operation(202, thread(3, 0));
    script.answer(2, thread(3, 0)).read(3, thread(3, 0)).operation(301, thread(3, 0)).answer(3, thread(3, 0));
    script.check(&[(101, None), (201, None), (202, None), (301, None)]);
    // It may have been a mistake.
    script.later(61).read(4, thread(3, 0)).operation(401, thread(3, 0)).answer(4, thread(3, 0));
    script.check(&[(401, Some((4, Evidence::Response)))]);
}

#[test]
fn a_pipelined_request_is_read_while_the_one_before_is_open() {
    let mut script = Script::new();
    for (key, operation) in [(1, 101), (2, 201)] {
        let at = script.at(thread(3, 0));
        script.engine.request_read(key, 77, at, at);
        script.operation(operation, thread(3, 0));
    }
    script.answer(1, thread(3, 0)).answer(2, thread(3, 0));
    assert!(script.settled.values().all(Option::is_some), "{:?}", script.settled);
}

#[test]
fn a_thread_pool_without_contexts_is_an_orphan() {
    // run_in_executor: another thread, no copied context.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0);
    script.operation(101, thread(9, 0)).answer(1, on_loop(6, 0xa0));
    script.check(&[(101, None)]);
}

#[test]
fn a_base_context_is_not_the_copy_that_was_at_its_address() {
    // run_in_executor: the pool's thread makes a context of its own where one of request 1 has been.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).operation(101, thread(9, 0xa0));
    script.operation(102, thread(9, 0xa0 | CONTEXT_IS_BASE)).answer(1, on_loop(6, 0xa0));
    script.check(&[(101, Some((1, Evidence::Response))), (102, None)]);
}

#[test]
fn a_threads_base_context_stands_for_the_thread() {
    let mut script = Script::new();
    script.read(1, thread(3, 0)).operation(101, thread(3, 0xb0 | CONTEXT_IS_BASE));
    script.answer(1, thread(3, 0xb0 | CONTEXT_IS_BASE));
    script.check(&[(101, Some((1, Evidence::Response)))]);
}

#[test]
fn the_callback_that_reads_may_descend_from_an_earlier_request() {
    // uvicorn on asyncio: resuming to read, the first request's task registers the reader of the second one.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).answer(1, on_loop(6, 0xa0));
    script.copy(on_loop(6, 0xa0), 0x20);
    script.read(2, on_loop(8, 0x20)).copy(on_loop(8, 0x20), 0xb0).answer(2, on_loop(9, 0xb0));
    script.operation(201, on_loop(10, 0xb0));
    script.check(&[(201, Some((2, Evidence::Response)))]);
}

#[test]
fn a_prior_ends_when_the_context_goes_on_to_another_request() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).answer(1, on_loop(6, 0xa0));
    script.read(2, on_loop(7, READER)).answer(2, on_loop(8, 0xa0)).operation(201, on_loop(9, 0xa0));
    script.check(&[(201, None)]);
}

#[test]
fn a_created_context_is_not_the_copy_that_was_at_its_address() {
    // uvicorn 0.39: each request's task starts in an empty context.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).create(on_loop(5, READER), 0xe0).copy(on_loop(5, 0xe0), 0xa0);
    script.copy(on_loop(6, 0xa0), 0xaa0).operation(101, on_loop(7, 0xaa0)).answer(1, on_loop(8, 0xa0));
    script.read(2, on_loop(9, READER)).create(on_loop(9, READER), 0xaa0).copy(on_loop(9, 0xaa0), 0xa0);
    script.operation(201, on_loop(10, 0xa0)).answer(2, on_loop(11, 0xa0)).operation(202, on_loop(12, 0xa0));
    script.check(&[
        (101, Some((1, Evidence::Response))),
        (201, Some((2, Evidence::Response))),
        (202, Some((2, Evidence::Response))),
    ]);
}

#[test]
fn a_loop_thread_outside_every_context_is_an_orphan() {
    let mut script = Script::new();
    script.read(1, on_loop(5, 0)).operation(101, on_loop(5, 0)).answer(1, on_loop(5, 0));
    script.check(&[(101, None)]);
}

#[test]
fn a_queued_request_does_not_take_the_rest_of_the_one_before() {
    // A worker thread answers 1, works on, then takes up 2, which was read elsewhere while it was busy.
    let mut script = Script::new();
    script.read(1, thread(3, 0)).read(2, thread(3, 0)).begin(1, thread(4, 0)).over(1);
    script.operation(101, thread(4, 0)).answer(2, thread(4, 0));
    script.check(&[(101, None)]);
}

#[test]
fn a_request_that_was_given_up_keeps_its_work() {
    let mut script = Script::new();
    script
        .read(1, on_loop(5, READER))
        .copy(on_loop(5, READER), 0xa0)
        .operation(101, on_loop(6, 0xa0))
        .over(1);
    script.check(&[(101, Some((1, Evidence::Reading)))]);
}

#[test]
fn an_operation_outside_requests_does_not_wait() {
    let mut script = Script::new();
    script.operation(1001, thread(3, 0)).operation(1002, on_loop(1, 0x770));
    script.check(&[(1001, None), (1002, None)]);
}

#[test]
fn an_operation_does_not_wait_for_ever() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).operation(101, on_loop(6, 0xe0)).later(299);
    script.check(&[]);
    script.later(2);
    script.check(&[(101, None)]);
}

#[test]
fn lost_lineage_makes_orphans_not_wrong_parents() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0);
    script.engine.lineage_lost();
    script.operation(101, on_loop(6, 0xa0)).answer(1, on_loop(7, 0xb0));
    script.check(&[(101, None)]);
}

#[test]
fn a_chain_of_timers_is_cut() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0x1000).answer(1, on_loop(5, 0x1000));
    for address in (0x1000..0x2000).step_by(0x10) {
        script.copy(on_loop(6, address), address + 0x10);
    }
    script.operation(101, on_loop(7, 0x2000));
    script.check(&[(101, None)]);
}

#[test]
fn a_thread_that_takes_jobs() {
    let base = 0x30 | CONTEXT_IS_BASE;
    let mut script = Script::new();
    script.job(1, thread(1, 0)).operation(101, thread(1, 0));
    // There is nothing to wait for.
    script.check(&[(101, Some((1, Evidence::Job)))]);
    // The job runs an event loop, and uses a context variable after that.
    script.copy(thread(1, 0), 0xa0).operation(102, on_loop(1, 0xa0)).copy(on_loop(1, 0xa0), 0xaa0);
    script.operation(103, on_loop(2, 0xaa0)).operation(104, on_loop(3, 0)).operation(105, on_loop(3, base));
    script.check(&[(104, Some((1, Evidence::Job))), (105, Some((1, Evidence::Job)))]);
    script.answer(1, on_loop(3, base));
    script.check(&[(102, Some((1, Evidence::Response))), (103, Some((1, Evidence::Response)))]);
    // Between jobs, and in another thread, nothing is any job's.
    script.operation(301, on_loop(3, base)).operation(302, thread(2, 0));
    script.check(&[(301, None), (302, None)]);
    // A task that the first job's loop left behind goes on in the second one.
    script.job(2, on_loop(3, base)).copy(on_loop(3, base), 0xb0).operation(201, on_loop(4, 0xb0));
    script.operation(202, on_loop(5, 0xaa0)).operation(203, on_loop(6, 0)).answer(2, on_loop(6, 0));
    script.check(&[(201, Some((2, Evidence::Response))), (203, Some((2, Evidence::Job)))]);
    // It is the first job's if it ends.
    script.gone(0xaa0).gone(0xa0).check(&[(202, Some((1, Evidence::Response)))]);
}

#[test]
fn what_a_connection_task_does_after_its_response_is_nobodys() {
    // A server by hand: the task of a connection answers 1, works on, and 2 is read meanwhile, by the loop.
    let mut script = Script::new();
    script.copy(on_loop(4, READER), 0xc0);
    script.read_on(7, 1, on_loop(5, READER)).operation(101, on_loop(6, 0xc0)).answer(1, on_loop(7, 0xc0));
    script.read(3, on_loop(7, 0x30)).operation(102, on_loop(7, 0xc0));
    script.read_on(7, 2, on_loop(8, READER)).operation(103, on_loop(9, 0xc0));
    script.answer(2, on_loop(10, 0xc0)).answer(3, on_loop(11, 0x30));
    script.check(&[(101, Some((1, Evidence::Response))), (102, None), (103, None)]);
}

#[test]
fn a_lazily_made_sender_is_nobodys() {
    // The first request makes a task with a queue; it works for the second before and after the first's response.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0x5e);
    script.read(2, on_loop(7, READER)).copy(on_loop(7, READER), 0xb0);
    script.operation(201, on_loop(8, 0x5e)).answer(1, on_loop(9, 0xa0)).operation(202, on_loop(10, 0x5e));
    script.answer(2, on_loop(11, 0xb0)).check(&[]);
    script.later(31).check(&[(201, None), (202, None)]);
}

#[test]
fn a_task_that_outlives_its_request_and_ends_is_its_own() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0xf0);
    script.read(2, on_loop(7, READER)).copy(on_loop(7, READER), 0xb0).answer(1, on_loop(8, 0xa0));
    script.operation(101, on_loop(9, 0xf0)).answer(2, on_loop(10, 0xb0)).check(&[]);
    script.gone(0xf0).check(&[(101, Some((1, Evidence::Response)))]);
}

#[test]
fn a_task_that_is_only_kept_is_its_requests() {
    // It works before the response and not after; something still refers to it.
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0xf0);
    script.read(2, on_loop(7, READER)).copy(on_loop(7, READER), 0xb0);
    script.operation(101, on_loop(8, 0xf0)).answer(1, on_loop(9, 0xa0)).answer(2, on_loop(10, 0xb0));
    script.check(&[]);
    script.later(31).check(&[(101, Some((1, Evidence::Response)))]);
}

#[test]
fn a_question_does_not_wait_long_for_the_end_of_a_task() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0xf0);
    script.read(2, on_loop(7, READER)).copy(on_loop(7, READER), 0xb0);
    script.question(301, on_loop(8, 0xf0)).operation(101, on_loop(8, 0xf0)).answer(1, on_loop(9, 0xa0));
    script.question(302, on_loop(10, 0xf0)).answer(2, on_loop(10, 0xb0)).check(&[]);
    // What was asked about before the response is taken for the request's, what was asked about after it is nobody's.
    script.later(3).check(&[(301, Some((1, Evidence::Response))), (302, None)]);
    // The operation is judged as if nothing had been asked.
    script.later(31).check(&[(101, Some((1, Evidence::Response)))]);
    assert_eq!(
        script.engine.process_stats(PID).map(|stats| (stats.owned.sum(), stats.orphans.sum())),
        Some((1, 0))
    );
}

#[test]
fn a_question_about_a_task_that_ends_in_time_is_answered_then() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0xf0);
    script.read(2, on_loop(7, READER)).copy(on_loop(7, READER), 0xb0).answer(1, on_loop(8, 0xa0));
    script.question(301, on_loop(9, 0xf0)).answer(2, on_loop(10, 0xb0)).check(&[]);
    script.gone(0xf0).later(1).check(&[(301, Some((1, Evidence::Response)))]);
}

#[test]
fn without_others_a_living_task_can_work_for_its_request_only() {
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0xf0);
    script.answer(1, on_loop(7, 0xa0)).operation(101, on_loop(8, 0xf0));
    script.check(&[(101, Some((1, Evidence::Response)))]);
}

#[test]
fn a_call_from_the_queue_of_a_client_is_not_that_of_the_call_before() {
    // tornado's client lets ten calls run: the task of one that has its answer starts the next one's, of request 2.
    let mut script = Script::new();
    script.copy(on_loop(5, READER), 0xa0).copy(on_loop(5, READER), 0xb0);
    script.read(1, on_loop(6, READER)).read(2, on_loop(6, READER));
    script.copy(on_loop(7, 0xa0), 0xf1).operation(101, on_loop(8, 0xf1)).copy(on_loop(9, 0xf1), 0xf2);
    script.gone_in(on_loop(10, 0), 0xf1).operation(201, on_loop(11, 0xf2)).answer(1, on_loop(11, 0xa0));
    script.gone(0xf2).answer(2, on_loop(14, 0xb0));
    script.check(&[(101, Some((1, Evidence::Response))), (201, None)]);
}

#[test]
fn the_response_may_be_written_beside_the_work() {
    // a2wsgi: one copy of the request's context works, another one writes the response. uvicorn has taken request 2 for
    // pipelined, and starts it in the context that has written the response before.
    let mut script = Script::new();
    script.read_on(7, 1, on_loop(5, 0)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0xa1);
    script.answer(1, on_loop(7, 0xa1)).read_on(7, 2, on_loop(8, 0)).copy(on_loop(9, 0xa1), 0xb0);
    script.copy(on_loop(10, 0xb0), 0xb1).copy(on_loop(10, 0xb0), 0xb2).operation(201, thread(3, 0xb2));
    script.gone(0xb2).answer(2, on_loop(11, 0xb1));
    script.check(&[(201, Some((2, Evidence::Response)))]);
}

#[test]
fn a_pipelined_request_that_is_given_up_is_not_the_one_before() {
    let mut script = Script::new();
    script.read_on(7, 1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).read_on(7, 2, on_loop(6, READER));
    script.answer(1, on_loop(7, 0xa0)).copy(on_loop(7, 0xa0), 0xb0).operation(201, on_loop(8, 0xb0));
    script.gone(0xb0).over(2);
    script.check(&[(201, None)]);
}

#[test]
fn a_strangers_copy_is_not_the_handler_of_a_request_that_is_given_up() {
    // aiohttp on uvloop: the loop reads outside of contexts, and a task from the start of the service copies next.
    let mut script = Script::new();
    script.read(1, on_loop(5, 0)).copy(on_loop(5, 0x990), 0xe0).operation(1001, on_loop(6, 0xe0)).over(1);
    script.check(&[(1001, None)]);
    // uvicorn on uvloop: what is copied first is the handler, as its responses show.
    let mut script = Script::new();
    script.read(1, on_loop(5, 0)).copy(on_loop(5, 0x11), 0xa0).answer(1, on_loop(6, 0xa0));
    script.read(2, on_loop(7, 0)).copy(on_loop(7, 0x12), 0xb0).operation(201, on_loop(8, 0xb0)).over(2);
    script.check(&[(201, Some((2, Evidence::Reading)))]);
}

#[test]
fn a_request_whose_response_was_lost_owns_nothing() {
    let mut script = Script::new();
    script.read(1, thread(3, 0)).operation(101, thread(3, 0)).lose(1);
    script.check(&[(101, None)]);
}

#[test]
fn an_orphan_has_a_reason() {
    let check = |script: &mut Script, expected: Orphan| {
        assert_eq!(script.settled.values().collect::<Vec<_>>(), [&None]);
        let orphans = script.engine.process_stats(PID).unwrap().orphans;
        let found: Vec<_> = orphans.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(found, [(expected, 1)]);
    };
    check(Script::new().operation(1, thread(3, 0)), Orphan::Unrelated);
    check(Script::new().operation(1, on_loop(5, 0)), Orphan::OutsideContext);
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0x5e);
    check(script.answer(1, on_loop(6, 0xa0)).later(40).operation(101, on_loop(9, 0x5e)), Orphan::LongOver);
    let mut script = Script::new();
    script.read(1, thread(3, 0)).read(2, thread(3, 0)).begin(1, thread(4, 0)).over(1);
    check(script.operation(101, thread(4, 0)).answer(2, thread(4, 0)), Orphan::Ambiguous);
    let mut script = Script::new();
    check(script.read(1, thread(3, 0)).operation(101, thread(3, 0)).lose(1), Orphan::ParentLost);
    let mut script = Script::new();
    script.copy(on_loop(4, READER), 0xc0).read(1, on_loop(5, READER)).answer(1, on_loop(6, 0xc0));
    script.read(3, on_loop(7, READER)).copy(on_loop(7, READER), 0x30).operation(101, on_loop(8, 0xc0));
    check(script.answer(3, on_loop(9, 0x30)), Orphan::Leftover);
    let mut script = Script::new();
    script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0).copy(on_loop(6, 0xa0), 0x5e);
    script.read(2, on_loop(7, READER)).copy(on_loop(7, READER), 0xb0).answer(1, on_loop(9, 0xa0));
    script.operation(201, on_loop(10, 0x5e)).answer(2, on_loop(11, 0xb0));
    check(script.later(31), Orphan::Outlived);
}

#[test]
fn counts_are_kept_by_process() {
    let mut engine = Engine::default();
    for pid in [7, 8] {
        engine.operation(u64::from(pid), Moment { pid, ktime_ns: 10, task: thread(pid, 0) });
    }
    engine.lineage_lost();
    assert_eq!(engine.waiting(8), 1);
    engine.process_ended(7, &mut Vec::new());
    assert_eq!(engine.process_stats(7), None);
    assert_eq!(engine.process_stats(8).map(|stats| (stats.orphans.sum(), stats.amnesias)), Some((0, 1)));
    engine.settle(20, &mut Vec::new());
    assert_eq!(engine.process_stats(8).map(|stats| stats.orphans.sum()), Some(1));
    assert_eq!((engine.stats().orphans.sum(), engine.stats().amnesias), (2, 2));
    // What is reported of a process after its end leaves nothing behind, but its counts in the sum.
    engine.operation(9, Moment { pid: 7, ktime_ns: 30, task: thread(7, 0) });
    engine.retain(|pid| pid == 8);
    assert!(engine.process_stats(7).is_some(), "an operation waits");
    engine.settle(40, &mut Vec::new());
    engine.retain(|pid| pid == 8);
    assert_eq!((engine.process_stats(7), engine.stats().orphans.sum()), (None, 3));
    assert!(engine.process_stats(8).is_some());
}
