"""`clipkit models`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from clipkit import UserError
from clipkit.cli.options import JsonOption
from clipkit.report.tables import Table, print_tables

app = typer.Typer(no_args_is_help=True, help="List architectures; show, convert and average models.")

LONGEST_FACT = 200
"""Characters of a fact that a table shows; `--json` has all of it."""

_MODEL_HELP = (
    "A training run, clipkit's file, OpenAI's archive, a folder of Hugging Face's or open_clip's; "
    "of a bare state dict `openai:FILE`, `openai:NAME@FILE`, `open_clip:NAME@FILE`."
)


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """Architectures that `model.architecture` takes, with sizes."""
    from clipkit.model.architectures import architectures

    rows = [architecture.row() for architecture in architectures().values()]
    note = "NAME-gelu: the same with GELU, as most of open_clip's weights have it; the shared ones have it already"
    print_tables([Table.from_dicts("architectures", rows, note)], rows, as_json=as_json)


@app.command("show", no_args_is_help=True)
def show_model(
    name: Annotated[
        str, typer.Argument(metavar="NAME|MODEL", help=f"An architecture's name, or a model: {_MODEL_HELP[0].lower()}{_MODEL_HELP[1:]}")
    ],
    as_json: JsonOption = False,
) -> None:
    """Sizes and parameter counts of an architecture; of a model also its format, tokenizer, preprocessing, facts and a hash of its weights.

    Example: `clipkit models show ViT-B-32`, `clipkit models show runs/model`, `clipkit models show openai:weights.pt`.
    """
    from clipkit.model.clip import architecture, facts

    if not _looks_like_a_model(name):
        found = facts(architecture(name))
        print_tables([_facts_table(name, found)], found, as_json=as_json)
        return
    from clipkit.model.formats.description import describe

    told = describe(_load(name))
    print_tables(_model_tables(name, told), told, as_json=as_json)


@app.command("convert", no_args_is_help=True)
def convert_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP)],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new .safetensors file (clipkit, openai) or folder (hugging-face, open-clip).")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="clipkit, hugging-face, open-clip or openai.")] = "clipkit",
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PIXELS", min=1, help="Interpolate the positions to pictures of this size.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="TOKENS", min=3, help="Interpolate the positions to texts of this length.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model in another format, or for other sizes of pictures and texts. Weights become float32; there and back changes no bit.

    **clipkit** is one file that says everything of itself. **hugging-face** is a folder with `config.json`, `model.safetensors` and
    `preprocessor_config.json` (no tokenizer: it is CLIP's own). **open-clip** is a folder that open_clip loads as `local-dir:OUT`.
    **openai** is one file of tensors under OpenAI's names; what it is must be said when it is read.

    Example: `clipkit models convert ViT-B-32.pt vit-b-32 --to hugging-face`.
    """
    from clipkit.model.formats.convert import convert, refuse_unwritable

    refuse_unwritable(out, to=to)  # before the weights are read
    written = convert(_load(model, image_size=image_size, context=context), out, to=to)
    rows = [(key, _cell(value)) for key, value in written.items() if key != "note"]
    print_tables([Table(f"{model} as {to}", ("what", "value"), rows, written["note"])], written, as_json=as_json)


@app.command("average", no_args_is_help=True)
def average_models(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL MODEL...", help=f"Two or more. Each: {_MODEL_HELP[0].lower()}{_MODEL_HELP[1:]}")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new .safetensors file, which `--model` takes.")],
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="W,W,...", help="What each model counts; the sum is 1. Without it all count the same."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Average the weights of models of one architecture: WiSE-FT between two, a soup of several.

    **WiSE-FT**: `--weights 0.5,0.5` of a model and of what it was fine-tuned to is half way between them, often better under
    distribution shift than either. A **soup** is the same of several fine-tuned models. Running statistics of batch norms are averaged,
    too, which is an approximation.

    Example: `clipkit models average ViT-B-32.pt runs/fine-tuned --weights 0.5,0.5 --out half-way.safetensors`.
    """
    shares = None if weights is None else _numbers(weights)
    for model in models:
        _refuse_foreign(model)
    from clipkit.model import averaging
    from clipkit.model.checkpoint import save_model
    from clipkit.model.formats.convert import refuse_unwritable

    refuse_unwritable(out, to="clipkit")
    made = averaging.average_models(models, shares)
    save_model(out, made.model, preprocess=made.preprocess, facts=made.facts)
    note = (
        "the running statistics of its batch norms are averages as well: an approximation" if averaging.has_running_statistics(made) else ""
    )
    told = {"out": str(out), "architecture": made.model.architecture.name, **made.facts, "note": note}
    rows = [(each["model"], each["weight"], each["weights_sha256"]) for each in made.facts["averaged"]]
    print_tables([Table(f"average, in {out}", ("model", "weight", "hash of its weights"), rows, note)], told, as_json=as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"`--weights {text}` is no list of numbers: give one for each model, such as 0.5,0.5") from None


def _looks_like_a_model(name: str) -> bool:
    """What is on disk, or has a colon or a suffix. All else is meant as an architecture's name, `ViT-B/32` too."""
    return ":" in name or "." in name or os.path.exists(name)


def _load(model: str, *, image_size: int | None = None, context: int | None = None) -> Any:
    _refuse_foreign(model)
    from clipkit.model.checkpoint import load_spec

    return load_spec(model, image_size=image_size, context=context)


def _refuse_foreign(model: str) -> None:
    """Raise UserError for a model that clipkit does not read itself."""
    if model.endswith(".toml"):
        raise UserError(f"`{model}` describes an encoder in other files: `--model {model}` uses it; give a model that clipkit has itself")
    from clipkit.model.checkpoint import is_package_spec

    if is_package_spec(model):
        raise UserError(f"`{model}` is loaded by another package, by name: give files, such as the folder that it was downloaded to")


def _model_tables(name: str, told: Mapping[str, Any]) -> list[Table]:
    pictures = {key: ", ".join(f"{number:.4f}" for number in told["preprocess"][key]) for key in ("mean", "std")}
    stored = {"stored as": ", ".join(f"{kind} ({count:,} tensors)" for kind, count in told["stored_types"].items())}
    plain = {key.replace("_", " "): told[key] for key in ("format", "file", "tokenizer", "logit_scale", "weights_sha256")}
    rows = plain | stored | pictures
    tables = [_facts_table(f"{name}: {told['architecture']['name']}", told["architecture"]), _facts_table("as it was stored", rows)]
    return [*tables, _facts_table("facts that its writer has kept", told["facts"])] if told["facts"] else tables


def _facts_table(title: str, found: Mapping[str, Any]) -> Table:
    return Table(title, ("what", "value"), [(key[:LONGEST_FACT], _cell(value)) for key, value in found.items()])


def _cell(value: Any) -> Any:
    """Numbers and short texts as they are, all else as JSON, cut where it is long."""
    if isinstance(value, int | float) or value is None:
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]} ..."
