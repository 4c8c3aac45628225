//! Work items of thread pools, and threads that are started for a request.

use super::*;

/// Address of a work item.
const ITEM: u64 = 0x7700;

impl Script {
    fn submit(&mut self, task: Task, item: u64) -> &mut Self {
        let at = self.at(task);
        self.engine.work_submitted(at, item);
        self
    }

    fn take(&mut self, task: Task, item: u64) -> &mut Self {
        let at = self.at(task);
        self.engine.work_taken(at, item);
        self
    }

    fn done(&mut self, task: Task) -> &mut Self {
        let at = self.at(task);
        self.engine.work_done(at);
        self
    }

    fn start(&mut self, task: Task, tid: u32) -> &mut Self {
        let at = self.at(task);
        self.engine.thread_started(at, tid);
        self
    }

    fn end_thread(&mut self, tid: u32) -> &mut Self {
        self.now += 10;
        self.engine.thread_ended(PID, tid, self.now);
        self.settle()
    }

    /// Two requests on an event loop, in the contexts 0xa0 and 0xb0.
    fn two_requests() -> Self {
        let mut script = Self::new();
        script.read(1, on_loop(5, READER)).copy(on_loop(5, READER), 0xa0);
        script.read(2, on_loop(5, READER)).copy(on_loop(5, READER), 0xb0);
        script
    }
}

const BY_ITEM: fn(ExchangeKey) -> Option<(ExchangeKey, Evidence)> = |key| Some((key, Evidence::Handover));

#[test]
fn items_of_two_requests_in_one_worker() {
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM).submit(on_loop(6, 0xb0), ITEM + 64);
    script.take(thread(9, 0), ITEM).operation(101, thread(9, 0)).done(thread(9, 0));
    script.take(thread(9, 0), ITEM + 64).operation(201, thread(9, 0)).done(thread(9, 0));
    script.answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0));
    script.check(&[(101, BY_ITEM(1)), (201, BY_ITEM(2))]);
}

#[test]
fn an_item_at_the_address_of_an_earlier_one() {
    let mut script = Script::two_requests();
    // The first one is taken by a worker that had waited since before the attach: nothing is seen of it.
    script.submit(on_loop(6, 0xa0), ITEM).submit(on_loop(6, 0xb0), ITEM);
    script.take(thread(9, 0), ITEM).operation(201, thread(9, 0)).done(thread(9, 0));
    script.answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0));
    script.check(&[(201, BY_ITEM(2))]);
}

#[test]
fn an_item_of_unknown_origin_is_not_the_one_before() {
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM).take(thread(9, 0), ITEM).take(thread(9, 0), ITEM + 64);
    script.operation(101, thread(9, 0)).answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0));
    script.check(&[(101, None)]);
}

#[test]
fn the_taking_may_be_reported_twice() {
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM).take(thread(9, 0), ITEM).take(thread(9, 0), ITEM);
    script.operation(101, thread(9, 0)).done(thread(9, 0)).answer(2, on_loop(8, 0xb0));
    script.answer(1, on_loop(9, 0xa0)).check(&[(101, BY_ITEM(1))]);
}

#[test]
fn a_worker_thread_serves_requests_itself() {
    // gunicorn's gthread: the main thread submits each connection; the handler has work done in another pool.
    let mut script = Script::new();
    script.submit(on_loop(5, 0), ITEM).take(thread(3, 0), ITEM).read(1, thread(3, 0));
    script.operation(101, thread(3, 0)).submit(thread(3, 0), ITEM + 64);
    script.take(thread(9, 0), ITEM + 64).operation(102, thread(9, 0)).done(thread(9, 0));
    script.answer(1, thread(3, 0)).done(thread(3, 0));
    script.check(&[(101, Some((1, Evidence::Response))), (102, BY_ITEM(1))]);
}

#[test]
fn an_item_may_copy_contexts_and_run_a_loop() {
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM).take(thread(9, 0), ITEM);
    script.copy(thread(9, 0), 0xc0).operation(101, Task { tid: 9, turn: 3, context: 0xc0 });
    script.gone(0xc0).done(Task { tid: 9, turn: 3, context: 0 });
    // The thread has run a loop before; this item does not.
    script.submit(on_loop(6, 0xb0), ITEM).take(Task { tid: 9, turn: 3, context: 0 }, ITEM);
    script.operation(201, Task { tid: 9, turn: 3, context: 0 }).done(Task { tid: 9, turn: 3, context: 0 });
    script.answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0));
    script.check(&[(101, BY_ITEM(1)), (201, BY_ITEM(2))]);
}

