"""A callable under torch.compile."""

import torch
from torch._dynamo.backends.debugging import aot_eager


class Compiled:
    """A callable compiled with ``fullgraph``, and how many graphs that took."""

    def __init__(self, call, **options):
        self.graphs = 0
        self.call = torch.compile(call, fullgraph=True, backend=self.compile, **options)

    def compile(self, graph, inputs):
        compiled = aot_eager(graph, inputs)  # may raise to restart the compilation
        self.graphs += 1
        return compiled

    def __call__(self, *args, **options):
        return self.call(*args, **options)
