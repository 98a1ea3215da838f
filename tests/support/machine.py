"""The CUDA engine in place of the CPU's: its kernels' PTX is executed on the CPU (ptx/)."""

import torch

from fused_rnn.autograd import functions, plain
from fused_rnn.ops import arguments
from fused_rnn.ops import layer as ops_layer


def take_over(put=setattr):
    """Every call runs the operators of the machine, which must be loaded. ``put``: how an attribute is set."""
    operators = torch.ops.fused_rnn_emulated
    put(functions, "_FORWARD", operators.layer_forward.default)
    put(functions, "_BACKWARD", operators.layer_backward.default)
    put(arguments, "_infer", operators.infer.default)
    put(arguments, "_infer_layer", operators.infer_layer.default)
    for name in ("layer_forward", "layer_backward", "step_forward", "step_backward"):
        put(plain, f"_{name}", getattr(operators, name).default)
    put(ops_layer, "_operators", operators)
