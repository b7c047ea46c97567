"""A picture as inline SVG: drawn by matplotlib, then cleaned so that it can live inside a page with a strict policy.

What the cleaning does: `style` attributes become presentation attributes (a policy without 'unsafe-inline' would drop
them); each colour becomes a variable of the page, so that one picture serves light and dark; ids get the picture's name
in front, since a page holds many; text stays text, in the page's own font; coordinates are rounded to a tenth of a pixel.
Text is escaped by the XML writer. The same numbers give the same bytes. This module alone imports matplotlib.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fleetune.errors import printable

WIDTH = 400
"""Width of every picture in its own units; at 340 pixels of a phone its text is still about 9 pixels high."""

# Okabe and Ito's palette (2008) for the series; yellow is left out, since no line of it shows on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
INK, MUTED, RULE = "#101010", "#606060", "#d0d0d0"
_VARIABLES = {
    **{colour: f"var(--s{i + 1})" for i, colour in enumerate(SERIES)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    "none": "none",
}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fleetune",
    # A dollar sign in a name is a dollar sign.
    "text.parse_math": False,
    "font.size": 11,
    "axes.titlesize": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_KEPT = frozenset(
    (
        "stroke-width",
        "stroke-dasharray",
        "stroke-dashoffset",
        "stroke-linecap",
        "stroke-linejoin",
        "opacity",
        "fill-opacity",
        "stroke-opacity",
        "text-anchor",
        "font-size",
    )
)
_XLINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with everything that someone needs who cannot see it."""

    name: str
    """A short word, unique on the page."""
    title: str
    about: str
    """What it shows, in words, with its main numbers."""
    svg: str
    note: str = ""
    """How to read it, and when not to believe it."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A picture that is not there."""

    title: str
    why: str
    """What it would need, as the end of a sentence."""


Drawn = Picture | Absent


def draw(
    name: str,
    title: str,
    about: str,
    plot: Callable[[Any], None],
    *,
    height: float = 260,
    note: str = "",
) -> Picture:
    """Draw with `plot(axes)` on fresh axes, WIDTH wide and `height` high."""
    return Picture(name, title, about, clean(_drawn(plot, height), name, title, about), note)


def short(text: str, most: int = 30) -> str:
    """A name as it may stand in a picture; the tables hold it whole. Every name drawn must pass through here."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _drawn(plot: Callable[[Any], None], height: float) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Names in scripts that matplotlib's own font lacks: the browser draws them.
        warnings.filterwarnings("ignore", message=".*(Glyph|glyph).*", category=UserWarning)
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_SETTINGS)
        # The unit of an SVG is 1/72 inch, so what is laid out here needs no second layout for the file.
        figure: Any = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        plot(axes)
        # Done by hand: where a figure keeps its layout engine, matplotlib draws all of it once more before it saves.
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def clean(source: str, name: str, title: str, about: str) -> str:
    """Matplotlib's SVG as an element for the page; see the module's first lines."""
    root = ET.fromstring(source)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    used = set(re.findall(r"#([\w.-]+)[\")]", source))
    _strip(root)
    for element in root.iter():
        _restyle(element, name, used)
    box = root.get("viewBox") or f"0 0 {WIDTH} {WIDTH}"
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": box, "class": "chart", "role": "img", "aria-labelledby": f"{name}-t {name}-d"}
    )
    for place, (tag, text) in enumerate((("title", title), ("desc", about))):
        told = ET.Element(tag, {"id": f"{name}-{tag[0]}"})
        told.text = printable(text)
        root.insert(place, told)
    return ET.tostring(root, encoding="unicode")


def _strip(parent: ET.Element) -> None:
    """Remove metadata, matplotlib's own style sheet, and white space between elements."""
    for child in list(parent):
        if child.tag in ("metadata", "style"):
            parent.remove(child)
            continue
        _strip(child)
        if child.tag in ("g", "defs") and len(child) == 0:
            parent.remove(child)
        child.tail = None
    if parent.tag != "text":
        parent.text = None


def _restyle(element: ET.Element, name: str, used: set[str]) -> None:
    style = element.attrib.pop("style", "")
    if (target := element.attrib.pop(_XLINK, None)) is not None:
        element.set("href", f"#{name}-{target[1:]}")
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{name}-{own}")
    for part in filter(None, (piece.strip() for piece in style.split(";"))):
        _set(element, *(word.strip() for word in part.split(":", 1)))
    for key in ("d", "x", "y", "width", "height", "transform"):
        if (value := element.get(key)) is not None:
            element.set(key, " ".join(_NUMBER.sub(_rounded, value).split()))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("url(#", f"url(#{name}-"))


def _set(element: ET.Element, key: str, value: str) -> None:
    if key in ("fill", "stroke"):
        element.set(key, _VARIABLES[value])
    elif key == "font":
        size = re.search(r"([\d.]+)px", value)
        if size:
            element.set("font-size", size[1])
    elif key in _KEPT:
        element.set(key, value.removesuffix("px"))


def _rounded(number: re.Match[str]) -> str:
    return f"{round(float(number[0]), 1):g}"
