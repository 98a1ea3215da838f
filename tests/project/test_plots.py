"""The benchmarks' pictures, read as matplotlib's objects: each figure is there, and those missing are said."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402

from benchmarks import plots, speedup  # noqa: E402 - they need matplotlib
from benchmarks.results import FOLDER, Line, Results, geomean, load_all  # noqa: E402
from benchmarks.suites import LAYERS, MODES, PLAIN, SHAPES, Work  # noqa: E402
from fused_rnn.tools import style  # noqa: E402

FIXTURE = Path(__file__).parent / "benchmark_results"
LARGEST_FILE = 200_000


def line(layer: str, mode: str, shape, ours: float, **theirs: float) -> Line:
    sides = {"ours": ours} | {name.replace("_", "."): ms for name, ms in theirs.items()}
    if "ONNX" in sides:
        sides["ONNX Runtime"] = sides.pop("ONNX")
    work = Work(PLAIN, layer, mode, shape)
    limit = {"ms": 0.1, "bound_by": "float32", "operations": 1e6, "weight_bytes": 1e5, "resident_bytes": 1e4}
    return Line(work, {name: {"ms": ms, "spread": 0.0, "rounds": 3} for name, ms in sides.items()}, limit)


@pytest.fixture
def cpu() -> list[Results]:
    """One and two threads, with which everything takes half as long, and torch.nn's LSTM a third."""
    results = load_all(FIXTURE)[0]
    left_out = {"ONNX Runtime: inference only": [f"{PLAIN} training"]}
    found = []
    for threads in (1, 2):
        lines = []
        for layer, mode, (k, shape) in product(LAYERS, MODES, enumerate(SHAPES[:3])):
            peers = {"torch_nn": 2.0 + k} | ({"ONNX": 1.5 + k} if mode == "inference" else {})
            lines.append(line(layer, mode, shape, 1 / threads, **peers))
        found.append(replace(results, threads=threads, lines=lines, left_out=left_out))
    return found


def bars(axes) -> list[float]:
    return sorted(bar.get_width() for bar in axes.patches)


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


# ---- the front page's bars -------------------------------------------------------------------------------------------


def test_a_bar_for_each_layer_mode_peer_and_number_of_threads(cpu):
    inference, training = speedup.figure(cpu).axes
    torch_nn, onnx = geomean([2.0, 3.0, 4.0]), geomean([1.5, 2.5, 3.5])
    assert bars(inference) == pytest.approx(sorted(3 * [torch_nn, 2 * torch_nn, onnx, 2 * onnx]))
    assert bars(training) == pytest.approx(sorted(3 * [torch_nn, 2 * torch_nn]))


def test_bars_have_their_length_beside_them_and_the_worst_shape_upon_them(cpu):
    inference, _ = speedup.figure(cpu).axes
    written = [text.get_text() for text in inference.texts]
    assert written.count("2.88x") == written.count("5.77x") == 3
    worst = [float(dot.get_xdata()[0]) for dot in inference.lines if dot.get_marker() == "D"]
    assert sorted(worst) == sorted(3 * [2.0, 4.0, 1.5, 3.0])


def test_as_fast_is_a_line(cpu):
    for axes in speedup.figure(cpu).axes:
        assert [1, 1] in [[*one.get_xdata()] for one in axes.lines]
        assert "1x = as fast" in [text.get_text() for text in axes.texts]


def test_missing_bars_are_said(cpu):
    inference, training = speedup.figure(cpu).axes
    assert [text.get_text() for text in training.texts].count("ONNX Runtime: inference only") == len(LAYERS)
    assert "ONNX Runtime" not in "".join(text.get_text() for text in inference.texts)
    without = [
        replace(
            one,
            lines=[replace(a, sides={k: v for k, v in a.sides.items() if k != "ONNX Runtime"}) for a in one.lines],
            left_out={},
            peers=one.peers | {"ONNX Runtime": "not installed: onnxruntime"},
        )
        for one in cpu
    ]
    for axes in speedup.figure(without).axes:
        assert "ONNX Runtime: not installed: onnxruntime" in [text.get_text() for text in axes.texts]


def test_doubtful_bars_are_marked(cpu):
    assert "†" not in texts(speedup.figure(cpu))
    doubtful = cpu[0].lines[0]
    doubtful.sides["torch.nn"]["spread"] = 0.5
    figure = speedup.figure(cpu)
    assert [text.get_text() for axes in figure.axes for text in axes.texts if "†" in text.get_text()] == [
        "2.88x †",
        "2.36x †",
    ]
    assert "† not to be relied on" in texts(figure)


def test_one_file_with_one_shape(cpu):
    (one,) = (replace(r, lines=[a for a in r.lines if a.work.shape == SHAPES[0]]) for r in cpu[:1])
    inference, _ = speedup.figure([one]).axes
    assert bars(inference) == pytest.approx(sorted(3 * [2.0, 1.5]))
    assert "worst" not in texts(inference.figure)


# ---- the documentation's plots ---------------------------------------------------------------------------------------


def box(artist, figure):
    """On the page, in inches."""
    return artist.get_window_extent().transformed(figure.dpi_scale_trans.inverted())


