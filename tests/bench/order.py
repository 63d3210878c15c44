"""Writes the linker script that puts the functions side by side that a start executes.

order.py PROGRAM LIBC < ADDRESSES > SCRIPT

PROGRAM has its symbols, LIBC is the archive that it is linked with, ADDRESSES are what its threads executed: a line for each, hexadecimal,
in the order in which they did. Functions of the same threads come together, in that order: so each thread needs few pages.
What is written names functions as they are in this build, then without their hashes, which another compiler has others of, and libc's
by the member of its archive.
"""

import bisect
import re
import subprocess
import sys
from collections import defaultdict

# More of a name's functions than were executed may come along, by this factor and this many bytes: generic ones share a name.
FACTOR, SLACK = 4, 4096

HEAD = """\
/* Written by `tests/bench.sh order`: the functions that a start executes, side by side. */
"""


def functions(program):
    """(address, bytes, name) of each function, ascending. Those in assembler (memcpy, _start) do not say how long they are: up to the next."""
    lines = subprocess.run(["nm", "-S", "--defined-only", program], check=True, capture_output=True, text=True).stdout
    words = [line.split() for line in lines.splitlines()]
    sized = sorted((int(w[0], 16), int(w[1], 16) if len(w) == 4 else 0, w[-1]) for w in words if w[-2] in "tTwWi")
    after = {start: next_ for (start, _, _), (next_, _, _) in zip(sized, sized[1:]) if next_ > start}
    return [(start, size or after.get(start, start) - start, name) for start, size, name in sized]


def executed(found, threads):
    """The functions that have one of the addresses: of the same threads together, in the order in which they were executed."""
    starts = [start for start, _, _ in found]
    users, first = defaultdict(set), {}
    for thread, addresses in enumerate(threads):
        for address in addresses:
            at = bisect.bisect_right(starts, address) - 1
            if at >= 0 and address < found[at][0] + found[at][1]:
                users[at].add(thread)
                first.setdefault(at, len(first))
    return [found[at] for at in sorted(users, key=lambda at: (sorted(users[at]), first[at]))]


def pattern(name):
    """The name of a Rust function with a star for what every build or compiler has another of; None if it is no Rust function.

    The legacy mangling ends with a hash, and the v0 mangling (RFC 2603) has one at each crate's name; LLVM numbers copies that it makes.
    """
    if match := re.match(r"(_ZN.*17h)[0-9a-f]{16}E", name):
        return match[1] + "*"
    if name.startswith("_R"):
        return re.sub(r"\.\d+$", ".*", re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name))
    return None


def members(libc):
    """Member of the archive by function."""
    lines = subprocess.run(["nm", "-A", "--defined-only", libc], check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^\S*?([^/:\s]+\.l?o):\S* [tTwWi] (\S+)$", lines, re.M)
    return {name: member for member, name in found}


def main(program, libc):
    found = functions(program)
    every, hot, libc_names = defaultdict(int), defaultdict(int), set()
    for _, size, name in found:
        every[pattern(name)] += size
    exact = []
    for _, size, name in executed(found, [[int(word, 16) for word in line.split()] for line in sys.stdin]):
        if pattern(name):
            hot[pattern(name)] += size
            exact.append(name)
        else:
            libc_names.add(name)
    names = [name for name, size in hot.items() if every[name] <= FACTOR * size + SLACK]
    of = members(libc) | {"_start": "crt1.o"}
    archive = sorted({of[name] for name in libc_names if name in of})
    if len(names) < 100 or not archive:
        sys.exit(f"order.py: {len(names)} functions and {len(archive)} of libc are too few: are there symbols?")
    rows = [f"    *{member if member == 'crt1.o' else f'libc.a:{member}'}(.text .text.*)" for member in archive]
    names = [*sorted(libc_names - of.keys()), *exact, *names]
    rows += [f"    *(.text.{name} .text.unlikely.{name})" for name in names]
    print(HEAD, "SECTIONS", "{", "  .text.start :", "  {", *rows, "  }", "}", "INSERT BEFORE .text;", sep="\n")


main(*sys.argv[1:])
