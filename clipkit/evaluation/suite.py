"""Tasks and suites: what a test set is called, where its pictures lie, and how its classes are put into words.

A task is a short TOML file (`benchmarks/tasks/*.toml`); a suite is a list of tasks (`benchmarks/suites/*.toml`).
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from clipkit import UserError
from clipkit.evaluation.splits import READERS, Asked, Split, is_address, only_labels
from clipkit.resources import find

MAX_TOML_BYTES = 5_000_000
MAX_TEXTS = 5_000_000
"""Class names x templates of a task, all of which are encoded."""

POOLING = ("super_classes", "sub_task")
"""Entries that a task's fingerprint leaves out where they are unset: results of earlier clipkits go on."""

SplitName = Literal["train", "validation", "test"]
Metric = Literal[
    "accuracy",
    "top-5",
    "mean-per-class",
    "mean-top1-top5",
    "11-point-map",
    "mean-average-precision",
    "roc-auc",
    "macro-f1",
    "worst-group",
    "worst-group-top-5",
    "mean-recall-at-1",
]
TaskKind = Literal["classification", "multilabel", "retrieval"]
METRICS_OF: Mapping[TaskKind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "top-5", "mean-per-class", "mean-top1-top5", "roc-auc", "macro-f1", "worst-group", "worst-group-top-5"),
    "multilabel": ("11-point-map", "mean-average-precision"),
    "retrieval": ("mean-recall-at-1",),
}
Protocol = Literal["clip-paper", "clip-benchmark", "datacomp-38", "own"]
"""Whose class names, templates, test set and metric a task has; `own`: nobody's who published figures with them."""


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _has_placeholder(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} should contain `{{}}` once, where the class name goes")
    return template


def _stays_inside_or_is_address(path: str) -> str:
    return path if is_address(path) else _stays_inside(path)


def _stays_inside(path: str) -> str:
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise ValueError(f"folder {path!r} should be a relative path without `..`")
    return path


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Text = Annotated[str, Field(min_length=1, max_length=1_000)]
ClassNames = Annotated[tuple[Text, ...], BeforeValidator(_names), Field(min_length=1, max_length=1_000)]
Folder = Annotated[Text, AfterValidator(_stays_inside)]
Place = Annotated[Text, AfterValidator(_stays_inside_or_is_address)]
Word = Annotated[str, Field(min_length=1, max_length=100)]
Template = Annotated[Text, AfterValidator(_has_placeholder)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="what results call it")
    title: Text = Field(description="what a person calls it")


