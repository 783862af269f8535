"""Files of tensors. They may be cut, damaged, or of another kind: one line says what is wrong. Nothing in them is run.

read_safetensors    tensors by name
read_shapes         their shapes alone
read_torch          whatever `torch.load(weights_only=True)` gives
check_types         that integers do not become weights
write_safetensors   with a checksum, and errors of the disk that are OSErrors
"""

import contextlib
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shards_spec.errors import UserError, is_refusal, reason

_CRC32 = "crc32"
_ERRNO = re.compile(r"\(os error (\d+)\)")
_REFUSED_NAME = re.compile(r"GLOBAL (\S+) (?:was not|whose)")  # words of torch's unpickler


class DamagedFileError(UserError):
    """A file does not hold what it should."""


def read_safetensors(path: Path, instead: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        instead: what to do where it is damaged, for the message.

    Raises:
        DamagedFileError: it is no such file, not a whole one, or its bytes are not those that were written.
        UserError: the system does not give it.
    """
    with _opened(path, instead) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        recorded = (file.metadata() or {}).get(_CRC32)
    if recorded not in (None, _crc32(tensors)):  # none in files of others, and of older versions
        raise DamagedFileError(f"{path} is damaged (its bytes are not those that were written): {instead}")
    return tensors


def read_shapes(path: Path, instead: str) -> dict[str, list[int]]:
    """The shapes of the tensors of a safetensors file, as its header tells them. Raises as `read_safetensors`."""
    with _opened(path, instead) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (it is no mapping)


@contextlib.contextmanager
def _opened(path: Path, instead: str) -> Iterator[Any]:
    try:
        with path.open("rb"), safe_open(path, "pt") as file:  # safetensors says of what it cannot open: there is none
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)})") from error
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is no whole safetensors file ({_first_line(error)}): {instead}") from error


def read_torch(path: Path, instead: str) -> Any:
    """What a file of `torch.save`, of any age, holds: tensors and plain values.

    Raises:
        DamagedFileError: it is no such file, not a whole one, or holds more than tensors and plain values.
        UserError: the system does not give it.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the strange things that damaged files hold
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: unpickling damaged bytes leads anywhere
        if isinstance(error, OSError) and is_refusal(error):
            raise UserError(f"{path} cannot be read ({reason(error)})") from error
        if isinstance(error, pickle.UnpicklingError) and (name := _REFUSED_NAME.search(str(error))):
            raise DamagedFileError(
                f"{path} holds {name[1]}: that is no tensor and no plain value, and nothing in a file is executed, or"
                f" the file is cut there: {instead}, or save its state dict again with safetensors"
            ) from error
        raise DamagedFileError(f"{path} is no whole PyTorch file ({_first_line(error)}): {instead}") from error


def check_types(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors of a file that would be copied into ours of another type, but for floats of another width.

    Raises:
        UserError: names the first of them.
    """
    for name, value in tensors.items():
        ours = own[name].dtype if name in own else value.dtype
        if value.dtype != ours and not (value.dtype.is_floating_point and ours.is_floating_point):
            kinds = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, ours))
            raise UserError("{}: {} is of type {}, expected {}: use another file".format(path, name, *kinds))


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors to a file, with a checksum of them all.

    Raises:
        OSError: it cannot be written, as on a full disk. safetensors' own error is none, and tells the number in words.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, path, {_CRC32: _crc32(tensors)})
    except SafetensorError as error:
        if (number := _ERRNO.search(str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _crc32(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = isal_zlib.crc32(
            tensors[name].flatten().view(torch.uint8).numpy(), isal_zlib.crc32(name.encode(), value)
        )
    return f"{value:08x}"


def _first_line(error: Exception) -> str:
    """What an error says of a file, in a few words."""
    if isinstance(error, pickle.UnpicklingError):
        return "it cannot be unpickled"  # torch's own words recommend to execute what is in it
    if isinstance(error, EOFError | OSError):
        return "it is cut"
    said = (str(error).splitlines() or [""])[0].removeprefix("Error while deserializing header: ").split(". ")[0]
    return f"{type(error).__name__} {said}" if isinstance(error, KeyError) or not said else said
