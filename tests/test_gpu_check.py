"""Time on a GPU is scarce, so the scripts that run there are rehearsed here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def test_gpu_check_rehearsal(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable}
    command = [str(SCRIPTS / "gpu_check.sh"), str(tmp_path / "out"), "--rehearse"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/gpu_check.log").read_text() == done.stdout
    results = json.loads((tmp_path / "out/baseline.json").read_text())
    assert list(results) == ["environment", "stream", "floors", "torch_nn", "kernels", "blocks"]
    assert all(row["forward_backward_us_per_step"] > 0 for row in results["torch_nn"])


def test_gpu_check_calls_what_torch_has():
    """The rehearsal skips these calls, and would not see a wrong name."""
    used = set(re.findall(r"torch\.cuda\.(\w+)", (SCRIPTS / "gpu_check.py").read_text()))
    assert {"Stream", "CUDAGraph", "_sleep"} < used
    assert [name for name in sorted(used) if not hasattr(torch.cuda, name)] == []


@needs_nvcc
@pytest.mark.parametrize(
    ("body", "passes"),
    [
        ("p[0] = p[1];", True),
        ("int local[64]; for (int i = 0; i < 64; ++i) local[p[i]] = i; p[0] = local[p[1]];", False),
    ],
)
def test_cuda_check_fails_on_a_stack_frame(tmp_path, body, passes):
    source = tmp_path / "kernel.cu"
    source.write_text(f"__global__ void kernel(int* p) {{ {body} }}\n")
    command = [sys.executable, str(SCRIPTS / "cuda_check.py"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == passes, done.stdout + done.stderr
    assert ("FAIL" in done.stdout) != passes
