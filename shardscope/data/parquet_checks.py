"""Whether the metadata of a Parquet file can be believed, asked in a child process.

A lie about a column's statistics ends the whole process within pyarrow ("terminate called …", seen in pyarrow 26.0.1
where it makes a `ColumnChunkMetaData`), and no `except` sees that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LARGEST_ROW_GROUP = 1 << 30  # bytes of the columns that are read
_SECONDS = 60.0

_TRIAL = """
import json, sys
from pyarrow import parquet
path, columns, size, largest = json.loads(sys.stdin.read())
metadata = parquet.read_metadata(path)
for number in range(metadata.num_row_groups):
    group = metadata.row_group(number)
    chunks = [group.column(n) for n in range(group.num_columns)]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]
    if any(chunk.total_compressed_size > size or chunk.total_uncompressed_size < 0 for chunk in wanted):
        sys.exit(f"row group {number} claims to be larger than the file")
    if sum(chunk.total_uncompressed_size for chunk in wanted) > largest:
        sys.exit(f"row group {number} holds more than {largest:,} bytes; write it in smaller ones")
"""


def why_unreadable(path: Path, columns: Sequence[str]) -> str | None:
    """Why these columns of a file cannot be read in little memory; None if nothing is known against it."""
    asked = json.dumps([str(path.resolve()), list(columns), path.stat().st_size, LARGEST_ROW_GROUP])
    try:
        trial = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL], input=asked, capture_output=True, text=True, errors="replace",
            timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its metadata takes more than {_SECONDS:.0f} s to read"
    except OSError:  # no process can be started here
        return None
    if trial.returncode == 0:
        return None
    said = trial.stderr.strip().splitlines()
    return said[-1].strip().removeprefix("what():").strip() if said else "its metadata cannot be read"
