"""LSTM, GRU and RNN layers for PyTorch whose time loop runs fused, in one call of a compiled operator.

Put ``fused_rnn.LSTM`` where ``torch.nn.LSTM`` was, or call ``fused_rnn.swap(model)``; nothing else changes.

The public interface: the names in ``__all__``, the module ``fused_rnn.onnx`` and the result classes (``Explanation``,
``Flow`` and so on). The folders are internal.
"""

import sys as _sys

from . import _old_names, functional, init, reference, zoo
from . import onnx as onnx  # not in __all__: a star import would hide the package of that name
from ._version import __version__
from .autograd import raw_operators as raw_operators  # registers the operators' gradients
from .nn import tables as tables  # registers our classes beside torch.nn's
from .nn.cells import GRUCell, LSTMCell, RNNCell
from .nn.convert import restore, swap
from .nn.freeze import freeze, thaw
from .nn.install import install, uninstall
from .nn.layers import GRU, LSTM, RNN
from .nn.stack import Stack
from .nn.stream import Stream
from .ops import fake as fake  # register the operators' shapes and costs
from .ops import flops as flops
from .ops import tables as _tables
from .ops.engines import cuda_engine, engine
from .own.cell import OwnCell as OwnCell
from .own.cell import cell
from .own.layer import OwnLayer as OwnLayer
from .tools.explain import Explanation as Explanation  # the classes of results: not in __all__, but public
from .tools.explain import ModelExplanation as ModelExplanation
from .tools.explain import explain
from .tools.gate_statistics import Gate as Gate
from .tools.gate_statistics import GateStatistics as GateStatistics
from .tools.gate_statistics import gate_statistics
from .tools.gradient_flow import Flow as Flow
from .tools.gradient_flow import Line as Line
from .tools.gradient_flow import Summary as Summary
from .tools.gradient_flow import gradient_flow
from .tools.info import info
from .tools.spectrum import Block as Block
from .tools.spectrum import Spectrum as Spectrum
from .tools.spectrum import spectrum
from .tools.tbptt import Chunk as Chunk
from .tools.tbptt import tbptt
from .tools.verify import Report as Report
from .tools.verify import Result as Result
from .tools.verify import verify

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stack",
    "Stream",
    "__version__",
    "cell",
    "cuda_engine",
    "engine",
    "explain",
    "freeze",
    "functional",
    "gate_statistics",
    "gradient_flow",
    "info",
    "init",
    "install",
    "reference",
    "restore",
    "spectrum",
    "swap",
    "tbptt",
    "thaw",
    "uninstall",
    "verify",
    "zoo",
]


def __dir__() -> list[str]:
    return sorted(__all__)


# Pickles and help() refer to classes by module: the public one, whichever file defines them.
_MODULES = (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell, Stack, Stream)
_RESULTS = (
    Block,
    Chunk,
    Explanation,
    Flow,
    Gate,
    GateStatistics,
    Line,
    ModelExplanation,
    OwnCell,
    OwnLayer,
    Report,
    Result,
    Spectrum,
    Summary,
)
for _class in (*_MODULES, *_RESULTS):
    _class.__module__ = __name__

_tables.use_for_cpu()
_old_names.register(_sys.modules[__name__])
