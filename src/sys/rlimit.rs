//! Resource limits, as the calls of [`super::prlimit`] take them.

/// A resource limit of a process; getrlimit(2). `u64::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rlimit {
    /// The limit in force.
    pub(crate) soft: u64,
    /// How far the process itself may raise the soft limit.
    pub(crate) hard: u64,
}
