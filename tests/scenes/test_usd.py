"""USD files, read back through usd-core itself, where it is installed."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scene_shapes import cube, face_coloured_cube, textured_cube, vertex_coloured_cube

from rl3d.colour import srgb_to_linear
from rl3d.errors import InputError


@pytest.fixture(scope="session")
def usd() -> Any:
    return pytest.importorskip("pxr.Usd", reason="usd-core is not installed: USD export was NOT tested")


def test_a_missing_usd_core_is_one_line_that_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(InputError, match=r"a\.usda needs the package usd-core .*pip install usd-core") as error:
        cube().save(tmp_path / "a.usda")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_unusable_meshes_are_refused_before_usd_is_looked_for(tmp_path: Path) -> None:
    mesh = cube()
    mesh.vertices[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        mesh.save(tmp_path / "a.usdc")


def diffuse_source(stage: Any) -> Any:
    """The shader that feeds the diffuse colour of the material that is bound to the mesh."""
    from pxr import UsdShade

    material, _ = UsdShade.MaterialBindingAPI(stage.GetPrimAtPath("/asset/mesh")).ComputeBoundMaterial()
    surface = material.ComputeSurfaceSource("")[0]
    assert surface.GetIdAttr().Get() == "UsdPreviewSurface"
    return surface.GetInput("diffuseColor").GetConnectedSources()[0][0].source


@pytest.mark.parametrize("suffix", [".usda", ".usdc", ".usd", ".usdz"])
def test_a_textured_mesh(usd: Any, tmp_path: Path, suffix: str) -> None:
    from pxr import UsdGeom, UsdShade

    ours = textured_cube()
    path = tmp_path / f"my asset{suffix}"
    ours.save(path, crease=0.5)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, *(() if suffix == ".usdz" else ("my_asset.png",))}
    stage = usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    assert stage.GetDefaultPrim().GetPath() == "/asset"
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/asset/mesh"))
    np.testing.assert_array_equal(np.array(mesh.GetPointsAttr().Get()), ours.vertices.numpy())
    np.testing.assert_array_equal(np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3), ours.faces.numpy())
    assert set(mesh.GetFaceVertexCountsAttr().Get()) == {3}
    assert mesh.GetSubdivisionSchemeAttr().Get() == "none" and mesh.GetOrientationAttr().Get() == "rightHanded"
    np.testing.assert_array_equal(np.array(mesh.GetExtentAttr().Get()), [[-0.5] * 3, [0.5] * 3])
    # a cube's edges turn by 90 degrees, more than the crease: every corner keeps its face's normal
    normals = np.array(mesh.GetNormalsAttr().Get()).reshape(-1, 3, 3)
    np.testing.assert_allclose(normals, ours.face_normals.numpy()[:, None].repeat(3, 1), atol=1e-6)
    st = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st")
    flat = np.array(st.ComputeFlattened()).reshape(-1, 3, 2)
    assert ours.uvs is not None and ours.face_uvs is not None and st.GetInterpolation() == "faceVarying"
    np.testing.assert_allclose(flat * [1, -1] + [0, 1], ours.uvs[ours.face_uvs].numpy(), atol=1e-7)  # v runs up
    sampler = UsdShade.Shader(diffuse_source(stage))
    assert sampler.GetIdAttr().Get() == "UsdUVTexture"
    assert sampler.GetInput("sourceColorSpace").Get() == "sRGB" and sampler.GetInput("wrapS").Get() == "clamp"
    reader = UsdShade.Shader(sampler.GetInput("st").GetConnectedSources()[0][0].source)
    assert reader.GetInput("varname").Get() == "st"
    if suffix == ".usdz":
        with zipfile.ZipFile(path) as package:
            (name,) = (n for n in package.namelist() if n.endswith(".png"))
            picture = package.read(name)
    else:
        found = Path(sampler.GetInput("file").Get().resolvedPath)
        assert found.resolve() == (tmp_path / "my_asset.png").resolve()
        picture = found.read_bytes()
    assert ours.texture is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), (ours.texture * 255).numpy())


@pytest.mark.parametrize(
    ("make", "each"), [(vertex_coloured_cube, "vertex"), (face_coloured_cube, "uniform")], ids=["vertex", "face"]
)
def test_colours_are_linear_display_colours(usd: Any, tmp_path: Path, make: Any, each: str) -> None:
    from pxr import UsdGeom, UsdShade

    make().save(tmp_path / "a.usda")
    stage = usd.Stage.Open(str(tmp_path / "a.usda"))
    primvar = UsdGeom.PrimvarsAPI(stage.GetPrimAtPath("/asset/mesh")).GetPrimvar("displayColor")
    assert primvar.GetInterpolation() == each
    colours = make().face_colours if each == "uniform" else make().vertex_colours
    np.testing.assert_allclose(np.array(primvar.Get()), srgb_to_linear(colours).numpy(), atol=1e-6)
    reader = UsdShade.Shader(diffuse_source(stage))
    assert reader.GetInput("varname").Get() == "displayColor"
    assert not UsdGeom.Mesh(stage.GetPrimAtPath("/asset/mesh")).GetNormalsAttr().HasAuthoredValue()


def test_a_plain_mesh_is_grey(usd: Any, tmp_path: Path) -> None:
    from pxr import UsdShade

    cube().save(tmp_path / "a.usda")
    stage = usd.Stage.Open(str(tmp_path / "a.usda"))
    material, _ = UsdShade.MaterialBindingAPI(stage.GetPrimAtPath("/asset/mesh")).ComputeBoundMaterial()
    grey = material.ComputeSurfaceSource("")[0].GetInput("diffuseColor").Get()
    assert list(grey) == pytest.approx([0.4480] * 3, abs=1e-4)  # ((0.7 + 0.055) / 1.055)^2.4


@pytest.mark.parametrize("make", [cube, vertex_coloured_cube, face_coloured_cube, textured_cube])
def test_usds_own_validators_find_nothing(usd: Any, tmp_path: Path, make: Any) -> None:
    validation = pytest.importorskip("pxr.UsdValidation", reason="this usd-core has no validators: NOT validated")
    validators = validation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 10
    for name in ("a.usda", "a.usdz"):
        make().save(tmp_path / name, crease=0.5)
        found = validation.ValidationContext(validators).Validate(usd.Stage.Open(str(tmp_path / name)))
        assert [e.GetMessage() for e in found] == []
