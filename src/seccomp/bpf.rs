//! From verdicts to the program that the kernel runs at each system call: classic BPF, as linux/filter.h and seccomp(2) have it.
//!
//! The number is found by halving, about eight comparisons for any call. Everything that does not look at arguments reads only the
//! architecture and the number, with instructions that the kernel can evaluate beforehand (Linux 5.11 and later): calls that are always
//! allowed do not run the program at all.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::arch::Arch;
use super::rule::{Action, Condition, Rule, Test, Verdict};

/// One instruction, `struct sock_filter`; written down as one number, its fields from the highest bits to the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) if_true: u8,
    pub(crate) if_false: u8,
    pub(crate) k: u32,
}

impl From<Instruction> for u64 {
    fn from(of: Instruction) -> u64 {
        let jumps = u64::from(u16::from_be_bytes([of.if_true, of.if_false]));
        u64::from(of.code) << 48 | jumps << 32 | u64::from(of.k)
    }
}

impl From<u64> for Instruction {
    fn from(of: u64) -> Instruction {
        let [c0, c1, if_true, if_false, k @ ..] = of.to_be_bytes();
        Instruction { code: u16::from_be_bytes([c0, c1]), if_true, if_false, k: u32::from_be_bytes(k) }
    }
}

/// BPF_LD | BPF_W | BPF_ABS
const LOAD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K
const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA
const JUMP: u16 = 0x05;
/// BPF_JMP | BPF_JEQ | BPF_K
const IF_EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGT | BPF_K
const IF_GREATER: u16 = 0x25;
/// BPF_JMP | BPF_JGE | BPF_K
const IF_AT_LEAST: u16 = 0x35;
/// BPF_RET | BPF_K
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `__X32_SYSCALL_BIT`: from here on a number on x86-64 is one of the x32 interface.
const X32: u32 = 0x4000_0000;

/// The most that the kernel takes, `BPF_MAXINSNS`.
pub(super) const LONGEST: usize = 4096;

/// What is said of one architecture's calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) arch: Arch,
    /// By number.
    pub(super) calls: BTreeMap<u32, Verdict>,
    /// What is not in `calls` and not above `last`.
    pub(super) otherwise: Action,
    /// The highest number that the policy can know of.
    pub(super) last: u32,
    /// What is above it.
    pub(super) newer: Action,
}

/// The program for some architectures; calls of another one, and those of x32, get `foreign`.
pub(super) fn compile(tables: &[Table], foreign: Action) -> Vec<Instruction> {
    let mut program = vec![load(ARCHITECTURE)];
    for table in tables {
        let mut block = vec![load(NUMBER)];
        if table.arch == Arch::X86_64 {
            block.extend([jump_if(IF_AT_LEAST, X32, 0, 1), give(foreign)]);
        }
        block.extend(Search::of(&ranges(table)));
        program.push(jump_if(IF_EQUAL, table.arch.audit(), 1, 0));
        program.push(skip(block.len()));
        program.extend(block);
    }
    program.push(give(foreign));
    program
}

/// The program that hands some calls of an architecture over to whoever listens, and has `program` decide on all others.
pub(super) fn handing_over(arch: Arch, calls: &[libc::c_long], program: &[Instruction]) -> Vec<Instruction> {
    let listed = calls.iter().filter_map(|call| u32::try_from(*call).ok());
    let pairs = listed.flat_map(|call| [jump_if(IF_EQUAL, call, 0, 1), give(Action(libc::SECCOMP_RET_USER_NOTIF))]);
    let block: Vec<_> = [load(NUMBER)].into_iter().chain(pairs).collect();
    let mut code = vec![load(ARCHITECTURE), jump_if(IF_EQUAL, arch.audit(), 1, 0), skip(block.len())];
    code.extend(block);
    code.extend(program);
    code
}

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, k }
}

fn load(offset: u32) -> Instruction {
    instruction(LOAD, offset)
}

pub(super) fn give(action: Action) -> Instruction {
    instruction(RETURN, action.0)
}

fn skip(instructions: usize) -> Instruction {
    // No program is longer than LONGEST, which is checked at the end.
    instruction(JUMP, u32::try_from(instructions).unwrap_or(u32::MAX))
}

fn jump_if(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, k }
}

