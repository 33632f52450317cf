"""Animated GIF of a search: cells, mixing weights and curves, epoch by epoch. Lengths are in points (1/72 inch)."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from darts_sg.analysis.curves import (
    CELL_TITLES,
    FAINT,
    HEAT,
    INK,
    NORMAL,
    REDUCE,
    SOFT,
    TRAIN,
    VALIDATION,
    draw_heat_map,
    draw_panel,
    edge_names,
    even_weights,
    filled,
    heat_map_columns,
    largest_ratio,
    scale_labels,
    search_panels,
    shades_of,
)
from darts_sg.analysis.draw import PANEL_PAD, draw_cell_panel, panel_height, panel_width, plan_cells
from darts_sg.analysis.run_folder import Run, SearchEpoch
from darts_sg.analysis.sheet import CAPTION_SIZE, LIGHT, MARGIN, STYLES, Sheet, plugged_families, style_of, wrap
from darts_sg.derive import num_edges
from darts_sg.genotype import NUM_INPUTS, Cell

MAX_FRAMES = 100
EPOCH_MS, LAST_MS = 250, 3000
DPI = 80
HEADER, LINE, ROW_GAP = 32.0, 14.0, 12.0
EDGE_NAMES, COLUMN_NAMES, HEAT_TITLE, COLUMN, EDGE = 88.0, 78.0, 20.0, 24.0, 11.5  # of a heat map
CURVES, CURVES_ACROSS, CURVE_LABELS = 150.0, 240.0, 42.0
MARK = "#D98200"
SCALE_WIDTH, SCALE_HEIGHT = 110.0, 7.0
NEARLY_WHITE = 0.96  # Pillow would take a paler shade for white itself


def search_animation(run: Run, epochs: Sequence[SearchEpoch]) -> bytes:
    """A GIF with a frame for each epoch; above MAX_FRAMES epochs, for every second, third and so on, and the last.

    A frame shows both cells as derived after its epoch, with all states in the same places; the mixing weights on one
    colour scale for all epochs, with a dot on each chosen operation; and the curves of metrics.csv, with the epoch
    marked.
    """
    step = -(-len(epochs) // MAX_FRAMES)
    shown = [*epochs[:-1:step], epochs[-1]]
    stage = _Stage(run, shown)
    palette = Image.new("P", (1, 1))  # one for all frames, so that they differ only where something changed
    palette.putpalette(_colors(epochs[-1].genotype.operations))
    frames = [
        stage.frame(i, epoch).quantize(palette=palette, dither=Image.Dither.NONE) for i, epoch in enumerate(shown)
    ]
    buffer = io.BytesIO()
    durations = [*[EPOCH_MS] * (len(frames) - 1), LAST_MS]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


class _Stage:
    """The figure of all frames: the static background is drawn once, each epoch on top of a copy."""

    def __init__(self, run: Run, epochs: Sequence[SearchEpoch]) -> None:
        self.planned = run.planned
        self.operations = epochs[-1].genotype.operations
        self.plans = {title: plan_cells([epoch.cell(title) for epoch in epochs]) for title in CELL_TITLES}
        edges = edge_names(epochs[-1].genotype.normal.num_nodes)
        panels = filled(search_panels(run.task.plots, len(self.operations)), run.rows)

        names = {title: heat_map_columns(epochs[-1].weights, title, self.operations)[0] for title in CELL_TITLES}
        heat_width = ROW_GAP + EDGE_NAMES + COLUMN * max(map(len, names.values()))
        cells_width = 2 * PANEL_PAD + max(panel_width(title, plans[0]) for title, plans in self.plans.items())
        self.width = max(cells_width + heat_width, CURVES_ACROSS * len(panels))
        self.cell_width = self.width - heat_width
        caption = wrap(run.title, 0.9 * self.width)  # at few pixels letters are drawn wider than measured
        self.tops, self.heights, y = {}, {}, HEADER + LINE * len(caption)
        for title, plans in self.plans.items():
            least = HEAT_TITLE + EDGE * len(edges) + COLUMN_NAMES
            self.tops[title], self.heights[title] = y, max(panel_height(plans[0]), least)
            y += self.heights[title] + ROW_GAP
        self.height = y + (CURVES if panels else 0)

        inches = (self.width + 2 * MARGIN) / 72, (self.height + 2 * MARGIN) / 72
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        base = self._cells_axes()
        for i, line in enumerate(caption):
            base.text(0, -22 - LINE * i, line, fontsize=CAPTION_SIZE, color=SOFT, va="top")
        self.heat_maps = {}
        tables = {
            title: [heat_map_columns(epoch.weights, title, self.operations)[1] for epoch in epochs] for title in names
        }
        even = {title: [even_weights(v, len(self.operations)) for v in values] for title, values in tables.items()}
        ratios = {title: np.stack(tables[title]) / np.stack(even[title]) for title in names}
        most = largest_ratio(list(ratios.values()))
        self._draw_scale(scale_labels(np.concatenate([e.ravel() for each in even.values() for e in each]), most))
        for title, columns in names.items():
            size = COLUMN * len(columns), self.heights[title] - HEAT_TITLE - COLUMN_NAMES
            axes = self._axes(self.cell_width + ROW_GAP + EDGE_NAMES, self.tops[title] + HEAT_TITLE, *size)
            axes.set_title("Mixing weights (dot: chosen)", fontsize=9, fontweight="bold", loc="left", color=INK)
            blank = np.zeros((len(edges), len(columns)))
            image, lines = draw_heat_map(axes, blank, columns, edges, len(self.operations))
            lines += axes.plot([], [], "o", markersize=5, color=INK, markeredgecolor="white", markeredgewidth=0.8)
            for artist in (image, *lines):
                artist.set_animated(True)
            self.heat_maps[title] = image, lines, shades_of(ratios[title], most)
        self.markers = []
        for i, panel in enumerate(panels):
            across = self.width / len(panels)
            axes = self._axes(i * across + CURVE_LABELS, y + 20, across - CURVE_LABELS - 8, CURVES - 56)
            draw_panel(axes, run.rows, panel)
            self.markers.append(axes.axvline(epochs[0].epoch, color=MARK, linewidth=5, alpha=0.35, animated=True))
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def frame(self, index: int, epoch: SearchEpoch) -> Image.Image:
        """The picture of an epoch, which is number `index` of the stage's epochs."""
        self.canvas.restore_region(self.background)
        overlay = self._cells_axes()
        overlay.text(0, -4, f"Epoch {epoch.epoch} of {self.planned}", fontsize=13, fontweight="bold", va="center")
        for title, plans in self.plans.items():
            ys = -self.tops[title] - self.heights[title], -self.tops[title]
            draw_cell_panel(Sheet(overlay, LIGHT), title, title, plans[index], (0.0, self.cell_width), ys)
        self.figure.draw_artist(overlay)
        overlay.remove()
        for title, (image, lines, shades) in self.heat_maps.items():
            image.set_data(shades[index])
            lines[-1].set_data(*_chosen(epoch.cell(title), self.operations))
            for artist in (image, *lines):
                self.figure.draw_artist(artist)
        for marker in self.markers:
            marker.set_xdata([epoch.epoch, epoch.epoch])
            self.figure.draw_artist(marker)
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")

    def _draw_scale(self, labels: Sequence[str]) -> None:
        """Draw the colour bar of the heat maps at the upper right."""
        axes = self._axes(self.width - SCALE_WIDTH - 16, 2, SCALE_WIDTH, SCALE_HEIGHT)
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=HEAT, vmin=0, vmax=1, aspect="auto", extent=(0, 1, 0, 1))
        axes.set_yticks([])
        axes.set_xticks([0, 0.5, 1], labels)
        axes.tick_params(labelsize=8.5, colors=INK, length=0, pad=2)
        axes.spines[:].set_color(LIGHT.frame)
        axes.set_ylabel("weight", fontsize=8.5, color=INK, rotation=0, ha="right", va="center")

    def _axes(self, left: float, top: float, across: float, down: float) -> Axes:
        """New axes, placed in points from the left and the top."""
        width, height = self.width + 2 * MARGIN, self.height + 2 * MARGIN
        bottom = height - MARGIN - top - down
        return self.figure.add_axes(((left + MARGIN) / width, bottom / height, across / width, down / height))

    def _cells_axes(self) -> Axes:
        """Axes over the whole figure in points; y is 0 at the top and negative below."""
        axes = self._axes(-MARGIN, -MARGIN, self.width + 2 * MARGIN, self.height + 2 * MARGIN)
        axes.set(xlim=(-MARGIN, self.width + MARGIN), ylim=(-self.height - MARGIN, MARGIN))
        axes.set_axis_off()
        return axes


