"""Result files: one JSON file for each suite and number of threads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from math import exp, log
from pathlib import Path

from .load import exceeds
from .suites import Work

FOLDER = Path(__file__).parent / "results"
# Which of our calls each peer is compared with, the fastest one: frozen layers meet peers that pack weights on loading,
# streams those whose inputs are bound once, 8-bit layers 8-bit ones.
_LOADED = ("ours", "frozen")
_BOUND = (*_LOADED, "stream")
_QUANTIZED = (*_BOUND, "int8", "int8 weights", "int8 stream")
OPPONENTS = {
    "torch.nn": ("ours",),
    "ONNX Runtime": _LOADED,
    "ONNX Runtime bound": _BOUND,
    "OpenVINO": _BOUND,
    "JAX": ("ours",),
    "compiled loop": ("ours",),
    "ONNX Runtime int8": _QUANTIZED,
    "torch.ao int8": _QUANTIZED,
}
# All sides in the order of tables, with short names.
SIDES = {
    "ours": "ours",
    "frozen": "frozen",
    "stream": "stream",
    "int8": "int8",
    "int8 weights": "int8 weights",
    "int8 stream": "int8 stream",
    "torch.nn": "torch.nn",
    "ONNX Runtime": "ONNX",
    "ONNX Runtime bound": "ONNX bound",
    "OpenVINO": "OpenVINO",
    "JAX": "JAX",
    "compiled loop": "loop",
    "ONNX Runtime int8": "ONNX int8",
    "torch.ao int8": "ao int8",
}
LARGEST_SPREAD = 0.3  # of a side; lines beyond it, or measured on a busy machine, are marked wherever they are shown


@dataclass
class Line:
    """One line of the table: times of each side, and the machine's limit."""

    work: Work
    sides: dict[str, dict]  # name: ms, spread, rounds; error if quantized; ours on a GPU: engine and its plan, if any
    limit: dict  # ms, bound_by, operations, weight_bytes, resident_bytes; empty if unknown
    load: dict[str, float] = field(default_factory=dict)  # mean, cores; empty if unknown

    def ms(self, side: str) -> float | None:
        return self.sides[side]["ms"] if side in self.sides else None

    def ratio(self, opponent: str) -> float | None:
        """Our speed-up; None if that side did not run."""
        theirs = self.ms(opponent)
        return None if theirs is None else theirs / self._fastest(OPPONENTS[opponent])

    @property
    def of_limit(self) -> float | None:
        """The share of the machine's limit that our fastest call of full precision reaches; None if it is unknown."""
        return self.limit["ms"] / self._fastest(_BOUND) if self.limit else None

    def _fastest(self, sides: Iterable[str]) -> float:
        return min(self.ms(side) for side in sides if side in self.sides)

    @property
    def doubts(self) -> list[str]:
        """What speaks against relying on the line."""
        return doubts(self.sides, self.load)


@dataclass
class Results:
    """The content of a file."""

    suite: str
    effort: str
    threads: int
    date: str
    commit: str | None
    machine: dict[str, str]
    peers: dict[str, str]  # name: version, or why it is missing
    limits: dict[str, float]
    left_out: dict[str, list[str]] = field(default_factory=dict)  # peer and reason: groups and modes
    lines: list[Line] = field(default_factory=list)
    memory: list[dict] = field(default_factory=list)
    features: list[dict] = field(default_factory=list)
    failures: list[dict] = field(default_factory=list)  # of the gpu suite: work, why it has no line, sides

    @property
    def file_name(self) -> str:
        if self.suite == "gpu":
            return f"gpu-{'-'.join(self.machine['GPU'].lower().split())}.json"
        return f"{self.suite}-{plural(self.threads, 'thread').replace(' ', '-')}.json"

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        fields = asdict(self)
        for line, own in zip(self.lines, fields["lines"], strict=True):
            own["work"] = line.work.to_json()
            if not line.load:
                del own["load"]
        if not self.failures:
            del fields["failures"]
        new = path.with_suffix(".new")  # renamed atomically, so that the file is complete whenever a run is stopped
        new.write_text(_text(_rounded(fields)))
        new.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> Results:
        fields = json.loads(path.read_text())
        fields["lines"] = [Line(**line | {"work": Work.from_json(line["work"])}) for line in fields["lines"]]
        return cls(**fields)


def doubts(sides: dict[str, dict], load: dict[str, float]) -> list[str]:
    """The reasons not to rely on times."""
    spreads = {name: side["spread"] for name, side in sides.items()}
    found = [f"spread of {name} {spread:.0%}" for name, spread in spreads.items() if spread > LARGEST_SPREAD]
    if exceeds(load):
        found.append(f"load of {load['mean']:.1f} on {plural(load['cores'], 'core')}")
    return found


def load_all(folder: Path) -> list[Results]:
    """All files of a folder, ordered by suite and threads."""
    found = [Results.load(path) for path in folder.glob("*.json")]
    return sorted(found, key=lambda results: (results.suite, results.threads))


def groups(lines: Iterable[Line]) -> dict[tuple[str, str, str], list[Line]]:
    """Lines by group, layer and mode, for geometric means."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.work.group, line.work.layer, line.work.mode), []).append(line)
    return found


def ratios(lines: Iterable[Line], opponent: str) -> Iterator[tuple[Line, float]]:
    for line in lines:
        ratio = line.ratio(opponent)
        if ratio is not None:
            yield line, ratio


def geomean(numbers: Iterable[float]) -> float | None:
    logarithms = [log(number) for number in numbers]
    return exp(sum(logarithms) / len(logarithms)) if logarithms else None


def plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _text(fields: dict) -> str:
    """JSON with a line for each entry of a list, for readable diffs."""
    parts = []
    for key, value in fields.items():
        text = json.dumps(value, indent=2).replace("\n", "\n ")
        if isinstance(value, list):
            text = "[" + ",".join(f"\n  {json.dumps(entry)}" for entry in value) + "\n ]"
        parts.append(f'\n "{key}": {text}')
    return "{" + ",".join(parts) + "\n}\n"


def _rounded(value):
    """Floats rounded to four digits; more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value
