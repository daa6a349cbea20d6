"""One picture of the house: floors as bands, packages as cards with their modules, few arrows between them.

Everything is placed from the imports: an arrow that crosses a floor gets a lane there, cards move towards what they are
joined with, and the text's width is known (a fixed pitch), so that nothing overlaps and nothing is random.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.house import House

# What flows through the house, in order; the rooms named carry its number.
FLOW = (
    ("images", "folders, tars, digits", "#5f8a6b", ("pipelines.sources",)),
    ("records", "ids and maps in MDS shards", "#4677a3", ("pipelines.precompute", "nvg.tokenizer", "nvg.records")),
    ("training", "two generators", "#ad7a2f", ("pipelines.batches", "pipelines.train", "nvg.training", "nvg.models")),
    ("samples", "chunks of the pool", "#84618a", ("pipelines.sample", "eval.pool", "nvg.sampling")),
    ("scores", "results.json, report", "#a9514a", ("pipelines.evaluate", "eval.features", "eval.scores", "eval.pages")),
)

# All measures are pixels; y grows downwards.
WIDTH, MARGIN, GAP = 1600, 40, 14
CORRIDOR, PADDING = 26, 10  # between two floors; between a band's edge and its cards
HEADER, ROW, COLUMN_GAP = 27, 18, 16
LANE = 20  # what an arrow takes on a floor that it only crosses
CHARACTER = 0.602  # width of a DejaVu Sans Mono character in its own size
NAME_SIZE, TITLE_SIZE = 13.5, 16
INK, SOFT, LINE, PAPER = "#26323d", "#6d7680", "#cfc9bd", "#ffffff"
PANELS = {"pipelines": "#f1eee6", "eval": "#e9eef0", "cluster": "#efebf0", "nvg": "#ecf0e9"}


@dataclass
class Card:
    """A room on its floor, or the lane of an arrow that crosses the floor."""

    name: str
    modules: list[str] = field(default_factory=list)
    num_rows: int = 1
    x: float = 0.0
    y: float = 0.0

    @property
    def is_lane(self) -> bool:
        """Whether only an arrow passes here."""
        return ">" in self.name

    @property
    def title(self) -> str:
        """What stands in the card's first line."""
        return self.name.split(".")[-1]

    @property
    def columns(self) -> list[list[str]]:
        """Module names, column by column."""
        return [self.modules[start : start + self.num_rows] for start in range(0, len(self.modules), self.num_rows)]

    @property
    def column_widths(self) -> list[float]:
        """Width of each column."""
        return [max(map(len, column)) * NAME_SIZE * CHARACTER for column in self.columns]

    @property
    def width(self) -> float:
        """Width of the card, of its title and badge at least."""
        if self.is_lane:
            return LANE
        names = sum(self.column_widths) + COLUMN_GAP * (len(self.columns) - 1)
        return max(names, len(self.title) * TITLE_SIZE * CHARACTER + 26 * (_stage(self.name) is not None)) + 24

    @property
    def height(self) -> float:
        """Height of the card."""
        return HEADER + 8 + (min(self.num_rows, len(self.modules)) * ROW + 4 if self.modules else 0)


@dataclass
class Panel:
    """One of the four houses with its bands of cards."""

    name: str
    bands: list[list[Card]]
    arrows: list[list[str]]  # each a path of card names from floor to floor
    x: float
    y: float
    width: float
    note: str
    labels: list[str]
    stretched_to: float = 0.0

    @property
    def is_narrow(self) -> bool:
        """Whether title and note stand in two lines."""
        return self.width < 400

    @property
    def title_height(self) -> float:
        """Height above the first band."""
        return 58 if self.is_narrow else 36

    @property
    def heights(self) -> list[float]:
        """Height of each band."""
        return [max(card.height for card in band if not card.is_lane) + 2 * PADDING for band in self.bands]

    @property
    def height(self) -> float:
        """Height of the panel."""
        own = self.title_height + sum(self.heights) + CORRIDOR * (len(self.bands) - 1) + 12
        return max(own, self.stretched_to)


def _stage(name: str) -> int | None:
    return next((number for number, (*_, rooms) in enumerate(FLOW) if name in rooms), None)


