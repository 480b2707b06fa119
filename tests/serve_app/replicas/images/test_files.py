"""Images at `file://` addresses: what is read, and what is not."""

import os
from pathlib import Path

import pytest

from schema.errors import TaskArgsInvalid
from serve_app.config.image_url_args import ImageUrlArgs
from serve_app.replicas.images.fetch import Budget, Fetcher
from serve_app.replicas.images.files import _open_below, read_image
from serve_app.replicas.images.image_sources import load_images

NOT_HERE = "is not one that this server may read"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed directory, with files inside and outside of it."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_bytes(b"image")
    (root / "sub" / "ü ?.png").write_bytes(b"other")
    os.mkfifo(root / "fifo")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "images-2").mkdir()
    (tmp_path / "images-2" / "a.png").write_bytes(b"secret")
    (root / "inside").symlink_to("sub")
    (root / "outside.png").symlink_to(tmp_path / "secret")
    (root / "nowhere.png").symlink_to(tmp_path / "missing")
    (root / "up").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    (root / "device").symlink_to("/dev/zero")
    (root / "process").symlink_to("/proc/self/environ")
    return root


def read(url: str, *roots: Path, max_mb: float = 1.0) -> bytes:
    args = ImageUrlArgs(file_roots=[str(root) for root in roots], max_mb=max_mb)
    return read_image(url, args.file_roots, Budget.of(args))


def test_files_below_a_root_are_read(root: Path) -> None:
    assert read(f"file://{root}/a.png", root) == b"image"
    assert read(f"FILE://LocalHost{root}//./a.png", Path("/nowhere"), root) == b"image"
    assert read(f"file://{root}/sub/%C3%BC%20%3f.png", root) == b"other"
    assert read(f"file://{root}/inside/ü%20%3F.png", root) == b"other"
    # A link from one allowed directory into another.
    (root / "second.png").symlink_to(root.parent / "images-2" / "a.png")
    assert read(f"file://{root}/second.png", root, root.parent / "images-2") == b"secret"


def test_a_root_may_be_a_link(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert read(f"file://{link}/a.png", link) == b"image"


@pytest.mark.parametrize(
    "path",
    [
        "/missing.png",
        "/missing/a.png",
        "/a.png/a",
        "",
        "/",
        "/sub",
        "/fifo",
        "/device",
        "/process",
        "/outside.png",
        "/nowhere.png",
        "/circle",
        "/up/secret",
        "/up/missing",
        "-2/a.png",
        "-2/missing",
        "/%252e%252e/secret",
        "/" + "a" * 300,
        "/" + "a/" * 3000,
    ],
)
def test_everything_else_gets_the_same_answer(root: Path, path: str) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        read(f"file://{root}{path}", root)
    assert caught.value.message.startswith(NOT_HERE)
    with pytest.raises(TaskArgsInvalid) as other:
        read("file:///etc/passwd", root)
    assert caught.value.message == other.value.message
    assert str(root.parent) not in caught.value.message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file://{root}/../secret", "NUL in its path"),
        ("file://{root}/%2e%2e/secret", "NUL in its path"),
        ("file://{root}/sub/..%2f..%2fsecret", "NUL in its path"),
        ("file://{root}/a.png%00.gif", "NUL in its path"),
        ("file://{root}/%ff.png", "UTF-8"),
        ("file://{root}/a.png?x=1", "query"),
        ("file://{root}/a.png#x", "fragment"),
        ("file://example.org{root}/a.png", "without a host"),
        ("file://127.0.0.1{root}/a.png", "without a host"),
        ("file://..{root}/a.png", "without a host"),
        ("file://", "without a host"),
        ("file:{root}/a.png", "must have the form"),
        ("file:a.png", "must have the form"),
        ("file://{root}/..\\secret", "backslashes"),
        ("file://{root}/a.png\n", "control characters"),
    ],
)
def test_other_forms_are_refused_by_name(root: Path, url: str, said: str) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        read(url.replace("{root}", str(root)), root)
    assert said in caught.value.message


def test_paths_outside_of_the_roots_are_not_looked_up(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*args: object, **kwargs: object) -> None:
        raise AssertionError("looked")

    for name in ("lstat", "stat", "open", "readlink"):
        monkeypatch.setattr(os, name, look)
    with pytest.raises(TaskArgsInvalid, match=NOT_HERE):
        read("file:///net/other/a.png", root)


@pytest.mark.parametrize("parts", [("late", "secret"), ("late.png",)])
def test_a_link_that_was_made_after_the_path_was_resolved(
    root: Path, parts: tuple[str, ...]
) -> None:
    (root / "late").symlink_to(root.parent)
    (root / "late.png").symlink_to(root.parent / "secret")
    with pytest.raises(OSError, match=r"late"):
        _open_below(root, parts)


def test_a_large_file_is_not_read(root: Path) -> None:
    with (root / "large.png").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(TaskArgsInvalid, match=r"more than 1 MB together"):
        read(f"file://{root}/large.png", root)


async def test_files_count_like_fetched_images(root: Path) -> None:
    urls = [f"file://{root}/a.png", "aGVsbG8=", f"file://{root}/inside/%C3%BC%20%3F.png"]
    params = ["messages.0.content.0.base64", "", "messages.0.content.2.base64"]
    enough = Fetcher(ImageUrlArgs(file_roots=[str(root)], max_mb=10e-6))
    assert await load_images(urls, params, enough) == [b"image", "aGVsbG8=", b"other"]
    less = Fetcher(ImageUrlArgs(file_roots=[str(root)], max_mb=9e-6))
    with pytest.raises(TaskArgsInvalid, match="together"):
        await load_images(urls, params, less)
