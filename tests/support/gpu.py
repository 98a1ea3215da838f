"""Tests that need a GPU, and the precision of its products."""

from contextlib import contextmanager

import pytest
import torch

from fused_rnn.ops import library

WHY_NOT = "there is no GPU" if library.cuda_archs() else "this fused_rnn was built without CUDA"
on_a_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not (torch.cuda.is_available() and library.cuda_archs()), reason=WHY_NOT),
]


@contextmanager
def tf32(allowed: bool):
    """Whether products of float32, torch's and cuDNN's too, may be rounded to TF32 on a GPU."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