#[test]
fn fire_and_forget_has_a_second() {
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM).submit(on_loop(6, 0xb0), ITEM + 64);
    script.answer(1, on_loop(7, 0xa0)).answer(2, on_loop(7, 0xb0));
    script.take(thread(8, 0), ITEM).operation(101, thread(8, 0)).done(thread(8, 0));
    script.take(thread(9, 0), ITEM + 64).operation(201, thread(9, 0)).later(2).done(thread(9, 0));
    script.settle().check(&[(101, BY_ITEM(1)), (201, None)]);
}

#[test]
fn an_item_that_never_ends_is_nobodys() {
    // The first request started the loop that does the sending for all.
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM).take(thread(9, 0), ITEM).operation(201, thread(9, 0));
    script.answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0)).check(&[]);
    script.later(2).check(&[(201, None)]);
}

#[test]
fn a_pool_thread_in_a_context_of_its_own() {
    // Since 3.14 a thread begins in an empty context.
    let mut script = Script::two_requests();
    script.create(on_loop(6, 0xa0), 0xe0).start(on_loop(6, 0xa0), 9);
    script.submit(on_loop(6, 0xb0), ITEM).take(thread(9, 0xe0), ITEM).operation(201, thread(9, 0xe0));
    script.done(thread(9, 0xe0)).operation(301, thread(9, 0xe0));
    script.answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0));
    script.check(&[(201, BY_ITEM(2)), (301, None)]);
}

#[test]
fn a_thread_in_a_context_of_its_own() {
    // Since 3.14 `Thread.start` makes an empty context and then the thread. This one runs loops.
    let mut script = Script::two_requests();
    script.create(on_loop(6, 0xa0), 0xe0).start(on_loop(6, 0xa0), 9);
    script.operation(101, thread(9, 0xe0)).end_thread(9);
    script.create(on_loop(6, 0xb0), 0xe0).start(on_loop(6, 0xb0), 9);
    script.submit(on_loop(6, 0xb0), ITEM).take(thread(9, 0xe0), ITEM).operation(201, thread(9, 0xe0));
    script.done(Task { tid: 9, turn: 3, context: 0xe0 });
    script.submit(on_loop(6, 0xa0), ITEM).take(Task { tid: 9, turn: 3, context: 0xe0 }, ITEM);
    script.operation(102, Task { tid: 9, turn: 3, context: 0xe0 });
    script.done(Task { tid: 9, turn: 3, context: 0xe0 });
    script.answer(2, on_loop(8, 0xb0)).answer(1, on_loop(9, 0xa0));
    script.check(&[(101, BY_ITEM(1)), (201, BY_ITEM(2)), (102, BY_ITEM(1))]);
}

#[test]
fn a_thread_in_a_context_of_its_own_that_a_thread_started() {
    let mut script = Script::new();
    script.read(1, thread(3, 0)).create(thread(3, 0), 0xe0).start(thread(3, 0), 9);
    script.operation(101, thread(9, 0xe0)).end_thread(9).answer(1, thread(3, 0));
    script.check(&[(101, BY_ITEM(1))]);
}

#[test]
fn an_empty_context_of_a_request_is_no_threads_own() {
    // uvicorn makes one for each request; what runs in it on another thread is that request's.
    let mut script = Script::new();
    script.read(1, on_loop(5, 0)).create(on_loop(5, 0), 0xa0).start(on_loop(5, 0), 9);
    script.operation(101, thread(9, 0xa0)).answer(1, on_loop(6, 0xa0));
    script.check(&[(101, Some((1, Evidence::Response)))]);
}

#[test]
fn what_a_task_cancels_in_a_queue_is_not_its_work() {
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM).take(on_loop(6, 0xb0), ITEM).done(on_loop(6, 0xb0));
    script.operation(201, on_loop(7, 0xb0)).answer(1, on_loop(7, 0xa0)).answer(2, on_loop(8, 0xb0));
    script.check(&[(201, Some((2, Evidence::Response)))]);
}