def test_nothing_of_the_ratios_is_cut_off_or_lies_on_numbers(cpu):
    """With all peers, whose lanes are closest, and outliers in neighbouring ones."""
    for results in cpu:
        for one in results.lines:
            one.sides["torch.nn"]["ms"] = one.sides["ours"]["ms"] * 14
            for peer in ("ONNX Runtime", "OpenVINO", "JAX"):
                if peer == "JAX" or one.work.mode == "inference":
                    one.sides[peer] = {"ms": one.sides["ours"]["ms"] * 13, "spread": 0.0, "rounds": 3}
    figure = plots.ratios(cpu)
    FigureCanvasAgg(figure).draw()
    page = box(figure.patch, figure)
    for artist in [*figure.legends, figure._supxlabel]:
        own = box(artist, figure)
        assert page.x0 <= own.x0 and own.x1 <= page.x1 and page.y0 <= own.y0 and own.y1 <= page.y1, artist
    for axes in figure.axes:
        numbers = [text for text in axes.texts if re.fullmatch(r"[\d.]+x", text.get_text())]
        assert len(numbers) >= 2 * 3
        assert [text.get_text() for text in axes.texts] == [text.get_text() for text in numbers]
    assert "ONNX Runtime: inference only" in figure._supxlabel.get_text()


def test_ratios_have_a_dot_for_each_figure_and_name_outliers(cpu):
    cpu[1].lines[0].sides["torch.nn"]["ms"] = 20.0
    figure = plots.ratios(cpu)
    dots = [d for axes in figure.axes for d in axes.lines if d.get_marker() == "o" and len(d.get_xdata()) == 1]
    figures = sum(
        line.ratio(peer) is not None for r in cpu for line in r.lines for peer in ("torch.nn", "ONNX Runtime")
    )
    assert len(dots) == figures == 2 * 3 * 3 * 3
    colors = {dot.get_color() for dot in dots}
    assert colors == {plots.SIDE_COLORS["torch.nn"], plots.SIDE_COLORS["ONNX Runtime"]}
    assert [text.get_text() for text in figure.axes[0].texts if "x" in text.get_text()] == ["40x"]
    assert all(axes.get_xlim()[1] > 40 for axes in figure.axes)


@pytest.mark.parametrize("tiles, expected", [(0.0, False), (6e9, True), (500.0, False)])
def test_the_tiles_limit_is_a_line_with_a_label_where_it_is_above_the_other(cpu, tiles, expected):
    results = replace(cpu[0], limits=cpu[0].limits | {"bfloat16_amx GFLOP/s": tiles})
    figure = plots.roofline(results)
    assert ("matrix tiles" in texts(figure)) == expected
    for axes in figure.axes:
        heights = [one.get_ydata()[0] for one in axes.lines if len(one.get_ydata()) == 2 and one.get_ls() == "-."]
        assert heights == ([1e9] if expected else [])


def test_every_dot_of_the_roofline_is_inside(cpu):
    for axes in plots.roofline(cpu[0]).axes:
        bottom, top = axes.get_ylim()
        dots = [float(d.get_ydata()[0]) for d in axes.lines if d.get_marker() == "o"]
        assert dots and all(bottom < y < top for y in dots)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_drawing_twice_gives_the_same_files(cpu, tmp_path):
    found = []
    for _ in range(2):
        plots.draw(cpu, tmp_path)
        found.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert found[0] == found[1]
    assert found[0].keys() == {"speedup.svg", "ratios.svg", "roofline.svg"}


def test_published_plots_follow_from_the_published_figures(tmp_path):
    """Their words and the bars' lengths do; coordinates and ticks depend on the version of matplotlib."""
    plots.draw([results for results in load_all(FOLDER) if results.suite == "cpu"], tmp_path)
    for path in tmp_path.iterdir():
        published = FOLDER / path.name
        assert words_of(published) == words_of(path), path.name
        assert published.stat().st_size < LARGEST_FILE
    bars = [word for word in words_of(FOLDER / speedup.NAME) if re.match(r"\d+\.\d\dx", word)]
    assert len(bars) == 2 * len(LAYERS) * 3, "1 and all threads, torch.nn in both modes and ONNX Runtime in one"


def words_of(svg: Path) -> list[str]:
    texts = [part.partition("</text>")[0].rpartition(">")[2] for part in svg.read_text().split("<text")[1:]]
    return [text for text in texts if not re.fullmatch(r"[\d.]*\dx?", text) or re.fullmatch(r"\d+\.\d\dx", text)]


def test_style_keeps_text_and_a_white_background(tmp_path):
    with matplotlib.rc_context(style.STYLE):
        figure = matplotlib.figure.Figure(figsize=(2, 1))
        figure.text(0, 0, style.keep_blanks("    if x:"), family="monospace")
    for name in ("a.svg", "b.svg"):
        style.save(figure, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert 4 * "\N{NO-BREAK SPACE}" + "if" in text
    assert "fill: #ffffff" in text
    assert not any(line.endswith(" ") for line in text.splitlines())
