import hashlib

import pyarrow as pa
import pytest

from clipkit.dataset.keyed_hashes import keyed_hash, keys_of, query_salts
from clipkit.dataset.shards import pair_key

KEYS = ["0" * 32, "f" * 32, pair_key("http://a/1", "text"), pair_key("http://a/2", "text"), "0" * 31 + "1"]


def mixed(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def test_keyed_hashes_equal_the_definition_in_plain_integers() -> None:
    salt = int.from_bytes(hashlib.blake2b(b"5\nshards", digest_size=8).digest(), "little")
    expected = [mixed(mixed((salt + int(key[:16], 16)) % 2**64) ^ int(key[16:], 16)) for key in KEYS]
    assert keyed_hash(pa.array(KEYS), 5, "shards").tolist() == expected
    assert keyed_hash(pa.chunked_array([KEYS[:2], [], KEYS[2:]], pa.large_string()), 5, "shards").tolist() == expected
    assert keyed_hash(pa.chunked_array([], pa.string()), 0, "shards").tolist() == []


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_keys_are_read_as_numbers_from_whole_and_sliced_columns(kind: pa.DataType) -> None:
    for part in (slice(0, 5), slice(1, 4), slice(3, 5), slice(2, 2)):
        high, low = keys_of(pa.array(KEYS, kind)[part])
        assert [f"{first:016x}{second:016x}" for first, second in zip(high.tolist(), low.tolist(), strict=True)] == KEYS[part]


@pytest.mark.parametrize("keys", [["0" * 31], ["0" * 33, "0" * 31], [None], [""]])
def test_a_key_of_another_length_is_refused(keys: list[str]) -> None:
    with pytest.raises(ValueError, match="32 hex characters"):
        keys_of(pa.array(keys, pa.string()))


def test_a_salt_depends_on_the_normalised_query_and_the_seed_alone() -> None:
    alone, among = query_salts(["Photo"], 7), query_salts(["dog", "photo"], 7)
    assert alone[0] == among[1] != among[0]
    assert query_salts(["photo"], 8)[0] != alone[0]
    assert int(alone[0]) == int.from_bytes(hashlib.blake2b(b"7\nphoto", digest_size=8).digest(), "little")
    golden = query_salts(["Golden", "golden"], 7, mode="metaclip")
    assert golden[0] != golden[1] == query_salts(["Golden"], 7)[0]
