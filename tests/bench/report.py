#!/usr/bin/env python3
"""report.py RESULTS FILE.md: what bench-report.sh measured, as a document with one SVG plot a family beside it.

RESULTS has facts.tsv (name, value), left-out.tsv (family, peer, reason), inside.tsv (peer, kind, nanoseconds, round), steps.tsv (start,
step, milliseconds at its end), scale.txt, and the files that hyperfine exported: start-none-N.json, start-pair-N.json and start-0.06-N.json,
exec-N.json (N is the round), scale-COUNT-N.json.
"""

import glob
import html
import json
import math
import os
import random
import re
import statistics
import sys

OURS, FILL, OTHER = "sandbox", "#2f81f7", "#8b949e"
# Both colours are readable on white and on black; what is written takes the reader's.
STYLE = """<style>text{font:13px sans-serif;fill:#24292f}.g{stroke:#8b949e;stroke-opacity:.4}.t{font-weight:bold}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}}</style>"""
# What a ratio of ours may be: beside systemd-run, without and with others alive; beside crun and Docker, inside.
START_BAR, SCALE_BARS, INSIDE_BAR = 0.85, {0: 0.85}, 1.0
INSIDE_PEERS = ("crun", "docker")
# What any sandbox with an overlay and a filter of system calls pays: no bar, it tells what one can come to.
INSIDE_FLOOR = "bwrap, empty filter"
# Ours beside one that has no filter and no range of IDs: what is left of the difference then is neither's.
OURS_BARE, BARE = "sandbox, no filter, no map", "crun"
# As tables list them; they are measured in any order.
ORDER = ("no sandbox", INSIDE_FLOOR, "true", "unshare", "bubblewrap", "systemd-run", "systemd-run+bwrap", OURS, OURS_BARE, "nsenter",
         "crun", "crun, Docker's filter", "runc", "nspawn", "podman", "docker")
SCALE_BAR, MEMORY_BAR_KIB, PS_BAR_MS = 1.0, 1024, 200
README_MARKS = ("<!-- bench: written by tests/bench.sh --report -->\n", "<!-- bench: end -->\n")
# What --timings says, and what is in it.
STEPS = {
    "plan": "Arguments, profile, facts of the machine, every decision: one pass over each file, paths compared as bytes; the usual filter "
            "of system calls is compiled ahead. Meanwhile the bus daemon greets, and a process of its own begins the "
            "kernel's grace period that systemd's first write to a cgroup would wait for.",
    "clone3": "The range of IDs, a process in five new namespaces.",
    "helper": "A thread that does all that the child waits for: it maps the IDs, mounts the /proc files and answers for them, and makes the "
              "root, with the host's privileges. What asks systemd has nothing else to do: it may get no CPU until systemd has answered.",
    "unit asked for": "The call that makes it and, behind it, the match for its job go out together, before anything that nobody waits "
                      "for yet.",
    "unit started, limits verified, child ready": "Waiting for two at once. systemd makes the "
                                                  "scope; each limit is read back from the kernel as soon as the process is in it, be that "
                                                  "before systemd says so. The child and the helper make network, overlay, mounts and masks, "
                                                  "on another CPU. Who of the two is done first is a matter of chance.",
    "payload executed": "Cgroup namespace, vfork, capabilities, one filter, as short as it can be, since the kernel compiles it; execve.",
    "ended": "The command itself (`true`), its end, and that of the processes around it.",
    "outside --timings": "The median of a start, above, less all of these: execve of the program and the kernel's work for it before its "
                         "first step, its own end after the last; and what two measurements differ by.",
}
KINDS = {
    "getppid": "system call (getppid)",
    "read": "open, read, close of a small file",
    "spawn": "start of a program, and its end",
    "loopback": "one byte over 127.0.0.1 and back",
}


