"""What a run says of itself: lines of metrics.jsonl and those who watch them, the clock, the report."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from clipkit.model.checkpoint import save_model
from clipkit.recipe import TrainRecipe
from clipkit.run import Run
from clipkit.training import metrics
from clipkit.training.arithmetic import Arithmetic, memory_bytes, peak, share_of_peak
from clipkit.training.batches import Batch, Batches
from clipkit.training.distributed import rank, ranks
from clipkit.training.evaluating import PROBLEMS, Evaluate, LiveEncoder
from clipkit.training.objectives import distinct
from clipkit.training.retrieval import measure_retrieval
from clipkit.training.sharding import whole_model
from clipkit.training.state import State
from clipkit.training.unique import UniquePairs

METRICS = "metrics.jsonl"
WEIGHTS = "model.safetensors"
PEAK = "machine.json"


class Numbers(NamedTuple):
    """What a step found: the loss over the whole batch, the gradient's norm before clipping, the learning rate, the objective's own."""

    loss: float
    gradient_norm: float
    learning_rate: float
    others: dict[str, float]


class Watcher(Protocol):
    """One who is told of a run while it goes on, on rank 0 alone: a terminal panel, TensorBoard. It changes nothing of the result."""

    shows_progress: bool
    """Whether it takes the place of the progress line."""

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Before the first step of this process: `step`, `steps`, `batch_size`, `architecture`, `objective`, `max_logit_scale`, `lines`."""

    def advance(self, step: int) -> None:
        """A step is done: so many are."""

    def tell(self, line: Mapping[str, Any]) -> None:
        """A line was added to metrics.jsonl."""

    def end(self, *, failed: bool = False) -> None:
        """After the last step, or, with `failed`, when the run stops at an error or is interrupted."""


class Clock:
    """Where the time goes: waiting for batches, or working on them."""

    def __init__(self) -> None:
        """It runs from here on."""
        self._step_start = self._lap_start = time.monotonic()
        self._waited = self._lap_waited = 0.0
        self._lap_steps = 0
        self.texts: list[str] = []

    def waiting_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, the wait for each of them measured."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            if batch is None:
                return
            self._waited = time.monotonic() - start
            self.texts = batch.texts
            yield batch

    def count_step(self, state: State) -> None:
        """Add the time since the last step to the state's."""
        now = time.monotonic()
        state.progress.seconds += now - self._step_start
        state.progress.waited_seconds += self._waited
        self._step_start = now
        self._lap_waited += self._waited
        self._lap_steps += 1

    def leave_out(self, seconds: float) -> None:
        """Time that was no training: an evaluation."""
        self._step_start += seconds
        self._lap_start += seconds

    def lap(self, batch_size: int, *, steps_left: int) -> dict[str, float]:
        """Speed, share of waiting and time left, by the steps since the last lap."""
        now = time.monotonic()
        seconds, waited, steps = now - self._lap_start, self._lap_waited, self._lap_steps
        self._lap_start, self._lap_waited, self._lap_steps = now, 0.0, 0
        return {
            "samples_per_second": steps * batch_size / seconds,
            "data_wait_share": waited / seconds,
            "eta_seconds": steps_left * seconds / steps,
        }


