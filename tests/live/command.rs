//! Commands with a time limit, captured output, and an end that is certain.

use crate::bed::patience;
use crate::facts::TESTER;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a command may take unless the test says otherwise, before the bed's factor.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A command to be started.
#[derive(Debug)]
pub(crate) struct Cmd {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    dir: Option<PathBuf>,
    window: Option<(u16, u16)>,
    limit: Duration,
}

#[allow(dead_code, reason = "helpers are here before the tests that use them")]
impl Cmd {
    pub(crate) fn new<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: I) -> Self {
        let mut argv = vec![program.as_ref().to_owned()];
        argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        Self { argv, env: Vec::new(), stdin: None, dir: None, window: None, limit: TIME_LIMIT }
    }

    /// One more argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// What would be run.
    pub(crate) fn words(&self) -> &[OsString] {
        &self.argv
    }

    /// More arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Without this variable.
    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.argv.splice(0..0, ["env", "-u", name].map(OsString::from));
        self
    }

    /// These bytes, then end of file. Without it stdin is /dev/null (`output`) or open until dropped (`spawn`).
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    pub(crate) fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// As `tester`, with the environment of a login session.
    pub(crate) fn user(mut self) -> Self {
        let id = TESTER.to_string();
        let wrapper = ["setpriv", "--reuid", &id, "--regid", &id, "--init-groups", "--"];
        self.argv.splice(0..0, wrapper.map(OsString::from));
        let runtime = format!("/run/user/{TESTER}");
        self.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={runtime}/bus"))
            .env("XDG_RUNTIME_DIR", runtime)
            .env("HOME", "/home/tester")
            .env("USER", "tester")
            .env("LOGNAME", "tester")
    }

    /// In a mount namespace of its own, once `setup`, a script that root runs, has been done there: the bed's mounts stay as they are.
    pub(crate) fn with_mounts(mut self, setup: &str) -> Self {
        let script = format!("{setup}\nexec \"$@\"");
        let wrapper = ["unshare", "--mount", "sh", "-e", "-c", &script, "sh"];
        self.argv.splice(0..0, wrapper.map(OsString::from));
        self
    }

    /// On a terminal of its own, which is its controlling one: stdin, stdout and stderr. All output is in `stdout` then.
    pub(crate) fn pty(mut self, rows: u16, columns: u16) -> Self {
        // setsid(1) becomes the session leader without a fork, as we do not put it into a process group of its own.
        self.argv.splice(0..0, ["setsid", "--ctty"].map(OsString::from));
        self.window = Some((rows, columns));
        self
    }

    /// Before the bed's factor.
    pub(crate) fn timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn output(mut self) -> Outcome {
        self.stdin.get_or_insert_default();
        self.spawn().finish()
    }

    /// Starts it in the background.
    #[track_caller]
    pub(crate) fn spawn(self) -> Running {
        let shown = self.argv.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).envs(self.env);
        if let Some(dir) = self.dir {
            command.current_dir(dir);
        }
        let master = match self.window {
            Some((rows, columns)) => Some(open_terminal(&mut command, rows, columns)),
            None => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
                None
            }
        };
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
        drop(command); // holds the terminal's other end
        let (stdout, stderr) = match &master {
            Some(master) => (Stream::read(Some(File::from(copy(master)))), Stream::read(None::<File>)),
            None => (Stream::read(child.stdout.take()), Stream::read(child.stderr.take())),
        };
        let mut stdin = match &master {
            Some(master) => Some(File::from(copy(master))),
            None => child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe))),
        };
        if let Some(bytes) = self.stdin {
            // A thread of its own, since a big input and a big output would wait for each other. A terminal is not closed by it.
            let pipe = if master.is_some() { stdin.as_ref().map(|file| File::from(copy(file))) } else { stdin.take() };
            std::thread::spawn(move || pipe.map(|mut pipe| pipe.write_all(&bytes)));
        }
        Running {
            shown,
            child,
            stdin,
            stdout,
            stderr,
            master,
            started: Instant::now(),
            limit: patience(self.limit),
            over: None,
        }
    }
}

fn open_terminal(command: &mut Command, rows: u16, columns: u16) -> OwnedFd {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo terminal");
    grantpt(&master).expect("grantpt");
    unlockpt(&master).expect("unlockpt");
    set_window(&master, rows, columns);
    let path = ptsname(&master, Vec::new()).expect("ptsname").into_string().expect("a path");
    let slave = File::options().read(true).write(true).open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    command.stdin(copy(&slave)).stdout(copy(&slave)).stderr(slave);
    master
}

fn set_window(terminal: impl AsFd, rows: u16, columns: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("window size");
}

fn copy(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().expect("a file descriptor")
}

/// What one output stream has carried so far.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn read(source: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            let Some(mut source) = source else { return };
            // A terminal ends with EIO, not with 0.
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

/// What a report of a failure shows of a stream: text as it is, but nothing that floods a terminal or confuses it.
fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 4000;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    let mut text: String = text.chars().map(|c| if c.is_control() && c != '\n' { '·' } else { c }).collect();
    if bytes.len() > SHOWN {
        text.push_str(&format!("\n… {} bytes in all", bytes.len()));
    }
    text
}

