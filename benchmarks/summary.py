"""The README's summary: how many times faster than the peers that most people have, and where not."""

from __future__ import annotations

from .markdown import footnote, lost, machine, mean_and_worst, measured, table
from .results import Results, groups, plural, ratios
from .suites import PLAIN, SHAPES

PEERS = ("torch.nn", "ONNX Runtime")


def text(cpu: list[Results]) -> str:
    last = cpu[-1]
    peers = [name for name in PEERS if name in measured([line for one in cpu for line in one.lines])]
    versions = " and ".join(f"{name} {last.peers[name]}" for name in peers)
    introduction = (
        f"How many times faster than {versions}: geometric mean of {len(SHAPES)} shapes, in brackets the worst one. "
        f"float32, on {machine(last)}, {last.date[:10]}."
    )
    parts = [introduction, _table(cpu, peers), _lost(cpu, peers)]
    return "\n\n".join([*parts[:-1], " ".join([parts[-1], *footnote(*parts)])]) + "\n"


def _table(cpu: list[Results], peers: list[str]) -> str:
    by_threads = {one.threads: groups(one.lines) for one in cpu}
    keys = dict.fromkeys(key for found in by_threads.values() for key in found if key[0] == PLAIN)
    heads = [f"{name}, {plural(threads, 'thread')}" for name in peers for threads in by_threads]
    rows = [
        [
            f"{layer} {mode}",
            *(
                mean_and_worst(found.get((group, layer, mode), []), name)
                for name in peers
                for found in by_threads.values()
            ),
        ]
        for group, layer, mode in keys
    ]
    return table(["", *heads], rows)


def _lost(cpu: list[Results], peers: list[str]) -> str:
    """A sentence about the lines of all groups in which each of the peers is faster."""
    said = []
    for name in peers:
        number, slower = sum(len(list(ratios(one.lines, name))) for one in cpu), list(lost(cpu, name))
        where = ", ".join(dict.fromkeys(f"{line.work.group} {line.work.layer}" for _, line, _ in slower))
        said.append(f"{name} is faster in {len(slower)} of {number} measured lines{f' ({where})' if where else ''}")
    return f"{'; '.join(said)}."
