//! A job's processes, as the keeper sees them from outside.

use std::fs;

use crate::sys;

/// Memory that a process and its descendants occupy, swapped out or not: a process may ask for that itself.
pub fn occupied_bytes(pid: libc::pid_t) -> u64 {
    let mut all = descendants(pid);
    all.push(pid);
    let status = |pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    all.iter().map(|pid| occupied_in(&status(pid))).sum()
}

/// What the text of `/proc/PID/status` says that the process occupies, in bytes.
fn occupied_in(status: &str) -> u64 {
    let sizes = status.lines().filter_map(|line| {
        let size = line.strip_prefix("VmRSS:").or_else(|| line.strip_prefix("VmSwap:"))?;
        size.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    sizes.sum::<u64>() * 1024
}

/// Children, their children and so on.
pub fn descendants(pid: libc::pid_t) -> Vec<libc::pid_t> {
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = text.split_whitespace().filter_map(|word| word.parse().ok());
            for child in children {
                if !found.contains(&child) {
                    found.push(child);
                    parents.push(child);
                }
            }
        }
    }
    found
}

/// What a process and its descendants do.
pub struct Activity {
    /// Whether a thread of one of them computes, or would if it got a processor. One that waits for anything
    /// else doesn't, even where the kernel lets no signal end the wait: so waits the parent of a `vfork`.
    pub is_running: bool,
    /// Processor time of all of them, and of those that were waited for.
    pub cpu_ms: u64,
}

/// What a process and its descendants do.
pub fn activity(pid: libc::pid_t) -> Activity {
    let mut all = descendants(pid);
    all.push(pid);
    let mut activity = Activity { is_running: false, cpu_ms: 0 };
    for pid in all {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let (_, ticks) = state_and_ticks(&text);
        activity.is_running |= has_running_thread(pid);
        activity.cpu_ms += ticks * 1000 / sys::ticks_per_s();
    }
    activity
}

fn has_running_thread(pid: libc::pid_t) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        state_and_ticks(&text).0 == "R"
    })
}

/// The state of a line of `/proc/PID/stat`, and its processor time with that of children waited for.
fn state_and_ticks(stat: &str) -> (&str, u64) {
    // The name before it may hold anything, parentheses too.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut words = rest.split(' ');
    let state = words.next().unwrap_or("");
    let ticks = words.skip(10).take(4).filter_map(|word| word.parse::<u64>().ok()).sum();
    (state, ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swapped_out_is_occupied() {
        let status = "Name:\tVmRSS\nVmPeak:\t    9000 kB\nVmRSS:\t    3000 kB\nRssAnon:\t    2000 kB\n\
            VmSwap:\t     500 kB\nThreads:\t1\n";
        assert_eq!(occupied_in(status), 3500 * 1024);
        assert_eq!(occupied_in("Name:\tended\n"), 0);
    }

    #[test]
    fn a_name_with_a_parenthesis_does_not_mislead() {
        let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 100 0 0 0 11 12 13 14 20 0 1 0 5";
        assert_eq!(state_and_ticks(stat), ("S", 50));
    }
}
