//! The injector on commands whose calls are known.

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Output};

pub(crate) fn run() -> ExitCode {
    let test = Trial::test("inject/every_call_of_a_command", || Ok(every_call_of_a_command()?));
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}

/// Each call of a program is hit, and none beyond the last; those of another process only when they are to be; each error is seen.
fn every_call_of_a_command() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let log = log.to_str().context("a path")?;
    let inject = |options: &[&str], command: &[&str]| -> Result<(Output, String)> {
        let _ = fs::remove_file(log);
        let output = Command::new("/proc/self/exe").arg(log).args(options).arg("--").args(command).output()?;
        // The tracer is nobody's child here.
        for _ in 0..500 {
            if fs::exists(log)? && !(options[1] == "count" && fs::read_to_string(log)?.is_empty()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok((output, fs::read_to_string(log)?))
    };
    let total = |options: &[&str], command: &[&str]| -> Result<u64> {
        let (output, line) = inject(options, command)?;
        ensure!(output.status.success(), "{command:?}: {output:?}");
        Ok(line.trim().strip_prefix("total ").context("a total")?.parse()?)
    };
    let one = ["/bin/true"];
    let calls = total(&["first", "count"], &one)?;
    ensure!(calls > 5 && total(&["first", "count"], &one)? == calls, "true makes {calls} calls");
    for number in 1..=calls {
        let (output, line) = inject(&["first", "kill", &number.to_string()], &one)?;
        ensure!(output.status.signal() == Some(9), "killed at {number} of {calls} ({line}): {output:?}");
    }
    let (output, line) = inject(&["first", "kill", &(calls + 1).to_string()], &one)?;
    ensure!(output.status.success() && line.is_empty(), "nothing is hit after the last: {output:?}, {line}");
    let two = ["/bin/sh", "-c", "/bin/true; exit 3"];
    let (first, all) = (inject(&["first", "count"], &two)?.1, inject(&["all", "count"], &two)?.1);
    ensure!(first != all, "another process counts only when it is to: {first} and {all}");
    let cat = ["/bin/cat", "/etc/hostname"];
    let mut failed = 0;
    for (error, text) in
        [("EIO", "Input/output error"), ("ENOSPC", "No space left on device"), ("EPERM", "not permitted")]
    {
        for number in 1..=total(&["first", "count"], &cat)? {
            let (output, _) = inject(&["first", error, &number.to_string()], &cat)?;
            failed += usize::from(String::from_utf8_lossy(&output.stderr).contains(text));
        }
    }
    ensure!(failed >= 6, "cat tells of a call that fails: {failed}");
    Ok(())
}
