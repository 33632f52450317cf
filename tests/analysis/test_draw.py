"""Pictures of genotypes: nothing overlaps, by the renderer's own boxes for any cell; same bytes again."""

import itertools
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Line
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from darts_sg.analysis.draw import (
    draw_cell_panel,
    draw_genotype,
    draw_genotypes,
    panel_height,
    plan_cells,
    save_figure,
    state_boxes,
)
from darts_sg.analysis.sheet import (
    DARK,
    LIGHT,
    PALETTE,
    STYLES,
    Sheet,
    Style,
    Theme,
    families,
    family,
    short_name,
    style_of,
)
from darts_sg.genotype import NUM_INPUTS, Cell, Edge, Genotype, load_genotype, zoo_names
from darts_sg.ops import OPERATIONS

CHOICES = [name for name in OPERATIONS if name != "none"]
RESULTS = Path(__file__).parent.parent.parent / "results"
FOUND = sorted([*RESULTS.glob("*/genotype.yaml"), *RESULTS.glob("sandglass/pilot/search*_s0/genotype.yaml")])
CAPTION = "3,349,342 parameters, 528.4M MACs (CIFAR, C=36, 20 cells; auxiliary head excluded)"


@st.composite
def cells(draw: st.DrawFn, max_nodes: int = 6, min_nodes: int = 1) -> Cell:
    """Any cell: `min_nodes` to `max_nodes` nodes of 1 to 3 edges, equal edges and unused states included."""
    nodes = []
    for i in range(draw(st.integers(min_nodes, max_nodes))):
        edge = st.builds(Edge, st.sampled_from(CHOICES), st.integers(0, NUM_INPUTS + i - 1))
        nodes.append(tuple(draw(st.lists(edge, min_size=1, max_size=3))))
    states = range(NUM_INPUTS, NUM_INPUTS + len(nodes))
    return Cell(tuple(nodes), tuple(draw(st.lists(st.sampled_from(states), min_size=1, unique=True))))


def genotype_of(normal: Cell, reduce: Cell, name: str = "invented") -> Genotype:
    return Genotype(name, "+".join(CHOICES), tuple(CHOICES), normal, reduce)


def overlapping(boxes: dict[str, Bbox]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in itertools.combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]


def on_screen(patch: PathPatch) -> Line:
    """The line of an edge in pixels, as a polygon chain that is not closed."""
    return patch.get_path().transformed(patch.get_transform())


