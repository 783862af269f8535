"""CAV-MAE's runs (Gong et al., ICLR 2023, Sec. 4.1 and Table 4; the authors' scripts where these part).

make-shards ... --frames 10 --frame-fit crop
accelerate launch train.py --preset cav-mae-base --data shards/as2m --out runs/cav-mae --mixed-precision fp16
"""

from collections.abc import Callable
from typing import Any

from training.augment import AugmentConfig
from training.config import OptimizerConfig, TrainConfig
from training.methods.cav_mae import config as models
from training.recipes.whole_run import whole_run


def cav_mae_base() -> TrainConfig[Any]:
    """The paper's base: AudioSet-2M, batch 48, 12 epochs for the tables (the authors' script and log have 25).

    Adam with L2 on all parameters, constant rate halved after epochs 10, 15 and 20, no warm-up. Expected: fine-tuned on
    AudioSet-20K 40.5 mAP (A-V), retrieval R@1 12.3 V->A on AudioSet (Tables 1 and 3). Not reproduced here.
    """
    return _run("cav-mae-base", models.cav_mae_base(), batch_size=48, lr=5e-5, epochs=12)


def cav_mae_scale_plus() -> TrainConfig[Any]:
    """CAV-MAE Scale+: batch 108 (Table 4; the script has 120), 25 epochs. Expected: 42.0 mAP on AudioSet-20K (A-V)."""
    return _run("cav-mae-scale-plus", models.cav_mae_base(), batch_size=108, lr=1e-4, epochs=25)


def cav_mae_scale_plus_plus() -> TrainConfig[Any]:
    """CAV-MAE Scale++, released after the paper: batch 256. Expected: 42.2 mAP on AudioSet-20K (A-V, 10 frames)."""
    return _run("cav-mae-scale-plus-plus", models.cav_mae_base(), batch_size=256, lr=2e-4, epochs=25)


def cav_mae_tiny() -> TrainConfig[Any]:
    """For tests, and for training on a CPU: the middle frame, so that every dataset will do. Not in the paper."""
    return _run("cav-mae-tiny", models.cav_mae_tiny(), batch_size=48, lr=5e-5, epochs=12)


def cav_mae_world_tiny() -> TrainConfig[Any]:
    """The synthetic world on a CPU, as CrossMAE's world-tiny: the same rate, schedule and batch for both."""
    return whole_run(method="cav-mae", preset="cav-mae-world-tiny", variant="cav-mae", model=models.world_tiny())


def cav_mae_world_small() -> TrainConfig[Any]:
    """The synthetic world on one GPU, as CrossMAE's world-small."""
    return whole_run(method="cav-mae", preset="cav-mae-world-small", variant="cav-mae", model=models.world_small())


def _run(preset: str, model: models.CAVMAEConfig, *, batch_size: int, lr: float, epochs: int) -> TrainConfig[Any]:
    return whole_run(
        method="cav-mae",
        preset=preset,
        variant="cav-mae",
        model=model,
        batch_size=batch_size,
        epochs=epochs,
        fbank_mean=-5.081,  # the authors' own, of AudioSet; VGGSound too
        fbank_std=4.4849,
        augment=AugmentConfig(noise=0.1, shift=1024),
        optimizer=OptimizerConfig(
            kind="adam_l2",
            lr=lr,
            weight_decay=5e-7,
            decay_on="all",
            betas=(0.95, 0.999),
            warmup=0.0,
            schedule="halving",
            halve_after=(10, 15, 20),
        ),
    )


PRESETS: dict[str, Callable[[], TrainConfig[Any]]] = {
    "cav-mae-base": cav_mae_base,
    "cav-mae-scale-plus": cav_mae_scale_plus,
    "cav-mae-scale-plus-plus": cav_mae_scale_plus_plus,
    "cav-mae-tiny": cav_mae_tiny,
    "cav-mae-world-tiny": cav_mae_world_tiny,
    "cav-mae-world-small": cav_mae_world_small,
}
