"""Round trips of every mesh format, and files of other writers."""

from __future__ import annotations

import base64
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scene_shapes import cube, face_coloured_cube, icosphere, textured_cube, vertex_coloured_cube

from rl3d.colour import linear_to_srgb
from rl3d.scenes import Mesh, mesh_facts
from rl3d.scenes.texture import face_centre_colours, sample_bilinear, sample_nearest

SUFFIXES = (".glb", ".obj", ".ply", ".stl", ".off")


def glb_tree(path: Path) -> tuple[dict[str, Any], bytes]:
    """An independent, strict parse of a GLB into JSON and its binary chunk."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    tree = json.loads(data[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary_size % 4 == 0 and 28 + size + binary_size == len(data)
    return tree, data[28 + size :]


def write_gltf(path: Path, tree: dict[str, Any], blobs: list[bytes]) -> Path:
    """A .gltf with one data-URI buffer and one view a blob."""
    views, at = [], 0
    for blob in blobs:
        views.append({"buffer": 0, "byteOffset": at, "byteLength": len(blob)})
        at += len(blob)
    uri = "data:application/octet-stream;base64," + base64.b64encode(b"".join(blobs)).decode()
    tree = {"asset": {"version": "2.0"}, "bufferViews": views, "buffers": [{"uri": uri, "byteLength": at}], **tree}
    path.write_text(json.dumps(tree))
    return path


TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes()
POSITION = {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_geometry_survives_bit_exact(tmp_path: Path, suffix: str) -> None:
    mesh = icosphere()
    mesh.save(tmp_path / f"a{suffix}")
    back = Mesh.load(tmp_path / f"a{suffix}")
    torch.testing.assert_close(back.triangles, mesh.triangles, rtol=0, atol=0)
    assert back.texture is None and back.face_colours is None and back.vertex_colours is None
    facts = mesh_facts(back)
    assert facts["watertight"] and facts["vertices"] == len(mesh.vertices) == 66
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".off"])
def test_face_colours_survive(tmp_path: Path, suffix: str) -> None:
    mesh = face_coloured_cube()
    mesh.save(tmp_path / f"a{suffix}")
    back = Mesh.load(tmp_path / f"a{suffix}")
    assert back.face_colours is not None and mesh.face_colours is not None
    torch.testing.assert_close(back.face_colours, mesh.face_colours, rtol=0, atol=1e-7)
    torch.testing.assert_close(back.triangles, mesh.triangles, rtol=0, atol=0)
    assert len(back.welded().vertices) == 8


@pytest.mark.parametrize(("suffix", "tolerance"), [(".glb", 2e-6), (".obj", 1e-6), (".ply", 1e-6), (".off", 1e-6)])
def test_vertex_colours_survive(tmp_path: Path, suffix: str, tolerance: float) -> None:
    mesh = vertex_coloured_cube()  # GLB holds linear float32: 6e-7 measured after sRGB -> linear -> sRGB
    mesh.save(tmp_path / f"a{suffix}")
    back = Mesh.load(tmp_path / f"a{suffix}")
    assert back.vertex_colours is not None and mesh.vertex_colours is not None
    torch.testing.assert_close(back.vertex_colours, mesh.vertex_colours, rtol=0, atol=tolerance)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_texture_survives_the_right_way_up(tmp_path: Path, suffix: str) -> None:
    mesh = textured_cube()
    mesh.save(tmp_path / f"a{suffix}")
    back = Mesh.load(tmp_path / f"a{suffix}")
    assert back.texture is not None and back.uvs is not None and back.face_uvs is not None
    assert mesh.texture is not None and mesh.uvs is not None and mesh.face_uvs is not None
    torch.testing.assert_close(back.texture, mesh.texture, rtol=0, atol=1e-7)
    torch.testing.assert_close(back.uvs[back.face_uvs], mesh.uvs[mesh.face_uvs], rtol=0, atol=1e-7)
    welded = back.welded()
    assert len(welded.vertices) == 8 and mesh_facts(back)["watertight"]
    torch.testing.assert_close(face_centre_colours(welded), face_centre_colours(mesh), rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_texture_orientation_agrees_with_trimesh(tmp_path: Path, suffix: str) -> None:
    """The corner (u, v) = (0, 0) of ours is the picture's top-left texel, red, for an independent reader too."""
    textured_cube().save(tmp_path / f"a{suffix}")
    theirs = trimesh.load_mesh(tmp_path / f"a{suffix}", process=False)
    material = theirs.visual.material
    picture = getattr(material, "baseColorTexture", None) or material.image
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    corner = int(np.argmin(np.abs(theirs.visual.uv - [0.0, 1.0]).sum(1)))  # trimesh's v runs up
    uv = theirs.visual.uv[corner]
    assert np.allclose(uv, [0.0, 1.0], atol=1e-6)
    ours = textured_cube()
    assert ours.uvs is not None and ours.face_uvs is not None
    places = {tuple(p) for p in ours.vertices[ours.faces[ours.face_uvs == 0]].tolist()}
    assert tuple(theirs.vertices[corner].tolist()) in places


