//! Jobs of systemd: a call makes one, and a signal tells how it ended.

use zbus::OwnedObjectPath;

use super::bus::Bus;
use super::wire::{Call, Deadline, Exchange, Incoming};

/// A call that makes a job, and what has been heard of it.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// The number of the call.
    pub(super) call: u32,
    /// Its object on the bus: the call was answered.
    pub(super) path: Option<String>,
    /// Jobs that ended, and how: systemd may tell that before it answers.
    ended: Vec<(String, String)>,
}

impl Job {
    pub(super) fn of(call: u32) -> Job {
        Job { call, ..Job::default() }
    }

    /// Takes in what systemd said.
    ///
    /// # Errors
    /// When it refuses the call.
    pub(super) fn hear(&mut self, incoming: &Incoming) -> Exchange<()> {
        if incoming.answers(self.call) {
            let path: OwnedObjectPath = incoming.body()?;
            self.path = Some(path.as_str().to_owned());
        } else {
            self.ended.extend(ended_job(incoming));
        }
        Ok(())
    }

    /// How it ended: `done`, `failed`, `canceled` …; `None` as long as it has not.
    pub(super) fn result(&self) -> Option<&str> {
        let (_, result) = self.ended.iter().find(|(path, _)| Some(path) == self.path.as_ref())?;
        Some(result)
    }
}

/// Where a call goes that is sent with another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// In front of it.
    Before,
    /// Behind it, which is done sooner then. The daemon has both before systemd has the first, and systemd asks it for more than one
    /// thing before a job ends; what is asked for here must not be all that is waited for, though.
    Behind,
}

impl Bus {
    /// Asks the bus daemon for the end of jobs of one unit. The call that makes the job goes out with it, and a daemon handles what it
    /// gets in order, so no signal is missed and no answer is waited for. systemd's own socket sends them all unasked.
    pub(super) fn match_jobs(&mut self, unit: &str, order: Order) -> Exchange<()> {
        if !self.daemon || self.watched.as_deref() == Some(unit) {
            return Ok(());
        }
        let rule = format!(
            "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
             interface='org.freedesktop.systemd1.Manager',member='JobRemoved',arg2='{unit}'"
        );
        self.watched = Some(unit.to_owned());
        self.wire.send_along(&Call::daemon("AddMatch"), &(rule,), order)
    }

    /// Waits for the end of a job: its result.
    pub(super) fn await_job(&mut self, mut job: Job, deadline: Deadline) -> Exchange<String> {
        loop {
            if let Some(result) = job.result() {
                return Ok(result.to_owned());
            }
            job.hear(&self.wire.receive(deadline)?)?;
        }
    }
}

/// Reads a JobRemoved signal: the job and its result.
fn ended_job(incoming: &Incoming) -> Option<(String, String)> {
    if !incoming.is_signal("JobRemoved") {
        return None;
    }
    let (_, job, _, result) = incoming.body::<(u32, OwnedObjectPath, String, String)>().ok()?;
    Some((job.as_str().to_owned(), result))
}
