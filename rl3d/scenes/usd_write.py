"""USD writing through usd-core (an optional package): one mesh, one UsdPreviewSurface, +Y up, metres.

.usda is text, .usd and .usdc are binary with the picture beside them, .usdz is one package with the picture inside.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl3d.colour import srgb_to_linear
from rl3d.errors import InputError
from rl3d.files import atomic_path
from rl3d.scenes.gltf_write import encode_png
from rl3d.scenes.normals import corner_normals
from rl3d.scenes.texture import DEFAULT_GREY, tiles, to_bytes

if TYPE_CHECKING:
    from rl3d.scenes.mesh import Mesh

USD_SUFFIXES = (".usd", ".usda", ".usdc", ".usdz")


def write_usd(mesh: Mesh, path: Path, crease: float | None = None) -> None:
    """Write the mesh, atomically; the format by the suffix.

    Texture: a PNG behind a UsdPreviewSurface (roughness 1, metallic 0), primvar `st` with v up. Vertex and face
    colours: primvar `displayColor` in linear light, "vertex" or "uniform", which the material reads. Double sided, no
    subdivision. With `crease` (radians) normals are smooth across edges that turn by less.

    Raises:
        InputError: usd-core is not installed, or a folder that cannot be written.
    """
    try:
        from pxr import UsdUtils
    except ImportError as error:
        raise InputError(f"writing {path.name} needs the package usd-core ({error}); pip install usd-core") from None
    png = None if mesh.texture is None else encode_png(to_bytes(mesh.texture))
    if path.suffix.lower() == ".usdz":
        with TemporaryDirectory() as folder, atomic_path(path) as temporary:
            if png is not None:
                (Path(folder) / "texture.png").write_bytes(png)
            _export(_stage(mesh, "./texture.png", crease), Path(folder) / "asset.usdc")
            if not UsdUtils.CreateNewUsdzPackage(str(Path(folder) / "asset.usdc"), str(temporary)):
                raise InputError(f"usd-core could not pack {path}; write a .usdc instead")
        return
    picture = path.parent / (re.sub(r"\s", "_", path.stem) + ".png")
    stage = _stage(mesh, f"./{picture.name}", crease)
    with atomic_path(path) as temporary:
        if png is None:
            _export(stage, temporary)
            return
        with atomic_path(picture) as temporary_picture:
            temporary_picture.write_bytes(png)
            _export(stage, temporary)


def _export(stage: Any, path: Path) -> None:
    if not stage.GetRootLayer().Export(str(path)):
        raise InputError(f"usd-core could not write {path.name}; choose another folder or suffix")


def _stage(mesh: Mesh, picture: str, crease: float | None) -> Any:
    """An open stage in memory with the prims /asset, /asset/mesh and /asset/surface."""
    from pxr import Sdf, Usd, UsdGeom, UsdShade, Vt

    vertices = mesh.vertices.detach().cpu().float().numpy()
    faces = mesh.faces.cpu().numpy().astype(np.int32)

    def triples(values: NDArray) -> Any:
        return Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(values.reshape(-1, 3), np.float32))

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/asset")
    stage.SetDefaultPrim(root.GetPrim())
    shape = UsdGeom.Mesh.Define(stage, "/asset/mesh")
    shape.CreatePointsAttr(triples(vertices))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(faces), 3, np.int32)))
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(faces.reshape(-1)))
    shape.CreateExtentAttr(triples(np.stack([vertices.min(0), vertices.max(0)])))
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateDoubleSidedAttr(True)
    if crease is not None:
        shape.CreateNormalsAttr(triples(corner_normals(vertices, faces, crease)))
        shape.SetNormalsInterpolation(UsdGeom.Tokens.faceVarying)
    primvars = UsdGeom.PrimvarsAPI(shape)

    material = UsdShade.Material.Define(stage, "/asset/surface")
    surface = UsdShade.Shader.Define(stage, "/asset/surface/preview")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    diffuse = surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)

    if mesh.texture is not None and mesh.uvs is not None and mesh.face_uvs is not None:
        st = mesh.uvs.detach().cpu().float().numpy().copy()
        st[:, 1] = 1 - st[:, 1]  # v runs up
        primvar = primvars.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
        primvar.Set(Vt.Vec2fArray.FromNumpy(st))
        primvar.SetIndices(Vt.IntArray.FromNumpy(mesh.face_uvs.cpu().numpy().astype(np.int32).reshape(-1)))
        reader = UsdShade.Shader.Define(stage, "/asset/surface/st")
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
        sampler = UsdShade.Shader.Define(stage, "/asset/surface/texture")
        sampler.CreateIdAttr("UsdUVTexture")
        sampler.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(picture)
        sampler.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
        for axis in ("wrapS", "wrapT"):
            sampler.CreateInput(axis, Sdf.ValueTypeNames.Token).Set("repeat" if tiles(mesh.uvs) else "clamp")
        coordinates = reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
        sampler.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(coordinates)
        diffuse.ConnectToSource(sampler.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
        return stage
    colours = mesh.face_colours if mesh.face_colours is not None else mesh.vertex_colours
    if colours is not None:
        each = UsdGeom.Tokens.uniform if mesh.face_colours is not None else UsdGeom.Tokens.vertex
        linear = srgb_to_linear(colours.detach().cpu().double().clamp(0, 1)).numpy()
        primvars.CreatePrimvar("displayColor", Sdf.ValueTypeNames.Color3fArray, each).Set(triples(linear))
        reader = UsdShade.Shader.Define(stage, "/asset/surface/colour")
        reader.CreateIdAttr("UsdPrimvarReader_float3")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("displayColor")
        diffuse.ConnectToSource(reader.CreateOutput("result", Sdf.ValueTypeNames.Float3))
    else:
        diffuse.Set((float(srgb_to_linear(torch.tensor(DEFAULT_GREY))),) * 3)
    return stage
