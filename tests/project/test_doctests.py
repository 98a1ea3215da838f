"""The examples in the docstrings of all public names are run, and every public name has a docstring."""

import doctest
import importlib
import inspect

import numpy
import pytest
import torch

import fused_rnn

MODULES = ("functional", "init", "onnx")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def public_things():
    """(name, thing): what ``fused_rnn``, its public modules and its result classes export."""
    for name in fused_rnn.__all__:
        thing = getattr(fused_rnn, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            yield f"fused_rnn.{name}", thing
    for module in MODULES:
        for name in importlib.import_module(f"fused_rnn.{module}").__all__:
            yield f"fused_rnn.{module}.{name}", getattr(getattr(fused_rnn, module), name)
    for name, thing in vars(fused_rnn).items():
        if inspect.isclass(thing) and name not in fused_rnn.__all__:
            yield f"fused_rnn.{name}", thing


THINGS = dict(public_things())
# What needs a GPU, or onnx, or comes from a function that has an example of its own.
WITHOUT_EXAMPLE = {"fused_rnn.cuda_engine", "fused_rnn.onnx.translations"}


def examples_of(name):
    finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
    return [test for test in finder.find(THINGS[name], name) if test.examples]


@pytest.mark.parametrize("name", THINGS)
def test_examples_run(name):
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in examples_of(name):
        test.globs = {"torch": torch, "numpy": numpy, "fused_rnn": fused_rnn}
        shown = []
        runner.run(test, out=shown.append)
        assert not runner.failures, "".join(shown)


@pytest.mark.parametrize("name", THINGS)
def test_every_public_name_is_documented(name):
    thing = THINGS[name]
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own, f"{name} has no docstring of its own"
    if name in WITHOUT_EXAMPLE:
        assert not examples_of(name), "it has an example now: take it off the list"
    elif name.rpartition(".")[2] in (*fused_rnn.__all__, *fused_rnn.functional.__all__, *fused_rnn.init.__all__):
        assert examples_of(name), f"the docstring of {name} has no example"
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if not method.startswith("_") and inspect.isfunction(function):
            assert function.__doc__, f"{name}.{method} has no docstring"


def test_arguments_of_layers_are_all_described():
    for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "Stack", "Stream"):
        thing = getattr(fused_rnn, name)
        section = thing.__doc__.split("Args:\n")[1].split("\n\n")[0]
        for argument in inspect.signature(thing).parameters:
            assert f"        {argument}: " in section + "\n", f"{name} does not describe {argument}"
