"""LSTM, GRU and RNN layers for PyTorch whose whole time loop is one fused kernel.

Put ``fused_rnn.LSTM`` where ``torch.nn.LSTM`` was, or call ``fused_rnn.swap(model)``; nothing else changes.
"""

import sys as _sys

from . import _old_names, functional, init, reference
from . import onnx as onnx  # not in __all__: a star import would hide the package of that name
from ._version import __version__
from .nn.cells import GRUCell, LSTMCell, RNNCell
from .nn.convert import restore, swap
from .nn.freeze import freeze, thaw
from .nn.layers import GRU, LSTM, RNN
from .nn.stack import Stack
from .ops import fake as fake  # registers the operators' shapes
from .ops.engines import cuda_engine
from .tools.explain import explain
from .tools.gate_statistics import gate_statistics
from .tools.gradient_flow import gradient_flow
from .tools.info import info
from .tools.spectrum import spectrum
from .tools.tbptt import tbptt
from .tools.verify import verify

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stack",
    "__version__",
    "cuda_engine",
    "explain",
    "freeze",
    "functional",
    "gate_statistics",
    "gradient_flow",
    "info",
    "init",
    "reference",
    "restore",
    "spectrum",
    "swap",
    "tbptt",
    "thaw",
    "verify",
]

_old_names.register(_sys.modules[__name__])
