"""What a browser makes of the page: something to see in light and in dark, on paper, and the answer's words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from knee.lab.report import to_html
from knee.lab.sweep_records import SweepMetrics
from tests.lab.report import samples

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome here")

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


def browse(folder: Path, *arguments: str) -> str:
    """Run the browser with a profile of its own; gives what it prints."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of ten cells, in Chinese: the harder one to draw."""
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_text(to_html(*samples.judged(sizes=(1, 4), requests=12), "zh"))
    return path


def shot(page: Path, folder: Path, *arguments: str) -> np.ndarray:
    """A screenshot as rows of RGB pixels."""
    from PIL import Image

    target = folder / "shot.png"
    browse(folder, "--window-size=800,3000", f"--screenshot={target}", *arguments, page.as_uri())
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB"))


def test_light_and_dark_are_drawn_and_differ(page: Path, tmp_path: Path) -> None:
    light = shot(page, tmp_path, "--blink-settings=preferredColorScheme=1")
    dark = shot(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light[0, 0].min() > 200  # the paper
    assert dark[0, 0].max() < 60
    for picture in (light, dark):
        # Words and figures everywhere: no third of the page is blank.
        for part in np.array_split(picture, 3):
            assert (np.abs(part.astype(int) - picture[0, 0]).max(axis=2) > 60).mean() > 0.005


def test_paper_gets_pages(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    browse(tmp_path, f"--print-to-pdf={target}", page.as_uri())
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(content) > 30_000


def test_the_answer_is_in_the_document_that_the_browser_built(page: Path, tmp_path: Path) -> None:
    record, _, _ = samples.judged(sizes=(1, 4), requests=12)
    assert isinstance(record.metrics, SweepMetrics)
    assert record.metrics.recommendations is not None
    document = browse(tmp_path, "--dump-dom", page.as_uri())
    assert "在线聊天" in document
    assert f"<strong>{record.metrics.recommendations.offline.label.partition(' ')[0]}" in document  # type: ignore[union-attr]


def test_a_phone_does_not_scroll_the_page_sideways(page: Path, tmp_path: Path) -> None:
    # 500 px is the narrowest window of this browser. The page itself may run no script; this copy may.
    words = page.read_text()
    head, _, rest = words.partition('<meta http-equiv="Content-Security-Policy"')
    probe = "<script>document.title = `${document.documentElement.scrollWidth} ${innerWidth}`</script></body>"
    copy = tmp_path / "copy.html"
    copy.write_text((head + rest.partition(">")[2]).replace("</body>", probe))
    document = browse(tmp_path, "--dump-dom", "--window-size=500,900", copy.as_uri())
    content, window = map(int, document.partition("<title>")[2].partition("</title>")[0].split())
    assert content <= window
