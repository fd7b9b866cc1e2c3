"""Sphinx: `make docs`."""

from medfields import __version__

project = "medfields"
author = "The medfields developers"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "medfields"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
suppress_warnings = ["myst.xref_missing", "docutils"]  # links to files of the repository; "[*batch, 3]" is no emphasis
