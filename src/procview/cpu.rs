//! stat, cpuinfo, uptime, loadavg and the lists of CPUs in /sys.

use super::statistics::{Cpu, Statistics, Usage};

/// `USER_HZ`: the unit of time in /proc/stat, the same on every architecture that we run on; time(7).
const HZ: f64 = 100.0;

/// /proc/stat: the lines of the CPUs that are seen, with the sandbox's time; its start as the boot time; its own tasks.
pub(super) fn stat(statistics: &Statistics, host: &str) -> String {
    let Some(cpu) = &statistics.cpu else { return host.to_owned() };
    let mut out = String::with_capacity(host.len());
    for line in host.lines() {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = name.strip_prefix("cpu").map(str::parse::<u32>);
        let line = match (name, number) {
            ("cpu", _) => cpu.usage.map(|usage| whole(usage, cpu, rest)),
            (_, Some(Ok(number))) if !cpu.visible.contains(&number) => continue,
            (_, Some(Ok(number))) => cpu.usage.map(|usage| one(usage, cpu, number, rest)),
            ("btime", _) => Some(format!("btime {}", cpu.booted)),
            ("procs_running", _) => statistics.tasks.map(|tasks| format!("procs_running {}", tasks.running)),
            ("procs_blocked", _) => statistics.tasks.map(|tasks| format!("procs_blocked {}", tasks.blocked)),
            _ => None,
        }
        .unwrap_or_else(|| line.to_owned());
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// In clock ticks: user, nice, system and idle of one CPU. Nobody counts for a cgroup which CPU it ran on, so each has its share.
fn ticks(usage: Usage, cpu: &Cpu) -> [u64; 4] {
    let share = |seconds: f64| whole_number(seconds * HZ / cpu.visible.len().max(1) as f64);
    let busy = [share(usage.user), share(usage.nice), share(usage.system)];
    let idle = whole_number(cpu.uptime * HZ).saturating_sub(busy.iter().sum());
    let [user, nice, system] = busy;
    [user, nice, system, idle]
}

fn one(usage: Usage, cpu: &Cpu, number: u32, host: &str) -> String {
    format!("cpu{number} {}", fields(ticks(usage, cpu), host))
}

/// The sum of the lines below it.
fn whole(usage: Usage, cpu: &Cpu, host: &str) -> String {
    let count = cpu.visible.len() as u64;
    format!("cpu  {}", fields(ticks(usage, cpu).map(|ticks| ticks * count), host.trim_start()))
}

/// As many fields as the host's line has; what no cgroup counts (waiting for a disk, interrupts, stolen time) is 0.
fn fields(ticks: [u64; 4], host: &str) -> String {
    let count = host.split_whitespace().count();
    let all = ticks.into_iter().chain(std::iter::repeat(0)).take(count.max(ticks.len()));
    all.map(|ticks| ticks.to_string()).collect::<Vec<_>>().join(" ")
}

/// /proc/cpuinfo: the paragraphs of the CPUs that are seen. Where they have no numbers (s390) the text stays as it is.
pub(super) fn cpuinfo(statistics: &Statistics, host: &str) -> String {
    let Some(cpu) = &statistics.cpu else { return host.to_owned() };
    let seen = |paragraph: &&str| {
        let number = paragraph.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == "processor").then(|| value.trim().parse::<u32>().ok())?
        });
        number.is_none_or(|number| cpu.visible.contains(&number))
    };
    let paragraphs: Vec<&str> = host.split("\n\n").filter(seen).collect();
    let text = paragraphs.join("\n\n");
    // The last paragraph may be one that is not seen; the kernel ends each with an empty line.
    if host.ends_with("\n\n") && !text.ends_with("\n\n") { format!("{text}\n\n") } else { text }
}

/// /proc/uptime: since the start of the sandbox, and the time that its CPUs were idle.
pub(super) fn uptime(statistics: &Statistics, host: &str) -> String {
    let Some(cpu) = &statistics.cpu else { return host.to_owned() };
    let idle = match cpu.usage {
        Some(usage) => (cpu.uptime * cpu.visible.len() as f64 - usage.total()).max(0.0),
        None => host.split_whitespace().nth(1).and_then(|idle| idle.parse().ok()).unwrap_or(0.0),
    };
    format!("{:.2} {idle:.2}\n", cpu.uptime)
}

/// /proc/loadavg.
pub(super) fn loadavg(statistics: &Statistics, host: &str) -> String {
    let Some(tasks) = &statistics.tasks else { return host.to_owned() };
    let [one, five, fifteen] = tasks.loads;
    format!("{one:.2} {five:.2} {fifteen:.2} {}/{} {}\n", tasks.running, tasks.total.max(1), tasks.last.max(1))
}

/// /sys/devices/system/cpu/{online,possible,present}: a list as cpuset(7) has it.
pub(super) fn list(statistics: &Statistics, host: &str) -> String {
    statistics.cpu.as_ref().map_or_else(|| host.to_owned(), |cpu| list_of(&cpu.visible))
}

/// Ascending numbers as such a list, with the end of its line.
pub(super) fn list_of(numbers: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let range = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(range).collect::<Vec<_>>().join(",") + "\n"
}

/// What is left of a number that counts something, without its fraction.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float that is too large or negative saturates"
)]
pub(super) fn whole_number(value: f64) -> u64 {
    value as u64
}
