"""MATH-500: competition mathematics (https://arxiv.org/abs/2305.20050), answers as LaTeX."""

from scope.tasks.boxed import BoxedTask
from scope.tasks.sources import Hub


class Math500(BoxedTask):
    name = "math500"
    hub = Hub("HuggingFaceH4/MATH-500", None, "test", "ff5b20257d8185524591543f8ff5993951537bb8")
    rows = 500
    sha256 = "a2392729"
