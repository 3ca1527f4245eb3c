"""All image rules together: what each image is asked while it is stored, then what becomes of it among all the others."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit import UserError
from clipkit.dataset.images.download import Downloads
from clipkit.dataset.images.image_rules import Wanted, check_names
from clipkit.dataset.images.left_out import LeftOut, load_left_out
from clipkit.dataset.images.nsfw import find_model
from clipkit.dataset.images.stored_images import read_thumbnails, store_images
from clipkit.dataset.images.table_rules import table_reasons
from clipkit.recipe import ImageKnobs
from clipkit.run import Run, replacing

__all__ = ["Judge", "prepare"]


@dataclass(frozen=True)
class Judge:
    """The knobs, with what they name loaded."""

    knobs: ImageKnobs
    left_out: LeftOut | None
    nsfw_model: str | None

    @property
    def wanted(self) -> Wanted:
        """What an image is asked while it is stored."""
        tests = self.left_out
        return Wanted(
            likeness="near_duplicate" in self.knobs.rules or (tests is not None and tests.has_likenesses),
            downloaded=tests is not None,
            sizes=frozenset() if tests is None else tests.sizes,
            nsfw_model=self.nsfw_model,
        )

    @property
    def fingerprint(self) -> str:
        """A hash over what the knobs name: the lists of test pictures and the bytes of the model. "none" where they name nothing."""
        lists = "none" if self.left_out is None else self.left_out.fingerprint
        if self.nsfw_model is None:
            return lists
        with open(self.nsfw_model, "rb") as file:
            model = hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(f"{lists} {model}".encode()).hexdigest()

    def check_unchanged(self, folder: Path) -> None:
        """Raise UserError where lists of test pictures or the model are not those of the run before, which would judge otherwise."""
        fingerprint = self.fingerprint
        path = folder / "fingerprint.txt"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(fingerprint)
        if path.read_text() != fingerprint:
            raise UserError(
                f"the files of `images.leave_out` or `images.nsfw_model` have changed since `{path}` was written: give a new `--out`, "
                "or put them back to resume"
            )

    def judged(self, batches: Iterable[pa.RecordBatch], downloads: Downloads, out: Path, *, run: Run, processes: int) -> pa.Table:
        """The pairs with what is known of their stored images, and `reason`: the rule that drops each, or null.

        First the rules on one image, then the test sets, then the rules on all images in their order.
        """
        table = store_images(batches, downloads, out, knobs=self.knobs, wanted=self.wanted, run=run, processes=processes)
        table = table.append_column("position", pa.array(np.arange(len(table))))
        thumbnails = partial(read_thumbnails, out)

        def watch(name: str, count: int) -> AbstractContextManager[Callable[..., None]]:
            """A bar for a rule on all images."""
            return run.progress(f"image rule {name}", total=count, unit="images")

        if self.left_out is not None:
            left = table.filter(pc.is_null(table["reason"]))
            with watch("test_set", len(left)) as advance:
                among = self.left_out.among(left, thumbnails, self.knobs, advance)
            table = _with_reasons(table, left["key"], pc.if_else(among, "test_set", pa.scalar(None, pa.string())))
        left = table.filter(pc.is_null(table["reason"]))
        return _with_reasons(table, left["key"], table_reasons(left, self.knobs, thumbnails, watch))


def prepare(knobs: ImageKnobs) -> Judge:
    """Load what the knobs name. Raises UserError for a rule that does not exist, a list that cannot be read, a model that is not there."""
    check_names(knobs.rules)
    return Judge(knobs, load_left_out(knobs.leave_out), find_model(knobs))


def _with_reasons(table: pa.Table, keys: pa.ChunkedArray, reasons: pa.ChunkedArray) -> pa.Table:
    found = reasons.take(pc.index_in(table["key"], value_set=keys))
    return table.set_column(table.schema.get_field_index("reason"), "reason", pc.coalesce(table["reason"], found))
