"""CLIP_benchmark's own command line, run where torchvision's compiled library and a Java caption scorer are missing.

    python clip_benchmark_alone.py DUMP eval --dataset wds/cifar10 ... --output 'DUMP/{dataset}.json'

What it decided is kept too, which CLIP_benchmark throws away: logits of classes and labels, similarities of captions, as
DUMP/00.npz, 01.npz, ... in the order of the data sets.
"""

import functools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from torchvision_alone import allow_torchvision_without_its_library

_DECLARED: list[object] = []
"""Operators that live as long as this holds them."""


def main() -> None:
    """Stand in for what cannot be imported here, listen to what is found, then hand over to CLIP_benchmark."""
    _DECLARED.append(allow_torchvision_without_its_library())
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        _stand_in_for_captioning()
    # With webdataset 0.2.111 (not 0.2.86) a worker without a tar of its own is an error; four are the default, and sets have one tar.
    webdataset.WebDataset = functools.partial(webdataset.WebDataset, empty_check=False)  # type: ignore[misc]
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    dump = Path(sys.argv.pop(1))
    dump.mkdir(parents=True, exist_ok=True)
    zeroshot_classification.accuracy = _accuracy  # its own turns an array of one number into a float, which newer numpy refuses
    _keep_results(zeroshot_classification, "run_classification", dump, ("logits", "labels"))
    _keep_similarities(zeroshot_retrieval, dump)
    cli.main()


def _stand_in_for_captioning() -> None:
    """The scorers of captions are imported whatever is asked: empty classes do."""
    for module, name in {"tokenizer.ptbtokenizer": "PTBTokenizer"}.items() | {
        f"{name.lower()}.{name.lower()}": name for name in ("Bleu", "Meteor", "Rouge", "Cider", "Spice")
    }.items():
        path = f"pycocoevalcap.{module}"
        sys.modules.setdefault("pycocoevalcap", types.ModuleType("pycocoevalcap"))
        sys.modules.setdefault(path.rpartition(".")[0], types.ModuleType(path.rpartition(".")[0]))
        sys.modules[path] = types.ModuleType(path)
        setattr(sys.modules[path], name, type(name, (), {}))


def _accuracy(logits: Any, labels: Any, topk: tuple[int, ...] = (1,)) -> list[float]:
    """The share of rows whose label is among torch's first k, as CLIP_benchmark takes them."""
    best = logits.topk(max(topk), 1, True, True)[1]
    return [float((best[:, :k] == labels[:, None]).any(dim=1).double().mean()) for k in topk]


def _keep_results(module: Any, name: str, dump: Path, names: tuple[str, ...]) -> None:
    """Save what a function returns."""
    function = getattr(module, name)

    def listened(*given: Any, **named: Any) -> Any:
        found = function(*given, **named)
        _save(dump, dict(zip(names, found, strict=True)))
        return found

    setattr(module, name, listened)


def _keep_similarities(module: Any, dump: Path) -> None:
    """Save texts x images and which belong together: each data set asks for them with k = 1, and then the other way round."""
    function, asked = module.batchify, []

    def listened(*given: Any, k: int) -> Any:
        if k == 1:
            asked.append(k)
            if len(asked) % 2:
                _save(dump, dict(zip(("scores", "is_own"), given[1:3], strict=True)))
        return function(*given, k=k)

    module.batchify = listened


def _save(dump: Path, tensors: dict[str, Any]) -> None:
    np.savez(dump / f"{len(list(dump.glob('*.npz'))):02d}.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})


if __name__ == "__main__":
    main()
