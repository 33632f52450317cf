"""What networks are trained for: see `task.py` for the seam, and one module for each task."""

from darts_sg.tasks.classification import Classification
from darts_sg.tasks.detection import Detection
from darts_sg.tasks.task import (
    DEFAULT_TASK,
    TASKS,
    Batches,
    Evaluator,
    Figure,
    InferenceModel,
    Plot,
    Prediction,
    Task,
    task_of,
)

__all__ = [
    "DEFAULT_TASK",
    "TASKS",
    "Batches",
    "Classification",
    "Detection",
    "Evaluator",
    "Figure",
    "InferenceModel",
    "Plot",
    "Prediction",
    "Task",
    "task_of",
]
