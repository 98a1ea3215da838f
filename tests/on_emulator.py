"""A pytest plugin, ``-p on_emulator``: tests run on the emulated CUDA engine that FUSED_RNN_EMULATED names."""

import emulating
import torch

from fused_rnn import _autograd, _ops

emulating.load().emulator_fill_memory(True)
_autograd._FORWARD = torch.ops.fused_rnn_emulated.layer_forward.default
_autograd._BACKWARD = torch.ops.fused_rnn_emulated.layer_backward.default
_ops._operators = torch.ops.fused_rnn_emulated
