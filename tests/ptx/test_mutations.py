"""Every change to the kernels' PTX is seen, or it is listed why it cannot matter."""

import pytest

from . import mutants, mutations


@pytest.mark.parametrize("mutation", mutations.NAMED, ids=lambda mutation: mutation.name)
def test_fault_is_seen(machine, mutation):
    assert mutants.unseen(machine, mutation) == []


@pytest.fixture(scope="module")
def places(machine):
    return mutants.places(machine, mutations.BY_ONE, mutations.WEAKENINGS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("run", mutations.BY_ONE, ids=str)
def test_everything_that_orders_is_needed(machine, places, run):
    """Barriers, fences, flags, waits and asynchronous stores, one by one: seen, or listed, but not both."""
    unseen, stale = [], []
    for place in places:
        if place.runs[0] != run:
            continue
        is_harmless = any(harmless.fits(place) for harmless in mutations.HARMLESS)
        wrong = mutants.place_is_seen(machine, place)
        if wrong and is_harmless:
            stale.append(f"{place}: {wrong}")
        if not wrong and not is_harmless:
            unseen.append(str(place))
    assert not unseen, "not seen:\n" + "\n".join(unseen)
    assert not stale, "said to be harmless, but seen:\n" + "\n".join(stale)


@pytest.mark.exhaustive
def test_what_is_harmless_is_there(places):
    for harmless in mutations.HARMLESS:
        assert any(harmless.fits(place) for place in places), harmless
