from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipworthy.models.errors import BadInput, ToolFailed
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.store import Facts, Stage, open_store

Write = Callable[[Path], Facts]


def writes(text: str, **facts: Any) -> Write:
    """Return a stage's work: one file and some facts."""

    def make(folder: Path) -> Facts:
        (folder / "made.txt").write_text(text)
        return facts

    return make


def fails(fault: BaseException) -> Write:
    """Return a stage's work that writes half a file and fails."""

    def make(folder: Path) -> Facts:
        (folder / "made.txt").write_text("ha")
        raise fault

    return make


def run(root: Path, make: Write, **inputs: Any) -> tuple[Stage, bool]:
    """Run one stage in a store of its own; return it and whether it was made now."""
    made = []

    def noting(folder: Path) -> Facts:
        made.append(folder)
        return make(folder)

    with open_store(root, Silent()) as store:
        return store.run("stage", inputs, noting), bool(made)


def leftovers(root: Path) -> list[str]:
    """Return the names of everything half made below a work folder."""
    return [path.name for path in root.rglob(".*") if path.name != ".lock"]


def test_a_finished_stage_is_used_again_with_its_facts(tmp_path: Path) -> None:
    """The same inputs give the same folder, files and facts without work; other inputs give another folder."""
    first, made = run(tmp_path, writes("a", found=[1, 2]), setting=1)
    again, made_again = run(tmp_path, writes("b"), setting=1)
    other, made_other = run(tmp_path, writes("c"), setting=2)
    assert (made, made_again, made_other) == (True, False, True)
    assert (again.folder, again.facts, again.key, again.seconds) == (first.folder, {"found": [1, 2]}, first.key, first.seconds)  # fmt: skip # noqa: E501
    assert other.folder != first.folder
    assert (first.folder / "made.txt").read_text() == "a"


@pytest.mark.parametrize("harm", ["change", "remove", "cut", "empty", "other key", "list"])
def test_a_damaged_stage_is_made_again(harm: str, tmp_path: Path) -> None:
    """A stage whose files or whose record are not what was written is not trusted."""
    stage, _ = run(tmp_path, writes("whole"))
    made, record = stage.folder / "made.txt", stage.folder / "stage.json"
    text = record.read_text()
    harms: dict[str, Callable[[], Any]] = {
        "change": lambda: made.write_text("whale"),
        "remove": made.unlink,
        "cut": lambda: record.write_text(text[:-20]),
        "empty": lambda: record.write_text("{}"),
        "other key": lambda: record.write_text(text.replace(stage.key, "0" * 64)),
        "list": lambda: record.write_text("[]"),
    }
    harms[harm]()
    again, made_now = run(tmp_path, writes("whole"))
    assert made_now
    assert (again.folder / "made.txt").read_text() == "whole"


