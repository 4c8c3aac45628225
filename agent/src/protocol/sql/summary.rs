//! A query in a few words: its operations and their targets, as in `INSERT shipping_details SELECT orders`.
//!
//! Words are taken over as they are written, in the order in which they stand. Names of common table expressions are
//! no targets, nor is `WITH` an operation; functions in `FROM` are no targets. Source: OpenTelemetry semantic
//! conventions 1.44, "Generating a summary of the query".

use super::lexer::{Kind, Lexer, Token};

/// Longest summary, in characters.
pub const MAX_SUMMARY: usize = 255;
/// Parentheses nested deeper than this are read as if they were this deep.
const MAX_DEPTH: usize = 64;
const MAX_CTES: usize = 64;

/// Operations that stand alone: what follows them is a session's or cursor's own affair.
const LONE: [&str; 40] = [
    "ABORT",
    "ANALYZE",
    "BEGIN",
    "CHECKPOINT",
    "CLOSE",
    "CLUSTER",
    "COMMENT",
    "COMMIT",
    "DEALLOCATE",
    "DECLARE",
    "DISCARD",
    "DO",
    "END",
    "EXECUTE",
    "EXPLAIN",
    "FETCH",
    "GRANT",
    "IMPORT",
    "LISTEN",
    "LOAD",
    "MOVE",
    "NOTIFY",
    "PREPARE",
    "REASSIGN",
    "REINDEX",
    "RELEASE",
    "RESET",
    "REVOKE",
    "ROLLBACK",
    "SAVEPOINT",
    "SECURITY",
    "SET",
    "SHOW",
    "START",
    "UNLISTEN",
    "VACUUM",
    "VALUES",
    "USE",
    "REPLACE",
    "DESCRIBE",
];
/// Those of [`LONE`] that carry another statement.
const CARRIERS: [&str; 3] = ["DECLARE", "EXPLAIN", "PREPARE"];
/// Words between `CREATE` and the kind of thing, or between that and its name.
const MODIFIERS: [&str; 17] = [
    "OR",
    "REPLACE",
    "TEMP",
    "TEMPORARY",
    "UNLOGGED",
    "GLOBAL",
    "LOCAL",
    "UNIQUE",
    "RECURSIVE",
    "TRUSTED",
    "IF",
    "NOT",
    "EXISTS",
    "CONCURRENTLY",
    "ONLY",
    "PROCEDURAL",
    "DEFAULT",
];
/// Words that make up the kind of thing that a definition is about.
const THINGS: [&str; 36] = [
    "ACCESS",
    "AGGREGATE",
    "CAST",
    "COLLATION",
    "CONVERSION",
    "DATABASE",
    "DATA",
    "DOMAIN",
    "EVENT",
    "EXTENSION",
    "FOREIGN",
    "FUNCTION",
    "GROUP",
    "INDEX",
    "LANGUAGE",
    "MATERIALIZED",
    "METHOD",
    "OPERATOR",
    "POLICY",
    "PROCEDURE",
    "PUBLICATION",
    "ROLE",
    "ROUTINE",
    "RULE",
    "SCHEMA",
    "SEQUENCE",
    "SERVER",
    "STATISTICS",
    "SUBSCRIPTION",
    "SYSTEM",
    "TABLE",
    "TABLESPACE",
    "TRIGGER",
    "TYPE",
    "USER",
    "VIEW",
];
/// Words that end a list of tables.
const ENDS: [&str; 17] = [
    "WHERE",
    "GROUP",
    "ORDER",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "FETCH",
    "FOR",
    "UNION",
    "INTERSECT",
    "EXCEPT",
    "WINDOW",
    "RETURNING",
    "SET",
    "VALUES",
    "WHEN",
    "ON",
];

/// Whether the text begins as a statement does: used to tell SQL from other text.
pub fn looks_like_statement(sql: &[u8]) -> bool {
    let mut tokens = Lexer::new(sql)
        .filter(|token| !matches!(token.kind, Kind::Space | Kind::Comment) && !token.is_byte(b'('));
    let verbs = [
        "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "COPY", "CALL", "TABLE", "TRUNCATE", "LOCK",
    ];
    let definitions = ["CREATE", "ALTER", "DROP", "REFRESH"];
    tokens.next().is_some_and(|token| {
        verbs.iter().chain(&definitions).chain(&LONE).any(|verb| token.is(verb)) || token.is_byte(b';')
    })
}

