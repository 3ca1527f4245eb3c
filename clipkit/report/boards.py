"""Lines of metrics.jsonl sent on to TensorBoard and to Weights & Biases."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.report.training import flat_scores


class TensorBoard:
    """Event files in `folder`. A resumed run takes back what was written after the checkpoint that it goes on from."""

    shows_progress = False

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the package is missing; nothing is written yet."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("`--tensorboard` needs the package tensorboard: pip install 'clipkit[tensorboard]', or leave it out") from None
        self._open: Any = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Steps after the one that the run goes on from are hidden, as metrics.jsonl forgets them."""
        self._writer = self._open(str(self._folder), purge_step=facts["step"] + 1)

    def advance(self, step: int) -> None:
        """Nothing: lines alone are shown."""

    def tell(self, line: Mapping[str, Any]) -> None:
        """Every number of a line, at its step."""
        for name, value in numbers_of(line).items():
            self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def end(self, *, failed: bool = False) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run of a project there, or under WANDB_MODE=offline in the run's folder. A resumed run goes on as the same one."""

    shows_progress = False

    def __init__(self, project: str, folder: Path, recipe: Mapping[str, Any]) -> None:
        """`folder`: the run's. Raises UserError where the package is missing."""
        try:
            import wandb
        except ImportError:
            raise UserError("`--wandb` needs the package wandb: pip install 'clipkit[wandb]', or leave it out") from None
        self._wandb: Any = wandb
        self._project, self._folder, self._recipe = project, folder, dict(recipe)
        self._run: Any = None

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Open the run. Raises UserError where the service refuses."""
        try:
            self._run = self._wandb.init(
                project=self._project, dir=str(self._folder), id=_identity(self._folder), resume="allow", config=self._recipe
            )
        except self._wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"`--wandb {self._project}` was refused ({reason}): log in, or set WANDB_MODE=offline") from None
        # Lines of a resumed run may come again: they are drawn over their own step, not over the order in which they came.
        self._run.define_metric("*", step_metric="step")

    def advance(self, step: int) -> None:
        """Nothing: lines alone are shown."""

    def tell(self, line: Mapping[str, Any]) -> None:
        """Every number of a line."""
        self._run.log({"step": line["step"], **numbers_of(line)})

    def end(self, *, failed: bool = False) -> None:
        """Send what is left, and that the run failed where it did."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by name, an evaluation's under `evaluation/`."""
    if "evaluation" in line:
        return {f"evaluation/{name}": value for name, value in flat_scores(line["evaluation"]).items()}
    return {name: float(value) for name, value in line.items() if name != "step" and isinstance(value, int | float)}


def _identity(folder: Path) -> str:
    """The same for every start of one run, and another for another run."""
    begun = json.loads((folder / "run.json").read_text(encoding="utf-8"))["start"]
    return hashlib.sha256(f"{folder.resolve()} {begun}".encode()).hexdigest()[:16]
