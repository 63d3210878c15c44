//! What a filter says of one system call.

/// What becomes of a call: the value that a filter returns, `SECCOMP_RET_*` with its data; seccomp(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Action(pub(super) u32);

impl Action {
    /// It is made.
    pub(crate) const ALLOW: Action = Action(libc::SECCOMP_RET_ALLOW);

    /// It is not made and fails with this error number.
    pub(crate) const fn error(number: i32) -> Action {
        Action(libc::SECCOMP_RET_ERRNO | number.cast_unsigned() & libc::SECCOMP_RET_DATA)
    }

    /// The stricter of two, as the kernel orders them where two filters differ.
    pub(super) fn stricter(self, other: Action) -> Action {
        // The kinds are ordered as signed numbers, KILL_PROCESS being the lowest.
        let rank = |action: Action| (action.0 & libc::SECCOMP_RET_ACTION_FULL).cast_signed();
        if rank(other) < rank(self) { other } else { self }
    }

    /// Whether calls go through (perhaps with an entry in the log).
    pub(super) fn lets_through(self) -> bool {
        matches!(self.0 & libc::SECCOMP_RET_ACTION_FULL, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG)
    }
}

/// How an argument is compared, all as unsigned numbers of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// The bits in `mask` are `value`.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

#[cfg(any(test, feature = "fuzzing"))]
impl Test {
    /// Whether `is` passes: what programs are compared with.
    pub(super) fn holds(self, is: u64) -> bool {
        match self {
            Test::Equal(value) => is == value,
            Test::NotEqual(value) => is != value,
            Test::Less(value) => is < value,
            Test::LessOrEqual(value) => is <= value,
            Test::Greater(value) => is > value,
            Test::GreaterOrEqual(value) => is >= value,
            Test::MaskedEqual { mask, value } => is & mask == value,
        }
    }
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Which, from 0 to 5.
    pub(super) argument: u8,
    /// How it is compared.
    pub(super) test: Test,
}

/// What becomes of a call whose arguments meet every condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// All must hold; none: whatever the arguments are.
    pub(super) conditions: Vec<Condition>,
    /// What happens then.
    pub(super) action: Action,
}

/// What becomes of one call: the first rule that holds, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(super) rules: Vec<Rule>,
    pub(super) otherwise: Action,
}

impl Verdict {
    /// The same for all arguments.
    pub(super) fn always(action: Action) -> Verdict {
        Verdict { rules: Vec::new(), otherwise: action }
    }
}
