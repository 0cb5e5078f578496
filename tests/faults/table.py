"""Small faults, how each gets into a good bundle, and what must be said of it.

A row is a name, the target whose debug bundle is changed, the change, and the finding: its code and
its place. `lies` marks faults whose author made every hash agree, so that only the fault itself is
left to be found.
"""

from typing import Final

from tests.faults.fault import Fault
from tests.faults.files import FILES, PROMISES
from tests.faults.model import CODES, METADATA
from tests.faults.text import TEXT

DOCTOR: Final[tuple[Fault, ...]] = (*FILES, *PROMISES, *TEXT, *METADATA, *CODES)
