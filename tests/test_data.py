import hashlib
import http.client
import http.server
import io
import itertools
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
from flax import nnx

import graphlr as glr
from graphlr import data
from graphlr.data.cifar10 import cifar10
from graphlr.data.digits import digits
from graphlr.data.images import Dataset, Images

NAME = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
ROWS = 4  # images in each batch file of the archives made here


def numbered(n, num_classes=None):
    pixels = np.arange(n * 2 * 2 * 3, dtype=np.float32).reshape(n, 2, 2, 3)
    return Images(pixels, np.arange(n, dtype=np.int32), num_classes)


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


# ------------------------------------------------------------------- Images


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (
            [[0.0]],
            np.zeros(1, int),
            TypeError,
            r"images is <class 'list'>: give np.asar",
        ),
        (np.zeros((1, 2, 2, 3)), [0], TypeError, r"labels is <class 'list'>"),
        (np.zeros((5, 2, 2)), np.zeros(5, int), ValueError, r"shape \(5, 2, 2\)"),
        (np.zeros((5, 2, 2, 3)), np.zeros(4, int), ValueError, r"labels \(4,\)"),
        (np.zeros((5, 2, 2, 3)), np.zeros((5, 3), int), ValueError, r"labels \(5, 3\)"),
        (
            np.zeros((5, 2, 2, 3)),
            np.zeros(5),
            TypeError,
            r"float64.*astype\(np.int32\)",
        ),
        (np.zeros((5, 2, 2, 3)), np.zeros(5, bool), TypeError, "bool"),
        (
            np.zeros((3, 2, 2, 3)),
            np.array([0, 10, 11]),
            ValueError,
            r"labels\[1\] is 10: give labels in \[0, 10\)",
        ),
        (
            np.zeros((3, 2, 2, 3)),
            np.array([0, 1, -1]),
            ValueError,
            r"labels\[2\] is -1",
        ),
    ],
)
def test_images_are_checked_at_construction(images, labels, error, message):
    with pytest.raises(error, match=message):
        Images(images, labels, num_classes=10)


def test_unknown_number_of_classes_still_refuses_negative_labels():
    pixels = np.zeros((2, 2, 2, 3))
    assert len(Images(pixels, np.array([0, 10**6]))) == 2
    with pytest.raises(ValueError, match=r"labels\[0\] is -1: .*num_classes"):
        Images(pixels, np.array([-1, 0]))


def test_unsigned_labels_and_a_short_repr():
    images = Images(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 255], np.uint8), 256)
    assert repr(images) == "Images((2, 4, 4, 3) uint8)"


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 4, 8, 100, np.int64(3), np.uint8(4)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_once(n, size, shuffle):
    whole = numbered(n)
    batches = list(whole.batches(size, shuffle=shuffle))
    assert len(batches) == whole.num_batches(size) == -(-n // int(size))
    seen = [label for _, labels in batches for label in labels.tolist()]
    assert sorted(seen) == list(range(n))
    for images, labels in batches:
        np.testing.assert_array_equal(images, whole.images[labels])

    kept = list(whole.batches(size, shuffle=shuffle, drop_last=True))
    assert len(kept) == whole.num_batches(size, drop_last=True) == n // int(size)
    assert all(len(labels) == size for _, labels in kept)
    assert labels_of(kept) == labels_of(batches)[: len(kept)]


def test_a_batch_size_of_a_narrow_type_does_not_overflow():
    assert labels_of(numbered(600).batches(np.uint8(200), shuffle=False)) == [
        list(range(start, start + 200)) for start in (0, 200, 400)
    ]


def test_order_depends_on_seed_and_epoch_alone():
    whole = numbered(50)
    first = labels_of(whole.batches(8, seed=3, epoch=2))
    np.random.default_rng().random()
    assert labels_of(whole.batches(8, seed=3, epoch=2)) == first
    expected = np.random.default_rng((3, 2)).permutation(50).tolist()
    assert list(itertools.chain(*first)) == expected
    orders = {
        tuple(itertools.chain(*labels_of(whole.batches(8, seed=seed, epoch=epoch))))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16
    assert labels_of(whole.batches(50, shuffle=False, epoch=5)) == [list(range(50))]


@pytest.mark.parametrize("strided", [False, True])
def test_batches_are_contiguous_copies(strided):
    pixels = np.arange(5 * 3 * 2 * 2, dtype=np.float32).reshape(5, 3, 2, 2)
    pixels = pixels.transpose(0, 2, 3, 1) if strided else pixels
    whole = Images(pixels, np.arange(5, dtype=np.int16))
    before = pixels.copy()
    for images, labels in whole.batches(2, shuffle=False):
        assert images.flags.c_contiguous
        assert labels.flags.c_contiguous
        assert images.dtype == np.float32
        assert labels.dtype == np.int16
        images[...] = -1
        labels[...] = -1
    np.testing.assert_array_equal(whole.images, before)
    assert whole.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", None, True, float("nan")])
def test_a_bad_batch_size_raises_before_the_first_batch(size):
    whole = numbered(4)
    with pytest.raises(ValueError, match=r"batch_size=.*whole number from 1 up"):
        whole.batches(size)
    with pytest.raises(ValueError, match="batch_size="):
        whole.num_batches(size)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"epoch": -1}, {"epoch": 0.5}])
