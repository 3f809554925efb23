"""A checkpoint of TensorFlow is read from its table and its data."""

import struct

import numpy as np
import pytest

from tools.trained_zoo.tensorflow import checkpoint


def number(value):
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def block(entries):
    """Keys leave out what they share with the one before."""
    found, before = b"", b""
    for key, value in entries:
        shared = max(n for n in range(len(before) + 1) if key.startswith(before[:n]))
        found += number(shared) + number(len(key) - shared) + number(len(value))
        found, before = found + key[shared:] + value, key
    return found + struct.pack("<II", 0, 1)


def described(array, offset):
    """A message: type, shape, offset, size and a checksum."""
    dims = b"".join(
        b"\x12" + number(len(d)) + d for d in (b"\x08" + number(n) for n in array.shape)
    )
    place = b"\x20" + number(offset) if offset else b""
    size = b"\x28" + number(array.nbytes)
    return b"\x08\x01\x12" + number(len(dims)) + dims + place + size + b"\x35abcd"


@pytest.mark.parametrize("files", [1, 2])
def test_the_tensors_of_a_checkpoint(tmp_path, files, rng):
    names = ("conv2d/bias", "conv2d/kernel", "conv2d_1/bias", "scalar")
    shapes = ((300,), (2, 3, 1, 5), (7,), ())
    arrays = [rng.standard_normal(shape).astype("<f4") for shape in shapes]
    data, entries = b"", [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    for name, array in zip(names, arrays, strict=True):
        entries.append((name.encode(), described(array, len(data))))
        data += array.tobytes()
    table, places = b"", []
    for part in (entries[:2], entries[2:]) if files == 2 else (entries,):
        content = block(part)
        places.append((part[-1][0], number(len(table)) + number(len(content))))
        table += content + b"\0crc4"
    content = block(places)
    footer = number(9999) + number(8) + number(len(table)) + number(len(content))
    index, values = tmp_path / "index", tmp_path / "data"
    index.write_bytes(table + content + footer.ljust(40, b"\0") + b"magic..."[:8])
    values.write_bytes(data)
    found = checkpoint(index, values)
    assert [*found] == [*names]
    for name, array in zip(names, arrays, strict=True):
        np.testing.assert_array_equal(found[name], array)