/// A command in the background. Dropped, it is killed with its process group.
#[derive(Debug)]
pub(crate) struct Running {
    shown: String,
    child: Child,
    stdin: Option<File>,
    stdout: Stream,
    stderr: Stream,
    master: Option<OwnedFd>,
    started: Instant,
    limit: Duration,
    over: Option<ExitStatus>,
}

#[allow(dead_code, reason = "helpers are here before the tests that use them")]
impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// To the process itself, not to its group.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap_or_else(|e| panic!("signal to {}: {e}", self.shown));
    }

    /// Writes to its stdin or terminal.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(bytes.as_ref()).unwrap_or_else(|e| panic!("write to {}: {e}", self.shown));
    }

    /// End of file on its stdin.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Gives its terminal a new size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        set_window(self.master.as_ref().expect("started with pty()"), rows, columns);
    }

    pub(crate) fn stdout_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    pub(crate) fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until stdout contains `text`; gives up when the command ends first.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        loop {
            // Its last words may still be on their way when it has ended.
            let over = self.is_over() && self.stdout.reader.is_finished();
            if self.stdout_so_far().contains(text) {
                return;
            }
            let why = if over { "it ended" } else { "time is over" };
            assert!(!over && self.started.elapsed() < self.limit, "{why} before '{text}' came; {}", self.story());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn is_over(&mut self) -> bool {
        if self.over.is_none() {
            self.over = self.child.try_wait().expect("wait");
        }
        self.over.is_some()
    }

    /// Closes its stdin and waits for its end, within the time limit.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Outcome {
        self.stdin = None;
        while !self.is_over() {
            assert!(self.started.elapsed() < self.limit, "still running after {:?}; {}", self.limit, self.story());
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = self.started.elapsed();
        // Its output ends with it, unless it left somebody behind who holds the pipe.
        let patience = Instant::now() + patience(Duration::from_secs(3));
        while !(self.stdout.reader.is_finished() && self.stderr.reader.is_finished()) {
            assert!(
                Instant::now() < patience,
                "it ended with {:?}, but a process of it still holds its output; {}",
                self.over,
                self.story()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.over.expect("it is over");
        let code = status.code().or(status.signal().map(|signal| 128 + signal)).expect("an exit code or a signal");
        Outcome {
            shown: self.shown.clone(),
            status: code,
            signal: status.signal(),
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
            took,
        }
    }

    fn story(&self) -> String {
        let (stdout, stderr) = (excerpt(&self.stdout.so_far()), excerpt(&self.stderr.so_far()));
        format!("{}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.shown)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group is ours even when its leader is gone: whoever is left in it was started by this command.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        if self.over.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a command ended.
#[derive(Debug)]
#[allow(dead_code, reason = "helpers are here before the tests that use them")]
pub(crate) struct Outcome {
    shown: String,
    /// The exit code, or 128+n after signal n.
    pub(crate) status: i32,
    /// The signal that ended it (the process that we started, not one inside).
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) took: Duration,
}

#[allow(dead_code, reason = "helpers are here before the tests that use them")]
impl Outcome {
    /// stdout without the last newline.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// stderr without the last newline.
    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Fails the test unless it exited with 0.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        self.exited(0)
    }

    /// Fails the test unless it exited with `status`.
    #[track_caller]
    pub(crate) fn exited(self, status: i32) -> Self {
        assert!(
            self.status == status && self.signal.is_none(),
            "exit status {} (signal {:?}), expected {status}: {}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.signal,
            self.shown,
            excerpt(&self.stdout),
            excerpt(&self.stderr)
        );
        self
    }
    /// Fails the test unless it ended with an error of `sandbox` as a user should see it: this status, nothing on stdout, one line
    /// `sandbox: …` on stderr with all of `words` in it, and at most one more, `hint: …`.
    #[track_caller]
    pub(crate) fn refused<const N: usize>(self, status: i32, words: [&str; N]) -> Self {
        let outcome = self.exited(status);
        let errors = outcome.errors();
        let lines: Vec<&str> = errors.lines().collect();
        let shape = matches!(lines[..], [error] if error.starts_with("sandbox: "))
            || matches!(lines[..], [error, hint] if error.starts_with("sandbox: ") && hint.starts_with("hint: "));
        assert!(
            shape && outcome.stdout.is_empty(),
            "not one error and a hint: {}\n{errors}\n{}",
            outcome.shown,
            outcome.text()
        );
        for word in words {
            assert!(lines[0].contains(word), "'{word}' is not in the error of {}: {errors}", outcome.shown);
        }
        outcome
    }

    /// The `hint: …` line, without that word.
    #[track_caller]
    pub(crate) fn hint(&self) -> String {
        let errors = self.errors();
        errors
            .lines()
            .find_map(|line| line.strip_prefix("hint: "))
            .unwrap_or_else(|| panic!("no hint in: {errors}"))
            .to_owned()
    }
}
