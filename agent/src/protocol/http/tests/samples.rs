//! Conversations, and what a walker must make of each: read from two text files.
//!
//! `# ` starts a conversation with its name; `> ` is what the client writes at once, `< ` what the server does, `| ` goes on
//! with the same write on a new line; `.` is the end of the server's stream; `= ` is an expected exchange as
//! [`super::line`] shows it; `~ ` is the reason why a gap may cost more than one exchange. Lines end with CRLF unless they end with `\`; `\n` is a bare LF.

/// One write of one side.
pub(super) enum Step {
    Request(Vec<u8>),
    Response(Vec<u8>),
    EndOfResponses,
}

impl Step {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Request(bytes) | Self::Response(bytes) => bytes.len(),
            Self::EndOfResponses => 0,
        }
    }
}

pub(super) struct Conversation {
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
    /// A gap may cost more than the exchange it is in.
    pub(super) fragile: bool,
}

/// All conversations with their expected exchanges.
pub(super) fn all() -> Vec<(Conversation, Vec<String>)> {
    let files = [include_str!("written.txt"), include_str!("recorded.txt")];
    files.into_iter().flat_map(read).collect()
}

fn read(file: &str) -> Vec<(Conversation, Vec<String>)> {
    let mut read: Vec<(Conversation, Vec<String>)> = Vec::new();
    for line in file.lines().skip(1).filter(|line| !line.is_empty()) {
        let (tag, text) = line.split_at(1);
        let text = text.strip_prefix(' ').unwrap_or(text);
        if tag == "#" {
            read.push((
                Conversation { name: text.to_owned(), steps: Vec::new(), fragile: false },
                Vec::new(),
            ));
            continue;
        }
        let (Conversation { name, steps, fragile }, expected) = read.last_mut().expect("a name comes first");
        match (tag, steps.last_mut()) {
            (">", _) => steps.push(Step::Request(bytes(text))),
            ("<", _) => steps.push(Step::Response(bytes(text))),
            (".", _) => steps.push(Step::EndOfResponses),
            ("~", _) => *fragile = true,
            ("=", _) => expected.push(text.to_owned()),
            ("|", Some(Step::Request(step) | Step::Response(step))) => step.extend(bytes(text)),
            _ => panic!("{name}: {line:?}"),
        }
    }
    read
}

fn bytes(text: &str) -> Vec<u8> {
    let text = text.replace("\\n", "\n");
    match text.strip_suffix('\\') {
        Some(text) => text.as_bytes().to_vec(),
        None => format!("{text}\r\n").into_bytes(),
    }
}
