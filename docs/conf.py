"""How Sphinx builds the documentation: `make docs`, without a network, warnings are errors."""

from importlib.metadata import version as installed_version

project = "routilux"
author = "The routilux developers"
project_copyright = "The routilux developers, Apache-2.0"
release = version = installed_version("pytest-routilux")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", name)
    for name in (
        r"(collections|datetime|random|pathlib|asyncio|uuid)\..*",
        "datetime",
        "timedelta",
        r".*\._\w+",
    )
]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # [text](page.md#heading)

# Docstrings mark code by single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"routilux {release}"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
