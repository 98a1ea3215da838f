"""What a formula may not do: the error names the operation and the line."""

import re

import pytest
import torch
from torch.nn import functional as F

from fused_rnn.own.record import Declaration, record

OUTSIDE = torch.ones(11, 11)
TWO = torch.tensor(2.0)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad


def without_gradient(y):
    with torch.no_grad():
        return y + 1


def edited(y):
    y = y.clone()
    y += 1
    return y


MIXES = {
    "torch.Tensor.matmul": lambda y, x, h: h @ OUTSIDE,
    "torch.Tensor.softmax": lambda y, x, h: h.softmax(-1),
    "torch.nn.functional.softmax": lambda y, x, h: F.softmax(x, 0)[0],
    "torch.Tensor.sum": lambda y, x, h: x.sum(0),
    "torch.Tensor.cumsum": lambda y, x, h: h.cumsum(-1),
    "torch.Tensor.mean": lambda y, x, h: y - y.mean(),
    "torch.Tensor.__getitem__": lambda y, x, h: h[[0]],
    "torch.Tensor.T.__get__": lambda y, x, h: h.T,
    "torch.Tensor.roll": lambda y, x, h: h.roll(1, -1),
    "torch.Tensor.unsqueeze": lambda y, x, h: (h.unsqueeze(-1) * h.unsqueeze(-2))[..., 0],
    "torch.Tensor.reshape": lambda y, x, h: h.reshape(-1).reshape(h.shape),
    "torch.nn.functional.layer_norm": lambda y, x, h: F.layer_norm(y, y.shape[-1:]),
}
EDITS = {"torch.Tensor.add_": lambda y, x, h: edited(y), "torch.nn.functional.relu": lambda y, x, h: F.relu(y, True)}
DTYPES = {
    "torch.Tensor.float": lambda y, x, h: y.float().double(),
    "torch.Tensor.half": lambda y, x, h: y.half(),
    "torch.zeros": lambda y, x, h: y + torch.zeros(y.shape),
    "torch.Tensor.cuda": lambda y, x, h: y.cuda(),
}
VALUES = {
    "torch.Tensor.item": lambda y, x, h: y * TWO.item(),
    "torch.Tensor.__bool__": lambda y, x, h: y if y > 0 else h,
    "torch.Tensor.tolist": lambda y, x, h: y * h.tolist()[0][0],
    "torch.Tensor.numpy": lambda y, x, h: torch.from_numpy(y.numpy()),
}
OTHERS = {
    "torch.floor": (lambda y, x, h: torch.floor(y), "not among a cell's operations"),
    "torch.atan2": (lambda y, x, h: torch.atan2(y, h), "not among a cell's operations"),
    "torch.rand_like": (lambda y, x, h: y * torch.rand_like(y), "random"),
    "torch.Tensor.mul": (lambda y, x, h: y * TWO, "from outside"),
    "torch.Tensor.detach": (lambda y, x, h: y.detach(), "hides a value"),
    "torch.Tensor.add": (lambda y, x, h: without_gradient(y), "without gradients"),
    "torch.Tensor.square": (lambda y, x, h: Square.apply(y), "without gradients"),
}
REASONS = {"mixes": MIXES, "edits in place": EDITS, "dtype": DTYPES, "needs a value": VALUES}
CASES = [
    *((name, body, reason) for reason, bodies in REASONS.items() for name, body in bodies.items()),
    *((name, body, reason) for name, (body, reason) in OTHERS.items() if name != "torch.Tensor.square"),
]


def refused(formula, declared=None):
    with pytest.raises((ValueError, TypeError)) as error:
        record(formula, declared or Declaration("mine", 2, ("h",)))
    return str(error.value)


@pytest.mark.parametrize(("name", "body", "reason"), CASES, ids=[case[0] for case in CASES])
def test_an_operation_is_refused_by_name_and_line(name, body, reason):
    def formula(x, r, h):
        return body(x[0] + r[0], x, h)

    message = refused(formula)
    assert message.startswith("mine: ") and f" {name} " in message and reason in message
    assert re.search(r"\(test_record\.py, line \d+: .+\)$", message), message


def test_an_autograd_function_is_refused():
    assert "autograd function" in refused(lambda x, r, h: Square.apply(x[0] + r[0]) + h)


def test_the_line_is_the_users():
    def formula(x, r, h):
        y = torch.tanh(x[0] + r[0])
        return y.sum(0) + h  # this one

    assert refused(formula).endswith(f"line {formula.__code__.co_firstlineno + 2}: return y.sum(0) + h  # this one)")


def test_what_depends_on_sizes_is_refused():
    message = refused(lambda x, r, h: torch.tanh(h) * h.shape[0])
    assert re.search(r"sizes.* differ from torch\.Tensor\.mul \(test_record\.py, line \d+: .+\) on$", message), message


def test_nan_is_a_number():
    assert record(lambda x, r, h: torch.where(h > 0, h, float("nan")), Declaration("mine", 2, ("h",))).calls


def test_what_differs_between_calls_is_refused():
    calls = []

    def formula(x, r, h):
        calls.append(None)
        return h * len(calls)

    assert "depends on" in refused(formula)


@pytest.mark.parametrize(
    ("formula", "states", "words"),
    [
        (lambda x, r, h: (h, h), ("h",), ("the new h", "got 2")),
        (lambda x, r, h, c: h, ("h", "c"), ("2 new states (h, c)", "got 1")),
        (lambda x, r, h: None, ("h",), ("Tensor", "NoneType")),
        (lambda x, r, h: 1.0, ("h",), ("Tensor", "float")),
        (lambda x, r, h: x + r, ("h",), ("[B, H]", "[gates, B, H]", "a gate is x[0]")),
        (lambda x, r, h: x[:1] + r[:1], ("h",), ("[B, H]", "[1, B, H]")),
        (lambda x, r, h: h > 0, ("h",), ("dtype", "torch.bool")),
    ],
)
def test_wrong_states_are_refused(formula, states, words):
    message = refused(formula, Declaration("mine", 2, states))
    assert all(word in message for word in words), message


def three_gates(x, r, h):
    i, f, g = x + r
    return i * f * g


def third_gate(x, r, h):
    return x[2] + r[2]


@pytest.mark.parametrize("formula", [three_gates, third_gate])
def test_a_wrong_number_of_gates_is_refused(formula):
    message = refused(formula)
    assert "gates=2" in message and "line" in message


def test_names_of_variables_are_kept():
    def formula(x, r, h):
        i, f = x + r
        kept = torch.sigmoid(f) * h
        return kept + torch.tanh(i)

    names = set(record(formula, Declaration("mine", 2, ("h",))).names.values())
    assert {"i", "f", "kept", "h", "x", "r"} <= names


def test_constants_and_masks_are_accepted():
    def formula(x, r, h):
        y = x[0] * torch.tensor(0.5) + r[1] * torch.ones_like(h) + torch.zeros_like(h)
        return torch.where(~(y > 0) & (h <= 1) | (y == h), y.masked_fill(h > 3, 0.25), torch.full_like(y, -1.0))

    assert record(formula, Declaration("mine", 2, ("h",))).calls