def table_of(path):
    """The lines of a file of tab-separated values; none when nobody wrote it."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t") for line in lines]


def hyperfine(pattern):
    """Milliseconds by name of command and by file, each of which is of one round."""
    times = {}
    for path in sorted(glob.glob(pattern)):
        with open(path, encoding="utf-8") as file:
            for result in json.load(file)["results"]:
                times.setdefault(result["command"], {})[path] = [1000 * t for t in result["times"]]
    return listed(times)


def together(rounds):
    """Of all rounds. rounds: {name: {round: times}}."""
    return {name: [t for one in times.values() for t in one] for name, times in rounds.items()}


def listed(times):
    return dict(sorted(times.items(), key=lambda item: ORDER.index(item[0])))


def between(ours, theirs):
    """Where the ratio of two medians is in 19 of 20 cases, by the bootstrap over rounds: what is measured in one round has much in common.
    ours, theirs: {round: times}."""
    chance, rounds = random.Random(1), sorted(ours.keys() & theirs.keys())

    def median(times, drawn):
        return statistics.median(t for one in drawn for t in times[one])

    ratios = []
    for _ in range(1000):
        drawn = chance.choices(rounds, k=len(rounds))
        ratios.append(median(ours, drawn) / median(theirs, drawn))
    ratios.sort()
    return ratios[25], ratios[-26]


def number(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def said(value, bar):
    return "met" if value <= bar else "missed"


def compared(ours, theirs):
    """The ratio of two medians, and the same with where it may be, in three digits: 0.853 misses a bar of 0.85. ours, theirs: {round: times}."""
    medians = [statistics.median(t for one in times.values() for t in one) for times in (ours, theirs)]
    ratio, (low, high) = medians[0] / medians[1], between(ours, theirs)
    return ratio, low, f"{ratio:.3f} ({low:.3f} to {high:.3f})"


def inside_verdict(ours, theirs, has_bar):
    """How ours compares, and whether that is over the bar, if there is one. ours, theirs: {round: times}."""
    ratio, low, text = compared(ours, theirs)
    word = said(ratio, INSIDE_BAR) if low > INSIDE_BAR or ratio <= INSIDE_BAR else "not told apart"
    return f"{text}, {word if has_bar else 'no bar'}"


def bar_plot(title, groups, unit):
    """Horizontal bars to the median, a tick at the minimum, on a log scale. groups: (heading, {name: times})."""
    rows = []
    for heading, times in groups:
        rows += [(heading, None, None)] if heading else []
        rows += [(name, min(t), statistics.median(t)) for name, t in times.items()]
    lowest = math.floor(math.log10(min(low for _, low, _ in rows if low)))
    highest = math.ceil(math.log10(max(middle for _, _, middle in rows if middle)))
    left, width, top = 190, 460, 50

    def x(value):
        return left + width * (math.log10(value) - lowest) / max(highest - lowest, 1)

    height = top + 24 * len(rows) + 10
    out = [f'<text class="t" x="10" y="20">{html.escape(title)}</text>']
    for power in range(lowest, highest + 1):
        at = x(10.0**power)
        out.append(f'<line class="g" x1="{at:.0f}" y1="{top - 6}" x2="{at:.0f}" y2="{height - 8}"/>')
        out.append(f'<text x="{at:.0f}" y="{top - 12}" text-anchor="middle">{10.0**power:g} {unit}</text>')
    for index, (name, low, middle) in enumerate(rows):
        y = top + 24 * index
        if low is None:
            out.append(f'<text class="t" x="10" y="{y + 14}">{html.escape(name)}</text>')
            continue
        fill = FILL if name == OURS else OTHER
        out.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>')
        out.append(f'<rect x="{left}" y="{y + 2}" width="{max(x(middle) - left, 1):.1f}" height="16" fill="{fill}"/>')
        out.append(f'<line x1="{x(low):.1f}" y1="{y}" x2="{x(low):.1f}" y2="{y + 20}" stroke="#d29922" stroke-width="2"/>')
        out.append(f'<text x="{max(x(middle), x(low)) + 6:.0f}" y="{y + 14}">{number(middle)}</text>')
    return svg(left + width + 70, height, out)


def line_plot(title, series, unit):
    """One line a name over the counts. series: {name: {count: value}}."""
    counts = sorted({count for values in series.values() for count in values})
    most = max(value for values in series.values() for value in values.values()) * 1.1
    left, top, width, height = 70, 50, 560, 220
    out = [f'<text class="t" x="10" y="20">{html.escape(title)}</text>']
    for part in range(5):
        y = top + height - height * part / 4
        out.append(f'<line class="g" x1="{left}" y1="{y:.0f}" x2="{left + width}" y2="{y:.0f}"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{number(most * part / 4)} {unit}</text>')
    step = width / max(len(counts) - 1, 1)
    for index, count in enumerate(counts):
        out.append(f'<text x="{left + step * index:.0f}" y="{top + height + 20}" text-anchor="middle">{count} live</text>')
    for row, (name, values) in enumerate(series.items()):
        fill = FILL if name == OURS else OTHER
        points = [(left + step * counts.index(c), top + height - height * v / most) for c, v in sorted(values.items())]
        joined = " ".join(f"{a:.0f},{b:.1f}" for a, b in points)
        out.append(f'<polyline points="{joined}" fill="none" stroke="{fill}" stroke-width="3"/>')
        out += [f'<circle cx="{a:.0f}" cy="{b:.1f}" r="4" fill="{fill}"/>' for a, b in points]
        out.append(f'<rect x="{left + 150 * row}" y="28" width="12" height="12" fill="{fill}"/>')
        out.append(f'<text x="{left + 150 * row + 18}" y="39">{html.escape(name)}</text>')
    return svg(left + width + 40, top + height + 34, out)


def svg(width, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return "\n".join([head, STYLE, *parts, "</svg>", ""])


def times_table(times, unit, base, bar=None):
    """Minimum and median of each, and how many times as long as `base` it takes. bar: a heading, and what is said there by name."""
    if base not in times:
        return [f"There is no figure of {base}."]
    low, middle = min(times[base]), statistics.median(times[base])
    lines = [f"| | minimum, {unit} | median, {unit} | minimum / {base} | median / {base} |" + (f" {bar[0]} |" if bar else ""),
             "|---|---:|---:|---:|---:|" + ("---:|" if bar else "")]
    for name, t in times.items():
        mid = statistics.median(t)
        label = f"**{name}**" if name == OURS else name
        lines.append(f"| {label} | {number(min(t))} | {number(mid)} | {min(t) / low:.2f} | {mid / middle:.2f} |" + (f" {bar[1].get(name, '')} |" if bar else ""))
    return lines


class Report:
    """The document, and what is asked of the results on the way."""

    def __init__(self, results, path):
        self.results, self.path, self.lines = results, path, []
        self.facts = {name: value for name, value in table_of(f"{results}/facts.tsv")}
        self.out_of_it = table_of(f"{results}/left-out.tsv")
        self.busy = float(self.facts["load"].split()[0]) > 0.5 * int(self.facts["cpus"])
        self.headlines = []

    def say(self, *lines):
        self.lines += [*lines, ""]

    def plot(self, name, text):
        with open(os.path.join(os.path.dirname(self.path) or ".", f"bench-{name}.svg"), "w", encoding="utf-8") as file:
            file.write(text)
        self.say(f"![{name}](bench-{name}.svg)")

    def missing(self, family):
        lines = [f"- Without {name}: {reason}." for of, name, reason in self.out_of_it if of == family]
        if lines:
            self.say(*lines)

    def start(self, gap, name, title, told):
        rounds = hyperfine(f"{self.results}/start-{gap}-*.json")
        times = together(rounds)
        self.say(f"## {title}", "", told)
        if not times:
            self.say("Nothing was measured.")
            self.missing("start")
            return
        self.plot(name, bar_plot(title, [("", times)], "ms"))
        verdicts = {}
        if OURS in times and "systemd-run" in times:
            ratio, _, text = compared(rounds[OURS], rounds["systemd-run"])
            verdicts[OURS] = f"{text}, {said(ratio, START_BAR)}"
        self.say(*times_table(times, "ms", "systemd-run", (f"bar: at most {START_BAR}", verdicts)))
        self.missing("start")
        self.headline(times, title[0].lower() + title[1:], "systemd-run", "docker")

    def headline(self, times, what, *others, ours=OURS):
        if ours not in times:
            return
        ours = statistics.median(times[ours])
        for other in others:
            if other in times:
                self.headlines.append((what, other, ours / statistics.median(times[other])))

    def steps(self):
        took = {}
        before = {}
        for start, step, at in table_of(f"{self.results}/steps.tsv"):
            row = next((row for row in STEPS if step in row.split(", ")), step)
            one = took.setdefault(row, {})
            one[start] = one.get(start, 0.0) + float(at) - before.get(start, 0.0)
            before[start] = float(at)
        self.say("## What a start is spent on", "", "Back to back, by `--timings`: the steps of the launcher, one after the other, and what was done about each.")
        if not took:
            self.say("Nothing was measured.")
            return
        medians = {step: statistics.median(times.values()) for step, times in took.items()}
        inside = sum(medians.values())
        whole = inside
        starts = together(hyperfine(f"{self.results}/start-none-*.json")).get(OURS)
        if starts:
            whole = statistics.median(starts)
            medians["outside --timings"] = whole - inside
        rows = [f"| {step} | {number(ms)} | {100 * ms / whole:.0f} % | {STEPS[step]} |" for step, ms in medians.items()]
        self.say("| step | median, ms | share | what is in it |", "|---|---:|---:|---|", *rows, f"| all | {number(whole)} | | |")

    def exec(self):
        times = together(hyperfine(f"{self.results}/exec-*.json"))
        self.say("## One more process in a running one", "", "`exec … true`; nsenter joins the namespaces and does nothing else.")
        if times:
            self.plot("exec", bar_plot("exec of true", [("", times)], "ms"))
            self.say(*times_table(times, "ms", OURS))
            self.headline(times, "exec", *(name for name in times if name.startswith("crun")), "docker")
        self.missing("exec")

    def scale(self):
        series = {OURS: {}, "systemd-run": {}}
        names = glob.glob(f"{self.results}/scale-*-1.json")
        for count in (int(re.search(r"scale-(\d+)-1\.json", name)[1]) for name in names):
            for name, rounds in hyperfine(f"{self.results}/scale-{count}-*.json").items():
                series[name][count] = rounds
        medians = {name: {count: statistics.median(t) for count, t in together(of).items()} for name, of in series.items()}
        self.say("## A start while others live", "", "Median of one more start; `systemd-run --scope` with the same limits beside it.")
        if series[OURS]:
            self.plot("scale", line_plot("Start with others live, median", medians, "ms"))
        text = ""
        if os.path.exists(f"{self.results}/scale.txt"):
            with open(f"{self.results}/scale.txt", encoding="utf-8") as file:
                text = file.read()
            self.say("```", text.rstrip("\n"), "```")
        rows = self.scale_rows(series, text)
        if rows:
            self.say("| | figure | bar | |", "|---|---:|---:|---|", *rows)
        most = max(medians[OURS], default=0)
        if most:
            self.headlines.append((f"start with {most} live", "systemd-run", medians[OURS][most] / medians["systemd-run"][most]))

    def scale_rows(self, series, text):
        """The bars of this family, and how it stands to each. series: {name: {count: {round: times}}}; text: what bench-scale.sh printed."""
        rows = []
        for count, ours in sorted(series[OURS].items()):
            if count in series["systemd-run"]:
                bar = SCALE_BARS.get(count, SCALE_BAR)
                ratio, _, figure = compared(ours, series["systemd-run"][count])
                rows.append(f"| start with {count} live, beside systemd-run | {figure} | {bar} | {said(ratio, bar)} |")
        for took in re.findall(r"^ *300(?: +[\d.]+){3} +([\d.]+) ", text, re.M):
            rows.append(f"| `ps` with 300 live, ms | {took} | {PS_BAR_MS} | {said(float(took), PS_BAR_MS)} |")
        for worst, of, live in re.findall(r"worst (\d+), of (\d+); live: (\d+)", text):
            met = said(int(worst), MEMORY_BAR_KIB) if of == live else "missed"
            rows.append(f"| private memory of one, the worst of {of}, KiB | {worst} | {MEMORY_BAR_KIB} | {met} |")
        for what, before, after in re.findall(r"^(.*?)(?: ended;|:).* before: ([\d ]+), after: ([\d ]+)$", text, re.M):
            differ = sum(a != b for a, b in zip(before.split(), after.split()))
            failed = re.search(rf"^{re.escape(what)}:.* (\d+) lines of failures", text, re.M)
            if failed and int(failed[1]):
                rows.append(f"| {what}: lines of failures | {failed[1]} | 0 | missed |")
            rows.append(f"| {what}: counts that are not what they were | {differ} | 0 | {said(differ, 0)} |")
        return rows

    def inside(self):
        kinds, rounds = {}, {}
        for peer, kind, nanoseconds, round_ in table_of(f"{self.results}/inside.tsv"):
            kinds.setdefault(kind, {}).setdefault(peer, []).append(int(nanoseconds) / 1000)
            rounds.setdefault((kind, peer), {}).setdefault(round_, []).append(int(nanoseconds) / 1000)
        kinds = {kind: listed(times) for kind, times in kinds.items()}
        self.say("## What it costs inside", "",
                 "One operation of a program that runs in it. crun has what `crun spec` writes, on an overlay, without and with the filter",
                 "that dockerd gives its runtime; bwrap is on the same overlay, in a scope of systemd-run's, with a filter of one instruction that",
                 "allows all: the least that the kernel takes for any filter. All have the same limits. Ours has besides what they have not: a user",
                 "namespace with a range of IDs of its own, whose layers are idmapped, so that each open of a file maps its owner. `crun spec` as it",
                 "is has neither filter nor map: beside it ours is measured without them, too (`--seccomp unconfined --procview off --userns",
                 "identity`). Each is kept on one CPU: on how many the two ends of a connection run is a matter of chance, and decides more than any",
                 "sandbox does. Two that are not told apart are the same: a ratio of 1 is within the brackets.")
        if kinds:
            self.plot("inside", bar_plot("One operation inside", [(KINDS[kind], times) for kind, times in kinds.items()], "µs"))
        for kind, times in kinds.items():
            ours = times.get(OURS)
            ratios = {name: inside_verdict(rounds[kind, OURS], rounds[kind, name], name != INSIDE_FLOOR)
                      for name in times if ours and name.startswith((INSIDE_FLOOR, *INSIDE_PEERS))}
            if BARE in ratios and OURS_BARE in times:
                ratios[BARE] += "; ours without filter and map: " + inside_verdict(rounds[kind, OURS_BARE], rounds[kind, BARE], True)
            self.say(f"{KINDS[kind]}:", "", *times_table(times, "µs", "no sandbox", (f"sandbox / it, bar: at most {INSIDE_BAR}", ratios)))
            self.headline(times, KINDS[kind], *(name for name in times if name.startswith(INSIDE_PEERS)))
            self.headline(times, f"{KINDS[kind]}, without filter and map", BARE, ours=OURS_BARE)
        self.missing("inside")

    def write(self):
        self.say("# Benchmarks")
        if self.busy:
            self.say(f"**The machine was busy (load average {self.facts['load']}): these figures are not to be cited.**")
        self.say("Written by this command, which makes it all again (as root):", "", "```", self.facts["command"], "```")
        named = {"load": "load average before", "load after": "load average after, with the measuring's own"}
        shown = []
        for name, value in self.facts.items():
            if name not in ("command", "cpus", "load after"):
                shown.append((name, value))
            if name == "load" and "load after" in self.facts:
                shown.append(("load after", self.facts["load after"]))
        self.say("| | |", "|---|---|", *(f"| {named.get(name, name)} | {value} |" for name, value in shown))
        self.say("Plots are on a logarithmic scale: a bar ends at the median, its tick is the minimum. Every command of a family is run in",
                 "each round, one after the other in any order, so that what drifts on the machine drifts for all; of many short rounds, since how",
                 "processes share the CPUs stays the same for some starts and decides up to a third of each. Before each of a start's",
                 "commands there are 0.3 s of rest: what a container manager still takes down after it has ended is not to be another's cost.",
                 "A ratio below 1 is less time; in brackets is where it is in 19 of 20 cases (bootstrap over the rounds).")
        told = "`true` in a full default sandbox, with a CPU and a memory limit that all but the first three have, too."
        self.start("none", "start", "Start, back to back", told)
        self.start("pair", "pair", "Start, back to back, beside systemd-run alone",
                   "The same, these two in turns for minutes. systemd-run has two speeds, and keeps to one for up to a minute: a unit with a\n"
                   "weight in system.slice that comes and goes makes systemd realize the cgroups of all others there again, unless the one\n"
                   "before it is still there. Ours is in a slice of its own and pays that to nobody. Among all peers, above, either speed may be\n"
                   "what is seen.")
        self.start("0.06", "idle", "Start, after 60 ms of idleness", "The same, each after a pause: caches are cold and the kernel has no grace period under way.")
        self.steps()
        self.exec()
        self.scale()
        self.inside()
        with open(self.path, "w", encoding="utf-8") as file:
            file.write("\n".join(self.lines).rstrip("\n") + "\n")

    def readme(self):
        """The headline ratios, between the two marks; figures of a busy machine do not get there."""
        if os.path.normpath(self.path) != "packaging/BENCHMARKS.md":
            return
        if self.busy:
            print(f"README.md is left as it is: the load average was {self.facts['load']}")
            return
        with open("README.md", encoding="utf-8") as file:
            before, rest = file.read().split(README_MARKS[0])
        after = rest.split(README_MARKS[1])[1]
        lines = ["| | beside | time, as a ratio of medians |", "|---|---|---:|"]
        lines += [f"| {what} | {other} | {ratio:.2f} |" for what, other, ratio in self.headlines]
        lines += ["", "![start, back to back](packaging/bench-start.svg)", "",
                  f"Measured on {self.facts['date'][:10]}: {self.facts['machine']}, {self.facts['kernel']}. "
                  "[All figures and plots](packaging/BENCHMARKS.md).", ""]
        with open("README.md.new", "w", encoding="utf-8") as file:
            file.write(README_MARKS[0].join([before, "\n".join(lines) + README_MARKS[1] + after]))
        os.replace("README.md.new", "README.md")


report = Report(sys.argv[1], sys.argv[2])
report.write()
report.readme()
print(f"{sys.argv[2]} is written")