/// Numbers from each start to the next one, with what is said of them; neighbours that are treated alike are one.
fn ranges<'t>(table: &'t Table) -> Vec<(u32, Cow<'t, Verdict>)> {
    let mut ranges: Vec<(u32, Cow<'t, Verdict>)> = Vec::new();
    let mut add = |start: u32, verdict: Cow<'t, Verdict>| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((start, verdict));
        }
    };
    let always = |action| Cow::Owned(Verdict::always(action));
    let mut next = 0;
    for (number, verdict) in &table.calls {
        if *number > next {
            add(next, always(table.otherwise));
        }
        add(*number, Cow::Borrowed(verdict));
        next = number + 1;
    }
    if next <= table.last {
        add(next, always(table.otherwise));
        next = table.last + 1;
    }
    add(next, always(table.newer));
    ranges
}

/// What decides on each of the ranges. It is written from its end, where the returns are that many decisions share: to load a program
/// takes the kernel as long as the program is.
#[derive(Default)]
struct Search {
    /// The last instruction first; where one is, is its index here.
    code: Vec<Instruction>,
    /// Where what is always said of some calls is returned.
    returns: Vec<(Action, usize)>,
}

impl Search {
    /// How far a comparison may jump, less what may still come in between.
    const REACH: usize = u8::MAX as usize - 2;

