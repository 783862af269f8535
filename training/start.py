"""What the weights of a new run start from: --init, --init-visual, --init-audio, --teacher."""

from typing import Any

from torch import Tensor

from shards_spec.errors import UserError
from training.checkpoint import WEIGHTS_FILE
from training.config import TrainConfig
from training.initial_weights import initialise, initialise_from_run, take_teacher
from training.methods import METHODS
from training.methods.crossmae import CrossMAE
from training.methods.interface import Model
from training.tensor_files import check_types, read_safetensors
from training.trained import FbankScale, read_trained


def start_from(model: Model, config: TrainConfig[Any], scale: FbankScale) -> list[str]:
    """Loads what the options name; what is left keeps its start from the seed. Returns the lines to print.

    Args:
        scale: what the model's fbanks are normalised with.

    Raises:
        UserError: a file or run cannot be read or does not fit, or the method does not start from such.
    """
    if isinstance(model, CrossMAE):
        return _start_crossmae(model, config, scale)
    for name in ("init_visual", "init_audio", "teacher"):
        if getattr(config, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: {config.method} does not start from one, give --init RUN")
    return [] if config.init is None else _from_same_method(model, config, scale)


def _start_crossmae(model: CrossMAE, config: TrainConfig[Any], scale: FbankScale) -> list[str]:
    said = []
    if config.init is not None:
        said += initialise_from_run(model, config.init, scale)
    if config.init_visual is not None or config.init_audio is not None:
        said += initialise(model, visual=config.init_visual, audio=config.init_audio, scale=scale)
    if config.teacher is not None:
        said += take_teacher(model, config.teacher, scale)
    elif config.model.embedding.enabled and config.model.embedding.targets == "teacher":
        raise UserError("--model.embedding.targets teacher needs --teacher RUN, the run of the first stage")
    return said


def _from_same_method(model: Model, config: TrainConfig[Any], scale: FbankScale) -> list[str]:
    """Every weight of a run of the same method and model."""
    assert config.init is not None
    trained = read_trained(config.init)
    folder, (mean, std) = trained.folder, (trained.scale.mean, trained.scale.std)
    if trained.method is not METHODS[config.method] or trained.is_finetuned:
        raise UserError(f"--init: {folder} is no pre-training of {config.method}")
    if trained.model != config.model:
        raise UserError(f"--init: {folder} holds another model: give the --preset, --variant and --model of that run")
    if trained.scale != scale:
        raise UserError(f"--init: {folder} was trained on another scale: give --fbank-mean {mean} --fbank-std {std}")
    state: dict[str, Tensor] = read_safetensors(folder / WEIGHTS_FILE, "use another checkpoint")
    check_types(state, model.state_dict(), folder / WEIGHTS_FILE)
    model.load_state_dict(state)
    return [f"{len(state)} tensors from {folder}"]
