"""Sphinx's settings: `make docs` builds the site into build/docs, with every warning an error.

Sphinx and furo: the documentation of torch and of most packages around it is Sphinx's, so readers know its reference
pages, and other projects can link to every name here by intersphinx. furo reads well on a phone and in the dark.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from fused_rnn import __version__  # noqa: E402

project = "fused_rnn"
author = "The fused_rnn authors"
copyright = "the fused_rnn authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mathml"]
# Links into the references of torch and Python need their inventories, which are on the network. Only on request.
online = os.environ.get("FUSED_RNN_DOCS_ONLINE") == "1"
if online:
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# ---- pages -----------------------------------------------------------------------------------------------------------

source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nitpicky = True
# Other projects' names, annotations that the sources write in short, and internal bases of public classes.
nitpick_ignore_regex = [
    ("py:class", r"fused_rnn\.(nn|ops|tools)\..*"),
    ("py:.*", r"(torch|nn|collections|typing|pathlib|contextlib|builtins)\..*"),
    ("py:class", r"(Tensor|PackedSequence|Figure|optional|Callable|Iterable|Iterator|Sequence|Path|Any)"),
    ("py:class", r"fused_rnn\.functional\.[A-Z]\w*"),
]
linkcheck_timeout = 20
linkcheck_retries = 2

# ---- the reference, from docstrings ----------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# ---- how it looks ----------------------------------------------------------------------------------------------------

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"fused_rnn {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5d94", "color-brand-content": "#0b5d94"},
    "dark_css_variables": {"color-brand-primary": "#6cb8ec", "color-brand-content": "#6cb8ec"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