class Logbook:
    """The log of one run's steps on this rank; rank 0 writes it."""

    def __init__(
        self,
        recipe: TrainRecipe,
        state: State,
        batches: Batches,
        *,
        run: Run,
        steps: int,
        evaluate: Evaluate | None = None,
        watch: Sequence[Watcher] = (),
    ) -> None:
        """`evaluate`: called on every rank with the model as it is. `watch`: told on rank 0."""
        self.recipe, self.batches, self.run, self.steps = recipe, batches, run, steps
        self.evaluate = evaluate
        self.clock = Clock()
        self._watch = tuple(watch) if rank() == 0 else ()
        self._arithmetic = Arithmetic(recipe, state.model, state.objective, ranks=ranks()) if rank() == 0 else None
        self._peak: float | None = None
        self._unique = UniquePairs(batches.order)
        self._said: set[str] = set()

    @contextlib.contextmanager
    def progress(self, state: State) -> Iterator[Callable[..., None]]:
        """Yields `advance(pairs, note)`, and tells those who watch of the beginning and of the end."""
        recipe, done = self.recipe, state.progress.step
        facts = {
            "step": done,
            "steps": self.steps,
            "batch_size": recipe.batch_size,
            "architecture": state.model.architecture.name,
            "objective": recipe.objective,
            "max_logit_scale": recipe.model.max_logit_scale,
            "lines": metrics.read_lines(self.run.path / METRICS) if self._watch else [],
        }
        with contextlib.ExitStack() as stack:
            for watcher in self._watch:
                stack.push(functools.partial(_end, watcher))
                watcher.begin(facts)
            if rank() == 0 and not any(watcher.shows_progress for watcher in self._watch):
                show = stack.enter_context(self.run.progress("training", total=(self.steps - done) * recipe.batch_size, unit="pairs"))
            else:
                show = _no_bar

            def advance(pairs: int, note: str | None = None) -> None:
                for watcher in self._watch:
                    watcher.advance(state.progress.step)
                show(pairs, note)

            yield advance

    def after_step(self, state: State, numbers: Numbers) -> str | None:
        """Write the line and the evaluation that are due after this step, before its checkpoint; the line in words, or None."""
        step, is_last = state.progress.step, state.progress.step == self.steps
        note = self._log(state, numbers) if is_last or step % self.recipe.log_steps == 0 else None
        every = self.recipe.evaluate_steps
        if is_last or (every is not None and step % every == 0):
            self._evaluate(state)
        return note

    def _log(self, state: State, numbers: Numbers) -> str:
        progress, recipe = state.progress, self.recipe
        progress.loss, progress.losses = sum(progress.losses) / len(progress.losses), []
        lap = self.clock.lap(recipe.batch_size, steps_left=self.steps - progress.step)
        line = {
            "step": progress.step,
            "samples_seen": progress.step * recipe.batch_size,
            "unique_pairs": self._unique.after(progress.step),
            "epochs": round(progress.step * recipe.batch_size / self.batches.count, 4),
            "loss": progress.loss,
            "chance_loss": chance_loss(recipe, state),
            "logit_scale": float(state.model.logit_scale.detach().exp()),
            **numbers.others,
            "learning_rate": numbers.learning_rate,
            "gradient_norm": numbers.gradient_norm,
            **lap,
            "peak_share": self._peak_share(state, lap["samples_per_second"]),
            "memory_bytes": memory_bytes(state.device),
        }
        self._write(line)
        if rank() == 0:
            self.run.log.info("step %d of %d: %s", progress.step, self.steps, metrics.in_words(line))
        return metrics.in_words(line)

    def _peak_share(self, state: State, samples_per_second: float) -> float | None:
        """Multiply-adds a second of this rank, as a share of what its device could do. The last batch's captions stand for all."""
        if self._arithmetic is None:
            return None
        start, texts = time.monotonic(), distinct(self.clock.texts)[0]
        tokens = state.tokens(texts).numel()
        rows = len(self.clock.texts)
        per_step = self._arithmetic.of_step(rows, tokens)
        if self._peak is None:
            self._peak = peak(state.device, self.recipe.precision, kept=self.run.path / PEAK)
        self.clock.leave_out(time.monotonic() - start)
        return share_of_peak(per_step / rows * (samples_per_second / ranks()), self._peak)

    def _evaluate(self, state: State) -> None:
        """On every rank, each its share of the pictures: nobody waits for rank 0."""
        start, found = time.monotonic(), {}
        # Ranks may encode unequally often, which a model of which each has a share cannot: it is put together for this.
        state = replace(state, model=whole_model(state.model))
        if len(self.batches.held_out_N):
            with LiveEncoder.view(state, precision=self.recipe.precision):
                found["held_out"] = measure_retrieval(
                    state.model, state.preprocess, self.batches.reader, positions_N=self.batches.held_out_N
                )
        if self.evaluate is not None:
            with LiveEncoder.view(state, precision=self.recipe.precision) as encoder:
                found |= self.evaluate(encoder)
        self._say_once(found.pop(PROBLEMS, ()))
        if found:
            seconds = time.monotonic() - start
            self.clock.leave_out(seconds)
            step = state.progress.step
            self._write({"step": step, "samples_seen": step * self.recipe.batch_size, "evaluation": found, "seconds": round(seconds, 3)})

    def _say_once(self, problems: Iterable[str]) -> None:
        """What went wrong in an evaluation, which will at the next one, too."""
        for problem in problems:
            if rank() == 0 and problem not in self._said:
                self.run.say(problem)
            self._said.add(problem)

    def _write(self, line: Mapping[str, Any]) -> None:
        if rank() > 0:
            return
        metrics.append(self.run.path / METRICS, line)
        for watcher in self._watch:
            watcher.tell(line)

    def finish(self, state: State) -> dict[str, Any]:
        """Write the final weights and report, on rank 0."""
        progress, path, recipe = state.progress, self.run.path / WEIGHTS, self.recipe
        save_model(path, state.model, preprocess=state.preprocess, facts=state.facts)
        lines = metrics.read_lines(self.run.path / METRICS)
        evaluation = metrics.evaluation_at(lines, progress.step) or {}
        assert progress.loss is not None
        chance, waited = chance_loss(recipe, state), progress.waited_seconds / progress.seconds
        of_steps = [line for line in lines if "loss" in line]
        return {
            "command": "train",
            "architecture": state.model.architecture.name,
            "model": str(path),
            "pairs": self.batches.count,
            "sources": self.batches.source_facts(progress.step),
            "steps": progress.step,
            "samples_seen": progress.step * recipe.batch_size,
            "unique_pairs": self._unique.after(progress.step),
            "loss": progress.loss,
            "chance_loss": chance,
            "data_wait_share": waited,
            "logit_scale": float(state.model.logit_scale.detach().exp()),
            "samples_per_second": progress.step * recipe.batch_size / progress.seconds,
            "peak_share": of_steps[-1].get("peak_share"),
            "memory_bytes": of_steps[-1].get("memory_bytes"),
            "seconds": progress.seconds,
            "broken_pictures": len(progress.broken),
            "held_out": evaluation.pop("held_out", None),
            "evaluation": evaluation or None,
            "verdict": metrics.verdict(
                loss=progress.loss,
                chance_loss=chance,
                data_wait_share=waited,
                losses=[line["loss"] for line in of_steps],
                first_steps=of_steps[0]["step"],
            ),
        }


def chance_loss(recipe: TrainRecipe, state: State) -> float | None:
    """The objective's loss of a model that knows nothing, where it can be said."""
    return None if state.objective.chance is None else state.objective.chance(recipe.batch_size)


def _end(watcher: Watcher, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    watcher.end(failed=kind is not None)


def _no_bar(pairs: int, note: str | None = None) -> None:
    """For ranks that show nothing, and beside a panel that does."""
