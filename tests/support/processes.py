"""Runs Python in another process."""

import os
import subprocess
import sys
from pathlib import Path

import fused_rnn
from support.paths import TESTS


def run_python(*command) -> str:
    """Runs Python on one thread, with this library and ``support`` on its path, and returns what it prints."""
    path = f"{Path(fused_rnn.__file__).parents[1]}{os.pathsep}{TESTS}"
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return done.stdout
