"""Formulas as MathML, which browsers draw by themselves: no script is loaded, so pages are whole without a network."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

UNKNOWN = (
    (re.compile(r"\\(begin|end)\{(align|equation|gather)\*?\}"), ""),  # lines are aligned without
    (re.compile(r"\\[bB]igg?[lrm]?(?![a-zA-Z])"), ""),  # brackets grow by themselves
    (re.compile(r"\\dots(?![a-zA-Z])"), r"\\ldots"),
)
"""Commands that docutils does not know, and what stands for them."""


def _inline(translator: Any, node: nodes.math) -> NoReturn:
    """Write a formula inside a line."""
    translator.body.append(_formula(node, as_block=False))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> NoReturn:
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="formula">{_formula(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _formula(node: nodes.Element, *, as_block: bool) -> str:
    """Return a formula, several lines of it aligned at their ``&``. A mistake is a warning."""
    text = node.astext().strip()
    for command, known in UNKNOWN:
        text = command.sub(known, text)
    try:
        return tex2mathml(text, as_block=as_block)
    except MathError as error:
        getLogger(__name__).warning("formula: %s", error, location=node)
        return ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the renderer; ``html_math_renderer = "mathml"`` takes it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
