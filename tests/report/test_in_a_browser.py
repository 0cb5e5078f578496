"""Looked at in Chromium: a phone's width and a desktop's, light and dark."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.report.conftest import Browse

DARK = ("--blink-settings=preferredColorScheme=0", "--force-dark-mode")


def measured(page: Path, folder: Path) -> Path:
    """A copy with a script that writes the document's width into the title."""
    text = page.read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    script = "<script>document.title = 'width ' + document.documentElement.scrollWidth</script>"
    copy = folder / "measured.html"
    copy.write_text(text.replace("</body>", f"{script}</body>"))
    return copy


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(
    width: int, page: Path, browse: Browse, tmp_path: Path
) -> None:
    # An iframe is as narrow as it is told, whatever a window's least width is.
    inner = measured(page, tmp_path).read_text().replace("&", "&amp;").replace('"', "&quot;")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" width="{width}" height="800" style="border:0" srcdoc="{inner}"></iframe>'
        "<script>onload = () => { document.body.dataset.found = "
        "document.getElementById('f').contentDocument.title }</script>"
    )
    printed = browse(outer, "--dump-dom", "--virtual-time-budget=4000", "--window-size=1400,900")
    found = re.search(r'data-found="width (\d+)"', printed)
    assert found is not None, printed[-300:]
    assert int(found.group(1)) <= width


@pytest.mark.parametrize("flags", [(), DARK], ids=["light", "dark"])
def test_the_screen_is_light_or_dark(
    flags: tuple[str, ...], page: Path, browse: Browse, tmp_path: Path
) -> None:
    picture = tmp_path / "page.png"
    browse(page, f"--screenshot={picture}", "--window-size=390,844", *flags)
    image = Image.open(picture).convert("L")
    assert image.size == (390, 844)
    corner = image.getpixel((2, 2))
    assert isinstance(corner, int)
    assert (corner < 60) == bool(flags)
    darkest, lightest = image.getextrema()
    assert isinstance(darkest, int)
    assert isinstance(lightest, int)
    assert lightest - darkest > 150, "text stands out"
