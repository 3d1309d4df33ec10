"""Sphinx's settings. Building the site writes `docs/reference/` first: the pages that follow from the program itself.

sphinx-build -W --keep-going -b html docs docs/_build/html
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generating  # noqa: E402
from generating.signatures import as_restructured_text  # noqa: E402
from sphinx.errors import ConfigError  # noqa: E402

from fastdiff import __version__  # noqa: E402

project = "fastdiff"
release = version = __version__
copyright = "the fastdiff authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "generating", "reference/parts"]
root_doc = "index"

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True
# Types of torch and diffusers, whose own pages aren't asked for.
nitpick_ignore_regex = [("py:.*", ".*")]
default_role = "literal"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "fastdiff"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


def write_pages(app: Any, config: Any) -> None:
    try:
        generating.write()
    except ValueError as error:  # of which Sphinx would show a traceback
        raise ConfigError(str(error)) from error


def setup(app: Any) -> None:
    app.connect("config-inited", write_pages)
    app.connect("autodoc-process-docstring", as_restructured_text)
