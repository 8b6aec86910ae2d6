"""Data sets that TFDS has prepared, by `dataset.name=tfds:NAME`."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from c2f_jax.data import sources
from c2f_jax.errors import UserError

FLOWERS = {"train": [0, 1, 1], "validation": [1, 0], "test": [0, 1]}
FLOWERS |= {"hidden": [-1, -1], "bare": [0, 1]}  # without labels; without a box in the second


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """TFDS's own layout, with features by other names and several boxes."""
    root = tmp_path_factory.mktemp("tfds")
    folder = root / "flowers" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "photo": tfds.features.Image(),
            "species": tfds.features.ClassLabel(names=["daisy", "rose"]),
            "height": tfds.features.Scalar(np.float32),
            "objects": tfds.features.Sequence(
                {"bbox": tfds.features.BBoxFeature(), "kind": tfds.features.ClassLabel(num_classes=3)}
            ),
            "corners": tfds.features.BBoxFeature(bbox_format="XYWH"),
        }
    )
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    template = tfds.core.ShardedFileTemplate(dataset_name="flowers", data_dir=folder, filetype_suffix="array_record")
    splits = []
    for split, labels in FLOWERS.items():
        writer = ArrayRecordWriter(str(folder / f"flowers-{split}.array_record-00000-of-00001"), "group_size:1")
        for index, label in enumerate(labels):
            photo = io.BytesIO()
            Image.new("RGB", (40, 30), (100 * label, 50 * index, 0)).save(photo, "JPEG")
            boxes = [tfds.features.BBox(0.1, 0.2, 0.3, 0.4), tfds.features.BBox(0.2, 0.1, 0.5, 0.3)][: 1 + index]
            example = {
                "photo": photo.getvalue(),
                "species": label,
                "height": 1.0,
                "objects": [{"bbox": b, "kind": 1} for b in boxes if split != "bare" or index != 1],
                "corners": tfds.features.BBox(0.1, 0.2, 0.3, 0.4),
            }
            writer.write(serializer.serialize_example(features.encode_example(example)))
        writer.close()
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=[len(labels)], num_bytes=0, filename_template=template)
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=splits,
        version="1.0.0",
        filename_template=template,
        check_data=False,
    )
    return root


def load(data_dir, fields, name="tfds:flowers", fraction=0.0):
    return sources.load(
        name,
        path=str(data_dir),
        cache_dir="",
        unreadable="skip",
        validation_fraction=fraction,
        train_size=None,
        test_size=None,
        fields=fields,
    )


def test_features_and_splits_by_their_names(data_dir):
    splits = load(data_dir, "image=photo, label=species, box=objects/bbox, validation=validation")
    assert splits.class_names == ("daisy", "rose") and splits.published == {}
    for part, labels in (("train", [0, 1, 1]), ("validation", [1, 0]), ("test", [0, 1])):
        source = getattr(splits, part)
        assert [source[index]["label"] for index in range(len(source))] == labels
        assert source.labels.tolist() == labels
    first, second = splits.train[0], splits.train[1]
    assert first["image"].shape == (30, 40, 3) and abs(int(second["image"][0, 0, 0]) - 100) < 4
    np.testing.assert_allclose(first["box"], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(second["box"], [0.1, 0.1, 0.5, 0.4])  # around both
    assert [len(part) for part in (load(data_dir, "image=photo,label=species", fraction=0.34).train,)] == [2]


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        ("", "tfds:flowers", "tfds:flowers has no feature of type Image image; give image=... of: photo"),
        ("image=photo", "tfds:flowers", "no feature of type ClassLabel label; give label=... of: species"),
        ("image=photo,label=height", "tfds:flowers", "no feature of type ClassLabel height; .* of: species"),
        (
            "image=photo,label=species,box=box",
            "tfds:flowers",
            "type BBoxFeature or list of them box; give box=... of: objects/bbox",
        ),
        (
            "image=photo,label=species,box=height",
            "tfds:flowers",
            "type BBoxFeature or list of them height; .*: objects/bbox$",
        ),
        (
            "image=photo,label=species,box=photo",
            "tfds:flowers",
            "type BBoxFeature or list of them photo; .*: objects/bbox$",
        ),
        ("image=photo,label=species,box=corners", "tfds:flowers", "boxes corners .* are XYWH, not REL_YXYX; leave box"),
        (
            "image=photo,label=objects/kind",
            "tfds:flowers",
            "of type ClassLabel objects/kind; give label=... of: species$",
        ),
        (
            "image=photo,label=species,test=train",
            "tfds:flowers",
            "train and test are both the split train .*; give each",
        ),
        ("image=photo,label=species,validation=test", "tfds:flowers", "validation and test are both the split test"),
        (
            "image=photo,label=species,test=hidden",
            "tfds:flowers",
            "split hidden .* label -1 in record 0, of 2 classes:",
        ),
        (
            "image=photo,label=species,test=bare,box=objects/bbox",
            "tfds:flowers",
            "split bare .*no box in record 1; leave",
        ),
        ("image=photo,label=species,test=dev", "tfds:flowers", "no split dev; give one of .*train, validation"),
        ("image=photo,label=", "tfds:flowers", "'label=' is not one of image=..."),
        ("picture=photo", "tfds:flowers", "'picture=photo' is not one of"),
        ("", "tfds:no_such_flowers", "TFDS cannot open no_such_flowers .*dataset.path is its data_dir"),
        ("", "tfds:mnist", "tfds:mnist is not prepared in .*download_and_prepare"),
        ("", "tfds:", "dataset.name must be one of .*, or tfds:NAME"),
    ],
)
def test_mistakes_are_a_line(data_dir, fields, name, message):
    with pytest.raises(UserError, match=message) as caught:
        load(data_dir, fields, name)
    assert "\n" not in str(caught.value)
