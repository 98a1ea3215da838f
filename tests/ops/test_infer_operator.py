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


# ---- one layer, its weights one by one or packed ---------------------------------------------------------------------


def layer_arguments(cell=0, hidden=4, input=(5, 2, 3), layout=0, num_layers=1, bidirectional=False, states=(1, 2, 4)):
    code = stack_code(cell, num_layers, True, bidirectional, layout)
    h0 = torch.randn(states)
    c0 = torch.randn(states) if BY_ID[cell].states > 1 else None
    rows = BY_ID[cell].gates * hidden
    weights = [torch.randn(shape) for shape in ((rows, 3), (rows, hidden), (rows,), (rows,))]
    return code, torch.randn(input), h0, c0, weights


@torch.no_grad()
@pytest.mark.parametrize(
    "cell", [cell for cell in BY_ID.values() if cell.recurrent and not cell.params], ids=lambda c: c.name
)
def test_one_layer_is_a_stack_of_one(cell):
    code, input, h0, c0, weights = layer_arguments(cell.id)
    expected = torch.ops.fused_rnn.infer(code, input, h0, c0, weights)
    for found in (
        torch.ops.fused_rnn.infer_layer(code, input, h0, c0, *weights),
        torch.ops.fused_rnn.infer_layer(
            code, input, h0, c0, torch.ops.fused_rnn.pack_weights(cell.id, True, False, weights)
        ),
    ):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_shapes_of_one_layer_without_data():
    code, input, h0, c0, weights = layer_arguments()
    args = (code, input, h0, c0, *weights)
    torch.library.opcheck(torch.ops.fused_rnn.infer_layer.default, args, test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(NotImplementedError, match="packed weights do not tell"):
        torch.ops.fused_rnn.infer_layer(
            code, input.to("meta"), None, None, torch.zeros(9, dtype=torch.uint8, device="meta")
        )


@torch.no_grad()
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 2}, "runs one layer, in one direction"),
        ({"bidirectional": True}, "runs one layer, in one direction"),
        ({"layout": 2}, "no input of 3 dimensions in layout 2"),
        ({"input": (5, 2, 4)}, r"input must be \[5, 2, 3\], got \[5, 2, 4\]"),
        ({"states": (1, 3, 4)}, r"h0 must be \[1, 2, 4\], got \[1, 3, 4\]"),
        ({"input": (0, 2, 3)}, "needs a step"),
    ],
    ids=lambda given: given if isinstance(given, str) else " and ".join(given),
)
def test_one_layer_refuses(changes, message, is_packed):
    code, input, h0, c0, weights = layer_arguments(**changes)
    if is_packed:
        weights = [torch.ops.fused_rnn.pack_weights(0, True, False, weights)]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fused_rnn.infer_layer(code, input, h0, c0, *weights)


@torch.no_grad()
def test_packed_weights_of_one_layer_must_be_its_own():
    code, input, h0, c0, weights = layer_arguments()
    run, pack = torch.ops.fused_rnn.infer_layer, torch.ops.fused_rnn.pack_weights
    packed = pack(0, True, False, weights)
    changed = packed.clone()
    changed[24:32] = 0  # dtype and what follows
    gru = pack(1, True, False, layer_arguments(1)[-1])
    for wrong, message in (
        ([gru], "another kind of layer"),
        ([pack(0, True, True, weights * 2)], "another kind of layer"),
        ([packed, weights[1]], "are all of a layer's"),
        ([packed[:-64]], "what pack_weights returned"),
        ([torch.zeros_like(packed)], "what pack_weights returned"),
        ([packed[:40]], "what pack_weights returned"),
        ([torch.cat([packed[:1], packed])[1:]], "not a part of another tensor"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(code, input, h0, c0, *wrong)
    with pytest.raises(RuntimeError, match="input must be Float, got Double"):
        run(code, input.double(), h0, c0, packed)
    with pytest.raises(RuntimeError, match="ids must lie between"):
        run(code, torch.full((5, 2), 3), h0, c0, packed)
