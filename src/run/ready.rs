//! The wait for the two that work at the same time, the child and systemd.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};

use crate::error::{Result, fault};
use crate::procview::{Part, Server, View};
use crate::signals::Signals;
use crate::state::StateFile;
use crate::sync::ToParent;
use crate::timings::Timings;
use crate::unit::Unit;

use super::{Running, not_shown, unexpected};

/// Who has something to say.
struct Heard {
    child: bool,
    /// A signal that ends the start.
    signal: bool,
    systemd: bool,
    /// The helper has failed; without one, somebody asks for a file of the view.
    files: bool,
}

impl Running<'_> {
    /// Waits until the child is ready and its unit stands, with the limits in force; not beyond a signal that ends the start. The master
    /// of the sandbox's terminal is returned.
    pub(super) fn await_ready(&mut self, signals: &Signals, timings: &mut Timings) -> Result<Option<OwnedFd>> {
        let mut stands = false;
        let master = loop {
            let heard = self.hear(signals)?;
            if heard.signal {
                return Err(fault("interrupted by a signal").into());
            }
            if heard.files {
                self.attend()?;
            }
            if heard.systemd && self.turn()? {
                self.stand(timings)?;
                stands = true;
            }
            if heard.child
                && let Some(master) = self.hear_child()?
            {
                break master;
            }
        };
        timings.mark("child ready");
        if !stands {
            if let Some(unit) = &mut self.unit {
                unit.finish(self.pidfd.as_fd())?;
            }
            self.stand(timings)?;
        }
        Ok(master)
    }

    fn hear(&self, signals: &Signals) -> Result<Heard> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.ending(), PollFlags::IN),
        ];
        let systemd = self.unit.as_ref().and_then(Unit::answer);
        fds.extend(systemd.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // Where there is a helper, that one answers for the view's files until the child is ready.
        match &self.helper {
            Some(helper) => fds.push(PollFd::from_borrowed_fd(helper.trouble(), PollFlags::IN)),
            None => fds.extend(self.view.iter().filter_map(View::files)),
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the child"),
        }
        let files = if systemd.is_some() { 3 } else { 2 };
        let heard = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Heard { child: heard(0), signal: heard(1), systemd: systemd.is_some() && heard(2), files: heard(files) })
    }

    fn attend(&mut self) -> Result<()> {
        match (&self.helper, &mut self.view) {
            (Some(helper), _) => helper.failure().map_or(Ok(()), Err),
            (None, Some(view)) => {
                view.turn(Part::Files, PollFlags::IN);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    /// Takes in what systemd has said; whether the unit stands now.
    fn turn(&mut self) -> Result<bool> {
        self.unit.as_mut().map_or(Ok(false), |unit| unit.turn(self.pidfd.as_fd()))
    }

    /// The unit stands: it can be seen, and its limits are read back.
    fn stand(&mut self, timings: &mut Timings) -> Result<()> {
        self.grace = None;
        if let Some(Err(error)) = self.state.as_mut().map(StateFile::publish) {
            not_shown(&error);
        }
        if let Some(pasta) = &mut self.pasta {
            pasta.begin()?;
        }
        let Some(unit) = &mut self.unit else { return Ok(()) };
        timings.mark("unit started");
        let report = unit.verify()?;
        if !self.plan.process.quiet {
            report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        }
        timings.mark("limits verified");
        Ok(())
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
            (Some(ToParent::Ready(master)), ..) => {
                // The child has bound every file.
                if let Some(helper) = &self.helper {
                    helper.dismiss();
                }
                return Ok(Some(master));
            }
            (Some(ToParent::View(device)), Some(view), _) => view.serve(Server::new(device)),
            (other, ..) => return Err(unexpected(other)),
        }
        Ok(None)
    }
}
