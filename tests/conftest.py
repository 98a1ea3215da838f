import contextlib
import os
import shutil
import tempfile

# Before the import: neither measurements nor compiled cells are the user's. A run's processes share the folder.
os.environ["FUSED_RNN_CACHE"] = "{}/fused_rnn_tests_{}".format(
    tempfile.gettempdir(), os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
)

# Several processes share the cores: a thread of OpenMP that waits must not keep one busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest
import torch

import fused_rnn
import ptx
from fused_rnn import reference
from fused_rnn.ops import engines, library
from support.gpu import tf32
from support.machine import take_over

# The same examples on every run: a failure in CI is a failure at home. More of them: --hypothesis-profile=thorough
hypothesis.settings.register_profile("default", max_examples=200, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None)
# For tests that must fail: the first failing example is enough, without shrinking.
hypothesis.settings.register_profile(
    "no_shrinking", parent=hypothesis.settings.get_profile("default"), phases=[hypothesis.Phase.generate]
)
hypothesis.settings.load_profile("default")


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):  # not one of several processes
        shutil.rmtree(os.environ["FUSED_RNN_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def our_engines(request):
    """Tests on a GPU are of our engines, unless they or FUSED_RNN_ENGINE name another."""
    on_a_gpu = request.node.get_closest_marker("cuda") is not None
    with engines.ours_on("cuda") if on_a_gpu else contextlib.nullcontext():
        yield


@pytest.fixture
def no_reference(monkeypatch):
    """The plain PyTorch reference raises, so a test that passes ran on the kernels."""

    def refuse(*args, **kwargs):
        raise AssertionError("the reference was called on a path that must run on the kernels")

    monkeypatch.setattr(reference, "run_layer", refuse)


@pytest.fixture(scope="module")
def machine():
    """Every call runs on the CUDA engine, whose PTX is executed on the CPU; fresh memory is filled with NaN."""
    machine = ptx.load()
    machine.fill_memory(True)
    library.fill_memory(True)
    with pytest.MonkeyPatch.context() as patch:
        take_over(machine, patch.setattr)
        yield machine
    machine.fill_memory(False)
    library.fill_memory(False)
    machine.schedule(0)
    machine.options()


@pytest.fixture
def plans(monkeypatch):
    """Plans come from the software GPU's engine, since the library may have been built without CUDA."""
    emulated = ptx.load().library
    library.declare_cuda(emulated)
    monkeypatch.setattr(library, "compiled", emulated)
    monkeypatch.setattr(library, "cuda_archs", lambda: ["90a"])


@pytest.fixture(params=["LSTM", "GRU", "RNN"])
def layer(request):
    """This library's layer, torch.nn's with the same weights, and an input."""
    ours = getattr(fused_rnn, request.param)(3, 4, 2, bidirectional=True, dtype=torch.float64)
    theirs = getattr(torch.nn, request.param)(3, 4, 2, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(5, 2, 3, dtype=torch.float64)


@pytest.fixture
def poisoned():
    """New memory is filled with NaN; afterwards torch has its number of threads back."""
    before = torch.get_num_threads()
    library.fill_memory(True)
    yield
    library.fill_memory(False)
    torch.set_num_threads(before)


@pytest.fixture
def forgetful():
    """Clears torch.compile's caches before and after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def without_tf32():
    """On a GPU, so that results differ by the rounding of float32 alone."""
    with tf32(False):
        yield
