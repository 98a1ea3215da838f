"""One call: its engines verified against float64, then timed beside torch.nn's module, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...nn.kinds import OURS
from ...ops import engines
from ...ops.cells import CELLS
from ...ops.measured import REFERENCE, Sizes
from ..verify import TOLERANCE, relative_error

MOST_STEPS_TO_VERIFY = 12  # rounding grows with the steps
ROUNDS = 7
LEAST_SECONDS = 0.004  # of a time, which may be of many calls

Announce = Callable[[str], None]


class Clock:
    """Times calls on a device."""

    def __init__(self, device: str):
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(self, name: str, call: Callable[[], object], calls: int) -> float:
        """Of one of so many calls; ``name``: of the engine."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self.wait()
        return (time.perf_counter() - start) / calls


def module_of(sizes: Sizes, kind: str, device: str) -> tuple[nn.Module, nn.Module]:
    """Our layer and torch.nn's, with the same weights; ``kind``: a dtype's name."""
    cell = CELLS[sizes.cell]
    options = {"nonlinearity": cell.nonlinearity} if cell.nonlinearity else {}
    theirs = next(their for their, our in OURS.items() if our.__name__ == cell.layer_name)
    modules = []
    for build in (OURS[theirs], theirs):
        torch.manual_seed(0)
        modules.append(
            build(
                sizes.input_size,
                sizes.hidden,
                sizes.layers,
                bidirectional=sizes.directions > 1,
                device=device,
                dtype=getattr(torch, kind),
                **options,
            )
        )
    return modules[0], modules[1]


def _input(sizes: Sizes, steps: int, dtype: torch.dtype, device: str) -> Tensor:
    numbers = torch.randn(steps, sizes.batch, sizes.input_size, generator=torch.Generator().manual_seed(1))
    return numbers.to(device=device, dtype=dtype)


def _results(module: nn.Module, input: Tensor, training: bool) -> list[Tensor]:
    with torch.set_grad_enabled(training):
        input = input.detach().requires_grad_(training)
        output, state = module(input)
        results = [output, *(state if isinstance(state, tuple) else (state,))]
        if not training:
            return results
        loss = sum(result.sum() for result in results)
        gradients = torch.autograd.grad(loss, [input, *module.parameters()])
    return [*(result.detach() for result in results), *gradients]


def error_of(sizes: Sizes, name: str, device: str) -> float:
    """||error|| / ||float64's result|| of the engine's worst output or gradient; in 16 bits, of all together."""
    steps, dtype = min(sizes.steps, MOST_STEPS_TO_VERIFY), getattr(torch, sizes.dtype)
    ours, _ = module_of(sizes, sizes.dtype, device)
    _, exact = module_of(sizes, "float64", "cpu")
    exact.load_state_dict({key: weight.detach().cpu().double() for key, weight in ours.state_dict().items()})
    input = _input(sizes, steps, dtype, device)
    with engines.engine(name):
        found = [result.detach().cpu().double() for result in _results(ours, input, sizes.training)]
    expected = _results(exact, input.cpu().double(), sizes.training)
    if dtype in (torch.bfloat16, torch.float16):
        found, expected = ([torch.cat([r.flatten() for r in side])] for side in (found, expected))
    errors = [relative_error(f.to(dtype), e) for f, e in zip(found, expected, strict=True)]
    return next((error for error in errors if error != error), max(errors))  # max() would ignore a NaN


def measure(
    sizes: Sizes, names: Iterable[str], device: str, clock: Clock, announce: Announce
) -> tuple[dict[str, float], list[str], dict[str, str]]:
    """Microseconds by engine, torch.nn's among them; the verified engines; why others failed."""
    verified, failed = [], {}
    for name in names:
        if name == "torch":
            continue
        announce(name)
        try:
            error = error_of(sizes, name, device)
        except RuntimeError as refusal:
            failed[name] = str(refusal)
            continue
        limit = TOLERANCE[getattr(torch, sizes.dtype)]
        if error <= limit:
            verified.append(name)
        else:
            failed[name] = f"its error is {error:.1e}, and {limit:.0e} is allowed"
    times = _times(sizes, [name for name in names if name == "torch" or name in verified], device, clock, announce)
    return times, verified, failed


def _times(sizes: Sizes, names: list[str], device: str, clock: Clock, announce: Announce) -> dict[str, float]:
    ours, theirs = module_of(sizes, sizes.dtype, device)
    if not sizes.training:
        ours, theirs = ours.eval(), theirs.eval()
    input = _input(sizes, sizes.steps, getattr(torch, sizes.dtype), device)
    modules = {REFERENCE: theirs} | dict.fromkeys(names, ours)
    calls: dict[str, int] = {}
    found: dict[str, list[float]] = {name: [] for name in modules}
    for round in range(ROUNDS + 1):
        for name, module in modules.items():
            announce(name)
            with engines.engine("ours" if name == REFERENCE else name):

                def call(module: nn.Module = module) -> list[Tensor]:
                    return _results(module, input, sizes.training)

                if round == 0:  # warms up, twice
                    clock.seconds(name, call, 1)
                    calls[name] = max(1, int(LEAST_SECONDS / max(clock.seconds(name, call, 1), 1e-9)))
                else:
                    found[name].append(clock.seconds(name, call, calls[name]))
    return {name: round_to_figures(1e6 * min(times)) for name, times in found.items()}


def round_to_figures(number: float) -> float:
    return float(f"{number:.4g}")
