//! What a process has taken so far, by the kernel's count.

/// `_SC_CLK_TCK` of every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of a process, in seconds.
pub fn cpu_seconds(pid: i32) -> f64 {
    stat(pid).unwrap().cpu
}

struct Stat {
    parent: i32,
    cpu: f64,
    /// Of the children that have ended.
    ended: f64,
}

/// `None` when there is no such process.
fn stat(pid: i32) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; what follows its last parenthesis are numbers.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    let seconds = |n: usize| fields[n].parse::<f64>().unwrap() / TICKS_PER_SECOND;
    Some(Stat {
        parent: fields[1].parse().unwrap(),
        cpu: seconds(11) + seconds(12),
        ended: seconds(13) + seconds(14),
    })
}

/// The same of a process and of all that it has started, those that have ended too.
pub fn cpu_seconds_of_all(pid: i32) -> f64 {
    let own = stat(pid).unwrap();
    let running: f64 = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| stat(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(|child| child.parent == pid)
        .map(|child| child.cpu)
        .sum();
    own.cpu + own.ended + running
}

/// The most memory that a process has held, in MiB.
pub fn peak_mib(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.unwrap().parse::<f64>().unwrap() / 1024.0
}
