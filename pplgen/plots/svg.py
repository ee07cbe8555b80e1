"""Matplotlib figures as inline SVG for an HTML page: titled, described, small, with unique ids."""

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
"""Number of points from which a scatter or line is rasterised."""
DPI = 130
"""Resolution of rasterised parts, in dots per inch."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Control characters that XML does not allow."""
REFERENCE = re.compile(r"(?:^|url\()#(\w+)(?=$|\))")
"""Reference to an element of the same figure; the group is its id. Colours in ``style`` follow a colon instead."""
DECIMALS = re.compile(r"(\.\d\d)\d+")
"""Decimals of a coordinate beyond hundredths."""


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return an ``<svg>`` element for a page.

    Parameters
    ----------
    figure
        Figure to convert; its dense parts are rasterised.
    name
        Unique name on the page; prefix of all ids.
    title, description
        Title and text alternative, for screen readers.
    """
    for artist in figure.findobj(lambda each: isinstance(each, (Collection, Line2D))):
        artist.set_rasterized(bool(artist.get_rasterized()) or _num_points(artist) > DENSE)
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # glyphs that matplotlib's font lacks, the browser has
        figure.savefig(file, format="svg", dpi=DPI, transparent=True)
    root = ElementTree.fromstring(CONTROL.sub("\N{REPLACEMENT CHARACTER}", file.getvalue()))
    for part in list(root):
        if _bare(part.tag) == "metadata":
            root.remove(part)
    for parent in list(root.iter()):
        for part in list(parent):
            if _bare(part.tag) == "style":  # it would apply to the whole page
                parent.remove(part)
    for part in root.iter():
        part.tag = _bare(part.tag)
        part.attrib = {_bare(key): value for key, value in part.attrib.items()}
    referred = {each for part in root.iter() for value in part.attrib.values() for each in REFERENCE.findall(value)}
    for part in root.iter():
        if part.get("id") in referred:
            referred.discard(part.attrib["id"])  # matplotlib writes some ids twice
        else:
            part.attrib.pop("id", None)
        part.attrib = {key: _qualified(key, value, name) for key, value in part.attrib.items()}
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
    """Count the points of an artist."""
    if isinstance(artist, Line2D):
        return int(np.size(artist.get_xdata()))
    assert isinstance(artist, Collection), "only lines and collections are counted"
    return max(len(np.asarray(artist.get_offsets())), *(np.size(path.vertices) // 2 for path in artist.get_paths()), 0)


def _bare(name: str) -> str:
    """Return a name without its XML namespace, which inline SVG omits."""
    return name.rpartition("}")[2]


def _qualified(key: str, value: str, name: str) -> str:
    """Prefix ids and references to them by the figure's name; round coordinates to hundredths of a point."""
    if key == "id":
        return f"{name}-{value}"
    if key in ("d", "x", "y"):
        return DECIMALS.sub(r"\1", value)
    return REFERENCE.sub(lambda match: match[0].replace("#", f"#{name}-"), value)
