"""Layers on a processor with no more than x86-64-v1, as qemu-user shows one.

NumPy needs more, so it is hidden. So does a matrix product of torch's own; results are compared with this processor's.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn.tools.verify import INT8_TOLERANCE, TOLERANCE

PROCESSOR = "qemu64,-pni,-cx16"  # v1 has neither SSE3 nor cmpxchg16b
SCRIPT = """
import sys, warnings
sys.modules["numpy"] = None
warnings.simplefilter("ignore")
import torch, fused_rnn

torch.set_num_threads(1)
torch.manual_seed(0)
results = {}
for kind in (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        layer = kind(9, 21, dtype=dtype, bidirectional=True)
        input = (torch.rand(7, 5, 9) - 0.5).to(dtype).requires_grad_()
        output, _ = layer(input)
        gradients = torch.autograd.grad(output, [input, *layer.parameters()], torch.ones_like(output))
        results[kind.__name__, dtype] = [output.detach(), *gradients]
    for weights in ("int8", "int8-weights-only"):
        frozen = fused_rnn.freeze(kind(9, 21), weights=weights)
        with torch.inference_mode():
            results[kind.__name__, weights] = [frozen(torch.rand(7, 5, 9) - 0.5)[0]]
sets = {value for key, value in fused_rnn.info().items() if key.startswith("CPU instruction set")}
torch.save((sets, results), sys.argv[1])
"""


def results(path, *emulator):
    """(instruction sets, results) of the script on this processor, or on the emulator's."""
    done = subprocess.run(
        [*emulator, sys.executable, "-c", SCRIPT, str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(fused_rnn.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return torch.load(path)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the processor is an x86-64")
@pytest.mark.skipif(
    shutil.which("qemu-x86_64") is None, reason="qemu-x86_64, of the package qemu-user, is not installed"
)
def test_layers_on_the_oldest_processor(tmp_path):
    sets, found = results(tmp_path / "old.pt", "qemu-x86_64", "-cpu", PROCESSOR)
    assert sets == {"baseline"}
    _, expected = results(tmp_path / "here.pt")
    assert found.keys() == expected.keys()
    for (kind, how), tensors in expected.items():
        bound = (TOLERANCE | INT8_TOLERANCE)[how]
        theirs = torch.cat([tensor.double().flatten() for tensor in tensors])
        ours = torch.cat([tensor.double().flatten() for tensor in found[kind, how]])
        assert (ours - theirs).norm() <= bound * theirs.norm(), (kind, how)
