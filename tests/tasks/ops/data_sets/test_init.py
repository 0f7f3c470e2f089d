"""`data init`: layouts, groups, texts, files; nothing overwritten."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_specs.load import load_spec
from data_specs.schema import CsvSource, FolderSource, SplitPolicy
from infra.settings import Settings
from tasks.ops.init import InitError, Proposal, Request, add_dataset, add_systems, propose, propose_clip, write_proposal
from tasks.ops.init_guess import Options, guess_groups
from tasks.ops.init_text import human_bytes, samples_per_shard, table_of_splits
from tasks.ops.survey import VideoFacts

Maker = Callable[..., None]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    root = tmp_path / "project"
    (root / "params" / "templates").mkdir(parents=True)
    (root / "params.yaml").write_text("# sets\ndatasets:\n- demo  # the procedural one\nadafocus: [demo]\nother: []\n")
    (root / "params" / "templates" / "adafocus.yaml").write_text("# small\nstage: {x: 1}\n")
    (root / "params" / "templates" / "other.yaml").write_text("first: {y: 1}\nsecond: {}\n")
    monkeypatch.setenv("FOVEA_ROOT", str(root))
    return Settings(progress=False)


def run(target: Path, settings: Settings, name: str | None = None, force: bool = False, **options: object) -> Proposal:
    request = Request(target, name, Options(**options), 0.25, 0.25, 0, force)  # type: ignore[arg-type]
    proposal = propose(request, settings)
    written = write_proposal(proposal, settings, force)
    assert proposal.spec_file in written
    # What was written is what was shown, and it loads.
    assert load_spec(proposal.spec.name) == proposal.spec
    return proposal


def clips(folder: Path, make: Maker, names: list[str]) -> None:
    for number, name in enumerate(names):
        make(folder / name, seed=number)


def test_class_folders_with_groups(settings: Settings, video_maker: Maker) -> None:
    folder = settings.root / "My Clips"
    clips(folder, video_maker, [f"{c}/p{p}_{n:02}.mp4" for c in ("bend", "wave") for p in range(4) for n in range(2)])
    proposal = run(folder, settings)
    assert proposal.spec.name == "my_clips"
    assert proposal.spec.parts[0].source == FolderSource(root="My Clips")
    split = proposal.spec.parts[0].split
    assert isinstance(split, SplitPolicy)
    assert {r.group for r in proposal.listing.rows} == {"p0", "p1", "p2", "p3"}
    assert proposal.listing.report.absent == ()
    assert proposal.sizes is not None
    assert proposal.sizes.sampled == 6
    assert 0 < proposal.sizes.mp4 < 1e6
    both = ["demo", "my_clips"]
    lists = yaml.safe_load((settings.root / "params.yaml").read_text())
    assert lists == {"datasets": both, "adafocus": both, "other": []}
    assert "# the procedural one" in (settings.root / "params.yaml").read_text()
    assert "# small\nstage: {x: 1}" in (settings.root / "params" / "my_clips.yaml").read_text()
    assert table_of_splits(proposal.listing.rows)[-1][0] == "all"
    with pytest.raises(FileExistsError, match=r"my_clips\.yaml exists; give another --name, or --force"):
        run(folder, settings)
    run(folder, settings, force=True)
    assert (settings.root / "params.yaml").read_text().count("my_clips") == 2


def test_systems_of_a_data_set(settings: Settings, video_maker: Maker) -> None:
    folder = settings.root / "raw"
    clips(folder, video_maker, [f"{s}/{c}/{n}.mp4" for s in ("train", "val") for c in ("a", "b") for n in range(2)])
    with pytest.raises(InitError, match=r"no system 'othre'; there are: adafocus, other"):
        propose(Request(folder, "two", Options(), 0.25, 0.25, 0, False, ("othre",)), settings)
    run(folder, settings, "two")
    params = settings.root / "params" / "two.yaml"
    params.write_text(params.read_text().replace("{x: 1}", "{x: 2}"))
    assert add_systems("two", ["other"], settings) == [params, settings.root / "params.yaml"]
    assert yaml.safe_load(params.read_text()) == {"stage": {"x": 2}, "first": {"y": 1}, "second": {}}
    assert yaml.safe_load((settings.root / "params.yaml").read_text())["other"] == ["two"]
    assert add_systems("two", ["other", "adafocus"], settings) == []
    params.write_text("first: {y: 3}\n")
    with pytest.raises(InitError, match="lacks second"):
        add_systems("two", ["other"], settings)
    assert params.read_text() == "first: {y: 3}\n"
    with pytest.raises(InitError, match=r"nowhere\.yaml does not exist"):
        add_systems("nowhere", ["other"], settings)


def test_split_folders(settings: Settings, video_maker: Maker) -> None:
    folder = settings.root / "raw"
    clips(folder, video_maker, [f"{s}/{c}/{n}.mp4" for s in ("train", "val") for c in ("a", "b") for n in range(2)])
    proposal = run(folder, settings, "two")
    assert proposal.spec.parts[0].source == FolderSource(root="raw", splits_in_path=True)
    assert proposal.spec.parts[0].split == "official"


def test_many_classes_go_to_a_label_file(settings: Settings, video_maker: Maker) -> None:
    folder = settings.root / "raw"
    video_maker(folder / "c00" / "a.mp4")
    for number in range(1, 25):
        (folder / f"c{number:02}").mkdir()
        os.link(folder / "c00" / "a.mp4", folder / f"c{number:02}" / "a.mp4")
    proposal = run(folder, settings, "many")
    assert proposal.label_file == settings.root / "data_specs" / "labels" / "many.txt"
    assert "labels: many.txt" in proposal.spec_text
    assert len(proposal.spec.labels) == 25


def test_table_with_quoted_cells(settings: Settings, video_maker: Maker) -> None:
    folder = settings.root / "raw"
    lines = ["file,class,who,notes,set"]
    for number in range(12):
        video_maker(folder / f"v, {number}.mp4", seed=number)
        lines.append(f'"v, {number}.mp4",{"ab"[number % 2]},p{number // 2},"x, ""y""",one')
    lines.append("other.mp4,zzz,p9,,two")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    proposal = run(folder / "list.csv", settings, where={"set": "one"})
    source = proposal.spec.parts[0].source
    assert source == CsvSource(
        root="raw",
        file="raw/list.csv",
        path="file",
        label="class",
        group="who",
        where={"set": "one"},
        ignore=("notes",),
    )
    assert proposal.spec.name == "one"
    assert proposal.spec.labels == ("a", "b")
    assert len({r.group for r in proposal.listing.rows}) == 6
    # Found from the folder as well: one table beside loose videos.
    assert run(folder, settings, "again", where={"set": "one"}).spec.parts[0].source == source
    with pytest.raises(InitError, match=r"no column 'clas' for the label; did you mean 'class'"):
        run(folder / "list.csv", settings, "x1", label_column="clas")
    with pytest.raises(InitError, match=r"no row has set = 'three'"):
        run(folder / "list.csv", settings, "x2", where={"set": "three"})


