"""Sources: what they return, and what a user reads when something is missing or broken."""

import io
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments.common import data
from experiments.common.errors import UserError


def test_importing_the_module_imports_no_data_library():
    code = (
        "import sys, experiments.common.data\n"
        "heavy = {'sklearn', 'skimage', 'PIL', 'tensorflow_datasets', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_digits():
    images, labels = data.digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.float32
    assert images.min() == 0.0 and images.max() == 1.0
    assert np.bincount(labels).sum() == 1797 and set(labels) == set(range(10))


def test_photographs_are_colour_pictures_with_their_names():
    images, names = data.photographs()
    assert {"astronaut", "chelsea", "coffee", "rocket", "china", "flower"} <= set(names)
    assert len(images) == len(names) == len(set(names)) == 10
    for image in images:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert np.abs(image[..., 0].astype(int) - image[..., 2]).max() > 20, "grey"


def test_read_image_converts_to_rgb_and_names_a_broken_file(tmp_path):
    Image.new("L", (5, 4), 7).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(data.read_image(tmp_path / "grey.png"), np.full((4, 5, 3), 7))
    (tmp_path / "not.jpg").write_bytes(b"text")
    with pytest.raises(UserError, match=r"not\.jpg"):
        data.read_image(tmp_path / "not.jpg")
    with pytest.raises(UserError, match=r"gone\.jpg"):
        data.read_image(tmp_path / "gone.jpg")
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(UserError, match=r"half\.jpg"):
        data.read_image(tmp_path / "half.jpg")


def test_list_images_is_sorted_and_refuses_missing_and_empty_folders(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in data.list_images(tmp_path)] == ["a.PNG", "b.jpg"]
    with pytest.raises(UserError, match="not found"):
        data.list_images(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no .*jpg"):
        data.list_images(tmp_path / "empty")


def test_load_npz_returns_what_the_spec_names(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(2), z=np.ones(1))
    arrays = data.load_npz(tmp_path / "a.npz", {"x": ((None, 3), "f"), "y": ((-1,), "iu")})
    assert set(arrays) == {"x", "y"}
    np.testing.assert_array_equal(arrays["x"], x)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"w": ((None,), "f")}, "no array 'w'"),
        ({"x": ((3, None), "f")}, r"shape \(2, 3\), expected \(3, any\)"),
        ({"x": ((None,), "f")}, "shape"),
        ({"x": ((2, 3), "iu")}, "dtype float64"),
        ({"nan": ((None,), "f")}, "NaN"),
        ({"inf": ((None,), "f")}, "infinity"),
        ({"objects": ((None,), "O")}, "unreadable"),
    ],
)
def test_load_npz_refuses(tmp_path, spec, message):
    path = tmp_path / "a.npz"
    np.savez(
        path,
        x=np.zeros((2, 3)),
        nan=np.array([0.0, np.nan]),
        inf=np.array([np.inf]),
        objects=np.array([{}], dtype=object),
    )
    with pytest.raises(UserError, match=message) as caught:
        data.load_npz(path, spec)
    assert "\n" not in str(caught.value) and "a.npz" in str(caught.value)


def test_load_npz_refuses_missing_damaged_and_bare_files(tmp_path):
    spec = {"x": ((None,), "f")}
    with pytest.raises(UserError, match="not found"):
        data.load_npz(tmp_path / "gone.npz", spec)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="not a readable"):
        data.load_npz(tmp_path / "text.npz", spec)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with pytest.raises(UserError, match="bare array"):
        data.load_npz(tmp_path / "bare.npy", spec)
    np.savez(tmp_path / "cut.npz", x=np.random.default_rng(0).normal(size=1000))
    whole = bytearray((tmp_path / "cut.npz").read_bytes())
    whole[4000:4010] = b"0123456789"
    (tmp_path / "cut.npz").write_bytes(bytes(whole))
    with pytest.raises(UserError, match="unreadable"):
        data.load_npz(tmp_path / "cut.npz", spec)
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(UserError, match=r"foreign\.npz"):
        data.load_npz(tmp_path / "foreign.npz", spec)


@pytest.fixture
def prepared(tmp_path):
    """A TFDS folder of 5 pictures, written record by record as TFDS writes them."""
    tfds = pytest.importorskip("tensorflow_datasets")
    record = pytest.importorskip("array_record.python.array_record_module")
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    features.save_config(str(folder))
    shard = folder / "tiny-train.array_record-00000-of-00001"
    writer = record.ArrayRecordWriter(str(shard), "group_size:1")
    for i in range(5):
        png = io.BytesIO()
        Image.new("RGB", (4, 4), (i, i, i)).save(png, "PNG")
        writer.write(features.serialize_example({"image": png.getvalue(), "label": i}))
    writer.close()
    split = (
        '{"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",'
        ' "name": "train", "numBytes": "1", "shardLengths": ["5"]}'
    )
    (folder / "dataset_info.json").write_text(
        f'{{"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": [{split}]}}'
    )
    return tmp_path


def test_tfds_arrays_reads_a_prepared_folder_without_tensorflow(prepared):
    before = sorted(prepared.rglob("*"))
    arrays = data.tfds_arrays("tiny", "train", prepared)
    assert arrays["image"].shape == (5, 4, 4, 3) and arrays["image"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["image"][:, 0, 0, 0], np.arange(5))
    np.testing.assert_array_equal(arrays["label"], np.arange(5))
    assert len(data.tfds_arrays("tiny:1.0.0", "train", prepared, limit=2)["label"]) == 2
    assert sorted(prepared.rglob("*")) == before, "reading wrote something"
    assert "tensorflow" not in sys.modules


def test_tfds_arrays_says_where_it_looked_and_how_to_prepare(prepared):
    with pytest.raises(UserError, match=r"gone.*dataset_info\.json.*download_and_prepare"):
        data.tfds_arrays("gone", "train", prepared)
    with pytest.raises(UserError, match=r"2\.0\.0"):
        data.tfds_arrays("tiny:2.0.0", "train", prepared)
    with pytest.raises(UserError, match="no split 'test'; it has: train"):
        data.tfds_arrays("tiny", "test", prepared)
    with pytest.raises(UserError, match="nowhere"):
        data.tfds_arrays("tiny", "train", prepared / "nowhere")
    assert not (prepared / "nowhere").exists() and not (prepared / "gone").exists()
    # The newest version that is prepared wins; a folder without metadata does not count.
    shutil.copytree(prepared / "tiny" / "1.0.0", prepared / "tiny" / "0.9.0")
    (prepared / "tiny" / "2.0.0").mkdir()
    assert len(data.tfds_arrays("tiny", "train", prepared)["label"]) == 5


def test_tfds_arrays_names_a_corrupt_record_and_a_missing_shard(prepared):
    shard = next((prepared / "tiny" / "1.0.0").glob("*array_record*"))
    whole = bytearray(shard.read_bytes())
    start = whole.index(b"PNG")
    whole[start : start + 40] = b"x" * 40
    shard.write_bytes(bytes(whole))
    with pytest.raises(UserError, match="corrupt"):
        data.tfds_arrays("tiny", "train", prepared)
    shard.unlink()
    with pytest.raises(UserError, match="tiny"):
        data.tfds_arrays("tiny", "train", prepared)
    (prepared / "tiny" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="metadata"):
        data.tfds_arrays("tiny", "train", prepared)
