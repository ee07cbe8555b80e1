"""Sphinx extension that generates a page for each story and copies the tutorials.

Pages are written before Sphinx collects its sources, and only if they have changed; git ignores them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode
from pplgen.models import Entry
from sphinx.application import Sphinx

from pplgen import models
from pplgen.cli.show import calibration_lines, measured, model_and_guide
from pplgen.verification.rounding import as_claimed, as_measured

DOCS = Path(__file__).parent
ROOT = DOCS.parent

STORY_PAGE = """\
# {title}

{summary}

```console
$ pplgen fit {name} DATA
$ pplgen show {name}
```

**When to use it.** {use}

**When not to use it.** {avoid}

## Model and guide

```python
{source}
```

{equations}

{shared}

{options}

{file}

## Evidence

**Validated against** {validated_against}.

{measured}

{calibration}
"""
FOLDED = """\
<details>
<summary>{title}</summary>

{content}

</details>
"""
MODULE = """\
```{{eval-rst}}
.. automodule:: pplgen.models.{name}
   :no-index:
```
"""
CLASS = """\
```{{eval-rst}}
.. autoclass:: {path}
{members}
```
"""
FILE = """\
```{{literalinclude}} ../../models/{module}.py
:language: python
```
"""


def write_pages(app: Sphinx) -> None:
    """Write the generated pages: stories, their index, tutorials."""
    pages = {f"{entry.name}.md": story_page(entry) for entry in models.collection()}
    pages["index.md"] = story_list()
    _replace(DOCS / "stories", pages)
    scripts = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    pages = {path.name: path.read_text("utf-8") for path in scripts}
    pages["index.md"] = (DOCS / "_tutorials.md").read_text("utf-8") + _toctree([path.stem for path in scripts])
    _replace(DOCS / "tutorials", pages)


def read_tutorial(text: str) -> NotebookNode:
    """Read a script as a notebook, with the kernelspec that Sphinx needs for highlighting."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def story_list() -> str:
    """Return the index page of the stories."""
    cards = models.cards()
    rows = [f"| [{card.title}]({name}.md) | `{name}` | {card.rows} |" for name, card in cards.items()]
    toctree = _toctree(list(cards), ":hidden:")
    lead = (DOCS / "_stories.md").read_text("utf-8")
    return "\n".join([lead, "| story | `pplgen fit ...` | rows |", "|---|---|---|", *rows, "", toctree])


def story_page(entry: Entry) -> str:
    """Return the page of one story: its model and guide in sight, equations, options and source file folded."""
    card = models.cards()[entry.name]
    module = entry.name.replace("-", "_")
    source = (ROOT / "models" / f"{module}.py").read_text("utf-8")
    options = CLASS.format(path=f"pplgen.models.{entry.class_name}", members=_constructors(entry))
    if entry.base is not None:
        bases = {base.__name__: base.__module__ for base in getattr(models, entry.class_name).__mro__}
        path = f"{bases[entry.base.name]}.{entry.base.name}"
        options += CLASS.format(path=path, members="   :no-index:")
    return STORY_PAGE.format(
        name=entry.name,
        summary=entry.summary,
        title=card.title,
        use=_linked(card.use, entry.name),
        avoid=_linked(card.avoid, entry.name),
        source=model_and_guide(entry.definition, source),
        equations=_folded("Equations, guide and references", MODULE.format(name=module)),
        shared=_pieces(entry),
        options=_folded("Options", options),
        file=_folded("The source file", FILE.format(module=module)),
        validated_against=card.validated_against,
        measured=_measured(entry.name),
        calibration=_folded("Calibration", _calibration(entry.name)),
    )


def _folded(title: str, content: str) -> str:
    """Return content that a click on its title shows."""
    return FOLDED.format(title=title, content=content.strip())


def _toctree(names: list[str], *options: str) -> str:
    """Return a table of contents of a folder's pages."""
    return "\n".join(["```{toctree}", ":maxdepth: 1", *options, "", *names, "```", ""])


def _linked(text: str, own: str) -> str:
    """Link the names of other stories."""
    others = models.cards().keys() - {own}
    return re.sub(r"`([a-z-]+)`", lambda name: f"[{name[0]}]({name[1]}.md)" if name[1] in others else name[0], text)


def _constructors(entry: Entry) -> str:
    """Return the autodoc option for a story's class methods, its alternative constructors."""
    names = [
        node.name
        for node in entry.definition.body
        if any(getattr(decorator, "id", None) == "classmethod" for decorator in getattr(node, "decorator_list", ()))
    ]
    return f"   :members: {', '.join(names)}" if names else ""


def _pieces(entry: Entry) -> str:
    """Return the documentation of private modules that the story's docstring refers to."""
    names = dict.fromkeys(re.findall(r"``pplgen\.models\.(_\w+)``", entry.equations))
    return _folded("Shared modules", "\n".join(MODULE.format(name=name) for name in names)) if names else ""


def _measured(name: str) -> str:
    """Return a table of the measured claims about a story."""
    rows = [
        f"| {claim['what']} | {as_claimed(claim['claimed'])} "
        f"| {as_measured(claim['measured'], claim['claimed'], claim['tolerance'])} | {claim['verdict']} |"
        for claim in measured(name)
        if claim["measured"] is not None
    ]
    return "\n".join(["| `pplgen verify` | claimed | measured | |", "|---|---|---|---|", *rows]) if rows else ""


def _calibration(name: str) -> str:
    """Return the recorded calibration of the story, and its figure."""
    record = models.calibrations().get(name)
    lines = calibration_lines(record)
    if record and "call" in record:
        lines[0] = f"```python\n{lines[0]}\n```\n"
    figure = DOCS / "calibrations" / f"{name}.png"
    if figure.exists():
        lines.append(f"\n![Ranks of the true values among posterior draws](../calibrations/{figure.name})")
    return "\n".join(lines)


def _replace(folder: Path, pages: dict[str, str]) -> None:
    """Synchronise a folder with these pages; unchanged files are kept, so that Sphinx does not reread them."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in pages and path.is_file():
            path.unlink()
    for name, text in pages.items():
        if not (folder / name).exists() or (folder / name).read_text("utf-8") != text:
            (folder / name).write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Generate the pages when the builder is initialised."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
