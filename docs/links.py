"""The site's hook: a link to a file outside `docs/` goes to the repository."""

import re
from typing import Any


def on_page_markdown(markdown: str, *, config: Any, **_: object) -> str:  # noqa: ANN401
    """`](../X)` is right for a reader of the repository, and no page of the site."""
    return re.sub(r"\]\(\.\./", f"]({config['repo_url']}/blob/main/", markdown)
