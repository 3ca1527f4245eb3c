"""Where an ONNX file keeps its weights: every way to say it, and every way to lie about it."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.model.adapters import onnx_data
from clipkit.model.adapters.onnx_data import MAX_DEPTH, MAX_FIELDS, UnreadableOnnx, external_files
from tests.model.encoders import tower_weights
from tests.model.onnx_writer import field, graph, node, tensor, value, varint, write_image_tower

WEIGHT = np.zeros((2, 2), np.float32)


def model(path: Path, *nodes: bytes, weights: tuple[bytes, ...] = ()) -> Path:
    path.write_bytes(graph(nodes, weights, [value("x", (2, 2))], [value("y", (2, 2))]))
    return path


def test_a_file_that_holds_its_weights_names_no_other(tmp_path: Path) -> None:
    assert external_files(write_image_tower(tmp_path / "x.onnx", tower_weights())) == []


def test_files_are_found_in_the_graph_in_constants_and_in_graphs_inside_it(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(16))
    constant = field(1, "value") + field(5, tensor("c", WEIGHT, "b")) + field(20, 4)
    inner = node("Constant", [], ["c"], field(1, "value") + field(5, tensor("c", WEIGHT, "c")) + field(20, 4))
    branch = field(1, "then_branch") + field(6, field(1, inner)) + field(20, 5)
    path = model(
        tmp_path / "x.onnx", node("Constant", [], ["c"], constant), node("If", ["x"], ["y"], branch), weights=(tensor("w", WEIGHT, "a"),)
    )
    assert [file.name for file in external_files(path)] == ["a", "b", "c"]


def in_attribute(*parts: bytes) -> bytes:
    return node("Constant", [], ["c"], field(1, "value") + b"".join(parts))


OUTSIDE = tensor("w", WEIGHT, "../secret")
WAYS_IN = {
    "an attribute's tensor": in_attribute(field(5, OUTSIDE)),
    "its list of tensors": in_attribute(field(10, OUTSIDE)),
    "its graph": in_attribute(field(6, field(5, OUTSIDE))),
    "its list of graphs": in_attribute(field(11, field(5, OUTSIDE))),
    "its sparse tensor's values": in_attribute(field(22, field(1, OUTSIDE))),
    "its sparse tensor's places": in_attribute(field(22, field(2, OUTSIDE))),
    "its list of sparse tensors": in_attribute(field(23, field(1, OUTSIDE))),
    "a sparse weight of its graph": in_attribute(field(6, field(15, field(1, OUTSIDE)))),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_every_way_in_which_a_file_can_be_named_is_looked_at(way: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    with pytest.raises(UnreadableOnnx, match="outside its folder"):
        external_files(model(tmp_path / "in" / "x.onnx", WAYS_IN[way]))


@pytest.mark.parametrize(
    "part", [field(20, field(1, field(5, OUTSIDE))), field(20, field(2, field(5, OUTSIDE)))], ids=["training", "algorithm"]
)
def test_graphs_for_training_are_looked_at_too(part: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(model(tmp_path / "x.onnx").read_bytes() + part)
    with pytest.raises(UnreadableOnnx, match="outside its folder"):
        external_files(tmp_path / "x.onnx")


def test_functions_are_looked_at_too(tmp_path: Path) -> None:
    for part in (field(25, field(7, in_attribute(field(5, OUTSIDE)))), field(25, field(11, field(5, OUTSIDE)))):
        (tmp_path / "x.onnx").write_bytes(model(tmp_path / "x.onnx").read_bytes() + part)
        with pytest.raises(UnreadableOnnx, match="outside its folder"):
            external_files(tmp_path / "x.onnx")


@pytest.mark.parametrize("place", ["../secret", "sub/../../secret", "/etc/passwd", "", "..\\secret", "a/../../../b"])
def test_places_outside_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    with pytest.raises(UnreadableOnnx, match="outside its folder"):
        external_files(model(tmp_path / "in" / "x.onnx", weights=(tensor("w", WEIGHT, place),)))


def test_a_link_that_leads_outside_is_refused_and_a_file_that_is_missing_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    os.symlink(tmp_path / "secret", tmp_path / "in" / "link")
    with pytest.raises(UnreadableOnnx, match="a link that leads outside"):
        external_files(model(tmp_path / "in" / "x.onnx", weights=(tensor("w", WEIGHT, "link"),)))
    with pytest.raises(UnreadableOnnx, match="'gone', which is not beside it"):
        external_files(model(tmp_path / "in" / "x.onnx", weights=(tensor("w", WEIGHT, "gone"),)))
    for memory in ("*/_ORT_MEM_ADDR_/*", "\0", "x" * 4_000):
        with pytest.raises(UnreadableOnnx):
            external_files(model(tmp_path / "in" / "x.onnx", weights=(tensor("w", WEIGHT, memory),)))


def test_graphs_inside_graphs_end_somewhere(tmp_path: Path) -> None:
    inner = node("Identity", ["x"], ["y"])
    for _ in range(MAX_DEPTH):
        inner = node("If", ["x"], ["y"], field(1, "then_branch") + field(6, field(1, inner)) + field(20, 5))
    with pytest.raises(UnreadableOnnx, match="deep in each other"):
        external_files(model(tmp_path / "x.onnx", inner))


def test_every_file_that_is_cut_short_is_refused_or_names_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(16))
    whole = model(tmp_path / "x.onnx", weights=(tensor("w", WEIGHT, "weights"),)).read_bytes()
    path, found = tmp_path / "y.onnx", []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found += external_files(path)
        except UnreadableOnnx:
            continue
    assert {file.name for file in found} <= {"weights"}


def test_more_fields_than_any_graph_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted through all messages: each of the two nodes has few."""
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x08\x01" * (MAX_FIELDS + 1))
    monkeypatch.setattr(onnx_data, "MAX_FIELDS", 100)
    with pytest.raises(UnreadableOnnx, match="more than 100 fields"):
        external_files(path)
    model(path, field(3, "name") * 60, field(3, "name") * 60)
    with pytest.raises(UnreadableOnnx, match="more than 100 fields"):
        external_files(path)
    monkeypatch.setattr(onnx_data, "MAX_FIELDS", 200)
    assert external_files(path) == []


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_end_in_a_list_or_in_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    with contextlib.suppress(UnreadableOnnx):
        assert isinstance(external_files(path), list)


def test_a_number_that_never_ends_is_refused(tmp_path: Path) -> None:
    for data in (b"\x08" + b"\xff" * 11, b"", varint(7 << 3 | 2) + varint(2**40), b"\x0b"):
        (tmp_path / "x.onnx").write_bytes(data)
        with pytest.raises(UnreadableOnnx):
            external_files(tmp_path / "x.onnx")