class Task(_Entry):
    """One test set: its pictures, its classes in words, its metric. Frozen."""

    protocol: Protocol = Field("own", description="whose names, templates, test set and metric these are")
    kind: TaskKind = Field(
        "classification", description="classification: one class per picture; multilabel: any number; retrieval: captions"
    )
    folder: Place = Field(description="folder under the data root; or `hf://OWNER/NAME`, `https://...` of a task that is read from the web")
    layout: str = Field(description="how the data lies there: `clipkit suites layouts` lists them")
    classes: tuple[ClassNames, ...] = Field((), max_length=100_000, description="names of each class, in label order; retrieval: none")
    class_folders: tuple[Folder, ...] | None = Field(
        None, description="what the data calls the classes, in label order; unset: the first name of each class"
    )
    labels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="the data's label of each class, where the task has a part of the data's classes; other pictures are left out"
    )
    columns: Mapping[Word, Word] = Field({}, description="tables: the columns of `image`, `label`, `texts` and of groups")
    groups: tuple[Word, ...] = Field((), max_length=100, description="attributes of each picture, such as gender or region")
    templates: tuple[Template, ...] = Field(
        min_length=1, max_length=10_000, description="texts with {} where a class name goes; retrieval: one, for the captions"
    )
    metric: Metric = Field(description="the main metric (CLIP Table 9)")
    splits: Mapping[SplitName, Folder] = Field(description="split = folder or file under the task's folder, or the layout's word for it")
    sizes: Mapping[SplitName, Annotated[int, Field(ge=1)]] = Field({}, description="pictures per split, checked")
    super_classes: tuple[Text, ...] | None = Field(
        None, description="what each class is a part of, in label order: zero-shot is scored pooled to these as well"
    )
    sub_task: "Task | None" = Field(
        None, description="the task (a shipped name, a .toml file beside this one) whose super_classes are classes of this one"
    )
    published: Text = Field(description="where the data comes from")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Task":
        self._check_kind()
        self._check_pools()
        if (texts := self.text_count(self.templates)) > MAX_TEXTS:
            raise ValueError(f"class names x templates are {texts:,} texts, at most {MAX_TEXTS:,} are encoded: give fewer templates")
        folders = self.folders
        if len(folders) != len(self.classes):
            raise ValueError(f"class_folders has {len(folders)} folders for {len(self.classes)} classes")
        if self.labels is not None and len(set(self.labels)) != len(self.classes):
            raise ValueError(f"labels should be {len(self.classes)} different labels, one for each class")
        if READERS[self.layout] is READERS["imagefolder"] and len(set(folders)) != len(folders):
            raise ValueError("two classes have the same folder: name the folders of all classes in class_folders")
        if is_address(self.folder) and self.layout != "clip-benchmark-wds":
            raise ValueError(f"layout `{self.layout}` is read from this machine only: from the web, `clip-benchmark-wds` is")
        if unknown := sorted(set(self.sizes) - set(self.splits)):
            raise ValueError(f"sizes names the split `{unknown[0]}`, which splits does not")
        return self

    def _check_kind(self) -> None:
        if self.layout not in READERS:
            near = difflib.get_close_matches(self.layout, list(READERS), n=1)
            raise ValueError(
                f"layout `{self.layout}` is not known: " + (f"did you mean `{near[0]}`?" if near else f"it is one of {', '.join(READERS)}")
            )
        if self.metric not in METRICS_OF[self.kind]:
            raise ValueError(
                f"metric `{self.metric}` does not suit the kind `{self.kind}`: it is one of {', '.join(METRICS_OF[self.kind])}"
            )
        if self.kind == "retrieval" and (self.classes or len(self.templates) != 1):
            raise ValueError("a retrieval task has no classes, and one template that its captions go into, such as `a photo of {}`")
        if self.kind != "retrieval" and len(self.classes) < 2:
            raise ValueError("classes should have two entries or more")
        if self.metric.startswith("worst-group") and not self.groups:
            raise ValueError(f"metric `{self.metric}` needs `groups`: the first of them is the one that is scored")

    def _check_pools(self) -> None:
        parents = self.super_classes if self.super_classes is not None else self.sub_task.super_classes if self.sub_task else None
        if (self.super_classes or self.sub_task) and self.kind != "classification":
            raise ValueError(f"super_classes and sub_task are for the kind `classification`, not for `{self.kind}`")
        if self.super_classes is not None and self.sub_task is not None:
            raise ValueError("super_classes and sub_task exclude each other: the pictures are labelled with one or with the other")
        if self.super_classes is not None and len(self.super_classes) != len(self.classes):
            raise ValueError(f"super_classes names {len(self.super_classes)} for {len(self.classes)} classes")
        if self.sub_task is not None and parents is None:
            raise ValueError(f"sub_task `{self.sub_task.name}` has no super_classes: they say what its classes are pooled to")
        if parents is not None and len(set(parents)) < 2:
            raise ValueError("super_classes should be two or more different ones")
        if self.sub_task is not None and (unknown := sorted(set(parents or ()) - {names[0] for names in self.classes})):
            raise ValueError(f"sub_task `{self.sub_task.name}` has the super-class {unknown[0]!r}, which is none of the classes")

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the classes in label order (layout `imagefolder`)."""
        return self.class_folders if self.class_folders is not None else tuple(names[0] for names in self.classes)

    @property
    def fingerprint(self) -> str:
        """A hash of every word of the task: its classes, templates, metric, splits."""
        told = self.model_dump(mode="json")
        words = {name: told[name] for name in told if told[name] is not None or name not in POOLING}
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()

    def text_count(self, templates: Sequence[str]) -> int:
        """How many texts zero-shot encodes by these templates: of all names of the classes, and of a sub_task's."""
        return sum(map(len, (*self.classes, *(self.sub_task.classes if self.sub_task else ())))) * len(templates)

    def texts(self, label: int) -> list[str]:
        """Every name of a class in every template, names first."""
        return [template.replace("{}", name) for name in self.classes[label] for template in self.templates]

    def split(self, data_root: Path, name: SplitName, *, option: str = "--data") -> Split:
        """Pictures and labels of one split. Raises UserError where the data is missing or is not what the task describes.

        `option`: what the command calls `data_root`.
        """
        if name not in self.splits:
            raise UserError(f"task `{self.name}` has no split `{name}`: it has {', '.join(sorted(self.splits))}")
        root = data_root / self.folder
        if not is_address(self.folder) and not root.is_dir():
            raise UserError(
                f"no data for task `{self.name}` at `{root}`: put it there ({self.published}), or change `{option} {data_root}`"
            )
        split = READERS[self.layout](self._asked(root, name))
        if self.labels is not None and self.kind == "classification":
            split = only_labels(split, self.labels)
        if (wanted := self.sizes.get(name, len(split))) != len(split):
            raise UserError(
                f"split `{name}` of task `{self.name}` has {len(split):,} pictures at `{root / self.splits[name]}`, not {wanted:,}: "
                f"fetch it again ({self.published})"
            )
        if self.kind == "multilabel" and split.is_class_NC is not None and not split.is_class_NC.any():
            raise UserError(f"no picture of split `{name}` of task `{self.name}` has a class: its labels are missing ({self.published})")
        if self.kind == "classification" and len(split) > 1 and (split.labels_N == split.labels_N[0]).all():
            raise UserError(
                f"split `{name}` of task `{self.name}` has one class only, `{self.classes[int(split.labels_N[0])][0]}`, "
                f"of {len(self.classes)}: it is a part of the test set, fetch it again ({self.published})"
            )
        return split

    def _asked(self, root: Path, name: SplitName) -> Asked:
        return Asked(
            name=f"{self.name}/{name}",
            root=root,
            part=self.splits[name],
            kind=self.kind,
            classes=self.classes,
            folders=self.folders,
            columns=self.columns,
            groups=self.groups,
            labels=self.labels,
            address=self.folder if is_address(self.folder) else None,
        )


