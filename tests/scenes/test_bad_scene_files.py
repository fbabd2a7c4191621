"""Every kind of file that is no scene: one line that says what came and the way out, never a traceback."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scene_shapes import cube, face_coloured_cube, textured_cube

from rl3d.errors import InputError
from rl3d.scenes import Gaussians, Mesh, PointCloud, load_scene

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")


def refused(load: Callable[[Path], object], path: Path, match: str) -> str:
    """The message of the InputError; it is one line that names the file."""
    with pytest.raises(InputError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and path.stem in message
    return message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_empty_and_folder(tmp_path: Path, suffix: str) -> None:
    refused(Mesh.load, tmp_path / f"chair{suffix}", "no such file")
    (tmp_path / f"chair{suffix}").write_bytes(b"")
    refused(Mesh.load, tmp_path / f"chair{suffix}", r"empty \(0 bytes\)")
    refused(Mesh.load, tmp_path / f"chairs{suffix}", rf"did you mean chair\{suffix}\?")
    (tmp_path / f"folder{suffix}").mkdir()
    refused(Mesh.load, tmp_path / f"folder{suffix}", "is a folder")
    refused(Mesh.load, tmp_path / "nowhere" / f"a{suffix}", "folder .* does not exist")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_content_under_a_mesh_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"fake{suffix}"
    Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "p.png")
    path.write_bytes((tmp_path / "p.png").read_bytes())
    message = refused(Mesh.load, path, "not a|is not|no STL")
    assert suffix in (".ply", ".off") or "PNG" in message
    path.write_text("Dear reader,\nthis is a letter.\n")
    refused(Mesh.load, path, "is not an? .*(glTF|OBJ|PLY|STL|OFF)")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(Mesh.load, path, "is not an? ")
    path.write_bytes(bytes(range(256)) * 4)
    refused(Mesh.load, path, "is not|truncated")


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".stl", ".off"])
def test_truncated_anywhere(tmp_path: Path, suffix: str) -> None:
    """Cut at many places: an error each time. OBJ has no end mark, so it is tested apart."""
    path = tmp_path / f"cut{suffix}"
    face_coloured_cube().save(path)
    whole = path.read_bytes().rstrip()
    for size in range(1, len(whole) - 8, max(1, len(whole) // 40)):
        path.write_bytes(whole[:size])
        refused(Mesh.load, path, ".")


def test_truncated_obj_line(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2")
    refused(Mesh.load, tmp_path / "a.obj", r"line 4: 'f 1 2' is not understood \(a face of 2 corners\)")


def test_unknown_suffix_names_the_nearest(tmp_path: Path) -> None:
    refused(Mesh.load, tmp_path / "a.gbl", r"did you mean \.glb\?")
    refused(Mesh.load, tmp_path / "a.fbx", "use \\.glb")
    refused(load_scene, tmp_path / "a", "no suffix")
    with pytest.raises(InputError, match=r"cannot write 'a\.gltf'"):
        cube().save(tmp_path / "a.gltf")
    refused(Gaussians.load, tmp_path / "a.glb", "splat PLY")
    refused(PointCloud.load, tmp_path / "a.xyz", "convert it to PLY")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "no faces"),
        ("a.obj", "v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "1 of 3 vertices are NaN"),
        ("a.obj", "v 0 0 0\nv inf 0 0\nv 0 1 0\nf 1 2 3\n", "NaN or infinite"),
        ("a.obj", "v 0 0 0\nv 1e12 0 0\nv 0 1 0\nf 1 2 3\n", r"reach 1.0e\+12, the limit is 1e9"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "line 4: .*index 4 with 3 vertices"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 0\n", "line 4"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -4\n", "line 4"),
        ("a.obj", "v 0 zero 0\n", "line 1"),
        ("a.off", "OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "no faces"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "point outside"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1 2\n", "3 of 4 corners"),
        ("a.off", "OFF\n4000000000 1 0\n0 0 0\n", "truncated"),
        ("a.off", "OFF\n3 x 0\n", "not understood"),
        ("a.off", "OFF\n", "not understood"),
        ("a.stl", "solid a\nendsolid a\n", "no faces"),
        ("a.stl", "solid a\nfacet\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nendsolid\n", "no whole triangles"),
        ("a.stl", "solid a\nvertex 0 0 x\nendsolid\n", "not three numbers"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n", "no end_header"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", "not understood"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty quad x\nend_header\n", "not understood"),
        ("a.ply", "ply\nformat zip 1.0\nend_header\n", "not understood"),
        ("a.ply", "ply\nformat binary_little_endian 1.0\nelement vertex 9\nend_header\n", "no properties"),
        ("a.ply", "ply\nelement vertex 1\nproperty float x\nend_header\n1\n", "no format"),
    ],
)
def test_bad_text_meshes(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    refused(Mesh.load, tmp_path / name, match)


def test_absurd_counts_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\nproperty float x\nproperty float y\n"
    head += "property float z\nelement face 1\nproperty list uchar int vertex_index\nend_header\n"
    (tmp_path / "a.ply").write_bytes(head.encode() + bytes(100))
    refused(Mesh.load, tmp_path / "a.ply", "truncated: its header promises 4000000000")
    (tmp_path / "a.stl").write_bytes(bytes(80) + struct.pack("<I", 4_000_000_000) + bytes(100))
    refused(Mesh.load, tmp_path / "a.stl", "promises 4000000000 triangles")


def test_ply_that_is_no_mesh_says_how_to_load_it(tmp_path: Path) -> None:
    PointCloud(torch.zeros(2, 3)).save(tmp_path / "a.ply")
    refused(Mesh.load, tmp_path / "a.ply", "no faces .*load_scene")
    refused(Gaussians.load, tmp_path / "a.ply", "properties opacity, scale_0")
    cube().save(tmp_path / "a.ply")
    refused(Gaussians.load, tmp_path / "a.ply", "not a splat PLY")


def splat_text(**changes: str) -> str:
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    names += ["rot_0", "rot_1", "rot_2", "rot_3"]
    values = dict.fromkeys(names, "0") | {"rot_0": "1"} | changes
    head = "".join(f"property float {n}\n" for n in values if values[n])
    return (
        f"ply\nformat ascii 1.0\nelement vertex 1\n{head}end_header\n"
        + " ".join(v for v in values.values() if v)
        + "\n"
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x": "nan"}, "1 of 1 splats have NaN or infinite means"),
        ({"x": "1e10"}, "beyond"),
        ({"rot_0": "0"}, "all zero"),
        ({"rot_2": ""}, "properties rot_2 are missing"),
        ({"f_dc_1": ""}, "f_dc_1"),
        ({"f_rest_0": "1"}, "1 f_rest properties, expected 0, 9, 24 or 45"),
        ({"scale_0": "wide"}, "not numbers"),
    ],
)
def test_bad_splats(tmp_path: Path, changes: dict[str, str], match: str) -> None:
    (tmp_path / "s.ply").write_text(splat_text(**changes))
    refused(load_scene, tmp_path / "s.ply", match)


def test_splat_lists_are_refused(tmp_path: Path) -> None:
    text = splat_text(scale_0="1 0").replace("property float scale_0", "property list uchar float scale_0")
    (tmp_path / "s.ply").write_text(text)
    refused(load_scene, tmp_path / "s.ply", "scale_0 is a list")


def test_good_splat_text_is_accepted(tmp_path: Path) -> None:
    """So that the cases above fail for their own reason."""
    (tmp_path / "s.ply").write_text(splat_text())
    assert isinstance(load_scene(tmp_path / "s.ply"), Gaussians)
    whole = splat_text()
    (tmp_path / "s.ply").write_text(whole[: whole.rindex(" ")])
    refused(load_scene, tmp_path / "s.ply", "truncated")
    (tmp_path / "s.ply").write_text(whole.replace("vertex 1", "vertex 0"))
    refused(load_scene, tmp_path / "s.ply", "no splats")


def damaged_glb(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrite the JSON of a good GLB."""
    textured_cube().save(path)
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    tree = json.loads(data[20 : 20 + size])
    change(tree)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON")
    path.write_bytes(head + text + rest)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t["asset"].update(version="1.0"), "glTF version 1.0"),
        (lambda t: t.pop("accessors"), "damaged or not a .glb mesh"),
        (lambda t: t["accessors"][1].update(count=10_000), "beyond its buffer"),
        (lambda t: t["accessors"][1].update(count=-1), "cannot be"),
        (lambda t: t["bufferViews"][0].update(byteLength=10**9), "beyond its buffer"),
        (lambda t: t["accessors"][1].update(count=3), "points outside"),
        (lambda t: t["images"][0].update(bufferView=0), "texture cannot be decoded"),
        (lambda t: t["nodes"][0].update(children=[0]), "appears twice"),
        (lambda t: t["meshes"][0]["primitives"][0].update(mode=0), "no triangles"),
        (lambda t: t.update(extensionsUsed=["KHR_draco_mesh_compression"]), "re-export it without compression"),
        (lambda t: t["buffers"][0].update(uri="https://example.com/a.bin"), "nothing is fetched"),
        (lambda t: t["buffers"][0].update(uri="gone.bin"), "is missing"),
        (lambda t: t["nodes"][0].update(scale=[1, 2]), "damaged or not"),
        (lambda t: t["nodes"][0].update(scale=[1e30] * 3), "the limit is 1e9"),
        (lambda t: t.update(nodes=[], scenes=[{"nodes": []}]), "no triangles"),
    ],
)
def test_damaged_glb(tmp_path: Path, change: Callable[[dict], None], match: str) -> None:
    damaged_glb(tmp_path / "a.glb", change)
    refused(Mesh.load, tmp_path / "a.glb", match)


