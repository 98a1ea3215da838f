"""``info``: what a bug report needs."""

from __future__ import annotations

import platform

import torch

from .._version import __version__
from ..ops import library, plans, tables
from ..ops.layer import WeightFormat


def info() -> dict[str, str]:
    """Versions, instruction sets, GPU architectures built in and GPU seen: what a bug report needs.

    The instruction sets are those that layers of each kind run on here; ``fused-rnn info`` prints all of it.

    Example:
        >>> fused_rnn.info()["fused_rnn"] == fused_rnn.__version__
        True
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fused_rnn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": tables.processor(),
        "threads": str(torch.get_num_threads()),
        "CPU instruction set": plans.cpu_plan(0, torch.float32).instruction_set,
        "CPU instruction set for large float32 layers": plans.cpu_plan(
            0, torch.float32, rows=1 << 12, batch=64, hidden=256, output_size=256
        ).instruction_set,
        "CPU instruction set for bfloat16": plans.cpu_plan(0, torch.bfloat16).instruction_set,
        "CPU instruction set for int8": plans.cpu_plan(
            0, torch.float32, packed=True, format=WeightFormat.INT8
        ).instruction_set,
        "CUDA architectures built in": " ".join(library.cuda_archs()) or "none (CPU-only build)",
        "CUDA of torch": torch.version.cuda or "none (CPU build of torch)",
        "GPU": ", ".join(gpus) or "none seen",
        "library": str(library.PATH),
    }
