"""Codes that coremltools is promised while a program is built, and gets when it writes them.

coremltools keeps each constant until the whole program is written, and beyond, since its programs
are cycles of references: 3.2 GB for a 3B model, whose codes it holds one to a byte. All that it
asks of one before it is written are type and shape.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_edge.core.errors import ExportError

#: Makes the numbers; called once for each time that they are written.
Read = Callable[[], NDArray[Any]]


class DeferredArray(np.ndarray[Any, np.dtype[Any]]):
    """An array of one number that looks like `shape` of them; `flatten` makes the real ones.

    `flatten` is what coremltools 9.0 calls to write a constant (`backend/mil/helper.py`). What is
    written is read back and compared with the checkpoint before it is shipped: whoever looked at
    the one number instead would be found out.
    """

    _name: str
    _read: Read | None = None

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], read: Read) -> Any:  # noqa: ANN401
        """A promise of `shape` numbers of `dtype`, which `read` makes; `name` is for errors."""
        promised = np.broadcast_to(np.zeros((), dtype), shape).view(cls)
        promised._name, promised._read = name, read
        return promised

    def flatten(self, order: Any = "C") -> NDArray[Any]:  # noqa: ANN401
        """The numbers, row by row.

        Raises:
            ExportError: This is a part or a copy of a promise, or `read` gives something else.
        """
        if self._read is None:
            raise ExportError(
                "coremltools writes a part of a matrix of codes; another version than the tested "
                "one may change constants on the way to the file"
            )
        numbers = self._read()
        if numbers.shape != self.shape:
            raise ExportError(
                f"{self._name}: has values {numbers.shape} now and had {self.shape}; the quantized "
                "checkpoint was changed while it was exported: export it again"
            )
        return numbers.view(self.dtype).reshape(-1, order=order)
