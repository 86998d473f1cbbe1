"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from native_runs import subprocess_environment

from twolayer.atomic import remove_leftovers, replacing, write_bytes

WRITER = """
import sys
from pathlib import Path
from twolayer.atomic import replacing
path = Path(sys.argv[1])
for number in range(1_000_000):
    with replacing(path) as file:
        for _ in range(16):
            file.write(bytes([number % 256]) * 50_000)
"""


def test_a_file_takes_the_place_of_another_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a [file]"
    write_bytes(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with replacing(path, text=True) as file:
        file.write("größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert os.listdir(tmp_path) == ["a [file]"]


def test_what_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_the_old_files_or_the_users(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_bytes(tmp_path / "new", b"")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
        (tmp_path / "new").chmod(0o604)
        write_bytes(tmp_path / "new", b"")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(umask)


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_bytes(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileExistsError, match="expected a file or nothing there"), replacing(place):
            pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_whoever_is_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    draw = random.Random(0)
    left = 0
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], env=subprocess_environment())
        before = path.stat().st_mtime_ns if path.exists() else None
        while (path.stat().st_mtime_ns if path.exists() else None) == before:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.wait()
        content = path.read_bytes()
        assert content == content[:1] * 800_000
        left += len(os.listdir(tmp_path)) > 1
        remove_leftovers(path)
        assert os.listdir(tmp_path) == ["file"]
    assert left > 0  # it was killed in the midst of it
