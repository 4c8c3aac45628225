//! Are the samples where the CPU time went, with the right names and lines, and are they the right request's?

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{self, Agent};
use pitviper_tests::lab::Lab;
use pitviper_tests::load::Load;
use pitviper_tests::process::{Tree, wait_until};
use pitviper_tests::python::{self, Python};
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::service::{Server, Service, UVICORN, apps};
use pitviper_tests::stacks::{self, Stack};

const LABELS: &[&str] = &["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "debian"];
const HERTZ: f64 = 97.0;

/// A kind of function of `burning.py`, its share of the CPU time, and the name of the frame that calls `spin`, since 3.11
/// (qualified) and before.
const KINDS: &[(&str, u32, &str, &str)] = &[
    ("plain", 8, "plain", "plain"),
    ("lambda", 4, "a_lambda.<locals>.<lambda>", "<lambda>"),
    ("generator", 4, "a_generator.<locals>.generator", "generator"),
    ("comprehension", 4, "a_comprehension.<locals>.<listcomp>", "<listcomp>"),
    ("generator_expression", 4, "a_generator_expression.<locals>.<genexpr>", "<genexpr>"),
    ("method", 4, "Outer.Inner.method", "method"),
    ("class", 4, "a_class.<locals>.Body", "Body"),
    ("größe", 4, "größe", "größe"),
    ("数", 4, "数", "数"),
    ("made", 4, "<module>", "<module>"),
    ("thread", 4, "a_thread.<locals>.in_thread", "in_thread"),
    ("task", 4, "a_task.<locals>.inner", "inner"),
    ("deep", 4, "deep", "deep"),
    ("constructed", 4, "Constructed.__init__", "__init__"),
    ("key", 4, "key_function.<locals>.<lambda>", "<lambda>"),
];

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for &label in LABELS {
        let python =
            move || python::find(label).ok_or_else(|| skip(format!("no Python {label} on this machine")));
        suite = suite
            .case(format!("{label} shares, names and lines"), move |lab| shares(lab, &python()?))
            .case(format!("{label} code that comes and goes"), move |lab| churn(lab, &python()?));
    }
    for label in ["3.8", "3.11", "3.13"] {
        suite = suite.case(format!("{label} as py-spy sees it"), move |lab| {
            let python =
                python::find(label).ok_or_else(|| skip(format!("no Python {label} on this machine")))?;
            compare(lab, &python)
        });
    }
    let asyncio = Server::Uvicorn { event_loop: "asyncio", http: "h11" };
    let gunicorn = |class, threads| Server::Gunicorn { class, workers: 1, threads };
    let services: &[(&str, &'static str, Server, &'static [&'static str])] = &[
        ("uvloop", "burning_fastapi", UVICORN, &["loop", "tasks", "pool", "to_thread"]),
        ("asyncio", "burning_fastapi", asyncio, &["loop", "tasks", "pool", "to_thread"]),
        ("gthread", "burning_flask", gunicorn("gthread", 8), &["turns"]),
        ("gevent", "burning_flask", gunicorn("gevent", 1), &["turns"]),
    ];
    for &(name, app, server, routes) in services {
        suite = suite
            .case(format!("requests, {name}"), move |lab| requests(lab, lab.python(), app, server, routes));
    }
    suite
        .case("requests, 3.8 uvloop", |lab| {
            let python = python::find("3.8").ok_or_else(|| skip("no Python 3.8 on this machine"))?;
            requests(lab, &python, "burning_fastapi", UVICORN, &["loop", "to_thread"])
        })
        .case("requests, 3.13 asyncio", move |lab| {
            let python = python::find("3.13").ok_or_else(|| skip("no Python 3.13 on this machine"))?;
            requests(lab, &python, "burning_fastapi", asyncio, &["tasks", "pool"])
        })
        .case("3.8 C functions", |lab| native(lab, "3.8"))
        .case("3.13 C functions", |lab| native(lab, "3.13"))
        .case("debian C functions", |lab| native(lab, "debian"))
        .case("processes that come and go", come_and_go)
        .case("a killed process", killed)
        .case("a receiver that takes no profiles", unwanted)
        .main()
}

/// Starts a program of `apps/` and waits until it says that it is ready.
fn start(lab: &Lab, python: &Python, program: &str, arguments: &[String]) -> Result<Tree> {
    let mut command = Command::new(&python.executable);
    command.arg(apps().join(program)).args(arguments).env("PYTHONUTF8", "1");
    let tree = Tree::spawn(program, command, &lab.directory().join(format!("{program}.log")))?;
    wait_until("the program runs", Duration::from_secs(20), || {
        (tree.log().contains("ready") || program == "churning.py").then_some(())
    })
    .with_context(|| tree.log())?;
    Ok(tree)
}

/// `pitviper record` of a process; the stacks, and what it said.
fn record(lab: &Lab, pid: u32, duration: &str, options: &[&str]) -> Result<(Vec<Stack>, String)> {
    let folder = lab.directory().join(format!("record-{pid}"));
    let output = folder.display().to_string();
    let pid = pid.to_string();
    let arguments = ["record", "--pid", &pid, "--duration", duration, "-o", &output];
    let finished = agent::run_to_end(&[&arguments, options].concat())?;
    ensure!(finished.status.success(), "pitviper record: {}", finished.stderr);
    let stacks = stacks::read(&folder.join("profile.collapsed"));
    fs::remove_dir_all(&folder)?;
    Ok((stacks?, finished.stderr))
}

/// With `--native` a sample in a library's code names it below the Python function that called it, and below no other.
fn native(lab: &Lab, label: &str) -> Result<String> {
    /// What the function `checksum` is in, and `digest`: names of functions, or of the library where it has no symbol.
    const CALLED: &[(&str, &[&str])] =
        &[("checksum", &["crc32", "[libz"]), ("digest", &["[libcrypto", "SHA", "sha"])];
    let python = python::find(label).ok_or_else(|| skip(format!("no Python {label} on this machine")))?;
    let program = start(lab, &python, "calling_c.py", &[])?;
    let (stacks, _) = record(lab, program.pid(), "5s", &["--native"])?;
    let of = |function: &str| -> Vec<&Stack> {
        let is_leaf = |stack: &&Stack| stack.frames.last().is_some_and(|frame| frame.function == function);
        stacks.iter().filter(is_leaf).collect()
    };
    // The C function is no Python frame: it stands behind them, as a label after that of the service.
    let native = |stack: &Stack| stack.labels.get(1).cloned().unwrap_or_default();
    let count = |stacks: &[&Stack], is: &dyn Fn(&str) -> bool| -> u64 {
        stacks.iter().filter(|stack| is(&native(stack))).map(|stack| stack.count).sum()
    };
    let mut figures = Vec::new();
    for (function, names) in CALLED {
        let stacks = of(function);
        let all = count(&stacks, &|_| true);
        let right = count(&stacks, &|native| names.iter().any(|name| native.starts_with(name)));
        ensure!(
            all >= 20 && right * 10 >= all * 8,
            "{function}: {right} of {all} in its library: {stacks:?}"
        );
        figures.push(format!("{function} {right} of {all}"));
    }
    let pure = of("pure");
    let strange = |native: &str| ["crc32", "libz", "libcrypto"].iter().any(|part| native.contains(part));
    let wrong = count(&pure, &strange);
    ensure!(count(&pure, &|_| true) >= 20 && wrong == 0, "pure Python in a library: {pure:?}");
    Ok(figures.join(", "))
}

/// Every sample is in a kind of function, on its line; and each kind has its share.
fn shares(lab: &Lab, python: &Python) -> Result<String> {
    let version = minor(python)?;
    let arguments: Vec<_> = KINDS.iter().map(|(kind, weight, ..)| format!("{kind}={weight}")).collect();
    let program = start(lab, python, "burning.py", &arguments)?;
    let (stacks, _) = record(lab, program.pid(), "10s", &[])?;
    let source = fs::read_to_string(apps().join("burning.py"))?;
    let file = apps().join("burning.py").display().to_string();
    let line_of = |mark: &str| {
        let found = source.lines().position(|line| line.ends_with(&format!("# {mark}")));
        found.map_or(0, |index| index + 1)
    };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut spinning, mut all) = (0, 0);
    for stack in &stacks {
        all += stack.count;
        let gone = stack.says("[unknown]");
        ensure!(!gone || stack.functions().contains(&"made"), "living code has no name: {stack:?}");
        if gone {
            *counts.entry("made").or_default() += stack.count;
            spinning += stack.count;
            continue;
        }
        let Some(spin) = stack.frames.iter().position(|frame| frame.function == "spin") else { continue };
        ensure!(spin == stack.frames.len() - 1, "`spin` calls nothing: {stack:?}");
        let first = line_of_text(&source, "def spin(weight):");
        ensure!((first..first + 4).contains(&stack.frames[spin].line), "not a line of `spin`: {stack:?}");
        spinning += stack.count;
        let Some(caller) = spin.checked_sub(1).and_then(|index| stack.frames.get(index)) else { continue };
        let kind = KINDS.iter().find(|(kind, _, qualified, name)| {
            let name = match version {
                // PEP 709: comprehensions are inlined.
                12.. if *kind == "comprehension" => "a_comprehension",
                11.. => qualified,
                _ => name,
            };
            let place = if *kind == "made" { ("<made>", 4) } else { (file.as_str(), line_of(kind)) };
            caller.function == name && (caller.file.as_str(), caller.line as usize) == place
        });
        let (kind, ..) =
            kind.with_context(|| format!("no such function or line: {caller:?} in {stack:?}"))?;
        let deep = *kind == "deep";
        ensure!(
            deep == stack.says("[truncated]") || incomplete(stack),
            "not cut where it should be: {stack:?}"
        );
        ensure!(!deep || stack.frames.len() == 128, "{} frames", stack.frames.len());
        let nowhere = stack.frames.iter().find(|frame| frame.line == 0 || frame.file == "__init__");
        ensure!(nowhere.is_none(), "a frame that nobody wrote: {stack:?}");
        *counts.entry(kind).or_default() += stack.count;
    }
    ensure!(spinning * 10 >= all * 8, "only {spinning} of {all} samples are in `spin`");
    ensure!(spinning >= 100, "only {spinning} samples");
    let total: u32 = KINDS.iter().map(|(_, weight, ..)| weight).sum();
    for (kind, weight, ..) in KINDS {
        let share = f64::from(*weight) / f64::from(total);
        let expected = spinning as f64 * share;
        // Five standard deviations of a binomial distribution, and one.
        let bound = 5.0 * (expected * (1.0 - share)).sqrt() + 1.0;
        let count = counts.get(kind).copied().unwrap_or(0) as f64;
        ensure!(
            (count - expected).abs() <= bound,
            "{kind}: {count} samples, expected {expected:.0} ± {bound:.0}"
        );
    }
    Ok(format!("{all} samples"))
}

/// py-spy, which stops the process and reads the same from outside, at the same time: the same stacks in the same shares.
fn compare(lab: &Lab, python: &Python) -> Result<String> {
    let py_spy = lab.python().profiler()?.script("py-spy");
    // Without what one of the two does not show (the end of a deep stack, code that is dropped at once) or counts in another
    // way: for py-spy a thread that waits for its turn is at work.
    let kinds = KINDS.iter().filter(|(kind, ..)| !["deep", "made", "thread"].contains(kind));
    let arguments: Vec<_> = kinds.map(|(kind, weight, ..)| format!("{kind}={weight}")).collect();
    let program = start(lab, python, "burning.py", &arguments)?;
    let file = lab.directory().join("py-spy");
    let mut command = Command::new(py_spy);
    command.args(["record", "--format", "raw", "--full-filenames", "--rate", "97", "--duration", "12"]);
    command.args(["--pid", &program.pid().to_string(), "--output"]).arg(&file);
    let mut theirs = Tree::spawn("py-spy", command, &lab.directory().join("py-spy.log"))?;
    let (ours, _) = record(lab, program.pid(), "10s", &[])?;
    let ended = wait_until("py-spy ends", Duration::from_secs(60), || theirs.ended())?;
    ensure!(ended.success(), "py-spy: {}", theirs.log());
    let theirs = stacks::read(&file)?;
    let (ours, theirs) = (by_path(&ours), by_path(&theirs));
    let total = |paths: &BTreeMap<Path, u64>| paths.values().sum::<u64>() as f64;
    let (our_total, their_total) = (total(&ours), total(&theirs));
    ensure!(our_total >= 100.0 && their_total >= 100.0, "{our_total} samples, py-spy has {their_total}");
    for path in ours.keys().chain(theirs.keys()) {
        let share = |paths: &BTreeMap<Path, u64>, total| paths.get(path).copied().unwrap_or(0) as f64 / total;
        let (our_share, their_share) = (share(&ours, our_total), share(&theirs, their_total));
        let pooled = (our_share * our_total + their_share * their_total) / (our_total + their_total);
        let deviation = (pooled * (1.0 - pooled) * (1.0 / our_total + 1.0 / their_total)).sqrt();
        let bound = 5.0 * deviation + 1.0 / our_total.min(their_total);
        let same = (our_share - their_share).abs() <= bound;
        ensure!(same, "{our_share:.3} of our samples, {their_share:.3} of py-spy's: {path:?}");
    }
    Ok(format!("{our_total} samples, py-spy has {their_total}, on {} paths", ours.len()))
}

/// Names without what qualifies them, which not all profilers show, and lines; outermost first.
type Path = Vec<(String, u32)>;

/// How often `spin` was called on each path.
fn by_path(stacks: &[Stack]) -> BTreeMap<Path, u64> {
    let mut paths = BTreeMap::new();
    for stack in stacks {
        let bare = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let mut path: Path = stack.frames.iter().map(|frame| (bare(&frame.function), frame.line)).collect();
        if path.last().is_some_and(|(name, _)| name == "spin") && !stack.says("[truncated]") {
            path.pop();
            *paths.entry(path).or_default() += stack.count;
        }
    }
    paths
}

/// The sample was taken in the few instructions in which a generator comes or goes, and says so.
fn incomplete(stack: &Stack) -> bool {
    stack.says("[truncated]") && stack.frames.len() < 128
}

fn line_of_text(source: &str, text: &str) -> u32 {
    let found = source.lines().position(|line| line == text).map_or(0, |index| index + 1);
    u32::try_from(found).unwrap_or(0)
}

fn minor(python: &Python) -> Result<u32> {
    let output =
        Command::new(&python.executable).args(["-c", "import sys; print(sys.version_info[1])"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// A frame of a code object that is gone has no name; that of another one at its address would be false.
fn churn(lab: &Lab, python: &Python) -> Result<String> {
    let program = start(lab, python, "churning.py", &[])?;
    let (stacks, said) = record(lab, program.pid(), "6s", &[])?;
    let (mut named, mut unknown, mut all, mut weight) = (0, 0, 0, 0);
    for stack in &stacks {
        all += stack.count;
        let mut numbers = Vec::new();
        for frame in &stack.frames {
            let Some((role, number)) = frame.function.split_once('_') else { continue };
            let number: u32 = number.parse().with_context(|| format!("{stack:?}"))?;
            let line = number % 40 + if role == "outer" { 1 } else { 2 };
            let right = frame.file == format!("<made {number}>") && frame.line == line;
            ensure!(right, "false: {frame:?} in {stack:?}");
            numbers.push(number);
        }
        ensure!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "mixed up: {stack:?}");
        if let Some(number) = numbers.first() {
            named += stack.count;
            weight += stack.count * u64::from(number % 17);
        }
        unknown += stack.count * u64::from(stack.says("[unknown]"));
    }
    ensure!(all >= 50, "{all} samples: {said}");
    // Most of the code is gone before it can be read, and then its samples must say that they do not know it.
    ensure!(named + unknown >= all / 2, "{named} samples with names and {unknown} unknown, of {all}: {said}");
    if named == 0 {
        return Ok(format!("{all} samples, {unknown} with unknown frames, none with a name"));
    }
    // By the CPU time that they take the mean of N % 17 is 11; by chance, as it would be if the names were those of whatever
    // is there later, it is 8. The standard deviation of one sample is 4.
    let mean = weight as f64 / named as f64;
    ensure!(mean > 11.0 - 5.0 * 4.0 / (named as f64).sqrt(), "the mean of {named} samples is {mean:.1}");
    Ok(format!(
        "{all} samples, {named} with the names of passing code (mean {mean:.1} of 11), {unknown} with unknown frames"
    ))
}

/// Each request burns CPU time in a function of its own: all of its samples are its own, and none is anybody else's.
fn requests(lab: &Lab, python: &Python, app: &str, server: Server, routes: &[&str]) -> Result<String> {
    const REQUESTS: u64 = 48;
    let service = Service::start(lab, python, app, server)?;
    let file = lab.directory().join(format!("samples-{}", service.port()));
    let collector = lab.collector()?;
    let path = file.display().to_string();
    let agent = Agent::start(&["--pid", &service.pid().to_string(), "--samples", &path], collector)?;
    let load = Load::new(service.port());
    let mut next = 1;
    for route in routes {
        load.run(route, next..next + REQUESTS).with_context(|| service.log())?;
        next += REQUESTS;
    }
    if app == "burning_fastapi" {
        load.run("idle", next..next + REQUESTS)?;
    }
    let (finished, spans) = agent.finish(collector)?;
    let stacks = stacks::read(&file)?;
    fs::remove_file(&file)?;

    let mut profiled: BTreeMap<String, u64> = BTreeMap::new();
    let (mut right, mut lost) = (0, 0);
    for stack in &stacks {
        let link = stack.labels.iter().find_map(|label| label.split_once(':'));
        if let Some((_, span)) = link {
            *profiled.entry(span.to_owned()).or_default() += stack.count;
        }
        let burning = stack.frames.iter().find_map(|frame| frame.function.strip_prefix("burn_"));
        let Some(number) = burning else { continue };
        let Some((trace, span)) = link else {
            lost += stack.count;
            continue;
        };
        let request = spans.iter().find(|served| {
            served.is_server() && served.attribute("url.path").rsplit('/').next() == Some(number)
        });
        let request = request.with_context(|| format!("request {number} has no span"))?;
        let own = request.trace_id == trace && request.span_id == span;
        ensure!(own, "a sample of request {number} is another one's: {stack:?}\n{}", request.line());
        right += stack.count;
    }
    let (mut with_profile, mut late) = (0, 0);
    for span in &spans {
        let named = span.attribute("pyroscope.profile.id");
        ensure!(named.is_empty() || named == span.span_id, "{}: {named}", span.line());
        let has_samples = profiled.contains_key(&span.span_id);
        ensure!(has_samples || named.is_empty(), "{} names a profile without samples", span.line());
        with_profile += u64::from(!named.is_empty());
        late += u64::from(has_samples && named.is_empty());
    }
    // Whose a worker thread's samples are is known when its work has ended, which may be seen after the span has left.
    ensure!(late * 20 <= with_profile, "{late} spans left before their samples, {with_profile} named them");
    // 80 ms of CPU time each.
    let expected = (routes.len() as u64 * REQUESTS) as f64 * 0.08 * HERTZ;
    let all = (right + lost) as f64;
    ensure!((0.7 * expected..1.3 * expected).contains(&all), "{all} samples, expected {expected:.0}");
    ensure!(lost * 100 <= right, "{lost} samples without a request, {right} with: {}", finished.stderr);
    Ok(format!(
        "{right} samples at their request, {lost} without; {with_profile} spans with a profile, {late} too early"
    ))
}

/// Children that burn a moment and end, some killed: nothing breaks, and what has a name has the right one.
fn come_and_go(lab: &Lab) -> Result<String> {
    let program = start(lab, lab.python(), "forking.py", &[])?;
    let (stacks, said) = record(lab, program.pid(), "5s", &[])?;
    let work = stacks.iter().filter(|stack| stack.functions().contains(&"child_work"));
    let work: u64 = work.map(|stack| stack.count).sum();
    for frame in stacks.iter().flat_map(|stack| &stack.frames) {
        let known = ["<module>", "main", "child_work"].contains(&frame.function.as_str());
        ensure!(known || !frame.file.ends_with("forking.py"), "no such function: {frame:?}");
    }
    ensure!(work >= 20, "{work} samples of children: {said}");
    Ok(format!("{work} samples of children"))
}

/// What was taken before the end is kept.
fn killed(lab: &Lab) -> Result<String> {
    let mut program = start(lab, lab.python(), "burning.py", &["plain=4".to_owned()])?;
    let file = lab.directory().join("killed");
    let arguments = ["--pid", &program.pid().to_string(), "--samples", &file.display().to_string()];
    let mut agent = Agent::start_with(&arguments, &[("OTEL_SDK_DISABLED", "true".to_owned())])?;
    std::thread::sleep(Duration::from_secs(4));
    program.stop(libc::SIGKILL, Duration::from_secs(5));
    let finished = agent.wait(Duration::from_secs(20))?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    let stacks = stacks::read(&file)?;
    let plain = stacks.iter().filter(|stack| stack.functions().ends_with(&["plain", "spin"]));
    let plain: u64 = plain.map(|stack| stack.count).sum();
    let count: u64 = stacks.iter().map(|stack| stack.count).sum();
    ensure!(plain >= 20 && plain * 10 >= count * 8, "{plain} of {count} samples: {}", finished.stderr);
    Ok(format!("{count} samples"))
}

/// When that has shown, no samples are taken, and no span names a profile that nobody has.
fn unwanted(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "burning_fastapi", UVICORN)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let load = Load::new(service.port());
    let mut sent = 0;
    wait_until("the receiver refuses profiles", Duration::from_secs(60), || {
        sent += 4;
        // Whether these have answers shows below.
        let _ = load.run("loop", sent - 4..sent);
        agent.stderr().contains("takes no profiles").then_some(())
    })?;
    std::thread::sleep(Duration::from_millis(500));
    let late = load.run("loop", 1000..1016)?;
    let (_, spans) = agent.finish(collector)?;
    let named = |late: bool| {
        let of_time = |path: &str| path.rsplit('/').next().is_some_and(|n| n.len() == 4) == late;
        let servers = spans.iter().filter(|span| span.is_server());
        let servers = servers.filter(|span| of_time(span.attribute("url.path")));
        let all = servers.clone().count();
        (all, servers.filter(|span| !span.attribute("pyroscope.profile.id").is_empty()).count())
    };
    let (before, after) = (named(false), named(true));
    ensure!(before.1 > 0, "none of {} spans names a profile", before.0);
    ensure!(after == (late.len(), 0), "{} of {} spans name a profile that nobody has", after.1, after.0);
    Ok(format!("{} of {} spans before, none of {} after", before.1, before.0, after.0))
}