def test_missing_external_picture_is_a_warning(tmp_path: Path) -> None:
    def external(tree: dict) -> None:
        tree["images"][0] = {"uri": "gone.png"}

    damaged_glb(tmp_path / "a.glb", external)
    with pytest.warns(UserWarning, match=r"gone\.png"):
        assert Mesh.load(tmp_path / "a.glb").texture is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(SUFFIXES), seed=st.randoms(use_true_random=False), flips=st.integers(1, 20))
def test_random_damage_never_ends_in_a_traceback(tmp_path: Path, suffix: str, seed: object, flips: int) -> None:
    """A file with flipped bytes either loads or is refused with an InputError."""
    path = tmp_path / f"a{suffix}"
    if suffix == ".gltf":
        tree = {"asset": {"version": "2.0"}, "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}]}
        path.write_text(json.dumps(tree | {"nodes": [{"mesh": 0}], "accessors": [{"count": 3, "type": "VEC3"}]}))
    else:
        textured_cube().save(path)
    data = bytearray(path.read_bytes())
    for _ in range(flips):
        data[seed.randrange(len(data))] = seed.randrange(256)  # type: ignore[attr-defined]
    path.write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged name of an MTL is a missing MTL
        try:
            Mesh.load(path)
        except InputError as error:
            assert "\n" not in str(error)


def test_save_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    broken = cube().vertices.clone()
    broken[0, 0] = float("nan")
    for mesh, match in (
        (replace(cube(), vertices=broken), "NaN"),
        (replace(cube(), faces=cube().faces + 1), "point outside"),
        (replace(cube(), faces=cube().faces[:0]), "no faces"),
        (replace(face_coloured_cube(), face_colours=torch.full((12, 3), float("nan"))), "NaN or infinite face_colours"),
    ):
        for suffix in (".glb", ".obj", ".ply", ".stl", ".off"):
            with pytest.raises(InputError, match=match):
                mesh.save(tmp_path / f"a{suffix}")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        cube().save(tmp_path / "file" / "a.glb")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
