//! What is probed in a process, as data: of each subject the functions in a file, with the programs that see them. The lineage
//! of contexts, the queue of thread pools, greenlets, and the TLS libraries.

use std::path::Path;

use crate::python::known_files::FileKey;
use crate::python::{ContextFunctions, Greenlets, QueueFunctions};
use crate::tls::{Functions, Library, WriteInternal};

/// Program that reports copies of the current context.
const COPY_CURRENT: &str = "py_context_copy_current";
/// Program that reports other new contexts.
const CREATED: &str = "py_context_created";
/// Program that reports contexts that are deallocated.
const GONE: &str = "py_context_gone";
/// Program that reports contexts that are entered.
const ENTERED: &str = "py_context_entered";
/// Program that reports work items of thread pools on their way into a queue.
const QUEUE_PUT: &str = "py_queue_put";
/// Programs that report work items on their way out of it: on the call, and on the return.
const QUEUE_GET: &str = "py_queue_get";
/// See [`QUEUE_GET`].
const QUEUE_GOT: &str = "py_queue_got";
/// Program that reports new greenlets.
const GREENLET_INIT: &str = "py_greenlet_init";
/// Program that reports greenlets that are gone.
const GREENLET_DEALLOC: &str = "py_greenlet_dealloc";
/// Programs on calls of `SSL_read` and `SSL_read_ex`, or of what these call.
const TLS_READ: &str = "tls_read";
/// See [`TLS_READ`].
const TLS_READ_EX: &str = "tls_read_ex";
/// Programs on calls of `SSL_write`, `SSL_write_ex` and `SSL_write_ex2`, or of what these call.
const TLS_WRITE: &str = "tls_write";
/// See [`TLS_WRITE`].
const TLS_WRITE_EX: &str = "tls_write_ex";
/// See [`TLS_WRITE`].
const TLS_WRITE_EX2: &str = "tls_write_ex2";
/// Program on returns from any of these.
const TLS_RETURNED: &str = "tls_returned";
/// Program on calls of `SSL_do_handshake`.
const TLS_HANDSHAKE: &str = "tls_handshake";
/// Program on calls of `SSL_free`.
const TLS_FREE: &str = "tls_free";

/// All programs, to be loaded.
pub(in crate::kernel) const PROGRAMS: [&str; 17] = [
    COPY_CURRENT,
    CREATED,
    GONE,
    ENTERED,
    QUEUE_PUT,
    QUEUE_GET,
    QUEUE_GOT,
    GREENLET_INIT,
    GREENLET_DEALLOC,
    TLS_READ,
    TLS_READ_EX,
    TLS_WRITE,
    TLS_WRITE_EX,
    TLS_WRITE_EX2,
    TLS_RETURNED,
    TLS_HANDSHAKE,
    TLS_FREE,
];

/// What probes are on. A process has one set at most on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The functions that make contexts and end them.
    Contexts,
    /// The functions that enter contexts.
    Steps,
    /// The queue of thread pools, in `_queue`.
    Queue,
    /// `greenlet._greenlet`
    Greenlets,
    /// A TLS library, of which a process may have several.
    Tls(FileKey),
}

impl Subject {
    /// Whether it is a TLS library.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Where a program is wanted in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Place {
    pub(in crate::kernel) program: &'static str,
    pub(in crate::kernel) offset: u64,
    /// On the return from the function, not on the call.
    pub(in crate::kernel) on_return: bool,
}

impl Place {
    fn call(program: &'static str, offset: u64) -> Self {
        Self { program, offset, on_return: false }
    }

    fn on_return(program: &'static str, offset: u64) -> Self {
        Self { program, offset, on_return: true }
    }
}

/// Probes on one subject.
#[derive(Debug)]
pub struct ProbeSet<'a> {
    /// On what.
    pub subject: Subject,
    /// The file with the functions.
    pub(in crate::kernel) file: &'a Path,
    /// In the order in which they are put on.
    pub(in crate::kernel) places: Vec<Place>,
    /// Children that are forked inherit them, where that is possible.
    pub(in crate::kernel) inherited: bool,
}

impl<'a> ProbeSet<'a> {
    /// The lineage probes.
    pub fn contexts(functions: &'a ContextFunctions) -> Self {
        let ContextFunctions { path, copy_current, unrelated, dealloc, enter: _ } = functions;
        let mut places = vec![Place::on_return(COPY_CURRENT, *copy_current)];
        places.extend(unrelated.iter().map(|offset| Place::on_return(CREATED, *offset)));
        places.extend(dealloc.map(|offset| Place::call(GONE, offset)));
        Self { subject: Subject::Contexts, file: path, places, inherited: true }
    }

    /// Those that tell when a context is entered. They come and go.
    pub fn steps(functions: &'a ContextFunctions) -> Self {
        let places = functions.enter.iter().map(|offset| Place::call(ENTERED, *offset)).collect();
        Self { subject: Subject::Steps, file: &functions.path, places, inherited: false }
    }

    /// Those on the queue of thread pools. In this order nothing is seen half: what is taken before `put` has its probe is of unknown
    /// origin.
    pub fn queue(functions: &'a QueueFunctions) -> Self {
        let QueueFunctions { path, file: _, put, get, loaded: _ } = functions;
        let taken = get.iter().flat_map(|at| [Place::call(QUEUE_GET, *at), Place::on_return(QUEUE_GOT, *at)]);
        let places = taken.chain([Place::call(QUEUE_PUT, *put)]).collect();
        Self { subject: Subject::Queue, file: path, places, inherited: true }
    }

    /// Those on the functions that initialise and deallocate greenlets.
    pub fn greenlets(functions: &'a Greenlets) -> Self {
        let Greenlets { path, init, dealloc, kind: _, module: _, offset: _ } = functions;
        let places = vec![Place::call(GREENLET_DEALLOC, *dealloc), Place::call(GREENLET_INIT, *init)];
        Self { subject: Subject::Greenlets, file: path, places, inherited: true }
    }

    /// Those on a TLS library. Returns come first: a call that is seen to begin must be seen to end.
    pub fn tls(library: &'a Library) -> Self {
        let Library { file, path, functions, name: _ } = library;
        let Functions { read, read_ex, write, write_ex, handshake, free, read_internal, write_internal } =
            *functions;
        let reads = match read_internal {
            Some(offset) => vec![(TLS_READ_EX, Some(offset))],
            None => vec![(TLS_READ, read), (TLS_READ_EX, read_ex)],
        };
        let writes = match write_internal {
            Some(WriteInternal { offset, takes_flags: false }) => vec![(TLS_WRITE_EX, Some(offset))],
            Some(WriteInternal { offset, takes_flags: true }) => vec![(TLS_WRITE_EX2, Some(offset))],
            None => vec![(TLS_WRITE, write), (TLS_WRITE_EX, write_ex)],
        };
        let moving = || reads.iter().chain(&writes).copied();
        let returns = moving().filter_map(|(_, offset)| Some(Place::on_return(TLS_RETURNED, offset?)));
        let calls = moving().chain([(TLS_HANDSHAKE, handshake), (TLS_FREE, free)]);
        let calls = calls.filter_map(|(program, offset)| Some(Place::call(program, offset?)));
        let places = returns.chain(calls).collect();
        Self { subject: Subject::Tls(*file), file: path, places, inherited: true }
    }
}
