//! To others' processes, terminals and sockets.

use super::USERNS;
use crate::bed::Bed;
use std::os::unix::net::UnixListener;

/// Input put into the terminal that the caller types on would be run by the caller's shell.
pub(super) fn typing_on_the_terminal(bed: &Bed) {
    let script = "for my $request (0x5412, 0x541c) { for my $fd (*STDIN, *STDOUT) { my $c = \"\\x02x\"; \
                  print ioctl($fd, $request, $c) ? 'typed' : 'refused ' . ($! + 0), ' '; } }";
    for flags in [&["-P"][..], &["-t"], &["-P", "--userns", "host"], &["-t", "--userns", "host", "--as-pid1"]] {
        let run = bed.sandbox(["run", "-q"]).args(flags).args(["perl", "-e", script]);
        let text = run.pty(24, 80).output().succeeded().text();
        assert_eq!(text.matches("refused 1").count(), 4, "{flags:?}: {text}");
    }
}

pub(super) fn processes_outside(bed: &Bed) {
    let mut victim = bed.command("sleep", ["1000"]).spawn();
    let (pid, ptrace) = (victim.pid(), libc::SYS_ptrace);
    let script = format!(
        "$! = 0; syscall({ptrace}, 16, {pid}, 0, 0) == -1 or print 'traced'; kill(9, {pid}) and print 'killed'; print -e '/proc/{pid}' ? 'seen' : 'unseen'"
    );
    for userns in USERNS {
        let text = bed.sandbox(["run", "-q", "--userns", userns, "perl", "-e", &script]).output().succeeded().text();
        assert_eq!(text, "unseen", "--userns {userns}");
    }
    // Asked to share PIDs it sees them, and may not look into them.
    let script = format!(
        "$! = 0; syscall({ptrace}, 16, {pid}, 0, 0) == -1 or print 'traced'; print open(my $f, '<', '/proc/{pid}/environ') && <$f> ? 'read' : 'kept'"
    );
    for userns in ["auto", "identity"] {
        let run = bed.sandbox(["run", "-q", "--share", "pid", "--userns", userns, "perl", "-e", &script]);
        assert_eq!(run.output().succeeded().text(), "kept", "--userns {userns}");
    }
    assert!(!victim.is_over());
}

pub(super) fn abstract_sockets(bed: &Bed) {
    use std::os::linux::net::SocketAddrExt;
    let name = bed.id().to_owned();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let script = format!(
        "use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0); print connect($s, pack('Sa*', AF_UNIX, \"\\0{name}\")) ? 'reached' : 'refused'"
    );
    for userns in USERNS {
        let text = bed.sandbox(["run", "-q", "--userns", userns, "perl", "-e", &script]).output().succeeded().text();
        assert_eq!(text, "refused", "--userns {userns}");
    }
    // The attempt is one that works where it may.
    assert_eq!(bed.command("perl", ["-e", &script]).output().succeeded().text(), "reached");
}
