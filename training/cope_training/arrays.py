"""Arrays that are written row by row, so that memory need not hold them."""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt


class GrowingArray:
    """A `.npy` file that grows by rows; `np.load` can read it once it is closed.

    Args:
        path: the file; made if missing.
        dtype: of the numbers.
        row: shape of a row.
        count: rows that the file holds; what it has beyond them is cut off.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, row: tuple[int, ...], count: int = 0) -> None:
        self._dtype, self._row, self._count = np.dtype(dtype), row, count
        self._row_bytes = self._dtype.itemsize * int(np.prod(row))
        path.touch()
        self._file = path.open("r+b")
        self._write_header()
        self.cut(count)

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file:
            self._write_header()

    def __len__(self) -> int:
        return self._count

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append rows.

        Raises:
            ValueError: they are of another shape or type.
        """
        if rows.shape[1:] != self._row or rows.dtype != self._dtype:
            raise ValueError(f"rows of {rows.dtype} {rows.shape[1:]} do not fit {self._dtype} {self._row}")
        self._file.write(np.ascontiguousarray(rows).data)
        self._count += len(rows)

    def cut(self, count: int) -> None:
        """Keep the first `count` rows."""
        self._count = count
        self._file.seek(self._header_bytes + count * self._row_bytes)
        self._file.truncate()

    def flush(self) -> None:
        """Hand all rows to the system, so that they outlive this process."""
        self._file.flush()

    def _write_header(self) -> None:
        """Write the header; numpy keeps its length for any number of rows."""
        header = io.BytesIO()
        said = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count, *self._row)}
        np.lib.format.write_array_header_1_0(header, said)  # type: ignore[no-untyped-call]
        self._header_bytes = header.tell()
        self._file.seek(0)
        self._file.write(header.getvalue())
