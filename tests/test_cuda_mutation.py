"""Faults put into a copy of the CUDA engine: its tests must see every one of them on the emulator."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulating
import pytest
from compiling import CSRC
from test_persistent import KINDS

TESTS = Path(__file__).resolve().parent

STEPWISE = ("test_stepwise.py", "operators_equal")
PERSISTENT = {kind: ("test_persistent.py", f"lstm-dtype{i}-{kind}") for i, kind in enumerate(KINDS)}  # in float32

TANGENTS = ("test_tangents.py", "cuda_kernels and lstm and resets-small")
CLIPPED = ("test_grad_clip_cuda.py", "lstm and float32")
TOKENS = ("test_tokens_cuda.py", "lstm and float32")
PARKED = ("test_persistent.py", "parked and polling-1060")
AHEAD = {kind: ("test_persistent.py", f"run_ahead and {kind}") for kind in KINDS}

# name: (file, what stands there, what is put there, how sources to compile again begin, the tests that see it)
FAULTS = {
    "a reset forgets the memory": (
        "step_forward.cuh",
        "state[1] = cut ? T(0) : *at<T>(a.c, p.state * H + unit);\n    Cell::forward",
        "state[1] = *at<T>(a.c, p.state * H + unit);\n    Cell::forward",
        "stepwise.cu",
        STEPWISE,
    ),
    "a reset forgets the memory's tangent": (
        "step_forward.cuh",
        "state[1] = cut ? T(0) : *at<T>(a.c, p.state * H + unit);\n    Cell::tangent",
        "state[1] = *at<T>(a.c, p.state * H + unit);\n    Cell::tangent",
        "stepwise.cu",
        TANGENTS,
    ),
    "a tangent of gradients flows through a reset": (
        "step_backward.cuh",
        "if (!g.added_h || p.is_cut(g, step, b))",
        "if (!g.added_h)",
        "stepwise.cu",
        TANGENTS,
    ),
    "gradients flow through a reset": (
        "step_backward.cuh",
        "+ j * H + unit), cut ? T(0) : dr_j);",
        "+ j * H + unit), dr_j);",
        "stepwise.cu",
        STEPWISE,
    ),
    "padding is masked one step late": (
        "matrices.cuh",
        "is_active(g, m, t, b)",
        "is_active(g, m, t - 1, b)",
        "stepwise.cu",
        STEPWISE,
    ),
    "gradients are clipped before the output's has joined them": (
        "step_backward.cuh",
        "  T dh = incoming_dh<T>(g, a, p.state, b, unit);",
        "  T dh = clipped(g, incoming_dh<T>(g, a, p.state, b, unit));",
        "stepwise.cu",
        CLIPPED,
    ),
    "gradients of units in registers are not clipped": (
        "persistent_cells.cuh",
        "dh = clipped(common.most, dh);",
        "",
        "persistent_float",
        CLIPPED,
    ),
    "a look-up is one row off": (
        "tokens.cuh",
        "const int64_t row = l.first_row + i;",
        "const int64_t row = l.first_row + (i > 0 ? i - 1 : i);",
        "stepwise.cu",
        TOKENS,
    ),
    "the id before padding is passed over": (
        "tokens.cuh",
        "!is_active(g, m, t, b)) continue;",
        "!is_active(g, m, t + 1, b)) continue;",
        "stepwise.cu",
        TOKENS,
    ),
    "norms without their barrier": ("step_backward.cuh", "    __syncthreads();\n", "", "stepwise.cu", STEPWISE),
    "rows of a packed step are mixed up": (
        "stepwise_backward.cpp",
        "rows = std::max(step.rows, present_before);",
        "rows = step.rows;",
        "stepwise_backward.cpp",
        STEPWISE,
    ),
    "steps ahead overlap": (
        "stepwise_forward.cpp",
        "arrays_.x_first_row[d] = row;",
        "arrays_.x_first_row[d] = row + (first > 0);",
        "stepwise_forward.cpp",
        STEPWISE,
    ),
    "sums are read before all warps have written theirs": (
        "persistent.cuh",
        "    __syncthreads();\n",
        "",
        "persistent_float",
        PERSISTENT["flags"],
    ),
    "sums of the next step overwrite those of this one": (
        "persistent.cuh",
        "kBuffer = kParity * kSumCount;",
        "kBuffer = 0;",
        "persistent_float",
        AHEAD["polling"],
    ),
    "a row takes part in one step too many": (
        "course.cuh",
        "return age < count;",
        "return age <= count;",
        "persistent_float",
        PERSISTENT["one"],
    ),
    "a flag is raised before the block is done": (
        "exchange.cuh",
        "    __syncthreads();\n    if (threadIdx.x == 0) store_release",
        "    if (threadIdx.x == 0) store_release",
        "persistent_float",
        AHEAD["flags"],
    ),
    "a block looks before all flags are up": (
        "exchange.cuh",
        "keep_polling(kNanoseconds);\n    __syncthreads();",
        "keep_polling(kNanoseconds);",
        "persistent_float",
        PERSISTENT["flags"],
    ),
    "bytes arrive before they are expected": (
        "exchange.cuh",
        "    cluster_arrive();  // nothing may come before all this is done\n    cluster_wait();\n",
        "    __syncthreads();\n",
        "persistent_float",
        PERSISTENT["cluster"],
    ),
    "the next bytes are never expected": (
        "exchange.cuh",
        "    if (arms_) mbarrier_arrive_and_expect(counters_ + kParity, group_.known_bytes);\n",
        "",
        "persistent_float",
        PERSISTENT["cluster"],
    ),
    "what is not there yet is taken for a number": (
        "exchange.cuh",
        "return most == ~0u;",
        "return false;",
        "persistent_float",
        PERSISTENT["polling"],
    ),
    "a parked chunk is taken for its neighbour": (
        "warp_weights.cuh",
        "parked_[(((chunk - kHeld) * kTilesM",
        "parked_[(((chunk - kHeld + 1) % kParked * kTilesM",
        "persistent_float",
        PARKED,
    ),
    "a chunk is shown over one that is still read": (
        "warp_weights.cuh",
        "      if (chunk > 0) __syncwarp();\n",
        "",
        "persistent_float",
        PARKED,
    ),
    "a chunk is read before all lanes have shown it": (
        "warp_weights.cuh",
        "    __syncwarp();\n",
        "",
        "persistent_float",
        PARKED,
    ),
    "the next chunk's numbers are those of this one": (
        "warp_weights.cuh",
        "fetch(link, from + kStage * kStride, own);",
        "fetch(link, from, own);",
        "persistent_float",
        PARKED,
    ),
    "TF32 takes the weights of the other half of a chunk": (
        "arithmetic.cuh",
        "words + 8 * (load % 2) + 4 * pair;",
        "words + 8 * (1 - load % 2) + 4 * pair;",
        "persistent_float",
        ("test_persistent.py", "tf32 and cluster-lstm"),
    ),
    "a double is sent by half": (
        "exchange.cuh",
        "unrolled<Quad::kPacks>([&](auto part) {\n          constexpr int kOffset = kParity",
        "unrolled<1>([&](auto part) {\n          constexpr int kOffset = kParity",
        "persistent_double",
        ("test_persistent.py", "lstm-dtype11-cluster"),
    ),
    "a reset forgets the memory of units in registers": (
        "persistent_cells.cuh",
        "entered_c_ = T(0);",
        "entered_c_ = c_;",
        "persistent_float",
        PERSISTENT["one"],
    ),
}


@pytest.fixture(scope="module")
def right():
    """The folder in which the unchanged library has been built: what a fault does not touch is taken from there."""
    emulating.build(emulating.FOLDER)
    return emulating.FOLDER


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_seen(right, fault, tmp_path):
    name, before, after, source, (tests, which) = FAULTS[fault]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    text = (csrc / "cuda" / name).read_text()
    assert text.count(before) == 1, f"{before!r} occurs {text.count(before)} times in {name}"
    (csrc / "cuda" / name).write_text(text.replace(before, after))
    changed = {path.name for path in emulating.ENGINE if path.name.startswith(source)}
    library = emulating.build(tmp_path / "build", csrc, changed=changed, others=right)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=no_shrinking",
    ]
    done = subprocess.run(
        [*command, TESTS / tests, "-k", which],
        env=os.environ | {"FUSED_RNN_EMULATED": str(library), "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout + done.stderr
