"""Findings: kept beside the run, whole or not at all, by several at once; read with suspicion; shown in reports."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pytest
from making.pages import text_of
from PIL import Image

from sd35h5 import open_store
from sd35h5.__main__ import main
from sd35h5.errors import StoreError
from sd35h5.reports import view_page
from sd35h5.reports.findings import findings_file, kept_views

TABLE = pd.DataFrame({"sample": [0, 1], "content_sha256": ["aa", "bb"]})
HOSTILE = "<script>alert(1)</script> | **bold** \u202e"


def made(
    note: str = "a sink", run: str = "run.h5", samples: pd.DataFrame = TABLE, **changes
) -> findings_file.Finding:
    """Return a finding of a chart."""
    chart = alt.Chart(pd.DataFrame({"x": [1, 2]})).mark_point().encode(x="x:Q")
    shown = view_page.Shown("Layer × head", chart, samples, "table = 1")
    address = kept_views.address("sinks", [("run", "run"), ("cell", "3.4"), ("with", "a"), ("with", "b")])
    return replace(kept_views.finding(shown, note, "Sinks", address, "cond", run, samples, 1), **changes)


@pytest.fixture(scope="module")
def one() -> findings_file.Finding:
    return made()


@pytest.mark.parametrize(
    ("run", "name"),
    [("run.h5", "run"), ("run.hdf5", "run"), ("run.h5.parts", "run"), ("a.folder", "a.folder")],
)
def test_findings_lie_beside_the_run_under_its_name(tmp_path, run, name):
    assert findings_file.beside(tmp_path / run) == tmp_path / f"{name}.findings.json"


def test_what_was_kept_is_read_again_and_can_be_annotated_and_removed(tmp_path, one):
    path = tmp_path / "run.findings.json"
    assert findings_file.read(path) == ()
    other = replace(one, id="0a", note="line one\nline two " + HOSTILE)
    findings_file.add(path, one)
    findings_file.add(path, other)
    assert findings_file.read(path) == (one, other)
    findings_file.annotate(path, one.id, "better")
    assert [kept.note for kept in findings_file.read(path)] == ["better", other.note]
    findings_file.remove(path, one.id)
    assert findings_file.read(path) == (other,)
    for change in (
        lambda: findings_file.remove(path, one.id),
        lambda: findings_file.annotate(path, one.id, ""),
    ):
        with pytest.raises(StoreError, match="deleted meanwhile"):
            change()
    findings_file.remove(path, other.id)
    assert list(tmp_path.iterdir()) == []


def test_threads_and_processes_that_add_at_once_lose_nothing(tmp_path, one):
    path = tmp_path / "run.findings.json"
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from sd35h5.reports.findings import findings_file\n"
        "path, seed = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "(one,) = findings_file.read(seed)\n"
        "for place in range(12): findings_file.add(path, replace(one, id=f'f{place:x}'))\n"
    )
    findings_file.add(tmp_path / "seed.json", one)
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "seed.json")]
    with subprocess.Popen(command) as other, ThreadPoolExecutor(4) as threads:
        ids = [f"a{place:x}" for place in range(24)]
        list(threads.map(findings_file.add, repeat(path), [replace(one, id=each) for each in ids]))
        assert other.wait(60) == 0
    assert {kept.id for kept in findings_file.read(path)} == {*ids, *(f"f{place:x}" for place in range(12))}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run.findings.json", "seed.json"]


def test_what_a_killed_writer_left_is_taken_over(tmp_path, one):
    path = tmp_path / "run.findings.json"
    path.with_name(f"{path.name}.tmp").write_bytes(b"x" * 100_000)
    findings_file.add(path, one)
    assert findings_file.read(path) == (one,)


def told(one: findings_file.Finding, **changes) -> bytes:
    """Return the file of a finding with other values in it; None leaves one out."""
    row = json.loads(findings_file._written(Path("x"), (one,)))["findings"][0] | changes
    row = {name: value for name, value in row.items() if value is not None}
    return json.dumps({"format": findings_file.FORMAT, "findings": [row]}).encode()


def huge_png() -> str:
    """Return a picture that would take 10 GB once it is decoded."""
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return base64.b64encode(bytes(data)).decode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xfe", b"{", b"[" * 100_000, b"null", b"[]", b"{}", b'{"format": "other", "findings": []}',
        b'{"format": "sd35h5 findings 1", "findings": {}}', b'{"format": "sd35h5 findings 1", "findings": [3]}',
        {"note": None}, {"note": 3}, {"note": "x" * 2001}, {"code": "x" * 20_001}, {"id": "../x"},
        {"address": "javascript:alert(1)"}, {"address": "//evil.example/?a"}, {"address": "sinks?a\nb"},
        {"picture": "?"}, {"picture": base64.b64encode(b"<svg onload=alert(1)>").decode()}, {"picture": huge_png()},
    ],
    ids=str,
)  # fmt: skip
def test_a_broken_or_hostile_file_is_a_sentence_and_stays_as_it_is(tmp_path, one, data):
    path = tmp_path / "run.findings.json"
    data = told(one, **data) if isinstance(data, dict) else data
    path.write_bytes(data)
    for act in (lambda: findings_file.read(path), lambda: findings_file.add(path, one)):
        with pytest.raises(
            StoreError, match=r"^run\.findings\.json is not a file of findings: .*move it away"
        ):
            act()
    assert path.read_bytes() == data and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_what_is_too_large_is_refused_when_it_is_kept(tmp_path, one):
    path = tmp_path / "run.findings.json"
    with pytest.raises(StoreError, match="more than 2,000 characters"):
        findings_file.add(path, replace(one, note="x" * 2001))
    path.write_bytes(b" " * (findings_file.MAX_BYTES + 1))
    with pytest.raises(StoreError, match="larger than 16 MB"):
        findings_file.read(path)


def test_a_place_that_cannot_be_written_and_what_is_no_file_are_sentences(tmp_path, one):
    with pytest.raises(StoreError, match="cannot be written beside the run"):
        findings_file.add(Path("/proc/run.findings.json"), one)
    secret = tmp_path / "secret.json"
    findings_file.add(secret, one)
    for name in ("run.findings.json", "other.findings.json.tmp"):
        (tmp_path / name).symlink_to(secret)
    before = secret.read_bytes()
    with pytest.raises(StoreError, match="cannot be read"):
        findings_file.read(tmp_path / "run.findings.json")
    with pytest.raises(StoreError, match="cannot be written"):
        findings_file.add(tmp_path / "other.findings.json", one)
    assert secret.read_bytes() == before


def test_an_address_leads_to_a_page_of_this_dashboard_with_the_runs_name_of_today(one):
    assert one.address == "sinks?run=run&cell=3.4&with=a&with=b"
    assert kept_views.address_in(one, "a/run (2)") == "./sinks?run=a%2Frun+%282%29&cell=3.4&with=a&with=b"
    first = replace(one, address="?x=%22%3E%3Cscript%3E")
    assert kept_views.address_in(first, "run") == "./?run=run&x=%22%3E%3Cscript%3E"


def test_a_moved_a_grown_and_a_replaced_run_are_told_apart(one):
    grown = pd.concat([TABLE, pd.DataFrame({"sample": [2], "content_sha256": ["cc"]})])
    replaced = TABLE.assign(content_sha256=["dd", "ee"])
    assert kept_views.told_change(one, "run.h5", TABLE.iloc[::-1]) == ""
    assert kept_views.told_change(one, "b/new.h5", TABLE) == "The run was called run.h5 then."
    assert "other samples since" in kept_views.told_change(one, "run.h5", grown)
    assert "replaced since" in kept_views.told_change(one, "run.h5", replaced)
    assert kept_views.told_change(one, "run.h5", TABLE[["sample"]]) == ""


def test_a_large_picture_is_reduced_until_a_finding_may_hold_it():
    noise = np.random.default_rng(0).integers(0, 255, (450, 700, 3), np.uint8)
    small = kept_views.small_png(view_page.picture_bytes(noise))
    assert len(small) <= findings_file.MAX_PICTURE
    with Image.open(io.BytesIO(small)) as picture:
        assert picture.width / picture.height == pytest.approx(700 / 450, rel=0.01)


@pytest.fixture(scope="module")
def kept_folder(folder, tmp_path_factory) -> Path:
    """A folder with two runs that pair, a finding of the second, and findings of a run that is not there."""
    place = tmp_path_factory.mktemp("kept")
    for name in ("demo-baseline.h5", "demo-headwise.h5"):
        shutil.copy(folder / name, place / name)
    with open_store(place / "demo-headwise.h5") as store:
        finding = made(HOSTILE, "demo-headwise.h5", store.samples)
    findings_file.add(findings_file.beside(place / "demo-headwise.h5"), finding)
    findings_file.add(place / "gone.findings.json", replace(finding, run="gone.h5"))
    return place


def test_the_page_lists_findings_with_a_link_and_their_python(app, kept_folder):
    test = app(kept_folder, page="findings")
    assert [block.value for block in test.text] == [HOSTILE.replace("\u202e", r"\u202e")]
    (link,) = test.get("link_button")
    assert link.proto.url == "./sinks?run=demo-headwise&cell=3.4&with=a&with=b"
    assert "table = 1" in [block.value for block in test.code]
    said = text_of(test).replace("\\", "")
    assert (
        "gone.findings.json: 1 finding of a run that is not here: its values are in demo-headwise.h5 now"
        in said
    )
    (shown,) = test.session_state["shown"]
    page = view_page.page("Findings", "", [shown])
    assert "<script" not in page and page.count("data:image/png;base64,") == 1
    assert "sinks?run=run&amp;cell=3.4" in page and "table = 1" in page


def test_a_note_is_changed_and_a_finding_deleted_on_the_page(app, kept_folder, tmp_path):
    place = shutil.copytree(kept_folder, tmp_path / "copy")
    path = findings_file.beside(place / "demo-headwise.h5")
    (kept,) = findings_file.read(path)
    test = app(place, page="findings")
    test.text_area[0].set_value("another")
    next(each for each in test.button if each.label == "Change the note").click().run()
    assert not test.exception and findings_file.read(path) == (replace(kept, note="another"),)
    test.button(key=f"delete-demo-headwise-{kept.id}").click().run()
    assert not test.exception and not path.exists()
    assert "Nothing yet" in text_of(test)


def test_the_star_keeps_the_view_that_the_page_shows(app, kept_folder, tmp_path):
    place = shutil.copytree(kept_folder, tmp_path / "copy")
    test = app(place, page="tokens", url={"steps": "1-2", "sample": "1"})
    test.text_area[0].set_value("the pads are dark")
    next(each for each in test.button if each.label == "Keep this view").click().run()
    assert not test.exception, test.exception
    (kept,) = findings_file.read(findings_file.beside(place / "demo-baseline.h5"))
    assert kept.note == "the pads are dark" and kept.page == "Tokens" and kept.run == "demo-baseline.h5"
    assert kept.address.startswith("tokens?run=demo-baseline&") and "steps=1-2" in kept.address
    assert "sample=1" in kept.address and "steps 1–2" in kept.about
    shown = test.session_state["shown"][0]
    assert (kept.figure, kept.code) == (shown.name, shown.code) and kept.picture.startswith(b"\x89PNG")
    with open_store(place / "demo-baseline.h5") as store:
        assert kept_views.told_change(kept, "demo-baseline.h5", store.samples) == ""


def test_a_broken_file_is_a_sentence_on_the_page_and_under_the_star(app, kept_folder, tmp_path):
    place = shutil.copytree(kept_folder, tmp_path / "copy")
    (place / "demo-baseline.findings.json").write_text("{")
    assert "is not a file of findings" in text_of(app(place, page="findings"))
    test = app(place, page="files")
    next(each for each in test.button if each.label == "Keep this view").click().run()
    assert not test.exception and "is not a file of findings" in text_of(test)
    assert str(place) not in text_of(test)


def test_the_command_tells_findings_and_makes_a_page_of_them(kept_folder, tmp_path, capsys):
    runs = [str(kept_folder / name) for name in ("demo-baseline.h5", "demo-headwise.h5")]
    assert main(["findings", *runs]) == 0
    said = capsys.readouterr().out
    assert "no findings: demo-baseline.findings.json" in said and "sinks?run=run&cell=3.4" in said
    assert "\u202e" not in said
    assert main(["findings", *runs, "--out", str(tmp_path / "findings.html")]) == 0
    page = (tmp_path / "findings.html").read_text(encoding="utf-8")
    assert "The view: <code>sinks?run=run&amp;cell=3.4" in page and page.count("data:image/png;base64,") == 1
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page and "table = 1" in page
    assert main(["findings", runs[0], "--out", str(tmp_path / "none.html")]) == 1
    assert "no findings beside demo-baseline.h5" in capsys.readouterr().err
