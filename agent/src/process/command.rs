//! A Python process's command line, taken apart as the interpreter does it.

/// What an interpreter was told to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program<'a> {
    /// `python path/script.py`, or an installed script such as `/usr/bin/uvicorn`.
    Script(&'a str),
    /// `python -m module`
    Module(&'a str),
    /// `python -c code`
    Code(&'a str),
    /// Standard input, or a person.
    Interactive,
    /// A program with an interpreter built in, such as `uwsgi`.
    Binary(&'a str),
}

/// A command line: what is run, and its own arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// What is run.
    pub program: Program<'a>,
    /// The arguments after it.
    pub args: &'a [String],
}

impl<'a> Command<'a> {
    /// Takes a command line apart, by `Python/getopt.c`.
    pub fn parse(argv: &'a [String]) -> Self {
        let Some((first, mut rest)) = argv.split_first() else {
            return Self { program: Program::Interactive, args: &[] };
        };
        if !is_interpreter(base_name(first)) {
            return Self { program: Program::Binary(first), args: rest };
        }
        while let Some((arg, after)) = rest.split_first() {
            rest = after;
            let Some(options) = arg.strip_prefix('-').filter(|options| !options.is_empty()) else {
                let program = if arg == "-" { Program::Interactive } else { Program::Script(arg) };
                return Self { program, args: rest };
            };
            if options.starts_with('-') {
                if options == "-check-hash-based-pycs" {
                    rest = rest.get(1..).unwrap_or_default();
                }
                continue;
            }
            for (at, option) in options.char_indices() {
                if !matches!(option, 'c' | 'm' | 'W' | 'X') {
                    continue;
                }
                // The value is the rest of this argument, or the next one.
                let value = match options.get(at + 1..).filter(|value| !value.is_empty()) {
                    Some(value) => Some(value),
                    None => rest.split_first().map(|(value, after)| {
                        rest = after;
                        value.as_str()
                    }),
                };
                match (option, value) {
                    ('c', Some(code)) => return Self { program: Program::Code(code), args: rest },
                    ('m', Some(module)) => return Self { program: Program::Module(module), args: rest },
                    _ => break,
                }
            }
        }
        Self { program: Program::Interactive, args: &[] }
    }

    /// The value of the first of these options that is given: `-A x`, `-Ax`, `--app x` or `--app=x`.
    pub fn option(&self, names: &[&str]) -> Option<&'a str> {
        let mut args = self.args.iter();
        while let Some(arg) = args.next() {
            for name in names {
                let Some(rest) = arg.strip_prefix(name) else { continue };
                if rest.is_empty() {
                    return args.next().map(String::as_str);
                }
                match (name.starts_with("--"), rest.strip_prefix('=')) {
                    (_, Some(value)) => return Some(value),
                    (false, None) => return Some(rest),
                    (true, None) => {}
                }
            }
        }
        None
    }

    /// The arguments that are neither options nor, as far as can be told, the values of options. `flags` are the
    /// options that take no value.
    pub fn positionals(&self, flags: &[&str]) -> impl Iterator<Item = &'a str> {
        let mut value_expected = false;
        self.args.iter().map(String::as_str).filter(move |arg| {
            if arg.starts_with('-') {
                value_expected = !arg.contains('=') && !flags.contains(arg) && !arg.starts_with("--no-");
                return false;
            }
            !std::mem::take(&mut value_expected)
        })
    }
}

/// The last component of a path.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_interpreter(name: &str) -> bool {
    name.strip_prefix("python").is_some_and(|rest| {
        rest.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 't' | 'd' | 'm' | '-' | 'b' | 'g'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn argv(line: &str) -> Vec<String> {
        line.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn programs() {
        for (line, expected, args) in [
            ("python3|app.py|-c|x", Program::Script("app.py"), 2),
            ("/usr/bin/python3.11|-u|/usr/bin/uvicorn|shop:app", Program::Script("/usr/bin/uvicorn"), 1),
            ("python|-m|uvicorn|shop:app", Program::Module("uvicorn"), 1),
            ("python|-um|uvicorn|shop:app", Program::Module("uvicorn"), 1),
            ("python|-muvicorn", Program::Module("uvicorn"), 0),
            ("python|-X|dev|-W|ignore|-Xutf8|-OO|app.py", Program::Script("app.py"), 0),
            ("python|--check-hash-based-pycs|never|app.py", Program::Script("app.py"), 0),
            ("python|-c|print(1)|a", Program::Code("print(1)"), 1),
            ("python3.13t", Program::Interactive, 0),
            ("python|-", Program::Interactive, 0),
            ("python|-c", Program::Interactive, 0),
            ("python|-i", Program::Interactive, 0),
            ("/usr/sbin/uwsgi|--ini|x.ini", Program::Binary("/usr/sbin/uwsgi"), 2),
        ] {
            let argv = argv(line);
            let command = Command::parse(&argv);
            assert_eq!((command.program, command.args.len()), (expected, args), "{line}");
        }
    }

    #[test]
    fn options_and_positionals() {
        let line = argv("flask.py|-Ashop|--port=5|--reload|run|-b|x|last");
        let command = Command { program: Program::Interactive, args: &line[1..] };
        assert_eq!(command.option(&["-A", "--app"]), Some("shop"));
        assert_eq!(command.option(&["--port"]), Some("5"));
        assert_eq!(command.option(&["-b"]), Some("x"));
        assert_eq!(command.option(&["--absent"]), None);
        let line = argv("--port|5|--reload|run|-b|x|last|--no-access-log|more");
        let command = Command { program: Program::Interactive, args: &line };
        assert_eq!(command.positionals(&["--reload"]).collect::<Vec<_>>(), ["run", "last", "more"]);
    }
}
