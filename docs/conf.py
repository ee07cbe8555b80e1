"""How the documentation is built: ``sphinx-build -W docs build/site``.

Nothing is downloaded. Tutorials and guides are shown as they are written; with ``PPLGEN_DOCS_EXECUTE=1`` their code is
run, which takes minutes, and a cell that fails ends the build.
"""

import os
import sys
from pathlib import Path

import pplgen

sys.path.insert(0, str(Path(__file__).parent))

project = "pplgen"
author = "the authors of pplgen"
copyright = "2026, the authors of pplgen"  # noqa: A001
version = release = pplgen.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "_mathml", "_pages", "_references"]
exclude_patterns = ["conf.py", "_*.md", "_*.py", "calibrations.py"]

highlight_language = "none"  # blocks without a language are equations

html_theme = "furo"
html_title = f"pplgen {release}"
html_static_path = ["_static"]
html_css_files = ["pplgen.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "amsmath"]
myst_heading_anchors = 3

nb_custom_formats = {".py": "_pages.read_tutorial"}
nb_execution_mode = "force" if os.environ.get("PPLGEN_DOCS_EXECUTE") == "1" else "off"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars, and paths of this machine
