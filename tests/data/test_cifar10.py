"""CIFAR-10: downloads, damage, and pickles that want to run something."""

import hashlib
import http.client
import http.server
import importlib
import io
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import threading
import types
import urllib.error
import urllib.request

import numpy as np
import pytest

from graphlr.data.cifar10 import cifar10
from graphlr.data.images import Dataset

room = importlib.import_module("graphlr.data.cifar10")  # also a function's name

NAME = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
ROWS = 4  # images in each batch file of the archives made here


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its `str`, the way the real batches have them."""

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch = types.MappingProxyType({**pickle._Pickler.dispatch, bytes: save_bytes})


def dumps(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def dumps_python3(value):
    return pickle.dumps(value, protocol=4)


def fake_files(dump=dumps, layout=np.asarray):
    rng = np.random.default_rng(0)
    files = {"batches.meta": dump({b"label_names": [b"airplane"]})}
    for i, name in enumerate((*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")):
        files[name] = dump(
            {
                b"batch_label": name.encode(),
                b"labels": [(i + j) % 10 for j in range(ROWS)],
                b"data": layout(rng.integers(0, 256, (ROWS, 3072), np.uint8)),
                b"filenames": [b"a.png"] * ROWS,
            }
        )
    return files


def archive_of(files):
    """The bytes of a tar.gz, its members in no helpful order, as in the real one."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        folder = tarfile.TarInfo(FOLDER)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in sorted(files, key=lambda name: name[::-1], reverse=True):
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return file.getvalue()


def write_folder(root, files):
    (root / FOLDER).mkdir(parents=True)
    for name, content in files.items():
        (root / FOLDER / name).write_bytes(content)


def no_network(*_, **__):
    raise urllib.error.URLError("Name or service not known")


