//! The customary `process_*` metrics, read from `/proc` when asked for.

use std::fmt::Write as _;

/// Kernel clock ticks per second as user space sees them: 100 on every Linux (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Appends the metrics; those that cannot be read are left out.
pub(super) fn render(text: &mut String) {
    let mut put = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key: &str| number_after(&status, key).map(|kib| kib * 1024.0);
    put("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", kib("VmRSS:"));
    put(
        "process_resident_memory_peak_bytes",
        "gauge",
        "Largest resident memory so far in bytes.",
        kib("VmHWM:"),
    );
    put("process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", kib("VmSize:"));
    put("process_threads", "gauge", "Threads.", number_after(&status, "Threads:"));

    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name may hold spaces; the fields after its closing parenthesis do not.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect())
        .unwrap_or_default();
    // utime and stime are fields 14 and 15, starttime is 22, counted from one; the first two and the state are cut off.
    let cpu = fields.get(10).zip(fields.get(11)).map(|(user, system)| (user + system) / TICKS);
    put("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", cpu);
    let boot = std::fs::read_to_string("/proc/stat").ok().and_then(|stat| number_after(&stat, "btime "));
    let start = boot.zip(fields.get(18)).map(|(boot, ticks)| boot + ticks / TICKS);
    put("process_start_time_seconds", "gauge", "Start of the process in Unix seconds.", start);

    let open = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    put("process_open_fds", "gauge", "Open file descriptors.", open);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    put(
        "process_max_fds",
        "gauge",
        "Limit of open file descriptors.",
        number_after(&limits, "Max open files"),
    );
}

fn number_after(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_there() {
        let mut text = String::new();
        render(&mut text);
        for name in [
            "resident_memory_bytes",
            "resident_memory_peak_bytes",
            "virtual_memory_bytes",
            "threads",
            "cpu_seconds_total",
            "start_time_seconds",
            "open_fds",
            "max_fds",
        ] {
            let value = number_after(&text, &format!("process_{name} "));
            assert!(value.is_some_and(|value| value >= 0.0), "{name} in {text}");
        }
        // Some time in this century, which a wrong field would miss by far.
        assert!(
            number_after(&text, "process_start_time_seconds ").is_some_and(|s| s > 9.5e8 && s < 4.1e9),
            "{text}"
        );
    }
}
