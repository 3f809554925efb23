"""What a file is that is not an ONNX model, by its first bytes, and what its owner can do."""

from __future__ import annotations

import re
from typing import NamedTuple

HEAD = 1024  # bytes that are looked at
_LEAST_ZEROS = 64  # fewer of them say nothing
_SHOWN = 40  # characters of a text that are quoted
_LONGEST_CHARACTER = 4  # bytes, in UTF-8
_FETCH = "fetch or export it again"
_SAVE = "load it with onnx.load and this format, and save it with onnx.save"


class Kind(NamedTuple):
    """A kind of file that is taken for a model.

    Attributes:
        what: completes "the file …".
        advice: what to do, as a command.
    """

    what: str
    advice: str


LFS = Kind("is a Git LFS pointer, not the file itself", "run `git lfs pull` where it comes from")
EMPTY = Kind("is empty", _FETCH)
_ZEROS = Kind("begins with zeros alone: a download or copy did not finish", "fetch it again")


def _unpack(command: str) -> str:
    return f"unpack it: {command} -c < FILE > MODEL"  # by redirection, whatever its name ends in


_PACKED = "unpack it, and give the .onnx file inside"

# A pattern of the first bytes → what they begin; the first that matches counts. Letters of text
# formats match in either case, behind a byte order mark and white space.
_SIGNATURES: tuple[tuple[bytes, Kind], ...] = (
    (rb"version https://git-lfs", LFS),
    (rb"\x1f\x8b", Kind("is compressed with gzip", _unpack("gunzip"))),
    (rb"BZh[1-9]", Kind("is compressed with bzip2", _unpack("bunzip2"))),
    (rb"\xfd7zXZ\0", Kind("is compressed with xz", _unpack("unxz"))),
    (rb"\x28\xb5\x2f\xfd", Kind("is compressed with Zstandard", _unpack("unzstd"))),
    (rb"7z\xbc\xaf\x27\x1c", Kind("is a 7z archive", _PACKED)),
    (rb".{257}ustar", Kind("is a tar archive", _PACKED)),
    (
        rb"PK\x03\x04.{26}[^/]*/(?:data\.pkl|version|byteorder|\.format_version|constants\.pkl)",
        Kind("is a PyTorch checkpoint or program", "export it with torch.onnx.export"),
    ),
    (rb"PK\x03\x04.{26}[^/]*\.npy", Kind("is an .npz file of numpy arrays", "give the model")),
    (
        rb"PK\x03\x04.{26}(?:metadata|config)\.json",
        Kind("is a Keras model", "export it with model.export(..., format='onnx') or tf2onnx"),
    ),
    (rb"PK\x03\x04", Kind("is a zip archive", _PACKED)),
    (
        rb"\x80[\x02-\x05][^\0]",
        Kind(
            "is a Python pickle, perhaps a PyTorch checkpoint",
            "load it where it was made, and export the model with torch.onnx.export",
        ),
    ),
    (
        rb"\x89HDF\r\n\x1a\n",
        Kind("is an HDF5 file, perhaps a Keras model", "convert it with tf2onnx"),
    ),
    (rb".{4}TFL3", Kind("is a TensorFlow Lite model", "convert it with tf2onnx --tflite")),
    (
        rb".{4}ORTM",
        Kind("is a model in onnxruntime's ORT format", "give the .onnx file that it was made from"),
    ),
    (rb"GGUF", Kind("is a GGUF file of weights", "export the model itself to ONNX")),
    (rb"\x93NUMPY", Kind("is a numpy array", "give the model")),
    (
        rb".{6}\0\0\{",
        Kind(
            "is a safetensors file, which holds weights and no graph",
            "export the model itself to ONNX",
        ),
    ),
    (rb"[pf]trt", Kind("is a TensorRT engine", "give the .onnx file that it was built from")),
    (
        rb"\x0a[\x80-\xff]*[\0-\x7f]\x0a[\x01-\x7f][\x20-\x7e]+\x12[\x01-\x7f][A-Z_][\x20-\x7e]+",
        Kind("is a TensorFlow graph", "convert it with tf2onnx --graphdef"),
    ),
    (
        rb"\x08\x01\x12[\x80-\xff]*[\0-\x7f]\x0a[\x80-\xff]*[\0-\x7f]\x12",
        Kind("is a TensorFlow SavedModel", "convert its folder with tf2onnx --saved-model"),
    ),
)
_TEXTS: tuple[tuple[bytes, Kind], ...] = (
    (
        rb"<!doctype html|<html|<head|<body",
        Kind(
            "is a web page, not the file behind it",
            "download the file itself; a log-in or a 'raw' link may be missing",
        ),
    ),
    (
        rb"(?:<\?xml|<!--|<[a-z:]+(?:\s|/?>)).*",
        Kind("is XML, perhaps the error of a download", "look into it, and fetch the file again"),
    ),
    (rb"\{.*\"irVersion\"", Kind("is an ONNX model as JSON", _SAVE)),
    (
        rb"[{\[]\s*(?:[\"{\[\]}]|-?\d)",
        Kind("is JSON, perhaps the answer of a server", "look into it, and fetch the file again"),
    ),
    (
        rb"(?:ir_version\s*:|<\s*ir_version\s*:|opset_import\s*\{|producer_name\s*:)",
        Kind("is an ONNX model as text", _SAVE),
    ),
)
_START_OF_TEXT = rb"(?:\xef\xbb\xbf)?\s*"


def kind_of(head: bytes, size: int) -> Kind | None:
    """Return what a file is that is not an ONNX model, None if nothing is known about it.

    Args:
        head: its first bytes, ``HEAD`` of them if it has so many.
        size: number of bytes of the whole file.
    """
    if not size:
        return EMPTY
    for pattern, kind in _SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return kind
    if len(head) >= min(size, _LEAST_ZEROS) > 1 and not any(head):
        return _ZEROS
    return _text(head)


def _text(head: bytes) -> Kind | None:
    for pattern, kind in _TEXTS:
        if re.match(_START_OF_TEXT + pattern, head, re.DOTALL | re.IGNORECASE):
            return kind
    text = head.decode("utf-8", "ignore")
    lost = len(head) - len(text.encode())  # the head may end within a character
    if lost > _LONGEST_CHARACTER or not all(c.isprintable() or c in "\r\n\t" for c in text):
        return None
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return Kind(f"is a text that begins with {first[:_SHOWN]!r}", "give the ONNX file itself")
