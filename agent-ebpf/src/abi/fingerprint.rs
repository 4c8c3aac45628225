//! What a code object is, in 32 bits: taken by the kernel side at the sample, while the code object is in use, and again by
//! the daemon when it reads the object. If they differ, another object is at that address by now.
//!
//! It is made of contents: a program that compiles and drops code in a loop gets the same addresses again, also for names.
//! In this order: `co_firstlineno`; `co_name`, and `co_qualname` where that is another object; the table of lines;
//! `co_filename`. Of a string its hash is taken if CPython has computed it (interned ones, such as names, have it), else its
//! length and its end; of the table of lines its length and its beginning. What was not resident in memory is left out,
//! and the lowest four bits say so; a page that is not resident has not just been written to.

/// Part of a fingerprint that is missing: everything but what follows.
pub const CODE: u64 = 0xf;
/// Part of a fingerprint that is missing.
pub const NAME: u64 = 1;
/// Part of a fingerprint that is missing.
pub const QUALNAME: u64 = 2;
/// Part of a fingerprint that is missing.
pub const LINES: u64 = 4;
/// Part of a fingerprint that is missing.
pub const FILENAME: u64 = 8;

/// `offsetof(PyASCIIObject, length)`, followed by `hash`; the same in all versions.
pub const STR_LENGTH: u64 = 16;
/// `PyASCIIObject.hash` while nobody has asked for it: -1.
pub const NOT_HASHED: u64 = u64::MAX;
/// `offsetof(PyBytesObject, ob_size)`, followed by `ob_shash` and the bytes; the same in all versions.
pub const BYTES_SIZE: u64 = 16;

/// Adds a word to a hash.
#[inline(always)]
pub const fn mix(hash: u64, word: u64) -> u64 {
    // The constant is 2^64 divided by the golden ratio.
    let mixed = (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Where the last sixteen bytes of a string of `length` begin, or the first ones of a shorter one.
#[inline(always)]
pub const fn tail(data: u64, length: u64) -> u64 {
    if length < 16 { data } else { data.wrapping_add(length).wrapping_sub(16) }
}

/// Stands for a string: its length and sixteen of its bytes, of which those that are beyond its end do not count.
#[inline(always)]
pub const fn text(length: u64, first: u64, second: u64) -> u64 {
    let (first, second) = if length >= 16 {
        (first, second)
    } else if length >= 8 {
        (first, keep(second, length - 8))
    } else {
        (keep(first, length), 0)
    };
    mix(mix(mix(0, length), first), second)
}

/// The first `bytes` bytes of a word, fewer than eight.
#[inline(always)]
const fn keep(word: u64, bytes: u64) -> u64 {
    word & ((1 << (bytes % 8 * 8)) - 1)
}

/// The fingerprint, from the hash and the parts that are missing.
#[inline(always)]
pub const fn finish(hash: u64, missing: u64) -> u32 {
    ((hash >> 32) as u32 & !0xf) | (missing as u32 & 0xf)
}
