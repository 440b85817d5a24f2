//! What a process has taken so far, by the kernel's count.

/// `_SC_CLK_TCK` of every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of a process, in seconds.
pub fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may hold anything; what follows its last parenthesis are numbers.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: f64 = fields[11..13]
        .iter()
        .map(|t| t.parse::<f64>().unwrap())
        .sum();
    ticks / TICKS_PER_SECOND
}

/// The most memory that a process has held, in MiB.
pub fn peak_mib(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.unwrap().parse::<f64>().unwrap() / 1024.0
}
