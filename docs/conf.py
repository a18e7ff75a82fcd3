"""How the site is built from these pages: ``make docs``."""

import sys
from pathlib import Path

from nbclient import NotebookClient

import minimal_vllm

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "minimal-vllm"
author = "the authors of minimal-vllm"
version = release = minimal_vllm.__version__
html_title = f"{project} {version}"
html_theme = "furo"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False  # of a page that includes a document it would be one line
smartquotes_action = "D"  # dashes only: quotes are often to be typed as they are

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "drawings",
    "engine_panels",
    "formulas",
    "generated",
    "phone_blocks",
    "phone_tables",
    "playground",
    "repository_links",
]
included_pages = {  # which page shows a document from outside this folder
    "README.md": "start/readme",
    "ARCHITECTURE.md": "start/map",
    "benchmarks/README.md": "compare/measured",
    "benchmarks/cpu.md": "compare/measured-cpu",
    "benchmarks/gpu.md": "compare/measured-gpu",
    "benchmarks/serving.md": "compare/measured-serving",
    "benchmarks/simulations.md": "compare/measured-simulations",
    "training/README.md": "reference/training",
    "src/minimal_vllm/demo/model/README.md": "reference/demo-model",
}
exclude_patterns = ["*/code", "**/.ipynb_checkpoints"]
nitpick_ignore_regex = [
    ("py:.*", r"(?!minimal_vllm\b).*"),  # Python's own, and other libraries'
    (
        "py:class",
        r"minimal_vllm\.engine\.text_side\.TextSide",
    ),  # what ``LLM`` holds is not for users
]

myst_fence_as_directive = ["math"]  # which is how code hosts mark a formula, too
html_math_renderer = "mathml"
myst_heading_anchors = 4  # links to headings are written as on a code host: page.md#the-heading

# Notebooks are kept without their output; building the site runs them, and an error in one is one
# of the build.
nb_execution_mode = "force"  # results of an older engine must not be shown
nb_execution_raise_on_error = True
nb_execution_timeout = 600
NotebookClient.startup_timeout.default_value = nb_execution_timeout  # no option tells it
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
