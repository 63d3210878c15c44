//! The unit around one sandbox: started, its limits verified, stopped.

use std::os::fd::BorrowedFd;

use rustix::process::Pid;

use crate::error::Result;
use crate::plan::UnitPlan;
use crate::timings::Timings;

/// A unit that runs.
#[derive(Debug)]
pub(crate) struct Unit;

impl Unit {
    pub(crate) fn start(_plan: &UnitPlan, _pid: Pid, _pidfd: BorrowedFd<'_>, _timings: &mut Timings) -> Result<Unit> {
        Ok(Unit)
    }
    pub(crate) fn verify(&mut self, _pid: Pid) -> Result<()> {
        Ok(())
    }
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        None
    }
    pub(crate) fn stop(&mut self) {}
}
