//! `cargo xtask bench throughput`: what the tunnel costs a bulk transfer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mobile_tests::{LabOptions, PATIENCE, Services, Testbed, addr, finish_within};
use serde_json::Value;

use super::machine;
use super::stats::Spread;
use crate::shell::step;

/// How long and how often.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs of each measurement; the table shows their median, least and greatest.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds each run takes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// What is measured: a title and iperf3's flags for it.
const SHAPES: [(&str, &[&str]); 3] =
    [("one stream", &[]), ("reverse", &["--reverse"]), ("four streams", &["--parallel", "4"])];

const ROUTES: [&str; 2] = ["direct", "tunnel"];

/// A lab without emulated delay, and iperf3 between the mobile host and the server.
pub(crate) fn run(args: &Args) -> Result<()> {
    let options = LabOptions { delay: Duration::ZERO, ..LabOptions::default() };
    let bed = Testbed::with(&options)?;
    let figures = measure(&bed, args)?;
    bed.finish()?;
    println!("Mbit/s, median of {} runs of {} s (least–greatest)\n", args.runs, args.seconds);
    print!("{}", table(&figures));
    let congestion_control =
        options.congestion_control.unwrap_or_else(|| "the kernel's congestion control".to_owned());
    println!("\n{}; {congestion_control} in every namespace", machine::describe());
    Ok(())
}

/// By route, then by shape: the figure of each run.
fn measure(bed: &Testbed, args: &Args) -> Result<Vec<Vec<Vec<f64>>>> {
    let (lab, agent) = (&bed.lab, &bed.agent);
    let _server = Services::iperf3(&lab.server, lab.dir())?;
    let mut figures = vec![vec![Vec::new(); SHAPES.len()]; ROUTES.len()];
    for run in 1..=args.runs {
        for (shape, (title, flags)) in SHAPES.iter().enumerate() {
            // Both routes one after the other, so that what disturbs the machine disturbs both.
            for (route, name) in ROUTES.iter().enumerate() {
                let mut iperf3 = match *name {
                    "direct" => lab.host.command("iperf3"),
                    _ => agent.run(&["iperf3"]),
                };
                let seconds = args.seconds.to_string();
                iperf3
                    .args(["--json", "--client", &addr::SERVER4.to_string(), "--time", &seconds])
                    .args(*flags);
                let patience = PATIENCE + Duration::from_secs(args.seconds.into());
                let text = finish_within(&mut iperf3, None, patience)?
                    .ok()
                    .with_context(|| format!("iperf3, {name}"))?;
                let figure = received_mbits(&text)?;
                step(&format!("run {run} of {}, {title}, {name}: {figure:.0} Mbit/s", args.runs));
                figures[route][shape].push(figure);
            }
        }
    }
    Ok(figures)
}

/// What arrived, from iperf3's JSON.
pub(super) fn received_mbits(text: &str) -> Result<f64> {
    let json: Value = serde_json::from_str(text).context("iperf3 printed no JSON")?;
    let bits = json.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.with_context(|| {
        format!("iperf3 reports no result: {}", json.get("error").unwrap_or(&Value::Null))
    })? / 1e6)
}

/// As Markdown, for docs/benchmarks.md.
fn table(figures: &[Vec<Vec<f64>>]) -> String {
    let header: Vec<&str> = SHAPES.iter().map(|(title, _)| *title).collect();
    let mut out = format!("| | {} |\n|{}\n", header.join(" | "), " --- |".repeat(SHAPES.len() + 1));
    let spreads: Vec<Vec<Option<Spread>>> =
        figures.iter().map(|route| route.iter().map(|runs| Spread::of(runs)).collect()).collect();
    for (name, row) in ROUTES.iter().zip(&spreads) {
        let cells: Vec<String> =
            row.iter().map(|cell| cell.map_or("–".to_owned(), |cell| cell.to_string())).collect();
        out.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    let ratios = spreads[0].iter().zip(&spreads[1]).map(|pair| match pair {
        (Some(direct), Some(tunnel)) if direct.median > 0.0 => {
            format!("{:.2}", tunnel.median / direct.median)
        }
        _ => "–".to_owned(),
    });
    out.push_str(&format!("| tunnel / direct | {} |\n", ratios.collect::<Vec<_>>().join(" | ")));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_route_and_the_ratio() {
        let figures = vec![vec![vec![100.0, 200.0, 300.0]; 3], vec![vec![50.0]; 3]];
        let table = table(&figures);
        assert!(table.contains("| direct | 200 (100–300) |"), "{table}");
        assert!(table.ends_with("| tunnel / direct | 0.25 | 0.25 | 0.25 |\n"), "{table}");
    }

    #[test]
    fn iperf3_s_own_error_is_told() {
        let error = received_mbits(r#"{"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
        let json = r#"{"end":{"sum_received":{"bits_per_second":2.5e9}}}"#;
        assert!((received_mbits(json).unwrap() - 2500.0).abs() < 1e-9);
    }
}
