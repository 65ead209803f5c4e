"""MATH-500: competition mathematics (https://arxiv.org/abs/2305.20050), answers as LaTeX."""

from scope.tasks.boxed import BoxedTask
from scope.tasks.sources import Hub


class Math500(BoxedTask):
    name = "math500"
    hub = Hub("HuggingFaceH4/MATH-500", None, "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be")
    rows = 500
    sha256 = "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"
