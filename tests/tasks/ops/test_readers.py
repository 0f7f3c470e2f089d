"""Readers on small synthetic sources: what they give, and errors with file, line and field."""

from pathlib import Path
from typing import Any

import pytest

from data_specs.schema import Part
from tasks.ops.readers import group_by_rule, read_items
from tasks.ops.readers_base import RawItem, ReadContext, ReaderError, walk_files


def read(
    tmp_path: Path, source: dict[str, Any], classes: tuple[str, ...] = ("run", "jump"), group_column: str | None = None
) -> tuple[list[RawItem], ReadContext]:
    part = Part.model_validate({"name": "main", "source": {"root": "raw", **source}, "split": "train"})
    context = ReadContext(tmp_path, classes, lambda: walk_files(tmp_path / "raw"), group_column)
    return list(read_items(part, context)), context


def touch(tmp_path: Path, *names: str) -> None:
    for name in names:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


# --- folder -----------------------------------------------------------------------------------


def test_folder_takes_any_file_name(tmp_path: Path) -> None:
    names = [
        "run/-a.mp4",
        "run/b c.d.MP4",
        "jump/日本 é.webm",
        "jump/deep/er/x.avi",
        "run/notes.txt",
        "run/.hidden.mp4",
    ]
    touch(tmp_path, *names)
    items, context = read(tmp_path, {"kind": "folder"})
    assert {(i.path, i.label) for i in items} == {(n, n.split("/")[0]) for n in names[:4]}
    assert all(i.split is None and i.group is None for i in items)
    assert context.notes == ["raw: 1 files with other extensions left out (1 × .txt)"]