def test_sampling_conventions_by_hand() -> None:
    texture = textured_cube().texture
    assert texture is not None
    uv = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75], [1.25, -0.75], [0.5, 0.25], [0, 0]])
    want = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.25]])
    torch.testing.assert_close(sample_bilinear(texture, uv, repeat=True), want)
    torch.testing.assert_close(sample_nearest(texture, uv[:5]), want[:5])
    want[4], want[6] = torch.tensor([0.0, 1, 0]), torch.tensor([1.0, 0, 0])  # clamped: the border goes on
    torch.testing.assert_close(sample_bilinear(texture, uv), want)


def test_glb_is_valid_gltf(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    mesh = textured_cube()
    mesh.save(path)
    tree, binary = glb_tree(path)
    assert tree["asset"]["version"] == "2.0"
    assert tree["buffers"][0]["byteLength"] == len(binary)
    material = tree["materials"][0]
    assert material["doubleSided"] is True
    assert material["pbrMetallicRoughness"] == {
        "metallicFactor": 0.0,
        "roughnessFactor": 1.0,
        "baseColorTexture": {"index": 0},
    }
    primitive = tree["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 4 and primitive["material"] == 0
    sizes = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}
    kinds = {5123: "<u2", 5125: "<u4", 5126: "<f4"}
    arrays = []
    for accessor in tree["accessors"]:
        view = tree["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(binary)
        count = accessor["count"] * sizes[accessor["type"]]
        values = np.frombuffer(binary, kinds[accessor["componentType"]], count, view["byteOffset"])
        arrays.append(values.reshape(accessor["count"], -1))
    position = tree["accessors"][primitive["attributes"]["POSITION"]]
    assert position["min"] == [-0.5] * 3 and position["max"] == [0.5] * 3
    points = arrays[primitive["attributes"]["POSITION"]]
    index = arrays[primitive["indices"]].reshape(-1, 3)
    np.testing.assert_array_equal(points[index], mesh.triangles.numpy())
    image = tree["images"][0]
    assert image["mimeType"] == "image/png"
    view = tree["bufferViews"][image["bufferView"]]
    png = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    (tmp_path / "t.png").write_bytes(png)
    assert Image.open(tmp_path / "t.png").getpixel((1, 0)) == (0, 255, 0)


def test_glb_palette_has_a_block_of_texels_a_colour(tmp_path: Path) -> None:
    face_coloured_cube().save(tmp_path / "a.glb")
    tree, binary = glb_tree(tmp_path / "a.glb")
    assert tree["samplers"][0]["magFilter"] == 9728  # nearest
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    (tmp_path / "t.png").write_bytes(binary[view["byteOffset"] :][: view["byteLength"]])
    assert Image.open(tmp_path / "t.png").size == (12, 8)  # six colours: 3 x 2 blocks of 4 x 4
    assert "COLOR_0" not in tree["meshes"][0]["primitives"][0]["attributes"]


def test_files_are_the_same_twice(tmp_path: Path) -> None:
    for name in ("a.glb", "b.glb"):
        textured_cube().save(tmp_path / name)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_obj_writes_its_three_files_and_survives_blanks_in_the_name(tmp_path: Path) -> None:
    face_coloured_cube().save(tmp_path / "my cube.obj")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my cube.obj", "my_cube.mtl", "my_cube.png"]
    assert Mesh.load(tmp_path / "my cube.obj").face_colours is not None


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_any_file_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "Faß 樽" / f"kleines Faß 樽{suffix}"
    textured_cube().save(path)
    assert Mesh.load(path).texture is not None


def test_off_reduces_a_texture_to_face_centres(tmp_path: Path) -> None:
    textured_cube().save(tmp_path / "a.off")
    back = Mesh.load(tmp_path / "a.off").face_colours
    assert back is not None
    torch.testing.assert_close(back, face_centre_colours(textured_cube()), rtol=0, atol=0.5 / 255 + 1e-6)


def test_node_transforms_and_mirroring(tmp_path: Path) -> None:
    quarter = [0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]  # 90 degrees about +Z
    tree = {
        "nodes": [{"children": [1], "translation": [0, 0, 5]}, {"mesh": 0, "rotation": quarter, "scale": [2, 2, -2]}],
        "scenes": [{"nodes": [0]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [POSITION],
    }
    mesh = Mesh.load(write_gltf(tmp_path / "a.gltf", tree, [TRIANGLE]))
    want = torch.tensor([[0.0, 0, 5], [0, 2, 5], [-2, 0, 5]])
    torch.testing.assert_close(mesh.vertices, want, rtol=0, atol=1e-6)
    assert mesh.faces.tolist() == [[2, 1, 0]]  # the mirrored triangle is turned over


def test_gltf_colours_are_linear_light(tmp_path: Path) -> None:
    factor = [0.5, 0.25, 0.0, 1.0]
    shades = np.array([[1, 1, 1], [0.5, 0.5, 0.5], [0, 0, 0]], "<f4")
    tree = {
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": factor}}],
        "accessors": [POSITION, {**POSITION, "bufferView": 1}],
    }
    plain = Mesh.load(write_gltf(tmp_path / "a.gltf", tree, [TRIANGLE, shades.tobytes()])).face_colours
    assert plain is not None
    torch.testing.assert_close(plain[0], linear_to_srgb(torch.tensor(factor[:3])), rtol=0, atol=1e-6)
    tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = 1  # type: ignore[index]
    mixed = Mesh.load(write_gltf(tmp_path / "a.gltf", tree, [TRIANGLE, shades.tobytes()])).vertex_colours
    assert mixed is not None
    want = linear_to_srgb(torch.from_numpy(shades.copy()) * torch.tensor(factor[:3]))
    torch.testing.assert_close(mixed, want, rtol=0, atol=1e-6)


def test_gltf_normalised_strided_and_sparse_accessors(tmp_path: Path) -> None:
    interleaved = np.zeros(3, [("p", "<f4", 3), ("c", "u1", 4)])
    interleaved["p"] = np.frombuffer(TRIANGLE, "<f4").reshape(3, 3)
    interleaved["c"][:, 1] = 255
    moved = np.array([9.0, 0, 0], "<f4").tobytes()
    tree = {
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}}]}],
        "accessors": [
            {
                **POSITION,
                "sparse": {
                    "count": 1,
                    "indices": {"bufferView": 1, "componentType": 5121},
                    "values": {"bufferView": 2},
                },
            },
            {
                "bufferView": 0,
                "byteOffset": 12,
                "componentType": 5121,
                "normalized": True,
                "count": 3,
                "type": "VEC4",
            },
        ],
    }
    path = write_gltf(tmp_path / "a.gltf", tree, [interleaved.tobytes(), b"\1", moved])
    data = json.loads(path.read_text())
    data["bufferViews"][0]["byteStride"] = 16
    path.write_text(json.dumps(data))
    mesh = Mesh.load(path)
    assert mesh.vertices.tolist() == [[0, 0, 0], [9, 0, 0], [0, 1, 0]]
    assert mesh.vertex_colours is not None and mesh.vertex_colours.tolist() == [[0, 1, 0]] * 3


