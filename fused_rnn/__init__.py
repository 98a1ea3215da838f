"""LSTM, GRU and RNN layers for PyTorch whose whole time loop is one fused kernel.

Put ``fused_rnn.LSTM`` where ``torch.nn.LSTM`` was, or call ``fused_rnn.swap(model)``; nothing else changes.
"""

from . import functional, init, reference
from . import onnx as onnx  # not in __all__: a star import would hide the package of that name
from ._version import __version__
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import restore, swap
from .deep import Stack
from .diagnostics import explain, info
from .engines import cuda_engine
from .flow import gradient_flow
from .freezing import freeze, thaw
from .gates import gate_statistics
from .modules import GRU, LSTM, RNN
from .spectra import spectrum
from .training import tbptt
from .verification import verify

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
