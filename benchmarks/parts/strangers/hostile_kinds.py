"""Files as a stranger may send them, each built for real: what it is -> how a sound one is changed."""

from __future__ import annotations

from collections.abc import Callable

import h5py
import numpy as np

from sd35h5.store import schema

TEXT = h5py.string_dtype()


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("sinks/virtual", layout)


def _again(name: str, values: object, **more: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **more)

    return change


def _many(file: h5py.File) -> None:
    for place in range(5000):
        file.create_group(f"junk/{place}")


def _twice(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_deflate(1), plist.set_deflate(1)
    h5py.h5d.create(file.id, b"twice", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), plist)


def _class_of_scale(file: h5py.File) -> None:
    del file["layer"].attrs["CLASS"]
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(16)
    held = h5py.h5a.create(file["layer"].id, b"CLASS", kind, h5py.h5s.create(h5py.h5s.SCALAR))
    held.write(np.array(b"IMAGE", "S16"))


def _picture_bomb(file: h5py.File) -> None:
    del file["images"], file["pixel_y"], file["pixel_x"]
    for name in ("pixel_y", "pixel_x"):
        file.create_dataset(name, data=np.arange(32_000, dtype="<i4"), compression="gzip", chunks=(32_000,))
        file[name].make_scale(name)
    shape, chunks = (len(file["sample"]), 32_000, 32_000, 3), (1, 4096, 4096, 1)
    image = file.create_dataset(
        "images/image", shape, "u1", chunks=chunks, shuffle=True, compression="gzip", fletcher32=True
    )
    for axis, dim in enumerate(schema.VARIABLES["images/image"].dims):
        image.dims[axis].attach_scale(file[dim])


def _attribute(name: str, value: object, place: str = "/") -> Callable[[h5py.File], None]:
    return lambda file: file[place].attrs.__setitem__(name, value)


def _value(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(0, value)


KINDS: dict[str, Callable[[h5py.File], object]] = {
    "soft link that loops": lambda f: f.__setitem__("loop", h5py.SoftLink("/loop")),
    "external link": lambda f: f.__setitem__("sinks/odd", h5py.ExternalLink("/etc/passwd", "/")),
    "cycle of groups": lambda f: f.__setitem__("sinks/again", f["/"]),
    "external storage": lambda f: f.create_dataset("odd", (4,), "u1", external=[("/etc/passwd", 0, 4)]),
    "virtual dataset": _virtual,
    "unknown filter": lambda f: f.create_dataset("odd", (4,), "f4", chunks=(4,), compression="lzf"),
    "gzip of gzip": _twice,
    "huge dimension": lambda f: f.create_dataset("odd", (1 << 40,), "u1", chunks=(1024,)),
    "huge chunk": lambda f: f.create_dataset(
        "odd", (1 << 14,) * 2, "f4", chunks=(1 << 14,) * 2, compression="gzip"
    ),
    "endless chunks": lambda f: f.create_dataset("odd", (1 << 20,) * 2, "f4", chunks=(1, 1)),
    "sparse bomb": lambda f: f.create_dataset("odd", (1 << 15,) * 2, "f4"),
    "picture bomb": _picture_bomb,
    "long text attribute": _attribute("model_id", "x" * (30 << 20)),
    "many numbers in an attribute": lambda f: f["sinks"].attrs.create("odd", np.zeros(9000)),
    "long text": _value("samples/prompt", "x" * (4 << 20)),
    "broken UTF-8 in a text": _value("samples/prompt", b"\xff\xfe\xfa"),
    "escape of a terminal in a prompt": _value("samples/prompt", "\x1b[2J\x1b]0;x\x07"),
    "deep nesting": lambda f: f.create_group("/".join("abcdefghijklmn")),
    "many objects": _many,
    "escape of a terminal in a name": lambda f: f.__setitem__("\x1b[31mred", h5py.SoftLink("/sinks")),
    "reference": lambda f: f.create_dataset("odd", (1,), h5py.ref_dtype),
    "compound": lambda f: f.create_dataset("odd", (1,), np.dtype([("a", "f4")])),
    "numbers of variable length": lambda f: f.create_dataset("odd", (1,), h5py.vlen_dtype("f4")),
    "wrong type": _again("sinks/entropy_text", np.zeros((2, 2, 2, 2, 2, 3))),
    "group for a variable": lambda f: (f.__delitem__("sinks/mass_group"), f.create_group("sinks/mass_group")),
    "another CLASS of a scale": _class_of_scale,
    "lone surrogate in the config": _again("provenance/config", '{"prompt": "\\ud800"}', dtype=TEXT),
    "config nested 100,000 deep": _again("provenance/config", "[" * 100_000 + "]" * 100_000, dtype=TEXT),
    "another major version": _attribute("schema_version", "2.0"),
    "reader of a later version": _attribute("min_reader", "1.9"),
    "changed scale": _value("sigma", 0.25),
    "scale_factor": _attribute("scale_factor", 1000.0, "sinks/mass_group"),
    "changed provenance": _again("provenance/config", '{"steps": 99}', dtype=TEXT),
}
