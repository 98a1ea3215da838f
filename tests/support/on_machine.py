"""A pytest plugin, ``-p support.on_machine``: tests run on the CUDA engine, whose PTX is executed on the CPU (ptx/)."""

import torch

import ptx
from fused_rnn.autograd import functions
from fused_rnn.ops import layer as ops_layer

machine = ptx.load()
machine.fill_memory(True)
functions._FORWARD = torch.ops.fused_rnn_emulated.layer_forward.default
functions._BACKWARD = torch.ops.fused_rnn_emulated.layer_backward.default
ops_layer._operators = torch.ops.fused_rnn_emulated
