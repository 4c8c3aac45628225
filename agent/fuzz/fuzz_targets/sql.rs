//! Any text redacts to bounded text without literals, which redacts to itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitviper::protocol::sql;

fuzz_target!(|data: (bool, &[u8])| {
    let (truncated, text) = data;
    let redacted = sql::redact(text, truncated);
    assert!(redacted.len() <= sql::MAX_TEXT);
    assert_eq!(sql::redact(redacted.as_bytes(), false), redacted);
    assert!(sql::parameterised(text, truncated).len() <= sql::MAX_TEXT);
    assert!(sql::summary(text, truncated).chars().count() <= sql::MAX_SUMMARY);

    // A literal that is cut anywhere never shows.
    let quoted: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'\'').collect();
    let statement = [&b"SELECT '\x02"[..], &quoted].concat();
    assert_eq!(sql::redact(&statement, true), "SELECT ?");
});
