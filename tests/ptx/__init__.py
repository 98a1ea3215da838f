"""A GPU in software: it executes the PTX that nvcc made of this library's kernels, launched by its own host code.

    machine = ptx.load()                # torch.ops.fused_rnn_emulated now runs on it
    machine.options(seed=3, weak=True)  # in which order things happen, and what loads may see
    machine.change(kernel, {120: "bar.sync 0;"})  # lines of its text, from now on

It refuses, and says where: unknown opcodes, misaligned and out-of-bounds accesses, reads of uninitialised shared
memory, races, misuse of mbarriers, deadlocks, and launches that a Hopper GPU would refuse. It does not model ptxas and
SASS, time, or caches.
"""

import ctypes
import functools
import os
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from . import building, own_cells

FEW_STEPS_AHEAD = 4096  # bytes of inputs that are projected ahead of a run of steps


class Totals(NamedTuple):
    launches: int
    instructions: int
    stale: int  # loads that saw an older value than the last one
    products: int  # of matrices, by torch


class Counts(NamedTuple):
    """A kernel's counts by instruction. Columns of ``numbers``: times executed, lanes, passes, passes at best."""

    lines: list[tuple[int, str, str, int]]  # of the PTX, opcode, source file and line; line 0: the end, not in the text
    numbers: np.ndarray


class Machine:
    """The compiled module, with a Python interface."""

    def __init__(self, module):
        self._module = module
        self.library = ctypes.CDLL(module.__file__)  # what plan_info.cpp exports
        self.cells = own_cells.Cells(module)
        self.orders = tuple(module.Order.__members__.values())
        self._ahead_bytes = module.set_ahead_bytes(FEW_STEPS_AHEAD)
        module.set_ahead_bytes(self._ahead_bytes)
        for name in ("text_of", "decoded", "decode_all", "launches_of", "reset_counts", "opcodes"):
            setattr(self, name, getattr(module, name))
        for name in ("fill_memory", "set_ahead_bytes", "change", "undo_changes"):
            setattr(self, name, getattr(module, name))
        if "FUSED_RNN_PTX" not in os.environ:  # which names other texts
            for path in building.ptx_files():
                module.read_file(str(path))

    def names(self):
        """The library's kernels, without those of cells that tests have had compiled (own_cells.py)."""
        return [name for name in self._module.names() if "plug_in_" not in name]

    def options(self, seed=0, order="shuffled", weak=False, rough=False, traffic=False, patience=0):
        order = getattr(self._module.Order, order)
        self._module.set_options(seed=seed, order=order, weak=weak, rough=rough, traffic=traffic, patience=patience)

    @contextmanager
    def silence(self, block, after):
        """Drops everything that a block of a grid publishes, from its publication number ``after`` on."""
        self._module.set_silence(block, after)
        try:
            yield
        finally:
            self._module.set_silence(-1, 0)

    @contextmanager
    def hold_up(self, block):
        """A block of a grid goes on only where no other one can, and what is stored asynchronously comes late."""
        self._module.set_held_up(block)
        try:
            yield
        finally:
            self._module.set_held_up(-1)

    def schedule(self, number):
        """The n-th order of events: all kinds in turn, with new random numbers each time around.

        Every other time around, a sequence is cut into runs of a few steps, as long sequences are.
        """
        rounds, order = divmod(number, len(self.orders))
        self.options(seed=number, order=self.orders[order].name)
        self.set_ahead_bytes(FEW_STEPS_AHEAD if rounds % 2 else self._ahead_bytes)

    @contextmanager
    def captured(self):
        """Keeps what the operators ask for in here, in a graph: a list with a function that does it, again and again.

        Other operators of torch run at once, on what is there before.
        """
        graph = []
        self._module.begin_capture()
        try:
            yield graph
        finally:
            ready = self._module.end_capture()
            graph.append(functools.partial(self._module.replay, ready))

    def counts(self, kernel) -> Counts:
        return Counts(*self._module.counts_of(kernel))

    def totals(self) -> Totals:
        return Totals(*self._module.totals())

    def launch(
        self,
        text,
        kernel,
        grid=(1, 1, 1),
        block=(32, 1, 1),
        arguments=(),
        shared_bytes=0,
        cluster=1,
        cooperative=False,
        allowed_shared=48 << 10,
        large_cluster=False,
    ):
        """Launches a kernel of the given PTX; ``arguments`` are numbers, or addresses of tensors.

        The last two are set by cudaFuncSetAttribute on a GPU.
        """
        how = self._module.Launch(grid, block, shared_bytes, cluster, cooperative)
        allowed = self._module.Allowed(allowed_shared, large_cluster)
        self._module.launch(text, kernel, how, allowed, list(arguments))


@functools.cache
def load() -> Machine:
    """Builds and loads the machine, once. Tensors allocated from then on lie between guard areas."""
    return Machine(building.load_module())
