"""The same layer or cell from this library and from torch.nn, and how the two are compared."""

import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn.tools.verify import TOLERANCE, relative_error

# kind: (this library's class, torch.nn's, constructor options)
KINDS = {
    "lstm": (fused_rnn.LSTM, nn.LSTM, {}),
    "lstm_projected": (fused_rnn.LSTM, nn.LSTM, {"proj_size": 2}),
    "gru": (fused_rnn.GRU, nn.GRU, {}),
    "rnn_tanh": (fused_rnn.RNN, nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (fused_rnn.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "lstm_cell": (fused_rnn.LSTMCell, nn.LSTMCell, {}),
    "gru_cell": (fused_rnn.GRUCell, nn.GRUCell, {}),
    "rnn_tanh_cell": (fused_rnn.RNNCell, nn.RNNCell, {"nonlinearity": "tanh"}),
    "rnn_relu_cell": (fused_rnn.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
}
LAYERS = tuple(kind for kind in KINDS if not kind.endswith("_cell"))
CELLS = tuple(kind for kind in KINDS if kind.endswith("_cell"))
F64 = torch.float64
DEEP = {"num_layers": 2, "bidirectional": True}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_layer = pytest.mark.parametrize("kind", LAYERS)
every_cell = pytest.mark.parametrize("kind", CELLS)


def make_pair(kind: str, *sizes: int, dtype: torch.dtype = F64, **options) -> tuple[nn.Module, nn.Module]:
    """This library's module and torch.nn's with the same weights; by default input_size 3 and hidden_size 4."""
    our_class, torch_class, own_options = KINDS[kind]
    options = {**own_options, **options, "dtype": dtype}
    ours, theirs = (cls(*(sizes or (3, 4)), **options) for cls in (our_class, torch_class))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def make_input(module: nn.Module, steps: int = 5, batch: int | None = 2, dtype: torch.dtype = F64) -> Tensor:
    """Random input as ``module``, a layer or a cell, takes it; unbatched when ``batch`` is None."""
    if isinstance(module, nn.RNNCellBase):
        steps_and_batch = () if batch is None else (batch,)
    elif batch is None:
        steps_and_batch = (steps,)
    else:
        steps_and_batch = (batch, steps) if module.batch_first else (steps, batch)
    return torch.randn(*steps_and_batch, module.input_size, dtype=dtype)


def make_states(module: nn.Module, batch: int | None = 2, dtype: torch.dtype = F64):
    """Random ``hx`` as ``module`` takes it: a tensor, or a pair of them."""
    outer = () if batch is None else (batch,)
    widths = [module.hidden_size]
    if isinstance(module, nn.RNNBase):
        outer = (module.num_layers * (2 if module.bidirectional else 1), *outer)
        widths = [module.proj_size or module.hidden_size]
    if has_two_states(module):
        widths.append(module.hidden_size)
    states = tuple(torch.randn(*outer, width, dtype=dtype) for width in widths)
    return states if len(states) > 1 else states[0]


def weight_hh(module):
    return "weight_hh_l0" if isinstance(module, nn.RNNBase) else "weight_hh"


def input_and_states(module, batch=2):
    return make_input(module, batch=batch), make_states(module, batch=batch)


def layouts_of(kind):
    """(module, torch.nn's, arguments) in every layout of input and output."""
    if kind in CELLS:
        for batch in (None, 2):
            ours, theirs = make_pair(kind)
            yield ours, theirs, input_and_states(theirs, batch)
        return
    for options, batch in (({}, 2), (DEEP, 2), ({"batch_first": True}, 2), ({}, None)):
        ours, theirs = make_pair(kind, **options)
        yield ours, theirs, input_and_states(theirs, batch)
    ours, theirs = make_pair(kind, **DEEP)
    yield ours, theirs, (make_packed([4, 1, 5]), make_states(theirs, batch=3))


def has_two_states(module: nn.Module) -> bool:
    return isinstance(module, (nn.LSTM, nn.LSTMCell, fused_rnn.LSTM, fused_rnn.LSTMCell))


def make_packed(lengths, input_size: int = 3, enforce_sorted: bool = False, dtype: torch.dtype = F64):
    padded = torch.randn(max(lengths), len(lengths), input_size, dtype=dtype)
    return pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=enforce_sorted)


def tensors_of(nested) -> list[Tensor]:
    """All tensors of a module's arguments or results; of a PackedSequence only its data."""
    if nested is None:
        return []
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, PackedSequence):
        return [nested.data]
    return [tensor for part in nested for tensor in tensors_of(part)]


def as_leaves(nested):
    """The same tensors, with the same strides, as leaves that require gradients."""
    if nested is None:
        return None
    if isinstance(nested, Tensor):
        return nested.detach().requires_grad_()
    if isinstance(nested, PackedSequence):
        return PackedSequence(as_leaves(nested.data), *nested[1:])
    return type(nested)(as_leaves(part) for part in nested)


def results_of(module: nn.Module, *args, **options) -> dict[str, Tensor | None]:
    """Outputs, and gradients of every argument and parameter for fixed random gradients of the outputs."""
    args = as_leaves(args)
    outputs = tensors_of(module(*args, **options))
    parameters = dict(module.named_parameters())
    wanted = [p for p in parameters.values() if p.requires_grad]
    seed = torch.Generator().manual_seed(0)
    # Multiples of 1/8 are exact in every dtype, so that runs in different dtypes can be compared.
    weights = [torch.randint(-16, 17, o.shape, generator=seed).div(8).to(o) for o in outputs]
    grads = iter(torch.autograd.grad(outputs, [*tensors_of(args), *wanted], weights, allow_unused=True))
    results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    results |= {f"gradient of argument {i}": next(grads) for i, _ in enumerate(tensors_of(args))}
    return results | {f"gradient of {n}": next(grads) for n, p in parameters.items() if p.requires_grad}


def assert_close(
    ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], tolerance: float | None = None
) -> None:
    """Compares tensors of the same name: ||difference|| / ||expected|| must be within the dtype's tolerance."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name]
        assert (found is None) == (expected is None), f"{name}: {found} against {expected}"
        if expected is None:
            continue
        assert found.shape == expected.shape, name
        error = relative_error(found, expected)
        limit = TOLERANCE[found.dtype] if tolerance is None else tolerance
        assert error <= limit, f"{name} is off by {error:.1e}"


def assert_same_results(ours: nn.Module, theirs: nn.Module, *args, tolerance=None) -> None:
    """Both modules give the same outputs and the same gradients, of arguments and of parameters, in the same dtype."""
    found, expected = results_of(ours, *args), results_of(theirs, *args)
    assert_close(found, expected, tolerance)
    for name, tensor in expected.items():
        assert tensor is None or found[name].dtype == tensor.dtype, name


def error_of(call, *args, **options) -> Exception:
    with pytest.raises(Exception) as caught:
        call(*args, **options)
    return caught.value


def assert_same_error(our_call, torch_call, *args, **options) -> None:
    """Both calls fail, with the same type of exception and the same message."""
    found, expected = error_of(our_call, *args, **options), error_of(torch_call, *args, **options)
    assert (type(found), str(found)) == (type(expected), str(expected))


# ---- copies of a module ----------------------------------------------------------------------------------------------


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
