"""Encoders in files: what a description must say, what its programs must do, and what becomes of those that do something else."""

import importlib.util
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipkit import UserError
from clipkit.cli.options import identity
from clipkit.model.adapters.programs import Program
from clipkit.model.encoder import Encoder, load_encoder
from clipkit.model.tokenizer import END_OF_TEXT, Tokenizer
from tests.model.encoder_contract import pixels
from tests.model.encoders import PREPROCESS, Tower, save_traced, tower_weights
from tests.model.onnx_writer import FLOAT16, INT64, field, graph, node, value, write_image_tower, write_text_tower

IMAGE = 'image = "image.onnx"\nfeatures = "features"\nprojected = "projected"\n'
TABLE = np.random.default_rng(1).standard_normal((49_408, 16)).astype(np.float32)
SCALED = PREPROCESS.format(size=8, mean=0.485)
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


def described(folder: Path, text: str) -> Encoder:
    (folder / "encoder.toml").write_text(text)
    return load_encoder(str(folder / "encoder.toml"))


def scripted(folder: Path, model: nn.Module, text: str = 'image = "image.pt"\n', size: int = 8) -> Encoder:
    save_traced(model, torch.zeros(2, 3, size, size), folder / "image.pt")
    return described(folder, text + PREPROCESS.format(size=size, mean=0.485))


