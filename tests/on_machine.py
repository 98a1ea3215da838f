"""A pytest plugin, ``-p on_machine``: tests run on the CUDA engine, its kernels' PTX executed on the CPU (ptx/)."""

import ptx
import torch

from fused_rnn import _autograd, _ops

machine = ptx.load()
machine.fill_memory(True)
_autograd._FORWARD = torch.ops.fused_rnn_emulated.layer_forward.default
_autograd._BACKWARD = torch.ops.fused_rnn_emulated.layer_backward.default
_ops._operators = torch.ops.fused_rnn_emulated
