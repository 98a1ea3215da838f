"""Measures one suite with the threads that this process is confined to, printing line by line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

import fused_rnn
from fused_rnn.tools.progress import progress
from fused_rnn.tools.verify import relative_error

from . import memory, own_cells, rl, roofline, table
from .features import Feature, features
from .limits import Limits
from .load import Load
from .peers import PEERS
from .problem import Side, build, calls_of, check
from .results import Line, Results, plural
from .suites import PLAIN, SUITES, Effort, Work
from .timing import time_interleaved, wait_for_idle_threads
from .variants import VARIANTS

Item = TypeVar("Item")
FEATURES = {"features": features, "rl": rl.features, "own": own_cells.features}  # suites whose lines are features


def measure(suite: str, effort: Effort, threads: int, most_threads: int, only: list[str]) -> Results:
    """The lines of a suite whose names contain every word of ``only``."""
    start = time.monotonic()
    torch.set_num_threads(threads)
    # torch.nn warns of its own performance, for projected layers and under vmap.
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    warnings.filterwarnings("ignore", "There is a performance drop")
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")  # for the time that compiling takes
    limits = Limits(threads)
    results = Results(
        suite=suite,
        effort=effort.name,
        threads=threads,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=commit(),
        machine=machine_facts(),
        peers={"torch.nn": torch.__version__} | peers_of(suite),
        limits=limits.overview(),
    )
    print(f"\n{suite} suite on {plural(threads, 'thread')}, {effort.name}")
    for facts in (results.machine, results.peers, results.limits):
        for key, value in facts.items():
            print(f"{key + ':':29} {value}")
    if suite in FEATURES:
        found = [f for f in FEATURES[suite](full=effort.name == "full") if asked(f.name, only)]
        for feature in _with_progress(found, lambda f: f.name):
            results.features.append(measure_feature(feature, effort, threads, most_threads))
            _print(table.feature_row(results.features[-1]))
        return results

    works = [w for w in SUITES[suite] if effort.selects(w, threads, most_threads) and asked(str(w), only)]
    print(_fitted(f"\n{table.EXPLANATION}"))
    group = None
    for work in _with_progress(works, str):
        line, left_out = measure_line(work, effort, limits, most_threads)
        results.lines.append(line)
        for why in left_out:
            places, place = results.left_out.setdefault(why, []), f"{work.group} {work.mode}"
            if place not in places:
                places.append(place)
        if work.group != group:
            group = work.group
            _print(f"-- {group}")
        _print(table.row(line))
    if suite == "cpu" and threads == most_threads and effort.name != "quick" and not only:
        steps = [w for w in works if w.group == PLAIN and w.mode == "training"]
        results.memory = [memory.peak(work, threads) for work in _with_progress(steps, lambda w: f"memory of {w}")]
    print(_fitted(table.summary(results)))
    print(f"\ntook {time.monotonic() - start:.0f} s")
    return results


def peers_of(suite: str) -> dict[str, str]:
    """Versions, or why one is missing."""
    if suite == "own":
        return {}  # Python loops need torch alone
    return rl.versions() if suite == "rl" else {peer.NAME: peer.missing() or peer.version() for peer in PEERS}


def measure_line(work: Work, effort: Effort, limits: Limits, cores: int) -> tuple[Line, list[str]]:
    """The line, and the reason for everything that it leaves out: installed peers, calls of ours."""
    problem = build(work)
    sides, left_out = problem.sides(), []
    for variant in VARIANTS:
        if variant.applies(work):
            why = variant.missing(work)
            if why is None:
                sides[variant.name] = variant.build(problem)
            else:
                left_out.append(f"{variant.name}: {why}")
    for peer in PEERS:
        if peer.missing():
            continue
        why = peer.left_out(work)
        if why is None:
            try:
                sides[peer.NAME] = peer.build(problem)
            except TimeoutError as error:
                why = str(error)
        if why is not None:
            left_out.append(f"{peer.NAME}: {why}")
    with calls_of(work):
        found = check(work, sides)
    quantized = [name for name, side in sides.items() if side.quantized]
    exact = problem.exact_output() if quantized else None
    errors = {name: {"error": relative_error(found[name][0], exact)} for name in quantized}

    cost = roofline.cost(work)
    instructions = limits.fastest(work.dtype)
    shares = limits.shares(cost.resident_bytes / limits.threads)
    operations, read = [], {level: [] for level in shares}

    def probe() -> None:
        wait_for_idle_threads()
        operations.append(limits.operations(instructions))
        for level, rates in read.items():
            rates.append(limits.read(level))

    load = Load(limits.threads, cores)
    with calls_of(work):
        times = time_interleaved({name: side.run for name, side in sides.items()}, effort, probe)
    busy = load.facts()
    seconds_per_byte = {level.name: share / median(read[level]) for level, share in shares.items()}
    limit = roofline.limit(cost, median(operations), instructions, seconds_per_byte)
    facts = {"ms": 1e3 * limit.seconds, "bound_by": limit.bound_by, **asdict(cost)} if work.device == "cpu" else {}
    timed = {name: asdict(timing) | errors.get(name, {}) for name, timing in times.items()}
    return Line(work, timed, facts, busy), left_out


def measure_feature(feature: Feature, effort: Effort, threads: int, cores: int) -> dict:
    torch.manual_seed(0)
    runs = feature.build()
    if feature.same_results:
        check(feature.name, {name: Side(run) for name, run in runs.items()}, next(iter(runs)))
    if feature.once:
        effort = replace(effort, seconds=0, fewest_rounds=1)
    load = Load(threads, cores)
    times = time_interleaved(runs, effort)
    sides = {name: asdict(timing) for name, timing in times.items()}
    return {"name": feature.name, "target": feature.target, "sides": sides, "load": load.facts()}


def asked(name: str, only: list[str]) -> bool:
    return all(word in name for word in only)


def _with_progress(items: list[Item], describe) -> Iterator[Item]:
    return progress(items, len(items), describe)


def _print(row: str) -> None:
    clear = "\r\033[K" if sys.stderr.isatty() else ""  # the bar
    print(f"{clear}{_fitted(row)}", flush=True)


def _fitted(text: str) -> str:
    """As wide as the terminal; files and pipes get whole lines."""
    return table.fitted(text, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def machine_facts() -> dict[str, str]:
    facts = fused_rnn.info()
    for private in ("library", "platform"):
        del facts[private]
    return facts


def commit() -> str | None:
    """With "-dirty" if the code differs from it; result files do not count.

    FUSED_RNN_COMMIT names it for a copy of the files without git.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess:
        root = Path(__file__).resolve().parent.parent
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)

    named = os.environ.get("FUSED_RNN_COMMIT")
    if named or shutil.which("git") is None:
        return named
    found = git("rev-parse", "--short", "HEAD").stdout.strip()
    written = [f":!{name}" for name in ("benchmarks/results", "README.md", "docs")]
    dirty = git("diff", "--quiet", "HEAD", "--", ".", *written).returncode
    return f"{found}{'-dirty' if dirty else ''}" if found else None
