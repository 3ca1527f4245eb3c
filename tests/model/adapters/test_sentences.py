"""Folders of sentence-transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.adapters import sentences
from clipkit.model.adapters.sentences import load_sentences
from tests.model import peer_torchvision
from tests.model.encoders import need

assert peer_torchvision  # imported before a peer is

TEXTS = ["A cat sits on a mat.", "dog", "", "The quick brown fox jumps over the lazy dog near the bank of a wide river at dawn.", "Cat"]
KINDS = ["Transformer", "Pooling", "Normalize"]
LINE = "a cat sits on mat dog the quick brown fox jumps over lazy near bank of wide river at dawn ."


def describe(folder: Path, *, pooling: dict[str, Any] | None = None, kinds: list[str] = KINDS, tokens: int = 16) -> Path:
    """The files that sentence-transformers writes beside the Transformer's own."""
    folder.mkdir(exist_ok=True)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    steps = [
        {"idx": i, "name": str(i), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    mean = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling or mean))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": tokens, "do_lower_case": False}))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights in sentence-transformers' layout."""
    need("transformers")
    import transformers

    folder = describe(tmp_path_factory.mktemp("sentences") / "bert")
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LINE.split()]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 40}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def copied(bert: Path, folder: Path, **facts: Any) -> Path:
    shutil.copytree(bert, folder)
    return describe(folder, **facts)


def by_hand(folder: Path, text: str, *, tokens: int, cls: bool) -> Tensor:
    """sentence-transformers' arithmetic, one text at a time, so that nothing is padded."""
    import transformers

    model = transformers.BertModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=tokens)["input_ids"]
    with torch.no_grad():
        states = model(torch.tensor([words])).last_hidden_state[0]
    vector = states[0] if cls else states.sum(0) / len(words)
    return vector / vector.square().sum().sqrt()


@pytest.mark.parametrize("cls", [False, True])
def test_texts_are_pooled_and_scaled_as_sentence_transformers_does(bert: Path, tmp_path: Path, *, cls: bool) -> None:
    switches = {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    folder = copied(bert, tmp_path / "copy", pooling=switches, tokens=12)
    encoder = load_sentences(folder, name="tiny", precision="fp32")
    assert encoder.width == 32
    expected = torch.stack([by_hand(folder, text, tokens=12, cls=cls) for text in TEXTS])
    torch.testing.assert_close(encoder.encode_texts(TEXTS), expected, atol=1e-5, rtol=1e-4)
    newer = describe(folder, pooling={"pooling_mode": "cls" if cls else "mean"}, kinds=KINDS[:2], tokens=12)
    torch.testing.assert_close(load_sentences(newer, name="tiny", precision="fp32").encode_texts(TEXTS), expected, atol=1e-5, rtol=1e-4)


def test_a_text_is_cut_where_the_folder_says(bert: Path, tmp_path: Path) -> None:
    long = " ".join(["cat"] * 30)
    short, longer = (load_sentences(copied(bert, tmp_path / str(n), tokens=n), name="tiny", precision="fp32") for n in (6, 12))
    torch.testing.assert_close(short.encode_texts([long]), short.encode_texts(["cat cat cat cat"]))
    torch.testing.assert_close(longer.encode_texts([long]), longer.encode_texts([" ".join(["cat"] * 10)]))
    beyond = load_sentences(copied(bert, tmp_path / "beyond", tokens=100_000), name="tiny", precision="fp32")
    assert beyond.encode_texts([" ".join(["cat"] * 5_000)]).isfinite().all()


def test_the_fingerprint_follows_what_is_answered_and_not_where_the_folder_lies(bert: Path, tmp_path: Path) -> None:
    first, moved = (load_sentences(path, name=str(path), precision="fp32") for path in (bert, copied(bert, tmp_path / "moved")))
    shorter = load_sentences(copied(bert, tmp_path / "shorter", tokens=5), name="tiny", precision="fp32")
    assert first.fingerprint == moved.fingerprint != shorter.fingerprint


@pytest.mark.parametrize("changed", [{"do_lower_case": False}, {"padding_side": "left"}, {"truncation_side": "left"}])
def test_the_fingerprint_follows_how_the_tokenizer_is_used(bert: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = copied(bert, tmp_path / "other")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    given, other = (load_sentences(path, name="tiny", precision="fp32") for path in (bert, folder))
    assert given.fingerprint != other.fingerprint
    given.encode_texts(TEXTS)
    assert given.fingerprint == load_sentences(bert, name="tiny", precision="fp32").fingerprint


def test_a_folder_that_names_code_of_its_own_is_not_believed(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "hostile")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    told = json.loads((folder / "config.json").read_text())
    named = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(told | named | {"model_type": "evil"}))
    with pytest.raises(UserError, match=r"`tiny` cannot be loaded"):
        load_sentences(folder, name="tiny")
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_a_clear_error(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match=r"`tiny` cannot be loaded \(.*\): download the model again"):
        load_sentences(folder, name="tiny")


def with_weights(folder: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"kinds": ["Transformer", "Pooling", "Dense"]}, "has the steps Transformer, Pooling, Dense: clipkit does"),
        ({"kinds": ["Transformer"]}, "has the steps Transformer: clipkit does"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pools by pooling_mode_max_tokens: clipkit does mean and cls"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "pools by mean, cls: clipkit does"),
        ({"pooling": {"nothing": 1}}, "pools by None: clipkit does"),
    ],
)
def test_what_clipkit_does_not_compute_is_refused_before_anything_is_loaded(facts: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        load_sentences(with_weights(describe(tmp_path / "folder", **facts)), name="tiny")


@pytest.mark.parametrize("missing", ["modules.json", "1_Pooling/config.json", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    folder = with_weights(describe(tmp_path / "folder"))
    (folder / missing).unlink()
    with pytest.raises(UserError, match=rf"{Path(missing).name}`.*(give a folder of sentence-transformers|download the whole model)"):
        load_sentences(folder, name="tiny")


@pytest.mark.parametrize(
    "steps", ["{}", "[]", "[1]", "nonsense", '[{"path": "../x", "type": "a.Transformer"}, {"path": "/etc", "type": "b.Pooling"}]']
)
def test_a_list_of_steps_that_is_none_or_leads_elsewhere_is_refused(steps: str, tmp_path: Path) -> None:
    folder = with_weights(describe(tmp_path / "folder"))
    (folder / "modules.json").write_text(steps)
    with pytest.raises(UserError, match="download the model again"):
        load_sentences(folder, name="tiny")


def test_a_model_with_a_default_prompt_is_refused(tmp_path: Path) -> None:
    folder = with_weights(describe(tmp_path / "folder"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query", "prompts": {"query": "query: "}}))
    with pytest.raises(UserError, match="puts a prompt before each text"):
        load_sentences(folder, name="tiny")


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, name: str) -> Any:
        raise UserError(f"`{module}` cannot be imported: install it with `pip install clipkit[{name}]`")

    monkeypatch.setattr(sentences, "extra", missing)
    with pytest.raises(UserError, match=r"`transformers` cannot be imported: install it with `pip install clipkit\[hf\]`"):
        load_sentences(with_weights(describe(tmp_path / "folder")), name="tiny")
