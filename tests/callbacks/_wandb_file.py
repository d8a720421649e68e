"""Reading the file that an offline W&B run writes: records of protobuf in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
FULL, LAST = 1, 4


def history_rows(run_folder: Path) -> list[dict[str, Any]]:
    """Return what was logged, a row for each call of ``run.log``."""
    from wandb.proto import wandb_internal_pb2

    (path,) = run_folder.glob("*.wandb")
    rows = []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
    return rows


def _records(content: bytes) -> Iterator[bytes]:
    place, parts = FILE_HEADER, b""
    while place + HEADER <= len(content):
        left_in_block = BLOCK - place % BLOCK
        if left_in_block < HEADER:
            place += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
