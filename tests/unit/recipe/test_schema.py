import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cpt_deploy.precision import relative_cost
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.fields import interval_steps
from cpt_deploy.recipe.precision import PrecisionSettings
from cpt_deploy.recipe.schema import DataSettings, InputSettings, ModelSettings, SwaSettings, TrainSettings


def test_default_recipe_is_complete():
    recipe = Recipe()

    assert recipe.model.name == "tiny"
    assert recipe.data.name == "digits"
    assert recipe.train.epochs == 10
    assert recipe.train.steps is None


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1 epoch", 50),
        ("5 epochs", 250),
        ("390 steps", 390),
        (" 7steps ", 7),
    ],
)
def test_interval_is_parsed(text, steps):
    assert interval_steps(text, 50) == steps


@pytest.mark.parametrize("text", ["", "0 epochs", "epoch", "-1 steps", "1.5 epochs", "3 weeks"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(ValueError, match="Expected an interval"):
        interval_steps(text, 50)


@given(count=st.integers(1, 10**6), unit=st.sampled_from(["epoch", "step"]), plural=st.sampled_from(["", "s"]))
def test_interval_survives_its_text(count, unit, plural):
    assert interval_steps(f"{count} {unit}{plural}", 50) == count * (50 if unit == "epoch" else 1)


def test_bare_number_is_an_interval_in_epochs():
    train = TrainSettings(eval_every=2, checkpoint_every=1)

    assert interval_steps(train.eval_every, 50) == 100
    assert train.checkpoint_every == "1 epoch"


@pytest.mark.parametrize(
    ("given", "size"),
    [(64, (64, 64)), ("64", (64, 64)), ("224x160", (224, 160)), ("32X24", (32, 24)), ([8, 9], (8, 9)), (None, None)],
)
def test_size_is_one_number_or_two(given, size):
    assert InputSettings(size=given).size == size


@pytest.mark.parametrize("given", [0, "0x4", "axb", "1x2x3", -4, True, 2.5, [1]])
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ValidationError):
        InputSettings(size=given)


def test_augmentation_without_parameters_is_its_name():
    settings = DataSettings(augment=["randaugment", {"name": "hflip", "p": 0.3}])

    assert [(step.name, step.parameters) for step in settings.augment] == [("randaugment", {}), ("hflip", {"p": 0.3})]


def test_file_of_own_code_is_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert ModelSettings(name="nets/my net.py:build").name == f"{tmp_path}/nets/my net.py:build"
    assert ModelSettings(name="package.module:build").name == "package.module:build"
    assert ModelSettings(name="torchvision/resnet18").name == "torchvision/resnet18"


def test_average_of_weights_is_not_the_best_state():
    with pytest.raises(ValidationError, match="with swa"):
        TrainSettings(final="best", swa=SwaSettings(enabled=True))


def test_averaged_weights_need_statistics_of_their_own():
    with pytest.raises(ValidationError, match="calibration_batches of at least 1 with swa"):
        TrainSettings(calibration_batches=0, swa=SwaSettings(enabled=True))


def test_length_is_in_steps_or_epochs():
    assert TrainSettings(epochs=3).total_steps(11) == 33
    assert TrainSettings(steps=7).total_steps(11) == 7
    with pytest.raises(ValidationError, match="either epochs or steps"):
        TrainSettings(steps=7, epochs=3)


def test_schedules_of_the_paper_cost_what_it_prints():
    precision = PrecisionSettings(min_bits=3, max_bits=8, cycles=32)

    cost = relative_cost(precision.forward_schedule(), precision.backward_schedule(), 64000)

    assert 1 - cost == pytest.approx(0.3667, abs=5e-5)


@pytest.mark.parametrize(
    ("section", "values", "reason"),
    [
        ("precision", {"min_bits": 9, "max_bits": 8}, "min_bits <= max_bits"),
        ("precision", {"min_bits": 1}, "greater than or equal to 2"),
        ("precision", {"grad_max_bits": 6}, r"gradients \(grad_min_bits, grad_max_bits\): .* but got 8\.\.6"),
        ("precision", {"groups": [{"match": "a*", "min_bits": 9}]}, r"layers a\*: .* min_bits <= max_bits"),
        ("precision", {"schedule": "cosin"}, "did you mean cosine"),
        ("precision", {"schedule": "piecewise"}, "points"),
        ("data", {"input": {"channels": 3, "mean": [0.5]}}, "3 values"),
        ("data", {"input": {"size": [224, 224], "resize": 200}}, "at least 224"),
        ("data", {"input": {"std": [0.0]}}, "greater than 0"),
        ("optimizer", {"nesterov": True, "momentum": 0.0}, "momentum"),
        ("optimizer", {"lr": float("nan")}, "finite"),
        ("lr", {"milestones": [0.75, 0.5]}, "rise"),
        ("lr", {"decay_start": 0.9, "decay_end": 0.5}, "below decay_end"),
        ("train", {"device": "gpu"}, "auto, cpu, cuda or cuda:N"),
    ],
)
def test_settings_that_cannot_work_are_refused(section, values, reason):
    with pytest.raises(ValidationError, match=reason):
        Recipe.model_validate({section: values})


def test_import_path_of_a_schedule_is_not_imported_by_reading_it():
    precision = PrecisionSettings(schedule="no_such_module:schedule")

    assert precision.schedule == "no_such_module:schedule"


def test_recipe_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().seed = 1


@pytest.mark.parametrize("setting", ["schedule", "grad_schedule"])
def test_a_schedule_that_follows_the_loss_cannot_be_delayed(setting):
    PrecisionSettings(**{setting: "progressive"}, min_bits=3, grad_min_bits=6)
    with pytest.raises(ValidationError, match=r"does not follow the training loss with delay=0\.5"):
        PrecisionSettings(**{setting: "progressive"}, min_bits=3, grad_min_bits=6, delay=0.5)


def test_groups_without_cycles_keep_the_bounds_that_they_were_checked_with():
    groups = [{"match": "a*", "schedule": "piecewise", "points": [[0, 3], [0.5, 8]]}, {"match": "b*"}]
    settings = PrecisionSettings(groups=groups).for_run(10, 1)
    assert settings.bounds == (5, 8)
    assert [settings.bounds_of(group) for group in settings.groups] == [(3, 8), (5, 8)]
    assert settings.group_schedules()["group1"].bits_at(0, 10) == 3


def test_min_bits_follow_the_quantized_part_of_a_delayed_run():
    settings = PrecisionSettings(delay=0.5)
    assert settings.for_run(2_000, 60).bounds == (3, 8)
    assert settings.for_run(1_999, 60).bounds == (3, 8)  # 1,000 of them quantized
    assert settings.for_run(1_998, 60).bounds == (5, 8)
    assert settings.for_run(2_000, 59).bounds == (5, 8)
