"""Models whose files are missing, damaged or not of one another: one line, and no score."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from scope.errors import ScopeError
from scope.harness.cli import main
from scope.harness.models import Models, load_model
from tests.harness.running import FULL, arguments_of, one_error
from tests.harness.tiny_gguf import write_gguf

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

Damage = Callable[[Path], object]


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this was run",)


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def settings(file: str = "config.json", **values: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def content(file: str, text: str) -> Damage:
    return lambda folder: (folder / file).write_text(text)


def truncated(file: str, size: int) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:size])

    return damage


def without(*files: str) -> Damage:
    return lambda folder: [(folder / file).unlink(missing_ok=True) for file in files]


def pickled(value: object, size: int | None = None) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        buffer = io.BytesIO()
        torch.save(value, buffer)
        (folder / "pytorch_model.bin").write_bytes(buffer.getvalue()[:size])

    return damage


def one_shard_missing(folder: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / shards[0])
    names = {name: shards[name == UP] for name in tensors}
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (weights(lambda all: {k: v for k, v in all.items() if k != UP}), f"1 missing: {UP}"),
        (
            weights(lambda all: all | {"model.layers.0.extra": torch.zeros(3)}),
            "1 not in the configuration: model.layers.0.extra",
        ),
        (
            weights(lambda all: all | {UP: torch.zeros(3, 3)}),
            f"1 of another shape: {UP} [3, 3] instead of [48, 32]",
        ),
        (settings(num_hidden_layers=3), "9 missing: model.layers.2.input_layernorm.weight"),
        (settings(num_hidden_layers=1), "9 not in the configuration: model.layers.1.input_layern"),
        (settings(intermediate_size=7), "6 of another shape: model.layers.0.mlp.down_proj.weight"),
        (settings(num_attention_heads=7), "multiple of the number of attention heads"),
        (settings(num_hidden_layers="two"), "'num_hidden_layers' expected int"),
        (content(WEIGHTS, POINTER), "model.safetensors is a git-lfs pointer"),
        (content("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer"),
        (content(WEIGHTS, ""), "model.safetensors is empty"),
        (truncated(WEIGHTS, 1000), "model.safetensors is not a complete safetensors file"),
        (truncated(WEIGHTS, -1000), "model.safetensors is not a complete safetensors file"),
        (without(WEIGHTS), "no file named model.safetensors"),
        (one_shard_missing, "model-00002-of-00002.safetensors"),
        (pickled({"a": Code()}), "from pytorch_model.bin: damaged, or more than tensors"),
        (pickled({"a": torch.zeros(9)}, size=300), "from pytorch_model.bin"),
        (pickled({}, size=0), "pytorch_model.bin is empty"),
        (content("config.json", "{"), "config.json is not JSON"),
        (content("config.json", "[1]"), "config.json is not a JSON object"),
        (content("generation_config.json", "{"), "generation_config.json is not JSON"),
        (content("tokenizer.json", "{"), "tokenizer.json is not JSON"),
        (content("tokenizer.json", '{"version": "1.0"}'), "with the tokenizer of tokenizer.json"),
        (content("tokenizer_config.json", "{"), "tokenizer_config.json is not JSON"),
        (without("tokenizer.json", "tokenizer_config.json"), "no tokenizer in the folder"),
        (
            settings(model_type="mine", auto_map={"AutoConfig": "code.Config"}),
            "trust_remote_code is false",
        ),
        (
            settings("tokenizer_config.json", chat_template="{{ raise_exception('not\nso') }}"),
            "fails (not so)",
        ),
        (settings("tokenizer_config.json", chat_template="{% if %}"), "Tiny-Llama fails ("),
    ],
)
def test_damaged_folder(
    damage: Damage,
    message: str,
    model_folder: Path,
    data_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(prompt: str = "") -> str:
        raise AssertionError(prompt)

    monkeypatch.setattr("builtins.input", asked)
    folder = shutil.copytree(model_folder, tmp_path / "Tiny-Llama")
    damage(folder)
    style = "chat" if "fails" in message else "plain"
    arguments = arguments_of(folder, data_file, tmp_path / "out", prompt_style=style)
    code, (output, error) = main(arguments), capfd.readouterr()
    assert message in one_error(code, error)
    assert output == ""  # no table, and nothing out of a pickle
    assert not list(tmp_path.glob("out/**/*.json"))


def test_tied_and_pickled_weights_are_fine(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    settings(tie_word_embeddings=True)(folder)
    tensors = load_file(folder / WEIGHTS)
    del tensors["lm_head.weight"]
    pickled(tensors)(folder)
    model = load_model(str(folder), "float32", "cpu", "sdpa")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leave_out": ["blk.1.ffn_up.weight"]}, f"1 missing: {UP}"),
        ({"add": ["blk.0.attn_q.bias"]}, "1 not in the configuration: blk.0.attn_q.bias"),
        ({"layers": 3}, "9 missing: model.layers.2.input_layernorm.weight"),
        ({"layers": 1}, "9 not in the configuration: blk.1.attn_k.weight"),
        ({}, ""),
        ({"add": ["rope_freqs.weight"]}, ""),
    ],
)
def test_gguf_of_other_tensors(
    changes: dict[str, Any],
    message: str,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", **changes)
    code = main(arguments_of(file, data_file, tmp_path / "out", max_new_tokens=8))
    error = capsys.readouterr().err
    if message:
        assert message in one_error(code, error)
    else:
        assert code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: POINTER.encode(), "tiny.gguf is a git-lfs pointer"),
        (lambda data: b"", "tiny.gguf is empty"),
        (lambda data: data[:3000], "tiny.gguf: cannot be loaded"),
        (lambda data: data[:-3000], "tiny.gguf: cannot be loaded"),
        (lambda data: b"GUFF" + data[4:], "not a GGUF file"),
    ],
)
def test_damaged_gguf(
    change: Callable[[bytes], bytes],
    message: str,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(change(file.read_bytes()))
    code = main(arguments_of(file, data_file, tmp_path / "out"))
    assert message in one_error(code, capsys.readouterr().err)


@pytest.mark.parametrize("dry", [True, False])
def test_files_are_read_once_for_all_runs(
    dry: bool, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, opened = GGUFReader.__init__, []

    def counted(reader: GGUFReader, *args: Any, **kwargs: Any) -> None:
        opened.append(args)
        read(reader, *args, **kwargs)

    monkeypatch.setattr(GGUFReader, "__init__", counted)
    runs = [{"method": "ALLKV", "save_dir": str(tmp_path / str(number))} for number in range(4)]
    config = tmp_path / "runs.yaml"
    config.write_text(json.dumps({"runs": runs}))
    options = FULL | {"config": config, "max_new_tokens": 8, "save_dir": None, "method": None}
    save_dir = options.pop("save_dir")
    arguments = arguments_of(write_gguf(tmp_path / "m.gguf"), data_file, save_dir, **options)
    assert main([*arguments, *(["--dry_run"] if dry else [])]) == 0
    # The configuration, the tokenizer, and the weights.
    assert len(opened) == (2 if dry else 3)


def test_weights_that_cannot_be_loaded_are_tried_once(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **kwargs: object) -> None:
        tries.append(args)
        raise torch.OutOfMemoryError("CUDA out of memory")

    tries: list[object] = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    models = Models()
    for _ in range(3):
        with pytest.raises(ScopeError, match="do not fit in the memory of cpu"):
            models.model(str(model_folder), "float32", "cpu", "sdpa")
    assert len(tries) == 1


def test_dry_run_without_a_tokenizer(
    model_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(model_folder / "config.json", folder)
    arguments = [*arguments_of(folder, data_file, tmp_path / "out"), "--dry_run"]
    code = main(arguments)
    assert "no tokenizer in the folder" in one_error(code, capsys.readouterr().err)
    shutil.copy(model_folder / "tokenizer.json", folder)
    assert main(arguments) == 0
