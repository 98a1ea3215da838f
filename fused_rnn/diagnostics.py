"""Which path runs and why, and what a bug report needs."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _library, _stack, cells, modules
from ._version import __version__

_LAYERS = (modules.LSTM, modules.GRU, modules.RNN)
_CELLS = (cells.LSTMCell, cells.GRUCell, cells.RNNCell)


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``str()`` of it is a sentence or two."""

    engine: str
    """"fused" (this library's kernels), "torch.nn" (not one of its modules) or "none" (a call would raise)."""
    instruction_set: str | None
    reason: str

    def __str__(self) -> str:
        isa = f" ({self.instruction_set})" if self.instruction_set else ""
        return f"{self.engine}{isa}: {self.reason}"


def explain(module: nn.Module, *inputs, lengths=None, reset_mask=None) -> Explanation:
    """Says which engine and instruction set ``module(*inputs)`` runs on, and why; computes nothing.

    It asks the very function that the operators ask to choose. ``lengths`` and ``reset_mask`` are accepted as in
    ``forward``; they are predicates inside the same kernel and change nothing.
    """
    if not isinstance(module, _LAYERS + _CELLS):
        return Explanation(
            "torch.nn",
            None,
            f"{type(module).__name__} is not one of fused_rnn's modules; fused_rnn.swap(model) replaces torch.nn's",
        )
    if not inputs or not isinstance(inputs[0], (Tensor, PackedSequence)):
        raise TypeError("explain needs the input that forward would get: explain(module, input)")
    data = inputs[0].data if isinstance(inputs[0], PackedSequence) else inputs[0]
    try:
        _stack.check_device(data.device)
    except (RuntimeError, NotImplementedError) as error:
        return Explanation("none", None, str(error))
    if data.device.type == "meta":
        return Explanation("none", None, "meta tensors have shapes only; nothing is computed")
    directions = 2 if getattr(module, "bidirectional", False) else 1
    threads = torch.get_num_threads()
    isa, chunks = _library.cpu_plan(directions, _batch(module, inputs[0]), threads)
    runs = directions * chunks
    return Explanation(
        "fused",
        isa,
        f"CPU tensors run the whole time loop in one call; {runs} independent run{'s' * (runs > 1)} "
        f"({directions} direction{'s' * (directions > 1)} x {chunks} part{'s' * (chunks > 1)} of the batch) "
        f"on {threads} thread{'s' * (threads > 1)}. The instruction set is the best of this processor, or FUSED_RNN_ISA. "
        "A gradient of the gradient is recomputed in plain PyTorch",
    )


def _batch(module: nn.Module, input: Tensor | PackedSequence) -> int:
    if isinstance(input, PackedSequence):
        return int(input.batch_sizes[0])
    if isinstance(module, _CELLS):
        return input.shape[0] if input.dim() == 2 else 1
    if input.dim() == 2:
        return 1
    return input.shape[0 if module.batch_first else 1]


def info() -> dict[str, str]:
    """Versions, instruction set, GPU architectures built in and GPU seen: what a bug report needs."""
    isa, _ = _library.cpu_plan(1, 1, 1)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fused_rnn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "CPU instruction set": isa,
        "CUDA architectures built in": " ".join(_library.cuda_archs()) or "none (CPU-only build)",
        "CUDA of torch": torch.version.cuda or "none (CPU build of torch)",
        "GPU": ", ".join(gpus) or "none seen",
        "library": str(_library.PATH),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
