//! The table against texts of real kernels (`tests/procview/`), and against any limits.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::memory::Amounts;
use super::statistics::{
    Cpu, Disk, Level, Memory, Nodes, Statistics, Tasks, Usage, memory_stat_v1, pairs, reclaimable,
};
use super::table::{self, HostText, TABLE};

const MIB: u64 = 1 << 20;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/procview")
}

/// A sandbox with 300 MiB, 150 % of the CPUs and some use of everything.
fn statistics(complete: bool) -> Statistics {
    let v2 = "anon 52428800\nfile 20971520\nkernel_stack 65536\npagetables 131072\npercpu 4096\nshmem 1048576\nfile_mapped 4194304\n\
              file_dirty 8192\nfile_writeback 0\nanon_thp 2097152\ninactive_anon 50331648\nactive_anon 2097152\ninactive_file 12582912\n\
              active_file 7340032\nunevictable 0\nslab_reclaimable 1048576\nslab_unreclaimable 524288\nslab 1572864\npgfault 5000\n\
              pgmajfault 7\npgscan 11\nworkingset_refault_file 3\n";
    let v1 = "cache 1\ntotal_cache 20971520\ntotal_rss 52428800\ntotal_shmem 1048576\ntotal_mapped_file 4194304\ntotal_inactive_anon \
              50331648\ntotal_active_anon 2097152\ntotal_inactive_file 12582912\ntotal_active_file 7340032\ntotal_pgfault 5000\n";
    let stat = if complete { pairs(v2) } else { memory_stat_v1(v1) };
    let unit = Level { limit: Some(300 * MIB), used: 80 * MIB, reclaimable: reclaimable(&stat) };
    let slice = Level { limit: Some(1024 * MIB), used: 900 * MIB, reclaimable: 0 };
    let disk = Disk { read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2, discarded_bytes: 0, discards: 0 };
    let swap = vec![Level { limit: Some(64 * MIB), used: MIB, reclaimable: 0 }];
    Statistics {
        memory: Some(Memory { levels: vec![unit, slice], swap, stat, complete }),
        cpu: Some(Cpu {
            visible: vec![0, 1],
            uptime: 100.25,
            booted: 1_700_000_000,
            usage: Some(Usage { user: 20.0, nice: 1.0, system: 9.5 }),
        }),
        tasks: Some(Tasks { loads: [0.5, 0.25, 0.125], running: 2, blocked: 1, total: 7, last: 42 }),
        // A disk of the machines whose texts are kept, and one of the virtual machines.
        disks: Some([((8, 0), disk), ((254, 0), disk)].into()),
        nodes: Some(Nodes { with_cpus: vec![0], memory: [(0, 2048 * MIB)].into() }),
        pressure: Some("some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n".into()),
    }
}

