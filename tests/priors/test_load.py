from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rl3d.errors import AssetError, InputError
from rl3d.priors import load
from rl3d.priors.mvdream import MVDreamPrior
from rl3d.priors.stable_diffusion import StableDiffusionPrior


class Hub:
    """Stands in for the network: records what was asked for, answers with a folder or an error."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.answer: Path | Exception = AssertionError("the network was touched")

    def __call__(self, name: str, **options: Any) -> str:
        self.calls.append({"name": name, **options})
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub

    fake = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    yield fake


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Calls of the embedded prior's loader, which has tests of its own."""
    calls: list[tuple[Any, Any]] = []
    module = ModuleType("rl3d.priors.embedded")

    def load_embedded(path: Any = None, *, device: Any = "cpu") -> str:
        calls.append((path, device))
        return "embedded prior"

    module.load_embedded = load_embedded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rl3d.priors.embedded", module)
    return calls


def test_default_and_own_format(embedded: list[tuple[Any, Any]], tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MultiViewPipeline"}))
    cpu = torch.device("cpu")
    assert [load(None), load("embedded", "cpu"), load(str(tmp_path))] == ["embedded prior"] * 3
    assert embedded == [(None, cpu), (None, cpu), (tmp_path, cpu)]
    assert not hub.calls


def test_folders_are_told_apart_without_network(sd_folder: Path, mvdream_folder: Path, hub: Hub) -> None:
    assert isinstance(load(str(sd_folder)), StableDiffusionPrior)
    assert isinstance(load(str(mvdream_folder)), MVDreamPrior)
    assert not hub.calls


def test_a_folder_may_have_an_at_sign(sd_folder: Path, tmp_path: Path) -> None:
    assert load(str(shutil.copytree(sd_folder, tmp_path / "model@main"))).name.endswith("model@main")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "does not exist; give a model folder, a hub id OWNER/NAME"),
        ("embeded", "did you mean 'embedded'"),
        ("stable-diffusion", "does not exist"),
        ("./nowhere/model", "does not exist"),
        ("../model", "does not exist"),
        ("/nowhere", "does not exist"),
        ("~/nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        ("here/missing", "does not exist"),
        ("owner/name@", "the revision after '@' is empty"),
        ("here@main", "a folder has no revision; drop '@main'"),
        ("file.safetensors", "is a file; give the pipeline's folder"),
    ],
)
def test_specs_that_are_no_model_never_touch_the_network(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load(spec)
    assert str(caught.value).startswith("--prior") and "\n" not in str(caught.value)
    assert not hub.calls


def test_hub_id_downloads_safetensors_only(hub: Hub, sd_folder: Path) -> None:
    hub.answer = sd_folder
    prior = load("owner/some-model@v1.2")
    assert isinstance(prior, StableDiffusionPrior) and prior.name == "owner/some-model@v1.2"
    (call,) = hub.calls
    assert (call["name"], call["revision"]) == ("owner/some-model", "v1.2")
    assert {"*.bin", "*.ckpt", "*.pt", "*.py", "*.fp16.*"} <= set(call["ignore_patterns"])
    assert not any(p in call["allow_patterns"] for p in ("*", "*.safetensors", "*.py"))
    load("owner/some-model")
    assert hub.calls[1]["revision"] is None


def test_half_precision_is_the_second_choice(hub: Hub, tmp_path: Path) -> None:
    hub.answer = tmp_path
    with pytest.raises(AssetError, match=r"no model_index\.json"):
        load("owner/empty")
    assert ["*.fp16.*" in call["ignore_patterns"] for call in hub.calls] == [True, False]


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    response: Any = SimpleNamespace(headers={}, request=None)  # the transport library changes between releases
    kinds: dict[str, Exception] = {
        "gated": errors.GatedRepoError("secret\nlines", response=response),
        "revision": errors.RevisionNotFoundError("no", response=response),
        "repository": errors.RepositoryNotFoundError("no", response=response),
        "offline": errors.LocalEntryNotFoundError("cannot reach\nthe hub"),
        "transport": RuntimeError("name resolution failed"),
        "disk": OSError(28, "No space left on device"),
    }
    return kinds[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gated", "asks for a licence agreement"),
        ("revision", "no revision 'v9'; name a branch, tag or commit"),
        ("repository", "not on the hub .* change --prior"),
        ("offline", "could not be downloaded .* give a local folder"),
        ("transport", "could not be downloaded .* check the network"),
        ("disk", "No space left"),
    ],
)
def test_hub_errors_are_one_line_with_a_way_out(kind: str, message: str, hub: Hub) -> None:
    hub.answer = hub_error(kind)
    with pytest.raises(InputError, match=message) as caught:
        load("owner/name@v9")
    assert str(caught.value).startswith("--prior owner/name") and "\n" not in str(caught.value)


def test_other_pipelines_are_named(tmp_path: Path) -> None:
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(AssetError, match="is a StableDiffusionXLPipeline, which rl3d cannot use; choose"):
        load(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{ half")
    with pytest.raises(AssetError, match="not readable JSON"):
        load(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "unet": ["x", "MultiViewUNetModel"]}))
    with pytest.raises(AssetError, match=r"unet/config\.json is missing; the model folder is incomplete"):
        load(str(tmp_path))


def test_offline_mode_of_the_hub_library_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real download function, forbidden to connect, with an empty cache."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.undo()  # the autouse stand-in
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not isinstance(huggingface_hub.snapshot_download, Hub)
    with pytest.raises(InputError, match="--prior owner/name could not be downloaded") as caught:
        load("owner/name")
    assert "\n" not in str(caught.value)