class Suite(_Entry):
    """A list of tasks under one name. Frozen."""

    tasks: tuple[Task, ...] = Field(min_length=1, max_length=1_000)

    @model_validator(mode="after")
    def _names_each_task_once(self) -> "Suite":
        names = [task.name for task in self.tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"task `{repeated[0]}` stands in it twice")
        return self


def load_task(name_or_path: str) -> Task:
    """A task by the name of a shipped one or by its file. Raises UserError that names the file and the key."""
    path = find("benchmarks/tasks", name_or_path)
    raw = _read_toml(path, "task")
    if isinstance(name := raw.get("sub_task"), str):  # the sub-task of a sub-task stays a name, which is no task
        raw["sub_task"] = _read_toml(find("benchmarks/tasks", _beside(path, name)), "task")
    return _validated(Task, raw, path)


def _beside(path: Path, name: str) -> str:
    """A .toml file is meant beside the file that names it; another name is a shipped one."""
    return str(path.parent / name) if name.endswith(".toml") else name


def load_suite(name_or_path: str) -> Suite:
    """A suite by the name of a shipped one or by its file; its tasks are shipped names or .toml files relative to the suite's.

    Raises UserError that names the file and the key.
    """
    path = find("benchmarks/suites", name_or_path)
    raw = _read_toml(path, "suite")
    tasks = raw.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise UserError(f"suite `{path}`: `tasks` should be a list of task names or .toml files")
    raw["tasks"] = [load_task(_beside(path, task)) for task in tasks]
    return _validated(Suite, raw, path)


def find_splits(
    suite: Suite, data_root: Path, name: SplitName = "test", *, option: str = "--data"
) -> tuple[dict[str, Split], dict[str, str]]:
    """A split of each task that has its data, and why the others have none. `option`: what the command calls `data_root`."""
    splits: dict[str, Split] = {}
    failed: dict[str, str] = {}
    for task in suite.tasks:
        try:
            splits[task.name] = task.split(data_root, name, option=option)
        except UserError as error:
            failed[task.name] = str(error)
    return splits, failed


def describe(suite: Suite) -> dict[str, Any]:
    """A suite as plain JSON: what `clipkit suites show` prints."""
    return {"command": "suites show", "suite": suite.name, "title": suite.title, "tasks": [_describe_task(task) for task in suite.tasks]}


def _describe_task(task: Task) -> dict[str, Any]:
    return {
        "task": task.name,
        "title": task.title,
        "protocol": task.protocol,
        "kind": task.kind,
        "classes": len(task.classes),
        "templates": len(task.templates),
        "metric": task.metric,
        "layout": task.layout,
        "folder": task.folder,
        "splits": dict(sorted(task.splits.items())),
        "sizes": dict(sorted(task.sizes.items())),
        "example": task.texts(0)[0] if task.classes else task.templates[0],
        "published": task.published,
    }


Kind = TypeVar("Kind", bound=_Entry)


def _read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise UserError(f"{what} `{path}` is over {MAX_TOML_BYTES:,} bytes: a {what} is a short TOML file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} `{path}` cannot be read ({_reason(error)}): give a .toml file or a name that is shipped") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{what} `{path}` is not valid TOML: {error}") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _validated(kind: type[Kind], raw: Mapping[str, Any], path: Path) -> Kind:
    what = kind.__name__.lower()
    try:
        return kind.model_validate(raw)
    except ValidationError as problem:
        errors = problem.errors()
        error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, list(kind.model_fields), n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(kind.model_fields)}"
            raise UserError(f"{what} `{path}` has an unknown key `{key}`: {hint}") from None
        where = f"{what} `{path}`, key `{key}`" if key else f"{what} `{path}`"
        raise UserError(f"{where}: {error['msg'].removeprefix('Value error, ')}") from None