@pytest.fixture
def archive(monkeypatch):
    content = archive_of(fake_files())
    monkeypatch.setattr(room, "CIFAR10_MD5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return content


def check_fake(dataset):
    assert isinstance(dataset, Dataset)
    assert dataset.classes[0] == "airplane"
    assert dataset.classes[9] == "truck"
    assert len(dataset.classes) == 10
    rng = np.random.default_rng(0)
    raw = [rng.integers(0, 256, (ROWS, 3072), np.uint8) for _ in range(6)]
    parts = ((dataset.train, raw[:5], range(5)), (dataset.test, raw[5:], [5]))
    for part, pixels, numbers in parts:
        images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        expected = (images / 255 - room.CIFAR10_MEAN) / room.CIFAR10_STD
        np.testing.assert_allclose(part.images, expected, atol=1e-6)
        assert part.images.dtype == np.float32
        assert part.images.flags.c_contiguous
        assert part.labels.dtype == np.int32
        assert part.labels.tolist() == [(i + j) % 10 for i in numbers for j in range(4)]
        assert part.num_classes == 10


def test_the_fake_batches_look_like_the_real_ones():
    names = {
        arg
        for opcode, arg, _ in pickletools.genops(fake_files()["test_batch"])
        if opcode.name in ("GLOBAL", "STACK_GLOBAL")
    }
    assert names == {
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
    }


def test_the_official_archive_is_what_is_expected():
    assert room.CIFAR10_MD5 == "c58f30108f718f92721af3b95e74349a"
    assert room.CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/" + NAME


def test_cifar10_from_the_archive_leaves_nothing_extracted(tmp_path, archive):
    (tmp_path / NAME).write_bytes(archive)
    check_fake(cifar10(tmp_path))
    check_fake(cifar10(str(tmp_path), download=False))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("dump", [dumps, dumps_python3])
def test_cifar10_from_the_folder(tmp_path, monkeypatch, dump):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    write_folder(tmp_path, fake_files(dump))
    check_fake(cifar10(tmp_path))


def test_cifar10_pixels_stored_by_column_are_read_alike(tmp_path):
    write_folder(tmp_path, fake_files(layout=np.asfortranarray))
    check_fake(cifar10(tmp_path))


def test_cifar10_incomplete_folder_falls_back_to_the_archive(tmp_path, archive):
    write_folder(tmp_path, fake_files())
    (tmp_path / FOLDER / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=NAME):
        cifar10(tmp_path, download=False)
    (tmp_path / NAME).write_bytes(archive)
    check_fake(cifar10(tmp_path))


def test_cifar10_wrong_checksum_on_disk(tmp_path, archive):
    (tmp_path / NAME).write_bytes(archive[:-1])
    actual = hashlib.md5(archive[:-1]).hexdigest()
    with pytest.raises(ValueError, match="delete it and call cifar10") as caught:
        cifar10(tmp_path)
    for part in (str(tmp_path / NAME), actual, room.CIFAR10_MD5):
        assert part in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == archive[:-1]  # the user's file: left alone


def test_cifar10_without_network_says_what_to_do(tmp_path, archive):
    root = tmp_path / "new" / "data"
    with pytest.raises(ConnectionError, match="Name or service not known") as caught:
        cifar10(root)
    assert room.CIFAR10_URL in str(caught.value)
    assert str(root / NAME) in str(caught.value)
    assert list(root.iterdir()) == []


def test_cifar10_download_refused_says_what_to_do(tmp_path, archive):
    with pytest.raises(FileNotFoundError, match="by hand") as caught:
        cifar10(tmp_path / "none", download=False)
    assert room.CIFAR10_URL in str(caught.value)
    assert str(tmp_path / "none" / NAME) in str(caught.value)
    assert not (tmp_path / "none").exists()


class Reply(io.BytesIO):
    """A reply of the server that may break off with an error."""

    def __init__(self, content, length=None, error=None):
        super().__init__(content)
        self.headers = {"Content-Length": str(length or len(content))}
        self.error = error

    def read(self, *size):
        chunk = super().read(*size)
        if not chunk and self.error is not None:
            raise self.error
        return chunk

    def readinto(self, buffer):
        chunk = self.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (ConnectionResetError("reset by peer"), ConnectionError),
        (TimeoutError("timed out"), ConnectionError),
        (http.client.IncompleteRead(b"", 10), ConnectionError),
        (None, ConnectionError),  # closed early without any error
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OSError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_interrupted_download_leaves_nothing_and_is_retried(
    tmp_path, archive, monkeypatch, fault, raised
):
    half = Reply(archive[: len(archive) // 2], len(archive), fault)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: half)
    with pytest.raises(raised) as caught:
        cifar10(tmp_path)
    assert caught.type is raised
    assert list(tmp_path.iterdir()) == []
    assert half.closed
    if fault is None:
        assert f"{len(archive) // 2} of {len(archive)} bytes" in str(caught.value)

    whole = Reply(archive)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: whole)
    check_fake(cifar10(tmp_path))
    assert (tmp_path / NAME).read_bytes() == archive


def test_what_a_killed_download_left_is_not_taken_for_the_archive(
    tmp_path, archive, monkeypatch
):
    for left in (f"{NAME}.part", f"{NAME}.{os.getpid()}.part"):
        (tmp_path / left).write_bytes(archive * 2)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Reply(archive))
    check_fake(cifar10(tmp_path))
    assert (tmp_path / NAME).read_bytes() == archive


@pytest.fixture
def server(archive, monkeypatch):
    """A web server on this machine; returns what it serves, to be changed."""
    serves = {"content": archive, "status": 200, "requests": 0, "length": True}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # the name that the base class looks up
            serves["requests"] += 1
            self.send_response(serves["status"])
            if serves["length"]:
                self.send_header("Content-Length", str(len(serves["content"])))
            self.end_headers()
            self.wfile.write(serves["content"])

        def log_message(self, *_):
            pass

    monkeypatch.undo()
    monkeypatch.setattr(room, "CIFAR10_MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        url = f"http://127.0.0.1:{httpd.server_port}/{NAME}"
        monkeypatch.setattr(room, "CIFAR10_URL", url)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield serves
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("length", [True, False])
def test_cifar10_downloads_once_with_progress(tmp_path, server, capsys, length):
    server["length"] = length
    check_fake(cifar10(tmp_path / "a" / "b"))
    assert "CIFAR-10" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [NAME]
    check_fake(cifar10(tmp_path / "a" / "b"))
    assert server["requests"] == 1


def test_a_download_with_another_checksum_is_thrown_away(tmp_path, server):
    server["content"] = b"<html>Please log in</html>"
    with pytest.raises(ValueError, match="expected") as caught:
        cifar10(tmp_path)
    assert hashlib.md5(server["content"]).hexdigest() in str(caught.value)
    assert room.CIFAR10_URL in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_missing_on_the_server_is_a_connection_error(tmp_path, server):
    server["status"] = 404
    with pytest.raises(ConnectionError, match=r"404.*by hand"):
        cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []


class Calls:
    """Pickles as a call of `function`, which plain unpickling would make."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args, state)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("dump", [dumps, dumps_python3])
@pytest.mark.parametrize("function", [os.mkdir, eval, np.load, np.memmap])
def test_malicious_pickle_is_refused(tmp_path, dump, function):
    trap = str(tmp_path / "trap")
    files = fake_files()
    files["data_batch_2"] = dump({b"labels": [0], b"data": Calls(function, trap)})
    write_folder(tmp_path, files)
    with pytest.raises(ValueError, match=r"data_batch_2.*names .*refused.*delete it"):
        cifar10(tmp_path)
    assert not os.path.exists(trap)


def test_malicious_pickle_in_an_archive_is_refused(tmp_path, monkeypatch):
    files = fake_files()
    files["test_batch"] = dumps(Calls(os.mkdir, str(tmp_path / "trap")))
    content = archive_of(files)
    (tmp_path / NAME).write_bytes(content)
    monkeypatch.setattr(room, "CIFAR10_MD5", hashlib.md5(content).hexdigest())
    with pytest.raises(ValueError, match=r"test_batch.*mkdir, which is refused"):
        cifar10(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_dotted_names_do_not_reach_through_what_is_allowed(tmp_path):
    def text(value):
        return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value

    name = text(b"numpy.core.multiarray") + text(b"_reconstruct.__globals__")
    files = fake_files()
    files["test_batch"] = pickle.PROTO + b"\4" + name + pickle.STACK_GLOBAL + b"."
    write_folder(tmp_path, files)
    with pytest.raises(ValueError, match=r"__globals__, which is refused"):
        cifar10(tmp_path)


def test_a_pickle_cannot_change_what_a_dtype_means(tmp_path):
    files = fake_files()
    state = (3, ">", None, None, None, 8, 8, 63)
    files["test_batch"] = dumps(Calls(np.dtype, "O", False, True, state=state))
    write_folder(tmp_path, files)
    with pytest.raises(ValueError, match="is no CIFAR-10 batch"):
        cifar10(tmp_path)
    assert np.dtype(np.uint8).itemsize == 1
    assert np.dtype(np.uint8).alignment == 1
    assert not np.dtype(np.uint8).hasobject


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        fake_files()["test_batch"][:-500],
        dumps([1, 2]),
        dumps({b"labels": [0, 1]}),
        dumps({b"labels": [0, 1], b"data": np.zeros((3, 3072), np.uint8)}),
        dumps({b"labels": [0, 1], b"data": np.zeros((2, 100), np.uint8)}),
        dumps({b"labels": [0, 1], b"data": np.zeros((2, 3072), np.float32)}),
        dumps({b"labels": [0, b"x"], b"data": np.zeros((2, 3072), np.uint8)}),
        dumps({b"labels": [0, 1], b"data": np.array([None] * 6144).reshape(2, 3072)}),
        dumps({b"labels": [0, 1], b"data": b"x" * 6144}),
    ],
)
def test_damaged_batch_names_the_file(tmp_path, content):
    files = fake_files()
    files["data_batch_5"] = content
    write_folder(tmp_path, files)
    with pytest.raises(ValueError, match=r"data_batch_5 is no CIFAR-10 batch"):
        cifar10(tmp_path)


def test_import_loads_neither_scikit_learn_nor_rich_nor_jax():
    code = (
        "import sys, graphlr.data\n"
        "print([m for m in ('sklearn', 'rich', 'jax', 'flax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
