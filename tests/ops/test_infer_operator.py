"""The operator ``infer`` called by itself: shapes without data, and what it refuses."""

import pytest
import torch

from fused_rnn.ops.cells import BY_ID
from fused_rnn.ops.layer import stack_code

pytestmark = pytest.mark.usefixtures("no_reference")


def operator_arguments(layers=2, layout=0, input=(5, 2, 3), states=(4, 2, 4), **changes):
    """Arguments of ``infer`` for a bidirectional stack of H = 4."""
    gates = BY_ID[0].gates
    shapes = [(4 * gates, 3), (4 * gates, 4), (4 * gates,), (4 * gates,)] * 2
    shapes += [(4 * gates, 8), (4 * gates, 4), (4 * gates,), (4 * gates,)] * 2 * (layers - 1)
    given = {
        "input": torch.randn(input),
        "h0": torch.randn(states),
        "c0": torch.randn(states),
        "weights": [torch.randn(shape) for shape in shapes],
        "packed": None,
        "lengths": None,
        "batch_sizes": None,
        "reset_mask": None,
    }
    stack = {"cell": 0, "num_layers": layers, "bias": True, "bidirectional": True, "layout": layout}
    stack = {name: changes.pop(name, value) for name, value in stack.items()}
    return stack_code(**stack), *(given | changes).values()


@torch.no_grad()
@pytest.mark.parametrize(
    "args",
    [
        operator_arguments(),
        operator_arguments(layers=1, states=(2, 2, 4)),
        operator_arguments(input=(5, 3), states=(4, 4)),
        operator_arguments(layout=1, input=(2, 1, 3)),
        operator_arguments(input=(7, 3), batch_sizes=torch.tensor([2, 2, 2, 1])),
    ],
    ids=["stack", "layer", "unbatched", "batch first", "packed"],
)
def test_shapes_without_data(args):
    torch.library.opcheck(torch.ops.fused_rnn.infer.default, args, test_utils=("test_schema", "test_faketensor"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "for each of 0 layers"),
        ({"num_layers": -1}, "for each of -1 layers"),
        ({"num_layers": 3}, "for each of 3 layers"),
        ({"weights": []}, "weights must hold"),
        ({"weights": [torch.randn(2, 16, 3)] * 16}, "no members|must be"),
        ({"cell": 9}, "unknown cell 9"),
        ({"layout": 3}, "unknown layout 3"),
        ({"layout": 1}, "batch_first needs one row or one step"),
        ({"layout": 2}, "no input of 3 dimensions in layout 2"),
        ({"layout": 2, "input": (5, 3)}, "a single step is one layer's"),
        ({"input": (5, 2, 4)}, r"input must be \[5, 2, 3\], got \[5, 2, 4\]"),
        ({"input": (0, 2, 3)}, "needs a step"),
        ({"input": (1, 1, 1, 5, 2, 3, 1, 1)}, "no input of 8 dimensions"),
        ({"h0": torch.randn(2, 2, 4)}, r"h0 must be \[4, 2, 4\]"),
        ({"c0": None}, "h0 and c0 come together"),
        ({"lengths": torch.tensor([5, 6])}, "lengths must lie between"),
        ({"reset_mask": torch.zeros(2, 5, dtype=torch.bool)}, r"reset_mask must be \[5, 2\]"),
        ({"bias": False}, "weights must hold"),
    ],
    ids=lambda given: given if isinstance(given, str) else " and ".join(given),
)
def test_the_operator_refuses(changes, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fused_rnn.infer(*operator_arguments(**changes))


def test_the_operator_gives_no_wrong_gradient():
    with pytest.raises(RuntimeError, match=r"infer has no gradient.*torch\.no_grad"):
        torch.ops.fused_rnn.infer(*operator_arguments())
