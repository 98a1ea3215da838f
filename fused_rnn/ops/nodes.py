"""The nodes of autograd's graph that a call's results come from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn.utils.rnn import PackedSequence

from . import torch_private

own_node = torch_private.bare(torch.ops.aten.conj_physical_.default)
"""Gives a result of an autograd function a node of its own, and does nothing else to real numbers.

torch.nn's results have nodes of their own. Without, a hook on one that no gradient reaches is called with None.
"""


def own_nodes(results: Iterable[Tensor | PackedSequence]) -> None:
    """:func:`own_node` for those that are an autograd function's; views and concatenations have one."""
    for result in results:
        tensor = result[0] if isinstance(result, PackedSequence) else result
        if isinstance(tensor.grad_fn, BackwardCFunction):
            own_node(tensor)
