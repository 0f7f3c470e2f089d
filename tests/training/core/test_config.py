from pathlib import Path

import pytest
import yaml

from training.core.config import ConfigError, FitConfig, apply_overrides, load_section, parse_yaml, validate
from training.core.stage import StageRef


def test_overrides_are_parsed_and_leave_the_original_alone():
    values = {"fit": {"steps": 1}}
    changed = apply_overrides(values, ["fit.steps=5", "fit.optim.lr.main=1e-3", "arms=[a, b]"])
    assert changed == {"fit": {"steps": 5, "optim": {"lr": {"main": "1e-3"}}}, "arms": ["a", "b"]}
    assert values == {"fit": {"steps": 1}}
    with pytest.raises(ConfigError, match="not a mapping"):
        apply_overrides(values, ["fit.steps.deep=1"])


def test_params_files_mean_the_same_to_the_quick_reader():
    root = Path(__file__).parents[3]
    files = [*root.glob("params/**/*.yaml"), *root.glob("tests/params*.yaml"), root / "params.yaml", root / "dvc.yaml"]
    assert len(files) > 7
    for path in files:
        assert parse_yaml(path.read_text()) == yaml.safe_load(path.read_text()), path
    odd = "{a: 1e-3, b: 1.0e-3, c: 0o17, d: 017, e: yes, f: ~, g: .nan, h: 2026-11-23, i: '1', k: 1_000}"
    assert str(parse_yaml(odd)) == str(yaml.safe_load(odd))
    for wrong in ("a: [1", "!!python/object/apply:os.getcwd []"):  # the second: values only, never code
        with pytest.raises(yaml.YAMLError):
            parse_yaml(wrong)


def test_missing_section_names_the_file_and_a_close_match(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("adafocus_policy: {}\n")
    with pytest.raises(ConfigError, match=r"p\.yaml has no section 'adafocus_polici'.*did you mean 'adafocus_policy'"):
        load_section(path, "adafocus_polici")
    with pytest.raises(ConfigError, match="does not exist"):
        load_section(tmp_path / "none.yaml", "x")


def test_every_wrong_field_is_named():
    with pytest.raises(ConfigError) as error:
        validate(FitConfig, {"steps": "many", "sed": 1}, "params/x.yaml: section 'y'")
    text = str(error.value)
    assert "params/x.yaml: section 'y'" in text
    assert "steps" in text
    assert "did you mean 'seed'" in text
    assert "precision" in text  # missing


@pytest.mark.parametrize("text", ["a@b", "adafocus_pretrain@demo-glance", "r_t@set_1-50-16-1.5"])
def test_instance_names_survive_a_round_trip(text):
    assert str(StageRef.parse(text)) == text


@pytest.mark.parametrize("text", ["a", "@b", "a@", "a@B", "a@b-", "a b@c", "a@b--c"])
def test_wrong_instance_names_are_refused(text):
    with pytest.raises(ConfigError):
        StageRef.parse(text)
