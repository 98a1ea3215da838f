"""``cell``: makes a cell of a Python function of one step."""

from __future__ import annotations

import importlib
import inspect
import math
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from .. import reference
from ..ops import arguments
from ..ops.cells import Cell, Row
from ..ops.library import MOST_GATES, MOST_STATES, CellTraits
from . import build, cuda
from .layer import MATRICES, Init, OwnLayer, check_init
from .record import Declaration, call, record
from .register import group_of, load, load_on_cuda, register


@overload
def cell(
    function: Callable[..., Any],
    *,
    gates: int,
    states: Sequence[str],
    params: Sequence[str] = (),
    recurrent: bool = True,
    initial: Mapping[str, float] | None = None,
    init: Mapping[str, Init] | None = None,
    name: str | None = None,
) -> OwnCell: ...


@overload
def cell(
    function: None = None,
    *,
    gates: int,
    states: Sequence[str],
    params: Sequence[str] = (),
    recurrent: bool = True,
    initial: Mapping[str, float] | None = None,
    init: Mapping[str, Init] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], OwnCell]: ...


def cell(
    function: Callable[..., Any] | None = None,
    *,
    gates: int,
    states: Sequence[str],
    params: Sequence[str] = (),
    recurrent: bool = True,
    initial: Mapping[str, float] | None = None,
    init: Mapping[str, Init] | None = None,
    name: str | None = None,
) -> OwnCell | Callable[[Callable[..., Any]], OwnCell]:
    """Makes a cell of a function that computes one step of one unit: a decorator, or a call with the function.

    The function is ``function(x, r, *states, **params)``. ``x`` is W_ih x_t + b_ih and ``r`` is W_hh h + b_hh, tensors
    ``[gates, ...]`` that unpack into the gates; then come the states, then the parameters by keyword. It returns the
    new states in the same order, or the new state where there is one. What a unit computes may depend on its own
    numbers alone: arithmetic, exp, log, sqrt, sigmoid, tanh, relu and the like, comparisons, ``torch.where``. Its
    derivatives are found from it.

    Args:
        function: the step; left out where this is a decorator.
        gates: G, how many values of x and of r a unit gets; 1 to 8.
        states: the names of the states. The first one is the layer's output and what W_hh multiplies.
        params: the names of parameters of which each unit has one.
        recurrent: False for a cell without W_hh; the function then has no ``r``.
        initial: what states begin with, and begin with again after a reset; 0 for those that are not named. May be
            -inf.
        init: how parameters are drawn: by name of a parameter, or "weight_ih", "weight_hh", "bias_ih", "bias_hh", a
            number or a function that fills a tensor in place. Others are uniform between -1/sqrt(H) and 1/sqrt(H).
        name: of the cell; that of the function if not given. Pickles find the cell by it.

    Returns:
        An :class:`OwnCell`, or the decorator that makes one.

    Example:
        >>> @fused_rnn.cell(gates=2, states=("h",))
        ... def ugrnn(x, r, h):
        ...     gate, candidate = x + r
        ...     gate = torch.sigmoid(gate)
        ...     return gate * h + (1 - gate) * torch.tanh(candidate)
        >>> layer = ugrnn.layer(10, 20, bidirectional=True, compiled=False)
        >>> output, h_n = layer(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    def make(function: Callable[..., Any]) -> OwnCell:
        beginning, drawn = {} if initial is None else initial, {} if init is None else init
        return OwnCell(function, gates, states, params, recurrent, beginning, drawn, name)

    return make if function is None else make(function)


class OwnCell:
    """A cell made by :func:`cell`; calling it calls the function of its step.

    Attributes:
        name: as in messages, and where pickles look.
        function: the step.
        gates: how many there are.
        states: their names.
        params: their names.
        recurrent: whether there is a W_hh.
        initial: what each state begins with, in order.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        gates: int,
        states: Sequence[str],
        params: Sequence[str],
        recurrent: bool,
        initial: Mapping[str, float],
        init: Mapping[str, Init],
        name: str | None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"cell: the step must be a function, got {type(function).__name__}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"cell: name must be a str, got {type(name).__name__}")
        self.name: str = getattr(function, "__name__", type(function).__name__) if name is None else name
        self.function: Callable[..., Any] = function
        self.gates: int = gates
        self.states: tuple[str, ...] = _names(self.name, "states", states)
        self.params: tuple[str, ...] = _names(self.name, "params", params)
        self.recurrent: bool = recurrent
        self.__doc__ = getattr(function, "__doc__", None)
        self.__module__ = getattr(function, "__module__", "")
        self.__name__: str = self.name
        self.__qualname__: str = getattr(function, "__qualname__", self.name) if name is None else name
        self.__wrapped__: Callable[..., Any] = function
        self._check_declaration(initial)
        self.initial: tuple[float, ...] = tuple(float(initial.get(state, 0.0)) for state in self.states)
        check_init(self.name, init, self.params, self.recurrent)
        self.init: dict[str, Init] = dict(init)
        self._loaded: set[tuple[torch.dtype, str]] = set()

    def _check_declaration(self, initial: Mapping[str, float]) -> None:
        name, states, params = self.name, self.states, self.params
        if isinstance(self.gates, bool) or not isinstance(self.gates, int):
            raise TypeError(f"{name}: gates must be an int, got {type(self.gates).__name__}")
        if not isinstance(self.recurrent, bool):
            raise TypeError(f"{name}: recurrent must be a bool, got {type(self.recurrent).__name__}")
        if not isinstance(initial, Mapping):
            raise TypeError(f"{name}: initial must be a dict by name of a state, got {type(initial).__name__}")
        if not 1 <= self.gates <= MOST_GATES:
            raise ValueError(f"{name}: gates must be 1 to {MOST_GATES}, got {self.gates}")
        if not 1 <= len(states) <= MOST_STATES:
            raise ValueError(f"{name}: there must be 1 to {MOST_STATES} states, got {len(states)}")
        twice = {each for each in states + params if (states + params).count(each) > 1}
        if twice:
            raise ValueError(f"{name}: states and params must have different names, got {sorted(twice)} twice")
        taken = [each for each in params if each in MATRICES]
        if taken:
            raise ValueError(f"{name}: params may not be named {taken[0]!r}, as a layer's own parameters are")
        for state, value in initial.items():
            if state not in states:
                raise ValueError(f"{name}: initial names {state!r}, but the states are {', '.join(states)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                raise ValueError(f"{name}: initial[{state!r}] must be a number, got {value!r}")
        expected = ["x", *["r"] * self.recurrent, *states]
        shape = f"({', '.join(expected + (['*', *params] if params else []))})"
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            return  # a function of C has none
        try:
            signature.bind(*expected, **dict.fromkeys(params))
        except TypeError as error:
            raise TypeError(f"{name}: the function must take {shape}, but it is {name}{signature}: {error}") from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The step itself: ``x, r [gates, ...]``, the states, the parameters by keyword, to the new states."""
        return self.function(*args, **kwargs)

    def layer(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        compiled: bool = True,
        init: Mapping[str, Init] | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        heads: int = 1,
        checkpoint: int | None = None,
        layer_norm: bool = False,
    ) -> OwnLayer:
        """A module that runs this cell over whole sequences, with the options and calls of :class:`fused_rnn.LSTM`.

        Args:
            input_size: I, the number of features, or of different ids.
            hidden_size: H, the number of units.
            num_layers: how many layers are stacked.
            bias: whether there are biases.
            batch_first: whether input and output are ``[B, T, ...]``.
            dropout: the probability of dropout between layers, in training.
            bidirectional: whether a second set of weights reads each sequence from its end.
            proj_size: refused unless 0; only LSTM has it.
            device: where the parameters are.
            dtype: of the parameters.
            compiled: False for the slow loop over the Python function, which needs no compiler.
            init: changes the cell's own ``init`` for this layer.
            recurrent_dropout: as of :class:`fused_rnn.LSTM`.
            zoneout: likewise; of a cell with several states two numbers may be given, for the first one and the others.
            weight_dropout: likewise.
            heads: likewise.
            checkpoint: likewise.
            layer_norm: whether x and r are normalised, each over its gates * H sums, before their biases are added and
                the formula sees them, with gains ``gain_ih_l[k]`` and ``gain_hh_l[k]``.
        """
        if proj_size:
            raise ValueError(f"proj_size argument is only supported for LSTM, not {self.name}")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype)
        return OwnLayer(
            self,
            *sizes,
            compiled=compiled,
            init=init,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            heads=heads,
            checkpoint=checkpoint,
            layer_norm=layer_norm,
        )

    @property
    def header(self) -> str:
        """The C++ header that the function was made into, which is what is compiled."""
        return self._generated[0]

    def reference(self, input: Any, hx: Any, weights: Sequence[Tensor], **options: Any) -> Any:
        """The layers by the function itself, called step by step, as ``fused_rnn.reference.lstm`` is by its own.

        Args:
            input: the sequence.
            hx: the initial state or, of a cell with several, a tuple of them; or None.
            weights: of each layer and direction in turn weight_ih, weight_hh, bias_ih, bias_hh, and the parameters as
                one tensor ``[len(params), H]``.
            options: those of :func:`fused_rnn.functional.lstm`.
        """
        output, *states = arguments.run_cell(reference.RUNNER, self.row, input, hx, weights, **options)
        return output, states[0] if len(self.states) == 1 else tuple(states)

    @cached_property
    def row(self) -> Cell:
        """This cell in the library's table."""
        text, traits = self._generated
        row = Row(self.name, state_names=self.states, initial=self.initial)
        return register(row, traits, text, self._step)

    def load(self, dtype: torch.dtype, device: str = "cpu") -> None:
        """Compiles and loads the kernels for a dtype on "cpu" or "cuda", as the first call that needs them does."""
        if (dtype, device) not in self._loaded:
            (load_on_cuda if device == "cuda" else load)(self.row.id, dtype)
            self._loaded.add((dtype, device))

    def plug_in(self, dtype: torch.dtype) -> Path:
        """Where the kernels for a dtype are kept; compiles them if they are not."""
        return build.load(self.header, group_of(dtype), self.name)

    def plug_in_on_cuda(self, dtype: torch.dtype) -> Path | None:
        """The same for CUDA; None if they are not compiled yet. Raises RuntimeError if they cannot be."""
        return cuda.find(self.header, dtype)

    @cached_property
    def _declared(self) -> Declaration:
        return Declaration(self.name, self.gates, self.states, self.params, self.recurrent)

    @cached_property
    def _generated(self) -> tuple[str, CellTraits]:
        # Late: they need NumPy and torch's tracer, which take as long to import as the rest of the library.
        trace, emit = (importlib.import_module(f"{__package__}.{name}") for name in ("trace", "emit"))
        formula = trace.trace(record(self.function, self._declared), self._declared)
        return emit.header(formula, self.initial)

    @property
    def id(self) -> int:
        """What graphs know the cell by, a hash of its header."""
        return build.cell_id(self.header)

    def _step(self, x: Tensor, r: Tensor | None, *rest: Tensor) -> tuple[Tensor, ...]:
        """As the reference calls it: x and r ``[..., G*H]``, the states, all parameters in one tensor."""
        states, params = rest[: len(self.states)], rest[len(self.states) :]
        given = [gates.unflatten(-1, (self.gates, -1)).movedim(-2, 0) for gates in (x, r) if gates is not None]
        new = call(self.function, self._declared, [*given, *states, *(params[0].unbind(-2) if params else ())])
        return tuple(new) if isinstance(new, (tuple, list)) else (new,)

    # ---- copies and pickles -------------------------------------------------------------------------------------

    def __copy__(self) -> OwnCell:
        return self

    def __deepcopy__(self, memo: Any) -> OwnCell:
        return self

    def __reduce__(self) -> Any:
        found: Any = sys.modules.get(self.__module__)
        for part in self.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not self:
            raise pickle.PicklingError(
                f"{self.name}: a cell is pickled by its name, but {self.__module__}.{self.__qualname__} is not this "
                "one. Define it at the top of a module that can be imported (not a lambda or a local function); "
                "fused_rnn.cell(..., name=) gives it the name of its variable"
            )
        return _find, (self.__module__, self.__qualname__)

    def __repr__(self) -> str:
        parts = [f"gates={self.gates}", f"states={self.states}"]
        parts += [f"params={self.params}"] * bool(self.params)
        parts += ["recurrent=False"] * (not self.recurrent)
        return f"<fused_rnn.cell {self.name}: {', '.join(parts)}>"


def _find(module: str, qualname: str) -> OwnCell:
    """What a pickled cell is: the one that has this name now."""
    __import__(module)
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    if not isinstance(found, OwnCell):
        raise pickle.UnpicklingError(f"{module}.{qualname} is not a cell made by fused_rnn.cell")
    return found


def _names(cell: str, what: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"{cell}: {what} must be a tuple of names, got {names!r}")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{cell}: {what} must be names that Python can use, got {name!r}")
    return tuple(names)