/// Every file of every kernel that has been written down: `tests/procview/KERNEL/proc-stat` in, `….v2` and `….v1` out.
#[test]
fn texts_of_real_kernels() {
    let mut seen = 0;
    for kernel in std::fs::read_dir(directory()).unwrap() {
        let kernel = kernel.unwrap().path();
        for row in TABLE {
            let name = super::flat_name(row.path).replace('*', "0");
            let Ok(own) = std::fs::read_to_string(kernel.join(&name)) else { continue };
            let meminfo = std::fs::read_to_string(kernel.join("proc-meminfo")).unwrap();
            let host = HostText { own: &own, meminfo: &meminfo, page: 4096, node: Some(0) };
            for (version, complete) in [("v2", true), ("v1", false)] {
                let text = (row.text)(&statistics(complete), &host);
                let path = kernel.join(format!("{name}.{version}"));
                if std::env::var_os("UPDATE_GOLDEN").is_some() {
                    std::fs::write(&path, text).unwrap();
                    continue;
                }
                let expected = std::fs::read_to_string(&path).unwrap_or_default();
                assert_eq!(text, expected, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
                seen += 1;
            }
        }
    }
    assert!(
        seen > 0 || std::env::var_os("UPDATE_GOLDEN").is_some(),
        "no texts of kernels in {}",
        directory().display()
    );
}

/// Without statistics the host's text stays as it is.
#[test]
fn what_cannot_be_told_passes_through() {
    for row in TABLE {
        let host = HostText { own: "anything: 1 kB\n", page: 4096, ..HostText::default() };
        assert_eq!((row.text)(&Statistics::default(), &host), host.own, "{}", row.path);
    }
}

const MEMINFO: &str = "MemTotal:       16000000 kB\nMemFree:         2000000 kB\nMemAvailable:   12000000 kB\nBuffers:          100000 kB\n\
                       Cached:          8000000 kB\nSwapCached:            0 kB\nActive:          500 kB\nSwapTotal:       1000000 kB\n\
                       SwapFree:         900000 kB\nSReclaimable:     400000 kB\nHugePages_Total:       0\nNew_Thing:            77 kB\n";

fn value(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

prop_compose! {
    fn level()(limit in prop::option::of(any::<u64>()), small in prop::option::of(0..20_000_000_000_u64),
               used in 0..40_000_000_000_u64, reclaimable in any::<u64>()) -> Level {
        Level { limit: small.or(limit), used, reclaimable }
    }
}

proptest! {
    #[test]
    fn memory_adds_up(levels in prop::collection::vec(level(), 1..5), swap in prop::collection::vec(level(), 0..5),
                      stat in prop::array::uniform3(any::<u64>()), complete: bool) {
        let names = ["file", "shmem", "slab_reclaimable"].map(str::to_owned);
        let stat = names.into_iter().zip(stat).collect();
        let memory = Memory { levels: levels.clone(), swap, stat, complete };
        let statistics = Statistics { memory: Some(memory.clone()), ..Statistics::default() };
        let text = super::memory::meminfo(&statistics, MEMINFO);
        // The same lines in the same order, each `Name: NUMBER kB` as procps reads them.
        let names = |text: &str| text.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>();
        prop_assert_eq!(names(&text), names(MEMINFO));
        let [total, free, available, cached] = ["MemTotal", "MemFree", "MemAvailable", "Cached"].map(|name| value(&text, name));
        prop_assert!(total <= 16_000_000 && free <= available && available <= total, "{}", text);
        prop_assert!(free + cached + value(&text, "Buffers") + value(&text, "SReclaimable") <= total + 1, "{}", text);
        prop_assert!(levels.iter().filter_map(|l| l.limit).all(|limit| total <= limit / 1024), "{}", text);
        prop_assert!(value(&text, "SwapFree") <= value(&text, "SwapTotal"), "{}", text);
        prop_assert_eq!(value(&text, "New_Thing"), 77);
        let amounts = Amounts::new(&memory, MEMINFO);
        prop_assert!(amounts.shared <= amounts.cached);
    }

    #[test]
    fn time_adds_up(uptime in 0.0..1e8_f64, user in 0.0..1e8_f64, system in 0.0..1e8_f64, mut visible in prop::collection::vec(0..8_u32, 1..8)) {
        visible.sort_unstable();
        visible.dedup();
        let usage = Some(Usage { user, nice: 0.0, system });
        let cpu = Cpu { visible: visible.clone(), uptime, booted: 5, usage };
        let statistics = Statistics { cpu: Some(cpu), ..Statistics::default() };
        let cpus: String = (0..8).map(|cpu| format!("cpu{cpu} 1 2 3 4 5 6 7 8 9 10\n")).collect();
        let text = super::cpu::stat(&statistics, &format!("cpu  8 16 24 32 40 48 56 64 72 80\n{cpus}ctxt 9\nbtime 1\nnew 1 2\n"));
        let line = |name: &str| -> Vec<u64> {
            let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
            line.split_whitespace().skip(1).map(|field| field.parse().unwrap()).collect()
        };
        let mut sum = vec![0; 10];
        for cpu in &visible {
            let fields = line(&format!("cpu{cpu}"));
            prop_assert_eq!(fields.len(), 10);
            sum.iter_mut().zip(fields).for_each(|(sum, field)| *sum += field);
        }
        prop_assert_eq!(line("cpu"), sum);
        prop_assert_eq!(text.lines().filter(|line| line.starts_with("cpu")).count(), visible.len() + 1);
        prop_assert!(text.ends_with("ctxt 9\nbtime 5\nnew 1 2\n"), "{}", text);
        let up = super::cpu::uptime(&statistics, "1.00 2.00\n");
        let numbers: Vec<f64> = up.split_whitespace().map(|number| number.parse().unwrap()).collect();
        prop_assert!(numbers.len() == 2 && numbers[1] >= 0.0 && numbers[1] <= uptime * visible.len() as f64 + 1.0, "{}", up);
    }
}

#[test]
fn the_tightest_counts() {
    let level = |limit, used| Level { limit: Some(limit), used, reclaimable: 0 };
    let memory = |levels| Memory { levels, complete: true, ..Memory::default() };
    let unit_tight = Amounts::new(&memory(vec![level(300 * MIB, 100 * MIB), level(900 * MIB, 200 * MIB)]), MEMINFO);
    assert_eq!((unit_tight.total, unit_tight.free), (300 * MIB, 200 * MIB));
    let slice_tight = Amounts::new(&memory(vec![level(900 * MIB, 100 * MIB), level(300 * MIB, 250 * MIB)]), MEMINFO);
    assert_eq!((slice_tight.total, slice_tight.free), (300 * MIB, 50 * MIB));
    let none = Level { limit: None, used: 100 * MIB, reclaimable: 0 };
    let unlimited = Amounts::new(&memory(vec![none]), MEMINFO);
    assert_eq!((unlimited.total, unlimited.free), (16_000_000 << 10, 12_000_000 << 10));
}

#[test]
fn lists_and_paragraphs_of_the_seen_cpus() {
    let cpu = |visible: &[u32]| Statistics {
        cpu: Some(Cpu { visible: visible.to_vec(), ..Cpu::default() }),
        ..Statistics::default()
    };
    for (visible, want) in [(&[0][..], "0\n"), (&[0, 1, 2], "0-2\n"), (&[1, 3, 4, 9], "1,3-4,9\n")] {
        assert_eq!(super::cpu::list(&cpu(visible), "0-15\n"), want);
    }
    let host = "processor\t: 0\nmodel\t: a\n\nprocessor\t: 1\nmodel\t: b\n\n";
    assert_eq!(super::cpu::cpuinfo(&cpu(&[0]), host), "processor\t: 0\nmodel\t: a\n\n");
    assert_eq!(super::cpu::cpuinfo(&cpu(&[1]), host), "processor\t: 1\nmodel\t: b\n\n");
    assert_eq!(super::cpu::cpuinfo(&cpu(&[0, 1]), host), host);
    let arm = "processor\t: 0\nx\t: 1\n\nprocessor\t: 1\nx\t: 1\n\nHardware\t: y\n";
    assert_eq!(super::cpu::cpuinfo(&cpu(&[1]), arm), "processor\t: 1\nx\t: 1\n\nHardware\t: y\n");
}

#[test]
fn memory_nodes_share_what_the_sandbox_has() {
    let gib = 1024 * MIB;
    let nodes = Nodes { with_cpus: vec![1], memory: [(0, 3 * gib), (1, gib)].into() };
    let statistics = Statistics { nodes: Some(nodes), ..statistics(true) };
    let text = |row: fn(&Statistics, &HostText<'_>) -> String, own: &str, node: u32| {
        row(&statistics, &HostText { own, meminfo: MEMINFO, page: 4096, node: Some(node) })
    };
    let whole = super::memory::meminfo(&statistics, MEMINFO);
    let own =
        "MemTotal:  99 kB\nMemFree:  9 kB\nMemUsed:  90 kB\nFilePages:  7 kB\nHugePages_Total:     0\nNew: 5 kB\n";
    let of = |node: u32| {
        let own: String = own.lines().map(|line| format!("Node {node} {line}\n")).collect();
        let text = text(super::node::meminfo, &own, node);
        assert!(text.contains(&format!("Node {node} HugePages_Total:     0\nNode {node} New: 5 kB\n")), "{text}");
        text.replace(&format!("Node {node} "), "")
    };
    let (first, second) = (of(0), of(1));
    for (name, sum) in [("MemTotal", "MemTotal"), ("MemFree", "MemFree"), ("FilePages", "Cached")] {
        let (first, second) = (value(&first, name), value(&second, name));
        assert!(
            (first + second).abs_diff(value(&whole, sum)) <= 1 && first.abs_diff(3 * second) <= 3,
            "{name} {first} {second}"
        );
    }
    assert_eq!(value(&first, "MemUsed"), value(&first, "MemTotal") - value(&first, "MemFree"));
    // One that its memory may not be of, with CPUs or without.
    assert_eq!(value(&of(2), "MemTotal"), 0);
    assert_eq!(super::node::with_cpus(&statistics, "0-1\n"), "1\n");
    assert_eq!(super::node::with_memory(&statistics, "0-2\n"), "0-1\n");
    let pages = text(super::node::vmstat, "nr_free_pages 1\nnuma_hit 5\n", 1);
    assert_eq!(pages, format!("nr_free_pages {}\nnuma_hit 5\n", value(&whole, "MemFree") / 4 / 4));
}

#[test]
fn cpus_of_a_memory_node() {
    let seen = |visible: &[u32]| Statistics {
        cpu: Some(Cpu { visible: visible.to_vec(), ..Cpu::default() }),
        ..Statistics::default()
    };
    assert_eq!(super::node::cpulist(&seen(&[0, 2, 5]), "0-3\n"), "0,2\n");
    assert_eq!(super::node::cpulist(&seen(&[0]), "4-7\n"), "\n");
    for (visible, host, want) in [
        (&[0][..], "3\n", "1\n"),
        (&[1, 33, 40], "00f,ffffffff\n", "002,00000002\n"),
        (&[4], "00000000,0000000f\n", "00000000,00000000\n"),
        (&[0], "what?\n", "what?\n"),
    ] {
        assert_eq!(super::node::cpumap(&seen(visible), host), want);
    }
}

#[test]
fn files_of_each_memory_node_have_one_row() {
    let row = |path: &str| table::row_of(Path::new(path)).map(|row| (row.path, row.node_in(Path::new(path))));
    assert_eq!(row("/proc/stat"), Some(("/proc/stat", None)));
    let list = "/sys/devices/system/node/node*/cpulist";
    assert_eq!(row("/sys/devices/system/node/node12/cpulist"), Some((list, Some(12))));
    for path in
        ["/sys/devices/system/node/node/cpulist", "/sys/devices/system/node/node0/numastat", "/sys/devices/system/node"]
    {
        assert_eq!(row(path), None, "{path}");
    }
}
