"""What is learned: each task turns a recipe into data, a model and figures; the trainer knows none of them.

A new task is one class with `@register_task(name)`, in a file of its own that is imported here.
"""

from subquad.training.tasks.base import TASKS, Task, register_task, task_class
from subquad.training.tasks.causal_lm import CausalLM
from subquad.training.tasks.glue import Glue
from subquad.training.tasks.images import ImageClassification
from subquad.training.tasks.lra import SequenceClassification
from subquad.training.tasks.masked_lm import MaskedLM
from subquad.training.tasks.text import LanguageModel, model_config

__all__ = [
    "TASKS",
    "CausalLM",
    "Glue",
    "ImageClassification",
    "LanguageModel",
    "MaskedLM",
    "SequenceClassification",
    "Task",
    "model_config",
    "register_task",
    "task_class",
]