def check_nothing_overlaps(genotypes: Sequence[Genotype], figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = {
        text.get_gid() or f"text {i}": text.get_window_extent(renderer)
        for i, text in enumerate(figure.findobj(Text))
        if text.get_text() and text.get_visible() and text.axes is not None
    }
    assert not overlapping(texts)
    whole = figure.bbox
    for name, box in texts.items():
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1, name
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1, name

    patches = {patch.get_gid(): patch for patch in figure.findobj(lambda artist: artist.get_gid())}
    for k, title, cell in ((k, *pair) for k, genotype in enumerate(genotypes) for pair in genotype.cells()):
        title = f"{k}:{title}" if len(genotypes) > 1 else title
        edges = list(cell.edges())
        states = {
            gid.split(":")[-1]: patch.get_window_extent(renderer)
            for gid, patch in patches.items()
            if gid.startswith(f"{title}:state:") and isinstance(patch, FancyBboxPatch)
        }
        labels = {
            gid.split(":")[-2]: patch.get_window_extent(renderer)
            for gid, patch in patches.items()
            if gid.startswith(f"{title}:label:") and gid.endswith(":box")
        }
        for name, box in labels.items():
            text = texts[f"{title}:label:{name}"]
            assert box.x0 <= text.x0 <= text.x1 <= box.x1, name
            assert box.y0 <= text.y0 <= text.y1 <= box.y1, name
        assert len(states) == cell.num_states + 1
        assert len(labels) == len(edges) + 1
        assert not overlapping({f"state {k}": b for k, b in states.items()} | labels)
        names = ["c_{k-2}", "c_{k-1}", *(str(i) for i in range(cell.num_nodes))]
        ends = {str(i): {names[edge.state], names[state]} for i, (state, edge) in enumerate(edges)}
        lines = {i: on_screen(patches[f"{title}:edge:{i}"]) for i in ends}
        for state in cell.concat:
            node = names[state]
            ends[f"concat {node}"] = {node, "c_k"}
            lines[f"concat {node}"] = on_screen(patches[f"{title}:concat:{node}"])
        for i, line in lines.items():
            own_label = "concat" if i.startswith("concat") else i
            for name, box in states.items():
                touches = line.intersects_bbox(box.padded(1.5), filled=False)
                # an edge reaches from its state to (the arrow head at) its node, and touches no other state
                far = line.intersects_bbox(box.padded(15), filled=False)
                assert far if name in ends[i] else not touches, (title, i, name)
            for name, box in labels.items():
                touches = line.intersects_bbox(box, filled=False)
                assert touches if name == own_label else not touches, (title, i, name)


@pytest.mark.parametrize("name", zoo_names())
def test_nothing_overlaps_in_the_zoo(name: str) -> None:
    genotype = load_genotype(name)
    check_nothing_overlaps([genotype], draw_genotype(genotype, CAPTION))


def test_nothing_overlaps_with_all_that_there_are_in_one_picture() -> None:
    genotypes = [load_genotype(name) for name in (*zoo_names(), *FOUND)]
    check_nothing_overlaps(genotypes, draw_genotypes(genotypes, [CAPTION] * len(genotypes), dark=True))


def contrast(a: str, b: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2.1)."""

    def luminance(color: str) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_everything_can_be_read(theme: Theme) -> None:
    """Text has the contrast that WCAG 2.1 asks for (4.5), lines that of graphics (3)."""
    for fill in (theme.background, theme.panel, theme.node, theme.input, theme.output):
        assert contrast(theme.ink, fill) > 7
    assert min(contrast(theme.muted, fill) for fill in (theme.background, theme.panel)) > 4.5
    assert contrast(theme.faint, theme.panel) > 3
    palette = [Style("", *paints) for paints in PALETTE]
    for style in (*STYLES.values(), *palette):
        paint = style.paint(theme)
        assert contrast(paint.text, paint.tint) > 4.5, style.title
        assert min(contrast(paint.line, fill) for fill in (theme.background, theme.panel)) > 3, style.title


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cells(), cells())
def test_nothing_overlaps_in_any_cell(normal: Cell, reduce: Cell) -> None:
    genotype = genotype_of(normal, reduce)
    check_nothing_overlaps([genotype], draw_genotype(genotype, CAPTION))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(1, 5).flatmap(lambda nodes: st.lists(cells(nodes, nodes), min_size=2, max_size=4)))
def test_cells_of_one_layout_keep_their_states_in_place_and_nothing_overlaps(several: list[Cell]) -> None:
    plans = plan_cells(several)
    boxes = [list(state_boxes(plan)) for plan in plans]
    assert all(box == boxes[0] for box in boxes)
    height = 2 * panel_height(plans[0])
    for cell, plan in zip(several, plans, strict=True):
        assert (plan.width, plan.height) == (plans[0].width, plans[0].height)
        figure = Figure(figsize=((plan.width + 200) / 72, height / 72), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, plan.width + 200), ylim=(-height, 0))
        for i, title in enumerate(("normal", "reduce")):
            ys = -(i + 1) * height / 2, -i * height / 2
            draw_cell_panel(Sheet(axes, LIGHT), title, title, plan, (0, plan.width + 200), ys)
        check_nothing_overlaps([genotype_of(cell, cell)], figure)


def test_nothing_overlaps_in_a_crowd() -> None:
    """Seven edges between the same two states and all edges of a full cell of seven nodes."""
    same = Cell((tuple(Edge("inverted_residual_3x3", 0) for _ in range(7)),), (2,))
    full = Cell(
        tuple(tuple(Edge("sandglass_3x3_r6", s) for s in range(NUM_INPUTS + i)) for i in range(7)),
        tuple(range(2, 9)),
    )
    genotype = genotype_of(same, full, name="a_rather_long_name" * 4)
    check_nothing_overlaps([genotype], draw_genotype(genotype, "\n".join([CAPTION * 3, "costs $1 and $2"])))


def test_lines_wear_the_colour_of_their_operation() -> None:
    nodes = tuple((Edge(operation, 0),) for operation in CHOICES)
    cell = Cell(nodes, (2,))
    figure = draw_genotype(genotype_of(cell, cell))
    lines = {patch.get_gid(): patch for patch in figure.findobj(PathPatch)}
    for i, operation in enumerate(CHOICES):
        line = lines[f"normal:edge:{i}"]
        assert line.get_linewidth() == STYLES[family(operation)].width
        red, green, blue, _ = line.get_edgecolor()
        assert (red > 0.7 and green < 0.2 and blue < 0.3) == operation.startswith("sandglass"), operation


@pytest.mark.parametrize("operation", CHOICES)
def test_family(operation: str) -> None:
    expected = {
        "sandglass": "sandglass", "inverted": "inverted_residual", "sep": "sep_conv", "dil": "dil_conv",
        "max": "pool", "avg": "pool", "skip": "skip",
    }.get(operation.split("_")[0], "other")  # fmt: skip
    assert family(operation) == expected
    assert style_of(expected) is STYLES[expected]


@pytest.mark.parametrize("name", ["sandglass_9x9", "my_pool_3x3", "sep_conv", "unheard_of"])
def test_a_name_alone_makes_no_family(name: str) -> None:
    """The family is that of the registered operation; it is not guessed from the name."""
    assert family(name) == "other"


def test_a_family_without_a_style_has_one_of_the_palette_and_stands_last_in_legends() -> None:
    names = ["ghost", "shuffle", "mbconv_se", "involution"]
    styles = {name: style_of(name) for name in names}
    assert {styles[name].title for name in names} == {"ghost", "shuffle", "mbconv se", "involution"}
    assert all((style.light, style.dark) in PALETTE for style in styles.values())
    assert styles["mbconv_se"].light == PALETTE[zlib.crc32(b"mbconv_se") % len(PALETTE)][0]
    assert families(["head", "sep_conv_3x3", "skip_connect"]) == ["sep_conv", "skip", "fixed"]


def test_saved_files_repeat_to_the_byte(tmp_path: Path) -> None:
    genotype = load_genotype("DARTS_V2")
    first = save_figure(draw_genotype(genotype, CAPTION), tmp_path / "first.v1")
    second = save_figure(draw_genotype(genotype, CAPTION), tmp_path / "second")
    assert [path.name for path in first] == ["first.v1.svg", "first.v1.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    root = ElementTree.fromstring(first[0].read_text(encoding="utf-8"))
    assert {element.get("id") for element in root.iter()} >= {"normal:edge:7", "reduce:state:3"}
    assert "<dc:date>" not in first[0].read_text(encoding="utf-8")
    corner = imread(first[1])[0, 0]
    np.testing.assert_array_equal(corner, 1.0)  # white and opaque, for dark screens
    dark = save_figure(draw_genotype(genotype, CAPTION, dark=True), tmp_path / "dark", ["png"])
    np.testing.assert_allclose(imread(dark[0])[0, 0], [*to_rgb(DARK.background), 1.0], atol=1 / 255)


def test_labels_are_short() -> None:
    names = [
        "sep_conv_3x3",
        "max_pool_3x3",
        "skip_connect",
        "sandglass_3x3_r6",
        "inverted_residual_3x3",
        "conv_7x1_1x7",
    ]
    short = ["sep 3×3", "max 3×3", "skip", "sandglass 3×3 r6", "inverted 3×3", "conv 7×1 1×7"]
    assert [short_name(name) for name in names] == short
    assert len({short_name(name) for name in CHOICES}) == len(CHOICES)


def test_captions_are_costs_where_all_operations_are_known() -> None:
    def texts(genotype: Genotype) -> set[str]:
        return {text.get_text() for text in draw_genotype(genotype).findobj(Text)}

    known = load_genotype("DARTS_V2")
    cost = "3,349,342 parameters, 528.4M MACs (CIFAR, C=36, 20 cells; auxiliary head excluded)"
    assert cost in texts(known)
    cell = Cell(((Edge("of_tomorrow", 0),),), (2,))
    assert texts(Genotype("new", "", ("of_tomorrow",), cell, cell)) >= {"new", "of tomorrow"}