def test_gltf_strips_wind_one_way(tmp_path: Path) -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], "<f4").tobytes()
    tree = {
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5}]}],
        "accessors": [{**POSITION, "count": 4}],
    }
    mesh = Mesh.load(write_gltf(tmp_path / "a.gltf", tree, [square]))
    assert mesh.face_normals.tolist() == [[0, 0, 1], [0, 0, 1]]


def two_material_obj(folder: Path, uv_high: float) -> Path:
    """Two textured triangles with different 1x1 pictures and one plain triangle."""
    for name, colour in (("a", (200, 10, 20)), ("b", (1, 100, 2))):
        Image.new("RGB", (2, 3) if name == "a" else (4, 1), colour).save(folder / f"{name}.png")
    (folder / "m.mtl").write_text("newmtl A\nmap_Kd a.png\nnewmtl B\nKd 1 1 1\nmap_Kd b.png\nnewmtl C\nKd 0 0.2 1\n")
    rows = ["mtllib m.mtl", *(f"v {x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1))]
    rows += ["vt 0 0", f"vt {uv_high} 0", "vt 0 1", "usemtl A", "f 1/1 2/2 3/3", "usemtl B", "f 4/1 5/2 6/3"]
    rows += ["usemtl C", "f 1 2 7"]
    (folder / "m.obj").write_text("\n".join(rows))
    return folder / "m.obj"


@pytest.mark.parametrize("uv_high", [1.0, 3.0])
def test_several_materials_become_one_colour_source(tmp_path: Path, uv_high: float) -> None:
    mesh = Mesh.load(two_material_obj(tmp_path, uv_high))
    assert (mesh.texture is not None) == (uv_high == 1.0)  # a tiling picture has no place in an atlas
    want = torch.tensor([[200, 10, 20], [1, 100, 2], [0, 51, 255]]) / 255
    torch.testing.assert_close(face_centre_colours(mesh), want, rtol=0, atol=1e-6)
    if mesh.texture is not None and mesh.uvs is not None:  # corners too: no bleeding between the stacked pictures
        corners = sample_bilinear(mesh.texture, mesh.uvs[mesh.face_uvs])
        torch.testing.assert_close(corners, want[:, None].expand(3, 3, 3), rtol=0, atol=1e-6)


def test_plain_materials_become_face_colours(tmp_path: Path) -> None:
    (tmp_path / "m.mtl").write_text("newmtl A\nKd 1 0 0\nnewmtl B\nKd 0 0.5 0\n")
    (tmp_path / "m.obj").write_text(
        "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nusemtl A\nf 1 2 3\nusemtl B\nf 1 3 4\n"
    )
    colours = Mesh.load(tmp_path / "m.obj").face_colours
    assert colours is not None and colours.tolist() == [[1, 0, 0], [0, 0.5, 0]]


def test_missing_material_file_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "m.obj").write_text("mtllib gone.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nusemtl A\nf 1 2 3\n")
    with pytest.warns(UserWarning, match=r"gone\.mtl"):
        assert Mesh.load(tmp_path / "m.obj").face_colours is None


def test_obj_polygons_and_relative_indices(tmp_path: Path) -> None:
    (tmp_path / "m.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 2 1 0\nv 1 2 0\nv 0 2 0\nf -5//1 -4 \\\n -3 4 5\nvn 0 0 1\nl 1 2\n"
    )
    assert Mesh.load(tmp_path / "m.obj").faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4]]


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_of_mixed_polygons(tmp_path: Path, encoding: str) -> None:
    points = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 2, 2]]
    polygons = [[0, 1, 2, 3], [0, 1, 4]]
    head = f"ply\nformat {encoding} 1.0\ncomment x\nelement vertex 5\nproperty double x\nproperty double y\n"
    head += "property double z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
    head += "element face 2\nproperty list uchar int vertex_index\nproperty short flags\nend_header\n"
    order = ">" if "big" in encoding else "<"
    if encoding == "ascii":
        body = "".join(f"{x} {y} {z} 255 0 51\n" for x, y, z in points)
        body += "".join(f"{len(p)} {' '.join(map(str, p))} 7\n" for p in polygons)
        data = body.encode()
    else:
        data = b"".join(struct.pack(f"{order}3d3B", *p, 255, 0, 51) for p in points)
        data += b"".join(struct.pack(f"{order}B{len(p)}ih", len(p), *p, 7) for p in polygons)
    (tmp_path / "m.ply").write_bytes(head.encode() + data)
    mesh = Mesh.load(tmp_path / "m.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]
    assert mesh.vertices.tolist() == points
    assert mesh.vertex_colours is not None
    torch.testing.assert_close(mesh.vertex_colours[0], torch.tensor([1.0, 0.0, 0.2]))


def test_off_on_one_line_with_comments_and_quads(tmp_path: Path) -> None:
    (tmp_path / "m.off").write_text(
        "OFF 4 2 0 # head\n0 0 0\n1 0 0\n\n1 1 0\n# x\n0 1 0\n4 0 1 2 3 255 0 0\n3 0 1 2 0.0 0.5 1.0\n"
    )
    mesh = Mesh.load(tmp_path / "m.off")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
    assert mesh.face_colours is not None and mesh.face_colours.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0.5, 1]]


