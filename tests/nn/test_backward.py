"""Backward passes through a module, compared with torch.nn."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from support.modules import (
    LAYERS,
    as_leaves,
    assert_close,
    assert_same_error,
    assert_same_results,
    every_kind,
    input_and_states,
    layouts_of,
    make_pair,
    results_of,
    tensors_of,
    weight_hh,
)

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


@every_kind
def test_outputs_may_be_edited_in_place_before_backward(kind):
    for ours, theirs, args in layouts_of(kind):
        for edited in range(len(tensors_of(ours(*args)))):
            results = []
            for module in (ours, theirs):
                leaves = as_leaves(args)
                outputs = tensors_of(module(*leaves))
                if module is ours:
                    before = [output.detach().clone() for output in outputs]
                    outputs[edited].mul_(3).add_(1)
                    unchanged = [torch.equal(a, b) for a, b in zip(outputs, before, strict=True)]
                    assert unchanged == [i != edited for i, _ in enumerate(outputs)]
                else:  # not all of torch.nn's layers allow it in place
                    outputs[edited] = outputs[edited] * 3 + 1
                loss = sum(output.square().sum() for output in outputs)
                grads = torch.autograd.grad(loss, [*tensors_of(leaves), *module.parameters()])
                results.append(dict(enumerate([*outputs, *grads])))
            assert_close(*results)


@every_kind
@pytest.mark.parametrize("edited", ["weight", "input"])
def test_in_place_edits_of_saved_tensors_are_detected(kind, edited):
    for ours, theirs, args in layouts_of(kind):
        noticed = []
        for module in (ours, theirs):
            leaves = as_leaves(args)
            output = tensors_of(module(*leaves))[0]
            with torch.no_grad():
                (getattr(module, weight_hh(module)) if edited == "weight" else tensors_of(leaves)[0]).mul_(2)
            try:
                output.sum().backward()
                noticed.append(False)
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
                noticed.append(True)
        # With batch_first the layers work on a copy of the input, so editing the input is harmless.
        assert noticed[0] == noticed[1]
        assert noticed[0] or edited == "input"


@every_kind
def test_inference_mode_tensors_behave_outside_as_in_torch(kind):
    ours, theirs = make_pair(kind)
    with torch.inference_mode():
        args = input_and_states(theirs)
        made_inside = copy.deepcopy(ours), copy.deepcopy(theirs)
        outputs = [tensors_of(module(*args))[0] for module in (ours, theirs)]
        expected = outputs[0].clone()
    assert_same_error(*(lambda output=output: output.add_(1) for output in outputs))
    assert_same_error(*(lambda output=output: (output * nn.Parameter(output.clone())).sum() for output in outputs))
    assert_same_error(ours, theirs, *args)
    plain = torch.utils._pytree.tree_map(torch.clone, args)
    if kind in LAYERS:  # some of torch's cells do not save these weights, and run
        assert_same_error(*made_inside, *plain)
    assert_same_results(ours, theirs, *plain)
    with torch.no_grad():
        for module in (ours, made_inside[0]):
            for given in (args, plain):
                found = tensors_of(module(*given))[0]
                assert torch.equal(found, expected)
                assert not found.is_inference()


@every_kind
def test_lazily_negated_and_zero_tensors(kind):
    ours, theirs = make_pair(kind)
    args = input_and_states(theirs)
    negated = torch.utils._pytree.tree_map(torch._neg_view, args)
    zero = torch.utils._pytree.tree_map(lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype), args)
    for lazy, plain in ((negated, lambda t: -t), (zero, torch.zeros_like)):
        expected = tensors_of(ours(*torch.utils._pytree.tree_map(plain, args)))
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                found = tensors_of(ours(*lazy))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Tagged(torch.Tensor):
    """A subclass that overrides nothing."""


@every_kind
def test_gradients_of_a_subclass_of_tensor(kind):
    ours, theirs = make_pair(kind)
    args = torch.utils._pytree.tree_map(lambda t: t.as_subclass(Tagged), input_and_states(theirs))
    results = []
    for module in (ours, theirs):
        leaves = as_leaves(args)
        outputs = tensors_of(module(*leaves))
        assert all(isinstance(output, Tagged) for output in outputs)
        outputs[-1].register_hook(lambda grad: 2 * grad)
        sum(output.square().sum() for output in outputs).backward()
        results.append([t.grad for t in (*tensors_of(leaves), *module.parameters())])
    torch.testing.assert_close(*results)
    for output in tensors_of(ours(*args)):
        output.mul_(2)


@every_kind
def test_retained_graph_gives_the_same_bits_twice(kind):
    for ours, _, args in layouts_of(kind):
        leaves = as_leaves(args)
        outputs = tensors_of(ours(*leaves))
        wanted = [*tensors_of(leaves), *ours.parameters()]
        weights = [torch.randn_like(output) for output in outputs]
        once, again = (torch.autograd.grad(outputs, wanted, weights, retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@every_kind
def test_a_second_backward_needs_a_retained_graph(kind):
    for ours, theirs, args in layouts_of(kind):
        losses = [tensors_of(module(*as_leaves(args)))[0].sum() for module in (ours, theirs)]
        for loss in losses:
            loss.backward()
        assert_same_error(losses[0].backward, losses[1].backward)


@every_kind
def test_gradients_of_any_subset_of_outputs(kind):
    for ours, theirs, args in layouts_of(kind):
        count = len(tensors_of(theirs(*args)))
        for chosen in itertools.chain.from_iterable(
            itertools.combinations(range(count), n) for n in range(1, count + 1)
        ):
            results = []
            for module in (ours, theirs):
                leaves = as_leaves(args)
                outputs = tensors_of(module(*leaves))
                wanted = [*tensors_of(leaves), *module.parameters()]
                loss = sum((outputs[i] * (i + 1)).square().sum() for i in chosen)
                grads = torch.autograd.grad(loss, wanted, materialize_grads=True)
                results.append(dict(enumerate(grads)))
            assert_close(*results)


@every_kind
def test_any_subset_may_require_gradients(kind):
    draw = random.Random(0)
    for ours, theirs, args in layouts_of(kind):
        names = [name for name, _ in theirs.named_parameters()]
        count = len(tensors_of(args))
        for _ in range(6):
            chosen = set(draw.sample([*range(count), *names], draw.randint(1, min(4, count + len(names)))))
            results = []
            for module in (ours, theirs):
                leaves = as_leaves(args)
                for i, leaf in enumerate(tensors_of(leaves)):
                    leaf.requires_grad_(i in chosen)
                for name, parameter in module.named_parameters():
                    parameter.requires_grad_(name in chosen)
                    parameter.grad = None
                sum(output.square().sum() for output in tensors_of(module(*leaves))).backward()
                grads = {f"argument {i}": leaf.grad for i, leaf in enumerate(tensors_of(leaves))}
                results.append(grads | {name: p.grad for name, p in module.named_parameters()})
            assert {n for n, grad in results[0].items() if grad is not None} == {
                f"argument {c}" if isinstance(c, int) else c for c in chosen
            }
            assert_close(*results)


class ForwardCalls(TorchDispatchMode):
    """Records the ``save`` argument of every call of layer_forward."""

    def __init__(self):
        super().__init__()
        self.saved = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.fused_rnn.layer_forward.default:
            self.saved.append(args[[argument.name for argument in op._schema.arguments].index("save")])
        return op(*args, **(kwargs or {}))


@every_kind
def test_nothing_is_saved_without_gradients(kind):
    for ours, _, args in layouts_of(kind):
        with ForwardCalls() as calls:
            with torch.no_grad():
                assert all(output.grad_fn is None for output in tensors_of(ours(*as_leaves(args))))
            with torch.inference_mode():
                assert all(output.is_inference() for output in tensors_of(ours(*args)))
            ours.requires_grad_(False)
            assert not any(output.requires_grad for output in tensors_of(ours(*args)))
            assert calls.saved
            assert not any(calls.saved)
            calls.saved.clear()
            ours.requires_grad_(True)
            assert all(output.requires_grad for output in tensors_of(ours(*args)))
            assert all(calls.saved)


@every_kind
def test_backward_in_eval_mode(kind):
    for ours, theirs, args in layouts_of(kind):
        assert_same_results(ours.eval(), theirs.eval(), *args)
        assert_close(results_of(ours.eval(), *args), results_of(ours.train(), *args), tolerance=0)


@every_kind
def test_saved_tensors_may_be_offloaded(kind):
    for ours, _, args in layouts_of(kind):
        expected = results_of(ours, *args)
        with torch.autograd.graph.save_on_cpu():
            assert_close(results_of(ours, *args), expected, tolerance=0)


@every_kind
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(kind, use_reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input, hx):
            # A reentrant checkpoint sees tensors only as direct arguments and results, not inside tuples.
            def flat(input, *states):
                return tuple(tensors_of(self.inner(input, states if len(states) > 1 else states[0])))

            return checkpoint(flat, input, *tensors_of(hx), use_reentrant=use_reentrant)

    ours, theirs = make_pair(kind, **{"num_layers": 2, "dropout": 0.5} if kind in LAYERS else {})
    args = input_and_states(theirs)
    results = []
    for module in (Checkpointed(ours), Checkpointed(theirs)):
        torch.manual_seed(1)
        leaves = as_leaves(args)
        sum(output.square().sum() for output in module(*leaves)).backward()
        grads = {str(i): leaf.grad for i, leaf in enumerate(tensors_of(leaves))}
        results.append(grads | {name: p.grad for name, p in module.named_parameters()})
    assert_close(*results)


@every_kind
@pytest.mark.parametrize("how", ["meta", "fake"])
def test_shapes_without_data(kind, how):
    def shapes(module, args):
        return {name: (t.shape, t.dtype) for name, t in results_of(module, *args).items()}

    for ours, theirs, args in layouts_of(kind):
        if isinstance(args[0], PackedSequence):
            continue  # packing reads the lengths
        expected = shapes(theirs, args)
        if how == "meta":
            on_meta = args[0].to("meta"), torch.utils._pytree.tree_map(lambda t: t.to("meta"), args[1])
            assert shapes_on_meta(ours.to("meta"), on_meta) == expected
            continue
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = torch.utils._pytree.tree_map(mode.from_tensor, args)
            assert shapes_on_meta(ours, fakes) == expected


def shapes_on_meta(module, args):
    args = as_leaves(args)
    outputs = tensors_of(module(*args))
    parameters = dict(module.named_parameters())
    wanted = [*tensors_of(args), *parameters.values()]
    grads = torch.autograd.grad([o.sum() for o in outputs], wanted)
    names = [f"output {i}" for i, _ in enumerate(outputs)]
    names += [f"gradient of argument {i}" for i, _ in enumerate(tensors_of(args))]
    names += [f"gradient of {name}" for name in parameters]
    return {n: (t.shape, t.dtype) for n, t in zip(names, [*outputs, *grads], strict=True)}