def build_panel(house: House, name: str, *, x: float, y: float, width: float, note: str, one_band: bool) -> Panel:
    """Put the rooms of a house on their floors, or all of them side by side."""

    def card_of(room: str) -> Card:
        return Card(room, house.rooms(room) if house.is_package(room) else [])

    paths: list[list[str]] = []
    labels = [""]
    if one_band:
        own = [room for room in house.rooms(name) if not house.is_package(f"{name}.{room}")]
        bands = [[Card(name, own), *map(card_of, house.in_reading_order(name))]]
    else:
        floors = house.floors(name)
        labels = [str(number) for number in range(len(floors), 0, -1)]
        bands = [[card_of(room) for room in floor] for floor in floors]
        level = {room: number for number, floor in enumerate(floors) for room in floor}
        for source, target in house.arrows(level):
            lanes = [Card(f"{source}>{target}@{number}") for number in range(level[source] + 1, level[target])]
            for lane, band in zip(lanes, bands[level[source] + 1 :], strict=False):
                band.append(lane)
            paths.append([source, *(lane.name for lane in lanes), target])
        if beside := house.beside(name):
            labels.append("beside")
            bands.append([card_of(room) for room in beside])
    panel = Panel(name, bands, paths, x, y, width, note, labels)
    for band in panel.bands:
        for num_rows in range(100 if panel.is_narrow else 2, 200):
            for card in band:
                card.num_rows = num_rows
            if sum(card.width for card in band) + GAP * (len(band) - 1) <= width - 2 * PADDING - 40:
                break
    arrange(panel)
    return panel


def arrange(panel: Panel) -> None:
    """Order each band and place its cards so that arrows run short: each card near the mean of its neighbours."""
    cards = {card.name: card for band in panel.bands for card in band}
    neighbours: dict[str, list[Card]] = {name: [] for name in cards}
    for path in panel.arrows:
        for upper, lower in pairwise(path):
            neighbours[upper].append(cards[lower])
            neighbours[lower].append(cards[upper])
    middle = panel.x + panel.width / 2
    for band in panel.bands:
        _place(band, [middle] * len(band), panel)
    for _ in range(30):
        for band in [*panel.bands, *reversed(panel.bands)]:
            wanted = {card.name: _mean([other.x for other in neighbours[card.name]], card.x) for card in band}
            band.sort(key=lambda card: wanted[card.name])
            _place(band, [wanted[card.name] for card in band], panel)
    left = min(card.x - card.width / 2 for card in cards.values())
    right = max(card.x + card.width / 2 for card in cards.values())
    for card in cards.values():
        card.x += middle - (left + right) / 2
    y = panel.y + panel.title_height
    for band, height in zip(panel.bands, panel.heights, strict=True):
        for card in band:
            card.y = y + (height - card.height) / 2
        y += height + CORRIDOR


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _place(band: list[Card], wanted: list[float], panel: Panel) -> None:
    """Centres as near to the wanted ones as cards that do not overlap allow: least squares, neighbours pooled."""
    offsets = [0.0]
    for left, right in pairwise(band):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + GAP)
    blocks: list[tuple[float, int]] = []  # mean and size of runs of cards that touch
    for target, offset in zip(wanted, offsets, strict=True):
        mean, size = target - offset, 1
        while blocks and blocks[-1][0] >= mean:
            before, number = blocks.pop()
            mean, size = (mean * size + before * number) / (size + number), size + number
        blocks.append((mean, size))
    centres = [mean for mean, size in blocks for _ in range(size)]
    least = panel.x + 20 + PADDING + band[0].width / 2
    most = panel.x + panel.width - 20 - PADDING - band[-1].width / 2 - offsets[-1]
    for card, centre, offset in zip(band, centres, offsets, strict=True):
        card.x = max(least, min(most, centre)) + offset


