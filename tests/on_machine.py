"""A pytest plugin, ``-p on_machine``: tests run on the CUDA engine, its kernels' PTX executed on the CPU (ptx/)."""

import ptx
import torch

from fused_rnn.autograd import functions
from fused_rnn.ops import layer as ops_layer

machine = ptx.load()
machine.fill_memory(True)
functions._FORWARD = torch.ops.fused_rnn_emulated.layer_forward.default
functions._BACKWARD = torch.ops.fused_rnn_emulated.layer_backward.default
ops_layer._operators = torch.ops.fused_rnn_emulated
