"""csrc/cpu/schedule/team.h: every share of every stretch runs once and in order, even if members are late or sleep."""

import ctypes
from pathlib import Path

import pytest

from support.compiling import BUILD_FLAGS, compile_library

SOURCE = (Path(__file__).parent / "team_check.cpp").read_text()


@pytest.fixture(scope="module")
def check_threads(tmp_path_factory):
    library = compile_library(tmp_path_factory.mktemp("threads"), SOURCE, f"{BUILD_FLAGS} -pthread")
    library.check_threads.restype = ctypes.c_char_p
    library.check_threads.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int64]
    return library.check_threads


@pytest.fixture(scope="module")
def schedule(tmp_path_factory):
    """Runs one schedule; returns how many accesses to shared memory it took, including those while members slept."""
    library = compile_library(tmp_path_factory.mktemp("fibers"), SOURCE, "-O1 -DFUSED_RNN_FIBERS -pthread")
    library.check_schedule.restype = ctypes.c_char_p
    library.check_schedule.argtypes = [*[ctypes.c_int64] * 3, ctypes.c_uint64, *[ctypes.c_int64] * 2, ctypes.c_void_p]

    def run(members, coming, stretches, seed, late=0, sleep=0):
        points = ctypes.c_int64()
        wrong = library.check_schedule(members, coming, stretches, seed, late, sleep, ctypes.byref(points))
        assert wrong is None, f"{wrong.decode()}: {seed=} {members=} {coming=} {late=} {sleep=}"
        return points.value

    return run


@pytest.mark.parametrize("sleepy", [0, 1])
@pytest.mark.parametrize("members", range(1, 9))
def test_real_threads(check_threads, members, sleepy):
    for seed in range(3):
        assert check_threads(members, 40 if sleepy else 300, seed, sleepy) is None


@pytest.mark.parametrize("members", range(1, 9))
def test_schedules(schedule, members):
    """A sleep of 30000 points exceeds the team's patience: others take over its shares, and wait for those begun."""
    for seed in range(60):
        for coming in {members, max(1, members // 2), 1}:
            schedule(members, coming, 1 + seed % 7, seed)
            schedule(members, coming, 1 + seed % 7, seed, late=500)
            schedule(members, coming, 1 + seed % 7, seed, sleep=100)
    for seed in range(4):
        schedule(members, members, 3, seed, late=30_000)
        schedule(members, members, 3, seed, sleep=30_000)


@pytest.mark.parametrize("members", [2, 3, 8])
def test_one_thread_alone_does_not_wait(schedule, members):
    """A few accesses for each share: it does not wait for members that have not come."""
    assert schedule(members, 1, 100, seed=0) <= 12 * members * 100