def build_picture(house: House) -> tuple[list[Panel], float]:
    """The four panels where they stand, and the height of the picture."""
    inner = WIDTH - 2 * MARGIN
    pipelines = build_panel(
        house, "pipelines", x=MARGIN, y=172, width=inner, note="the steps and the command line", one_band=False
    )
    evaluation = build_panel(
        house,
        "eval",
        x=MARGIN,
        y=pipelines.y + pipelines.height + CORRIDOR + 6,
        width=inner,
        note="features, samples, scores, pictures, pages",
        one_band=True,
    )
    y = evaluation.y + evaluation.height + CORRIDOR + 6
    narrow = 250
    cluster = build_panel(house, "cluster", x=MARGIN, y=y, width=narrow, note="where and how things run", one_band=True)
    method = build_panel(
        house,
        "nvg",
        x=MARGIN + narrow + 30,
        y=y,
        width=inner - narrow - 30,
        note="the method: plain PyTorch",
        one_band=False,
    )
    cluster.stretched_to = method.height
    panels = [pipelines, evaluation, cluster, method]
    return panels, max(panel.y + panel.height for panel in panels) + 52


def picture_digest(house: House) -> str:
    """Hash of everything the picture shows; the file carries it, so that a stale one can be told."""
    panels, height = build_picture(house)
    text = json.dumps([[asdict(panel) for panel in panels], height, FLOW], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def draw(house: House, file: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    panels, height = build_picture(house)
    figure = plt.figure(figsize=(WIDTH / 100, height / 100), dpi=100, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    pen = Pen(axes)
    pen.text(MARGIN, 38, "The house", 24, weight="bold")
    pen.text(
        MARGIN,
        66,
        "Floors from top to bottom: a room uses what lies below it, never what lies above. Names in a room are its "
        "modules; arrows are imports between packages.",
        13,
        color=SOFT,
    )
    _draw_flow(pen)
    for panel in panels:
        _draw_panel(pen, panel)
    upper, evaluation, cluster, method = panels
    for above, below, x in (
        (upper, evaluation, WIDTH / 2),
        (evaluation, cluster, cluster.x + cluster.width / 2),
        (evaluation, method, method.x + method.width / 2),
    ):
        pen.arrow([(x, above.y + above.height), (x, below.y)], width=2.2)
    pen.text(
        MARGIN,
        height - 24,
        "Drawn by tools/house.py from the imports and from the contracts in pyproject.toml (make docs). An arrow that "
        "follows from two others is left out; cluster and nvg do not know each other.",
        12,
        color=SOFT,
    )
    figure.savefig(file, dpi=100, metadata={"Software": None, "Description": picture_digest(house)})
    plt.close(figure)


class Pen:
    """Draws in pixels."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes

    def text(self, x: float, y: float, text: str, size: float, *, color: str = INK, **style: Any) -> None:
        """A line of text whose middle is at y."""
        style = {"family": "DejaVu Sans", "va": "center_baseline", **style}
        self.axes.text(x, y, text, fontsize=size * 0.72, color=color, zorder=5, **style)

    def box(self, x: float, y: float, width: float, height: float, *, fill: str, edge: str, radius: float = 6) -> None:
        """A rectangle with round corners."""
        from matplotlib.patches import FancyBboxPatch

        shape = f"round,pad=0,rounding_size={radius}"
        patch = FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=fill, edgecolor=edge, linewidth=1.0)
        self.axes.add_patch(patch)

    def badge(self, x: float, y: float, number: int) -> None:
        """The number of a stage of the flow."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), 9, facecolor=FLOW[number][2], edgecolor="none", zorder=4))
        self.text(x, y, str(number + 1), 12, color=PAPER, weight="bold", ha="center")

    def arrow(self, points: list[tuple[float, float]], *, width: float = 1.4) -> None:
        """A smooth line downwards through points, with a head."""
        from matplotlib.patches import PathPatch, Polygon
        from matplotlib.path import Path as Curve

        *before, (x, y) = points
        points = [*before, (x, y - 6)]
        vertices, codes = [points[0]], [Curve.MOVETO]
        for (x_0, y_0), (x_1, y_1) in pairwise(points):
            half = (y_0 + y_1) / 2
            vertices += [(x_0, half), (x_1, half), (x_1, y_1)]
            codes += [Curve.CURVE4] * 3
        line = PathPatch(Curve(vertices, codes), facecolor="none", edgecolor="#8b929a", linewidth=width, zorder=3)
        self.axes.add_patch(line)
        head = [(x, y), (x - 4 - width / 2, y - 9), (x + 4 + width / 2, y - 9)]
        self.axes.add_patch(Polygon(head, facecolor="#8b929a", edgecolor="none", zorder=3))


def _draw_flow(pen: Pen) -> None:
    inner, gap = WIDTH - 2 * MARGIN, 34
    width = (inner - gap * (len(FLOW) - 1)) / len(FLOW)
    for number, (name, what, color, _) in enumerate(FLOW):
        x = MARGIN + number * (width + gap)
        pen.box(x, 94, width, 50, fill=PAPER, edge=color, radius=8)
        pen.badge(x + 22, 119, number)
        pen.text(x + 42, 110, name, 15, weight="bold", color=color)
        pen.text(x + 42, 130, what, 12, color=SOFT)
        if number < len(FLOW) - 1:
            pen.text(x + width + gap / 2, 119, "→", 22, color=SOFT, ha="center")


def _draw_panel(pen: Pen, panel: Panel) -> None:
    pen.box(panel.x, panel.y, panel.width, panel.height, fill=PANELS[panel.name], edge=LINE, radius=12)
    pen.text(panel.x + 18, panel.y + 18, f"{panel.name}/", 16, weight="bold", family="DejaVu Sans Mono")
    note = (18, 42) if panel.is_narrow else (38 + len(panel.name) * 11, 19)
    pen.text(panel.x + note[0], panel.y + note[1], panel.note, 13, color=SOFT)
    y = panel.y + panel.title_height
    for number, height in enumerate(panel.heights):
        if len(panel.bands) > 1:
            pen.box(panel.x + 10, y, panel.width - 20, height, fill="#faf9f6", edge="none", radius=8)
            label = {"rotation": 90 * (len(panel.labels[number]) > 1), "ha": "center", "weight": "bold"}
            pen.text(panel.x + 26, y + height / 2, panel.labels[number], 14, color="#b0a999", **label)
        y += height + CORRIDOR
    cards = {card.name: card for band in panel.bands for card in band}
    for path in panel.arrows:
        pen.arrow(_points(panel, path, cards))
    for card in cards.values():
        if not card.is_lane:
            _draw_card(pen, card)


def _points(panel: Panel, path: list[str], cards: dict[str, Card]) -> list[tuple[float, float]]:
    """From the lower edge of the first card, straight through the lanes, to the upper edge of the last."""
    first, *lanes, last = (cards[name] for name in path)
    heights = {card.name: height for band, height in zip(panel.bands, panel.heights, strict=True) for card in band}
    points = [(_port(panel, path, 0, cards), first.y + first.height)]
    for lane in lanes:
        top = lane.y + (lane.height - heights[lane.name]) / 2
        points += [(lane.x, top), (lane.x, top + heights[lane.name])]
    return [*points, (_port(panel, path, -1, cards), last.y)]


def _port(panel: Panel, path: list[str], end: int, cards: dict[str, Card]) -> float:
    """Where an arrow leaves or meets a card: arrows of one side stand apart, in the order of where they come from."""
    card, towards = cards[path[end]], 1 if end == 0 else -2
    same = sorted(
        (other for other in panel.arrows if other[end] == path[end]), key=lambda other: cards[other[towards]].x
    )
    step = min(26.0, card.width / (len(same) + 1))
    return card.x + (same.index(path) - (len(same) - 1) / 2) * step


def _draw_card(pen: Pen, card: Card) -> None:
    left, stage = card.x - card.width / 2, _stage(card.name)
    edge = LINE if stage is None else FLOW[stage][2]
    pen.box(left, card.y, card.width, card.height, fill=PAPER, edge=edge)
    title = card.title if "." in card.name else "modules"
    y = card.y + (18 if card.modules else card.height / 2)
    pen.text(left + 12, y, title, TITLE_SIZE, weight="bold", family="DejaVu Sans Mono")
    if stage is not None:
        pen.badge(left + card.width - 17, y, stage)
    x = left + 12
    for column, width in zip(card.columns, card.column_widths, strict=True):
        for row, name in enumerate(column):
            pen.text(x, card.y + HEADER + 13 + row * ROW, name, NAME_SIZE, color="#4a5560", family="DejaVu Sans Mono")
        x += width + COLUMN_GAP