def test_folder_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "Train/run/a.mp4", "validation/jump/b.mp4", "testing/run/c.mp4")
    items, _ = read(tmp_path, {"kind": "folder", "splits_in_path": True})
    assert {(i.split, i.label) for i in items} == {("train", "run"), ("val", "jump"), ("test", "run")}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("runn/a.mp4", {}, r"raw/runn/a\.mp4: class 'runn' is not in `labels`.*did you mean 'run'"),
        ("a.mp4", {}, r"raw/a\.mp4: lies above the class folders; the layout is <class>/<video>"),
        ("run/a.txt", {}, r"raw: no video found"),
        ("dev/run/a.mp4", {"splits_in_path": True}, r"raw/dev/run/a\.mp4: split 'dev' is none of train"),
        ("train/a.mp4", {"splits_in_path": True}, r"the layout is <split>/<class>/<video>"),
    ],
)
def test_folder_errors(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    touch(tmp_path, name)
    with pytest.raises(ReaderError, match=message):
        read(tmp_path, {"kind": "folder", **options})


# --- csv --------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str, name: str = "list.csv") -> dict[str, Any]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return {"kind": "csv", "file": name}


def test_csv_with_everything(tmp_path: Path) -> None:
    text = (
        "\ufeffclip,class,from,to,part,who,note,set\r\n"
        '"-a, b.mp4",run,1.5,2,train,p1,"x, ""y""\nz",one\r\n'
        "日本.mp4,jump|run,,,valid,p2,,one\r\n"
        "\r\n"
        "other.mp4,unheard,,,dev,p3,,two\r\n"
    )
    source = table(tmp_path, text) | {
        "path": "clip",
        "label": "class",
        "start": "from",
        "end": "to",
        "split": "part",
        "group": "who",
        "where": {"set": "one"},
        "ignore": ["note"],
    }
    items, context = read(tmp_path, source)
    assert items == [
        RawItem("-a, b.mp4", "run", "train", "p1", 1.5, 2.0, 2),
        RawItem("日本.mp4", "jump|run", "val", "p2", None, None, 4),
    ]
    assert context.origin == str(tmp_path / "list.csv")


def test_tsv_semicolon_and_headerless(tmp_path: Path) -> None:
    tsv = table(tmp_path, "path\tlabel\na, b.mp4\trun\n", "list.tsv")
    assert read(tmp_path, tsv)[0][0].path == "a, b.mp4"
    jester = table(tmp_path, "34870;run\n1;jump\n")
    items, _ = read(tmp_path, jester | {"path": "{0}.mp4", "label": "1"})
    assert [(i.path, i.label, i.line) for i in items] == [("34870.mp4", "run", 1), ("1.mp4", "jump", 2)]
    template = table(tmp_path, "id,label,side\nx,run,left\n")
    assert read(tmp_path, template | {"path": "{side}/{id}.webm"})[0][0].path == "left/x.webm"


def test_csv_group_column_of_the_policy(tmp_path: Path) -> None:
    source = table(tmp_path, "path,label,who\na.mp4,run,p1\n")
    assert read(tmp_path, source, group_column="who")[0][0].group == "p1"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,lable\na,run\n", {}, r"list\.csv:1: no column 'label' \(field label\); did you mean 'lable'"),
        ("path,label,x\na,run,1\n", {}, r"list\.csv:1: unknown column 'x'.*ignore"),
        ("path,label\na,runn\n", {}, r"list\.csv:2: label: class 'runn' is not in `labels`.*did you mean 'run'"),
        ("path,label\na,run\nb,run|hop\n", {}, r"list\.csv:3: label: class 'hop'"),
        ("path,label\na,run,3\n", {}, r"list\.csv:2: 3 cells, the header has 2"),
        ('path,label\n"a,run\n', {}, r"list\.csv:2: unexpected end of data"),
        ("path,label,s\na,run,one\n", {"start": "s"}, r"list\.csv:2: s: 'one' is not a number of seconds"),
        ("path,label,s\na,run,nan\n", {"start": "s"}, r"list\.csv:2: s: 'nan'"),
        ("path,label,s\na,run,dev\n", {"split": "s"}, r"list\.csv:2: s: split 'dev' is none of"),
        ("path,label,g\na,run,\n", {"group": "g"}, r"list\.csv:2: g: is empty"),
        ("path,label\n,run\n", {}, r"list\.csv:2: path: '' must be a path below the root"),
        ("path,label\n/a.mp4,run\n", {}, r"list\.csv:2: path: '/a\.mp4' must be a path below"),
        ("path,label\nx/../../a.mp4,run\n", {}, r"list\.csv:2: path: .* must be a path below"),
        ("path,label\n", {}, r"list\.csv: no rows"),
        ("", {}, r"list\.csv:1: no header"),
        ("path,path,label\na,b,run\n", {}, r"list\.csv:1: column 'path' is given twice"),
        ("path,label,s\na,run,1\n", {"where": {"s": "2"}}, r"list\.csv: no rows; none of 1 rows has \{'s': '2'\}"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ReaderError, match=message):
        read(tmp_path, table(tmp_path, text) | options)


def test_missing_list_file_suggests(tmp_path: Path) -> None:
    table(tmp_path, "path,label\n")
    with pytest.raises(ReaderError, match=r"lst\.csv does not exist; did you mean 'list\.csv'"):
        read(tmp_path, {"kind": "csv", "file": "lst.csv"})


# --- Kinetics, UCF101, HMDB51 -----------------------------------------------------------------

KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\nrun,-4wsuPCjDBc,5,15,validate,0\n"


def test_kinetics(tmp_path: Path) -> None:
    source = table(tmp_path, KINETICS) | {"kind": "kinetics"}
    assert read(tmp_path, source)[0] == [
        RawItem("-4wsuPCjDBc_000005_000015.mp4", "run", "val", "-4wsuPCjDBc", None, None, 2)
    ]
    assert read(tmp_path, source | {"trimmed": False})[0] == [
        RawItem("-4wsuPCjDBc.mp4", "run", "val", "-4wsuPCjDBc", 5.0, 15.0, 2)
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("time_start", "start", r":1: no column 'time_start'"),
        ("is_cc", "is_cd", r":1: unknown column 'is_cd'"),
        (",5,15", ",five,15", r":2: time_start: 'five' is not a number"),
        (",5,15", ",,15", r":2: time_start or time_end is empty"),
        ("run,", "walk,", r":2: label: class 'walk'"),
        ("validate", "dev", r":2: split: split 'dev'"),
    ],
)
def test_kinetics_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ReaderError, match=message):
        read(tmp_path, table(tmp_path, KINETICS.replace(old, new)) | {"kind": "kinetics"})