    /// The program that halves the ranges until one is left, and then decides.
    fn of(ranges: &[(u32, Cow<'_, Verdict>)]) -> Vec<Instruction> {
        let mut search = Search::default();
        if let Some(start) = search.halve(ranges)
            && start + 1 != search.code.len()
        {
            search.go_on_at(start);
        }
        search.code.reverse();
        search.code
    }

    /// Where it is decided on one of these.
    fn halve(&mut self, ranges: &[(u32, Cow<'_, Verdict>)]) -> Option<usize> {
        let [_, .., _] = ranges else {
            return ranges.first().map(|(_, verdict)| self.decide(verdict));
        };
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let (pivot, _) = high.first()?;
        let (high, low) = (self.halve(high)?, self.halve(low)?);
        let (high, low) = (self.near(high), self.near(low));
        // Both are in reach: the second may have come in between, and nothing else.
        let distance = |from: usize, to: usize| u8::try_from(from - to - 1).unwrap_or(u8::MAX);
        let here = self.code.len();
        Some(self.push(jump_if(IF_AT_LEAST, *pivot, distance(here, high), distance(here, low))))
    }

    fn push(&mut self, instruction: Instruction) -> usize {
        self.code.push(instruction);
        self.code.len() - 1
    }

    /// The same as at `place`, where a comparison reaches it.
    fn near(&mut self, place: usize) -> usize {
        match self.code.get(place) {
            _ if self.code.len() - place <= Self::REACH => place,
            Some(there) if there.code == RETURN => self.give(Action(there.k)),
            _ => self.go_on_at(place),
        }
    }

    /// An instruction that goes on at `place`.
    fn go_on_at(&mut self, place: usize) -> usize {
        self.push(skip(self.code.len() - place - 1))
    }

    fn decide(&mut self, verdict: &Verdict) -> usize {
        if verdict.rules.is_empty() {
            return self.give(verdict.otherwise);
        }
        self.push(give(verdict.otherwise));
        for rule in verdict.rules.iter().rev() {
            self.code.extend(attempt(rule).into_iter().rev());
        }
        self.code.len() - 1
    }

    /// Where that is returned, as near as it has to be.
    fn give(&mut self, action: Action) -> usize {
        match self.returns.iter().rev().find(|(of, _)| *of == action) {
            Some((_, place)) if self.code.len() - place <= Self::REACH => *place,
            _ => {
                let place = self.push(give(action));
                self.returns.push((action, place));
                place
            }
        }
    }
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The end of this condition, which holds.
    Holds,
    /// The end of this rule, which does not.
    Fails,
}

enum Step {
    Plain(Instruction),
    Compare(u16, u32, To, To),
}

/// Returns the rule's action where its conditions hold, and goes on behind itself where not.
fn attempt(rule: &Rule) -> Vec<Instruction> {
    let conditions: Vec<Vec<Step>> = rule.conditions.iter().map(steps).collect();
    let total: usize = conditions.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(total + 1);
    let mut end = 0;
    for condition in conditions {
        end += condition.len();
        for step in condition {
            let here = code.len() + 1;
            // At most six conditions of six steps: every distance fits.
            let distance = |to: To| match to {
                To::Next => 0,
                To::Holds => u8::try_from(end - here).unwrap_or(u8::MAX),
                To::Fails => u8::try_from(total + 1 - here).unwrap_or(u8::MAX),
            };
            code.push(match step {
                Step::Plain(instruction) => instruction,
                Step::Compare(how, k, if_true, if_false) => jump_if(how, k, distance(if_true), distance(if_false)),
            });
        }
    }
    code.push(give(rule.action));
    code
}

/// One comparison of 64 bits by words of 32, the high one first; both machines are little-endian.
fn steps(condition: &Condition) -> Vec<Step> {
    use To::{Fails, Holds, Next};
    let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
    let word = |offset: u32, mask: u32| match mask {
        u32::MAX => vec![Step::Plain(load(offset))],
        mask => vec![Step::Plain(load(offset)), Step::Plain(instruction(AND, mask))],
    };
    let (low_word, high_word) = (word(low_at, u32::MAX), word(low_at + 4, u32::MAX));
    let ordered = |value: u64, how: u16, if_true: To, if_false: To, above: To, below: To| {
        let (high, low) = split(value);
        let high_steps = [Step::Compare(IF_GREATER, high, above, Next), Step::Compare(IF_EQUAL, high, Next, below)];
        high_word
            .into_iter()
            .chain(high_steps)
            .chain(low_word)
            .chain([Step::Compare(how, low, if_true, if_false)])
            .collect()
    };
    match condition.test {
        Test::Equal(value) => masked(low_at, u64::MAX, value),
        Test::MaskedEqual { mask, value } => masked(low_at, mask, value),
        Test::NotEqual(value) => {
            let (high, low) = split(value);
            let first = word(low_at + 4, u32::MAX).into_iter().chain([Step::Compare(IF_EQUAL, high, Next, Holds)]);
            first.chain(word(low_at, u32::MAX)).chain([Step::Compare(IF_EQUAL, low, Fails, Next)]).collect()
        }
        Test::Greater(value) => ordered(value, IF_GREATER, Next, Fails, Holds, Fails),
        Test::GreaterOrEqual(value) => ordered(value, IF_AT_LEAST, Next, Fails, Holds, Fails),
        Test::Less(value) => ordered(value, IF_AT_LEAST, Fails, Next, Fails, Holds),
        Test::LessOrEqual(value) => ordered(value, IF_GREATER, Fails, Next, Fails, Holds),
    }
}

fn masked(low_at: u32, mask: u64, value: u64) -> Vec<Step> {
    let ((high_mask, low_mask), (high, low)) = (split(mask), split(value));
    let mut steps = Vec::new();
    for (offset, mask, value) in [(low_at + 4, high_mask, high), (low_at, low_mask, low)] {
        // No bit of this word counts, and none is asked for.
        if (mask, value) == (0, 0) {
            continue;
        }
        steps.push(Step::Plain(load(offset)));
        if mask != u32::MAX {
            steps.push(Step::Plain(instruction(AND, mask)));
        }
        steps.push(Step::Compare(IF_EQUAL, value, To::Next, To::Fails));
    }
    steps
}

/// The high and the low half.
fn split(value: u64) -> (u32, u32) {
    let low = value & u64::from(u32::MAX);
    (u32::try_from(value >> 32).unwrap_or(0), u32::try_from(low).unwrap_or(0))
}

/// What the kernel would do with the program: the tests' own reading of it.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut at = 0;
    let mut word = 0;
    loop {
        let Instruction { code, if_true, if_false, k } = program[at];
        at += 1;
        let taken = match code {
            LOAD => {
                word = match k {
                    NUMBER => number,
                    ARCHITECTURE => arch,
                    offset => {
                        let (index, high) = ((offset - ARGUMENTS) / 8, (offset - ARGUMENTS) % 8 == 4);
                        let (upper, lower) = split(arguments[index as usize]);
                        if high { upper } else { lower }
                    }
                };
                continue;
            }
            AND => {
                word &= k;
                continue;
            }
            JUMP => {
                at += k as usize;
                continue;
            }
            RETURN => return k,
            IF_EQUAL => word == k,
            IF_GREATER => word > k,
            IF_AT_LEAST => word >= k,
            other => panic!("no instruction of ours: {other:#x}"),
        };
        at += usize::from(if taken { if_true } else { if_false });
    }
}