@pytest.mark.parametrize("fault", [ToolFailed("broke"), ValueError("odd"), KeyboardInterrupt()])
def test_a_failed_stage_leaves_nothing(fault: BaseException, tmp_path: Path) -> None:
    """Whatever ends a stage comes out as it is, and neither a stage nor a half-made folder stays."""
    with pytest.raises(type(fault)) as caught:
        run(tmp_path, fails(fault))
    assert caught.value is fault
    assert list((tmp_path / "stages").iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_device_without_room_is_named_however_it_is_wrapped(code: int, wrapped: bool, tmp_path: Path) -> None:
    """A full disk behind another error is still told as a full work folder, with what to do."""
    fault: Exception = OSError(code, "no room")
    if wrapped:
        fault, fault.__cause__ = BadInput("inner path"), fault
    with pytest.raises(
        BadInput, match=r"cannot be written \(no room\); make room .* choose another --workdir"
    ) as caught:
        run(tmp_path, fails(fault))
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_file_of_the_users_that_cannot_be_read_is_not_blamed_on_the_work_folder(tmp_path: Path) -> None:
    """Permission refused elsewhere stays the error it is; permission refused inside is the work folder's."""
    with pytest.raises(PermissionError):
        run(tmp_path, fails(PermissionError(errno.EACCES, "refused", "/elsewhere/image.png")))
    with pytest.raises(BadInput, match="the work folder cannot be written"):
        run(tmp_path, fails(PermissionError(errno.EACCES, "refused", str(tmp_path / "stages/x"))))


def test_two_builds_cannot_share_a_work_folder(tmp_path: Path) -> None:
    """The second is refused with a remedy while the first runs, and is let in when it has ended."""
    with (
        open_store(tmp_path, Silent()),
        pytest.raises(BadInput, match="another build is using this work folder; wait for it or choose"),
        open_store(tmp_path, Silent()),
    ):
        pass
    with open_store(tmp_path, Silent()):
        pass


@pytest.mark.parametrize("place", ["file/below", "file", "/proc/nowhere", "/sys/nowhere"])
def test_a_folder_that_cannot_be_made_is_bad_input(place: str, tmp_path: Path) -> None:
    """A work folder under a file, or where the system allows none, is refused by name with a remedy."""
    (tmp_path / "file").write_text("kept")
    root = tmp_path / place
    with pytest.raises(BadInput, match=r"cannot be used as a work folder .*; choose another --workdir") as caught:
        run(root, writes("a"))
    assert str(root) in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_delivery_is_whole_or_nothing(tmp_path: Path) -> None:
    """Files reach the work folder together; a failure in between leaves the earlier delivery as it was."""
    with open_store(tmp_path, Silent()) as store:
        for text in ("old", "new"):
            with store.delivery() as folder:
                (folder / "report.json").write_text(text)
                (folder / "model.onnx").write_text(text)
        with pytest.raises(ToolFailed), store.delivery() as folder:
            fails(ToolFailed("broke"))(folder)
    assert [(tmp_path / name).read_text() for name in ("report.json", "model.onnx")] == ["new", "new"]
    assert leftovers(tmp_path) == []


DRIVER = '''\
import json, os, signal, sys
from pathlib import Path
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.store import open_store

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "half"}

def write(path, text):
    with path.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        sys.audit("half", str(path))
        file.write(text[len(text) // 2 :])

def make(text):
    def work(folder):
        write(folder / "made.txt", text)
        write(folder / "more.txt", text * 2)
        return {"said": text}
    return work

def build(root):
    with open_store(root, Silent()) as store:
        first = store.run("first", {"a": 1}, make("first"))
        second = store.run("second", {"before": first.key}, make("second"))
        with store.delivery() as folder:
            write(folder / "model.onnx", (second.folder / "made.txt").read_text())
            write(folder / "report.json", json.dumps(second.facts))

def child(root, moment):
    """Build in a child process that is killed right before its `moment`-th touch of the work folder."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] == signal.SIGKILL
    seen = 0
    def watch(event, args):
        nonlocal seen
        if event in WATCHED and str(root) in str(args[0]) and not (event == "open" and args[1] in ("r", "rb")):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    build(root)
    os._exit(0)

def tree(root):
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            text = path.read_text()
            if path.name == "stage.json":
                text = {k: v for k, v in json.loads(text).items() if k != "seconds"}
            found[str(path.relative_to(root))] = text
    return found

base = Path(sys.argv[1])
child(base / "whole", 0)
wanted, moment, wrong = tree(base / "whole"), 0, []
while True:
    moment += 1
    root = base / str(moment)
    if not child(root, moment):
        break
    names = ("report.json", "model.onnx")
    if (root / names[0]).exists() and [(root / name).read_text() for name in names] != [wanted[name] for name in names]:
        wrong.append([moment, "a report without its files"])
    child(root, 0)
    if tree(root) != wanted:
        wrong.append([moment, tree(root)])
print(json.dumps({"moments": moment - 1, "wrong": wrong, "files": sorted(wanted)}))
'''


def test_killed_at_any_touch_of_the_disk_the_next_run_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL before each single write, rename or removal, and within files, changes nothing in the end.

    The next run makes the same files, leaves nothing half made, and no report ever stands beside other files.
    """
    done = subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["moments"] > 25
    assert [name for name in found["files"] if "making" in name] == []
