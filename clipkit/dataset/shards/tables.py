"""The parquet beside each tar: what is known of its pairs, without their images."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit import UserError
from clipkit.dataset.shards.manifest import RESTORE

__all__ = ["TABLE_SCHEMA", "picked", "read_table"]

TABLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_url", pa.string()),
        ("text", pa.string()),
        ("page_url", pa.string()),
        ("source", pa.string()),
        ("queries", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
    ]
)
"""The columns of the parquet beside each tar, in the order in which `KEY.json` has them; what is not known is null."""


def picked(columns: Sequence[str] | None) -> pa.Schema:
    """The schema of some columns, or of all."""
    return TABLE_SCHEMA if columns is None else pa.schema([TABLE_SCHEMA.field(name) for name in columns])


def read_table(path: Path, schema: pa.Schema = TABLE_SCHEMA) -> pa.Table:
    """The columns of `schema` from one parquet. Raises UserError where it is missing or another kind of table."""
    try:
        table = pq.read_table(path, columns=schema.names, partitioning=None)
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)  # bytes that are no UTF-8 would surface far from here
        return table
    except FileNotFoundError:
        raise UserError(f"`{path}` is missing: {RESTORE}") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rpartition(f"'{path}': ")[2]  # Arrow names the file again
        raise UserError(f"`{path}` is no table of pairs ({reason}): {RESTORE}") from None