def _colors(operations: Sequence[str]) -> list[int]:
    """Red, green, blue of all colours in a frame, those of lines also blended with white."""
    paints = [style_of(name).paint(LIGHT) for name in (*STYLES, *plugged_families(operations))]
    lines = [INK, FAINT, LIGHT.ink, LIGHT.muted, LIGHT.faint, LIGHT.frame, SOFT, MARK]
    lines += [TRAIN, VALIDATION, NORMAL, REDUCE]
    lines += [color for paint in paints for color in (paint.line, paint.text)]
    fills = [LIGHT.node, LIGHT.input, LIGHT.output, *(paint.tint for paint in paints)]
    solid = np.array([to_rgb(color) for color in lines])
    smoothed = [1 - share * (1 - solid) for share in (1.0, 0.65, 0.35)]
    shades = HEAT(np.linspace(0, 1, 65))[:, :3]
    shades = shades[shades.min(axis=1) < NEARLY_WHITE]
    found = np.concatenate([[to_rgb(color) for color in ("white", *fills)], *smoothed, shades])
    return np.unique(np.round(255 * found).astype(int), axis=0).ravel().tolist()


def _chosen(cell: Cell, operations: Sequence[str]) -> tuple[list[int], list[int]]:
    """Columns and rows of a cell's edges in the heat map."""
    edges = list(cell.edges())
    rows = [num_edges(state - NUM_INPUTS) + edge.state for state, edge in edges]
    return [operations.index(edge.operation) for _, edge in edges], rows
