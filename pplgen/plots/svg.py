"""A matplotlib figure as SVG that stands in a page of HTML: named, described, small, with ids of its own."""

from __future__ import annotations

import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["inline_svg"]

DENSE = 1500
"""Points of a scatter or of a line from which on it is drawn in pixels."""
DPI = 130
"""Of what is drawn in pixels."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that XML cannot hold."""
REFERENCE = re.compile(r"(?:^|url\()#(\w+)(?=$|\))")
"""To an element of the same picture, whose id is the group; colours are set in ``style`` after a colon."""
DECIMALS = re.compile(r"(\.\d\d)\d+")
"""Digits of a place that nobody sees."""


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return an ``<svg>`` element for a page.

    Parameters
    ----------
    figure
        What to draw; its dense parts become pixels.
    name
        A word that no other picture of the page has; ids start with it.
    title, description
        What the picture is, and what there is to be seen, for those who do not see it.
    """
    for artist in figure.findobj(lambda each: isinstance(each, (Collection, Line2D))):
        artist.set_rasterized(bool(artist.get_rasterized()) or _num_points(artist) > DENSE)
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that matplotlib's font lacks, the browser has
        figure.savefig(file, format="svg", dpi=DPI, transparent=True)
    root = ElementTree.fromstring(CONTROL.sub("\N{REPLACEMENT CHARACTER}", file.getvalue()))
    for part in list(root):
        if _bare(part.tag) == "metadata":
            root.remove(part)
    for parent in list(root.iter()):
        for part in list(parent):
            if _bare(part.tag) == "style":  # it would hold for the whole page
                parent.remove(part)
    for part in root.iter():
        part.tag = _bare(part.tag)
        part.attrib = {_bare(key): value for key, value in part.attrib.items()}
    referred = {each for part in root.iter() for value in part.attrib.values() for each in REFERENCE.findall(value)}
    for part in root.iter():
        if part.get("id") in referred:
            referred.discard(part.attrib["id"])  # matplotlib writes some twice
        else:
            part.attrib.pop("id", None)
        part.attrib = {key: _own(key, value, name) for key, value in part.attrib.items()}
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title",
        "aria-describedby": f"{name}-description",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _num_points(artist: Artist) -> int:
    """Count what an artist would be written as."""
    if isinstance(artist, Line2D):
        return int(np.size(artist.get_xdata()))
    assert isinstance(artist, Collection), "nothing else is asked for"
    return max(len(np.asarray(artist.get_offsets())), *(np.size(path.vertices) // 2 for path in artist.get_paths()), 0)


def _bare(name: str) -> str:
    """Return a name without its namespace, which HTML knows."""
    return name.rpartition("}")[2]


def _own(key: str, value: str, name: str) -> str:
    """Make an id, or a reference to one, the picture's own; places need no more than hundredths of a point."""
    if key == "id":
        return f"{name}-{value}"
    if key in ("d", "x", "y"):
        return DECIMALS.sub(r"\1", value)
    return REFERENCE.sub(lambda found: found[0].replace("#", f"#{name}-"), value)
