"""Single pictures of a report as PNG files, for a page that cannot hold the report itself.

    python -m benchmarks.pictures runs/…/report.html docs/images/smollm2 tradeoff boxes

Each named figure is cut out of the page with the page's own style and photographed by a headless Chromium. Without
names it lists those that the page has.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
WIDTH, MOST_HEIGHT = 920, 1600


def figures(page: str) -> dict[str, str]:
    """The page's figures by their names."""
    return {found[1]: found[0] for found in re.finditer(r'<figure id="([^"]+)".*?</figure>', page, re.DOTALL)}


def alone(page: str, figure: str) -> str:
    """A page that holds one figure, on light paper."""
    [style] = re.findall(r"<style>.*?</style>", page, re.DOTALL)
    light = re.sub(r"@media \(prefers-color-scheme: dark\) \{.*?\n\}", "", style, flags=re.DOTALL)
    return f'<!doctype html><meta charset="utf-8">{light}<body><main>{figure}</main></body>'


def height_of(figure: str) -> int:
    """Enough for the drawings, their legends and the caption."""
    drawings = [float(box.split()[3]) for box in re.findall(r'viewBox="([^"]+)"', figure)]
    return min(MOST_HEIGHT, round(max(drawings, default=300.0)) + 190)


def photograph(browser: str, html: str, height: int, target: Path) -> None:
    """A picture of a page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figure.html"
        file.write_text(html, encoding="utf-8")
        size, profile = f"--window-size={WIDTH},{height}", f"--user-data-dir={folder}/profile"
        command = [browser, *FLAGS, profile, size, f"--screenshot={target.resolve()}", file.as_uri()]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Cut out and photograph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("report", type=Path)
    parser.add_argument("prefix", type=Path, nargs="?")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    page = options.report.read_text(encoding="utf-8")
    found = figures(page)
    if not options.names:
        print("\n".join(found))
        return
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        parser.error(f"needs one of {', '.join(BROWSERS)}")
    options.prefix.parent.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        target = options.prefix.with_name(f"{options.prefix.name}-{name}.png")
        photograph(browser, alone(page, found[name]), height_of(found[name]), target)
        print(target)


if __name__ == "__main__":
    main()
