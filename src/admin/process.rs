//! What the process takes, under the names that Prometheus' own client libraries use. Linux tells it.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The kernel counts CPU time for others in hundredths of a second, whatever it does inside.
const TICKS_PER_SECOND: f64 = 100.0;
/// The fields of `/proc/self/stat` with the time spent, in the process and for it, counted after the
/// program's name.
const TIMES: [usize; 2] = [11, 12];

/// See the module.
#[derive(Debug)]
pub(super) struct Process {
    started: Gauge<f64, AtomicU64>,
    cpu: Counter<f64, AtomicU64>,
    memory: Gauge,
    files: Gauge,
}

impl Default for Process {
    fn default() -> Self {
        let started = Gauge::default();
        started.set(Timestamp::now().as_duration().as_secs_f64());
        Self {
            started,
            cpu: Counter::default(),
            memory: Gauge::default(),
            files: Gauge::default(),
        }
    }
}

impl Process {
    pub(super) fn register(&self, to: &mut Registry) {
        to.register(
            "process_start_time_seconds",
            "When the worker started",
            self.started.clone(),
        );
        to.register(
            "process_cpu_seconds",
            "CPU time, user and system",
            self.cpu.clone(),
        );
        to.register(
            "process_resident_memory_bytes",
            "Memory that is in use",
            self.memory.clone(),
        );
        to.register(
            "process_open_fds",
            "Open files and connections",
            self.files.clone(),
        );
    }

    /// Looks anew. What cannot be had stays as it was.
    pub(super) fn look(&self) {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}"));
        if let Some(seconds) = read("stat").ok().and_then(|text| cpu_seconds(&text)) {
            self.cpu.inner().store(seconds.to_bits(), Ordering::Relaxed);
        }
        if let Some(bytes) = read("status").ok().and_then(|text| resident_bytes(&text)) {
            self.memory.set(bytes);
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.files
                .set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
    }
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name before may hold anything, a bracket too.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let mut ticks = 0.0;
    for time in TIMES {
        ticks += fields.get(time)?.parse::<f64>().ok()?;
    }
    Some(ticks / TICKS_PER_SECOND)
}

fn resident_bytes(status: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_tells() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 500 0 0 0 250 50 0 0 20 0 9 0 100 1 2";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
        let status = "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  512 kB\n";
        assert_eq!(resident_bytes(status), Some(512 * 1024));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }
}
