"""The model's config: round trips, the variants of Table 2, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from training.methods.crossmae.config import (
    PRESETS,
    VARIANTS,
    AttentiveConfig,
    CrossMAEConfig,
    EmbeddingConfig,
    MaskConfig,
    PixelConfig,
    Preset,
    config_from_dict,
    config_to_dict,
    crossmae_base,
    crossmae_tiny,
    with_variant,
)
from training.methods.shared.contrast import ContrastConfig
from training.methods.shared.encoder import EncoderConfig
from training.methods.shared.masking import kept_count


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_json(preset: Preset, variant: str) -> None:
    config = with_variant(PRESETS[preset](), variant)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_missing_keys_take_their_defaults() -> None:
    assert config_from_dict({}) == crossmae_base()
    assert config_from_dict({"contrast": {"weight": 1}}).contrast == ContrastConfig(weight=1.0)


def test_variants_are_table_2() -> None:
    base = crossmae_base()
    assert with_variant(base, "crossmae") == base
    rows = {name: with_variant(base, name) for name in VARIANTS}
    table = {name: (row.contrast.enabled, row.pixel.target, row.embedding.enabled) for name, row in rows.items()}
    assert table == {
        "crossmae": (True, "cross", True),
        "cl-av": (True, "none", False),
        "selfmae": (False, "self", False),
        "cl-selfmae": (True, "self", False),
        "cl-crosscdtmae": (True, "cross", False),
        "cl-crossembmae": (True, "none", True),
    }
    with pytest.raises(ValueError, match="variant is 'mae': allowed are crossmae, cl-av, selfmae"):
        with_variant(base, "mae")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pixels": {}, "lr": 1}, "unknown in the model's config: pixels, lr; allowed are encoder, mask"),
        ({"pixel": {"widht": 3}}, "unknown in the model's config: pixel.widht; allowed are target"),
        ({"pixel": 3}, "pixel is 3: allowed is a mapping"),
        ({"encoder": {"dim": "768"}}, "encoder.dim is '768': allowed is a value of type int"),
        ({"encoder": {"dim": True}}, "encoder.dim is True: allowed is a value of type int"),
        ({"pixel": {"norm_pix": 1}}, "pixel.norm_pix is 1: allowed is a value of type bool"),
        ({"pixel": {"target": "both"}}, "pixel.target is 'both': allowed are none, self, cross"),
    ],
)
def test_bad_dicts_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(values)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (EncoderConfig, {"heads": 7}, "encoder.heads is 7: allowed are divisors of encoder.dim, which is 768"),
        (EncoderConfig, {"dim": 770}, "encoder.dim is 770: allowed are multiples of 4"),
        (PixelConfig, {"depth": 0}, "pixel.depth is 0: allowed are 1 to 1000"),
        (MaskConfig, {"image_ratio": 1.0}, "mask.image_ratio is 1.0: allowed are 0 to below 1"),
        (MaskConfig, {"audio_ratio": -0.1}, "mask.audio_ratio is -0.1"),
        (MaskConfig, {"audio_strategy": "freq"}, "'freq': allowed are random, time, frequency, time-frequency"),
        (AttentiveConfig, {"audio_ratio": 1.5}, "attentive.audio_ratio is 1.5: allowed are 0 to 1"),
        (AttentiveConfig, {"kind": "none"}, "attentive.kind is 'none': allowed are attentive, zeros, random"),
        (ContrastConfig, {"temperature": 0.0}, "contrast.temperature is 0.0: allowed are numbers above 0"),
        (ContrastConfig, {"weight": 0.0}, "contrast.weight is 0.0: allowed are numbers above 0"),
        (EmbeddingConfig, {"queries": "empty"}, "'empty': allowed are learnable, sincos, zeros, tokens"),
    ],
)
def test_bad_values_are_refused(section: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(**values)


def test_contradictions_are_refused() -> None:
    tiny = crossmae_tiny()
    with pytest.raises(ValueError, match="no loss is left"):
        replace(
            tiny,
            contrast=ContrastConfig(enabled=False),
            pixel=PixelConfig(target="none"),
            embedding=EmbeddingConfig(enabled=False),
        )
    with pytest.raises(
        ValueError, match=r"mask.audio_ratio is 0.0, which hides no patch, but pixel.loss_on is 'masked'"
    ):
        replace(tiny, mask=MaskConfig(audio_ratio=0.0))
    with pytest.raises(ValueError, match=r"attentive.image_ratio is 0.5 of the patches tokens, which gives 98"):
        replace(tiny, attentive=AttentiveConfig(base="patches", image_ratio=0.5))
    with pytest.raises(ValueError, match=r"attentive.image_ratio is 0.01 of the visible tokens, which gives 0"):
        replace(tiny, attentive=AttentiveConfig(image_ratio=0.01))
    with pytest.raises(ValueError, match=r"queries is 'tokens', but attentive.audio_ratio is 0"):
        replace(tiny, attentive=AttentiveConfig(audio_ratio=0.0), embedding=EmbeddingConfig(queries="tokens"))


def test_counts_of_the_paper() -> None:
    """0.75 of 196 and 512 tokens hidden; the top 25% of the visible ones, or of all patches."""
    assert (kept_count(196, 0.25), kept_count(512, 0.25)) == (49, 128)
    config = CrossMAEConfig()
    assert (config.attentive_count(0.25, 49, 196), config.attentive_count(0.25, 128, 512)) == (12, 32)
    of_patches = CrossMAEConfig(attentive=AttentiveConfig(base="patches"))
    assert (of_patches.attentive_count(0.25, 49, 196), of_patches.attentive_count(0.25, 128, 512)) == (49, 128)
