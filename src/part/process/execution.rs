//! The last step: execve(2), and why it could not be done.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Identity, Listen, PATH, ProcessPlan};
use crate::error::{Fault, fault};
use crate::exit;
use crate::sys;

/// What execve(2) gets, made before the payload's own process exists: that one, which the caller waits for, has nothing left to compute.
#[derive(Debug)]
pub(crate) struct Execution {
    argv: Vec<CString>,
    envp: Vec<CString>,
    candidates: Vec<PathBuf>,
}

impl ProcessPlan {
    /// What is executed, in the root that this process is in, as what `identity` says.
    pub(super) fn execution(&self, identity: &Identity) -> Execution {
        let mut environment = self.environment.clone();
        for (name, value) in [("HOME", &identity.home), ("USER", &identity.name)] {
            if !environment.iter().any(|(other, _)| other == name) {
                environment.push((name.into(), value.into()));
            }
        }
        let path = environment.iter().find(|(name, _)| name == "PATH").map_or(OsStr::new(PATH), |(_, value)| value);
        let program = self.command.first().map_or(OsStr::new(""), OsString::as_os_str);
        Execution {
            argv: strings(self.command.iter().map(|arg| arg.as_bytes().to_vec())),
            candidates: without_absent(candidates(program, path)),
            envp: variables(&environment),
        }
    }

    /// Replaces this process by the command; returns only the reason why that failed. With `unblock` signals are blocked until then.
    pub(crate) fn exec(&self, execution: &Execution, unblock: bool) -> Fault {
        let Execution { argv, envp, candidates } = execution;
        let Some(program) = self.command.first() else {
            return fault("no command was given");
        };
        let envp = [&envp[..], &self.handed_over()].concat();
        let mut denied = None;
        for candidate in candidates {
            let error = sys::exec(candidate.as_os_str(), argv, &envp, unblock);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) if !candidate.exists() => {}
                Some(libc::EACCES) if program.as_bytes().contains(&b'/') || candidate.exists() => {
                    denied = Some((candidate, error));
                }
                Some(libc::EACCES) => {}
                _ => return self.refused(candidate, &error),
            }
        }
        match denied {
            Some((candidate, error)) => self.refused(candidate, &error),
            None => self.not_found(program),
        }
    }

    /// Tells the payload, which has to be this process, of its sockets; sd_listen_fds(3).
    fn handed_over(&self) -> Vec<CString> {
        let Some(Listen { count, names }) = &self.listen else { return Vec::new() };
        let pid = rustix::process::getpid().as_raw_nonzero().to_string();
        let mut list = vec![("LISTEN_PID".into(), pid.into()), ("LISTEN_FDS".into(), count.to_string().into())];
        list.extend(names.iter().map(|names| ("LISTEN_FDNAMES".into(), names.into())));
        variables(&list)
    }

    fn not_found(&self, program: &OsStr) -> Fault {
        let shown = program.to_string_lossy();
        let is_path = program.as_bytes().contains(&b'/');
        let fault = fault(format!("run {shown}: {}", if is_path { "no such file" } else { "not found in PATH" }))
            .status(exit::NOT_FOUND);
        let path = Path::new(program);
        let hidden = ["/home", "/root", "/run", "/tmp", "/var/tmp"].iter().any(|hidden| path.starts_with(hidden));
        if self.host_view && is_path && (hidden || path.is_relative()) {
            let directory = path.parent().filter(|_| hidden);
            return fault.hint(format!(
                "/home, /root, /run and /tmp of the host are hidden: --bind {} brings its directory",
                directory.map_or_else(|| "$PWD".to_owned(), |directory| directory.display().to_string())
            ));
        }
        fault
    }

    /// Found, but the kernel would not run it: says whether it is the file or what the file needs.
    fn refused(&self, path: &Path, error: &std::io::Error) -> Fault {
        let shown = path.display();
        if error.raw_os_error() == Some(libc::ENOENT)
            && let Some(interpreter) = interpreter(path)
        {
            return fault(format!("run {shown}: its interpreter {} is missing", interpreter.to_string_lossy()))
                .status(exit::NOT_FOUND);
        }
        if error.raw_os_error() == Some(libc::ENOEXEC) {
            return fault(format!("run {shown}: no program for this machine, nor a script that begins with #!"))
                .status(exit::NOT_EXECUTABLE);
        }
        fault(format!("run {shown}: {error}")).status(exit::NOT_EXECUTABLE)
    }
}

fn strings(list: impl Iterator<Item = Vec<u8>>) -> Vec<CString> {
    list.filter_map(|text| CString::new(text).ok()).collect()
}

