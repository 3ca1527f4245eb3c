"""The class names of a task in its templates, as vectors: encoded in large batches, and each template's kept on disk.

The cache is keyed by the encoder's fingerprint and the texts of one template, so sets of templates that share some share their work.
K names of all classes, C classes, P templates.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.suite import MAX_TEXTS, Suite, Task, load_task
from clipkit.model.encoder import Encoder
from clipkit.run import Run, save_tensors

TEXTS_AT_ONCE = 8_192
MAX_FILE_BYTES = 1_000_000
CLIP_BENCHMARK_PLACE = "{c}"
NAMES, ONE = ("{}",), ("a photo of a {}.",)
IMAGENET_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""Seven of ImageNet's 80 that together do as well for its authors' models (OpenAI's notebook on prompts for ImageNet)."""
SETS = ("task", "names", "one", "imagenet-7", "imagenet-80")
"""What `--templates` knows by name."""


@dataclass(frozen=True)
class ClassTexts:
    """The texts of a task and who encodes them. `cache`: the folder they are kept in, None: nowhere."""

    encoder: Encoder
    task: Task
    run: Run
    cache: Path | None = None

    def by_template(self) -> Iterator[Tensor]:
        """The unit vectors (K, D) of all names in one template after the other, in float32. Holds few templates at a time."""
        names = [name for names in self.task.classes for name in names]
        step = max(1, TEXTS_AT_ONCE // len(names))
        templates = self.task.templates
        with self.run.progress(f"class texts of {self.task.name}", total=len(names) * len(templates), unit="texts") as advance:
            for start in range(0, len(templates), step):
                texts = [[template.replace("{}", name) for name in names] for template in templates[start : start + step]]
                yield from self._vectors(texts)
                advance(sum(map(len, texts)))

    def labels_K(self) -> Tensor:
        """The class of each name."""
        return torch.tensor([label for label, names in enumerate(self.task.classes) for _ in names])

    def sums(self, vectors_KD: Tensor) -> Tensor:
        """The sums over the names of each class (C, D), in float64."""
        sums_CD = torch.zeros(len(self.task.classes), vectors_KD.shape[1], dtype=torch.float64)
        return sums_CD.index_add_(0, self.labels_K(), vectors_KD.double())

    def _vectors(self, texts: Sequence[Sequence[str]]) -> list[Tensor]:
        """Of each template; those that are not kept are encoded together."""
        kept = [self._load(of_template) for of_template in texts]
        missing = [i for i, vectors in enumerate(kept) if vectors is None]
        if missing:
            new = self.encoder.encode_texts([text for i in missing for text in texts[i]])
            new = torch.nn.functional.normalize(new.double(), dim=1).float()
            for i, vectors in zip(missing, torch.split(new, len(texts[0])), strict=True):
                kept[i] = vectors
                self._save(texts[i], vectors)
        return [vectors for vectors in kept if vectors is not None]

    def _path(self, texts: Sequence[str]) -> Path | None:
        if self.cache is None:
            return None
        key = hashlib.sha256(json.dumps([self.encoder.fingerprint, list(texts)]).encode()).hexdigest()
        return self.cache / "texts" / f"{key}.safetensors"

    def _load(self, texts: Sequence[str]) -> Tensor | None:
        path = self._path(texts)
        try:
            vectors = None if path is None else load_file(path)["texts"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        return vectors if vectors is not None and vectors.shape == (len(texts), self.encoder.width) else None

    def _save(self, texts: Sequence[str], vectors_KD: Tensor) -> None:
        path = self._path(texts)
        if path is not None and vectors_KD.isfinite().all():  # of damaged weights nothing is kept
            save_tensors(path, {"texts": vectors_KD.contiguous()})


def with_templates(suite: Suite, sets: Sequence[str]) -> Suite:
    """The suite with other templates: `task` (its own), `names` (names alone), `one` ("a photo of a {}."), `imagenet-7` and `imagenet-80`
    (OpenAI's for ImageNet, for tasks that have none of their own), or a text file, one a line.

    Of several sets every task stands in the suite once for each, as TASK.SET: pictures are encoded once. Raises UserError for a file
    that cannot be read, has a line without one {} or {c}, or makes too many texts.
    """
    if not sets:
        return suite
    tasks = []
    for task in suite.tasks:
        for one in sets:
            templates = _templates(one, task)
            if (texts := task.text_count(templates)) > MAX_TEXTS:
                raise UserError(
                    f"`--templates {one}` makes {texts:,} texts of task `{task.name}`, at most {MAX_TEXTS:,} are encoded: give fewer"
                )
            update = {"templates": templates, "name": task.name if len(sets) == 1 else f"{task.name}.{Path(one).stem}"[:100]}
            tasks.append(task.model_copy(update=update))
    if len({task.name for task in tasks}) != len(tasks):
        raise UserError(f"two of the templates {', '.join(sets)} have the same name: rename one of the files")
    return suite.model_copy(update={"tasks": tuple(tasks)})


def _templates(one: str, task: Task) -> tuple[str, ...]:
    if one == "imagenet-80":
        return load_task("imagenet").templates
    return {"task": task.templates, "names": NAMES, "one": ONE, "imagenet-7": IMAGENET_7}.get(one) or _read_templates(Path(one))


def _read_templates(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"`--templates {path}` is over {MAX_FILE_BYTES:,} bytes: it should be a text file of one template a line")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"`--templates {path}` cannot be read ({reason}): give a text file, or one of {', '.join(SETS)}") from None
    templates = [line.replace(CLIP_BENCHMARK_PLACE, "{}") for line in lines]
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"`--templates {path}`: {template[:100]!r} should contain {{}} or {{c}} once, where the class name goes")
    if not templates:
        raise UserError(f"`--templates {path}` has no template: give one a line, with {{}} where the class name goes")
    return tuple(templates)
