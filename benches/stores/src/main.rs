//! Which embedded engine suits the worker's ledger: SQLite in several layouts, redb and
//! fjall under the load that one-order commands make.
//!
//! `bench-stores [--orders N] [--window N] [--kills N] [--dir DIR] ENGINE[,setting=value]…`
//! runs one engine after the other and prints one table. `ENGINE` is one of [`ENGINES`];
//! the settings are those of [`Tune`].

mod engines;
mod load;
mod measure;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engines::fjall::Fjall;
use engines::redb::Redb;
use engines::sqlite::{HASH, MOVE, NEAR, Sqlite, TEXT};
use engines::{Result, Store, Tune};

const ENGINES: [&str; 6] = [
    "sqlite-text",
    "sqlite-hash",
    "sqlite-move",
    "sqlite-near",
    "redb",
    "fjall",
];

/// Column heads, and the figures that each shows.
const COLUMNS: [(&str, &[&str]); 14] = [
    ("4 KiB sync ms", &["sync_ms"]),
    ("orders/s empty", &["empty_rate"]),
    (
        "full: 250 / 100 / 20",
        &["g250_rate", "g100_rate", "g20_rate"],
    ),
    (
        "commit ms p50/p99/max (250)",
        &["g250_p50", "g250_p99", "g250_max"],
    ),
    ("p50/p99 (20)", &["g20_p50", "g20_p99"]),
    ("CPU µs/order 250 / 20", &["g250_cpu", "g20_cpu"]),
    ("KB written/order 250 / 20", &["g250_kb", "g20_kb"]),
    ("peak MB", &["rss_mb"]),
    ("look-ups/s 5% / all hits", &["mixed_gets", "hits_gets"]),
    ("expiry rows/s", &["expire_rate"]),
    ("step p50/max ms", &["expire_p50", "expire_max"]),
    ("longest commit meanwhile", &["expire_commit_max"]),
    ("reopen ms, lost", &["reopen_ms", "lost"]),
    ("bytes/order", &["file_bytes"]),
];

struct Options {
    orders: u64,
    window: u64,
    kills: u32,
    dir: PathBuf,
    engines: Vec<String>,
    /// Set in a process that runs one phase: its name, and two numbers of its own.
    phase: Option<(String, u64, u64)>,
}

fn main() -> Result<()> {
    let options = options()?;
    if let Some((phase, from, to)) = &options.phase {
        return run_phase(&options, phase, *from, *to);
    }
    let mut table = Vec::new();
    for engine in &options.engines {
        let figures = run_engine(&options, engine)?;
        eprintln!("{engine} {figures:?}");
        table.push((engine, figures));
    }
    println!(
        "{} orders, windows of {}, caches bounded alike:\n",
        options.orders, options.window
    );
    let heads = COLUMNS.map(|(head, _)| head).join(" | ");
    println!(
        "| engine | {heads} |\n|{}",
        "---|".repeat(COLUMNS.len() + 1)
    );
    for (engine, figures) in table {
        let cells = COLUMNS.map(|(_, names)| {
            let shown = names
                .iter()
                .map(|&name| figures.get(name).map_or("-", String::as_str));
            shown.collect::<Vec<_>>().join(" / ")
        });
        println!("| {engine} | {} |", cells.join(" | "));
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options {
        orders: 2_000_000,
        window: 100_000,
        kills: 4,
        dir: std::env::temp_dir().join("bench-stores"),
        engines: Vec::new(),
        phase: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg}: a value is missing"));
        match arg.as_str() {
            "--orders" => options.orders = value()?.replace('_', "").parse()?,
            "--window" => options.window = value()?.replace('_', "").parse()?,
            "--kills" => options.kills = value()?.parse()?,
            "--dir" => options.dir = value()?.into(),
            "--phase" => options.phase = Some((value()?, value()?.parse()?, value()?.parse()?)),
            flag if flag.starts_with('-') => return Err(format!("{flag}: no such option").into()),
            engine => options.engines.push(engine.to_owned()),
        }
    }
    if options.engines.is_empty() {
        options.engines = ENGINES.map(str::to_owned).to_vec();
    }
    for engine in &options.engines {
        let name = engine.split(',').next().unwrap_or_default();
        if !ENGINES.contains(&name) {
            return Err(format!("{name}: the engines are {ENGINES:?}").into());
        }
    }
    Ok(options)
}

