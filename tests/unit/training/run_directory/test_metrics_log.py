import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cpt_deploy.errors import DataError
from cpt_deploy.training import RunDirectory
from cpt_deploy.training.run_directory.metrics_log import MetricsLog, columns_of, read_metrics

COLUMNS = columns_of(("accuracy",), ("accuracy", "top5"))


def rows_of(path, rows, first_step=0, *, after_evaluation=True):
    log = MetricsLog(RunDirectory(path), COLUMNS, first_step, after_evaluation=after_evaluation)
    for row in rows:
        log.log(row)
    log.close()
    return [(row["step"], row["loss"], row["test_loss"]) for row in read_metrics(path / "metrics.csv")]


FIRST = [
    {"step": 5, "loss": 1.5},
    {"step": 10, "loss": 1.0},
    {"step": 10, "test_loss": 1.1, "test_accuracy": 0.5},
    {"step": 15, "loss": 0.5},
]


def test_rows_have_the_documented_columns(tmp_path):
    rows_of(tmp_path, FIRST)

    text = (tmp_path / "metrics.csv").read_text().splitlines()
    assert text[0].split(",") == list(COLUMNS)
    assert len(text) == 5


def test_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    rows_of(tmp_path, FIRST)

    rows = rows_of(tmp_path, [{"step": 15, "loss": 0.7}], first_step=10)

    assert rows == [("5", "1.5", ""), ("10", "1.0", ""), ("10", "", "1.1"), ("15", "0.7", "")]


def test_evaluation_that_is_not_in_the_checkpoint_is_dropped(tmp_path):
    rows_of(tmp_path, FIRST)

    assert rows_of(tmp_path, [], first_step=10, after_evaluation=False) == [("5", "1.5", ""), ("10", "1.0", "")]


def test_final_evaluation_is_done_again_and_dropped(tmp_path):
    rows_of(tmp_path, [{"step": 10, "test_loss": 1.1}, {"step": 10, "test_loss": 1.0, "calibrated": 1}])

    assert rows_of(tmp_path, [], first_step=10) == [("10", "", "1.1")]


def test_row_that_was_cut_off_is_dropped(tmp_path):
    rows_of(tmp_path, FIRST)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "18,0.9,0.0")

    assert [row[0] for row in rows_of(tmp_path, [], first_step=20)] == ["5", "10", "10", "15"]


def test_new_run_begins_an_empty_log(tmp_path):
    rows_of(tmp_path, FIRST)

    assert rows_of(tmp_path, []) == []


def test_column_that_does_not_exist_is_a_mistake(tmp_path):
    log = MetricsLog(RunDirectory(tmp_path), COLUMNS, 0, after_evaluation=True)

    with pytest.raises(ValueError, match="lss"):
        log.log({"step": 1, "lss": 2})
    log.close()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    rows_of(tmp_path, FIRST)

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(5, 1.5), (10, 1.0), (15, 0.5)]
    assert events.Scalars("test/accuracy")[0].value == 0.5


def test_log_that_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "metrics.csv").mkdir()

    with pytest.raises(DataError, match="Expected to write metrics"):
        MetricsLog(RunDirectory(tmp_path), COLUMNS, 0, after_evaluation=True)
