"""Mean and deviation of the input come with the weights; who says otherwise is told so."""

import json
from pathlib import Path

import pytest

from c2f_jax.errors import UserError
from c2f_jax.models.backbones import BACKBONES
from c2f_jax.models.published import CLIP, IMAGENET, INCEPTION, LITE, PUBLISHED
from c2f_jax.runs.input_values import tell_of_other_values, with_input_values
from configs import default
from tests.tiny import tiny_config


def beginning_with(source, backbone, **augment):
    config = default.get_config()
    config.model.pretrained, config.model.backbone = str(source), backbone
    for name, value in augment.items():
        config.augment[name] = value
    return config


def values(config):
    found = with_input_values(config).augment
    return found.mean, found.std


@pytest.mark.parametrize(
    ("source", "backbone", "expected"),
    [
        ("hf://timm/vit_large_patch14_clip_224.laion2b", "vit_large_patch14_clip", INCEPTION),
        ("hf://timm/vit_large_patch14_clip_224.openai@main", "vit_large_patch14_clip_quickgelu", CLIP),
        ("hf://timm/vit_base_patch16_224.dino", "vit_base_patch16", IMAGENET),
        ("hf://timm/vit_base_patch16_224.augreg_in21k", "vit_base_patch16", INCEPTION),
        ("/nowhere/lite.safetensors", "efficientnet_lite1", LITE),  # by the backbone
        ("", "resnet50", INCEPTION),  # from scratch
    ],
)
def test_they_come_with_the_weights(source, backbone, expected):
    assert values(beginning_with(source, backbone)) == expected


def test_a_config_s_own_stay(capsys):
    config = beginning_with("hf://timm/vit_base_patch16_224.dino", "vit_base_patch16", mean=(1.0, 2.0, 3.0))
    assert values(config) == ((1.0, 2.0, 3.0), IMAGENET.std)
    assert config.augment.std is None  # the one that was given is as it was


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"architecture": "x", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}}),
        ("config.json", {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "pretrained_cfg": None}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}),
    ],
)
def test_a_file_beside_the_weights_says_it(tmp_path, file, content):
    (tmp_path / "config.json").write_text("{}")  # transformers' says nothing of it
    (tmp_path / file).write_text(json.dumps(content))
    config = beginning_with(tmp_path / "model.safetensors", "vit_base_patch16")
    assert values(config) == ((127.5, 102.0, 76.5), (51.0, 51.0, 25.5))


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"mean": 3, "std": 4}', '{"mean": [1], "std": [2]}', '{"mean": "abc"}'),
        *('{"mean": [127, 127, 127], "std": [128, 128, 128]}', '{"mean": [0.5, 0.5, NaN], "std": [1, 1, 1]}'),
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0]}',
    ],
)
def test_where_nobody_says_it_a_line_asks(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    config = beginning_with(tmp_path / "model.safetensors", "vit_base_patch16")
    with pytest.raises(
        UserError, match="nowhere beside it; give --config.augment.mean and --config.augment.std"
    ) as error:
        with_input_values(config)
    assert str(error.value).isprintable()


def test_another_run_s_go_first(tmp_path):
    there = tiny_config(augment__mean=(9.0, 9.0, 9.0), augment__std=(8.0, 8.0, 8.0))
    (tmp_path / "config.json").write_text(there.to_json())
    config = beginning_with("hf://timm/vit_base_patch16_224.dino", "vit_base_patch16")
    config.init_from = str(tmp_path)
    assert values(config) == ((9.0, 9.0, 9.0), (8.0, 8.0, 8.0))


def test_who_says_otherwise_than_another_run_is_told(tmp_path, capsys):
    there = tiny_config(augment__mean=(9.0, 9.0, 9.0), augment__std=(8.0, 8.0, 8.0))
    (tmp_path / "config.json").write_text(there.to_json())
    config = beginning_with("", "resnet10_small", mean=(127.5,) * 3)
    config.init_from = str(tmp_path)
    tell_of_other_values(config)
    said = " ".join("".join(capsys.readouterr()).split())
    assert str(tmp_path) in "".join(said.split()) and "--config.augment.mean='(9.0, 9.0, 9.0)'" in said
    config.augment.mean = (9.0, 9.0, 9.0)
    tell_of_other_values(config)
    assert "".join(capsys.readouterr()) == ""


def test_who_says_otherwise_is_told_what_to_give(capsys):
    source = "hf://timm/convnext_tiny.fb_in22k"
    tell_of_other_values(beginning_with(source, "convnext_tiny", mean=(127.5,) * 3, std=(127.5,) * 3))
    said = capsys.readouterr()
    text = said.out + said.err
    assert source in text and "--config.augment.std='(58.395, 57.12, 57.375)'" in " ".join(text.split())
    # Not of rounding, as timm's 127.5 for 127.
    tell_of_other_values(beginning_with("x", "efficientnet_lite0", mean=(127.5,) * 3, std=(127.5,) * 3))
    tell_of_other_values(beginning_with(source, "convnext_tiny"))
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_all_weights_are_of_backbones_that_there_are():
    assert set(PUBLISHED) == set(BACKBONES) - {"resnet10_small"}
    sources = [row.source for rows in PUBLISHED.values() for row in rows]
    assert len(sources) == len(set(sources))


def test_the_docs_have_every_backbone_and_all_weights():
    """The tables are written by benchmarks/backbones.py, which takes longer than a test may."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text()
    for name in BACKBONES:
        assert f"| `{name}` |" in text, "write them again: python -m benchmarks.backbones --write"
    for name, rows in PUBLISHED.items():
        for row in rows:
            assert f"| `{row.source}` | `{name}` | {row.licence} | {row.size} px |" in text
