//! The conventions' own cases, and PostgreSQL's literals whole and cut.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use serde_json::Value;

use super::*;

#[test]
fn the_conventions_own_cases_pass() {
    let cases: Value = serde_json::from_str(include_str!("db-sql-test-cases.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 24);
    for case in cases {
        let query = case["input"]["query"].as_str().unwrap();
        let text = redact(query.as_bytes(), false);
        let allowed = case["expected"]["db.query.text"].as_array().unwrap();
        assert!(allowed.iter().any(|allowed| allowed == &text), "{}: {text}", case["name"]);
        assert_eq!(
            case["expected"]["db.query.summary"],
            summary(query.as_bytes(), false),
            "{}",
            case["name"]
        );
    }
}

/// Redacts `sql` whole, and cut at every byte: no cut may show what the whole hides.
fn check(sql: &str, expected: &str) {
    assert_eq!(redact(sql.as_bytes(), false), expected);
    assert_eq!(redact(expected.as_bytes(), false), expected, "redacting twice changes the text");
    for end in 0..sql.len() {
        let cut = redact(&sql.as_bytes()[..end], true);
        assert!(!cut.contains("secret") && !cut.contains("4711"), "{end}: {cut}");
        assert_eq!(redact(cut.as_bytes(), false), cut, "cut at {end}");
        let kept = parameterised(&sql.as_bytes()[..end], true);
        assert!(sql.starts_with(kept.trim_end_matches('?')), "cut at {end}: {kept}");
        assert!(
            lexer::Lexer::new(kept.as_bytes()).all(|token| !token.open),
            "cut at {end} inside a literal: {kept}"
        );
    }
}

#[test]
fn literals_are_hidden() {
    check("SELECT 'secret', E'it\\'s secret', U&'secret' UESCAPE '!'", "SELECT ?, ?, ? UESCAPE ?");
    check("SELECT $$secret$$, $tag$secret $$ 'secret' $tag$", "SELECT ?, ?");
    check("SELECT B'101', X'4711', N'secret', e'secret\\\\'", "SELECT ?, ?, ?, ?");
    check("SELECT 'a''secret''b' FROM t", "SELECT ? FROM t");
    check("SELECT 4711, -4711, 4711.5e-3, 0x4711, 1_4711, 4711.", "SELECT ?, ?, ?, ?, ?, ?");
    check(
        "INSERT INTO t VALUES (true, NULL, '4711'::int, 4711::text)",
        "INSERT INTO t VALUES (true, NULL, ?::int, ?::text)",
    );
    check("UPDATE t SET a=a-4711, b = b - 4711, c=-4711", "UPDATE t SET a=a-?, b = b - ?, c=?");
    check("SELECT doc->'secret'->>4711 FROM t -- 'secret'", "SELECT doc->?->>? FROM t ");
}

#[test]
fn names_parameters_and_operators_are_kept() {
    check(
        "SELECT \"Col'umn\", $1, $12::int FROM \"a\"\"b\" WHERE x = $2",
        "SELECT \"Col'umn\", $1, $12::int FROM \"a\"\"b\" WHERE x = $2",
    );
    check("SELECT naïve FROM größe", "SELECT naïve FROM größe");
    check("SELECT t1.c2, e.x, b.n FROM e", "SELECT t1.c2, e.x, b.n FROM e");
}

#[test]
fn comments_go_and_join_nothing() {
    check("SELECT a/* 'secret' /* nested */ */FROM t", "SELECT a FROM t");
    check("SELECT -/* secret */-4711", "SELECT - ?");
    check("/*secret*/SELECT/**/1/**//**/+/*x*/2", "SELECT ? + ?");
}

#[test]
fn open_literals_and_comments_are_closed() {
    for (sql, expected) in [
        ("SELECT 'sec", "SELECT ?"),
        ("SELECT 'sec''", "SELECT ?"),
        ("SELECT E'sec\\'", "SELECT ?"),
        ("SELECT $tag$sec$ta", "SELECT ?"),
        ("SELECT $ta", "SELECT $"),
        ("SELECT 1 /* sec", "SELECT ? "),
        ("SELECT 1 -- sec", "SELECT ? "),
        ("SELECT \"sec", "SELECT ?"),
        ("SELECT * FROM ord", "SELECT * FROM "),
    ] {
        assert_eq!(redact(sql.as_bytes(), true), expected);
    }
    assert_eq!(
        parameterised(b"SELECT 'ok' WHERE a = $1 AND b = 'sec", true),
        "SELECT 'ok' WHERE a = $1 AND b = ?"
    );
    assert_eq!(parameterised(b"SELECT 'ok' WHERE a = $1", false), "SELECT 'ok' WHERE a = $1");
}

#[test]
fn any_bytes_are_bounded_text() {
    assert_eq!(redact(b"SELECT \xff\xfe, 'a\xff'", false), "SELECT \u{fffd}\u{fffd}, ?");
    let long = "SELECT ".to_owned() + &"column_name, ".repeat(2000);
    assert!(redact(long.as_bytes(), false).len() <= MAX_TEXT);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..3000 {
        let mut bytes = Vec::new();
        for _ in 0..state % 60 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let alphabet = b"'\"$-+/*.eEuU&xX\\ (),;a19_\n?\xff\xc3";
            bytes.push(alphabet[usize::try_from(state % alphabet.len() as u64).unwrap()]);
        }
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        for truncated in [false, true] {
            let text = redact(&bytes, truncated);
            assert_eq!(redact(text.as_bytes(), false), text, "{:?}", String::from_utf8_lossy(&bytes));
            let mut tokens = lexer::Lexer::new(text.as_bytes());
            assert!(tokens.all(|token| token.kind != lexer::Kind::Literal), "{text}");
            assert!(parameterised(&bytes, truncated).len() <= MAX_TEXT);
            assert!(summary(&bytes, truncated).chars().count() <= MAX_SUMMARY);
        }
    }
}

#[test]
fn summaries_name_operations_and_targets() {
    for (sql, expected) in [
        (
            "WITH x AS (SELECT * FROM a), y(b) AS (SELECT 1 FROM x) SELECT * FROM y JOIN c USING (id)",
            "SELECT a SELECT SELECT c",
        ),
        (
            "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT n+1 FROM r) SELECT * FROM r",
            "SELECT SELECT SELECT",
        ),
        ("WITH d AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM d", "DELETE a INSERT b SELECT"),
        (
            "UPDATE ONLY public.orders o SET a = 1 FROM items WHERE o.id = items.id",
            "UPDATE public.orders items",
        ),
        ("INSERT INTO t (a) VALUES ($1) ON CONFLICT (a) DO UPDATE SET a = 1 RETURNING id", "INSERT t"),
        ("DELETE FROM a USING b, c WHERE a.id = b.id", "DELETE a b c"),
        (
            "MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN UPDATE SET a = 1 WHEN NOT MATCHED THEN INSERT VALUES (1)",
            "MERGE t s",
        ),
        ("SELECT * FROM \"song list\", artists FOR UPDATE", "SELECT \"song list\" artists"),
        ("SELECT extract(year FROM ts), a IS DISTINCT FROM b FROM t", "SELECT t"),
        ("SELECT (SELECT max(x) FROM b) FROM a WHERE EXISTS (SELECT 1 FROM c)", "SELECT SELECT b a SELECT c"),
        ("SELECT * FROM generate_series(1, 10) g, t", "SELECT t"),
        ("SELECT * FROM (a JOIN b ON a.x = b.x), LATERAL (SELECT 1) l", "SELECT a b SELECT"),
        ("select 1 from a union select 2 from b order by x, y", "select a select b"),
        ("COPY shop.items (a, b) FROM STDIN", "COPY shop.items"),
        ("COPY (SELECT * FROM t) TO STDOUT", "COPY SELECT t"),
        ("CALL refresh_totals($1)", "CALL refresh_totals"),
        ("BEGIN ISOLATION LEVEL READ COMMITTED", "BEGIN"),
        ("COMMIT", "COMMIT"),
        ("ROLLBACK TO SAVEPOINT s1", "ROLLBACK"),
        ("SET application_name TO 'x'", "SET"),
        ("SHOW transaction_isolation", "SHOW"),
        ("begin; select 1 from t; commit", "begin select t commit"),
        ("EXPLAIN (ANALYZE) SELECT * FROM t", "EXPLAIN SELECT t"),
        ("EXPLAIN ANALYZE DELETE FROM t", "EXPLAIN DELETE t"),
        ("DECLARE \"c\" CURSOR FOR SELECT * FROM t", "DECLARE SELECT t"),
        ("CREATE TABLE IF NOT EXISTS a AS SELECT * FROM b", "CREATE TABLE a SELECT b"),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "CREATE INDEX i"),
        (
            "CREATE OR REPLACE FUNCTION f(a int) RETURNS int AS $$ SELECT 1 FROM secret $$",
            "CREATE FUNCTION f",
        ),
        ("DROP TABLE IF EXISTS a, b CASCADE", "DROP TABLE a b"),
        ("TRUNCATE a, b", "TRUNCATE a b"),
        ("TRUNCATE TABLE a", "TRUNCATE TABLE a"),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY v", "REFRESH MATERIALIZED VIEW v"),
        ("GRANT SELECT ON t TO u", "GRANT"),
        ("-- hint\nSELECT 1", "SELECT"),
        ("hello world", ""),
        ("", ""),
    ] {
        assert_eq!(summary(sql.as_bytes(), false), expected, "{sql}");
    }
    assert_eq!(summary(b"SELECT * FROM orders_arch", true), "SELECT");
    let long =
        format!("SELECT * FROM {}", (0..100).map(|n| format!("table_{n}")).collect::<Vec<_>>().join(", "));
    let text = summary(long.as_bytes(), false);
    assert!(text.len() <= MAX_SUMMARY && text.ends_with(|last: char| last.is_ascii_digit()));
    assert!(long.contains(text.rsplit(' ').next().unwrap()));
}
