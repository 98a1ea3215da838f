"""What the recipes have learned survives weights of 8 bits: losses and scores move by at most half a percent."""

import argparse
import copy
import importlib
import random

import pytest
import torch

import fused_rnn
from support.paths import EXAMPLES

MOST = 0.005  # of the float model's loss or score
CPU = torch.device("cpu")
ARGS = argparse.Namespace(device=CPU, seed=0)


@pytest.fixture
def example(monkeypatch):
    """Imports a recipe."""
    pytest.importorskip("tqdm", reason="the recipes draw progress bars with tqdm")
    monkeypatch.syspath_prepend(EXAMPLES)
    torch.manual_seed(0)
    return importlib.import_module


def assert_keeps(model, score_of):
    """``score_of(model)``: losses and scores by name."""
    model.eval()
    quantized = fused_rnn.freeze(copy.deepcopy(model), weights="int8")
    with torch.no_grad():
        before, after = score_of(model), score_of(quantized)
    assert before != after, "nothing was quantized"
    for name, score in before.items():
        assert after[name] == pytest.approx(score, rel=MOST), name


@pytest.mark.exhaustive
def test_characters(example):
    char_lm = example("char_lm")
    files, held_out = char_lm.library_files()
    parts, watched = (char_lm.chunks(*char_lm.read(*of), 8, CPU) for of in ((files, 200_000), (held_out, 40_000)))
    training = char_lm.Training(fused_rnn, 96, 600, CPU)
    training.run(600, parts, watched[:1])
    bits = char_lm.bits_per_character(training.model, watched)
    assert bits < 3.2, "it has learned too little to lose anything"  # a unigram model needs 4.7
    assert_keeps(training.model, lambda model: {"bits": char_lm.bits_per_character(model, watched)})


@pytest.mark.exhaustive
def test_dates(example):
    seq2seq = example("seq2seq")
    model = seq2seq.Translator(fused_rnn, 96)
    seq2seq.train(model, ARGS, 150, 96, 16)
    source = random.Random(2)
    days = seq2seq.random_dates(1000, False, source)
    rows = seq2seq.make_batch(days, source.choices(seq2seq.TRAINED, k=len(days)), CPU)
    assert model(*rows) < 0.7, "it has learned too little to lose anything"  # before training: 3.8
    assert_keeps(model, lambda model: {"loss": model(*rows).item()})


def test_reviews(example):
    sentiment = example("sentiment_bi")
    model = sentiment.Reader(fused_rnn)
    batch = sentiment.make_batch(1000, random.Random(1), CPU, held_out=True)
    watched = sentiment.make_batch(8, random.Random(2), CPU, held_out=True)
    sentiment.train(model, "both", 150, 48, watched, ARGS)

    def score_of(model):
        right = sum(sentiment.accuracies(model, batch)[1]) / 2
        return {"loss": sentiment.loss_of(model, *batch).item(), "verdicts right": right}

    assert score_of(model.eval())["verdicts right"] > 65, "it has learned too little to lose anything"
    assert_keeps(model, score_of)