def test_ascii_stl(tmp_path: Path) -> None:
    rows = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1e0 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    (tmp_path / "m.stl").write_text(f"solid a\n{rows}endsolid a\n")
    assert Mesh.load(tmp_path / "m.stl").triangles.tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_trimesh_reads_what_we_write(tmp_path: Path, suffix: str) -> None:
    face_coloured_cube().save(tmp_path / f"a{suffix}")
    theirs = trimesh.load_mesh(tmp_path / f"a{suffix}")
    theirs.merge_vertices(merge_tex=True, merge_norm=True)
    assert theirs.is_watertight and theirs.volume == pytest.approx(1.0) and theirs.faces.shape == (12, 3)


@pytest.mark.parametrize("file_type", ["glb", "gltf", "obj", "ply", "stl", "off"])
def test_we_read_what_trimesh_writes(tmp_path: Path, file_type: str) -> None:
    box = trimesh.creation.box(extents=(1, 2, 3))
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([1, 0, 0]))
    if file_type == "gltf":
        for name, data in scene.export(file_type="gltf").items():
            (tmp_path / name).write_bytes(data)
        path = tmp_path / "model.gltf"
    else:
        path = tmp_path / f"a.{file_type}"
        (scene if file_type == "glb" else scene.to_mesh()).export(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mesh = Mesh.load(path)
    torch.testing.assert_close(mesh.bounds, torch.tensor([[0.5, -1, -1.5], [1.5, 1, 1.5]]))
    assert mesh_facts(mesh)["volume"] == pytest.approx(6.0)


@pytest.mark.parametrize("make", [cube, face_coloured_cube, vertex_coloured_cube, textured_cube])
def test_trimesh_conversion_round_trip(make: Any) -> None:
    mesh = make()
    back = Mesh.from_trimesh(mesh.to_trimesh())
    torch.testing.assert_close(back.triangles, mesh.triangles)
    torch.testing.assert_close(face_centre_colours(back), face_centre_colours(mesh), rtol=0, atol=1e-6)


def test_from_trimesh_scene_of_textured_and_plain_parts() -> None:
    scene = trimesh.Scene([textured_cube().to_trimesh(), face_coloured_cube().to_trimesh()])
    mesh = Mesh.from_trimesh(scene)
    want = torch.cat([face_centre_colours(textured_cube()), face_centre_colours(face_coloured_cube())])
    assert mesh.texture is not None
    torch.testing.assert_close(face_centre_colours(mesh)[12:], want[12:], rtol=0, atol=1e-6)