def ucf(tmp_path: Path, **files: str) -> dict[str, Any]:
    lists = tmp_path / "lists"
    lists.mkdir()
    texts = {
        "classInd": "1 run\r\n2 jump\r\n",
        "trainlist01": "run/v_run_g08_c01.avi 1\r\njump/v_jump_g09_c02.avi 2\r\n",
        "testlist01": "run/v_run_g01_c01.avi\r\n",
    }
    for name, text in (texts | files).items():
        (lists / f"{name}.txt").write_bytes(text.encode())
    return {"kind": "ucf101", "lists": "lists"}


def test_ucf101(tmp_path: Path) -> None:
    items, _ = read(tmp_path, ucf(tmp_path))
    assert [(i.path, i.label, i.split, i.group) for i in items] == [
        ("run/v_run_g08_c01.avi", "run", "train", "v_run_g08"),
        ("jump/v_jump_g09_c02.avi", "jump", "train", "v_jump_g09"),
        ("run/v_run_g01_c01.avi", "run", "test", "v_run_g01"),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"classInd": "0 run\n1 jump\n"}, r"classInd\.txt:1: '0 run' is not `1 <class>` \(numbers count from 1\)"),
        ({"classInd": "1 run\n2 leap\n"}, r"classInd\.txt:2: class 'leap' is not in `labels`"),
        ({"trainlist01": "run/v_run_g08_c01.avi 2\n"}, r"trainlist01\.txt:1: class number '2' is 'jump'"),
        ({"trainlist01": "run/v_run_g08_c01.avi\n"}, r"trainlist01\.txt:1: .* is not <class>/<video> <number>"),
        ({"testlist01": "hop/v_hop_g01_c01.avi\n"}, r"testlist01\.txt:1: class 'hop'"),
        ({"testlist01": "run/clip7.avi\n"}, r"testlist01\.txt:1: .*so its group is unknown"),
    ],
)
def test_ucf101_errors(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ReaderError, match=message):
        read(tmp_path, ucf(tmp_path, **files))


def test_hmdb51(tmp_path: Path) -> None:
    (tmp_path / "run_test_split1.txt").write_text("Film_A_run_f_cm_1.avi 1 \nFilm_A_run_f_cm_2.avi 0 \nodd.avi 2\n")
    (tmp_path / "run_test_split2.txt").write_text("Film_A_run_f_cm_1.avi 2 \n")
    items, context = read(tmp_path, {"kind": "hmdb51", "lists": "."})
    assert [(i.path, i.split, i.group) for i in items] == [
        ("run/Film_A_run_f_cm_1.avi", "train", "Film_A"),
        ("run/odd.avi", "test", "odd.avi"),
    ]
    assert "1 videos are in neither split" in context.notes[0]
    (tmp_path / "jump_test_split1.txt").write_text("a.avi 3\n")
    with pytest.raises(ReaderError, match=r"jump_test_split1\.txt:1: 'a\.avi 3' is not `<video> <use>`"):
        read(tmp_path, {"kind": "hmdb51", "lists": "."})
    (tmp_path / "hop_test_split1.txt").write_text("a.avi 1\n")
    with pytest.raises(ReaderError, match=r"hop_test_split1\.txt: class 'hop' is not in `labels`"):
        read(tmp_path, {"kind": "hmdb51", "lists": "."})
    with pytest.raises(ReaderError, match=r"no <class>_test_split3\.txt found"):
        read(tmp_path, {"kind": "hmdb51", "lists": ".", "split_number": 3})


def test_group_rule() -> None:
    item = RawItem("run/p3_07.mp4", "run", None, None, None, None, 1)
    assert group_by_rule("regex:^(p\\d+)_", item) == "p3"
    assert group_by_rule("source", item) is None
    with pytest.raises(ReaderError, match=r"run/p3_07\.mp4: the file name does not match"):
        group_by_rule("regex:^(q)", item)
