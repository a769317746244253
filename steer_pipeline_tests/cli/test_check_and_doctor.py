"""`steer check` names every fault of the catalogue, `steer doctor` what will not work, in a checkout or not."""

import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from steer_pipeline.cli.check import check
from steer_pipeline.cli.doctor import BROKEN, OK, WARNING, Place, doctor, examine
from steer_pipeline.environment import PACKAGE
from steer_pipeline.lab.rewrites.sizing import Need
from steer_pipeline.settings import _settings
from steer_pipeline_tests.tiny import tiny_model_dir


@pytest.fixture(autouse=True)
def forgotten():
    """The settings are read anew, since these tests change files under the same names."""
    _settings.cache_clear()
    yield
    _settings.cache_clear()


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    place = tmp_path / "catalogue"
    shutil.copytree(PACKAGE / "catalogue", place, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setenv("STEER_CATALOGUE", str(place))
    return place


def states(**kwargs):
    found = {}
    for finding in examine(Place(kwargs.pop("model", None)), **kwargs):
        found.setdefault(finding.what, []).append(finding)
    return {
        what: max(all_, key=lambda one: (OK, WARNING, BROKEN).index(one.state))
        for what, all_ in found.items()
    }


def test_a_sound_catalogue_is_called_so(catalogue):
    done = CliRunner().invoke(check)
    assert done.exit_code == 0
    assert "11 personas, variants and" in done.output
    assert "note: paranoid: 1 of 5 contrast pairs are no direct opposites: instructions.3" in done.output


def test_every_problem_has_a_line_with_file_field_and_cure(catalogue):
    cheerful, sailor = (catalogue / "personas" / f"{name}.yaml" for name in ("cheerful", "sailor"))
    cheerful.write_text(cheerful.read_text().replace("lexicon:", "lexikon:"))
    qwen = catalogue / "profiles" / "qwen3-4b.yaml"
    qwen.write_text(qwen.read_text() + "lexicons: {ghost: {positive: [boo]}}\n")
    sailor.write_text(sailor.read_text() + "vector: {format: gguf, path: gone.gguf}\n")
    (catalogue / "profiles" / "newsroom.yaml").write_text(
        "name: newsroom\nsummary: x\nmodel: {path: m, dtype: int8}\n"
    )
    done = CliRunner().invoke(check)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert (
        f"{cheerful}: positive.lexikon: Extra inputs are not permitted: no field has this name" in done.output
    )
    assert "profile qwen3-4b: lexicons.ghost: no file in personas/; correct or remove it" in lines
    assert any("sailor.yaml: vector.path: there is nothing at" in line for line in lines)
    assert any("newsroom.yaml: model.dtype: Input should be 'auto', 'float32'" in line for line in lines)
    assert len(lines) == len(set(lines))
    assert lines[-1] == f"{len(lines) - 1} problems"
    assert states()["catalogue"].state == BROKEN


def test_a_checkout_works_and_steering_moves_its_model():
    found = states(loads=True)
    assert {what for what, one in found.items() if one.state == BROKEN} == set()
    assert "changes what the model says" in found["steering"].message
    assert "as pinned" in found["minilm"].message
    assert found["diagnosis"].state == OK


def test_the_rows_that_limits_need_are_told():
    told = [one.message for one in examine(Place(None)) if one.what == "rows"]
    assert (
        "gates.max_suspect_rate 0.01 needs 299 rows without a hit, a pilot pack has 50: these exclude no share below "
        "5.8%, and one of 2% passes in 36% of cases"
    ) in told
    assert any(line.startswith("coherence.max_extra_suspects") and "dose_curve has" in line for line in told)
    enough = Need("gates.max_suspect_rate", 0.05, 60, "a pilot pack")
    assert enough.sentence() == "gates.max_suspect_rate 0.05 needs 59 rows without a hit, a pilot pack has 60"


def test_a_model_that_ignores_its_prompt_will_not_work(tmp_path):
    folder = str(tiny_model_dir(tmp_path))
    done = CliRunner().invoke(doctor, ["--model", folder])
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith(BROKEN)]
    assert "the model does not follow the rewrite prompt" in line
    assert "-> use an instruction-tuned model, or another rewrites.prompt" in done.output
    assert "tokens/s; about" in done.output
    assert CliRunner().invoke(doctor, ["--model", folder, "--no-load"]).exit_code == 0


@pytest.mark.parametrize(
    ("break_it", "part", "told"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model", "weights are missing"),
        (lambda folder: [one.unlink() for one in folder.glob("tokenizer*")], "tokenizer", "tokenizer"),
        (
            lambda folder: (folder / "chat_template.jinja").unlink(),
            "chat template",
            "the profile asks for one",
        ),
        (lambda folder: (folder / "config.json").unlink(), "model", "no config.json"),
    ],
)
def test_what_is_wrong_with_a_model_is_named(tmp_path, break_it, part, told):
    folder = tiny_model_dir(tmp_path)
    assert {one.state for one in states(model=str(folder)).values()} == {OK}
    break_it(folder)
    done = CliRunner().invoke(doctor, ["--model", str(folder)])
    assert done.exit_code == 1
    assert any(line.startswith(BROKEN) and part in line and told in line for line in done.output.splitlines())


def test_places_that_cannot_be_used_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("STEER_STORE", "/proc/store")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "gone"))
    monkeypatch.setenv("STEER_JUDGE_URL", "http://127.0.0.1:9/v1")
    found = states()
    assert (found["store"].state, found["dagster"].state, found["judge"].state) == (BROKEN, BROKEN, WARNING)
    assert "STEER_STORE" in found["store"].cure
    monkeypatch.setenv("STEER_STORE", "s4://bucket")
    assert "s4 is not installed" in states()["store"].message


def test_outside_a_checkout_it_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_HOME", str(tmp_path))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    found = states()
    assert found["model"].state == found["news"].state == BROKEN
    assert "comes with the checkout and not with the wheel" in found["model"].cure
    assert "corpus.source" in found["news"].cure
    assert not list(tmp_path.iterdir())  # it makes nothing


def test_other_weights_of_minilm_are_refused_with_both_hashes(monkeypatch):
    from steer_pipeline.lab.evaluation import minilm

    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(minilm.EncoderError, match=f"sha256 is 53aa5117.*pinned is {'0' * 64}"):
        minilm.packaged_weights()
    assert states()["minilm"].state == BROKEN


def test_help_needs_neither_torch_nor_dagster():
    code = (
        "import sys; from steer_pipeline.cli import check, doctor, exchange\n"
        "assert not {'torch', 'dagster', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
