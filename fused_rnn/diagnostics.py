"""Which path runs and why, and what a bug report needs."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _library, _stack, cells, modules
from ._cells import CELLS
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
    sizes = _sizes(module, inputs[0])
    plan = _library.cpu_plan(**sizes, threads=torch.get_num_threads())
    directions, parts, threads = sizes["directions"], plan.row_chunks, plan.threads
    return Explanation(
        "fused",
        plan.instruction_set,
        f"CPU tensors run the whole time loop in one call; {_count(directions, 'direction')} x "
        f"{_count(parts, 'part')} of the batch, each walking through time on its own, on {_count(threads, 'thread')}. "
        "The instruction set is the best of this processor, or FUSED_RNN_ISA. "
        "A gradient of the gradient is recomputed in plain PyTorch",
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _sizes(module: nn.Module, input: Tensor | PackedSequence) -> dict[str, int]:
    """What the plan of the module's first layer depends on."""
    if isinstance(input, PackedSequence):
        rows, batch = input.data.shape[0], int(input.batch_sizes[0])
    elif isinstance(module, _CELLS):
        rows = batch = input.shape[0] if input.dim() == 2 else 1
    elif input.dim() == 2:
        rows, batch = input.shape[0], 1
    else:
        rows, batch = input.shape[0] * input.shape[1], input.shape[0 if module.batch_first else 1]
    names = {modules.LSTM: "lstm", cells.LSTMCell: "lstm", modules.GRU: "gru", cells.GRUCell: "gru"}
    cell = next((name for kind, name in names.items() if isinstance(module, kind)), "rnn_tanh")
    return {
        "cell_id": CELLS[cell].id,
        "directions": 2 if getattr(module, "bidirectional", False) else 1,
        "rows": rows,
        "batch": batch,
        "input_size": module.input_size,
        "hidden": module.hidden_size,
        "output_size": getattr(module, "proj_size", 0) or module.hidden_size,
    }


def info() -> dict[str, str]:
    """Versions, instruction set, GPU architectures built in and GPU seen: what a bug report needs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fused_rnn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "CPU instruction set": _library.cpu_plan(0).instruction_set,
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
