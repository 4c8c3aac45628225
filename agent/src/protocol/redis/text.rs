//! What of a command may leave: its operation name, and its text with keys shown and every other argument as `?`.
//!
//! Takes the prefixes of [`Arguments`]. Key positions are those of Redis's own command table
//! (<https://redis.io/docs/latest/develop/reference/key-specs/>); of a command not listed here no argument is shown.

use super::command::{Arguments, KEPT_BYTES};

/// Longest text, bytes.
const TEXT_LIMIT: usize = 320;
/// Most keys that are shown.
const KEYS_SHOWN: u64 = 8;

/// Which arguments are keys. Positions count from 1, the first argument behind the name.
#[derive(Clone, Copy)]
enum Keys {
    /// None is shown.
    None,
    /// From `first` on every `step`-th one, but for the last `spare` arguments.
    Range { first: u64, step: u64, spare: u64 },
    /// One or two at the front.
    Front(u64),
    /// A number of keys at this position, the keys behind it; `front` keys before it.
    Counted { at: u64, front: u64 },
    /// Behind the word `STREAMS`: as many keys as ids.
    Streams,
}

/// Upper-case form of a command's name.
pub(super) fn upper(name: &[u8]) -> String {
    String::from_utf8_lossy(name).to_ascii_uppercase()
}

/// Whether the first argument is a sub-command and so part of the operation's name.
fn has_subcommand(name: &str) -> bool {
    matches!(
        name,
        "ACL"
            | "CLIENT"
            | "CLUSTER"
            | "COMMAND"
            | "CONFIG"
            | "DEBUG"
            | "FUNCTION"
            | "LATENCY"
            | "MEMORY"
            | "MODULE"
            | "OBJECT"
            | "PUBSUB"
            | "SCRIPT"
            | "SENTINEL"
            | "SLOWLOG"
            | "XGROUP"
            | "XINFO"
    )
}

