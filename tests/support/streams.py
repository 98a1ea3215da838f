"""Layers for streams, and the comparison of their results."""

import torch

from support.modules import make_pair, tensors_of


def layer_of(kind="lstm", dtype=torch.float32, **options):
    return make_pair(kind, dtype=dtype, **options)[0].eval()


def assert_equal(found, expected):
    found, expected = tensors_of(found), tensors_of(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