def test_public_lists(settings: Settings, video_maker: Maker) -> None:
    ucf = settings.root / "ucf"
    clips(ucf, video_maker, [f"videos/run/v_run_g0{g}_c01.avi" for g in (1, 2)])
    (ucf / "lists").mkdir()
    (ucf / "lists" / "classInd.txt").write_text("1 run\n")
    (ucf / "lists" / "trainlist01.txt").write_text("run/v_run_g02_c01.avi 1\n")
    (ucf / "lists" / "testlist01.txt").write_text("run/v_run_g01_c01.avi\n")
    source = run(ucf, settings, "ucf").spec.parts[0].source
    assert (source.kind, source.root, getattr(source, "lists", "")) == ("ucf101", "ucf/videos", "ucf/lists")
    hmdb = settings.root / "hmdb"
    clips(hmdb, video_maker, ["videos/run/Film_run_1.avi"])
    (hmdb / "run_test_split1.txt").write_text("Film_run_1.avi 1\n")
    assert run(hmdb, settings, "hmdb").spec.parts[0].source.kind == "hmdb51"
    kinetics = settings.root / "kin"
    clips(kinetics, video_maker, ["abcdefghijk_000001_000002.mp4"])
    (kinetics / "val.csv").write_text("label,youtube_id,time_start,time_end,split\nrun,abcdefghijk,1,2,val\n")
    assert run(kinetics / "val.csv", settings, "kin").listing.rows[0].size


