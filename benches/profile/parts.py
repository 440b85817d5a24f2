"""Sorts the stacks that `perf script` prints into the worker's parts, by the thread or else by the
innermost frame that belongs to one, and tells what each part takes of an order's CPU time."""

import collections
import re
import sys

PARTS = [
    ("JSON, ids, admission", r"serde|RawValue|::wire::|jiff|uuid|sha1|admit::"),
    ("HTTP", r"hyper|reqwest|gateway::client|gateway::sign|http::|\burl"),
    ("AMQP: publish, consume, acknowledge", r"lapin|flume|event_listener|amq_protocol|broker::"),
    ("desk and lanes", r"rules::"),
    ("metrics, log, traces", r"prometheus|tracing|telemetry::|admin::|opentelemetry"),
    ("the worker's loop", r"wdt_cancel_worker::worker"),
]
REST = "runtime: timers, wake-ups, polls"


def part(thread, frames):
    if thread.startswith("ledger"):
        ours = r"ledger::journal|sha2|Scribe|put_row"
        return "ledger: journal" if any(re.search(ours, f) for f in frames) else "ledger"
    if thread.startswith("lapin"):
        return "AMQP: the client's thread"
    for frame in frames:
        for name, pattern in PARTS[:4]:
            if re.search(pattern, frame):
                return name
    for name, pattern in PARTS[4:]:
        if any(re.search(pattern, frame) for frame in frames):
            return name
    return REST


def stacks(lines):
    thread, frames = None, []
    for line in lines:
        if not line.strip():
            if thread:
                yield thread, frames
            thread, frames = None, []
        elif line[0] in " \t":
            frame = re.match(r"\s+[0-9a-f]+ (.*) \(.*\)$", line)
            if frame:
                frames.append(frame.group(1))
        else:
            thread, frames = line.split()[0], []
    if thread:
        yield thread, frames


def main():
    micros = float(sys.argv[1])
    counts = collections.Counter(part(*stack) for stack in stacks(sys.stdin))
    total = sum(counts.values())
    for name, count in counts.most_common():
        print(f"{micros * count / total:6.1f} µs  {100 * count / total:5.1f} %  {name}")
    print(f"{micros:6.1f} µs of CPU an order, {total} samples")


main()
