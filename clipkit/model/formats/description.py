"""What a model file is, in plain data: sizes, where it came from, how it reads pictures and texts, a hash of its weights."""

from typing import Any

from clipkit.model.checkpoint import TOKENIZER, Loaded
from clipkit.model.clip import facts
from clipkit.model.vectors import fingerprint


def describe(loaded: Loaded) -> dict[str, Any]:
    """For `clipkit models show`. The hash is that of the float32 weights under clipkit's names: one for every format."""
    source = loaded.source
    return {
        "architecture": facts(loaded.model.architecture),
        "format": source.format if source else None,
        "file": str(source.file) if source else None,
        "stored_types": source.stored_types if source else {},
        "tokenizer": TOKENIZER if loaded.model.architecture.text else None,
        "preprocess": loaded.preprocess.facts(),
        "logit_scale": loaded.model.logit_scale.detach().exp().item(),
        "facts": loaded.facts,
        "weights_sha256": fingerprint(loaded.model.state_dict(), {}),
    }
