"""Pages of the debug bundles, and the browser to look at them with."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle

#: Of the file as it is shipped; flags that keep the browser off the network and out of a sandbox
#: that containers do not allow.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
)
Browse = Callable[..., str]


@pytest.fixture(scope="session")
def page(debug_bundles: Mapping[str, Bundle]) -> Path:
    return debug_bundles["android"].root / "report.html"


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Run Chromium over a file; what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")

    def run(path: Path, *flags: str) -> str:
        done = subprocess.run(
            [program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    return run