fn keys(name: &str, subcommand: Option<&str>) -> Keys {
    match name {
        "GET"
        | "SET"
        | "SETEX"
        | "PSETEX"
        | "SETNX"
        | "GETSET"
        | "GETDEL"
        | "GETEX"
        | "GETRANGE"
        | "SETRANGE"
        | "SUBSTR"
        | "STRLEN"
        | "APPEND"
        | "INCR"
        | "DECR"
        | "INCRBY"
        | "DECRBY"
        | "INCRBYFLOAT"
        | "EXPIRE"
        | "PEXPIRE"
        | "EXPIREAT"
        | "PEXPIREAT"
        | "EXPIRETIME"
        | "PEXPIRETIME"
        | "TTL"
        | "PTTL"
        | "PERSIST"
        | "TYPE"
        | "DUMP"
        | "RESTORE"
        | "MOVE"
        | "SORT"
        | "SORT_RO"
        | "BITCOUNT"
        | "BITPOS"
        | "BITFIELD"
        | "BITFIELD_RO"
        | "GETBIT"
        | "SETBIT"
        | "HGET"
        | "HSET"
        | "HSETNX"
        | "HMGET"
        | "HMSET"
        | "HGETALL"
        | "HDEL"
        | "HEXISTS"
        | "HINCRBY"
        | "HINCRBYFLOAT"
        | "HKEYS"
        | "HVALS"
        | "HLEN"
        | "HSTRLEN"
        | "HSCAN"
        | "HRANDFIELD"
        | "HEXPIRE"
        | "HPEXPIRE"
        | "HTTL"
        | "HPTTL"
        | "HPERSIST"
        | "HGETDEL"
        | "HGETEX"
        | "HSETEX"
        | "LPUSH"
        | "RPUSH"
        | "LPUSHX"
        | "RPUSHX"
        | "LPOP"
        | "RPOP"
        | "LLEN"
        | "LINDEX"
        | "LSET"
        | "LRANGE"
        | "LTRIM"
        | "LREM"
        | "LINSERT"
        | "LPOS"
        | "SADD"
        | "SREM"
        | "SPOP"
        | "SMEMBERS"
        | "SCARD"
        | "SISMEMBER"
        | "SMISMEMBER"
        | "SRANDMEMBER"
        | "SSCAN"
        | "ZADD"
        | "ZREM"
        | "ZCARD"
        | "ZCOUNT"
        | "ZINCRBY"
        | "ZRANGE"
        | "ZRANGEBYSCORE"
        | "ZRANGEBYLEX"
        | "ZREVRANGE"
        | "ZREVRANGEBYSCORE"
        | "ZREVRANGEBYLEX"
        | "ZRANK"
        | "ZREVRANK"
        | "ZSCORE"
        | "ZMSCORE"
        | "ZLEXCOUNT"
        | "ZPOPMIN"
        | "ZPOPMAX"
        | "ZREMRANGEBYRANK"
        | "ZREMRANGEBYSCORE"
        | "ZREMRANGEBYLEX"
        | "ZRANDMEMBER"
        | "ZSCAN"
        | "PFADD"
        | "GEOADD"
        | "GEODIST"
        | "GEOHASH"
        | "GEOPOS"
        | "GEORADIUS"
        | "GEORADIUSBYMEMBER"
        | "GEORADIUS_RO"
        | "GEORADIUSBYMEMBER_RO"
        | "GEOSEARCH"
        | "XADD"
        | "XLEN"
        | "XRANGE"
        | "XREVRANGE"
        | "XDEL"
        | "XTRIM"
        | "XACK"
        | "XPENDING"
        | "XCLAIM"
        | "XAUTOCLAIM"
        | "XSETID"
        | "PUBLISH"
        | "SPUBLISH"
        | "JSON.GET"
        | "JSON.SET"
        | "JSON.DEL"
        | "BF.ADD"
        | "BF.EXISTS"
        | "TS.ADD" => Keys::Front(1),
        "RENAME" | "RENAMENX" | "COPY" | "SMOVE" | "RPOPLPUSH" | "BRPOPLPUSH" | "LMOVE" | "BLMOVE"
        | "LCS" | "ZRANGESTORE" | "GEOSEARCHSTORE" => Keys::Front(2),
        "DEL" | "UNLINK" | "EXISTS" | "TOUCH" | "MGET" | "WATCH" | "SUNION" | "SINTER" | "SDIFF"
        | "SUNIONSTORE" | "SINTERSTORE" | "SDIFFSTORE" | "PFCOUNT" | "PFMERGE" | "SUBSCRIBE"
        | "PSUBSCRIBE" | "SSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "SUNSUBSCRIBE" => {
            Keys::Range { first: 1, step: 1, spare: 0 }
        }
        "MSET" | "MSETNX" => Keys::Range { first: 1, step: 2, spare: 0 },
        "BLPOP" | "BRPOP" | "BZPOPMIN" | "BZPOPMAX" => Keys::Range { first: 1, step: 1, spare: 1 },
        "JSON.MGET" => Keys::Range { first: 1, step: 1, spare: 1 },
        "BITOP" => Keys::Range { first: 2, step: 1, spare: 0 },
        "EVAL" | "EVALSHA" | "EVAL_RO" | "EVALSHA_RO" | "FCALL" | "FCALL_RO" | "BLMPOP" | "BZMPOP" => {
            Keys::Counted { at: 2, front: 0 }
        }
        "ZUNIONSTORE" | "ZINTERSTORE" | "ZDIFFSTORE" => Keys::Counted { at: 2, front: 1 },
        "ZUNION" | "ZINTER" | "ZDIFF" | "ZINTERCARD" | "SINTERCARD" | "LMPOP" | "ZMPOP" => {
            Keys::Counted { at: 1, front: 0 }
        }
        "XREAD" | "XREADGROUP" => Keys::Streams,
        "OBJECT" | "XGROUP" | "XINFO" => Keys::Range { first: 2, step: u64::MAX, spare: 0 },
        "MEMORY" if subcommand == Some("USAGE") => Keys::Range { first: 2, step: u64::MAX, spare: 0 },
        _ => Keys::None,
    }
}

/// Whether this upper-case name is a command of Redis that is known here.
pub(super) fn is_listed(name: &str) -> bool {
    has_subcommand(name)
        || !matches!(keys(name, None), Keys::None)
        || matches!(
            name,
            "AUTH"
                | "BGSAVE"
                | "DBSIZE"
                | "DISCARD"
                | "ECHO"
                | "EXEC"
                | "FLUSHALL"
                | "FLUSHDB"
                | "HELLO"
                | "INFO"
                | "KEYS"
                | "LASTSAVE"
                | "MIGRATE"
                | "MONITOR"
                | "MULTI"
                | "PING"
                | "PSYNC"
                | "QUIT"
                | "RANDOMKEY"
                | "READONLY"
                | "RESET"
                | "ROLE"
                | "SAVE"
                | "SCAN"
                | "SELECT"
                | "SHUTDOWN"
                | "SYNC"
                | "TIME"
                | "UNWATCH"
                | "WAIT"
        )
}

