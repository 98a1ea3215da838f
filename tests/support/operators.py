"""Operators as torch's dispatcher and its profiler see them."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Records every operator that runs below autograd, with its results."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        self.calls.append((operator, results))
        return results


def count_operators(run):
    """(by torch's profiler, by the dispatcher), each a Counter of names."""
    run()  # not counted: a first call may set things up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    with Recorder() as recorder:
        run()
    dispatched = Counter(str(operator) for operator, _ in recorder.calls)
    return Counter(event.name for event in profiler.events()), dispatched


@contextmanager
def recorded():
    """Collects the names of this library's operators as they run, from torch's profiler."""
    names = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        yield names
    names += [event.name for event in profiler.events() if event.name.startswith("fused_rnn::")]
