"""``python -m benchmarks [--suite cpu] [--threads N] [--only LSTM training] [--out results.json]``"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from math import exp, log
from pathlib import Path

import torch

import fused_rnn
from fused_rnn._progress import progress

from .harness import Measurement, measure
from .suites import LAYERS, MODES, SUITES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads; default: torch's own choice")
    parser.add_argument("--only", nargs="+", choices=(*LAYERS, *MODES), help="only these layers and modes")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    layers = set(options.only or ()) & set(LAYERS) or LAYERS
    modes = set(options.only or ()) & set(MODES) or MODES
    works = [w for w in SUITES[options.suite] if w.layer in layers and w.mode in modes]
    facts = fused_rnn.info()
    for private in ("library", "platform"):
        del facts[private]
    for key, value in facts.items():
        print(f"{key + ':':29} {value}")
    print(f"\n{'layer':5}{'mode':10}{'shape':16}{'ours ms':>9}{'torch ms':>10}{'ratio':>8}")
    results = []
    clear = "\r\033[K" if sys.stderr.isatty() else ""  # the bar
    for work in progress(works, len(works), str):
        result = measure(work)
        results.append(result)
        slower = "  slower" if result.ratio < 1 else ""
        print(
            f"{clear}{result.layer:5}{result.mode:10}{work.shape!s:16}{result.ours_ms:9.2f}{result.torch_ms:10.2f}"
            f"{result.ratio:7.2f}x{slower}",
            flush=True,
        )
    print("\ngeometric means of the ratio torch.nn / ours (above 1: ours is faster)")
    for layer in LAYERS:
        for mode in MODES:
            print_geomean(layer, mode, [r for r in results if (r.layer, r.mode) == (layer, mode)])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(as_json(options.suite, facts, results), indent=1) + "\n")
        print(f"\nwritten to {options.out}")
    return 0


def print_geomean(layer: str, mode: str, results: list[Measurement]) -> None:
    if results:
        mean = exp(sum(log(r.ratio) for r in results) / len(results))
        worst = min(results, key=lambda r: r.ratio)
        shape = "T{steps} B{batch} H{hidden}".format(**worst.shape)
        print(f"{layer:5}{mode:10}{mean:6.2f}x   worst {worst.ratio:.2f}x at {shape}")


def as_json(suite: str, facts: dict[str, str], results: list[Measurement]) -> dict:
    return {
        "suite": suite,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": facts,
        "results": [asdict(r) | {"ratio": r.ratio} for r in results],
    }


def _commit() -> str | None:
    folder = Path(__file__).parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    )
    return git.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
