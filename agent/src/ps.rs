//! `pitviper ps`: the Python processes of this machine, and what the daemons that trace some of them have to say.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use crate::cli::Ps;
use crate::process::ps::{self, Row};
use crate::telemetry::{Report, socket};

/// Prints the listing on standard output.
pub fn ps(options: &Ps) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context("failed to start tokio")?;
    let (reports, failures) = runtime.block_on(socket::ask_all());
    for failure in failures {
        eprintln!("pitviper: warning: {failure}");
    }
    let rows = ps::list();
    let mut stdout = io::stdout().lock();
    let written = if options.json {
        serde_json::to_writer_pretty(&mut stdout, &document(&rows, &reports))
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
    } else {
        ps::render(&annotated(rows, &reports), &mut stdout)
    };
    match written {
        // A reader that has gone away, such as `head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The rows with a note for each daemon that traces the process.
fn annotated(mut rows: Vec<Row>, reports: &[Report]) -> Vec<Row> {
    for row in &mut rows {
        for report in reports {
            for process in report.processes.iter().filter(|process| process.pid == row.pid) {
                let mut lines = process.lines().into_iter();
                row.notes.extend(lines.next().map(|first| format!("traced by {}: {first}", report.daemon)));
                // Where the listing cannot know why, the daemon may.
                row.notes.extend(process.why.clone().filter(|why| row.why.as_ref() != Some(why)));
                row.notes.extend(lines);
            }
        }
    }
    rows
}

/// All of it for programs. The `format` is that of the daemons' reports, whose fields stand under `traced_by`.
fn document(rows: &[Row], reports: &[Report]) -> Value {
    let traced_by = |pid: u32| -> Vec<Value> {
        let of = |report: &Report| {
            let process = report.processes.iter().find(|process| process.pid == pid)?;
            Some(json!({ "daemon": report.daemon, "version": report.version, "report": process }))
        };
        reports.iter().filter_map(of).collect()
    };
    let processes: Vec<Value> = rows
        .iter()
        .map(|Row { pid, version, interpreter, server, service, tier, why, notes }| {
            json!({
                "pid": pid,
                "service": service,
                "server": server.map(|server| server.to_string()),
                "python": version.map(|version| version.to_string()),
                "interpreter": interpreter.as_ref().map(|path| path.to_string_lossy()),
                "tier": tier.to_string(),
                "why": why,
                "notes": notes,
                "traced_by": traced_by(*pid),
            })
        })
        .collect();
    let daemons: Vec<Value> = reports
        .iter()
        .map(|Report { format, daemon, version, processes: _, lost, connections, unsampled }| {
            json!({
                "format": format,
                "pid": daemon,
                "version": version,
                "lost": lost,
                "connections": connections,
                "unsampled": unsampled,
            })
        })
        .collect();
    json!({ "format": crate::telemetry::report::FORMAT, "processes": processes, "daemons": daemons })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ps::Tier;
    use crate::telemetry::ProcessReport;

    fn row(pid: u32) -> Row {
        Row {
            pid,
            version: None,
            interpreter: None,
            server: None,
            service: "shop".to_owned(),
            tier: Tier::Full,
            why: None,
            notes: Vec::new(),
        }
    }

    fn report(daemon: u32, pid: u32) -> Report {
        let process = ProcessReport { pid, gaps: 2, ..ProcessReport::default() };
        Report { processes: vec![process], ..Report::new(daemon) }
    }

    #[test]
    fn daemons_are_merged_into_the_rows_of_their_processes() {
        let rows = annotated(vec![row(7), row(8)], &[report(100, 8), report(200, 8), report(300, 9)]);
        assert_eq!(rows[0].notes, Vec::<String>::new());
        assert_eq!(
            rows[1].notes,
            [
                "traced by 100: 0 edges; 0 orphans; 0 conflicts",
                "missing: 2 times bytes of a connection were lost",
                "traced by 200: 0 edges; 0 orphans; 0 conflicts",
                "missing: 2 times bytes of a connection were lost",
            ]
        );
    }

    #[test]
    fn programs_get_the_same() {
        let document = document(&[row(7), row(8)], &[report(100, 8)]);
        assert_eq!(document["processes"][0]["traced_by"], json!([]));
        assert_eq!(document["processes"][1]["traced_by"][0]["daemon"], 100);
        assert_eq!(document["processes"][1]["traced_by"][0]["report"]["gaps"], 2);
        assert_eq!(document["daemons"][0]["pid"], 100);
    }
}
