"""Lists of tasks that the paper's analyses are made of, as the shipped suites name them."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from clipkit.evaluation.suite import load_suite

KORNBLITH = 12
"""So many of Table 9 are the sets of Kornblith et al. (2019): the first ones."""
IMAGENET = "imagenet"
MATCHING = "imagenet-on-"
"""Begins the name of a task that has ImageNet's validation pictures of a shift's classes."""


class Shift(NamedTuple):
    """One shift: the task that has its pictures, and the task that has ImageNet's pictures of the same classes."""

    name: str
    task: str
    matching: str
    is_video: bool = False

    @property
    def worst_frames(self) -> str:
        """What results call pm-10 of a shift of videos: the paper takes its mean with pm-0, the task itself. No suite ships it."""
        return f"{self.task}-pm10"


@functools.cache
def shifts() -> tuple[Shift, ...]:
    """The paper's seven (section 3.3, figure 13), from the suite `imagenet-shifts`. All of ImageNet matches those with all classes."""
    tasks = {task.name: task for task in load_suite("imagenet-shifts").tasks}
    found = []
    for name, task in tasks.items():
        if name != IMAGENET and not name.startswith(MATCHING):
            matching = MATCHING + name.removeprefix("imagenet-")
            title, _, frames = task.title.partition(", ")
            found.append(Shift(title, name, matching if matching in tasks else IMAGENET, is_video=frames == "anchor frames"))
    return tuple(found)


@functools.cache
def paper_lists() -> Mapping[str, tuple[str, ...]]:
    """The two averages of figure 10, from the suite `clip-27`: all of it, and the sets of Kornblith et al."""
    tasks = tuple(task.name for task in load_suite("clip-27").tasks)
    return {f"kornblith-{KORNBLITH}": tasks[:KORNBLITH], "clip-27": tasks}
