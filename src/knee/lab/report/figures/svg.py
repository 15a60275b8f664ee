"""From the SVG that matplotlib writes to one that lives inside a page: small, themed by the page, alone with its ids.

Stand-ins for colours become CSS variables, so that a figure is light or dark with the page; fonts are the page's; ids
carry the figure's name, so that two figures never answer for each other. Knows XML, not what is drawn.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from markupsafe import Markup

_TAG = re.compile(r"\{[^}]*\}")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_LONG_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_NO_ROTATION = re.compile(r"rotate\(-?0 ")
_COORDINATES = frozenset({"d", "x", "y", "transform", "width", "height"})
_FONTS = ("font", "font-family", "font-size", "font-weight")
_ALWAYS = {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # what matplotlib's own style sheet says, and ours


def page_svg(text: str, name: str, label: str, theme: Mapping[str, str]) -> Markup:
    """An `<svg>` element that says `label` to those who cannot see it. `theme`: stand-in colour -> what CSS says."""
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in [child for child in parent if _tag(child) in ("style", "metadata")]:
            parent.remove(child)
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        element.tag = _tag(element)
        element.attrib = _attributes(element, name, used, theme)
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
    _drop_empty(root)
    _, _, width, _ = root.attrib["viewBox"].split()
    root.attrib = {
        "class": "plot",
        "viewBox": root.attrib["viewBox"],
        "style": f"max-width: {width}px",
        "role": "img",
        "aria-label": label,
    }
    return Markup(ET.tostring(root, encoding="unicode"))


def _tag(element: ET.Element) -> str:
    return _TAG.sub("", element.tag)


def _references(element: ET.Element) -> list[str]:
    found = []
    for key, value in element.attrib.items():
        if _TAG.sub("", key) == "href":
            found.append(value.removeprefix("#"))
        found += _REFERENCE.findall(value)
    return found


def _attributes(element: ET.Element, name: str, used: set[str], theme: Mapping[str, str]) -> dict[str, str]:
    kept = {_TAG.sub("", key): value for key, value in element.attrib.items()}
    # Only in a style may a colour be a variable.
    style = _style(kept.pop("style", "")) | {key: kept.pop(key) for key in ("fill", "stroke") if key in kept}
    if kept.get("id") not in used:
        kept.pop("id", None)
    kept = {key: _value(key, value, name) for key, value in kept.items()}
    kept = {key: value for key, value in kept.items() if value}
    if style:
        kept["style"] = "; ".join(f"{key}: {_themed(value, name, theme)}" for key, value in style.items())
    return kept


def _style(text: str) -> dict[str, str]:
    pairs = (part.partition(":") for part in text.split(";") if part.strip())
    style = {key.strip(): value.strip() for key, _, value in pairs}
    fonts = {key: style.pop(key) for key in _FONTS if key in style}
    size = re.search(r"([\d.]+px)", fonts.get("font-size", fonts.get("font", "")))
    weight = re.search(r"\b(bold|700)\b", fonts.get("font-weight", fonts.get("font", "")))
    style = {key: value for key, value in style.items() if _ALWAYS.get(key) != value}
    return style | ({"font-size": size[1]} if size else {}) | ({"font-weight": "bold"} if weight else {})


def _value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    if key in _COORDINATES:
        value = "" if key == "transform" and _NO_ROTATION.match(value) else _LONG_NUMBER.sub(_rounded, value)
        value = " ".join(value.split())
    return _REFERENCE.sub(rf"url(#{name}-\1)", value)


def _rounded(number: re.Match[str]) -> str:
    short = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short


def _themed(value: str, name: str, theme: Mapping[str, str]) -> str:
    return _REFERENCE.sub(rf"url(#{name}-\1)", theme.get(value.lower(), value))


def _drop_empty(element: ET.Element) -> None:
    """Groups and definitions with nothing in them, from the inside out."""
    for child in list(element):
        _drop_empty(child)
        if child.tag in ("g", "defs") and not len(child):
            element.remove(child)
