"""The weights that authors publish, by name: from a server on this machine to a depth map, and what can go wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from langdepth.errors import CheckpointError, LangdepthError, MissingCheckpointError, UsageError
from langdepth.systems import registry
from langdepth.systems.card import PublishedRecord, read_card
from langdepth.utils import downloads
from langdepth.weights import checkpoint, fetch, published
from langdepth.weights.stamps import weights_stamp
from tests.docs.things import mmengine_checkpoint
from tests.file_server import FORM, QUOTA, FileServer, serving
from tests.helpers import Run, ramp, run_here, save_image
from tests.stand_ins import small_networks

ROOT = Path(__file__).parents[2]
FILE = "swin-large-22k"  # kept as it is
SYSTEM = "scaledepth-nk"  # converted
CHECKPOINT = b"\x80\x02layers.2.blocks.17.attn.qkv.weight\0" + b"weights" * 100_000  # as it begins


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache; nothing of the environment asks for downloads."""
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    for name in ("LANGDEPTH_DOWNLOAD", "LANGDEPTH_MIRROR", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """What the addresses of the cards lead to; Drive has the id "abc"."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "_PAUSE", 0)
    with serving() as state:
        state.content = CHECKPOINT
        monkeypatch.setattr(fetch, "DRIVE", state.url + "/uc?id={}")
        known = registry.PUBLISHED
        monkeypatch.setitem(known, FILE, replace(known[FILE], url=f"{state.url}/swin.pth"))
        monkeypatch.setitem(known, SYSTEM, replace(known[SYSTEM], google_drive="abc"))
        yield state


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small networks, here and in the process that converts."""
    small_networks(monkeypatch)
    site = tmp_path / "site"
    site.mkdir()
    patch = "import pytest\nfrom tests.stand_ins import small_networks\nsmall_networks(pytest.MonkeyPatch())\n"
    (site / "sitecustomize.py").write_text(patch)
    paths = [str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small system's file, converted from one of the published layout."""
    from langdepth.weights.convert import convert

    folder = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        small_networks(patch)
        mmengine_checkpoint(folder / "iter_40000.pth")
        convert(folder / "iter_40000.pth", SYSTEM, folder / "nk.safetensors")
    return folder


@pytest.fixture
def quick(small: None, converted: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> FileServer:
    """The conversion is known already; the server has the authors' file."""
    server.content = (converted / "iter_40000.pth").read_bytes()
    monkeypatch.setattr(fetch, "_convert", lambda name, source, out, *_: shutil.copy(converted / "nk.safetensors", out))
    return server


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save_image(tmp_path / "photo.png", ramp(96, 64))


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_from_get_to_a_depth_map_in_two_commands(
    command: Run, server: FileServer, small: None, converted: Path, photo: Path, tmp_path: Path
) -> None:
    server.content, server.page = (converted / "iter_40000.pth").read_bytes(), FORM
    server.cuts = [100_000]
    code, out, err = command("weights", "get", SYSTEM)
    assert code == 0, err
    line, path = out.splitlines()
    source = registry.PUBLISHED[SYSTEM].source
    size = f"{len(server.content) / 1e6:.1f} MB"
    assert line == f"{SYSTEM}: iter_40000.pth, {size}, from {source}, licence: not stated with the file"
    assert "bytes=100000-" in [asked for _, asked in server.asked]
    folder = published.folder(SYSTEM)
    assert path == str(folder / f"{SYSTEM}.safetensors")
    assert sorted(file.name for file in folder.iterdir()) == ["fetched.json", f"{SYSTEM}.md", f"{SYSTEM}.safetensors"]

    code, out, err = command("predict", photo, "--system", SYSTEM, "--save", "npz", "--out", tmp_path / "depth")
    assert code == 0, err
    assert (tmp_path / "depth" / "photo.npz").is_file()
    assert checkpoint.load(SYSTEM).provenance["licence"] == "not stated with the file"


def test_get_again_fetches_nothing(command: Run, server: FileServer) -> None:
    assert command("weights", "get", FILE)[0] == 0
    asked = len(server.asked)
    code, out, _ = command("weights", "get", FILE)
    assert (code, len(server.asked)) == (0, asked)
    assert out.strip() == str(published.file_of(FILE))
    assert published.file_of(FILE).read_bytes() == server.content


def test_predict_fetches_nothing_unasked(command: Run, quick: FileServer, photo: Path, tmp_path: Path) -> None:
    code, _, err = command("predict", photo, "--system", SYSTEM, "--out", tmp_path / "depth")
    assert (code, quick.asked) == (1, [])
    for words in (f"'langdepth weights get {SYSTEM}'", "licence: not stated", "drive.google.com", "--download"):
        assert words in last_line(err)
    with pytest.raises(MissingCheckpointError, match="langdepth weights get"):
        checkpoint.load(SYSTEM)


def test_predict_fetches_when_it_is_told_to(command: Run, quick: FileServer, photo: Path, tmp_path: Path) -> None:
    before = weights_stamp(SYSTEM)
    code, _, err = command("predict", photo, "--system", SYSTEM, "--download", "--out", tmp_path / "depth")
    assert code == 0, err
    assert f"{SYSTEM}: iter_40000.pth, " in err
    assert weights_stamp(SYSTEM) != before


def test_finished_maps_need_no_download(command: Run, tmp_path: Path) -> None:
    code, _, err = command("evaluate", "--predictions", tmp_path, "--root", tmp_path, "--out", "r.json", "--download")
    assert (code, "--download is for systems" in err) == (2, True)


def test_the_environment_asks(quick: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGDEPTH_DOWNLOAD", "1")
    assert checkpoint.load(SYSTEM).provenance["sha256"] == published.fetched(SYSTEM).sha256  # type: ignore[union-attr]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("no\n", False), ("", False)])
def test_on_a_terminal_one_is_asked(
    command: Run, quick: FileServer, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    answer: str, agreed: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    code, _, err = command("predict", photo, "--system", SYSTEM, "--out", tmp_path / "depth")
    assert f"MB, from {registry.PUBLISHED[SYSTEM].source}, licence: not stated with the file. Fetch it? [y/N]" in err
    assert code == (0 if agreed else 2)
    assert (published.fetched(SYSTEM) is not None) == agreed
    assert agreed or not published.folder(SYSTEM).exists()


def test_other_content_than_at_first_is_refused(command: Run, server: FileServer) -> None:
    assert command("weights", "get", FILE)[0] == 0
    path = published.file_of(FILE)
    path.unlink()
    server.content = CHECKPOINT + b"?"
    code, _, err = command("weights", "get", FILE)
    assert code == 1
    assert "another file than before" in err
    assert "recorded on" in err
    assert f"remove {published.folder(FILE)}" in err
    assert not path.exists()
    server.content = CHECKPOINT
    assert command("weights", "get", FILE)[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("vgld-t", b"\x80another head", "has the sha256 bba65faf4659..., not 5887d59531be..."),
        ("vgld-t", b"notes of mine", "is text"),
        ("vgld-t", b"", "is empty"),
        (FILE, b"notes of mine", "is text"),
        (FILE, b"\0\1", "is no checkpoint of torch.save"),
        (FILE, b"\x80\x02decode_head.weight\0", "holds no tensor 'layers.2.blocks.17.attn.qkv.weight'"),
        (FILE, b"<!DOCTYPE html><html>log in</html>", "is a web page instead of the file"),
    ],
)
def test_a_file_that_is_another(
    command: Run, server: FileServer, tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(content)
    code, _, err = command("weights", "get", name, "--file", other)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"langdepth weights: {other}: {what}")
    assert f"; expected is {registry.PUBLISHED[name].file} from {registry.PUBLISHED[name].source}" in err
    assert other.read_bytes() == content
    assert not published.folder(name).exists()


def test_a_file_that_is_another_of_the_published_ones(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"\x80")
    sha256 = hashlib.sha256(b"\x80").hexdigest()
    monkeypatch.setitem(registry.PUBLISHED, "vgld-i", replace(registry.PUBLISHED["vgld-i"], sha256=sha256))
    code, _, err = command("weights", "get", "vgld-t", "--file", other)
    assert (code, f"{other}: is that of 'vgld-i'; expected is vgld_midas-1_nk_t.pth" in err) == (1, True)


def test_a_file_for_weights_that_are_here(command: Run, server: FileServer, tmp_path: Path) -> None:
    assert command("weights", "get", FILE)[0] == 0
    same, other = tmp_path / "same.pth", tmp_path / "other.pth"
    same.write_bytes(CHECKPOINT)
    other.write_bytes(CHECKPOINT + b"?")
    code, out, _ = command("weights", "get", FILE, "--file", same)
    assert (code, out.strip()) == (0, str(published.file_of(FILE)))
    code, _, err = command("weights", "get", FILE, "--file", other)
    assert (code, f"{other}: has the sha256" in err) == (1, True)
    assert f"remove {published.folder(FILE)} first" in err
    assert published.file_of(FILE).read_bytes() == CHECKPOINT
    published.file_of(FILE).write_bytes(b"damaged")
    assert command("weights", "get", FILE, "--file", same)[0] == 0
    assert published.file_of(FILE).read_bytes() == CHECKPOINT
    shutil.rmtree(published.folder(FILE))
    assert command("weights", "get", FILE, "--file", other)[0] == 0


def test_a_file_that_changed_later(command: Run, quick: FileServer, photo: Path, tmp_path: Path) -> None:
    assert command("weights", "get", SYSTEM)[0] == 0
    assert command("weights", "verify", SYSTEM)[:2] == (0, f"{SYSTEM}: unchanged\n")
    path = published.file_of(SYSTEM)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, out, _ = command("weights", "verify")
    assert code == 1
    assert f"{SYSTEM}: {path}: has changed" in out
    assert "tiny: unchanged" in out
    code, _, err = command("predict", photo, "--system", SYSTEM, "--out", tmp_path / "depth")
    assert code == 1
    assert "sha256" in err
    assert command("weights", "get", SYSTEM)[0] == 0  # fetches it again
    assert command("weights", "verify", SYSTEM)[0] == 0


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_mirror(command: Run, server: FileServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    server.page = QUOTA
    if how == "environment":
        monkeypatch.setenv("LANGDEPTH_MIRROR", f"{server.url}/mirror/")
    name = "scaledepth-nk-scenes"
    code, out, err = command("weights", "get", name, *(("--mirror", f"{server.url}/mirror") if how == "option" else ()))
    assert code == 0, err
    address = f"/mirror/{name}/{registry.PUBLISHED[name].file}"
    assert server.asked[0][0] == address
    assert f"from {server.url}{address}" in out


def test_a_mirror_that_is_no_address(command: Run) -> None:
    code, _, err = command("weights", "get", FILE, "--mirror", "there")
    assert code == 2
    assert "must begin with http://" in err


def test_a_page_about_a_quota_names_the_way_by_browser(command: Run, server: FileServer) -> None:
    server.page = QUOTA
    code, _, err = command("weights", "get", SYSTEM)
    assert code == 1
    for words in ("Quota exceeded", "in a browser from https://drive.google.com/", f"weights get {SYSTEM} --file FILE"):
        assert words in last_line(err)
    assert not published.folder(SYSTEM).exists()


def test_a_web_page_instead_of_weights(command: Run, server: FileServer, tmp_path: Path) -> None:
    server.html = True
    code, _, err = command("weights", "get", FILE)
    assert (code, "a web page instead of the file" in err) == (1, True)
    page = tmp_path / "swin.pth"
    page.write_text("<!DOCTYPE html><html>log in</html>")
    code, _, err = command("weights", "get", FILE, "--file", page)
    assert (code, "a web page instead of the file" in err) == (1, True)
    assert published.fetched(FILE) is None


def test_a_file_from_elsewhere(command: Run, server: FileServer, tmp_path: Path) -> None:
    other = tmp_path / "swin.pth"
    other.write_bytes(CHECKPOINT)
    assert command("weights", "get", FILE, "--file", other)[0] == 0
    assert published.file_of(FILE).read_bytes() == CHECKPOINT
    assert server.asked == []


@pytest.mark.parametrize("how", ["option", "environment"])
def test_offline(command: Run, server: FileServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ("weights", "get", FILE, *(("--offline",) if how == "option" else ()))
    code, _, err = command(*arguments)
    assert (code, server.asked) == (1, [])
    assert "--file FILE" in err
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert command("weights", "get", FILE)[0] == 0
    assert command(*arguments)[0] == 0  # it is here now


def test_a_file_that_cannot_be_converted(command: Run, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "run", run_here)
    code, _, err = command("weights", "get", SYSTEM)
    kept = published.folder(SYSTEM) / "iter_40000.pth"
    assert code == 1
    assert f"{SYSTEM}: iter_40000.pth cannot be converted: {kept}: " in err
    assert f"remove {kept}" in err
    assert published.fetched(SYSTEM) is None
    assert list(published.folder(SYSTEM).iterdir()) == [kept]


def test_without_torch_the_extra_is_named_before_anything_is_fetched(
    command: Run, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    code, _, err = command("weights", "get", SYSTEM)
    assert (code, server.asked) == (2, [])
    assert "pip install 'langdepth[torch]'" in err
    assert command("weights", "get", FILE)[0] == 0  # needs no conversion


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"file": "x"}', "[" * 9000])
def test_a_damaged_record(command: Run, server: FileServer, content: str) -> None:
    path = published.folder(FILE) / "fetched.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    for arguments in (("get", FILE), ("path", FILE), ("verify", FILE)):
        code, _, err = command("weights", *arguments)
        assert (code, err.count("\n")) == (1, 1)
        assert f"{path}: is damaged" in err


def test_a_damaged_record_hides_no_other(command: Run, server: FileServer) -> None:
    command("weights", "get", FILE)
    path = published.folder("vgld-t") / "fetched.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    code, out, _ = command("weights", "verify")
    assert code == 1
    assert f"vgld-t: {path}: is damaged" in out
    assert f"{FILE}: unchanged" in out
    assert command("weights", "list")[0] == 0


@pytest.mark.parametrize("offline", [True, False])
def test_a_conversion_that_needs_clip(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    """CLIP's weights are announced with the others, and the process that converts follows ``offline``, too."""
    calls: list[tuple[list[str], str | None]] = []

    def stopped(command: list[str], env: dict[str, str], **_: Any) -> Any:
        calls.append((command, env.get("HF_HUB_OFFLINE")))
        return subprocess.CompletedProcess(command, 1, "", "langdepth convert: no CLIP here\n")

    monkeypatch.setattr(fetch, "run", stopped)
    lines: list[str] = []
    options: dict[str, Any] = {"file": tmp_path / "model.pt"} if offline else {"mirror": server.url}
    (tmp_path / "model.pt").write_bytes(b"\x80weights")
    for clip in (None, "RN50.pt"):
        with pytest.raises(CheckpointError, match=r"mde-clip: .*model.pt,? cannot be converted: no CLIP here"):
            fetch.get("mde-clip", lines.append, offline=offline, clip_weights=clip, **options)
    assert [command[-1] for command, _ in calls] == ["openai", "RN50.pt"]
    assert {stated for _, stated in calls} == {"1" if offline else None}
    assert offline or "CLIP's weights by open_clip" in lines[0]


@pytest.mark.parametrize(("file", "sha256"), [("../../x", "0" * 64), ("swin.pth", "")])
def test_a_record_that_leads_out_of_its_folder_or_checks_nothing(file: str, sha256: str) -> None:
    facts = published.Fetched(file=file, sha256=sha256, published_sha256="", source="", date="")
    published.remember(FILE, facts)
    with pytest.raises(CheckpointError, match="damaged"):
        published.file_of(FILE)


def test_a_file_in_the_folder_of_the_cache_is_its_owners(command: Run, quick: FileServer) -> None:
    """Where a browser stores the file is as good a place as any."""
    published.folder(SYSTEM).mkdir(parents=True)
    path = published.folder(SYSTEM) / registry.PUBLISHED[SYSTEM].file
    path.write_bytes(b"notes of mine")
    assert command("weights", "get", SYSTEM, "--file", path)[0] == 1
    assert path.read_bytes() == b"notes of mine"
    path.write_bytes(quick.content)
    assert command("weights", "get", SYSTEM, "--file", path)[0] == 0
    assert path.read_bytes() == quick.content


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_no_checkpoint(command: Run, tmp_path: Path, method: int) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("model/data.pkl", bytes(range(256)) * 4)
    content = path.read_bytes()
    path.write_bytes(content[:44] + b"\xff" * 14 + content[58:])
    code, _, err = command("weights", "get", FILE, "--file", path)
    assert (code, "is no checkpoint of torch.save; expected is" in err) == (1, True)


def test_no_home(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As for users of a number alone, which containers are run with."""
    monkeypatch.delenv("LANGDEPTH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)
    code, _, err = command("weights", "list")
    line = "~/.cache/langdepth: no such home folder is known; name a folder with LANGDEPTH_CACHE"
    assert (code, err) == (2, f"langdepth weights: {line}\n")
    code, _, err = command("predict", save_image(tmp_path / "a.png", ramp(64, 48)), "--system", "~nobody/x.onnx")
    assert (code, err) == (1, "langdepth predict: ~nobody/x.onnx: no such file\n")


def test_list_and_path(command: Run, server: FileServer) -> None:
    rows = {line.split()[0]: line for line in command("weights")[1].splitlines()}
    assert set(rows) == {"name", *registry.PUBLISHED}
    assert rows[FILE].split()[1] == "no"
    command("weights", "get", FILE)
    assert (
        next(line for line in command("weights", "list")[1].splitlines() if line.startswith(FILE)).split()[1] == "yes"
    )
    assert command("weights", "path", FILE)[1].strip() == str(published.file_of(FILE))
    assert Path(command("weights", "path", "tiny")[1].strip()).name == "tiny.safetensors"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("get",), "name the weights"),
        (("path", "scaledepth"), "did you mean 'scaledepth-"),
        (("path", "mde-clip"), "langdepth weights get mde-clip"),
        (("verify", "mde-clip"), "langdepth weights get mde-clip"),
        (("list", "mde-clip"), "list takes no name"),
        (("path", "mde-clip", "--offline"), "is for 'get'"),
        (("get", "mde-clip", "--file", "x", "--mirror", "http://x"), "give one of them"),
        (("get", "mde-clip", "--file", "no-such-file"), "no-such-file: no such file"),
        (
            ("get", "clip-rn50", "--file", "RN50.pt"),
            "clip-rn50: is fetched by open_clip alone; give a file of your own",
        ),
        (("get", "clip-rn50", "--mirror", "http://x"), "clip-rn50: is fetched by open_clip alone"),
        (("get", "vgld-t", "--clip-weights", "RN50.pt"), "vgld-t: needs no CLIP weights; leave --clip-weights out"),
    ],
)
def test_what_cannot_be(command: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = command("weights", *arguments)
    assert code in (1, 2)
    assert words in err
    assert err.count("\n") == 1


def test_weights_of_open_clip(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "langdepth weights get clip-rn50" in command("weights", "path", "clip-rn50")[2]
    code, _, err = command("weights", "get", "clip-rn50")
    assert (code, "HF_HUB_OFFLINE is set" in err) == (1, True)
    kept = tmp_path / ".cache" / "clip" / "RN50.pt"  # where open_clip keeps it
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"not CLIP")
    assert command("weights", "get", "clip-rn50")[1].strip() == str(kept)
    code, out, _ = command("weights", "verify", "clip-rn50")
    assert (code, "expected afeb0e10f9e5" in out) == (1, True)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"file": "a.pth"}, "one of url"),
        ({"file": "a.pth", "url": "http://x", "google_drive": "y"}, "one of url"),
        ({"file": "../a.pth", "url": "http://x"}, "no name of a file"),
        ({"file": "..", "url": "http://x"}, "no name of a file"),
        ({"url": "http://x"}, "no name of a file"),
    ],
)
def test_cards_that_cannot_be(tmp_path: Path, facts: dict[str, Any], words: str) -> None:
    record = {"summary": "a net", "licence": "MIT", **facts}
    system = {"net": {"summary": "a net", "target": "model:Net"}}
    card = tmp_path / "card.yaml"
    card.write_text(json.dumps({"paper": "one", "systems": system, "published": {"net": record}}))
    with pytest.raises(UsageError, match=words):
        read_card(card, "somewhere")


def test_every_published_name_of_a_system_is_one_without_weights_in_the_package() -> None:
    for name, record in registry.PUBLISHED.items():
        assert isinstance(record, PublishedRecord)
        assert name not in registry.REGISTRY or registry.REGISTRY[name].weights is None


def test_two_processes_at_a_time(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from langdepth.utils.locks import locked

    monkeypatch.setattr("langdepth.utils.locks._GRACE", 0.1)
    with locked(published.folder(FILE)), pytest.raises(LangdepthError, match="in use by"):
        fetch.get(FILE, print)
    assert server.asked == []
