"""Files of foreign models: tensors as they lie there, and one line for whatever is wrong with them."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.safetensors_file import safetensors
from tests.support.foreign import LLAMA, llama_tensors, safetensors_bytes, write_model

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "odd": np.array([True, False, True]),  # what follows lies at no multiple of its size
    "half": np.array([1.5, -2.0], np.float16),
    "brain": np.array([[0.5, 3.0]], ml_dtypes.bfloat16),
    "number": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.float32),
}


def said(folder: Path) -> str:
    """The one line that opening a model raises."""
    with pytest.raises(ConfigError) as error:
        open_weights(folder)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_come_back_with_their_types_and_shapes(tmp_path, shards):
    weights = open_weights(write_model(tmp_path, LLAMA, ARRAYS, shards))
    assert weights.tensors.keys() == ARRAYS.keys()
    assert weights.size == sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    for name, array in ARRAYS.items():
        tensor = weights.tensors[name]
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype.name)
        np.testing.assert_array_equal(tensor.read(), array, strict=True)


def test_the_package_safetensors_reads_the_same_from_a_file_that_it_wrote(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="compares with the package safetensors")
    arrays = {name: array for name, array in ARRAYS.items() if name != "brain"}
    package.save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "np"})
    for name, tensor in safetensors(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(tensor.read(), arrays[name], strict=True)
    (tmp_path / "ours.safetensors").write_bytes(safetensors_bytes(arrays))
    for name, array in package.load_file(tmp_path / "ours.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    folder = write_model(tmp_path, LLAMA, ARRAYS)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 4, 8, 30, header - 1, header, header + 5, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert str(file) in said(folder), length
    file.write_bytes(whole + b"x")
    assert "do not fill it" in said(folder)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"a"', b'"half"', "twice"),
        (b"[2, 3]", b"[2, 4]", "another size than its shape"),
        (b"[2, 3]", b"[-2,3]"[:6], "its header says nothing of a"),
        (b'"F32"', b'"F99"', "has the type F99"),
        (b'"dtype"', b'"dtipe"', "its header says nothing of a"),
        (b"{", b"[", "header"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, old, new, told):
    folder = write_model(tmp_path, LLAMA, ARRAYS)
    whole = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].replace(old, new, 1)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    assert told in said(folder)


def test_tensors_that_overlap_are_refused(tmp_path):
    folder = write_model(tmp_path, LLAMA, {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole.replace(b"[8, 16]", b"[0,  8]"))
    assert "do not fill it" in said(folder)


def test_shards_that_are_missing_or_lie_about_their_tensors_are_named(tmp_path):
    folder = write_model(tmp_path, LLAMA, ARRAYS, 3)
    second = folder / "model-00002-of-00003.safetensors"
    kept = second.read_bytes()
    second.unlink()
    assert "1 of 3 shards are missing (model-00002-of-00003.safetensors)" in said(folder)
    second.write_bytes(safetensors_bytes({"odd": ARRAYS["odd"]}))
    assert "lacks the tensor ['number']" in said(folder) or "lacks the tensor ['brain']" in said(folder)
    second.write_bytes(safetensors_bytes({**{n: ARRAYS[n] for n in ("odd", "number")}, "a": ARRAYS["a"]}))
    assert "['a'], as another file does" in said(folder)
    second.write_bytes(kept)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(second.name, "../x.safetensors"))
    assert "which is not a file beside it" in said(folder)
    index.write_text(json.dumps({"weight_map": {}}))
    assert "maps no tensors" in said(folder)
    index.unlink()
    assert "holds 3 files of tensors" in said(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02.")
    for path in (tmp_path, tmp_path / name):
        assert "is a pickle" in said(path)
        assert f"save_file({{k: v.clone() for k, v in torch.load('{name}', weights_only=True)" in said(path)


def test_what_is_no_model_is_told(tmp_path):
    assert "holds neither" in said(tmp_path)
    assert "there is no" in said(tmp_path / "nothing")
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "of no known format" in said(tmp_path / "model.onnx")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(llama_tensors(LLAMA)))
    assert "config.json" in said(tmp_path)


def test_a_gguf_is_read_with_its_metadata_and_refused_where_it_is_cut_off(tmp_path):
    gguf = pytest.importorskip("gguf", reason="GGUF files are read by the package gguf")
    file, random = tmp_path / "model.gguf", np.random.default_rng(0)
    plain, blocks = (random.standard_normal((4, 64)).astype(np.float32) for _ in range(2))
    quantized = gguf.quantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(3)
    writer.add_array("list", ["a", "b"])
    writer.add_tensor("plain", plain)
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = open_weights(tmp_path)
    assert weights.settings["llama.block_count"] == 3
    assert weights.settings["list"] == ["a", "b"]
    np.testing.assert_array_equal(weights.tensors["plain"].read(), plain, strict=True)
    read = weights.tensors["quantized"].read()
    step = np.abs(blocks.reshape(4, 2, 32)).max(-1, keepdims=True) / 127  # of a block; float16 rounds it by 2^-11
    assert (np.abs(read - blocks).reshape(4, 2, 32) <= 0.5 * step + 127 * step * 2.0**-11).all()
    whole = file.read_bytes()
    for length in (0, 10, 60, len(whole) // 2, len(whole) - 300):
        file.write_bytes(whole[:length])
        assert str(file) in said(tmp_path), length
