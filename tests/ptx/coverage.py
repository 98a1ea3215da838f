"""Calls that reach every kernel and nearly every instruction, and a report of what is left and why."""



from fused_rnn._ops import Wanted

from . import building
from .cases import BF16, F32, F64

LSTM, GRU, TANH, RELU = CELLS = range(4)
REPORT = building.FOLDER / "coverage.txt"
ENDS = int(Wanted.INPUT | Wanted.BIAS_IH)  # gradients that need no copies of large matrices

# Widths at which each shape of the persistent kernel is taken, for cells of four, three and one gates; with a batch where
# it takes many rows. Products one by one read no more of a slot than the width fills: the wider, the more of the code.
FORWARD = {
    (F32, "one", False): ((64,), (64,), (64,)),
    (F32, "cluster", False): ((256,), (256,), (256,)),
    (F32, "polling", False): ((300, 560, (300, 40)), (300, 560, (300, 40)), (1500, (600, 56), (300, 112))),
    (F32, "flags", False): ((300,), (300,), (1500,)),
    (F32, "cluster", True): ((64,), (64,), (64,)),
    (F32, "polling", True): ((37, 520, (520, 24)), (37, 520, (520, 24)), (37, 520, (520, 64))),
    (F64, "one", False): ((29,), (37,), (64,)),
    (F64, "cluster", False): ((256,), (256,), (256,)),
    (F64, "flags", False): ((300,), (300,), (1030,)),
    (BF16, "one", False): ((13,), (13,), (13,)),
    (BF16, "cluster", False): ((37, 136, 280), (37, 136, 280), (37, 136, 280)),
    (BF16, "polling", False): (
        (37, (5, 300), (29, 304), 1540),
        (37, (5, 300), (29, 304), 1540),
        (37, (5, 300), (1100, 24), 1540),
    ),
}
BACKWARD = {
    (F32, "one", False): ((64,), (64,), (64,)),
    (F32, "cluster", False): ((256,), (256,), (256,)),
    (F32, "polling", False): ((256, 560), (330, 768), (1024, 1056)),
    (F32, "flags", False): ((384,), (500,), (1100,)),
    (F32, "cluster", True): ((88,), (88,), ()),
    (F32, "polling", True): ((136, 520), (184, 688), (520, 2056)),
    (F64, "one", False): ((29,), (37,), (64,)),
    (F64, "cluster", False): ((256,), (256,), (256,)),
    (F64, "flags", False): ((256,), (330,), (1024,)),
    (BF16, "one", False): ((13,), (13,), (13,)),
    (BF16, "cluster", False): ((37, 136, 280), (37, 184, 352), (37,)),
    (BF16, "polling", False): ((37, 520), (37, 688), (37, 2056)),
}
