"""A task for cpt-deploy: regression on the diabetes table of scikit-learn. The entry point names `TASK`."""

from diabetes_task.task import DiabetesRegression

TASK = DiabetesRegression()
