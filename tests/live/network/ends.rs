//! How long a network lives: as long as its sandbox, whichever process of it ends, and however.

use super::{ECHO, echo, picked, python};
use crate::bed::Bed;
use crate::command::Running;
use crate::outside::{self, HERE, THERE, outside};
use crate::unit;
use rustix::process::Signal;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

/// The processes of the machine that mention a port, as pasta does.
fn mentioning(port: u16) -> usize {
    let words = format!("{port}:7");
    let commands =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    commands.filter(|line| line.split(|b| *b == 0).any(|word| word == words.as_bytes())).count()
}

fn dies_with_its_launcher(bed: &Bed, running: &Running, port: u16) {
    assert!(mentioning(port) > 0);
    let mut stream = outside(|| outside::connect(HERE[0], port));
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    running.signal(Signal::KILL);
    // Whether it ends or is reset, it does not hang.
    let end = stream.read(&mut [0]);
    assert!(!matches!(&end, Ok(1..)) && !end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    bed.poll("no process is left", || mentioning(port) == 0);
    bed.poll("the port is free", || outside::is_free(port));
}

pub(super) fn killed_launcher(bed: &Bed) {
    let (running, unit, ports) = echo(bed, &["--publish", "0:7"]);
    dies_with_its_launcher(bed, &running, ports[0]);
    bed.poll("the unit is gone", || unit::is_gone(&unit));
}

pub(super) fn killed_launcher_of_user(bed: &Bed) {
    outside::is_there();
    let mut running = bed.run(["--network", "pasta", "--publish", "0:7"], &python(ECHO)).user().spawn();
    running.wait_for("ready");
    let ports = picked(&running.stderr_so_far());
    dies_with_its_launcher(bed, &running, ports[0]);
}

pub(super) fn free_after_stop(bed: &Bed) {
    let (running, unit, ports) = echo(bed, &["--publish", "0:7"]);
    let port = ports[0];
    // A connection that the server's side ends leaves TIME_WAIT behind, which is to keep nobody.
    assert_eq!(outside(|| outside::over_tcp(HERE[0], port, "x")), "x");
    bed.sandbox(["stop", &unit]).output().succeeded();
    let publish = format!("{port}:7");
    let (_again, _, _) = echo(bed, &["--publish", &publish]);
    assert_eq!(outside(|| outside::over_tcp(HERE[0], port, "again")), "again");
    running.finish();
}

/// What the payload does when it is asked to end needs the network, too.
pub(super) fn up_until_the_end(bed: &Bed) {
    let port = outside::echo_server();
    let script = format!(
        r#"
import os, signal, socket
def end(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    s = socket.create_connection(("{}", {port}), 60)
    s.sendall(b"bye")
    print(s.recv(100).decode(), flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    signal.pause()
"#,
        THERE[0]
    );
    let (running, unit) = bed.live(["--network", "pasta"], &python(&script));
    bed.command("systemctl", ["stop", &unit]).output().succeeded();
    let outcome = running.finish();
    assert_eq!(outcome.text(), "ready\nbye", "{}", outcome.errors());
}

pub(super) fn detached(bed: &Bed) {
    outside::is_there();
    let (unit, slice) = (bed.unit(), bed.slice());
    let flags = ["run", "--detach", "--network", "pasta", "--publish", "0:7", "--unit", &unit, "--slice", &slice];
    bed.sandbox(flags).arg("--").args(["python3", "-c", ECHO]).output().succeeded();
    let list = bed.sandbox(["ps"]).output().succeeded().text();
    let line = list.lines().find(|line| line.contains(&format!("{unit}.service"))).unwrap_or_else(|| panic!("{list}"));
    let port: u16 = line.split("->7/tcp").next().and_then(|front| front.rsplit(' ').next()?.parse().ok()).unwrap();
    bed.poll("it answers", || outside::try_over_tcp("127.0.0.1", port, "x").is_ok_and(|back| back == "x"));
    assert_eq!(outside(|| outside::over_tcp(HERE[0], port, "x")), "x");
    bed.sandbox(["stop", &unit]).output().succeeded();
    assert!(outside::is_free(port));
}

/// Its death is said at the end, and ends nothing else.
pub(super) fn killed_pasta(bed: &Bed) {
    outside::is_there();
    let (unit, slice) = (bed.unit(), bed.slice());
    let flags = ["run", "--network", "pasta", "--unit", &unit, "--slice", &slice, "--", "sh", "-c"];
    let mut running = bed.sandbox(flags).arg("echo ready; read line; echo $line").spawn();
    running.wait_for("ready");
    let is_pasta =
        |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/usr/bin/pasta"));
    let pasta = unit::processes(&format!("{unit}.scope")).into_iter().find(is_pasta).unwrap();
    bed.command("kill", ["-9", &pasta.to_string()]).output().succeeded();
    bed.poll("it is gone", || !Path::new(&format!("/proc/{pasta}")).exists());
    running.send("on\n");
    let outcome = running.finish().succeeded();
    assert_eq!(outcome.text(), "ready\non");
    assert!(outcome.errors().contains("the network ended before the sandbox did"), "{}", outcome.errors());
}
