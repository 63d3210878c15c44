//! What a sandbox costs the program in it: `inside DIR SAMPLES` prints, for each sample, one line a kind, `KIND NANOSECONDS`, of one
//! operation each: `getppid`, a system call that does nothing; `read`, open, read and close of a small file of those in DIR; `spawn`, a
//! process that is started, executes a program and is waited for; `loopback`, one byte to a TCP server on 127.0.0.1 and back.
//!
//! `tests/bench-report.sh` compiles it with rustc alone, statically, so that one file runs in every root.
#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs, io, thread};

/// How many operations one sample of each kind is the mean of: some 10 milliseconds of each.
const CALLS: u32 = 10_000;
const SPAWNS: u32 = 20;
const TRIPS: u32 = 500;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["nothing"] => Ok(()),
        [directory, samples] => measure(Path::new(directory), samples.parse().map_err(io::Error::other)?),
        _ => Err(io::Error::other("usage: inside DIR SAMPLES")),
    }
}

fn measure(directory: &Path, samples: u32) -> io::Result<()> {
    let files: Vec<PathBuf> = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let file_count = u32::try_from(files.len()).map_err(io::Error::other)?;
    let program = env::current_exe()?;
    let mut connection = echo_server()?;
    // Once without a clock, so that each is measured with warm caches.
    read_all(&files)?;
    round_trips(&mut connection)?;
    for _ in 0..samples {
        let _held = held_open(&program)?;
        report("getppid", CALLS, || {
            (0..CALLS).for_each(|_| _ = std::hint::black_box(std::os::unix::process::parent_id()));
            Ok(())
        })?;
        report("read", file_count, || read_all(&files))?;
        report("spawn", SPAWNS, || {
            (0..SPAWNS).try_for_each(|_| Command::new(&program).arg("nothing").status().map(drop))
        })?;
        report("loopback", TRIPS, || round_trips(&mut connection))?;
    }
    Ok(())
}

fn report(kind: &str, operations: u32, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let start = Instant::now();
    work()?;
    println!("{kind} {}", start.elapsed().as_nanos() / u128::from(operations.max(1)));
    Ok(())
}

fn read_all(files: &[PathBuf]) -> io::Result<()> {
    files.iter().try_for_each(|file| fs::read(file).map(drop))
}

/// A few files that stay open. Memory for what a process has open is charged to its cgroup page by page: whether one more file takes a
/// new page, and gives it back, with every open of a loop, or never, is decided by how many there are already (5 % of such a read).
/// So every sample has another number of them, over more than a page.
fn held_open(any: &Path) -> io::Result<Vec<fs::File>> {
    const STEPS: u32 = 24;
    let random = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.subsec_micros();
    (0..random % STEPS).map(|_| fs::File::open(any)).collect()
}

fn echo_server() -> io::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    thread::spawn(move || {
        let mut byte = [0];
        while server.read_exact(&mut byte).is_ok() && server.write_all(&byte).is_ok() {}
    });
    Ok(client)
}

fn round_trips(connection: &mut TcpStream) -> io::Result<()> {
    let mut byte = [1];
    (0..TRIPS).try_for_each(|_| {
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)
    })
}