#[test]
fn what_a_job_cancels_in_a_queue_is_not_its_end() {
    let mut script = Script::new();
    script.job(1, thread(3, 0)).submit(thread(3, 0), ITEM).take(thread(3, 0), ITEM).done(thread(3, 0));
    script.operation(101, thread(3, 0)).answer(1, thread(3, 0));
    script.check(&[(101, Some((1, Evidence::Job)))]);
}

#[test]
fn a_thread_that_was_joined() {
    let mut script = Script::new();
    script.read(1, thread(3, 0)).read(2, thread(4, 0)).start(thread(3, 0), 9);
    script.operation(101, thread(9, 0)).answer(2, thread(4, 0)).answer(1, thread(3, 0));
    // Python's thread had ended before the response began, the kernel's a little later.
    script.check(&[]);
    script.end_thread(9).check(&[(101, BY_ITEM(1))]);
}

#[test]
fn a_thread_that_goes_on_is_nobodys() {
    let mut script = Script::new();
    script.read(1, thread(3, 0)).start(thread(3, 0), 9).operation(101, thread(9, 0));
    script.answer(1, thread(3, 0)).check(&[]);
    script.later(1).check(&[(101, None)]);
    script.read(2, thread(3, 0)).operation(201, thread(9, 0)).answer(2, thread(3, 0));
    script.check(&[(201, None)]);
    let orphans = script.engine.process_stats(PID).unwrap().orphans;
    let outlived = orphans.iter().find(|(reason, _)| *reason == Orphan::Outlived);
    assert_eq!(outlived, Some((Orphan::Outlived, 2)));
}

#[test]
fn work_below_a_thread_that_goes_on_is_nobodys() {
    let mut script = Script::new();
    script.read(1, thread(3, 0)).start(thread(3, 0), 9).submit(thread(9, 0), ITEM);
    script.take(thread(10, 0), ITEM).operation(101, thread(10, 0)).done(thread(10, 0));
    script.answer(1, thread(3, 0)).later(1).check(&[(101, None)]);
}

#[test]
fn a_pool_whose_threads_a_request_started() {
    // The thread descends from request 1, what it does from the item of request 2.
    let mut script = Script::two_requests();
    script.start(on_loop(6, 0xa0), 9).submit(on_loop(6, 0xb0), ITEM).take(thread(9, 0), ITEM);
    script.operation(201, thread(9, 0)).done(thread(9, 0)).operation(301, thread(9, 0));
    script.answer(1, on_loop(7, 0xa0)).answer(2, on_loop(8, 0xb0)).settle();
    script.check(&[(201, BY_ITEM(2)), (301, None)]);
}

#[test]
fn lost_handovers_make_orphans() {
    let mut script = Script::two_requests();
    script.submit(on_loop(6, 0xa0), ITEM);
    script.engine.lineage_lost();
    script.take(thread(9, 0), ITEM).operation(101, thread(9, 0)).done(thread(9, 0));
    script.answer(1, on_loop(7, 0xa0)).answer(2, on_loop(7, 0xb0)).check(&[(101, None)]);
}

#[test]
fn greenlets_of_two_requests() {
    // gevent: requests are read and answered in greenlets of their own, and children spawned.
    const MARK: u64 = pitviper_ebpf::abi::CONTEXT_IS_GREENLET;
    let (first, second, child, grandchild) = (0xa0 | MARK, 0xb0 | MARK, 0xc0 | MARK, 0xd0 | MARK);
    let mut script = Script::new();
    let made = |script: &mut Script, by: u64, greenlet: u64| {
        let at = script.at(on_loop(5, by));
        script.engine.greenlet_made(at, greenlet);
    };
    let gone = |script: &mut Script, greenlet: u64| {
        script.now += 10;
        script.engine.greenlet_gone(PID, greenlet, script.now);
    };
    script.read(1, on_loop(5, first)).read(2, on_loop(5, second));
    made(&mut script, first, child);
    made(&mut script, child, grandchild);
    script.operation(101, on_loop(6, grandchild)).operation(102, on_loop(6, child));
    gone(&mut script, grandchild);
    gone(&mut script, child);
    // At the same address again, for the other request; this one goes on.
    made(&mut script, second, child);
    script.operation(201, on_loop(7, child)).operation(202, on_loop(7, second));
    script.answer(2, on_loop(8, second)).answer(1, on_loop(9, first)).later(2);
    script.check(&[(101, BY_ITEM(1)), (102, BY_ITEM(1)), (201, None), (202, Some((2, Evidence::Response)))]);
}
