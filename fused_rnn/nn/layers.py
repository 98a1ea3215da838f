"""``LSTM``, ``GRU`` and ``RNN``: torch.nn's layers on this library's operators, a file for each.

Constructors, parameters, state dicts and errors are those of ``torch.nn``. ``forward`` takes more, keyword-only:
``lengths``, ``reset_mask`` and ``grad_clip``, and an LSTM's ``return_cells``.
"""

from .gru import GRU
from .lstm import LSTM
from .rnn import RNN

__all__ = ["GRU", "LSTM", "RNN"]