/// The operation's name, as it was sent, with its sub-command where it has one, and the text of the query.
pub(super) fn describe(arguments: &Arguments) -> (Box<str>, Box<str>) {
    let name = arguments.get(0).unwrap_or_default();
    let mut operation = String::from_utf8_lossy(name).into_owned();
    let name = upper(name);
    let mut shown = 1;
    let mut subcommand = None;
    if has_subcommand(&name)
        && let Some(word) = arguments.whole(1)
        && (1..=24).contains(&word.len())
        && word.iter().all(|&byte| byte.is_ascii_alphabetic() || byte == b'-')
    {
        subcommand = Some(upper(word));
        operation.push(' ');
        operation.push_str(&String::from_utf8_lossy(word));
        shown = 2;
    }
    let mut text = operation.clone();
    let layout = Layout::of(keys(&name, subcommand.as_deref()), arguments);
    let mut keys_left = KEYS_SHOWN;
    for position in shown..arguments.count {
        if text.len() >= TEXT_LIMIT {
            text.push_str(" ...");
            break;
        }
        text.push(' ');
        let index = usize::try_from(position).unwrap_or(usize::MAX);
        match (layout.shows(position), arguments.get(index)) {
            (true, Some(key)) if keys_left > 0 => {
                keys_left = keys_left.saturating_sub(1);
                text.push_str(&String::from_utf8_lossy(key));
                if arguments.len_of(index).is_some_and(|len| len > key.len() as u64) {
                    text.push_str("...");
                }
            }
            _ => text.push('?'),
        }
    }
    if text.len() > TEXT_LIMIT.saturating_add(2 * KEPT_BYTES) {
        let cut = text.floor_char_boundary(TEXT_LIMIT.saturating_add(KEPT_BYTES));
        text.truncate(cut);
        text.push_str("...");
    }
    (operation.into(), text.into())
}

/// [`Keys`] of one command: which positions are shown.
struct Layout {
    front: u64,
    number_at: Option<u64>,
    first: u64,
    end: u64,
    step: u64,
}

impl Layout {
    const NOTHING: Self = Self { front: 0, number_at: None, first: 0, end: 0, step: 1 };

    fn of(keys: Keys, arguments: &Arguments) -> Self {
        let count = arguments.count;
        match keys {
            Keys::None => Self::NOTHING,
            Keys::Front(front) => Self { front, ..Self::NOTHING },
            Keys::Range { first, step, spare } => {
                Self { first, end: count.saturating_sub(spare), step, ..Self::NOTHING }
            }
            Keys::Counted { at, front } => {
                let number = usize::try_from(at).ok().and_then(|at| arguments.whole(at));
                match number.and_then(super::lex::integer).and_then(|number| u64::try_from(number).ok()) {
                    Some(number) => {
                        let first = at.saturating_add(1);
                        let end = first.saturating_add(number).min(count);
                        Self { front, number_at: Some(at), first, end, step: 1 }
                    }
                    None => Self { front, ..Self::NOTHING },
                }
            }
            Keys::Streams => {
                let word = (1..count.min(32)).find(|&index| {
                    let word = usize::try_from(index).ok().and_then(|index| arguments.whole(index));
                    word.is_some_and(|word| word.eq_ignore_ascii_case(b"STREAMS"))
                });
                let Some(word) = word else { return Self::NOTHING };
                let first = word.saturating_add(1);
                let streams = count.saturating_sub(first).wrapping_div(2);
                Self { first, end: first.saturating_add(streams), ..Self::NOTHING }
            }
        }
    }

    fn shows(&self, position: u64) -> bool {
        let Self { front, number_at, first, end, step } = *self;
        position <= front
            || number_at == Some(position)
            || (position >= first
                && position < end
                && position.saturating_sub(first).checked_rem(step) == Some(0))
    }
}
