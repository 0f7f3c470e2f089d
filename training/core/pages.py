"""Static pages: one style sheet (`templates/base.html.j2`), no script, nothing fetched from anywhere.

A template of any package may say `{% extends "base.html.j2" %}` and fill the blocks `title`, `style` (rules of its
own, after the shared ones), `content` and `footer`.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any


def render_page(package: str, template: str, **values: Any) -> str:
    """Return a page as text.

    Args:
        package: dotted name of the package whose folder `templates` holds the template.
        template: its file name, ending in `.html.j2`: what is put in is escaped, except `markup`.
        values: what the template names; a name without a value is an error. `written` is the present time (UTC)
            unless it is given.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("training.core", "templates")]),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return environment.get_template(template).render(**({"written": written} | values))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, readable for everyone."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).chmod(0o644)
    os.replace(name, path)


def markup(svg: str) -> Any:
    """Mark text as safe for a page: for what the chart modules built, which escape every name."""
    from markupsafe import Markup

    return Markup(svg)


def percent(value: float | None) -> str:
    """Return a share as per cent, a dash for none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def percent_range(value: tuple[float, float] | None) -> str:
    """Return an interval of shares as per cent, nothing for none."""
    return "" if value is None else f"{100 * value[0]:.1f} – {100 * value[1]:.1f} %"
