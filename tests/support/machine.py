"""The CUDA engine in place of the CPU's: its kernels' PTX is executed on the CPU (ptx/)."""

import torch

from fused_rnn.autograd import functions, layer_norm, plain
from fused_rnn.ops import arguments, library
from fused_rnn.ops import layer as ops_layer
from fused_rnn.own import register


def take_over(machine, put=setattr):
    """Every call runs the operators of the machine. ``put``: how an attribute is set."""
    declare = library.declare_cell

    def declare_twice(cell_id, traits):
        declare(cell_id, traits)
        machine.cells.declare(cell_id, traits)

    for cell_id in register.registered():
        machine.cells.declare(cell_id, library.cell_traits(cell_id))
    put(library, "declare_cell", declare_twice)
    operators = torch.ops.fused_rnn_emulated
    put(functions, "_FORWARD", operators.layer_forward.default)
    put(functions, "_BACKWARD", operators.layer_backward.default)
    put(arguments, "_infer", operators.infer.default)
    put(arguments, "_infer_layer", operators.infer_layer.default)
    for name in ("layer_forward", "layer_backward", "step_forward", "step_backward"):
        put(plain, f"_{name}", getattr(operators, name).default)
    for module in (ops_layer, layer_norm):
        put(module, "_operators", operators)