/// Operations and targets of the query, at most [`MAX_SUMMARY`] characters; empty if it is no SQL that we know. With
/// `truncated`, the last word may be cut and is not used.
pub fn summary(sql: &[u8], truncated: bool) -> String {
    let mut tokens: Vec<Token<'_>> = Lexer::new(sql).collect();
    if truncated {
        tokens.pop();
    }
    tokens.retain(|token| !matches!(token.kind, Kind::Space | Kind::Comment) && !token.open);
    let mut reader = Reader::default();
    let mut rest = tokens.as_slice();
    while let Some((token, after)) = rest.split_first() {
        rest = if reader.wants_name() && matches!(token.kind, Kind::Word | Kind::Quoted) {
            reader.name(rest)
        } else {
            reader.token(*token, after.first());
            after
        };
        reader.before = Some(*token);
        if reader.full {
            break;
        }
    }
    reader.out
}

/// What the next words of a parenthesis level mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    /// Nothing of interest.
    #[default]
    Other,
    /// An operation.
    Statement,
    /// The name of a common table expression.
    CteName,
    /// The name of a table, which is no function if one follows.
    Table { source: bool },
    /// The kind of thing that is created, altered or dropped, then its name.
    Thing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Operation {
    #[default]
    None,
    Select,
    Insert,
    Update,
    Delete,
    Merge,
    Define,
    Lone,
}

#[derive(Clone, Copy, Debug, Default)]
struct Level {
    expect: Expect,
    operation: Operation,
    /// Within a comma-separated list of tables.
    list: bool,
    /// Within `WITH`, before the main statement.
    with: bool,
}

#[derive(Default)]
struct Reader<'a> {
    out: String,
    full: bool,
    started: bool,
    level: Level,
    outer: Vec<Level>,
    ctes: Vec<&'a [u8]>,
    before: Option<Token<'a>>,
}

impl<'a> Reader<'a> {
    fn wants_name(&self) -> bool {
        matches!(self.level.expect, Expect::Table { .. })
    }

    fn add(&mut self, word: &[u8]) {
        let word = String::from_utf8_lossy(word);
        let space = usize::from(!self.out.is_empty());
        let length = self.out.chars().count().saturating_add(word.chars().count()).saturating_add(space);
        if length > MAX_SUMMARY {
            self.full = true;
            return;
        }
        if space == 1 {
            self.out.push(' ');
        }
        self.out.push_str(&word);
    }