def test_a_bad_seed_or_epoch_is_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=.*from 0 up"):
        numbered(4).batches(2, **bad)


# ------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def small_digits():
    return digits(size=8)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits_shapes_dtypes_and_normalisation(size):
    train, test, classes = digits(size=size)
    assert len(train) + len(test) == 1797
    assert classes == tuple("0123456789")
    for part in (train, test):
        assert part.images.shape == (len(part), size, size, 3)
        assert part.images.dtype == np.float32
        assert part.images.flags.c_contiguous
        assert part.labels.dtype == np.int32
        assert part.num_classes == 10
        assert set(part.labels.tolist()) == set(range(10))
        np.testing.assert_array_equal(part.images[..., 0], part.images[..., 2])
    assert abs(train.images.mean(dtype=np.float64)) < 1e-6
    assert abs(train.images.std(dtype=np.float64) - 1) < 1e-6
    assert abs(test.images.mean(dtype=np.float64)) < 0.05  # not its own mean


def test_digits_are_the_bundled_images_in_two_disjoint_parts(small_digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    both = np.concatenate([part.images[..., 0] for part in small_digits[:2]])
    labels = np.concatenate([part.labels for part in small_digits[:2]])
    # One affine map takes the images back to their grey values 0 … 16.
    grey = np.rint((both - both.min()) / (both.max() - both.min()) * 16).astype(int)

    def rows(images, targets):
        flat = np.column_stack([images.reshape(len(images), -1), targets])
        return sorted(map(tuple, flat.astype(int).tolist()))

    expected = rows(source.images, source.target)
    assert len(set(expected)) == 1797  # no two alike: equal multisets mean disjoint
    assert rows(grey, labels) == expected


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_digits_split_is_stratified(fraction):
    train, test, _ = digits(size=8, test_fraction=fraction)
    in_train, in_test = np.bincount(train.labels), np.bincount(test.labels)
    np.testing.assert_array_equal(in_test, np.rint(fraction * (in_train + in_test)))
    assert in_train.min() > 0
    assert in_test.min() > 0


def test_digits_split_is_decided_by_the_seed(small_digits):
    again, other = digits(size=8), digits(size=8, seed=1)
    for part, same, different in zip(
        small_digits[:2], again[:2], other[:2], strict=True
    ):
        np.testing.assert_array_equal(part.images, same.images)
        np.testing.assert_array_equal(part.labels, same.labels)
        assert not np.array_equal(part.images, different.images)
    for part in small_digits[:2]:  # the classes are mixed, not one after the other
        assert len(set(part.labels[:30].tolist())) > 7
        assert len(set(part.labels[-30:].tolist())) > 7


def test_digits_are_scaled_up_bilinearly(small_digits):
    large = digits(size=16).train.images[..., 0].astype(np.float64)
    small = small_digits.train.images[..., 0].astype(np.float64)
    # Half-pixel centres: corners keep their value, inner pixels are 3/4 and 1/4.
    rows = np.empty((len(small), 16, 8))
    rows[:, 0], rows[:, -1] = small[:, 0], small[:, -1]
    rows[:, 1:-1:2] = 0.75 * small[:, :-1] + 0.25 * small[:, 1:]
    rows[:, 2:-1:2] = 0.25 * small[:, :-1] + 0.75 * small[:, 1:]
    full = np.empty((len(small), 16, 16))
    full[..., 0], full[..., -1] = rows[..., 0], rows[..., -1]
    full[..., 1:-1:2] = 0.75 * rows[..., :-1] + 0.25 * rows[..., 1:]
    full[..., 2:-1:2] = 0.25 * rows[..., :-1] + 0.75 * rows[..., 1:]
    np.testing.assert_allclose(large, (full - full.mean()) / full.std(), atol=1e-5)


@pytest.mark.parametrize("size", [0, -8, 7, 12, 16.0, "32", None, True])
def test_digits_bad_size(size):
    with pytest.raises(ValueError, match=r"size=.* is not a positive multiple of 8"):
        digits(size=size)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, 0.001, float("nan")])
