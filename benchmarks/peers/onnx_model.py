"""A line's layers as an ONNX model holding torch.nn's weights, for the runtimes that read one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..problem import Problem
from ..suites import GATES, Work

# ONNX orders the gates differently: iofc for torch's i f g o, zrn for r z n.
GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
OPSET, IR_VERSION = 17, 8  # old enough for any ONNX Runtime that runs with this library's torch


def left_out(work: Work) -> str | None:
    """Why no runtime of ONNX models is compared on this line, or None."""
    if work.cell:
        return "has no cells"
    if work.mode == "training":
        return "inference only"
    if work.device != "cpu" or work.dtype != "float32":
        return "its operators are float32 on the CPU"
    if work.packed or work.projected:
        return "its operators know neither packed input nor projections"
    return None


def feed(problem: Problem) -> dict:
    """The model's inputs by name: x, and the states of each layer."""
    return {"x": problem.input.numpy()} | {name: state.numpy() for name, state in _states(problem).items()}


def results(problem: Problem, outputs: Iterable) -> list[Tensor]:
    """torch.nn's results of the model's outputs, which are arrays."""
    output, *states = map(torch.from_numpy, outputs)
    layers = problem.work.num_layers
    return [output, *(torch.cat(states[k : k + layers]) for k in range(0, len(states), layers))]


def _states(problem: Problem) -> dict[str, Tensor]:
    """h0 h1 ... c0 c1 ..., of each layer on its own."""
    layers = problem.work.num_layers
    parts = [(name, state.chunk(layers)) for name, state in zip("hc", problem.states, strict=False)]
    return {f"{name}{k}": chunks[k] for name, chunks in parts for k in range(layers)}


def model(problem: Problem):
    from onnx import TensorProto, helper, numpy_helper

    work = problem.work
    directions, hidden = 1 + work.bidirectional, work.shape.hidden
    per_layer = len(problem.weights) // work.num_layers
    nodes, tensors, sequence = [], [], "x"
    states = _states(problem)
    for k in range(work.num_layers):
        weights = _onnx_weights(work.layer, problem.weights[k * per_layer : (k + 1) * per_layer])
        names = [f"{name}{k}" for name in "wrb"]
        tensors += [numpy_helper.from_array(w.numpy(), name) for w, name in zip(weights, names, strict=True)]
        options = {"hidden_size": hidden, "direction": "bidirectional" if work.bidirectional else "forward"}
        if work.layer == "GRU":
            options["linear_before_reset"] = 1  # torch's GRU: the reset gate acts after the recurrent product
        own = [f"{name}{k}" for name in "hc"[: len(problem.states)]]
        inputs = [sequence, *names, *(["", *own] if own else [])]
        nodes.append(helper.make_node(work.layer, inputs, [f"y{k}", *map(_final, own)], **options))
        # Y is [T, D, B, H]; torch and the next layer want [T, B, D * H].
        sequence = f"s{k}"
        if directions == 1:
            nodes.append(helper.make_node("Squeeze", [f"y{k}", "axes"], [sequence]))
        else:
            nodes.append(helper.make_node("Transpose", [f"y{k}"], [f"t{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"t{k}", "merged"], [sequence]))
    if directions == 1:
        tensors.append(helper.make_tensor("axes", TensorProto.INT64, [1], [1]))
    else:
        merged = [*problem.input.shape[:2], directions * hidden]
        tensors.append(helper.make_tensor("merged", TensorProto.INT64, [3], merged))

    def value(name: str, tensor: Tensor):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(tensor.shape))

    graph = helper.make_graph(
        nodes,
        "layer",
        [value("x", problem.input), *(value(name, state) for name, state in states.items())],
        [value(sequence, problem.grad), *(value(_final(name), state) for name, state in states.items())],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _final(state: str) -> str:
    return f"{state}_n"


def _onnx_weights(layer: str, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """W ``[D, G*H, I]``, R ``[D, G*H, H]`` and both biases in a row ``[D, 2*G*H]``."""

    def reordered(weight: Tensor) -> Tensor:
        gates = weight.chunk(GATES[layer])
        return torch.cat([gates[k] for k in GATE_ORDER[layer]])

    w_ih, w_hh, b_ih, b_hh = ([reordered(weight) for weight in weights[k::4]] for k in range(4))
    biases = [torch.cat(pair) for pair in zip(b_ih, b_hh, strict=True)]
    return torch.stack(w_ih), torch.stack(w_hh), torch.stack(biases)
