"""How results look in a terminal and in a notebook: a short ``repr``, a table in HTML, figures without a file."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import fused_rnn

X = torch.randn(30, 2, 8)
# A name that would be a tag, were it not escaped.
NAME = "<b>encoder</b>"


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module(NAME, fused_rnn.LSTM(8, 8, num_layers=12, bidirectional=True))

    def forward(self, x):
        return getattr(self, NAME)(x)[0]


def flow_of(model):
    with fused_rnn.gradient_flow(model) as flow:
        model(X).sum().backward()
    return flow


def results():
    model = Named()
    layer = getattr(model, NAME)
    flow = flow_of(model)
    yield from (flow, flow.summary(), fused_rnn.spectrum(layer), fused_rnn.gate_statistics(layer, X))
    yield from (fused_rnn.explain(model, X), fused_rnn.explain(layer, X))


RESULTS = {type(result).__name__: result for result in results()}
every_result = pytest.mark.parametrize("name", RESULTS)


class Tags(HTMLParser):
    """Collects tags, and the text of cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.cells = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


@every_result
def test_repr_is_one_short_line(name):
    shown = repr(RESULTS[name])
    assert shown.startswith(f"{name}(") and len(shown) < 250 and "\n" not in shown


@every_result
def test_html_is_a_small_table_of_escaped_text(name):
    html = RESULTS[name]._repr_html_()
    tags = Tags(html)
    assert tags.open == [] and {"table", "th", "td"} <= tags.seen and "b" not in tags.seen
    assert len(html) < 20_000
    if name in ("Flow", "Summary", "ModelExplanation"):
        assert any(NAME in cell for cell in tags.cells)


def test_long_tables_say_how_much_is_left_out():
    spectrum = RESULTS["Spectrum"]
    assert len(spectrum.blocks) == 96
    assert "and 56 more" in Tags(spectrum._repr_html_()).cells
    assert repr(spectrum).endswith(", and 92 more)")


def test_parts_of_results():
    block = fused_rnn.spectrum(fused_rnn.init.orthogonal_(fused_rnn.RNN(3, 4), 0.5)).blocks[0]
    assert repr(block) == "Block(l0 h: singular values 0.5 to 0.5, spectral radius 0.5)"
    assert len(repr(RESULTS["GateStatistics"].gates[0])) < 120
    report = fused_rnn.verify(cells=["gru"], quick=True, show_progress=False)
    assert repr(report) == f"Report({len(report.results)} checks passed, 0 failed)"


def test_a_flow_without_gradients_can_be_looked_at():
    with fused_rnn.gradient_flow(fused_rnn.GRU(3, 4)) as flow:
        assert repr(flow) == "Flow(probe='last', no gradient so far)"
        assert "no gradient" in flow._repr_html_()


@pytest.mark.parametrize("name", ["Flow", "Spectrum"])
def test_plot_without_a_path_returns_the_figure(name, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    monkeypatch.chdir(tmp_path)
    made = RESULTS[name].plot()
    assert isinstance(made, figure.Figure) and made.axes
    assert list(tmp_path.iterdir()) == []
    assert RESULTS[name].plot("a.png").read_bytes().startswith(b"\x89PNG")
