"""Settings of the documentation: `sphinx-build -W docs docs/_build/html` builds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# The tutorials run in processes of their own: from this checkout, without a network, and without progress bars.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
os.environ["HF_CAM_FASHION_MNIST"] = str(ROOT / "tests" / "fashion-mnist")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

import hf_cam  # noqa: E402
import hf_cam.handles  # noqa: E402

project = "hf-cam"
author = "The hf-cam developers"
project_copyright = "The hf-cam developers"
version = release = hf_cam.__version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
default_role = "code"
nitpicky = True
# Types of other packages, and our own that are no part of the public interface, have no page to link to.
nitpick_ignore_regex = [
    (r"py:class", r"(collections|numpy|pathlib|PIL|torch)\..*"),
    (r"py:class", r"hf_cam\.(evaluation\.table|images|models\.traits|testing\.models)\..*"),
]

html_theme = "furo"
pygments_dark_style = "github-dark"  # the theme's own underlines imports, which then look like links
html_title = "hf-cam"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__new__"}  # it is listed beside __init__, and takes nothing else
napoleon_numpy_docstring = False
napoleon_use_param = True

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The generated tables begin their sections at the third level.
suppress_warnings = ["myst.header"]

nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "docs" / "_build" / "executed")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
