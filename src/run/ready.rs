//! The wait for the two that work at the same time, the child and systemd.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};

use crate::error::{Result, fault};
use crate::layer::Namespace;
use crate::procview::{Server, View};
use crate::signals::Signals;
use crate::sync::ToParent;
use crate::timings::Timings;
use crate::unit::Unit;

use super::{Running, unexpected};

/// Who has something to say.
struct Heard {
    child: bool,
    /// A signal that ends the start.
    signal: bool,
    /// Or it is too late for an answer.
    systemd: bool,
    /// The child asks for the view's files.
    files: bool,
}

impl Running<'_> {
    /// Waits until the child is ready and its unit stands, with the limits in force; not beyond a signal that ends the start. The master
    /// of the sandbox's terminal is returned.
    pub(super) fn await_ready(&mut self, signals: &Signals, timings: &mut Timings) -> Result<Option<OwnedFd>> {
        let mut warnings = None;
        if self.unit.as_ref().and_then(Unit::answer).is_none() {
            warnings = Some(self.stand_before_child(signals, timings)?);
        }
        let master = loop {
            let heard = self.hear(signals)?;
            // One that comes when the payload may run already is for that, where it has a parent that is there to obey.
            if heard.signal && !(self.go_sent && heard.child && !self.plan.process.as_pid1) {
                return Err(self.interrupted());
            }
            if heard.files
                && let Some(view) = &mut self.view
            {
                view.answer_names()?;
            }
            if heard.systemd && self.turn()? {
                warnings = Some(self.stand_before_child(signals, timings)?);
            }
            if heard.child
                && let Some(master) = self.hear_child()?
            {
                break master;
            }
        };
        self.ready = true;
        timings.mark("child ready");
        let warnings = match warnings {
            Some(warnings) => warnings,
            None => {
                self.write_state();
                if let Some(unit) = &mut self.unit {
                    unit.finish(self.pidfd.as_fd())?;
                }
                self.publish_state();
                self.stand(timings)?
            }
        };
        if !self.go_sent && signals.has_ending()? {
            return Err(self.interrupted());
        }
        if !self.plan.process.quiet {
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
        }
        Ok(master)
    }

    /// Settles with systemd while the signal still waits: that shortens the wait for one that hangs.
    fn interrupted(&mut self) -> anyhow::Error {
        if let Some(unit) = &mut self.unit {
            unit.settle(self.pidfd.as_fd());
        }
        fault("interrupted by a signal").into()
    }

    fn hear(&self, signals: &Signals) -> Result<Heard> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.ending(), PollFlags::IN),
        ];
        let systemd = self.unit.as_ref().and_then(Unit::answer);
        fds.extend(systemd.iter().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        fds.extend(self.view.iter().filter_map(View::names));
        let is_late = match rustix::event::poll(&mut fds, systemd.as_ref().map(|(_, patience)| patience)) {
            Ok(count) => count == 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error).context("wait for the child"),
        };
        let heard = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Heard {
            child: heard(0),
            signal: heard(1),
            systemd: systemd.is_some() && (is_late || heard(2)),
            files: heard(if systemd.is_some() { 3 } else { 2 }),
        })
    }

    /// Takes in what systemd has said; whether the unit stands now.
    fn turn(&mut self) -> Result<bool> {
        self.unit.as_mut().map_or(Ok(false), |unit| unit.turn(self.pidfd.as_fd()))
    }

    /// The unit stands: its limits are read back. What is to be said of them is for a start that succeeds.
    fn stand(&mut self, timings: &mut Timings) -> Result<Vec<String>> {
        if let Some(pasta) = &mut self.pasta {
            pasta.begin()?;
        }
        let Some(unit) = &mut self.unit else { return Ok(Vec::new()) };
        timings.mark("unit started");
        let report = unit.verify()?;
        timings.mark("limits verified");
        Ok(report.warnings)
    }

    /// The same while the child is waited for, however long that takes: the service manager is not needed any more. A child that is told to go
    /// now does so when it is ready, without asking, but for what has to be said or done in between.
    fn stand_before_child(&mut self, signals: &Signals, timings: &mut Timings) -> Result<Vec<String>> {
        let warnings = self.stand(timings)?;
        self.write_state();
        self.publish_state();
        let is_told = warnings.is_empty() || self.plan.process.quiet;
        if is_told && self.may_go_by_itself() && !signals.has_ending()? {
            // Where that fails it has ended, and why is heard next.
            drop(self.send_go(timings));
        }
        self.unit.iter_mut().for_each(Unit::leave_bus);
        Ok(warnings)
    }

    /// Whether nothing is to be done between Ready and Go: no network to wait for, no terminal that has to get its size. Nor would the start
    /// of a payload without a PID namespace be undone by a kill.
    fn may_go_by_itself(&self) -> bool {
        self.pasta.is_none() && !self.plan.process.terminal && self.plan.namespaces.has(Namespace::Pid)
    }

    /// Takes in what the child says; when it is ready, the master of the sandbox's terminal, if that has one.
    fn hear_child(&mut self) -> Result<Option<Option<OwnedFd>>> {
        let is_pending = self.unit.as_ref().and_then(Unit::answer).is_some();
        match (self.end.receive()?, &mut self.view, &mut self.pasta) {
            (Some(ToParent::Network(namespace)), _, Some(pasta)) => {
                pasta.keep(namespace);
                if !is_pending {
                    pasta.begin()?;
                }
            }
            (Some(ToParent::Ready(master)), ..) => return Ok(Some(master)),
            (Some(ToParent::View(device)), Some(view), _) => view.serve(Server::new(device)),
            (other, ..) => return Err(unexpected(other)),
        }
        Ok(None)
    }
}
