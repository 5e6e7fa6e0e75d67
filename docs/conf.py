"""How Sphinx builds the documentation: `make docs`, without a network, warnings are errors."""

from __future__ import annotations

import builtins
import re
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

from sphinx.addnodes import pending_xref

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

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
        r"(collections|concurrent|datetime|os|random|pathlib|asyncio|threading|types|uuid)\..*",
        r"datetime|timedelta|Decimal|Executor|ModuleType|Path|RenderableType|SearchStrategy",
        r"AbstractEventLoop|FrameType|WatchedThread",
        r"Runner|Named|Node|OpenStore|Via|Schedules|Crashes|(.*\.)?(Collected|Sample)",
        r"(.*\.)?_\w+(\.(args|kwargs))?",
    )
]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # [text](page.md#heading)

# Docstrings mark code by single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 70
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"routilux {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def setup(app: Sphinx) -> None:
    """Link types that a signature names without their module, and show plain defaults."""
    app.connect("doctree-read", _leave_builtins)
    app.connect("missing-reference", _find)
    app.connect("autodoc-process-signature", _with_plain_defaults)


def _leave_builtins(app: Sphinx, tree: Element) -> None:
    # Sphinx would link the type `type` to an attribute of that name.
    for node in tree.findall(pending_xref):
        if hasattr(builtins, node.get("reftarget") or ""):
            node.attributes.pop("refspecific", None)


def _find(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    domain = env.domains.python_domain
    known = [
        name
        for name, entry in domain.objects.items()
        if name.rpartition(".")[2] == node["reftarget"]
        and entry.objtype in ("class", "data", "type")
    ]
    if len(known) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", known[0], node, content)


def _with_plain_defaults(
    app: Sphinx, what: str, name: str, value: object, options: object, text: str | None, result: str
) -> tuple[str, str] | None:
    # `default(3)` marks an argument that was not given.
    if not text or "default(" not in text:
        return None
    return re.sub(r"\bdefault\((\(.*?\)|[^()]*)\)", r"\1", text), result
