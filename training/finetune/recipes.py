"""Settings of fine-tuning: the paper's own, and those of its peers, as defaults for FinetuneConfig.

crossmae  the paper: linear head, no augmentation; it gives one rate and one decay for everything (A.3)
strong    CAV-MAE's Table 4 and its scripts (egs/{audioset,vggsound}/run_cavmae_ft*.sh): what "strong augmentation
          like SpecAugment and MixUp" (supplement, section F) can be checked against
mavil     MAViL's Table 9; layer decay, which the paper does not give, from the code of AudioMAE, which it builds on

    accelerate launch train.py finetune --data shards/as20k --out runs/ft --init runs/pretrain --recipe strong

Expected, of a ViT-B/16 pre-trained on AudioSet-2M: the paper's numbers (docs/finetune.md). Not reproduced here.
"""

from typing import Any, Literal

from training.config import OptimizerConfig
from training.finetune.augment import AugmentConfig

Recipe = Literal["crossmae", "strong", "mavil"]
DatasetRecipe = Literal["as20k", "as2m", "vgg"]


def recipe(name: Recipe, dataset: DatasetRecipe) -> dict[str, Any]:
    """The fields of FinetuneConfig that a recipe sets."""
    return {"crossmae": crossmae, "strong": strong, "mavil": mavil}[name](dataset) | {
        "recipe": name,
        "dataset_recipe": dataset,
    }


def crossmae(dataset: DatasetRecipe) -> dict[str, Any]:
    """The paper: Adam at 2e-5, weight decay 0.05 (A.3), "no augmentation" (supplement, section F).

    It names neither epochs nor batch size: those of CAV-MAE are taken.
    """
    return {
        "epochs": {"as20k": 15, "as2m": 10, "vgg": 10}[dataset],
        "batch_size": {"as20k": 36, "as2m": 48, "vgg": 48}[dataset],
        "optimizer": OptimizerConfig(lr=2e-5, weight_decay=0.05),
    }


def strong(dataset: DatasetRecipe) -> dict[str, Any]:
    """CAV-MAE: rate, head rate, epochs, batch, balancing and averaging by dataset; the augmentation is one for all.

    Weights are averaged from after epoch 3, 1 and 3 on (wa_start of its scripts). Its rate halves each epoch from
    the 5th, 2nd and 2nd on; ours falls along half a cosine, and has no warm-up here, as there.
    """
    lr, head_lr, epochs, batch, from_epoch = {
        "as20k": (5e-5, 100.0, 15, 36, 3),
        "as2m": (1e-5, 50.0, 10, 48, 1),
        "vgg": (1e-4, 10.0, 10, 48, 3),
    }[dataset]
    return {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": OptimizerConfig(kind="adam_l2", lr=lr, weight_decay=5e-7, betas=(0.95, 0.999), warmup=0.0),
        "head_lr": head_lr,
        "balanced": dataset != "as20k",
        "label_smoothing": 0.1,
        "average_from": from_epoch / epochs,
        "loss": "ce" if dataset == "vgg" else "bce",
        "augment": AugmentConfig(mixup=0.5, spec_frequency=48, spec_time=192, noise=0.1, shift=1024),
    }


def mavil(dataset: DatasetRecipe) -> dict[str, Any]:
    """MAViL: base rate for a batch of 256, half of it for the image encoder beside audio, BCE everywhere.

    Its 100 epochs of 200,000 samples drawn on AudioSet-2M are 10 passes over it; on VGGSound its 60 are of the same
    size, near to the dataset's. Left out: 10% drop path, masking 20% while fine-tuning, and its 2-layer fusion.
    """
    lr, epochs, batch, warmup = {
        "as20k": (1e-3, 60, 64, 4 / 60),
        "as2m": (1e-4, 10, 512, 20 / 100),
        "vgg": (2e-4, 60, 256, 4 / 60),
    }[dataset]
    return {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": OptimizerConfig(lr=lr, scale_lr=True, weight_decay=1e-5, betas=(0.9, 0.95), warmup=warmup),
        "layer_decay": 0.75,
        "video_lr": 0.5,
        "balanced": dataset != "as20k",
        "loss": "bce",
        "augment": AugmentConfig(
            mixup=0.5, spec_frequency=48, spec_time=192, noise=0.1 if dataset == "vgg" else 0.0, shift=1024
        ),
    }
