"""Tests the CUDA engine on this GPU and measures it, in a list of steps with a time limit for each.

    python scripts/gpu_check.py OUT_DIR [--quick | --full | --rehearse] [--only STEP ...] [--seconds N]

--quick (the default) builds, runs a few tests, measures the floors and, in the remaining time, the most informative
lines of the benchmark. --full adds all tests and compute-sanitizer. --rehearse runs the same steps, or substitutes, on
a CPU, to test the scripts. --only selects steps, to continue where a run ended.

A step that fails or runs out of time does not stop the others. Everything stops after N seconds, part of which is
reserved for the benchmark. OUT_DIR gets steps.json, written after every step, and the steps' own files: floors.jsonl,
gpu-*.json and kernels.json.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FULL = ("full",)
KILL_SECONDS = 5  # between SIGTERM and SIGKILL
# Only this library's kernels: others would take most of the time.
SANITIZER = "compute-sanitizer --tool {tool} --kernel-name kns=fused_rnn --error-exitcode 86"
# Not as errors, as elsewhere in this project: a warning of the machine's packages should not fail the run.
PYTEST = "{python} -m pytest {tests} -m cuda -q -p no:cacheprovider -W default --durations=5"
FEW, MANY, TORCH, OWN = (
    PYTEST.replace("{tests}", f"tests/cuda/{name}.py")
    for name in ("test_gpu", "test_gpu_parity", "test_gpu_torch", "test_gpu_own")
)
# Waits at block scope: not sufficient by the memory model, perhaps in practice, and faster. Only informative.
NARROW = "FUSED_RNN_CUDA_MBARRIER_SCOPE=cta "
WAYS = ("one", "cluster", "polling", "flags")  # of the persistent kernel, one step each in case it hangs
IN_GRAPHS = "'(graph or same_bits or streams_and_threads) and not projected'"
BEST = "FUSED_RNN_ENGINE=${{FUSED_RNN_ENGINE:-best}} "  # the persistent kernel where there is one
EXAMPLES = "{python} -m fused_rnn verify --quick --cell lstm gru"
FLOORS = "{python} -m benchmarks.floors {out}/floors.jsonl"
TABLES = "FUSED_RNN_CACHE={out}/tables "
TUNE = TABLES + "{python} -m fused_rnn tune --seconds {left}"
AUTO = TABLES + "FUSED_RNN_ENGINE=${{FUSED_RNN_ENGINE:-auto}} "  # by what the step "tune" has measured
BENCHMARK = AUTO + "{python} -m benchmarks gpu --quick --out {out} --seconds {left}"
KERNELS = BEST + "{python} -m benchmarks.gpu_kernels {out}/kernels.json --seconds {left}"


@dataclass(frozen=True)
class Step:
    name: str
    seconds: float  # at most
    command: str
    rehearsal: str | None = None  # the command without a GPU; "": the same; None: skipped
    modes: tuple[str, ...] = ("quick", "full")
    reserved: float = 0  # seconds that earlier steps must leave

    def text(self, mode: str, **facts) -> str:
        command = self.rehearsal or self.command if mode == "rehearse" else self.command
        return command.format(python=shlex.quote(sys.executable), **facts)


def sanitized(tool: str) -> list[Step]:
    under = SANITIZER.format(tool=tool)
    floors = "{python} -m benchmarks.floors /dev/null --under"
    rehearsals = (f"{floors} env --rehearse", EXAMPLES) if tool == "memcheck" else (None, None)  # once is enough
    return [
        Step(f"{tool}-floors", 40, f"{floors} '{under}'", rehearsals[0], FULL),
        Step(tool, 60, f"{BEST}{under} {EXAMPLES} --device cuda", rehearsals[1], FULL),
    ]


STEPS = [
    Step("machine", 20, "nvidia-smi && nvcc --version && {python} --version", "{python} --version"),
    Step("build", 300, "FUSED_RNN_CUDA=1 {python} setup.py build_ext --inplace"),
    Step("info", 30, "{python} -m fused_rnn info", ""),
    Step("smoke", 60, FEW + " -k 'stream or odd_sizes or graph'", ""),
    *[Step(f"persistent-{way}", 30, FEW + f" -k 'every_way and {way}-'", "") for way in WAYS],
    Step("cluster-narrow", 30, NARROW + FEW + " -k 'every_way and cluster-'", ""),
    Step("torch", 60, TORCH, ""),
    Step("own", 90, OWN, ""),  # cells that nvcc compiles there
    Step("floors", 60, FLOORS, FLOORS + " --rehearse"),
    Step("verify", 60, "{python} -m fused_rnn verify --device cuda", EXAMPLES),
    Step("verify-best", 60, BEST + "{python} -m fused_rnn verify --device cuda", None),
    Step("tests", 90, FEW + " -k 'not every_way'", "", FULL),
    Step("parity", 150, MANY + " --maxfail=20", "", FULL),
    *[Step(f"in-graphs-{way}", 30, f"FUSED_RNN_ENGINE={way} {FEW} -k {IN_GRAPHS}", "", FULL) for way in WAYS[1:3]],
    *sanitized("memcheck"),
    *sanitized("racecheck"),
    *sanitized("synccheck"),
    Step("tune", 150, TUNE + " --device cuda --quick", TUNE + " --like 'gru T1 B1 H2'"),
    Step("benchmark", 600, BENCHMARK, BENCHMARK + " --rehearse", reserved=120),
    Step("kernels", 45, KERNELS, KERNELS + " --rehearse", reserved=30),
    Step("kernels-narrow", 45, NARROW + KERNELS.replace("kernels.json", "kernels-narrow.json"), None, FULL),
]
SECONDS = {"quick": 480, "full": 570, "rehearse": 320}


@dataclass
class Outcome:
    step: str
    result: str  # "passed", "failed with status N", "out of time" or "no time left"
    seconds: float


def run_steps(steps: list[Step], mode: str, seconds: float, out: Path) -> list[Outcome]:
    """Runs the steps; ``out``/steps.json is updated after each."""
    outcomes, end = [], time.monotonic() + seconds
    for i, step in enumerate(steps):
        later = sum(other.reserved for other in steps[i + 1 :])
        limit = min(step.seconds, end - time.monotonic() - later - KILL_SECONDS)
        outcomes.append(run_step(step, mode, limit, out))
        new = out / "steps.new"
        new.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
        new.replace(out / "steps.json")
    return outcomes


def run_step(step: Step, mode: str, limit: float, out: Path) -> Outcome:
    if limit <= 0:
        return Outcome(step.name, "no time left", 0)
    # Steps that take {left} should end before the limit, in time to write their results.
    command = step.text(mode, out=shlex.quote(str(out)), left=max(1, round(limit - 2 * KILL_SECONDS)))
    print(f"== {step.name}, at most {limit:.0f} s: {command}", flush=True)
    begin = time.monotonic()
    running = subprocess.Popen(["bash", "-c", command], cwd=ROOT, start_new_session=True)
    try:
        status = running.wait(limit)
        result = "passed" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        stop(running)
        result = "out of time"
    outcome = Outcome(step.name, result, round(time.monotonic() - begin, 1))
    print(f"== {step.name}: {outcome.result} after {outcome.seconds} s\n", flush=True)
    return outcome


def stop(running: subprocess.Popen) -> None:
    """Stops a step and its subprocesses. A process that waits for a hanging kernel may survive even SIGKILL."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(running.pid, kind)
            running.wait(KILL_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def chosen(mode: str, only: list[str]) -> list[Step]:
    unknown = set(only) - {step.name for step in STEPS}
    if unknown:
        sys.exit(f"gpu_check: no step is called {', '.join(sorted(unknown))}: {', '.join(s.name for s in STEPS)}")
    possible = [step for step in STEPS if mode != "rehearse" or step.rehearsal is not None]
    if only:
        return [step for step in possible if step.name in only]
    return [step for step in possible if mode == "rehearse" or mode in step.modes]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out_dir", type=Path)
    modes = parser.add_mutually_exclusive_group()
    for mode in SECONDS:
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="quick")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP")
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    seconds = options.seconds or SECONDS[options.mode]
    steps = chosen(options.mode, options.only)
    outcomes = run_steps(steps, options.mode, seconds, options.out_dir.resolve())
    for outcome in outcomes:
        print(f"{outcome.step:17} {outcome.seconds:6.1f} s  {outcome.result}")
    sys.exit(any(outcome.result != "passed" for outcome in outcomes))


if __name__ == "__main__":
    main()
