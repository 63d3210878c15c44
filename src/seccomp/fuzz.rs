//! Any text as a profile in Docker's and OCI's format.

use std::collections::BTreeSet;

use super::Circumstances;
use super::arch::Arch;
use super::bpf::{self, LONGEST, Table};
use super::profile::Profile;
use super::rule::{Action, Test, Verdict};
use crate::part::caps::Capabilities;

/// A profile is refused in one line, or its program says of every call that it names, and of others, what its rules say.
pub(crate) fn profile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let profile = match Profile::parse(text) {
        Ok(profile) => profile,
        Err(error) => {
            let line = crate::error::line(&error);
            return assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
        }
    };
    let added: &[&[String]] = &[&[], &["SYS_ADMIN".to_owned(), "SYS_PTRACE".to_owned()]];
    for (added, native) in added.iter().zip([Arch::X86_64, Arch::Aarch64]) {
        let capabilities = Capabilities::parse(added, &[], &[]).unwrap_or_else(|error| panic!("{error}"));
        let around = Circumstances { capabilities: &capabilities, shares_pids: false, nesting: false, kernel: (6, 1) };
        let decided = profile.decide(native, around);
        let program = bpf::compile(&decided.tables, decided.foreign);
        assert!(decided.tables.first().is_some_and(|table| table.arch == native));
        if program.len() > LONGEST {
            // Refused before it is loaded.
            continue;
        }
        for table in &decided.tables {
            answers(&program, table, decided.foreign);
        }
        let other = if native == Arch::X86_64 { Arch::Arm } else { Arch::X86 };
        assert_eq!(bpf::run(&program, other.audit(), 0, [0; 6]), decided.foreign.0);
    }
}

fn answers(program: &[bpf::Instruction], table: &Table, foreign: Action) {
    let named = table.calls.keys().flat_map(|number| [number.saturating_sub(1), *number, number + 1]);
    let numbers: BTreeSet<u32> = named.chain([0, table.last, table.last + 1, 0x3fff_ffff]).collect();
    for number in numbers {
        let verdict = table.calls.get(&number);
        for value in edges(verdict) {
            let arguments = std::array::from_fn(|at| if at % 2 == 0 { value } else { value.rotate_left(32) });
            let wanted = match verdict {
                Some(verdict) => expected(verdict, arguments),
                None if number <= table.last => table.otherwise,
                None => table.newer,
            };
            let found = bpf::run(program, table.arch.audit(), number, arguments);
            assert_eq!(found, wanted.0, "{number} {arguments:x?} on {:?}: {verdict:?}", table.arch);
        }
    }
    if table.arch == Arch::X86_64 {
        assert_eq!(bpf::run(program, table.arch.audit(), 0x4000_0000, [0; 6]), foreign.0);
    }
}

/// Values of arguments at which the rules change their minds.
fn edges(verdict: Option<&Verdict>) -> BTreeSet<u64> {
    let conditions = verdict.iter().flat_map(|verdict| &verdict.rules).flat_map(|rule| &rule.conditions);
    let values = conditions.map(|condition| match condition.test {
        Test::Equal(value) | Test::NotEqual(value) | Test::Less(value) | Test::LessOrEqual(value) => value,
        Test::Greater(value) | Test::GreaterOrEqual(value) => value,
        Test::MaskedEqual { mask, value } => !mask | value,
    });
    let around =
        values.take(8).flat_map(|value| [value.wrapping_sub(1), value, value.wrapping_add(1), value.rotate_left(32)]);
    around.chain([0, u64::MAX]).collect()
}

fn expected(verdict: &Verdict, arguments: [u64; 6]) -> Action {
    let rule = verdict.rules.iter().find(|rule| {
        rule.conditions.iter().all(|condition| condition.test.holds(arguments[usize::from(condition.argument)]))
    });
    rule.map_or(verdict.otherwise, |rule| rule.action)
}
