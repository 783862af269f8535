"""The methods, a folder each, and what they share. Torch and timm only: nothing here knows of data or the trainer.

interface.py says what the loop, the evaluation, fine-tuning and the report ask of a method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from training.methods import cav_mae, crossmae
from training.methods.interface import Model
from training.methods.shared.config_values import from_dict


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method, by what everything beyond its own folder needs to know of it."""

    title: str  # for people: name, authors, year
    config: type  # of config.json's "model"
    model: Callable[[Any], Model]  # built of its config
    variants: tuple[str, ...]  # names of --variant; the first is the method itself
    with_variant: Callable[[Any, str], Any]  # its config as a variant

    def build(self, config: Any) -> Model:
        """A fresh model, its weights drawn from torch's generator."""
        return self.model(config)

    def config_from_dict(self, values: dict[str, Any]) -> Any:
        """Its config of config.json's "model"; the missing takes its default.

        Raises:
            ValueError: an unknown name, a wrong type, or a value that is not allowed.
        """
        return from_dict(self.config, values)


METHODS: dict[str, Method] = {
    "crossmae": Method(
        title="CrossMAE (Guo et al., CVPR 2024)",
        config=crossmae.CrossMAEConfig,
        model=crossmae.CrossMAE,
        variants=tuple(crossmae.VARIANTS),
        with_variant=crossmae.with_variant,
    ),
    "cav-mae": Method(
        title="CAV-MAE (Gong et al., ICLR 2023)",
        config=cav_mae.CAVMAEConfig,
        model=cav_mae.CAVMAE,
        variants=tuple(cav_mae.VARIANTS),
        with_variant=cav_mae.with_variant,
    ),
}


def method_of(config: dict[str, Any]) -> Method:
    """The method of a run, as its config.json names it; one that names none is CrossMAE's.

    Raises:
        ValueError: it names another than these.
    """
    name = cast(str, config.get("method", "crossmae"))
    if name not in METHODS:
        raise ValueError(f"method is {name!r}: known are {', '.join(METHODS)}")
    return METHODS[name]
