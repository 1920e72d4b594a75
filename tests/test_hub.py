"""Networks on the Hugging Face hub: pushed to a stand-in of it, and loaded again."""

import base64
import contextlib
import hashlib
import http.server
import importlib
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import yaml

from superres import export, push, upscale
from superres.datasets.degradations import imresize
from superres.datasets.pictures import read_picture, write_picture
from superres.errors import InputError
from superres.models import hub
from superres.models.lapsrn import lapsrn
from superres.models.upscaler import load

TOKEN = "hf_of_the_user"


class StandIn(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, as far as `create_repo`, `create_commit` and downloads do.

    The server's attributes: `repositories`, a dict of name -> private, gated and commits, each a
    dict of path -> bytes; `large`, the files of git LFS by hash; `refuses`, the ending of a path.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def knows_user(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self):
        body, server, path = self.body(), self.server, self.path
        if not self.knows_user():
            return self.answer({"error": "Invalid username or password."}, 401)
        if server.refuses and path.endswith(server.refuses):
            return self.answer({"error": "You have no right to do this"}, 403)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in server.repositories:
                return self.answer({"url": f"{server.address}/{name}", "error": "It is there already"}, 409)
            private = asked.get("private") or asked.get("visibility") == "private"  # 1.x, 2.x
            server.repositories[name] = SimpleNamespace(private=private, gated=False, commits=[])
            return self.answer({"url": f"{server.address}/{name}"})
        if path == "/api/validate-yaml":
            _, front, _ = json.loads(body)["content"].split("---\n", 2)
            if yaml.safe_load(front)["license"] != "mit":
                return self.answer({"errors": [{"message": '"license" must be one of ...'}]}, 400)
            return self.answer({"warnings": []})
        if "/preupload/" in path:
            files = [{"path": file["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if file["path"].endswith((".keras", ".png")) else "regular"}
                     for file in json.loads(body)["files"]]
            return self.answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [{**large, "actions": {"upload": {"href": f"{server.address}/large/{large['oid']}"}}}
                       for large in json.loads(body)["objects"]]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            commits = server.repositories[name].commits
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = server.large[value["oid"]]
            commits.append(files)
            oid = f"{len(commits):040x}"
            return self.answer({"commitUrl": f"{server.address}/{name}/commit/{oid}", "commitOid": oid})
        return self.answer(status=404)

    def do_PUT(self):
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer()

    def do_GET(self):
        name, _, rest = self.path[1:].partition("/resolve/")
        revision, _, path = rest.partition("/")
        repository = self.server.repositories.get(name)
        if "Authorization" in self.headers and not self.knows_user():
            return self.answer(status=401, X_Error_Message="Invalid credentials in Authorization header")
        if not repository or (repository.private and not self.knows_user()):
            return self.answer(status=401, X_Error_Code="RepoNotFound")
        if repository.gated:
            return self.answer(status=403, X_Error_Code="GatedRepo")
        commits = {f"{number:040x}": files for number, files in enumerate(repository.commits, start=1)}
        commit = next(reversed(commits)) if revision == "main" else revision
        if commit not in commits:
            return self.answer(status=404, X_Error_Code="RevisionNotFound")
        if path not in commits[commit]:
            return self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = commits[commit][path]
        return self.answer(content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    do_HEAD = do_GET


@pytest.fixture
def connect(monkeypatch):
    """Import huggingface_hub anew with these variables, which it reads only then."""

    def drop():
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            monkeypatch.delitem(sys.modules, name)

    def run(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        drop()
        return importlib.import_module("huggingface_hub")

    yield run
    drop()


@pytest.fixture
def server(connect, tmp_path):
    """The stand-in, which huggingface_hub takes for the hub; its user is logged in."""
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.large, server.refuses = {}, {}, ""
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    connect(HF_ENDPOINT=server.address, HF_HOME=tmp_path / "hub", HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def network(randomize):
    return randomize(lapsrn(2, filters=4, depth=1))


@pytest.fixture
def model(network, tmp_path):
    network.save(tmp_path / "mine.keras")
    return tmp_path / "mine.keras"


@pytest.fixture
def put(server):
    """Put a file into a new repository as its network; returns the repository."""

    def run(name, content):
        server.repositories[name] = SimpleNamespace(
            private=False, gated=False, commits=[{hub.NETWORK: content} if content else {}])
        return server.repositories[name]

    return run


def test_a_network_is_pushed_with_its_card_and_loaded_again(
        call, server, network, model, grain, photo, tmp_path, capsys):
    call(push.main, model, "user/mine", "--licence", "mit", "--data", grain, "--trained-on", "nothing at all",
         "--command", "train/lapsrn.py quick")
    assert "superres-upscale hf://user/mine photo.jpg" in capsys.readouterr().out

    # One commit, for its owner alone
    repository = server.repositories["user/mine"]
    assert repository.private
    (files,) = repository.commits
    assert set(files) == {"network.keras", "README.md", "figures.json", "example.png"}
    assert files["network.keras"] == model.read_bytes()
    assert files["example.png"].startswith(b"\x89PNG")

    # The card
    _, front, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "keras", "pipeline_tag": "image-to-image", "license": "mit",
        "tags": ["super-resolution", "image-upscaling", "superres"]}
    figures = json.loads(files["figures.json"])
    for row, part in (("this network", "mean"), ("bicubic interpolation", "bicubic")):
        assert f"| {row} | {figures[part]['psnr_y']:.2f} | {figures[part]['ssim_y']:.4f} |" in text
    for part in ('load("hf://user/mine")', "nothing at all", "train/lapsrn.py quick", "arxiv.org/abs/1704",
                 f"{network.count_params():,} parameters", f"On `{grain.name}`, LR made by bicubic"):
        assert part in text
    assert str(grain) not in text

    # The same pictures: in Python, by the command, at a revision
    np.testing.assert_array_equal(load("hf://user/mine").upscale(photo), network.upscale(photo))
    write_picture(tmp_path / "photo.png", photo[:9, :7])
    call(upscale.main, f"hf://user/mine@{1:040x}", tmp_path / "photo.png", "-o", tmp_path / "out")
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "photo_x2.png").pixels,
                                  network.upscale(photo[:9, :7]))

    # Another push is another commit
    call(push.main, model, "user/mine", "--licence", "mit", "--data", grain, "--public")
    assert repository.private
    assert len(repository.commits) == 2


def test_what_the_cache_has_needs_no_connection(connect, server, put, model, network, photo, monkeypatch):
    put("user/mine", model.read_bytes())
    load("hf://user/mine")
    connect(HF_HUB_OFFLINE="1")
    np.testing.assert_array_equal(load("hf://user/mine").upscale(photo), network.upscale(photo))
    with pytest.raises(InputError, match=r"^hf://user/other: not downloaded before, and .*offline"):
        load("hf://user/other")
    connect(HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between tries
    load("hf://user/mine")
    with pytest.raises(InputError, match=r"^hf://user/other: not downloaded before, and .*refused") as error:
        load("hf://user/other")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("address", "token", "message"), [
    ("hf://user/none", "", "no such repository, or a private one"),
    ("hf://user/private", "", "no such repository, or a private one"),
    ("hf://user/gated", TOKEN, "gated: ask for access"),
    ("hf://user/mine", "hf_of_nobody", "the hub refuses: log in .*Invalid credentials"),
    ("hf://user/empty", "", "the repository has no network.keras"),
    ("hf://user/mine@v9", "", "the repository has no such revision"),
    ("hf://user/mine-", "", "cannot start or end with '-'"),
    ("hf://user/text", "", "not a saved Keras model"),
])
def test_what_cannot_be_loaded_is_one_line(connect, server, put, address, token, message):
    put("user/mine", b"")
    put("user/empty", b"")
    put("user/text", b"no network")
    put("user/private", b"").private = True
    put("user/gated", b"").gated = True
    connect(HF_TOKEN=token)
    with pytest.raises(InputError, match=message) as error:
        load(address)
    assert str(error.value).startswith(f"{address}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["hf://", "hf://name", "hf://user/name/file", "hf://user/name@", "hf://a b/c"])
def test_a_malformed_address_is_named(address):
    with pytest.raises(InputError, match="must be hf://user/name or hf://user/name@revision"):
        load(address)


def test_the_package_is_asked_for_only_where_it_is_needed(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    load(model)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        load("hf://user/name")


def test_a_stranger_s_code_is_not_run(put, tmp_path):
    lr = keras.Input((None, None, 3))
    trap = keras.layers.Lambda(eval(f"lambda x: (open({str(tmp_path / 'run')!r}, 'w'), x)[1]"),
                               output_shape=(None, None, 3))
    keras.Model(lr, trap(lr)).save(tmp_path / "trap.keras")
    (tmp_path / "run").unlink(missing_ok=True)
    put("stranger/trap", (tmp_path / "trap.keras").read_bytes())
    with pytest.raises(InputError, match="Lambda"):
        load("hf://stranger/trap")
    assert not (tmp_path / "run").exists()


def test_a_network_of_the_hub_is_exported_under_its_own_name(put, model, tmp_path, monkeypatch):
    put("user/mine-v1.5", model.read_bytes())
    monkeypatch.setattr(export, "write_saved_model", lambda network, folder, *rest: folder.mkdir())
    target, name, _ = export.export(f"hf://user/mine-v1.5@{1:040x}", tmp_path, None, 1)
    assert (target, name) == (tmp_path / "mine-v1.5" / "1", "mine-v1.5")


def test_a_dry_run_only_writes(call, server, model, grain, tmp_path, capsys):
    def run(folder):
        call(push.main, model, "user/mine", "--licence", "mit", "--data", grain, "--dry-run", folder)

    run(tmp_path / "card")
    assert not server.repositories
    assert (tmp_path / "card" / "network.keras").read_bytes() == model.read_bytes()
    assert "Data: not known." in (tmp_path / "card" / "README.md").read_text()
    with pytest.raises(SystemExit):
        run(tmp_path / "card")
    assert "card is there already, and not an empty folder" in capsys.readouterr().err


def test_the_card_is_of_what_was_asked_for(call, server, model, grain, photo, tmp_path, monkeypatch):
    given = {}

    def measure(file, data, json_file, figure_file, **options):
        given.update(options)
        Path(json_file).write_text('{"mean": {}, "bicubic": {}}')
        Path(figure_file).touch()

    monkeypatch.setattr(push.evaluate, "main", measure)
    for side, picture in (("hr", photo), ("lr", imresize(photo, 0.5))):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        write_picture(tmp_path / "pairs" / side / "a.png", picture)
    for data, options, words in ((tmp_path / "pairs", (), "with LR of their own"),
                                 (grain, ("--degradation", "realworld"), "LR made by random blur kernels")):
        card = tmp_path / f"card{len(options)}"
        call(push.main, model, "user/mine", "--licence", "mit", "--data", data, "--dry-run", card, *options)
        assert words in (card / "README.md").read_text()
    assert given == {"degradation": "realworld", "crop": None}


def test_the_card_of_a_network_that_draws_thumbnails():
    pytest.importorskip("huggingface_hub")
    result = {"likelihood": {"bits": 0.5}, "methods": {"network": {"psnr": 20.0, "one_digit": 1.0}}}
    network = load("pixel_recursive-corners")
    text = push.model_card(network, "user/corners", result, "mit", "corners", None, False, "", "")
    for part in ("draws pictures of 16 x 16 pixels from 8 x 8, other ones for every seed", ", grey.",
                 "On the `corners` of `superres`, shrunk to LR", "A + B 0.500", "arxiv.org/abs/1702.00783"):
        assert part in text


@pytest.mark.parametrize(("data", "own", "expected"), [
    ("SHARDS/*.tfrecord", False, "On `SHARDS`, LR made by bicubic interpolation"),
    ("div2k/unknown_x4", True, "On the `div2k/unknown_x4` of `superres`, with LR of their own")])
def test_the_card_says_what_was_measured_and_not_where_it_lies(tmp_path, monkeypatch, data, own, expected):
    pytest.importorskip("huggingface_hub")
    (tmp_path / "SHARDS").mkdir()
    data = f"{tmp_path}/{data}" if "SHARDS" in data else data
    text = push.model_card(load("lapsrn-x2"), "user/x2", {"mean": {}, "bicubic": {}}, "mit", data, None, own,
                           "", "")
    assert expected in text
    assert str(tmp_path) not in text


def test_a_push_that_is_refused_leaves_nothing(call, connect, server, model, capsys, monkeypatch):
    def measure(file, data, json_file, figure_file, **options):
        Path(json_file).write_text('{"mean": {"psnr_y": 30.0}, "bicubic": {"psnr_y": 29.0}}')
        Path(figure_file).write_bytes(b"a picture")

    def refused(repository="user/mine", licence="mit"):
        with pytest.raises(SystemExit):
            call(push.main, model, repository, "--licence", licence)
        err = capsys.readouterr().err
        assert err.startswith(f"error: hf://{repository}: ")
        assert err.count("\n") == 1
        return err

    monkeypatch.setattr(push.evaluate, "main", measure)
    server.refuses = "/repos/create"
    assert "the hub refuses: log in with a token that may do this" in refused()
    assert not server.repositories
    server.refuses = "/commit/main"
    assert "You have no right to do this" in refused()
    server.refuses = ""
    assert '"license" must be one of' in refused(licence="mine")
    connect(HF_TOKEN="hf_of_nobody")
    assert "the hub refuses" in refused()
    monkeypatch.setattr(push.evaluate, "main", None)  # the rest is seen before anything is measured
    connect(HF_TOKEN="")
    assert "not logged in" in refused()
    assert "must be hf://user/name" in refused(repository="mine")
    assert not server.repositories["user/mine"].commits


def test_what_a_network_is_called():
    assert hub.stem("hf://user/mine-v1.5@main") == "mine-v1.5"
    assert hub.stem(Path("runs/model.keras")) == "model"
