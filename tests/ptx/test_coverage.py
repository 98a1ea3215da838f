"""The calls of coverage.py reach every kernel, and nearly all that can be reached of each."""

import pytest

from . import coverage

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def found(machine):
    machine.reset_counts()
    assert coverage.everything(machine) == []
    measured = coverage.measure(machine)
    coverage.REPORT.parent.mkdir(parents=True, exist_ok=True)
    coverage.REPORT.write_text(coverage.report(measured))
    print(coverage.report(measured)[:4000])
    return measured


def test_every_kernel_is_launched(found):
    assert found.not_launched == []


def test_nearly_every_instruction_is_executed(found):
    assert found.share() > 0.95
    assert found.share_of_reachable() > 0.962


def test_what_is_left_is_explained(found):
    unknown = sum(left.why == coverage.UNKNOWN for left in found.left)
    assert unknown < 0.01 * found.sizes.total()