fn variables(list: &[(OsString, OsString)]) -> Vec<CString> {
    strings(list.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()))
}

/// Leaves out, up to the first that is there, those of which nothing is there. Where nothing is at all, all are tried.
fn without_absent(candidates: Vec<PathBuf>) -> Vec<PathBuf> {
    let is_absent = |path: &PathBuf| {
        // The working directory comes later.
        path.is_absolute() && std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    };
    let first = candidates.iter().position(|path| !is_absent(path)).unwrap_or(0);
    candidates.into_iter().skip(first).collect()
}

/// Where `program` may be: itself if it has a slash (or is empty, and nowhere), else in each directory of `path`, execvp(3).
fn candidates(program: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    if program.is_empty() || program.as_bytes().contains(&b'/') {
        return vec![program.into()];
    }
    let directories = path.as_bytes().split(|b| *b == b':');
    directories
        .map(|directory| if directory.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(directory)) })
        .map(|directory| directory.join(program))
        .collect()
}

/// What a file needs to be run: the program after `#!`, or the dynamic loader of an ELF file (elf(5), PT_INTERP).
fn interpreter(path: &Path) -> Option<OsString> {
    use std::io::Read;
    let mut head = Vec::new();
    let regular = std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
    std::fs::File::open(path).ok().filter(|_| regular)?.take(64 << 10).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        let word = line.split(|b| b.is_ascii_whitespace()).find(|word| !word.is_empty())?;
        return Some(OsString::from_vec(word.to_vec()));
    }
    elf_interpreter(&head)
}

fn elf_interpreter(head: &[u8]) -> Option<OsString> {
    const PT_INTERP: u64 = 3;
    let wide = match head.get(..5)? {
        [0x7f, b'E', b'L', b'F', class] => *class == 2,
        _ => return None,
    };
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes.get_mut(..size)?.copy_from_slice(head.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    // Offsets of e_phoff, e_phentsize, e_phnum, p_offset and p_filesz, and the size of an address.
    let (phoff, phentsize, phnum, offset, filesz, word) =
        if wide { (32, 54, 56, 8, 32, 8) } else { (28, 42, 44, 4, 16, 4) };
    let table = usize::try_from(number(phoff, word)?).ok()?;
    let size = usize::try_from(number(phentsize, 2)?).ok()?;
    for index in 0..usize::try_from(number(phnum, 2)?).ok()? {
        let entry = table.checked_add(index.checked_mul(size)?)?;
        if number(entry, 4)? == PT_INTERP {
            let from = usize::try_from(number(entry + offset, word)?).ok()?;
            let length = usize::try_from(number(entry + filesz, word)?).ok()?;
            let name = head.get(from..from.checked_add(length)?)?.split(|b| *b == 0).next()?;
            return Some(OsString::from_vec(name.to_vec()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_of_a_real_program_is_found() {
        let loader = interpreter(Path::new("/bin/sh")).unwrap();
        assert!(loader.to_string_lossy().contains("ld-linux"), "{loader:?}");
    }

    #[test]
    fn a_scripts_interpreter_is_its_first_word() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("s");
        std::fs::write(&script, "#! /no/such -x\n").unwrap();
        assert_eq!(interpreter(&script).unwrap(), "/no/such");
        std::fs::write(&script, b"\x7fELF\x02garbage").unwrap();
        assert_eq!(interpreter(&script), None);
    }

    #[test]
    fn candidates_are_execvps() {
        assert_eq!(candidates(OsStr::new("a/b"), OsStr::new("/x")), [PathBuf::from("a/b")]);
        assert_eq!(candidates(OsStr::new(""), OsStr::new("/x")), [PathBuf::new()]);
        assert_eq!(
            candidates(OsStr::new("b"), OsStr::new("/x::/y")),
            [PathBuf::from("/x/b"), PathBuf::from("./b"), PathBuf::from("/y/b")]
        );
    }

    #[test]
    fn absent_ones_are_left_out_up_to_the_first_that_is_there() {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let left = without_absent(paths(&["/no/x", "/dev/no", "/dev/null", "/no/y", "/dev/zero"]));
        assert_eq!(left, paths(&["/dev/null", "/no/y", "/dev/zero"]));
        // Nobody knows yet what a relative one is.
        assert_eq!(without_absent(paths(&["/no/x", "./no", "/no/y"])), paths(&["./no", "/no/y"]));
        assert_eq!(without_absent(paths(&["/no/x", "/no/y"])), paths(&["/no/x", "/no/y"]));
    }
}
