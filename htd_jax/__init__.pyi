# The public names; each is imported when it is first used.
from . import data, distillers, evaluation, losses, models, serve, serving
from .data import Dataset, Split, read
from .errors import UserError
from .models import Representations
from .pipeline import Fitted, Measured, choose, distill, evaluate, fit, load, read_teacher, update
from .serving import Recommendations, Retriever
from .teacher import Lists, Teacher

__all__ = [
    "Dataset",
    "Fitted",
    "Lists",
    "Measured",
    "Recommendations",
    "Representations",
    "Retriever",
    "Split",
    "Teacher",
    "UserError",
    "choose",
    "data",
    "distill",
    "distillers",
    "evaluate",
    "evaluation",
    "fit",
    "load",
    "losses",
    "models",
    "read",
    "read_teacher",
    "serve",
    "serving",
    "update",
]

__version__: str