def test_nothing_to_guess(settings: Settings, video_maker: Maker) -> None:
    folder = settings.root / "raw"
    folder.mkdir()
    with pytest.raises(InitError, match="no videos"):
        run(folder, settings)
    video_maker(folder / "a.mp4")
    with pytest.raises(InitError, match=r"'a\.mp4' lies above the class folders; expected <class>/<video>"):
        run(folder, settings)
    with pytest.raises(InitError, match="raws does not exist; did you mean 'raw'"):
        run(settings.root / "raws", settings)
    with pytest.raises(InitError, match="must be lower-case"):
        run(folder, settings, "Bad Name")
    assert not (settings.root / "data_specs").exists()


def names(count: int, form: str) -> tuple[list[str], list[str]]:
    found = [(form.format(c=c, g=g, n=n), c) for c in "ab" for g in range(count) for n in range(3)]
    return [path for path, _ in found], [label for _, label in found]


@pytest.mark.parametrize(
    ("form", "groups"),
    [
        ("x/v_{c}_g{g:02}_c{n:02}.avi", 8),
        ("x/2020062{g}_154313_{c}{n}.mp4", 4),
        ("x/p{g}_{c}{n}.mp4", 4),
        ("x/{g}abcdefghij_00000{n}_00001{n}.mp4", 4),
        ("x/tape {g}-{n}.mp4", 4),
    ],
)
def test_groups_from_names(form: str, groups: int) -> None:
    files, labels = names(4, form)
    rule, told = guess_groups(files, labels)
    assert rule.startswith("regex:"), told
    assert f"{groups} groups of" in told[0]


def test_no_groups_in_names() -> None:
    """Negative control: numbering within a class says nothing about recordings."""
    assert guess_groups([f"a{n}.mp4" for n in range(9)], ["a"] * 9)[0] == "source"
    rule, told = guess_groups([f"{c}_{n}.mp4" for c in "ab" for n in range(9)], ["a"] * 9 + ["b"] * 9)
    assert rule == "source"
    assert "too few for three splits" in told[0]


def facts(**values: object) -> VideoFacts:
    base: dict[str, object] = dict.fromkeys(VideoFacts._fields, "")
    return VideoFacts(**(base | {"width": 640, "height": 480, "fps": 25.0, "duration_s": 2.0} | values))  # type: ignore[arg-type]


def test_clip_policy() -> None:
    policy, told = propose_clip([facts(), facts(width=320, height=241), facts(reason="empty", width=0, height=0)])
    assert (policy.short_side, policy.fps, policy.audio) == (256, None, "drop")
    assert "1 of 3 probed videos will be rejected (1 empty)" in told[0]
    policy, _ = propose_clip([facts(width=120, height=91), facts(width=120, height=91, fps=30.0, audio="aac")] * 2)
    assert (policy.short_side, policy.audio) == (90, "keep")
    assert policy.fps == 25.0
    assert propose_clip([])[0].short_side == 256


@pytest.mark.parametrize(
    "text",
    [
        "datasets: [demo]\nother: 1\n",
        "datasets: []\n",
        "# a\ndatasets:\n# b\n- demo\n# c\nother: 1\n",
        "datasets:\n  - demo\n  - two # x\n\nother:\n  - z\n",
        "datasets:\n- demo",
        "other: 1\ndatasets:  # why\n\n  - demo\n",
    ],
)
def test_add_dataset(text: str) -> None:
    new = add_dataset(text, "mine", Path("params.yaml"))
    before, after = yaml.safe_load(text), yaml.safe_load(new)
    assert after == before | {"datasets": [*before["datasets"], "mine"]}
    assert [line for line in text.splitlines() if "#" in line] == [line for line in new.splitlines() if "#" in line]
    assert add_dataset(new, "mine", Path("params.yaml")) == new


def test_add_dataset_refuses_what_it_cannot_extend() -> None:
    for text in ("other: 1\n", "datasets: demo\n", "", "datasets: &x\n  [demo,\n   'a]b']\n"):
        with pytest.raises(InitError, match=r"params\.yaml"):
            add_dataset(text, "mine", Path("params.yaml"))


def test_texts() -> None:
    assert [human_bytes(n) for n in (0, 999, 1500, 150_000, 2.5e9, 3e15)] == [
        "0 B", "999 B", "1.5 KB", "150 KB", "2.5 GB", "3000.0 TB",
    ]  # fmt: skip
    assert [samples_per_shard(n) for n in (1, 100, 2000, 10**6)] == [16, 16, 64, 1000]