class Plain(nn.Module):
    """Pixels to their rows, whatever they are asked to be."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, pixels: Tensor) -> object:
        flat = pixels.flatten(1)
        answers = {
            "map": lambda: pixels,
            "row": lambda: flat[0],
            "number": lambda: flat.sum(),
            "nan": lambda: flat / (flat - flat),
            "first": lambda: flat[:1],
            "dictionary": lambda: {"features": flat[:, :7], "image_embeds": flat[:, :5]},
            "integers": lambda: flat.long(),
            "half": lambda: flat.half(),
            "empty": lambda: flat[:, :0],
        }
        return answers[self.kind]()


@needs_onnx
def test_an_onnx_towers_vectors_are_those_of_its_formula(tmp_path: Path) -> None:
    weights = tower_weights()
    write_image_tower(tmp_path / "image.onnx", weights)
    write_text_tower(tmp_path / "text.onnx", TABLE)
    encoder = described(tmp_path, IMAGE + 'text = "text.onnx"\ncontext = 12\nlogit_scale = 50\n' + SCALED)
    pixels_BCHW = pixels(encoder)
    flat = (
        (pixels_BCHW.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    ).flatten(1)
    features = np.maximum(flat.numpy() @ weights["first"].astype(float), 0)
    projected = features @ weights["second"].astype(float)
    encoded = encoder.encode_images(pixels_BCHW)
    np.testing.assert_allclose(encoded.features_BF.numpy(), features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(encoded.projected_BD.numpy(), projected / np.linalg.norm(projected, axis=1, keepdims=True), atol=1e-5)
    rows = TABLE[Tokenizer(12)(["a cat on a mat"], padded=True).numpy()].mean(axis=1)
    np.testing.assert_allclose(encoder.encode_texts(["a cat on a mat"]).numpy(), rows / np.linalg.norm(rows), atol=1e-5)
    assert encoder.logit_scale == 50


def test_a_torchscript_towers_vectors_are_those_of_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tower().eval()
    encoder = scripted(tmp_path, model, 'image = "image.pt"\nfeatures = 0\nprojected = 1\n', size=16)
    batch = pixels(encoder)
    mean, deviation = (torch.tensor(three).view(3, 1, 1) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        features, projected = model((batch / 255 - mean) / deviation)
    torch.testing.assert_close(encoder.encode_images(batch).features_BF, features)
    torch.testing.assert_close(encoder.encode_images(batch).projected_BD, nn.functional.normalize(projected))
    assert not encoder.has_text


def test_outputs_are_named_by_position_or_by_name(tmp_path: Path) -> None:
    named = scripted(tmp_path, Plain("dictionary"), 'image = "image.pt"\nfeatures = "features"\nprojected = "image_embeds"\n')
    assert (named.feature_width, named.width) == (7, 5)
    encoder = scripted(tmp_path, Tower(), 'image = "image.pt"\nfeatures = "0"\nprojected = 1\n', size=16)
    assert (encoder.feature_width, encoder.width) == (24, 10)
    swapped = scripted(tmp_path, Tower(), 'image = "image.pt"\nfeatures = 1\nprojected = 0\n', size=16)
    assert (swapped.feature_width, swapped.width) == (10, 24)
    alone = scripted(tmp_path, Tower(), 'image = "image.pt"\nprojected = 0\n', size=16)
    assert (alone.feature_width, alone.width) == (24, 24)


@needs_onnx
def test_the_names_of_files_and_outputs_are_no_part_of_the_fingerprint_but_the_weights_beside_the_file_are(tmp_path: Path) -> None:
    write_image_tower(tmp_path / "image.onnx", tower_weights(), location="w.bin")
    by_name = described(tmp_path, IMAGE + SCALED).fingerprint
    assert described(tmp_path, 'image = "image.onnx"\nfeatures = 0\nprojected = 1\nbatch = 4\n' + SCALED).fingerprint == by_name
    assert described(tmp_path, 'image = "image.onnx"\nfeatures = 1\nprojected = 1\n' + SCALED).fingerprint != by_name
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    assert described(tmp_path, IMAGE + SCALED).fingerprint != by_name


@needs_onnx
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch_gives_the_vectors_of_a_free_one(tmp_path: Path, batch: int) -> None:
    for name, rows in (("free", "batch"), ("fixed", batch)):
        (tmp_path / name).mkdir()
        write_image_tower(tmp_path / name / "image.onnx", tower_weights(), batch=rows)
        write_text_tower(tmp_path / name / "text.onnx", TABLE, batch=rows)
    text = IMAGE + 'text = "text.onnx"\ncontext = 12\nlogit_scale = 100\n' + SCALED
    free, fixed = (described(tmp_path / name, text) for name in ("free", "fixed"))
    for one, other in zip(free.encode_images(pixels(free)), fixed.encode_images(pixels(free)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(free.encode_texts(["a", "b b", "c"]), fixed.encode_texts(["a", "b b", "c"]), atol=1e-6, rtol=1e-6)


def test_a_program_traced_for_one_picture_is_told_apart_and_runs_with_batch_one(tmp_path: Path) -> None:
    class One(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels[:1].reshape(1, -1)[:, :6] * 2

    encoder = scripted(tmp_path, One())
    with pytest.raises(UserError, match=r"answers 5 rows with \(1, 6\).*free batch dimension"):
        encoder.encode_images(pixels(encoder))
    single = scripted(tmp_path, One(), 'image = "image.pt"\nbatch = 1\n')
    assert len(single.encode_images(pixels(single)).projected_BD.unique(dim=0)) == 5


@needs_onnx
def test_half_precision_pixels_and_32_bit_tokens_with_a_mask_are_what_the_file_asks_for(tmp_path: Path) -> None:
    weights = {name: array.astype(np.float16) for name, array in tower_weights().items()}
    write_image_tower(tmp_path / "half.onnx", weights, kind=FLOAT16)
    write_image_tower(tmp_path / "image.onnx", tower_weights())
    halves = described(tmp_path, IMAGE.replace("image.onnx", "half.onnx") + SCALED)
    whole = described(tmp_path, IMAGE + SCALED)
    encoded = halves.encode_images(pixels(halves)).projected_BD
    assert encoded.dtype == torch.float32
    assert (encoded * whole.encode_images(pixels(halves)).projected_BD).sum(1).min() > 0.999

    seen = [node("Cast", ["tokens"], ["a"], field(1, "to") + field(3, 1) + field(20, 2))]
    seen += [node("Cast", ["attention_mask"], ["b"], field(1, "to") + field(3, 1) + field(20, 2)), node("Mul", ["a", "b"], ["text"])]
    int32 = 6
    inputs = [value("tokens", ("batch", 9), int32), value("attention_mask", ("batch", 9), INT64)]
    (tmp_path / "text.onnx").write_bytes(graph(seen, [], inputs, [value("text", ("batch", 9))]))
    program = Program(tmp_path / "text.onnx", (9,))
    tokens = Tokenizer(9)(["a cat", "a very long text about very many cats on mats"], padded=True)
    assert torch.equal(program(tokens)["text"].long(), tokens)
    assert (tokens == END_OF_TEXT).sum() == 2
    masked = Tokenizer(9)(["a cat"], padded=True)
    masked[0, 6] = 5  # after the end: what the mask hides
    assert program(masked)["text"][0, 6] == 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("map", r"output `0` .* has shape \(1, 3, 8, 8\).*pooled"),
        ("number", r"answers 1 rows with \(\)"),
        ("nan", "values that are no numbers"),
        ("row", "answers 1 rows with"),
        ("empty", r"shape \(1, 0\)"),
    ],
)
def test_a_program_that_answers_with_something_else_is_one_sentence(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scripted(tmp_path, Plain(kind))


@pytest.mark.parametrize("kind", ["integers", "half"])
def test_answers_of_other_types_become_float32(tmp_path: Path, kind: str) -> None:
    encoder = scripted(tmp_path, Plain(kind))
    assert encoder.encode_images(pixels(encoder)).features_BF.dtype == torch.float32


def test_a_picture_whose_vector_is_no_number_is_told_when_it_comes(tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1).sqrt()

    encoder = scripted(tmp_path, Root(), 'image = "image.pt"\n')
    assert encoder.width == 192
    with pytest.raises(UserError, match="values that are no numbers"):
        encoder.encode_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@needs_onnx
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (IMAGE + "imge = 1\n" + SCALED, "unknown knob `imge` in .*encoder.toml`: did you mean `image`"),
        (IMAGE + SCALED.replace("crop", "crops"), "unknown knob `preprocess.crops` .* did you mean `preprocess.crop`"),
        (IMAGE + "zzz = 1\n" + SCALED, "unknown knob `zzz` .* it takes image, features"),
        (IMAGE, "knob `preprocess` is missing in .*encoder.toml`: set it there$"),
        (SCALED, "knob `image` is missing"),
        (IMAGE + SCALED.replace("mean =", "std ="), "not valid TOML"),
        (IMAGE + SCALED.replace("0.225", "0"), "deviations should be greater than 0"),
        (IMAGE + SCALED.replace("0.485", "nan"), "preprocess.mean"),
        (IMAGE + SCALED.replace("size = 8", "size = 8000"), "preprocess.size"),
        (IMAGE + SCALED.replace("crop =", 'interpolation = "nearest", crop ='), "preprocess.interpolation"),
        ('image = "/etc/image.onnx"\n' + SCALED, "relative to the description's folder"),
        ('image = "../image.onnx"\n' + SCALED, "relative to the description's folder"),
        ('image = "image.pkl"\n' + SCALED, "should end in one of .onnx, .pt"),
        ('image = "gone.onnx"\n' + SCALED, "no file `.*gone.onnx`"),
        ('image = "image.onnx"\n' + SCALED, r"answers with 2 outputs \(features, projected\): name one of them as `projected`"),
        (IMAGE.replace('"projected"', '"embeds"') + SCALED, "has no output `embeds`, which `projected` names: it has features, projected"),
        (IMAGE.replace('"features"', "7") + SCALED, "has no output `7`, which `features` names"),
        (IMAGE.replace('"features"', "true") + SCALED, "knob `features` .* an output's name, or its position"),
        (IMAGE + SCALED.replace("size = 8", "size = 16"), r"takes \(batch, 3, 8, 8\), the description gives \(B, 3, 16, 16\)"),
        (IMAGE + SCALED.replace("crop =", 'layout = "BHWC", crop ='), r"the description gives \(B, 8, 8, 3\)"),
        (IMAGE + 'text = "text.onnx"\n' + SCALED, "logit_scale should be given where text is"),
        (IMAGE + "logit_scale = 10\n" + SCALED, "name its file as text"),
        (IMAGE + 'text = "text.onnx"\nlogit_scale = 100\n' + SCALED, r"takes \(batch, 12\), the description gives \(B, 77\)"),
        (IMAGE + 'text = "other.onnx"\ncontext = 12\nlogit_scale = 100\n' + SCALED, "7 numbers per text and .* with 16 per picture"),
        (IMAGE + 'text = "image.onnx"\ncontext = 12\nlogit_scale = 100\n' + SCALED, "mend its size, layout or context"),
        ('image = "text.onnx"\n' + SCALED, r"takes \(batch, 12\)"),
        ('image = "broken.onnx"\n' + SCALED, "broken.onnx` cannot be read as ONNX"),
        ('image = "garbled.onnx"\n' + SCALED, "garbled.onnx` cannot be loaded as ONNX"),
        ('image = "broken.pt"\n' + SCALED, "broken.pt` cannot be loaded as TorchScript"),
        ('image = "two.onnx"\n' + SCALED, "has the inputs a: tensor.float., b: tensor.float.: export one tower alone"),
        ('image = "one.onnx"\nbatch = 3\n' + SCALED, "takes 1 at once, the description's `batch` is 3"),
    ],
)
def test_a_description_that_does_not_fit_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    write_image_tower(tmp_path / "image.onnx", tower_weights())
    write_image_tower(tmp_path / "one.onnx", tower_weights(), batch=1, outputs=("projected",))
    write_text_tower(tmp_path / "text.onnx", TABLE)
    write_text_tower(tmp_path / "other.onnx", TABLE[:, :7].copy())
    (tmp_path / "broken.onnx").write_bytes(b"hello, this is no model" * 9)
    (tmp_path / "garbled.onnx").write_bytes(
        graph([node("NoSuchThing", ["a"], ["b"])], [], [value("a", (1, 3, 8, 8))], [value("b", (1, 2))])
    )
    (tmp_path / "broken.pt").write_bytes(b"hello, this is no model" * 9)
    inputs = [value(name, ("batch", 3, 8, 8)) for name in "ab"]
    (tmp_path / "two.onnx").write_bytes(graph([node("Add", ["a", "b"], ["c"])], [], inputs, [value("c", ("batch", 3, 8, 8))]))
    with pytest.raises(UserError, match=message) as caught:
        described(tmp_path, text)
    assert "\n" not in str(caught.value)


@needs_onnx
def test_an_onnx_file_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_image_tower(tmp_path / "in" / "image.onnx", tower_weights(), location="../secret.bin")
    assert (tmp_path / "secret.bin").exists()
    with pytest.raises(UserError, match=r"keeps weights at '../secret.bin', which is outside its folder"):
        described(tmp_path / "in", IMAGE + SCALED)


def test_an_archive_of_openais_is_never_run(tmp_path: Path) -> None:
    class Published(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number, name in enumerate(("input_resolution", "context_length", "vocab_size")):
                self.register_buffer(name, torch.tensor(number))

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1) * self.vocab_size

    with pytest.raises(UserError, match="an archive of OpenAI's: give it as `openai:NAME@"):
        scripted(tmp_path, Published())


def test_without_a_file_of_that_name_and_without_onnxruntime_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no recipe at `.*nowhere.toml`"):
        load_encoder(str(tmp_path / "nowhere.toml"))
    write_image_tower(tmp_path / "image.onnx", tower_weights())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"`onnxruntime` cannot be imported .*pip install clipkit\[onnx\]"):
        described(tmp_path, IMAGE + SCALED)


def test_the_arithmetic_of_an_exported_program_is_its_own(tmp_path: Path) -> None:
    scripted(tmp_path, Tower(), 'image = "image.pt"\nfeatures = 0\nprojected = 1\n', size=16)
    with pytest.raises(UserError, match="computes as it was exported: leave out precision `bf16`"):
        load_encoder(str(tmp_path / "encoder.toml"), precision="bf16")


@pytest.mark.skipif(
    importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None, reason="onnx is not installed"
)
@needs_onnx
def test_what_torch_exports_as_onnx_answers_like_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tower().eval()
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["pixels"], "output_names": ["features", "projected"]}
        torch.onnx.export(model, (torch.zeros(2, 3, 16, 16),), tmp_path / "image.onnx", dynamo=True, dynamic_shapes=shapes, **names)
    exported = described(tmp_path, IMAGE + PREPROCESS.format(size=16, mean=0.485))
    plain = scripted(tmp_path, model, 'image = "image.pt"\nfeatures = 0\nprojected = 1\n', size=16)
    for one, other in zip(exported.encode_images(pixels(plain)), plain.encode_images(pixels(plain)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert [file.name for file in exported._image._files] in (["image.onnx"], ["image.onnx", "image.onnx.data"])


def test_a_run_is_another_one_where_a_file_that_a_description_names_has_changed(tmp_path: Path) -> None:
    suite = SimpleNamespace(name="none", tasks=[])
    write_image_tower(tmp_path / "image.onnx", tower_weights(), location="w.bin")
    (tmp_path / "encoder.toml").write_text(IMAGE + SCALED)

    def weights() -> str:
        return identity(str(tmp_path / "encoder.toml"), suite, tmp_path)["weights"]  # type: ignore[arg-type]

    found = [weights(), weights()]
    for file in ("w.bin", "image.onnx", "encoder.toml"):
        with (tmp_path / file).open("ab") as opened:
            opened.write(b"\n")
        found.append(weights())
    assert len(set(found)) == 4
    assert found[0] == found[1]
