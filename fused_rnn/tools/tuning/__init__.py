"""``python -m fused_rnn tune``: measures engines where they run, and keeps what it finds for ``auto``."""

from .report import Tuned
from .run import tune

__all__ = ["Tuned", "tune"]