/// Runs one engine through all phases in an empty directory, which is removed afterwards.
fn run_engine(options: &Options, engine: &str) -> Result<BTreeMap<String, String>> {
    let dir = options.dir.join("store");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    let mut figures = BTreeMap::new();
    for phase in ["fill", "full"] {
        // What the phase before left in the page cache is not this one's to write.
        Command::new("sync").status()?;
        let output = phase_command(options, &dir, engine, phase, 0, 0)?
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("{engine}: {phase} failed: {}", output.status).into());
        }
        collect(&mut figures, &String::from_utf8(output.stdout)?);
    }
    let (mut slowest, mut lost) = (0.0_f64, 0_u64);
    for kill in 0..options.kills {
        // Far beyond the orders of the phases, and of the kill before.
        let from = options.orders * 2 + u64::from(kill) * 1_000_000;
        let acknowledged = kill_mid_write(options, &dir, engine, from, kill)?;
        let output =
            phase_command(options, &dir, engine, "reopen", from, acknowledged)?.output()?;
        let mut answer = BTreeMap::new();
        collect(&mut answer, &String::from_utf8(output.stdout)?);
        let figure = |name| {
            answer
                .get(name)
                .ok_or(format!("{engine}: did not reopen after a kill"))
        };
        slowest = slowest.max(figure("reopen_ms")?.parse()?);
        lost += figure("lost")?.parse::<u64>()?;
    }
    figures.insert("reopen_ms".to_owned(), format!("{slowest:.0}"));
    figures.insert("lost".to_owned(), lost.to_string());
    std::fs::remove_dir_all(&dir)?;
    Ok(figures)
}

/// Returns up to which order the killed process had acknowledged.
fn kill_mid_write(
    options: &Options,
    dir: &Path,
    engine: &str,
    from: u64,
    kill: u32,
) -> Result<u64> {
    let mut child = phase_command(options, dir, engine, "write", from, 0)?
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    // The times differ, so that the kills do not all meet the same moment of a commit.
    let until = Instant::now()
        + Duration::from_millis(1500)
        + Duration::from_micros(u64::from(kill) * 333_337);
    let mut acknowledged = from;
    let mut alive = true;
    for line in lines {
        acknowledged = line?.parse()?;
        if alive && Instant::now() > until {
            child.kill()?;
            alive = false;
        }
    }
    child.wait()?;
    Ok(acknowledged)
}

fn phase_command(
    options: &Options,
    dir: &Path,
    engine: &str,
    phase: &str,
    from: u64,
    to: u64,
) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "--orders",
        &options.orders.to_string(),
        "--window",
        &options.window.to_string(),
    ]);
    command.arg("--dir").arg(dir);
    command.args(["--phase", phase, &from.to_string(), &to.to_string(), engine]);
    Ok(command)
}

fn collect(figures: &mut BTreeMap<String, String>, lines: &str) {
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    figures.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

fn run_phase(options: &Options, phase: &str, from: u64, to: u64) -> Result<()> {
    let (engine, settings) = options.engines[0]
        .split_once(',')
        .unwrap_or((&options.engines[0], ""));
    let tune = Tune::parse(settings)?;
    match engine {
        "sqlite-text" => run::<Sqlite<TEXT>>(options, &tune, phase, from, to),
        "sqlite-hash" => run::<Sqlite<HASH>>(options, &tune, phase, from, to),
        "sqlite-move" => run::<Sqlite<MOVE>>(options, &tune, phase, from, to),
        "sqlite-near" => run::<Sqlite<NEAR>>(options, &tune, phase, from, to),
        "redb" => run::<Redb>(options, &tune, phase, from, to),
        _ => run::<Fjall>(options, &tune, phase, from, to),
    }
}

fn run<S: Store>(options: &Options, tune: &Tune, phase: &str, from: u64, to: u64) -> Result<()> {
    let dir = &options.dir;
    match phase {
        "fill" => measure::fill::<S>(dir, tune, options.orders, options.window),
        "full" => measure::full::<S>(dir, tune, options.orders, options.window),
        "write" => measure::write_until_killed::<S>(dir, tune, from),
        "reopen" => measure::reopen::<S>(dir, tune, from, to),
        _ => Err(format!("{phase}: no such phase").into()),
    }
}
