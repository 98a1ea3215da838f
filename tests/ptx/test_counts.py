"""Instructions that a step of the persistent kernel takes: ceilings, so that it cannot grow unnoticed.

Counts are no times; no GPU has measured one yet. Repeated polls are not counted.
"""

import pytest

import ptx

from . import counting

# (shape, way): the most instructions of a warp in a step
CEILINGS = {
    ("cluster,bfloat16,lstm,8,512", "forward"): 260,
    ("cluster,bfloat16,lstm,8,512", "backward"): 300,
    ("polling,bfloat16,lstm,8,1024", "forward"): 150,
    ("polling,bfloat16,lstm,8,1024", "backward"): 230,
    ("cluster,float32,lstm,8,128", "forward"): 480,
}
MOST_AT_FIRST = 1200  # before the first step and after the last one, everywhere
LEAST_SECTORS = {("cluster,bfloat16,lstm,8,512", "backward"): 64}  # of memory that a block's stores touch in a step


@pytest.fixture(scope="module", params=counting.SHAPES.split())
def measured(request):
    return request.param, counting.costs(ptx.load(), request.param)


def test_ceilings(measured):
    shape, costs = measured
    assert set(costs) == {"forward", "backward"}
    for way, cost in costs.items():
        assert 0 < cost.step <= CEILINGS.get((shape, way), float("inf")), way
        assert cost.first <= MOST_AT_FIRST, way
        assert cost.divisions == 0, way
        assert cost.sectors <= LEAST_SECTORS.get((shape, way), float("inf")), way
