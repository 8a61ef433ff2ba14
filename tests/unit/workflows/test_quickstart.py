"""What the quickstart leaves behind in the process that calls it."""

import pytest
import torch

from cpt_deploy.errors import UsageError
from cpt_deploy.workflows.quickstart import RUN, train_digits


def test_the_number_of_threads_is_the_callers_again(tmp_path):
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "other").touch()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(UsageError, match="is not empty"):
            train_digits(tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