def test_digits_bad_test_fraction(fraction):
    with pytest.raises(ValueError, match=r"test_fraction=.*\[0.01, 0.99\]"):
        digits(test_fraction=fraction)


def test_digits_bad_seed():
    with pytest.raises(ValueError, match="seed=-1"):
        digits(seed=-1)


@pytest.mark.parametrize("module", ["sklearn", "sklearn.datasets"])
def test_missing_scikit_learn_names_the_extra(monkeypatch, module):
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "graphlr\[data\]"'):
        digits()


# ------------------------------------------------------------------- cifar10


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
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(content).hexdigest())
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
        expected = (images / 255 - data.CIFAR10_MEAN) / data.CIFAR10_STD
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
    assert data.CIFAR10_MD5 == "c58f30108f718f92721af3b95e74349a"
    assert data.CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/" + NAME


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
    for part in (str(tmp_path / NAME), actual, data.CIFAR10_MD5):
        assert part in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == archive[:-1]  # the user's file: left alone


def test_cifar10_without_network_says_what_to_do(tmp_path, archive):
    root = tmp_path / "new" / "data"
    with pytest.raises(ConnectionError, match="Name or service not known") as caught:
        cifar10(root)
    assert data.CIFAR10_URL in str(caught.value)
    assert str(root / NAME) in str(caught.value)
    assert list(root.iterdir()) == []


def test_cifar10_download_refused_says_what_to_do(tmp_path, archive):
    with pytest.raises(FileNotFoundError, match="by hand") as caught:
        cifar10(tmp_path / "none", download=False)
    assert data.CIFAR10_URL in str(caught.value)
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
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        url = f"http://127.0.0.1:{httpd.server_port}/{NAME}"
        monkeypatch.setattr(data, "CIFAR10_URL", url)
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
    assert data.CIFAR10_URL in str(caught.value)
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
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(content).hexdigest())
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
        "import runpy, sys\n"
        f"runpy.run_path({data.__file__!r})\n"
        "print([m for m in ('sklearn', 'rich', 'jax', 'graphlr') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- the last batch -------------------------------------------------------------------


def test_a_padded_batch_needs_no_compilation_and_counts_right():
    class Evaluate(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

        def build(self, x, label, mask):
            logits = self.model(x)
            right = (logits.argmax(-1) == label) * mask
            return right.sum(), (logits.sum(-1) * mask).sum() / mask.sum()

    graph, rng = Evaluate(), np.random.default_rng(0)
    for n in (8, 3, 1):
        x = rng.normal(size=(n, 3)).astype(np.float32)
        label = rng.integers(0, 4, n)
        right, mean = graph(*data.pad(8, x, label))
        logits = np.asarray(graph.model(x))
        assert right == (logits.argmax(-1) == label).sum()
        np.testing.assert_allclose(mean, logits.sum(-1).mean(), rtol=1e-5)
    assert graph.compiles.count == 1


@pytest.mark.parametrize("sizes", [(9,), (0,), (3, 4), ()])
def test_pad_refuses_other_sizes(sizes):
    with pytest.raises(ValueError, match=r"arrays of one size from 1 to 8"):
        data.pad(8, *(np.zeros((n, 2)) for n in sizes))