    /// Takes the name that `tokens` begin with, maybe qualified, and gives what follows it.
    fn name<'t>(&mut self, tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
        let Some((first, mut rest)) = tokens.split_first() else { return tokens };
        let Expect::Table { source } = self.level.expect else { return rest };
        let dotted = rest.first().is_some_and(|token| token.is_byte(b'.'));
        if !dotted
            && ["ONLY", "LATERAL", "IF", "NOT", "EXISTS", "CONCURRENTLY"].iter().any(|word| first.is(word))
        {
            return rest;
        }
        if !dotted && ["SELECT", "VALUES", "WITH"].iter().any(|word| first.is(word)) {
            self.level.expect = Expect::Statement;
            self.token(*first, rest.first());
            return rest;
        }
        if !dotted && self.level.operation == Operation::Define && first.is("ON") {
            return rest;
        }
        let mut name = first.bytes.to_vec();
        while let [dot, part, after @ ..] = rest {
            if !dot.is_byte(b'.') || !matches!(part.kind, Kind::Word | Kind::Quoted) {
                break;
            }
            name.push(b'.');
            name.extend_from_slice(part.bytes);
            rest = after;
        }
        let function = source && rest.first().is_some_and(|token| token.is_byte(b'('));
        let cte = !dotted && self.ctes.iter().any(|cte| cte.eq_ignore_ascii_case(first.bytes));
        if !function && !cte {
            self.add(&name);
        }
        self.level.expect = Expect::Other;
        rest
    }

    fn token(&mut self, token: Token<'a>, next: Option<&Token<'a>>) {
        match token.kind {
            Kind::Punctuation => self.punctuation(token),
            Kind::Word | Kind::Quoted if self.level.expect == Expect::CteName && !token.is("RECURSIVE") => {
                if self.ctes.len() < MAX_CTES {
                    self.ctes.push(token.bytes);
                }
                self.level.expect = Expect::Other;
            }
            Kind::Word if self.level.expect == Expect::Thing => self.thing(token),
            Kind::Word if self.level.expect == Expect::Statement || !self.started => self.verb(token),
            Kind::Word => self.word(token, next),
            _ => self.level.expect = Expect::Other,
        }
    }

    fn punctuation(&mut self, token: Token<'_>) {
        match token.bytes {
            b"(" => {
                let table = matches!(self.level.expect, Expect::Table { source: true });
                let open = Level {
                    // A parenthesis where a table may stand holds a query or a join.
                    expect: if table { Expect::Table { source: true } } else { Expect::Statement },
                    operation: if table { Operation::Select } else { Operation::None },
                    ..Level::default()
                };
                self.level.expect = match self.level.expect {
                    Expect::Table { .. } => Expect::Other,
                    expect => expect,
                };
                if self.outer.len() < MAX_DEPTH {
                    self.outer.push(self.level);
                    self.level = open;
                }
            }
            b")" => {
                if let Some(level) = self.outer.pop() {
                    self.level = level;
                }
                if self.level.with {
                    self.level.expect = Expect::Statement;
                }
            }
            b"," if self.level.with => self.level.expect = Expect::CteName,
            b"," if self.level.list => self.level.expect = Expect::Table { source: true },
            b";" => {
                self.outer.clear();
                self.ctes.clear();
                self.level = Level::default();
                self.started = false;
            }
            _ => {}
        }
    }

    /// The first word of a statement, or of a parenthesis.
    fn verb(&mut self, token: Token<'_>) {
        let top = !self.started;
        self.started = true;
        let (operation, expect) = if token.is("SELECT") {
            (Operation::Select, Expect::Other)
        } else if token.is("INSERT") {
            (Operation::Insert, Expect::Other)
        } else if token.is("UPDATE") {
            (Operation::Update, Expect::Table { source: false })
        } else if token.is("DELETE") {
            (Operation::Delete, Expect::Other)
        } else if token.is("MERGE") {
            (Operation::Merge, Expect::Other)
        } else if token.is("WITH") {
            self.level.with = true;
            self.level.expect = Expect::CteName;
            return;
        } else if token.is("VALUES") {
            (Operation::Lone, Expect::Other)
        } else if top && (token.is("COPY") || token.is("CALL") || token.is("TABLE")) {
            (Operation::Lone, Expect::Table { source: false })
        } else if top
            && ["CREATE", "ALTER", "DROP", "REFRESH", "TRUNCATE", "LOCK"].iter().any(|verb| token.is(verb))
        {
            self.level.list = token.is("DROP") || token.is("TRUNCATE") || token.is("LOCK");
            self.level.operation = Operation::Define;
            self.level.expect = Expect::Thing;
            self.add(token.bytes);
            return;
        } else if top && CARRIERS.iter().any(|verb| token.is(verb)) {
            (Operation::None, Expect::Other)
        } else if top && LONE.iter().any(|verb| token.is(verb)) {
            (Operation::Lone, Expect::Other)
        } else {
            self.level.expect = Expect::Other;
            return;
        };
        self.add(token.bytes);
        self.level = Level { expect, operation, list: false, with: false };
    }

    /// A word between `CREATE` and the name of what is created.
    fn thing(&mut self, token: Token<'a>) {
        if THINGS.iter().any(|word| token.is(word)) {
            self.add(token.bytes);
            let more = ["MATERIALIZED", "FOREIGN", "EVENT", "ACCESS", "DATA", "USER", "OPERATOR"];
            if !more.iter().any(|word| token.is(word)) || token.is("USER") {
                self.level.expect = Expect::Table { source: false };
            }
        } else if !MODIFIERS.iter().any(|word| token.is(word)) {
            // `TRUNCATE t` and `LOCK t` need no `TABLE`.
            self.level.expect = Expect::Table { source: false };
            self.name(&[token]);
        }
    }

    fn word(&mut self, token: Token<'a>, next: Option<&Token<'a>>) {
        let before = |word: &str| self.before.is_some_and(|before| before.is(word));
        let call = next.is_some_and(|next| next.is_byte(b'('));
        let operation = self.level.operation;
        if self.before.is_some_and(|before| before.is_byte(b'.')) || operation == Operation::Lone {
            return;
        }
        if token.is("SELECT") || (operation == Operation::None && before("FOR") && token.is("WITH")) {
            self.verb(token);
        } else if operation == Operation::None {
            // Behind EXPLAIN's and PREPARE's own words stands a statement.
            let verb =
                ["INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES"].iter().any(|verb| token.is(verb));
            if verb && self.outer.is_empty() {
                self.verb(token);
            }
        } else if operation == Operation::Define {
            self.level.expect = Expect::Other;
        } else if token.is("INTO") {
            self.level.expect = Expect::Table { source: false };
        } else if token.is("FROM") && !before("DISTINCT") {
            self.level.expect = Expect::Table { source: true };
            self.level.list = true;
        } else if token.is("JOIN") {
            self.level.expect = Expect::Table { source: true };
        } else if token.is("USING")
            && matches!(operation, Operation::Delete | Operation::Merge)
            && (!call || operation == Operation::Merge)
        {
            self.level.expect = Expect::Table { source: true };
            self.level.list = operation == Operation::Delete;
        } else if ENDS.iter().any(|word| token.is(word))
            && !(token.is("ON") && operation != Operation::Insert)
        {
            self.level.list = false;
        }
    }
}
