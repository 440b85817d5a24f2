//! The phases. Each runs in a process of its own, so that peak memory, CPU time and
//! bytes written belong to it alone, and answers with `name=value` lines.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::engines::{Result, Store, Tune};
use crate::load::{Order, since};

/// One look-up in twenty asks for an order of the past; the others find nothing.
const HIT_EVERY: u64 = 20;

/// Orders in one commit of the relaxed fill.
const FILL_GROUP: u64 = 5_000;

/// Fills an empty store: the first orders as the worker would, measured, and the rest
/// without durability.
pub fn fill<S: Store>(dir: &Path, tune: &Tune, orders: u64, window: u64) -> Result<()> {
    let mut store = S::open(dir, tune)?;
    let first = window.min(orders);
    Window::run(&mut store, 0..first, 250)?.print("empty");
    let begun = Instant::now();
    store.relax(true)?;
    for from in (first..orders).step_by(FILL_GROUP as usize) {
        let group = group(from, (from + FILL_GROUP).min(orders));
        store.sent(&group)?;
        store.settled(&group)?;
    }
    store.relax(false)?;
    // One durable commit, so that the measured windows do not pay for the fill's writes.
    store.expire(0, 1)?;
    println!("fill_s={:.0}", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Measures a store that holds `orders` orders.
pub fn full<S: Store>(dir: &Path, tune: &Tune, orders: u64, window: u64) -> Result<()> {
    println!("file_bytes={}", size(dir)? / orders);
    println!("sync_ms={:.2}", sync_ms(dir)?);
    let mut store = S::open(dir, tune)?;
    let mut next = orders;
    for (size, share) in [(250, 1), (100, 2), (20, 10)] {
        let count = window / share / size * size;
        Window::run(&mut store, next..next + count, size)?.print(&format!("g{size}"));
        next += count;
    }
    println!("rss_mb={:.0}", peak_rss_mb()?);
    look_ups(&mut store, next)?;
    expire(&mut store, next, window / 2)?;
    println!("rss_all_mb={:.0}", peak_rss_mb()?);
    Ok(())
}

/// Writes groups until it is killed, and names each order that was acknowledged.
pub fn write_until_killed<S: Store>(dir: &Path, tune: &Tune, from: u64) -> Result<()> {
    let mut store = S::open(dir, tune)?;
    let mut out = std::io::stdout().lock();
    for from in (from..).step_by(100) {
        let group = group(from, from + 100);
        store.sent(&group)?;
        store.settled(&group)?;
        writeln!(out, "{}", from + 100)?;
        out.flush()?;
    }
    Ok(())
}

/// Opens a store after a kill, and looks for the orders that were acknowledged.
pub fn reopen<S: Store>(dir: &Path, tune: &Tune, from: u64, acknowledged: u64) -> Result<()> {
    let begun = Instant::now();
    let mut store = S::open(dir, tune)?;
    store.look_up(&group(from, from + 1))?;
    println!("reopen_ms={:.1}", begun.elapsed().as_secs_f64() * 1e3);
    let all = group(from, acknowledged);
    println!("lost={}", all.len() * 2 - store.look_up(&all)?);
    Ok(())
}

fn group(from: u64, to: u64) -> Vec<Order> {
    (from..to).map(Order::new).collect()
}

/// What one stretch of the worker's load cost.
struct Window {
    orders: u64,
    took: Duration,
    cpu: Duration,
    written: u64,
    /// Of each commit, A or B, in order of length.
    commits: Vec<Duration>,
}

impl Window {
    fn run<S: Store>(store: &mut S, range: std::ops::Range<u64>, size: u64) -> Result<Window> {
        // The load is made beforehand: its cost is not the engine's. Chunks bound the memory.
        let mut window = Window {
            orders: 0,
            took: Duration::ZERO,
            cpu: Duration::ZERO,
            written: 0,
            commits: Vec::new(),
        };
        let mut random = fastrand::Rng::with_seed(7);
        let written = written()?;
        for from in range.clone().step_by(5_000) {
            let to = (from + 5_000).min(range.end);
            let orders = group(from, to);
            let probes = (from..to)
                .map(|index| {
                    if random.u64(..HIT_EVERY) == 0 && from > 0 {
                        random.u64(..from)
                    } else {
                        index
                    }
                })
                .map(Order::new)
                .collect::<Vec<_>>();
            let (begun, cpu) = (Instant::now(), cpu()?);
            for (orders, probes) in orders
                .chunks(size as usize)
                .zip(probes.chunks(size as usize))
            {
                store.look_up(probes)?;
                for commit in [S::sent, S::settled] {
                    let begun = Instant::now();
                    commit(store, orders)?;
                    window.commits.push(begun.elapsed());
                }
            }
            window.took += begun.elapsed();
            window.cpu += self::cpu()? - cpu;
            window.orders += to - from;
        }
        window.written = self::written()? - written;
        window.commits.sort_unstable();
        Ok(window)
    }

    fn print(&self, name: &str) {
        println!(
            "{name}_rate={:.0}",
            self.orders as f64 / self.took.as_secs_f64()
        );
        println!("{name}_p50={:.1}", quantile(&self.commits, 0.5));
        println!("{name}_p99={:.1}", quantile(&self.commits, 0.99));
        println!("{name}_max={:.0}", quantile(&self.commits, 1.0));
        println!(
            "{name}_cpu={:.1}",
            self.cpu.as_secs_f64() * 1e6 / self.orders as f64
        );
        println!(
            "{name}_kb={:.1}",
            self.written as f64 / 1024.0 / self.orders as f64
        );
    }
}

fn look_ups<S: Store>(store: &mut S, orders: u64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(9);
    for (name, hits) in [("mixed", 1), ("hits", HIT_EVERY)] {
        let probes = (0..100_000)
            .map(|i| {
                if random.u64(..HIT_EVERY) < hits {
                    random.u64(..orders)
                } else {
                    orders + i
                }
            })
            .map(Order::new)
            .collect::<Vec<_>>();
        let begun = Instant::now();
        let mut found = 0;
        for probes in probes.chunks(100) {
            found += store.look_up(probes)?;
        }
        let rate = 2.0 * probes.len() as f64 / begun.elapsed().as_secs_f64();
        println!("{name}_gets={rate:.0}");
        println!("{name}_found={found}");
    }
    Ok(())
}

/// Expires the oldest orders, 500 rows a step, one step after each group that is written.
fn expire<S: Store>(store: &mut S, mut next: u64, count: u64) -> Result<()> {
    let (mut steps, mut commits, mut rows) = (Vec::new(), Vec::new(), 0);
    loop {
        let orders = group(next, next + 250);
        next += 250;
        for commit in [S::sent, S::settled] {
            let begun = Instant::now();
            commit(store, &orders)?;
            commits.push(begun.elapsed());
        }
        let begun = Instant::now();
        let gone = store.expire(since(count), 250)?;
        steps.push(begun.elapsed());
        rows += gone;
        if gone == 0 {
            break;
        }
    }
    let took = steps.iter().sum::<Duration>().as_secs_f64();
    steps.sort_unstable();
    commits.sort_unstable();
    println!("expired={rows}");
    println!("expire_rate={:.0}", rows as f64 / took);
    println!("expire_p50={:.1}", quantile(&steps, 0.5));
    println!("expire_max={:.0}", quantile(&steps, 1.0));
    println!("expire_commit_max={:.0}", quantile(&commits, 1.0));
    Ok(())
}

/// In milliseconds.
fn quantile(sorted: &[Duration], at: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * at) as usize].as_secs_f64() * 1e3
}

fn peak_rss_mb() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .ok_or("no VmHWM")?;
    let kib = line
        .split_whitespace()
        .nth(1)
        .ok_or("no figure")?
        .parse::<f64>()?;
    Ok(kib / 1024.0)
}

/// Bytes that this process caused to be sent to the disk.
fn written() -> Result<u64> {
    let io = fs::read_to_string("/proc/self/io")?;
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))
        .ok_or("no write_bytes")?;
    Ok(line.parse()?)
}

/// User and system time of all threads, in the kernel's ticks of 10 ms.
fn cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name in the second field may hold spaces; what follows its bracket may not.
    let rest = stat.rsplit_once(')').ok_or("no name")?.1;
    let mut fields = rest.split_whitespace().skip(11);
    let mut tick = || -> Result<u64> { Ok(fields.next().ok_or("short")?.parse()?) };
    Ok(Duration::from_millis((tick()? + tick()?) * 10))
}

/// The median of a small durable append: what the disk itself takes at this moment, for
/// on a shared machine it may differ tenfold from one engine's turn to the next.
fn sync_ms(dir: &Path) -> Result<f64> {
    let path = dir.join("probe");
    let mut file = fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(quantile(&times, 0.5))
}

fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() {
            size(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(sum)
}
